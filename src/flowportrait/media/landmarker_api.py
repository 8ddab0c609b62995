"""MediaPipe's face landmarker without the rest of MediaPipe.

``import mediapipe`` imports every task, among them an audio recorder (sounddevice, PortAudio) and drawing tools
(matplotlib), half a second of processor for nothing that is used here. The modules of the landmarker need none of that:
they are imported while the packages above them stand without their ``__init__``. Afterwards ``sys.modules`` is as it
was, so whoever imports mediapipe in the same process gets the whole of it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

_PACKAGES = (
    "mediapipe", "mediapipe.tasks", "mediapipe.tasks.python", "mediapipe.tasks.python.vision",
    "mediapipe.tasks.python.vision.core", "mediapipe.tasks.python.core", "mediapipe.tasks.python.components",
    "mediapipe.tasks.python.components.containers",
)  # fmt: skip
_PYTHON = "mediapipe.tasks.python"
_LOCK = threading.Lock()


class LandmarkerApi(NamedTuple):
    """MediaPipe's classes that ``media.face`` uses."""

    BaseOptions: Any
    FaceLandmarker: Any
    FaceLandmarkerOptions: Any
    RunningMode: Any
    Image: Any
    ImageFormat: Any


def landmarker_api() -> LandmarkerApi:
    """The classes, imported once; from a whole mediapipe if somebody has imported it or it is laid out otherwise."""
    with _LOCK:
        return _load()


@lru_cache(maxsize=1)
def _load() -> LandmarkerApi:
    if "mediapipe" not in sys.modules:
        try:
            with _bare_packages():
                api = _import()
                # Finds the shared library as a resource of mediapipe, so it is loaded while the packages are bare.
                import_module(f"{_PYTHON}.core.mediapipe_c_bindings").load_raw_library()
                return api
        except (ImportError, AttributeError):
            pass  # another version, laid out in another way
    return _import()


def _import() -> LandmarkerApi:
    landmarker = import_module(f"{_PYTHON}.vision.face_landmarker")
    image = import_module(f"{_PYTHON}.vision.core.image")
    mode = import_module(f"{_PYTHON}.vision.core.vision_task_running_mode")
    options = import_module(f"{_PYTHON}.core.base_options")
    return LandmarkerApi(
        options.BaseOptions, landmarker.FaceLandmarker, landmarker.FaceLandmarkerOptions,
        mode.VisionTaskRunningMode, image.Image, image.ImageFormat,
    )  # fmt: skip


@contextmanager
def _bare_packages() -> Iterator[None]:
    """Let mediapipe's packages stand without having been run; take everything of mediapipe away at the end."""
    top = find_spec("mediapipe")
    if top is None or top.submodule_search_locations is None:
        raise ModuleNotFoundError("No module named 'mediapipe'", name="mediapipe")
    root = Path(next(iter(top.submodule_search_locations)))
    try:
        for name in _PACKAGES:
            sys.modules[name] = _bare_package(name, root.joinpath(*name.split(".")[1:]))
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "mediapipe"]:
            del sys.modules[name]


def _bare_package(name: str, folder: Path) -> ModuleType:
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    return module_from_spec(spec)

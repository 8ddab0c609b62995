"""Find faces in pictures: landmarks, blendshapes and pose from MediaPipe, one face per frame.

Landmarks are 478 points ``(x, y, z)`` in pixels of the given frame; z is depth relative to the face centre on the same
scale as x, smaller is nearer. Blendshapes are the 52 of ARKit. Frames without a face carry NaN and ``valid`` is False
there. The model ``face_landmarker.task`` ships with the package (Apache-2.0, unchanged).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.media.containers import silence_native_stderr

# --- MediaPipe's landmarker without the rest of MediaPipe -------------------------------
#
# ``import mediapipe`` imports every task, among them an audio recorder (sounddevice, PortAudio) and drawing tools
# (matplotlib): half a second of processor time for nothing that is used here. The modules of the landmarker need none
# of that: they are imported while the packages above them exist without their ``__init__`` having run. Afterwards
# ``sys.modules`` is restored, so code that imports mediapipe in the same process gets the whole package.

FACE_LANDMARKER_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
"""Hash of the shipped model file."""


def face_landmarker_path(path: str | Path | None = None) -> Path:
    """Return the path of the model: ``path``, else ``$FLOWPORTRAIT_FACE_LANDMARKER``, else the shipped file.

    Raises:
        BadInput: the given file is missing, or the installation lacks the shipped one.
    """
    if chosen := path or os.environ.get("FLOWPORTRAIT_FACE_LANDMARKER"):
        if not Path(chosen).is_file():
            raise BadInput(f"No face landmarker model at {chosen}: check the path.")
        return Path(chosen)
    shipped = shipped_weights("face_landmarker/face_landmarker.task")
    if not shipped.is_file():
        raise BadInput(f"The face landmarker is missing from {shipped.parent}: install flowportrait-weights again.")
    return shipped


_PACKAGES = (
    "mediapipe", "mediapipe.tasks", "mediapipe.tasks.python", "mediapipe.tasks.python.vision",
    "mediapipe.tasks.python.vision.core", "mediapipe.tasks.python.core", "mediapipe.tasks.python.components",
    "mediapipe.tasks.python.components.containers",
)  # fmt: skip
_PYTHON = "mediapipe.tasks.python"
_LOCK = threading.Lock()


class LandmarkerApi(NamedTuple):
    """The classes of MediaPipe that this module uses."""

    BaseOptions: Any
    FaceLandmarker: Any
    FaceLandmarkerOptions: Any
    RunningMode: Any
    Image: Any
    ImageFormat: Any


def landmarker_api() -> LandmarkerApi:
    """Return MediaPipe's classes, imported once.

    They are taken from the whole mediapipe if it was imported already, or if its modules are laid out in another way.
    """
    with _LOCK:
        return _load_api()


@lru_cache(maxsize=1)
def _load_api() -> LandmarkerApi:
    if "mediapipe" not in sys.modules:
        try:
            with _bare_packages():
                api = _import_api()
                # The shared library is found as a resource of mediapipe, so it is loaded while the packages are bare.
                import_module(f"{_PYTHON}.core.mediapipe_c_bindings").load_raw_library()
                return api
        except (ImportError, AttributeError):
            pass  # another version, laid out in another way
    return _import_api()


def _import_api() -> LandmarkerApi:
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
    """Let mediapipe's packages exist without running them; remove everything of mediapipe at the end."""
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


# --- Tracking ---------------------------------------------------------------------------

N_LANDMARKS = 478
N_BLENDSHAPES = 52


@dataclass(frozen=True)
class TrackedFace:
    """One face per frame of a clip.

    Attributes:
        landmarks: ``[T, 478, 3]`` px.
        blendshapes: ``[T, 52]`` in [0, 1].
        valid: ``[T]`` bool, whether there is a face.
        count: ``[T]`` how many faces the frame shows.
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    valid: np.ndarray
    count: np.ndarray


class FaceTracker:
    """A tracker of one face through the frames of one video; use it as a context manager and for one video alone.

    Of several faces the largest is taken in the first frame (of each shot, see ``new_shot``), or the ``face``-th from
    the left; afterwards the one nearest to the last position.

    Args:
        max_faces: how many faces are detected per frame.
        still: whether frames are separate pictures and no video.
        model: path of the model; None for ``face_landmarker_path()``.
        face: the number of the face, counted from the left beginning at 1; None for the largest.
    """

    def __init__(
        self, max_faces: int = 2, still: bool = False, model: str | None = None, face: int | None = None
    ) -> None:
        api = landmarker_api()
        # With more than one face allowed MediaPipe does no temporal smoothing of its own, so lips have no lag.
        options = api.FaceLandmarkerOptions(
            base_options=api.BaseOptions(model_asset_path=str(face_landmarker_path(model))),
            running_mode=api.RunningMode.IMAGE if still else api.RunningMode.VIDEO,
            num_faces=max(max_faces, 4 if face else 1),
            output_face_blendshapes=True,
        )
        self._still = still
        self._face_number, self._first_shot = face, True
        with silence_native_stderr():
            self._landmarker: Any = api.FaceLandmarker.create_from_options(options)
        self._is_loaded = False
        self._time_ms = 0
        self._last: np.ndarray | None = None

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._landmarker.close()

    def detect(self, frame: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return all faces of one RGB frame, largest first, as (landmarks ``[478, 3]`` px, blendshapes ``[52]``)."""
        api = landmarker_api()
        image = api.Image(image_format=api.ImageFormat.SRGB, data=np.ascontiguousarray(frame))
        if self._is_loaded:
            result = self._detect_raw(image)
        else:
            # The first detection loads the networks, which print messages too.
            with silence_native_stderr():
                result = self._detect_raw(image)
            self._is_loaded = True
        height, width = frame.shape[:2]
        scale = np.array([width, height, width], np.float32)
        faces = [
            (
                np.array([(p.x, p.y, p.z) for p in points], np.float32) * scale,
                np.array([shape.score for shape in shapes], np.float32),
            )
            for points, shapes in zip(result.face_landmarks, result.face_blendshapes, strict=True)
        ]
        return sorted(faces, key=lambda face: -face_height(face[0]))

    def _detect_raw(self, image: Any) -> Any:
        if self._still:
            return self._landmarker.detect(image)
        self._time_ms += 40
        return self._landmarker.detect_for_video(image, self._time_ms)

    def track(
        self, frames: Iterable[np.ndarray], inspect: Callable[[np.ndarray, np.ndarray | None], None] | None = None
    ) -> TrackedFace:
        """Follow one face through ``frames`` (``[H, W, 3]`` uint8 RGB).

        Args:
            frames: of one shot or video.
            inspect: called with each frame and the landmarks ``[478, 3]`` px of the face, None where there is none.
        """
        landmarks, blendshapes, valid, count = [], [], [], []
        for frame in frames:
            faces = self.detect(frame)
            count.append(len(faces))
            if faces:
                points, shapes = self._same_face(faces)
                self._last = points
            else:
                points = np.full((N_LANDMARKS, 3), np.nan, np.float32)
                shapes = np.full(N_BLENDSHAPES, np.nan, np.float32)
            if inspect is not None:
                inspect(frame, points if faces else None)
            landmarks.append(points)
            blendshapes.append(shapes)
            valid.append(bool(faces))
        return TrackedFace(
            np.array(landmarks, np.float32).reshape(-1, N_LANDMARKS, 3),
            np.array(blendshapes, np.float32).reshape(-1, N_BLENDSHAPES),
            np.array(valid, bool),
            np.array(count, int),
        )

    def new_shot(self) -> None:
        """Forget the position of the face, because the next frame comes after a cut.

        If the next frame shows fewer faces than the number of the wanted one, the largest is taken.
        """
        if self._last is not None:
            self._last, self._first_shot = None, False

    def _same_face(self, faces: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        if self._last is None:
            if self._face_number is None or (self._face_number > len(faces) and not self._first_shot):
                return faces[0]
            if not 1 <= self._face_number <= len(faces):
                raise BadInput(
                    f"Where the video first shows faces there are {len(faces)}, no number {self._face_number}."
                )
            return sorted(faces, key=lambda face: float(face[0][:, 0].mean()))[self._face_number - 1]
        centre = self._last[:, :2].mean(0)
        return min(faces, key=lambda face: float(np.hypot(*(face[0][:, :2].mean(0) - centre))))


# --- Measures of landmarks --------------------------------------------------------------


def face_height(landmarks: np.ndarray) -> float:
    """Return the vertical extent of landmarks in pixels."""
    return float(np.ptp(landmarks[:, 1]))


def face_extent(landmarks: np.ndarray) -> float:
    """Return the longer side in pixels of the box that holds landmarks ``[478, ≥ 2]``."""
    return float(np.ptp(landmarks[:, :2], axis=0).max())


def face_yaw(landmarks: np.ndarray) -> float:
    """Return by how many degrees a face is turned aside: the slant of its eye line in depth.

    Args:
        landmarks: ``[478, 3]`` px.
    """
    across = landmarks[263] - landmarks[33]
    return float(np.degrees(np.arctan2(across[2], np.hypot(across[0], across[1]))))


def face_roll(landmarks: np.ndarray) -> float:
    """Return by how many degrees (−180 to 180) a face is rolled to its side: the slant of its eye line in the picture.

    Args:
        landmarks: ``[478, ≥ 2]`` px.
    """
    across = landmarks[263] - landmarks[33]
    return float(np.degrees(np.arctan2(across[1], across[0])))


def interpolate_missing_frames(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Fill the frames of tracks ``[T, ...]`` that are not valid by linear interpolation, held constant at the ends."""
    if valid.all():
        return values.astype(np.float32)
    valid_frames = np.flatnonzero(valid)
    flat = values.reshape(len(values), -1)
    filled = np.stack([np.interp(np.arange(len(values)), valid_frames, column[valid_frames]) for column in flat.T], 1)
    return filled.reshape(values.shape).astype(np.float32)

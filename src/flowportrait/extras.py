"""Optional packages that only some commands need, grouped by the extra that installs them.

    pip install 'flowportrait[judge]'
    openai = require_extra("judge", "openai")  # the module, or BadInput with one sentence that names the extra

``EXTRAS`` must agree with the extras of ``pyproject.toml``.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

from flowportrait.errors import BadInput

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("accelerate", "peft", "yaml", "transformers"),
    "judge": ("openai", "httpx2"),
    "hub": ("huggingface_hub",),
    "serve": ("fastapi", "starlette", "pydantic", "uvicorn"),
    "live": ("websockets", "aiortc", "aioice", "prometheus_client"),
    "camera": ("pyvirtualcam",),
    "ray": ("ray",),
    "pipecat": ("pipecat",),
    "livekit": ("livekit",),
    "report": ("matplotlib",),
    "evaluate": ("dlib", "face_recognition_models", "skimage", "torchmetrics"),
    "voice": ("hibari", "espeakng_loader"),
    "vae": ("diffusers", "ftfy"),
    "onnx": ("onnx", "onnxscript"),
    "track": ("tensorboard",),
}
"""Each extra and the top-level modules of the packages that it installs."""


def require_extra(extra: str, *modules: str) -> ModuleType:
    """Import and return the first of ``modules`` after checking that all of them are installed.

    Args:
        extra: the extra that installs the modules.
        *modules: names of modules that the extra installs, with dots where they lie in a package.

    Raises:
        BadInput: one of them is not installed; the sentence names the extra.
    """
    for name in modules:
        package = name.partition(".")[0]
        if package not in sys.modules and not _is_installed(package):
            raise BadInput(missing_package_message(package, extra))
    return importlib.import_module(modules[0])


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def missing_extra_message(error: ModuleNotFoundError) -> str | None:
    """Return the message for an import that failed because an extra is not installed; None for any other module."""
    package = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if package in modules:
            return missing_package_message(package, extra)
    return None


def missing_package_message(module: str, extra: str) -> str:
    """Return one sentence that names the missing package and the command that installs it."""
    return f"This needs the package {module}: run pip install 'flowportrait[{extra}]'."

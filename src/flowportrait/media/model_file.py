"""Path of MediaPipe's ``face_landmarker.task``, which ships with the package (Apache-2.0, unchanged)."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from flowportrait.errors import BadInput

SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"


def face_landmarker_path(given: str | Path | None = None) -> Path:
    """Path of the model: ``given``, else ``$FLOWPORTRAIT_FACE_LANDMARKER``, else the shipped file.

    Raises:
        BadInput: a given file is missing, or the shipped one was left out of an incomplete installation.
    """
    if chosen := given or os.environ.get("FLOWPORTRAIT_FACE_LANDMARKER"):
        if not Path(chosen).is_file():
            raise BadInput(f"No face landmarker model at {chosen}: check the path.")
        return Path(chosen)
    shipped = Path(str(files("flowportrait") / "weights" / "face_landmarker" / "face_landmarker.task"))
    if not shipped.is_file():
        raise BadInput(f"The face landmarker is missing from {shipped.parent}: install flowportrait again.")
    return shipped

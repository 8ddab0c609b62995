"""Example portraits and a short recording of speech, for the studio, the demo and benchmarks.

``NOTICE`` names their sources and licences.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent
SPEECH = FOLDER / "beckett.flac"
"""Ten seconds of reading, 16 kHz mono, from the package useful-moonshine-onnx (MIT licence)."""
PORTRAITS = {
    "hair-tied": "A woman with her hair tied back",
    "beard": "A man with a beard",
    "short-hair": "A woman with very short hair",
    "astronaut": "An astronaut in an orange suit",
}
"""Names of the example portraits (files ``NAME.jpg`` of 640 px), and what they show."""


def portrait_path(name: str) -> Path:
    """Return the file of an example portrait."""
    return FOLDER / f"{name}.jpg"

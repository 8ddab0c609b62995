"""Cut framed faces out of footage, or measure on such faces what is usual for real portraits.

    python -m tools.measure_portraits CORPUS FOOTAGE faces.safetensors
    python -m tools.measure_portraits faces.safetensors limits.json

The faces are what the small portrait flow learns from; the limits are those of the measured judge of stills.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

from flowportrait.files import write_json
from flowportrait.portraitgen.measured_judge import FramedFaces, fit_limits, frame_corpus_faces

if __name__ == "__main__":
    if len(sys.argv) == 4:
        frame_corpus_faces(Path(sys.argv[1]), Path(sys.argv[2])).save(Path(sys.argv[3]))
    else:
        cv2.setNumThreads(1)
        target = Path(sys.argv[2])
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, fit_limits(FramedFaces.load(Path(sys.argv[1]))))

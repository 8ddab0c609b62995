"""Export the speech of a corpus as a folder of prompts for post-training.

    python -m tools.export_speech_prompts CORPUS OUTPUT

Short clips of one speaker are joined into recordings of at least six seconds. ``dev`` speakers are left out.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.data.corpus import FaceClip
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import normalize_loudness

SECONDS = 6.0
"""Least duration of a recording."""

PER_SPEAKER = 12
"""Largest number of recordings of a speaker."""


def export(corpus: Path, output: Path) -> int:
    """Write up to twelve recordings per training speaker and return their total number."""
    output.mkdir(parents=True, exist_ok=True)
    clips_of_speaker: dict[str, list[Path]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["split"] != "dev":
            clips_of_speaker[record["speaker"]].append(corpus / "clips" / f"{record['name']}.safetensors")
    count = 0
    for speaker, clips in sorted(clips_of_speaker.items()):
        joined: list[np.ndarray] = []
        written = 0
        for path in clips:
            joined.append(normalize_loudness(FaceClip.load(path).audio))
            if sum(map(len, joined)) >= SECONDS * SAMPLE_RATE and written < PER_SPEAKER:
                wavfile.write(output / f"{speaker}_{written:02d}.wav", SAMPLE_RATE, np.concatenate(joined))
                joined, written = [], written + 1
        count += written
    cv2.imwrite(str(output / "portrait.png"), astronaut()[..., ::-1])
    return count


if __name__ == "__main__":
    print(export(Path(sys.argv[1]), Path(sys.argv[2])), "recordings")

"""The look at held-out prompts: drawn with the weights as they are, and judged by the evaluation.

    samples/00010/<prompt>.mp4 ─► evaluation experts ─► sync, amplitude, trembling, …

What trains is never what judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowportrait.animator import Animator
from flowportrait.evaluation.measure import measure_video
from flowportrait.generator.arflow import ARFlow
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.write_video import write_video
from flowportrait.prompts import Prompt

SIZE = 256
SECONDS = 4.0
MEASURES = {
    "sync": ("sync_in_time", "sync_in_time_short"), "amplitude": ("mouth_amplitude",), "trembling": ("tfi",),
    "expression": ("ecs",), "head": ("head_range",), "silent_lip": ("silent_lip",),
}  # fmt: skip
"""What is logged as ``evaluation/…`` and the evaluation's figures it is taken from, the first that exists."""


def draw_and_measure(generator: ARFlow, prompts: Sequence[Prompt], folder: Path) -> dict[str, float]:
    """Draw every prompt's first four seconds into ``folder``, one seed, on one process; means over the prompts."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for prompt in prompts:
        audio = read_audio(prompt.audio)[: round(SECONDS * SAMPLE_RATE)]
        frames = Animator(generator).animate(read_image(prompt.image), audio, size=SIZE)
        write_video(folder / f"{prompt.id}.mp4", frames, audio)
        rows.append(measure_video(folder / f"{prompt.id}.mp4").row)
    found: dict[str, float] = {}
    for name, keys in MEASURES.items():
        values = [next((row[key] for key in keys if isinstance(row.get(key), (int, float))), None) for row in rows]
        known = [float(value) for value in values if isinstance(value, (int, float)) and np.isfinite(value)]
        if known:
            found[f"evaluation/{name}"] = float(np.mean(known))
    return found

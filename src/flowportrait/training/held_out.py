"""Samples of held-out prompts, measured by the evaluation.

    samples/00010/<prompt>.mp4 ─► evaluation experts ─► sync, amplitude, trembling, …

Nobody trains on these prompts, and what measures here is never a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from flowportrait.data.prompts import Prompt
from flowportrait.errors import BadInput
from flowportrait.evaluation.measure import measure_video
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow
from flowportrait.pipelines.animate import AnimatePipeline

SIZE = 256
"""Height and width of the samples in pixels."""
SECONDS = 4.0
MEASURES = {
    "sync": ("sync_in_time", "sync_in_time_short"), "amplitude": ("mouth_amplitude",), "trembling": ("tfi",),
    "expression": ("ecs",), "head": ("head_range",), "silent_lip": ("silent_lip",),
}  # fmt: skip
"""What is logged as ``evaluation/…`` and the evaluation's figures it is taken from, the first that exists."""


class Named(Protocol):
    """A prompt of any kind."""

    @property
    def id(self) -> str:
        """Name of its video."""
        ...


AnyPrompt = TypeVar("AnyPrompt", bound=Named)


def measure_samples(
    prompts: Sequence[AnyPrompt], folder: Path, write_sample: Callable[[AnyPrompt, Path], None]
) -> dict[str, float]:
    """Write a sample of every prompt into ``folder`` and measure it.

    Args:
        prompts: what to draw.
        folder: where the videos go, one ``<id>.mp4`` for each prompt.
        write_sample: writes the video of a prompt under the given name.

    Returns:
        Means over the prompts, as ``evaluation/NAME``; what no sample has is left out. ``evaluation/faces`` is the
        share of samples that show a face, where that is less than all of them.
    """
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for prompt in prompts:
        path = folder / f"{prompt.id.replace('/', '_')}.mp4"
        write_sample(prompt, path)
        try:
            rows.append(measure_video(path).row)
        except BadInput:  # no face in it
            continue
    found: dict[str, float] = {}
    for name, keys in MEASURES.items():
        values = [next((row[key] for key in keys if isinstance(row.get(key), (int, float))), None) for row in rows]
        known = [float(value) for value in values if isinstance(value, (int, float)) and np.isfinite(value)]
        if known:
            found[f"evaluation/{name}"] = float(np.mean(known))
    if len(rows) < len(prompts):
        found["evaluation/faces"] = len(rows) / len(prompts)
    return found


def write_portrait_sample(generator: ARFlow, prompt: Prompt, path: Path) -> None:
    """Write the first four seconds of a prompt as our generator speaks it, always from the same seed."""
    audio = read_audio(prompt.audio)[: round(SECONDS * SAMPLE_RATE)]
    video = AnimatePipeline(generator)(Portrait.from_image(read_image(prompt.image), SIZE), audio, crop=True)
    video.save(path, sign=False, watermark=False)


def draw_and_measure(generator: ARFlow, prompts: Sequence[Prompt], folder: Path) -> dict[str, float]:
    """Draw every prompt with our generator on this process and measure it, see ``measure_samples``."""
    return measure_samples(prompts, folder, lambda prompt, path: write_portrait_sample(generator, prompt, path))

"""Samples of held-out prompts during a training, measured by the evaluation.

    samples/00010/<prompt>.mp4 ─► evaluation experts ─► sync, amplitude, trembling, …

No training uses these prompts, and none of these measures is a reward.
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

SAMPLE_SIZE = 256
"""Height and width of the samples in pixels."""
SAMPLE_SECONDS = 4.0
MEASURES = {
    "sync": ("sync_in_time", "sync_in_time_short"), "amplitude": ("mouth_amplitude",), "trembling": ("tfi",),
    "expression": ("ecs",), "head": ("head_range",), "silent_lip": ("silent_lip",),
}  # fmt: skip
"""Names that are logged as ``evaluation/…``, each with the figures of ``measure_video`` that it is read from: the first
that exists."""


class HasId(Protocol):
    """Any prompt that has an id."""

    @property
    def id(self) -> str:
        """Name of the prompt and of its video."""
        ...


AnyPrompt = TypeVar("AnyPrompt", bound=HasId)


def measure_samples(
    prompts: Sequence[AnyPrompt], folder: Path, write_sample: Callable[[AnyPrompt, Path], None]
) -> dict[str, float]:
    """Write a sample of every prompt into ``folder`` and measure it.

    Args:
        prompts: the held-out prompts.
        folder: where the videos go, one ``<id>.mp4`` for each prompt.
        write_sample: writes the video of a prompt to the given path.

    Returns:
        Means over the prompts as ``evaluation/NAME``, without figures that no sample has. ``evaluation/faces`` is the
        share of samples that show a face; it is left out when all of them do.
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
    means: dict[str, float] = {}
    for name, keys in MEASURES.items():
        values = [next((row[key] for key in keys if isinstance(row.get(key), (int, float))), None) for row in rows]
        known = [float(value) for value in values if isinstance(value, (int, float)) and np.isfinite(value)]
        if known:
            means[f"evaluation/{name}"] = float(np.mean(known))
    if len(rows) < len(prompts):
        means["evaluation/faces"] = len(rows) / len(prompts)
    return means


def write_portrait_sample(generator: ARFlow, prompt: Prompt, path: Path) -> None:
    """Write the first four seconds of a prompt as drawn by our generator, always from the same seed."""
    audio = read_audio(prompt.audio)[: round(SAMPLE_SECONDS * SAMPLE_RATE)]
    video = AnimatePipeline(generator)(Portrait.from_image(read_image(prompt.image), SAMPLE_SIZE), audio, crop=True)
    video.save(path, sign=False, watermark=False)


def measure_portrait_samples(generator: ARFlow, prompts: Sequence[Prompt], folder: Path) -> dict[str, float]:
    """Draw every prompt with our generator on this process, and measure the videos as ``measure_samples`` does."""
    return measure_samples(prompts, folder, lambda prompt, path: write_portrait_sample(generator, prompt, path))

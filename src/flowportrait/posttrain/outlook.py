"""The held-out look at a run: prompts it never trains on, drawn with the averaged weights and judged by evaluation.

    every k iterations:   samples/0010/<prompt>.mp4 ─► evaluation experts ─► sync, amplitude, trembling, …

What trains is never what judges: the checkpoint that is delivered is the one that these experts liked best, and a
run whose rewards rise while they fall is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from flowportrait.animator import Animator
from flowportrait.evaluate.measure import measure
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.video import write_video
from flowportrait.posttrain.doctor import TOLERANCE, Finding, hacking
from flowportrait.posttrain.scale import gathered, on_main
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import Prompt

SIZE = 256
SECONDS = 4.0
MEASURES = {
    "sync": ("sync_in_time", "sync_in_time_short"), "amplitude": ("mouth_amplitude",), "trembling": ("tfi",),
    "expression": ("ecs",), "head": ("head_range",), "silent_lip": ("silent_lip",),
}  # fmt: skip
"""What is logged as ``evaluation/…`` and the evaluation's figures it is taken from, the first that exists."""


@dataclass(frozen=True)
class Outlook:
    """Held-out prompts and where their samples go."""

    prompts: Sequence[Prompt]
    folder: Path

    def look(self, trainer: Trainer) -> dict[str, float]:
        """Draw and measure all prompts with the averaged weights; the first four seconds, one seed. All processes
        together."""
        policy = trainer.roles.policy
        policy.eval()
        try:
            with trainer.roles.use("ema"), gathered(trainer.replay):
                return on_main(trainer.accelerator, lambda: self.measured(policy, trainer.iteration))
        finally:
            policy.train()

    def measured(self, policy: nn.Module, iteration: int) -> dict[str, float]:
        """Draw with the policy as it is, on one process."""
        rows = []
        target = self.folder / f"{iteration:05d}"
        target.mkdir(parents=True, exist_ok=True)
        for prompt in self.prompts:
            audio = read_audio(prompt.audio)[: round(SECONDS * SAMPLE_RATE)]
            frames = Animator(policy).animate(read_image(prompt.image), audio, size=SIZE)  # type: ignore[arg-type]
            write_video(target / f"{prompt.id}.mp4", frames, audio)
            rows.append(measure(target / f"{prompt.id}.mp4").row)
        found: dict[str, float] = {}
        for name, keys in MEASURES.items():
            values = [next((row[key] for key in keys if isinstance(row.get(key), (int, float))), None) for row in rows]
            known = [float(value) for value in values if isinstance(value, (int, float)) and np.isfinite(value)]
            if known:
                found[f"evaluation/{name}"] = float(np.mean(known))
        return found


def liked_best(records: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last look is the best so far: by sync, unless lips move or the face trembles more than twice as
    much as at the start, which sync alone would reward."""
    looks = [record for record in records if "evaluation/sync" in record]
    first, last = looks[0], looks[-1]
    for key in ("evaluation/amplitude", "evaluation/trembling"):
        if key in first and last.get(key, 0.0) > 2 * first[key]:
            return False
    return all(last["evaluation/sync"] >= record["evaluation/sync"] for record in looks)


def should_stop(records: Sequence[Mapping[str, float]], patience: int) -> Finding | None:
    """The finding that ends a run: it has been hacking for ``patience`` looks in a row."""
    looks = [record["evaluation/sync"] for record in records if "evaluation/sync" in record]
    if len(looks) <= patience or any(look >= (1 - TOLERANCE) * looks[0] for look in looks[-patience:]):
        return None
    return hacking(records, {})

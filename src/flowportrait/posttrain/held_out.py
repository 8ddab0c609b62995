"""Evaluation on held-out prompts while a run trains: which checkpoint is the best, and when to stop.

The checkpoint that is delivered is the one that the evaluation's experts rate best. A run whose rewards rise while the
evaluation falls is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.posttrain.doctor import Finding, is_worse, reward_hacking
from flowportrait.posttrain.trainer import Trainer
from flowportrait.training.held_out import measure_samples
from flowportrait.training.processes import on_main
from flowportrait.training.shards import gathered

SYNC, FACES = "evaluation/sync", "evaluation/faces"


@dataclass(frozen=True)
class HeldOutEvaluation:
    """Prompts that a run never trains on.

    Attributes:
        prompts: what to draw, of the kind that ``write_sample`` takes.
        folder: where the videos go, in one folder for each evaluation.
        write_sample: draws a prompt with the weights that are in the trainer's policy, and writes the video.
    """

    prompts: Sequence[Any]
    folder: Path
    write_sample: Callable[[Trainer, Any, Path], None]

    def run(self, trainer: Trainer) -> dict[str, float]:
        """Draw and measure all prompts with the averaged weights; all processes together.

        Raises:
            BadInput: nothing can be measured before training has begun.
        """
        policy, folder = trainer.roles.policy, self.folder / f"{trainer.iteration:05d}"

        def measured() -> dict[str, float]:
            return measure_samples(self.prompts, folder, lambda prompt, path: self.write_sample(trainer, prompt, path))

        policy.eval()
        try:
            with trainer.roles.use("ema"), gathered(trainer.replay):
                found = on_main(trainer.accelerator, measured)
        finally:
            policy.train()
        if not found.keys() - {FACES} and trainer.iteration == 0:
            raise BadInput(
                "Nothing can be measured of the held-out prompts, since no sample shows a face: choose other prompts, "
                f"or leave out --held-out; the samples are in {folder}."
            )
        return found


def is_best_checkpoint(records: Sequence[Mapping[str, float]]) -> bool:
    """Whether the last evaluation is the best so far.

    The measure is lip sync. An evaluation is never the best in which lips move or the face trembles more than twice as
    much as at the start, which sync alone would reward, or in which faces are missing that were there at the start.
    Where lip sync cannot be measured the last checkpoint counts as the best.
    """
    evaluations = [record for record in records if _has_evaluation(record)]
    first, last = evaluations[0], evaluations[-1]
    for key in ("evaluation/amplitude", "evaluation/trembling"):
        if key in first and last.get(key, 0.0) > 2 * first[key]:
            return False
    if last.get(FACES, 1.0) < first.get(FACES, 1.0):
        return False
    if SYNC not in first:
        return True
    return SYNC in last and all(last[SYNC] >= record[SYNC] for record in evaluations if SYNC in record)


def should_stop(records: Sequence[Mapping[str, float]], patience: int) -> Finding | None:
    """The finding that ends a run: for ``patience`` evaluations in a row rewards rose while lip sync fell, or faces
    that were there at the start were missing."""
    evaluations = [record for record in records if _has_evaluation(record)]
    if len(evaluations) <= patience:
        return None
    first, recent = evaluations[0], evaluations[-patience:]
    faces = [record.get(FACES, 1.0) for record in (first, *recent)]
    if SYNC not in recent[-1] and max(faces[1:]) < faces[0] / 2:
        return Finding(
            "faces lost",
            f"held-out samples with a face fell from {faces[0]:.0%} to {faces[-1]:.0%}",
            "take the best checkpoint, and lower learning_rate or raise kl_weight.",
        )
    if SYNC not in first or not all(SYNC in record and is_worse(first[SYNC], record[SYNC]) for record in recent):
        return None
    return reward_hacking(records, {})


def _has_evaluation(record: Mapping[str, float]) -> bool:
    return any(key.startswith("evaluation/") for key in record)

"""What the evaluation thinks of a run while it runs: prompts it never trains on, drawn with the averaged weights.

The checkpoint that is delivered is the one that the evaluation's experts liked best, and a run whose rewards rise while
they fall is stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowportrait.generator.arflow import ARFlow
from flowportrait.posttrain.doctor import Finding, hacking, is_worse
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import Prompt
from flowportrait.training.processes import on_main
from flowportrait.training.samples import draw_and_measure
from flowportrait.training.shards import gathered


@dataclass(frozen=True)
class Outlook:
    """Held-out prompts and where their samples go."""

    prompts: Sequence[Prompt]
    folder: Path

    def look(self, trainer: Trainer) -> dict[str, float]:
        """Draw and measure all prompts with the averaged weights. All processes together."""
        policy, folder = trainer.roles.policy, self.folder / f"{trainer.iteration:05d}"
        assert isinstance(policy, ARFlow), "portraits and speech are held out for nothing else"
        policy.eval()
        try:
            with trainer.roles.use("ema"), gathered(trainer.replay):
                return on_main(trainer.accelerator, lambda: draw_and_measure(policy, self.prompts, folder))
        finally:
            policy.train()


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
    if len(looks) <= patience or not all(is_worse(looks[0], look) for look in looks[-patience:]):
        return None
    return hacking(records, {})

"""Train the reward model on pairs: made from a prepared corpus, read from ``pairs.jsonl``, or both.

    batch = made pairs (curriculum coarse → subtle) + stated pairs ─► pair_loss ─► AdamW

Of a corpus only the split ``reward`` is read: who measures on the others measures on strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flowportrait.corpus.motion_set import MotionClip
from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.preference.made_pairs import FRAMES, PairBatch, PairMaker
from flowportrait.preference.pair_loss import Objective, pair_loss
from flowportrait.preference.reward_model import RewardModel
from flowportrait.training.descend import Report, descend, silent


@dataclass(frozen=True)
class Plan:
    """How the model is trained."""

    objective: Objective = "ties"
    steps: int = 300
    batch: int = 45
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    curriculum: float = 0.6
    """Share of the steps after which pairs are as subtle as they get."""
    seed: int = 0


def train_reward(
    plan: Plan,
    clips: Sequence[MotionClip],
    stated: Sequence[PairBatch] = (),
    report: Report = silent,
) -> RewardModel:
    """A trained model, standardised on ``clips``.

    clips: of training speakers; stated: batches from annotators, mixed in one a step; report: step, loss, seconds left.

    Raises:
        BadInput: no clip is long enough.
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    torch.manual_seed(plan.seed)
    model = RewardModel.fresh().train()
    maker = PairMaker(clips, MOTION_CORRUPTIONS, plan.seed)

    def loss(step: int) -> torch.Tensor:
        own = _loss(plan.objective, model, maker.draw(plan.batch, min(1.0, step / (plan.curriculum * plan.steps))))
        return own + _loss(plan.objective, model, stated[step % len(stated)]) if stated else own

    descend(model.parameters(), loss, plan.steps, plan.learning_rate, plan.weight_decay, report)
    model.eval().requires_grad_(False)
    real = [(clip.motion[:FRAMES], clip.mel[: 4 * FRAMES].float()) for clip in clips if len(clip.motion) >= FRAMES]
    motion, mel = (torch.stack(part) for part in zip(*real, strict=True))
    model.standardise(model.raw(motion, mel))
    return model


def _loss(objective: Objective, model: RewardModel, batch: PairBatch) -> torch.Tensor:
    scores = model.raw(
        torch.cat([batch.a, batch.b]), torch.cat([batch.mel, batch.mel if batch.mel_b is None else batch.mel_b])
    )
    a, b = scores.chunk(2)
    return pair_loss(objective, a, b, batch.labels, batch.points)

"""This module post-trains a generator twice, with its rewards and with random ones, and measures both on other prompts.

    policy ─┬─► score held-out prompts                                     before
            ├─► post-train with the rewards ─► score held-out prompts      trained
            └─► post-train with random rewards ─► score held-out prompts   control

Only what ``trained`` gains over ``control`` was learned from the rewards.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from flowportrait.rewards.random import CHANCE
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.loop import Callback
from flowportrait.rl.post_trainer import PostTrainer, PromptsLike, RewardsLike

TRAINED, CONTROL = "trained", "control"
"""Folders of the two runs."""


@dataclass(frozen=True)
class ControlledResult:
    """Mean scores on held-out prompts, by reward.

    Attributes:
        before: of the policy as it was.
        trained: after training with the rewards.
        control: after the same training with random rewards.
    """

    before: Mapping[str, float]
    trained: Mapping[str, float]
    control: Mapping[str, float]

    def table(self) -> str:
        """Return the scores as a table in Markdown, one row per reward."""
        rows = [
            f"| {name} | {self.before[name]:.3f} | {self.trained[name]:.3f} | {self.control[name]:.3f} |"
            for name in self.before
        ]
        return "\n".join(["| reward | before | trained | random rewards |", "|---|---:|---:|---:|", *rows])


def train_with_control(
    policy: Any,
    rewards: RewardsLike,
    config: PostTrainConfig | str,
    train_prompts: PromptsLike,
    eval_prompts: PromptsLike,
    output_dir: str | Path,
    samples: int = 8,
    measures: RewardsLike | None = None,
    resume: bool = False,
    *,
    policy_arguments: Mapping[str, Any] | Sequence[str] = (),
    bf16: bool = False,
    callbacks: Sequence[Callback] = (),
) -> ControlledResult:
    """Post-train a policy and its random-reward control, and score both on prompts that they were not trained on.

    Args:
        policy: as for ``PostTrainer``. An object is copied and keeps its weights.
        rewards: the rewards.
        config: the recipe of both runs.
        train_prompts: prompts to train on.
        eval_prompts: prompts to score.
        output_dir: folder of the runs ``trained`` and ``control``.
        samples: samples of each scored prompt.
        measures: what is scored, if it is not the rewards.
        resume: continue runs that are in ``output_dir``.
        policy_arguments: as for ``PostTrainer``.
        bf16: as for ``PostTrainer``.
        callbacks: user code that is called during the run with the rewards.

    Raises:
        BadInput: as ``PostTrainer``.
    """

    def trainer_with(run_rewards: RewardsLike, name: str) -> PostTrainer:
        own = copy.deepcopy(policy) if isinstance(policy, nn.Module) else policy
        return PostTrainer(
            own, run_rewards, config, train_prompts, callbacks=callbacks if name == TRAINED else (),
            output_dir=Path(output_dir) / name, policy_arguments=policy_arguments, bf16=bf16,
        )  # fmt: skip

    def scores(trainer: PostTrainer) -> dict[str, float]:
        return trainer.score_prompts(eval_prompts, rewards if measures is None else measures, samples)

    trained, control = trainer_with(rewards, TRAINED), trainer_with([CHANCE], CONTROL)
    before = scores(trained)
    for trainer in (trained, control):
        trainer.train(resume)
    return ControlledResult(before, scores(trained), scores(control))

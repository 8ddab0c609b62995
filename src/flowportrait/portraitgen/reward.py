"""PortraitGen's dual reward by name: ``omni_reward`` for the picture, ``ai_portrait`` for the person in it.

    Composite.of({"omni_reward": 0.5, "ai_portrait": 0.5})
    --set rewards.other.ai_portrait=0.3                          beside what a talking clip is paid for

Measured, unless the settings of a judge by server or model are given (``rewards.options.judge=FILE``).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from flowportrait.judge.judges import certificate_folders
from flowportrait.judge.reward import read_settings
from flowportrait.judge.sanity import require_sound
from flowportrait.portraitgen.judges import build_still_judge
from flowportrait.portraitgen.measured import MeasuredStills
from flowportrait.portraitgen.rubric import RubricName
from flowportrait.portraitgen.sanity import HOW
from flowportrait.portraitgen.stills import StillBatch, looks_of
from flowportrait.portraitgen.verdict import Still, StillJudge, StillVerdict
from flowportrait.reward.batch import Failure, RewardBatch
from flowportrait.reward.interface import Score, measured


@dataclass(frozen=True)
class StillReward:
    """One rubric of a judge; of a clip the mean over the frames that were looked at."""

    judge: StillJudge
    name: RubricName
    needs: frozenset[str] = frozenset({"frames"})

    @classmethod
    def load(cls, rubric: RubricName, settings: Path | None = None) -> StillReward:
        """By the judge in a settings file, measured without one; it has passed the sanity set for stills.

        Raises:
            BadInput: it has not, or cannot be built.
        """
        known = read_settings(settings)
        judge = build_still_judge(known)
        require_sound(judge, certificate_folders(known), HOW)
        return cls(judge, rubric)

    def __call__(self, batch: RewardBatch) -> Score:
        rows = looks_of(batch)
        prompts = batch.prompts if isinstance(batch, StillBatch) and batch.prompts else [""] * len(rows)
        if isinstance(self.judge, MeasuredStills):
            found = [[self.judge.verdict(look, self.name) for look in own] for own in rows]
        else:
            stills = [Still(look.picture, prompt) for own, prompt in zip(rows, prompts, strict=True) for look in own]
            verdicts = iter(self.judge.judge(stills, self.name))
            found = [[next(verdicts) for _ in own] for own in rows]
        return _score(found)


def _score(found: list[list[StillVerdict]]) -> Score:
    values, failures = torch.full((len(found),), torch.nan), {}
    for row, verdicts in enumerate(found):
        known = [verdict.value for verdict in verdicts if verdict.value is not None]
        if len(known) == len(verdicts):
            values[row] = statistics.fmean(known)
        else:
            why = next((verdict.failure for verdict in verdicts if verdict.failure), None)
            failures[row] = why or Failure("not_finite", "a frame has no score")
    return measured(values, failures)

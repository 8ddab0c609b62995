"""Any judge as a reward: what the composite's judge group takes.

    value = Σ_aspect w_aspect · score_aspect,   1 … 5          invalid where the judge gave no score, with its reason

By recipe: ``--set rewards.judge_by=panel``, with ``rewards.options.judge=FILE`` for a judge by server or model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from flowportrait.config import load
from flowportrait.judge.exhibit import exhibits_of
from flowportrait.judge.judges import JudgeSettings, build_judge, certificate_folders
from flowportrait.judge.measured import MeasuredPanel
from flowportrait.judge.rubric import ASPECTS, HIGHEST, LOWEST, WEIGHTS, Aspect
from flowportrait.judge.sanity import require_sound
from flowportrait.judge.verdict import Finding, Judge
from flowportrait.reward.batch import Failure, RewardBatch
from flowportrait.reward.interface import Score, measured


@dataclass(frozen=True)
class JudgeReward:
    """The panel's overall score, or one aspect's. A measured panel reads motion and a few frames, the others look at
    every frame and listen."""

    judge: Judge
    aspect: Aspect | None = None
    name: str = "panel"
    retries: int = 0
    noise: float = 0.0
    range: tuple[float, float] = (float(LOWEST), float(HIGHEST))

    @classmethod
    def for_training(cls, settings: JudgeSettings | None = None, aspect: Aspect | None = None) -> JudgeReward:
        """With a judge that has passed the sanity set.

        Raises:
            BadInput: it has not, or cannot be built.
        """
        settings = settings or JudgeSettings()
        judge = build_judge(settings)
        require_sound(judge, certificate_folders(settings))
        return cls(judge, aspect, noise=settings.noise)

    @property
    def needs(self) -> frozenset[str]:
        if isinstance(self.judge, MeasuredPanel):
            return frozenset({"motion", "mel", "frames", "places"})
        return frozenset({"frames", "audio"})

    def __call__(self, batch: RewardBatch) -> Score:
        if isinstance(self.judge, MeasuredPanel):
            found = self.judge.measure(batch, [False] * len(batch))
        else:
            found = [verdict.findings for verdict in self.judge.judge(exhibits_of(batch))]
        values, failures = torch.full((len(batch),), torch.nan), {}
        for row, findings in enumerate(found):
            value, why = self._value(findings)
            if why is None:
                values[row] = value
            else:
                failures[row] = why
        return measured(values, failures)

    def _value(self, findings: dict[Aspect, Finding]) -> tuple[float, Failure | None]:
        total = 0.0
        for aspect in (self.aspect,) if self.aspect else ASPECTS:
            finding = findings[aspect]
            if finding.score is None:
                return 0.0, finding.failure or Failure("not_finite", f"no {aspect} score")
            total += finding.score * (1.0 if self.aspect else WEIGHTS[aspect])
        return total, None


def read_settings(path: Path | None) -> JudgeSettings:
    """The judge settings in a file; those of the measured panel without one.

    Raises:
        BadInput: the file cannot be read.
    """
    return JudgeSettings() if path is None else load(JudgeSettings, path)

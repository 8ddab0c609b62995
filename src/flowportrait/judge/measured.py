"""The offline judge: no model looks; experts measure, and their figures are put on the rubric's scale.

    grade(aspect) = min over its experts e of  map_e(figure_e),     map_e monotone: 1 … 5

An aspect is as good as its worst expert says: a clip that is smooth but flickers is not steady. The maps are learned by
``fit_measured`` from known damage to real footage of training speakers. Every report calls it "measured panel". The
experts are those of the reward side, so a measured panel is a reward and never an evaluation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from flowportrait.devices import once_per_device
from flowportrait.errors import BadInput
from flowportrait.judge.calibration import Calibration
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.kind import Kind
from flowportrait.judge.library import Library
from flowportrait.judge.pose import HeadPose
from flowportrait.judge.rubric import ASPECTS, HIGHEST, LOWEST, RUBRIC, Aspect
from flowportrait.judge.steadiness import Steadiness
from flowportrait.judge.verdict import Finding, Verdict, missing
from flowportrait.reward.batch import Failure, RewardBatch
from flowportrait.reward.interface import Reward, Score
from flowportrait.reward.registry import build
from flowportrait.reward.scoring import score

MEASURED = Path(str(files("flowportrait") / "weights" / "judge" / "measured.json"))
POSE = MEASURED.with_name("pose.json")

READ_BY_EXPERTS = tuple(
    MEASURED.parent.parent / name
    for name in ("sync_reward/model.safetensors", "basis/real_motion.json", "reward/real.json")
)
"""Weights and constants with which the experts' figures change."""

EXPERTS: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("sync",),
    "expressiveness": ("expressiveness",),
    "motion": ("steadiness", "temporal"),
}
"""Experts by aspect: registered rewards, and ``Steadiness``."""

Knots = list[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """knots: (an expert's figure, the grade it stands for), both rising; grades between are drawn straight."""

    knots: Knots

    def __call__(self, figure: float) -> float:
        x, y = zip(*self.knots, strict=True)
        return float(np.clip(np.interp(figure, x, y), LOWEST, HIGHEST))


@dataclass(frozen=True)
class Experts:
    """rewards: by name; scales: their figures' grades; asked: who is asked about an aspect."""

    rewards: Mapping[str, Reward]
    scales: Mapping[str, Scale]
    asked: Mapping[Aspect, tuple[str, ...]] = field(default_factory=lambda: EXPERTS)

    @classmethod
    @once_per_device
    def load(cls) -> Experts:
        """Those that ship."""
        return cls.read(MEASURED)

    @classmethod
    def read(cls, path: Path) -> Experts:
        """What ``fit_measured`` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        scales = {name: Scale([(float(x), float(y)) for x, y in knots]) for name, knots in data["scales"].items()}
        head = json.loads(POSE.read_text(encoding="utf-8"))
        scales[HeadPose.name] = Scale([(float(x), float(y)) for x, y in head["scale"]])
        own: dict[str, Reward] = {"steadiness": Steadiness(**data["real"]), HeadPose.name: HeadPose(**head["real"])}
        return cls({name: own.get(name) or build(name) for name in scales}, scales)

    def asking(self, library: Library) -> Experts:
        """The same experts, asked as a library says.

        Raises:
            BadInput: it names an expert that there is not.
        """
        for aspect in ASPECTS:
            if unknown := set(library.of(aspect)) - set(self.scales):
                raise BadInput(f"No expert named {', '.join(unknown)}: a measured panel has {', '.join(self.scales)}.")
        return replace(self, asked={aspect: library.of(aspect) or EXPERTS[aspect] for aspect in ASPECTS})

    @property
    def named(self) -> set[str]:
        """Those that are asked at all."""
        return {name for names in self.asked.values() for name in names}


class MeasuredPanel:
    """A ``Judge`` whose specialists measure. Clips of one length are measured together."""

    kind: Kind = "measured panel"
    name = "measured panel"

    def __init__(
        self,
        experts: Experts | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.experts = experts or Experts.load()
        self.calibration = calibration

    @property
    def fingerprint(self) -> str:
        mapped = self.calibration.digest if self.calibration else "uncalibrated"
        knots = {name: self.experts.scales[name].knots for name in sorted(self.experts.named)}
        found = hashlib.sha256(f"measured {json.dumps(knots)} {self.experts.rewards['steadiness']} {mapped}".encode())
        if self.experts.asked != EXPERTS:
            found.update(f"{sorted(self.experts.asked.items())} {self.experts.rewards[HeadPose.name]}".encode())
        for path in READ_BY_EXPERTS:
            found.update(path.read_bytes())
        return found.hexdigest()[:16]

    def judge(self, exhibits: list[Exhibit]) -> list[Verdict]:
        """See ``Judge``."""
        verdicts: list[Verdict | None] = [None] * len(exhibits)
        lots: dict[int, list[int]] = {}
        for place, exhibit in enumerate(exhibits):
            short = exhibit.shortness()
            if short is None:
                lots.setdefault(len(exhibit), []).append(place)
            else:
                verdicts[place] = self._verdict(exhibit, {aspect: missing(aspect, short) for aspect in ASPECTS})
        for places in lots.values():
            lot = [exhibits[place] for place in places]
            found = self.measure(joined([exhibit.batch for exhibit in lot]), [exhibit.silent() for exhibit in lot])
            for place, findings in zip(places, found, strict=True):
                verdicts[place] = self._verdict(exhibits[place], findings)
        return [verdict for verdict in verdicts if verdict is not None]

    def measure(self, batch: RewardBatch, silent: Sequence[bool]) -> list[dict[Aspect, Finding]]:
        """Findings for every row of a batch that can draw."""
        scores = {name: score(self.experts.rewards[name], batch) for name in self.experts.named}
        return [
            {aspect: self._finding(aspect, scores, row, mute) for aspect in ASPECTS} for row, mute in enumerate(silent)
        ]

    def _finding(self, aspect: Aspect, scores: Mapping[str, Score], row: int, mute: bool) -> Finding:
        if mute and aspect == "lip_sync":
            return missing(aspect, Failure("no_sound", "the clip is silent"))
        figures: dict[str, float] = {}
        grades: dict[str, float] = {}
        for expert in self.experts.asked[aspect]:
            found = scores[expert]
            if not found.valid[row]:
                return missing(aspect, found.reasons.get(row, Failure("not_finite", f"{expert} measured nothing")))
            figures[expert] = float(found.value[row])
            grades[expert] = self.experts.scales[expert](figures[expert])
        worst = min(grades, key=lambda expert: grades[expert])
        raw = grades[worst]
        told = ", ".join(f"{expert} {figure:.3f} → {grades[expert]:.1f}" for expert, figure in figures.items())
        nearest = RUBRIC[aspect].grades[min(max(round(raw), LOWEST), HIGHEST) - 1]
        return Finding(
            aspect,
            self.calibration.apply(aspect, raw) if self.calibration else raw,
            raw,
            "measurement",
            (raw,),
            rationale=f"Measured, not looked at: {told}. The rubric's nearest grade reads: {nearest}",
            measured=figures,
        )

    def _verdict(self, exhibit: Exhibit, findings: dict[Aspect, Finding]) -> Verdict:
        return Verdict(exhibit.name, exhibit.generator, self.name, self.kind, findings)


def joined(batches: Sequence[RewardBatch]) -> RewardBatch:
    """Batches of one row each as one batch, for scorers that look at one sample at a time."""

    def frames(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        return torch.cat([batch.frames(indices) for batch in batches])

    def places(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        return torch.cat([batch.places(indices) for batch in batches])

    audio = [batch.audio for batch in batches if batch.audio is not None]
    return RewardBatch(
        torch.cat([batch.motion for batch in batches]),
        torch.cat([batch.mel for batch in batches]),
        frames if all("frames" in batch.has for batch in batches) else None,
        places if all("places" in batch.has for batch in batches) else None,
        torch.cat(audio) if len(audio) == len(batches) else None,
        domain=batches[0].domain,
        unseen={row: batch.unseen[0] for row, batch in enumerate(batches) if 0 in batch.unseen},
    )

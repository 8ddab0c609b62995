"""The offline judge: no model looks; experts measure, and their values are put on the rubric's scale.

    grade(aspect) = min over its experts e of  map_e(value_e),     map_e monotone: 1 … 5

An aspect is as good as its worst expert says: a clip that is smooth but flickers is not steady. The maps are learned by
``fit_scales`` from known damage to real footage of training speakers. Every report calls it "measured panel". The
experts are those of the reward side, so a measured panel is a reward and never an evaluation.

``PoseChecked`` goes over any judge, coarse to fine: a head that cannot be caps the grade of motion. After HuM-Eval
(2604.25361), which lets a model look first and then asks for 2-D pose and 3-D motion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowportrait.devices import once_per_device
from flowportrait.errors import BadInput
from flowportrait.judge.calibration import Calibration
from flowportrait.judge.clips import JudgedClip
from flowportrait.judge.landmark_rewards import HeadPose, Steadiness
from flowportrait.judge.questions import Kind
from flowportrait.judge.rubric import ASPECTS, HIGHEST, LOWEST, RUBRIC, Aspect, Library
from flowportrait.judge.verdicts import AspectVerdict, Judge, Verdict, missing_verdict
from flowportrait.reward.batch import Failure, RewardBatch
from flowportrait.reward.interface import Reward, Score
from flowportrait.reward.registry import build
from flowportrait.reward.scoring import score

SCALES_FILE = Path(str(files("flowportrait") / "weights" / "judge" / "measured.json"))
POSE_FILE = SCALES_FILE.with_name("pose.json")

READ_BY_EXPERTS = tuple(
    SCALES_FILE.parent.parent / name
    for name in ("sync_reward/model.safetensors", "basis/real_motion.json", "reward/real.json")
)
"""Weights and constants with which the experts' values change."""

EXPERTS: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("sync",),
    "expressiveness": ("expressiveness",),
    "motion": ("steadiness", "temporal"),
}
"""Experts by aspect: registered rewards, and ``Steadiness``."""

Knots = list[tuple[float, float]]


@dataclass(frozen=True)
class Scale:
    """A monotone map from an expert's value to a grade: knots (value, grade), both rising, straight lines between."""

    knots: Knots

    def __call__(self, value: float) -> float:
        x, y = zip(*self.knots, strict=True)
        return float(np.clip(np.interp(value, x, y), LOWEST, HIGHEST))


@dataclass(frozen=True)
class Experts:
    """Rewards by name, the scales of their values, and the names that are asked about each aspect."""

    rewards: Mapping[str, Reward]
    scales: Mapping[str, Scale]
    asked: Mapping[Aspect, tuple[str, ...]] = field(default_factory=lambda: EXPERTS)

    @classmethod
    @once_per_device
    def load(cls) -> Experts:
        """Return the experts that ship."""
        return cls.read(SCALES_FILE)

    @classmethod
    def read(cls, path: Path) -> Experts:
        """Read what ``fit_scales`` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        scales = {name: Scale([(float(x), float(y)) for x, y in knots]) for name, knots in data["scales"].items()}
        head = json.loads(POSE_FILE.read_text(encoding="utf-8"))
        scales[HeadPose.name] = Scale([(float(x), float(y)) for x, y in head["scale"]])
        landmarks: dict[str, Reward] = {
            "steadiness": Steadiness(**data["real"]),
            HeadPose.name: HeadPose(**head["real"]),
        }
        return cls({name: landmarks.get(name) or build(name) for name in scales}, scales)

    def with_library(self, library: Library) -> Experts:
        """Return the same experts, asked as a library says.

        Raises:
            BadInput: the library names an expert that there is not.
        """
        for aspect in ASPECTS:
            if unknown := set(library.of(aspect)) - set(self.scales):
                raise BadInput(f"No expert named {', '.join(unknown)}: a measured panel has {', '.join(self.scales)}.")
        return replace(self, asked={aspect: library.of(aspect) or EXPERTS[aspect] for aspect in ASPECTS})

    @property
    def used(self) -> set[str]:
        """The names that are asked at all."""
        return {name for names in self.asked.values() for name in names}


class MeasuredPanel:
    """A judge whose specialists measure. Clips of one length are measured together."""

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
        calibration = self.calibration.digest if self.calibration else "uncalibrated"
        knots = {name: self.experts.scales[name].knots for name in sorted(self.experts.used)}
        found = hashlib.sha256(
            f"measured {json.dumps(knots)} {self.experts.rewards['steadiness']} {calibration}".encode()
        )
        if self.experts.asked != EXPERTS:
            found.update(f"{sorted(self.experts.asked.items())} {self.experts.rewards[HeadPose.name]}".encode())
        for path in READ_BY_EXPERTS:
            found.update(path.read_bytes())
        return found.hexdigest()[:16]

    def judge(self, clips: Sequence[JudgedClip], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """See ``ItemJudge``; all aspects are measured."""
        verdicts: list[Verdict | None] = [None] * len(clips)
        by_length: dict[int, list[int]] = {}
        for index, clip in enumerate(clips):
            short = clip.too_short()
            if short is None:
                by_length.setdefault(len(clip), []).append(index)
            else:
                verdicts[index] = self._verdict(clip, {aspect: missing_verdict(aspect, short) for aspect in ASPECTS})
        for indices in by_length.values():
            batch = concatenate_batches([clips[index].batch for index in indices])
            found = self.measure(batch, [clips[index].is_silent() for index in indices])
            for index, verdict in zip(indices, found, strict=True):
                verdicts[index] = self._verdict(clips[index], verdict)
        return [verdict for verdict in verdicts if verdict is not None]

    def measure(self, batch: RewardBatch, silent: Sequence[bool]) -> list[dict[Aspect, AspectVerdict]]:
        """Return the verdicts on every row of a batch that can draw."""
        scores = {name: score(self.experts.rewards[name], batch) for name in self.experts.used}
        return [
            {aspect: self._aspect(aspect, scores, row, mute) for aspect in ASPECTS} for row, mute in enumerate(silent)
        ]

    def _aspect(self, aspect: Aspect, scores: Mapping[str, Score], row: int, mute: bool) -> AspectVerdict:
        if mute and aspect == "lip_sync":
            return missing_verdict(aspect, Failure("no_sound", "the clip is silent"))
        values: dict[str, float] = {}
        grades: dict[str, float] = {}
        for expert in self.experts.asked[aspect]:
            found = scores[expert]
            if not found.valid[row]:
                return missing_verdict(
                    aspect, found.reasons.get(row, Failure("not_finite", f"{expert} measured nothing"))
                )
            values[expert] = float(found.value[row])
            grades[expert] = self.experts.scales[expert](values[expert])
        worst = min(grades, key=lambda expert: grades[expert])
        raw = grades[worst]
        told = ", ".join(f"{expert} {value:.3f} → {grades[expert]:.1f}" for expert, value in values.items())
        nearest = RUBRIC[aspect].grades[min(max(round(raw), LOWEST), HIGHEST) - 1]
        return AspectVerdict(
            aspect,
            self.calibration.apply(aspect, raw) if self.calibration else raw,
            raw,
            "measurement",
            (raw,),
            rationale=f"Measured, not looked at: {told}. The rubric's nearest grade reads: {nearest}",
            measured=values,
        )

    def _verdict(self, clip: JudgedClip, aspects: dict[Aspect, AspectVerdict]) -> Verdict:
        return Verdict(clip.name, clip.generator, self.name, self.kind, aspects)


def concatenate_batches(batches: Sequence[RewardBatch]) -> RewardBatch:
    """Return batches of one row each as one batch, for scorers that look at one sample at a time."""

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


class PoseChecked:
    """A judge over another: a head that bends or turns as heads do not caps the grade of motion.

    A plausible body adds nothing to what the other judge said.
    """

    def __init__(self, judge: Judge, experts: Experts | None = None) -> None:
        experts = experts or Experts.load()
        pose = experts.rewards[HeadPose.name]
        assert isinstance(pose, HeadPose), "experts know poses by landmarks alone"
        self.inner, self.pose, self.scale = judge, pose, experts.scales[HeadPose.name]

    @property
    def backend(self) -> Any:
        """The backend of the other judge, for its ledger."""
        return getattr(self.inner, "backend", None)

    @property
    def name(self) -> str:
        return f"{self.inner.name}, pose checked"

    @property
    def kind(self) -> Kind:
        return self.inner.kind

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.inner.fingerprint} {self.pose} {self.scale}".encode()).hexdigest()[:16]

    def judge(self, clips: Sequence[JudgedClip], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """See ``ItemJudge``."""
        return [self._capped(clip, verdict) for clip, verdict in zip(clips, self.inner.judge(clips), strict=True)]

    def _capped(self, clip: JudgedClip, verdict: Verdict) -> Verdict:
        motion = verdict.aspects["motion"]
        if motion.score is None:
            return verdict
        value = float(self.pose.measure(torch.from_numpy(clip.landmarks[None])))
        cap = self.scale(value)
        if cap >= motion.score:
            return verdict
        why = f"{motion.rationale} Capped from {motion.score:.1f}: no head bends or turns like this ({value:.2f})."
        capped = replace(
            motion, score=cap, decided_by="measurement", rationale=why.strip(),
            measured={**(motion.measured or {}), HeadPose.name: value},
        )  # fmt: skip
        return replace(verdict, aspects={**verdict.aspects, "motion": capped})

"""This module holds the measured panel, a judge of clips that needs no model: experts measure, scales give grades.

    grade(aspect) = min over its experts e of  scale_e(value_e),     scale_e monotone: 1 … 5

The parts in order: two experts that read landmark tracks alone (``Steadiness``, ``HeadPose``), the experts with their
scales (``Experts``), the judge (``MeasuredPanel``), and a check of head poses for any judge (``PoseCappedJudge``). The
other experts are rewards (sync, expressiveness, temporal), so a measured panel is a reward and never an evaluation.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowportrait.devices import cached_per_device
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights
from flowportrait.judges.calibration import Calibration
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.questions import JudgeKind
from flowportrait.judges.rubric import CLIP_ASPECTS, HIGHEST_GRADE, LOWEST_GRADE, RUBRIC, Aspect, RubricLibrary
from flowportrait.judges.verdicts import AspectVerdict, Judge, Verdict, missing_verdict
from flowportrait.rendering.motion_basis import RIGID_POINTS, MotionBasis
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import Reward, Score, score_batch, score_with_failures
from flowportrait.rewards.registry import build_reward

# --- Steadiness

MIN_TRACK_FRAMES = 4
"""Least number of frames of a track."""
OUTER_CORNERS = (33, 263)
"""Landmarks of the outer corners of the eyes."""
FREEZE_WEIGHT = 4.0
_TINY_STEP, _TINY = 1e-5, 1e-4


# Fingerprints contain the text of an instance (its repr): a changed name of the class or of a field changes them.
@dataclass(frozen=True)
class Steadiness:
    """A reward for faces that move as filmed faces do, without trembling, freezing or jumps.

        a = rms acceleration of the face's centre       h = share of steps in which nothing moves
        steadiness = − max(ln a, ln a₀) − 4 h           lengths in distances between the outer corners of the eyes

    a₀ is the value of the steadiest fifth of real clips. Steadier motion gains nothing, so that a photo, which never
    moves (h = 1), scores low. Trembling raises a; a freeze raises h, and a by the jump at its end.

    Args:
        floor: ln a₀.
        unmoved: speed per frame below which a step counts as no motion.
    """

    floor: float
    unmoved: float
    name: str = "steadiness"
    needs: frozenset[str] = frozenset({"places"})

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        return score_tracks(batch, self.measure, "steadiness")

    def measure(self, places: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[B]`` of tracks ``[B, T, 478, 2]`` px."""
        shaking, speed = track_statistics(places)
        return -shaking.clamp_min(self.floor) - FREEZE_WEIGHT * (speed < self.unmoved).float().mean(1)

    @classmethod
    def fit_to_real_clips(cls, places: torch.Tensor) -> Steadiness:
        """Fit the reward to real clips ``[B, T, 478, 2]`` px.

        ``floor`` is the 20 % quantile of ln a, ``unmoved`` is half of the 5 % quantile of speeds.
        """
        shaking, speed = track_statistics(places)
        return cls(float(shaking.quantile(0.2)), float(speed.flatten().quantile(0.05)) / 2)


def track_statistics(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ln a ``[B]``, and the rms speed of all landmarks ``[B, T − 1]``, of tracks ``[B, T, 478, 2]`` px."""
    left, right = (places[:, :, corner] for corner in OUTER_CORNERS)
    scaled = places / (left - right).norm(dim=-1).mean(1)[:, None, None, None]
    acceleration = scaled.mean(2).diff(n=2, dim=1).square().sum(-1).mean(1).sqrt()
    speed = scaled.diff(dim=1).square().sum(-1).mean(-1).sqrt()
    return (acceleration + _TINY_STEP).log(), speed


# --- Head pose

_REAL_QUANTILE = 0.8
"""Share of real clips with a plausible pose by definition."""
_TURN_QUANTILE = 0.95


# Fingerprints contain the text of an instance (its repr): a changed name of the class or of a field changes them.
@dataclass(frozen=True)
class HeadPose:
    """A reward for heads that keep their shape and turn no faster than real heads do.

        2-D    landmarks ≈ M · canonical head,  M = [m₁ m₂]ᵀ per frame     bend = rms of ln |m₁|/|m₂| and of
                                                                                  cos(m₁, m₂) about their medians
        3-D    R from M                            turn = 95 % quantile of the angle between frames, degrees
        pose = − max(ln bend − b₀, 0) − max(ln turn − t₀, 0)

    Under any pose m₁ and m₂ of a rigid head are orthogonal and equally long. Four fifths of real clips stay below b₀
    and t₀, so that a plausible head scores 0 and an impossible one less.

    Args:
        bend: b₀.
        turn: t₀.
    """

    bend: float
    turn: float
    name: str = "pose"
    needs: frozenset[str] = frozenset({"places"})

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        return score_tracks(batch, self.measure, "pose to follow")

    def measure(self, places: torch.Tensor) -> torch.Tensor:
        """Return the scores ``[B]`` of tracks ``[B, T, 478, 2]`` px."""
        bend, turn = pose_statistics(places)
        return (-(bend - self.bend).clamp_min(0) - (turn - self.turn).clamp_min(0)).float()

    @classmethod
    def fit_to_real_clips(cls, places: torch.Tensor) -> HeadPose:
        """Fit the reward to real clips ``[B, T, 478, 2]`` px."""
        bend, turn = pose_statistics(places)
        return cls(float(bend.quantile(_REAL_QUANTILE)), float(turn.quantile(_REAL_QUANTILE)))


def pose_statistics(places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ln bend ``[B]`` and ln turn ``[B]`` of tracks ``[B, T, 478, 2]`` px."""
    camera = fit_affine_camera(places)
    first, second = camera.unbind(-2)
    lengths = first.norm(dim=-1) / second.norm(dim=-1).clamp_min(_TINY)
    shape = torch.stack([lengths.clamp_min(_TINY).log(), torch.nn.functional.cosine_similarity(first, second, -1)], -1)
    off = shape - shape.median(1, keepdim=True).values
    bend = off.square().sum(-1).mean(1).sqrt()
    turn = rotation_angles(nearest_rotation(camera)).quantile(_TURN_QUANTILE, 1)
    return (bend + _TINY).log(), (turn + _TINY).log()


def fit_affine_camera(places: torch.Tensor) -> torch.Tensor:
    """Return the affine camera M ``[B, T, 2, 3]``, fitted to the canonical head's rigid points by least squares."""
    head = MotionBasis.load().canonical[RIGID_POINTS].double()
    head = head - head.mean(0)
    points = places[:, :, RIGID_POINTS].double()
    points = points - points.mean(2, keepdim=True)
    return (torch.linalg.pinv(head) @ points).mT


def nearest_rotation(camera: torch.Tensor) -> torch.Tensor:
    """Return the rotation ``[..., 3, 3]`` nearest to a camera ``[..., 2, 3]``; the third axis is a cross product."""
    u, _, vt = torch.linalg.svd(camera, full_matrices=False)
    rows = u @ vt
    return torch.cat([rows, torch.linalg.cross(rows[..., :1, :], rows[..., 1:, :])], -2)


def rotation_angles(turned: torch.Tensor) -> torch.Tensor:
    """Return the angles ``[B, T − 1]`` between successive rotations ``[B, T, 3, 3]``, in degrees."""
    step = turned[:, 1:] @ turned[:, :-1].mT
    cosine = (step.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def score_tracks(batch: RewardBatch, measure: Callable[[torch.Tensor], torch.Tensor], what: str) -> Score:
    """Score a batch by a function of its landmark tracks.

    Args:
        batch: the samples; those shorter than ``MIN_TRACK_FRAMES`` have no score.
        measure: tracks ``[B, T, 478, 2]`` px to scores ``[B]``.
        what: what is measured, for the failure's text.
    """
    length = batch.motion.shape[1]
    if length < MIN_TRACK_FRAMES:
        failure = Failure("too_short", f"{length} frames have no {what}")
        return score_with_failures(torch.full((len(batch),), torch.nan), dict.fromkeys(range(len(batch)), failure))
    return score_with_failures(measure(batch.places(tuple(range(length)))), {})


# --- Experts and their scales


EXPERT_FILES = ("sync_reward/model.safetensors", "basis/real_motion.json", "reward/real.json")
"""Shipped files of weights and constants that the experts' values depend on; part of the fingerprint."""

EXPERTS: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("sync",),
    "expressiveness": ("expressiveness",),
    "motion": ("steadiness", "temporal"),
}
"""The names of the experts of each aspect: registered rewards, and ``Steadiness``."""

Knots = list[tuple[float, float]]


# Fingerprints contain the text of an instance (its repr): a changed name of the class or of a field changes them.
@dataclass(frozen=True)
class Scale:
    """A monotone map from an expert's value to a grade: knots (value, grade), both rising, and lines between them.

    The scales that ship were fitted to known damage of real footage of training speakers.
    """

    knots: Knots

    def __call__(self, value: float) -> float:
        """Return the grade of a value."""
        x, y = zip(*self.knots, strict=True)
        return float(np.clip(np.interp(value, x, y), LOWEST_GRADE, HIGHEST_GRADE))


@dataclass(frozen=True)
class Experts:
    """The experts of a measured panel.

    Args:
        rewards: the rewards that measure, by name.
        scales: the maps from their values to grades, by name.
        by_aspect: the names of the experts of each aspect.
    """

    rewards: Mapping[str, Reward]
    scales: Mapping[str, Scale]
    by_aspect: Mapping[Aspect, tuple[str, ...]] = field(default_factory=lambda: EXPERTS)

    @classmethod
    @cached_per_device
    def load(cls) -> Experts:
        """Return the experts that ship with the package."""
        return cls.read(shipped_weights("judge/measured.json"))

    @classmethod
    def read(cls, path: Path) -> Experts:
        """Read experts from a file of scales."""
        data = json.loads(path.read_text(encoding="utf-8"))
        scales = {name: Scale([(float(x), float(y)) for x, y in knots]) for name, knots in data["scales"].items()}
        head = json.loads(shipped_weights("judge/pose.json").read_text(encoding="utf-8"))
        scales[HeadPose.name] = Scale([(float(x), float(y)) for x, y in head["scale"]])
        landmarks: dict[str, Reward] = {
            "steadiness": Steadiness(**data["real"]),
            HeadPose.name: HeadPose(**head["real"]),
        }
        return cls({name: landmarks.get(name) or build_reward(name) for name in scales}, scales)

    def with_library(self, library: RubricLibrary) -> Experts:
        """Return the same experts with the aspects that a library assigns to them.

        Raises:
            BadInput: the library names an unknown expert.
        """
        for aspect in CLIP_ASPECTS:
            if unknown := set(library.of(aspect)) - set(self.scales):
                raise BadInput(f"No expert named {', '.join(unknown)}: a measured panel has {', '.join(self.scales)}.")
        return replace(self, by_aspect={aspect: library.of(aspect) or EXPERTS[aspect] for aspect in CLIP_ASPECTS})

    @property
    def used(self) -> set[str]:
        """The names of all experts that are asked about an aspect."""
        return {name for names in self.by_aspect.values() for name in names}


# --- The judge


class MeasuredPanel:
    """A judge of clips by measuring experts.

    The grade of an aspect is the lowest of its experts' grades: a clip that is smooth but flickers is not steady.
    Clips of equal length are measured together. Reports name this judge "measured panel".

    Args:
        experts: the experts; those that ship by default.
        calibration: map from the panel's grades to human scores.
    """

    kind: JudgeKind = "measured panel"
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
        """See ``ItemJudge``."""
        calibration = self.calibration.digest if self.calibration else "uncalibrated"
        knots = {name: self.experts.scales[name].knots for name in sorted(self.experts.used)}
        found = hashlib.sha256(
            f"measured {json.dumps(knots)} {self.experts.rewards['steadiness']} {calibration}".encode()
        )
        if self.experts.by_aspect != EXPERTS:
            found.update(f"{sorted(self.experts.by_aspect.items())} {self.experts.rewards[HeadPose.name]}".encode())
        for name in EXPERT_FILES:
            found.update(shipped_weights(name).read_bytes())
        return found.hexdigest()[:16]

    def judge(self, clips: Sequence[JudgedClip], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """See ``ItemJudge``; all aspects are measured in any case."""
        verdicts: list[Verdict | None] = [None] * len(clips)
        by_length: dict[int, list[int]] = {}
        for index, clip in enumerate(clips):
            short = clip.too_short()
            if short is None:
                by_length.setdefault(len(clip), []).append(index)
            else:
                verdicts[index] = self._verdict(
                    clip, {aspect: missing_verdict(aspect, short) for aspect in CLIP_ASPECTS}
                )
        for indices in by_length.values():
            batch = concatenate_batches([clips[index].batch for index in indices])
            found = self.measure(batch, [clips[index].is_silent() for index in indices])
            for index, verdict in zip(indices, found, strict=True):
                verdicts[index] = self._verdict(clips[index], verdict)
        return [verdict for verdict in verdicts if verdict is not None]

    def measure(self, batch: RewardBatch, silent: Sequence[bool]) -> list[dict[Aspect, AspectVerdict]]:
        """Return the verdicts on every row of a batch that can render frames.

        Args:
            batch: the samples.
            silent: for every row whether its lip sync is left out because there is no sound.
        """
        scores = {name: score_batch(self.experts.rewards[name], batch) for name in self.experts.used}
        return [
            {aspect: self._aspect(aspect, scores, row, mute) for aspect in CLIP_ASPECTS}
            for row, mute in enumerate(silent)
        ]

    def _aspect(self, aspect: Aspect, scores: Mapping[str, Score], row: int, mute: bool) -> AspectVerdict:
        if mute and aspect == "lip_sync":
            return missing_verdict(aspect, Failure("no_sound", "the clip is silent"))
        values: dict[str, float] = {}
        grades: dict[str, float] = {}
        for expert in self.experts.by_aspect[aspect]:
            found = scores[expert]
            if not found.valid[row]:
                return missing_verdict(
                    aspect, found.reasons.get(row, Failure("not_finite", f"{expert} measured nothing"))
                )
            values[expert] = float(found.value[row])
            grades[expert] = self.experts.scales[expert](values[expert])
        worst = min(grades, key=lambda expert: grades[expert])
        raw = grades[worst]
        measurements = ", ".join(f"{expert} {value:.3f} → {grades[expert]:.1f}" for expert, value in values.items())
        nearest = RUBRIC[aspect].grades[min(max(round(raw), LOWEST_GRADE), HIGHEST_GRADE) - 1]
        return AspectVerdict(
            aspect,
            self.calibration.apply(aspect, raw) if self.calibration else raw,
            raw,
            "measurement",
            (raw,),
            rationale=f"Measured, not looked at: {measurements}. The rubric's nearest grade reads: {nearest}",
            measured=values,
        )

    def _verdict(self, clip: JudgedClip, aspects: dict[Aspect, AspectVerdict]) -> Verdict:
        return Verdict(clip.name, clip.generator, self.name, self.kind, aspects)


def concatenate_batches(batches: Sequence[RewardBatch]) -> RewardBatch:
    """Return one batch of the rows of several batches that have one row each."""

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
        tracking_failures={
            row: batch.tracking_failures[0] for row, batch in enumerate(batches) if 0 in batch.tracking_failures
        },
    )


# --- The check of head poses


class PoseCappedJudge:
    """A judge that takes another judge's verdicts and caps the grade of motion where the head's pose is impossible.

    A plausible head leaves the verdict unchanged. After HuM-Eval (2604.25361), where a model looks first and 2-D pose
    and 3-D motion are examined afterwards.

    Args:
        judge: the other judge.
        experts: hold ``HeadPose`` and its scale; those that ship by default.
    """

    def __init__(self, judge: Judge, experts: Experts | None = None) -> None:
        experts = experts or Experts.load()
        pose = experts.rewards[HeadPose.name]
        assert isinstance(pose, HeadPose), "experts know poses by landmarks alone"
        self.inner, self.pose, self.scale = judge, pose, experts.scales[HeadPose.name]

    @property
    def backend(self) -> Any:
        """The backend of the other judge, for its ledger; None if it has none."""
        return getattr(self.inner, "backend", None)

    @property
    def cache(self) -> Any:
        """The cache of the other judge; None if it has none."""
        return getattr(self.inner, "cache", None)

    def retest(self, number: int) -> PoseCappedJudge:
        """See ``Panel.retest``; a judge that measures is the same in every repetition."""
        again = copy.copy(self)
        again.inner = self.inner.retest(number) if hasattr(self.inner, "retest") else self.inner
        return again

    @property
    def name(self) -> str:
        """See ``ItemJudge``."""
        return f"{self.inner.name}, pose checked"

    @property
    def kind(self) -> JudgeKind:
        """See ``ItemJudge``."""
        return self.inner.kind

    @property
    def fingerprint(self) -> str:
        """See ``ItemJudge``."""
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
        reason = f"{motion.rationale} Capped from {motion.score:.1f}: no head bends or turns like this ({value:.2f})."
        capped = replace(
            motion, score=cap, decided_by="measurement", rationale=reason.strip(),
            measured={**(motion.measured or {}), HeadPose.name: value},
        )  # fmt: skip
        return replace(verdict, aspects={**verdict.aspects, "motion": capped})

"""Damage of known strength that a judge has to notice, and the certificate of having done so.

    for every pair of strengths a < b of one item:   right if score(a) > score(b), half if equal
    a case passes if the share of right pairs ≥ ``MIN_ORDER``, clean − strongest ≥ ``min_drop`` grades,
    and at most ``MAX_LOST`` of the items could not be judged

A judge that fails a case is not trained on: it would pay for something other than what it is asked about. Untuned
multimodal LLMs are near chance on lip sync (52.6 % in FantasyTalking2, 2508.11255). Who passes gets a certificate, a
file under the fingerprint of the judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.errors import BadInput
from flowportrait.files import write_json
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.rubric import Aspect
from flowportrait.judges.verdicts import ItemJudge, Verdict
from flowportrait.terminal import progress

MIN_ORDER, MIN_DROP, MAX_LOST = 0.75, 0.5, 0.2
MIN_CLIPS = 4
MIN_SECONDS = 1.1

Item = TypeVar("Item")


@dataclass(frozen=True)
class KnownDamage(Generic[Item]):
    """One kind of damage: ``apply(item, strength, seed)`` returns the damaged item."""

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Item, float, int], Item]


@dataclass(frozen=True)
class SanitySet(Generic[Item]):
    """What a judge is examined by.

    Args:
        cases: the damage that each aspect must notice.
        prepare: checks real items and brings them into shape; raises ``BadInput``.
        min_items: how many real items it takes.
        what: the items in a word, for messages.
        min_drop: grades between clean and strongest.
        all_aspects: whether the other aspects are judged too, to see how far they fall.
    """

    cases: Mapping[Aspect, Sequence[KnownDamage[Item]]]
    prepare: Callable[[Sequence[Item]], list[Item]]
    min_items: int
    what: str
    min_drop: float = MIN_DROP
    all_aspects: bool = False


@dataclass(frozen=True)
class CaseResult:
    """What a judge did with one damage.

    Args:
        aspect: what must notice it.
        damage: its name.
        unit: of the strengths.
        strengths: 0 and those that grow.
        means: mean score at each strength, over the items that were judged at all of them.
        clips: how many these are.
        lost: how many others.
        order: share of pairs in the right order.
        foreign: how much the other aspects fell at the strongest.
        least_drop: grades that it takes.
    """

    aspect: str
    damage: str
    unit: str
    strengths: tuple[float, ...]
    means: tuple[float, ...]
    clips: int
    lost: int
    order: float
    foreign: dict[str, float]
    least_drop: float = MIN_DROP

    @property
    def drop(self) -> float:
        """Grades between clean and strongest."""
        return self.means[0] - self.means[-1] if self.clips else 0.0

    @property
    def passed(self) -> bool:
        """Whether the case is passed, by the rules at the top of the module."""
        judged = self.clips + self.lost
        enough = judged > 0 and self.lost <= MAX_LOST * judged
        return enough and self.order >= MIN_ORDER and self.drop >= self.least_drop


@dataclass(frozen=True)
class Certificate:
    """What a judge did with the sanity set."""

    judge: str
    kind: str
    fingerprint: str
    results: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Whether every case is passed."""
        return bool(self.results) and all(result.passed for result in self.results)

    def failed(self) -> str:
        """Return the failed cases in words."""
        return ", ".join(f"{r.aspect}/{r.damage} ({r.order:.0%})" for r in self.results if not r.passed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as stored."""
        cases = [{**asdict(result), "drop": result.drop, "passed": result.passed} for result in self.results]
        return {"judge": self.judge, "kind": self.kind, "fingerprint": self.fingerprint, "passed": self.passed,
                "cases": cases}  # fmt: skip


def examine(judge: ItemJudge[Item], items: Sequence[Item], by: SanitySet[Item], seed: int = 0) -> Certificate:
    """Show a judge every damage of a sanity set on every item.

    Raises:
        BadInput: too few items, or one that cannot be used.
    """
    if len(items) < by.min_items:
        few = f"{len(items)} {by.what} are too few to examine a judge"
        raise BadInput(f"{few}: give at least {by.min_items} real ones.")
    items = by.prepare(items)
    cases = [(aspect, damage) for aspect, damages in by.cases.items() for damage in damages]
    steps = [(case, strength) for case in cases for strength in case[1].strengths]
    clean: list[Verdict] = []
    levels: dict[tuple[Aspect, str], list[list[Verdict]]] = {}
    for step in progress([None, *steps], 1 + len(steps), "judging"):
        if step is None:
            clean = judge.judge(items)
            continue
        (aspect, damage), strength = step
        damaged = [damage.apply(item, strength, seed) for item in items]
        verdicts = judge.judge(damaged, None if by.all_aspects else (aspect,))
        levels.setdefault((aspect, damage.name), [clean]).append(verdicts)
    results = [case_result(*case, levels[case[0], case[1].name], by) for case in cases]
    return Certificate(judge.name, judge.kind, judge.fingerprint, tuple(results))


def case_result(
    aspect: Aspect, damage: KnownDamage[Any], levels: Sequence[Sequence[Verdict]], by: SanitySet[Any]
) -> CaseResult:
    """Return one case from the verdicts at strength 0 and at those of the damage."""
    scores = np.array([[_score(verdict, aspect) for verdict in level] for level in levels])
    foreign: dict[str, float] = {}
    for other in by.cases if by.all_aspects else ():
        if other != aspect:
            first, last = ([_score(verdict, other) for verdict in level] for level in (levels[0], levels[-1]))
            fall = np.array(first) - np.array(last)
            foreign[other] = float(np.nanmean(fall)) if np.isfinite(fall).any() else 0.0
    strengths = (0.0, *damage.strengths)
    return order_result(aspect, damage.name, damage.unit, strengths, scores, foreign, by.min_drop)


def _score(verdict: Verdict, aspect: Aspect) -> float:
    score = verdict.aspects[aspect].score
    return float("nan") if score is None else score


def order_result(
    aspect: str, damage: str, unit: str, strengths: tuple[float, ...], scores: np.ndarray, foreign: dict[str, float],
    least_drop: float = MIN_DROP,
) -> CaseResult:  # fmt: skip
    """Return one case from the scores ``[L, N]`` of N items at L strengths, NaN where there was none."""
    judged = np.isfinite(scores).all(0)
    kept = scores[:, judged]
    pairs = [np.sign(kept[a] - kept[b]) / 2 + 0.5 for a, b in combinations(range(len(scores)), 2)]
    order = float(np.mean(pairs)) if kept.size else 0.0
    means = tuple(float(mean) for mean in kept.mean(1)) if kept.size else (0.0,) * len(scores)
    return CaseResult(
        aspect, damage, unit, strengths, means, int(judged.sum()), int((~judged).sum()), order, foreign, least_drop
    )


def keep_certificate(certificate: Certificate, folder: Path) -> Path:
    """Write it where ``require_sound`` looks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{certificate.fingerprint}.json"
    write_json(path, certificate.to_dict())
    return path


# --- certificates


def save_certificate(certificate: Certificate, folder: Path) -> Path:
    """Write a certificate where ``require_certificate`` looks."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{certificate.fingerprint}.json"
    write_json(path, certificate.to_dict())
    return path


class HasFingerprint(Protocol):
    """A judge, as a certificate knows it."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def require_certificate(
    judge: HasFingerprint, folders: Sequence[Path], command: str = "flowportrait judge check"
) -> None:
    """Check that this very judge has passed the sanity set.

    Args:
        judge: to be trained on.
        folders: where certificates are looked for.
        command: examines such a judge, for the message.

    Raises:
        BadInput: it was never examined, or failed; nothing is trained on it.
    """
    for folder in folders:
        path = folder / f"{judge.fingerprint}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["passed"]:
            return
        failed = ", ".join(f"{c['aspect']}/{c['damage']} ({c['order']:.0%})" for c in found["cases"] if not c["passed"])
        raise BadInput(
            f"The {judge.name} failed the sanity set ({failed}) and is not trained on: calibrate or change it."
        )
    raise BadInput(f"The {judge.name} as it is set has not passed the sanity set: run {command} first.")


# --- clips


def corrupt_clip(clip: JudgedClip, damage: str, strength: float, seed: int = 0) -> JudgedClip:
    """Return the clip with one damage; the face is tracked anew where the pictures changed."""
    made = corrupt(Footage(clip.frames, clip.audio), damage, strength, seed)
    assert made.frames is not None
    assert made.audio is not None
    name = f"{clip.name} {damage} {strength:g}"
    if made.frames is clip.frames:
        return clip.with_sound(made.audio, name)
    return JudgedClip(made.frames, made.audio, name, clip.generator, known_landmarks=clip.known_landmarks)


def _check_clips(clips: Sequence[JudgedClip]) -> list[JudgedClip]:
    for clip in progress(clips, len(clips), "looking for faces"):
        if clip.seconds < MIN_SECONDS or clip.is_silent() or clip.validation_error() is not None:
            raise BadInput(
                f"{clip.name} cannot be in the sanity set: give clips of 1.2 s or more with a face and speech."
            )
    return list(clips)


def _clip_damage(name: str) -> KnownDamage[JudgedClip]:
    entry = CORRUPTIONS[name]

    def apply(clip: JudgedClip, strength: float, seed: int) -> JudgedClip:
        return corrupt_clip(clip, name, strength, seed)

    return KnownDamage(name, entry.unit, tuple(entry.strengths), apply)


CASES: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("offset", "time-warp"),
    "expressiveness": ("still", "slowed"),
    "motion": ("jitter", "frozen frames", "flicker"),
}
"""Which damage an aspect of clips must notice."""
CLIP_SANITY = SanitySet(
    {aspect: [_clip_damage(name) for name in names] for aspect, names in CASES.items()}, _check_clips, MIN_CLIPS,
    "clips", all_aspects=True,
)  # fmt: skip

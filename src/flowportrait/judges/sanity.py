"""This module tests whether a judge notices damage of known strength, and certifies the judges that do.

    for every pair of strengths a < b of one item:   1 if score(a) > score(b), ½ if equal, 0 otherwise
    a case passes if the mean over pairs ≥ ``MIN_ORDER``, clean − strongest ≥ ``min_drop`` grades,
    and at most ``MAX_UNJUDGED_SHARE`` of the items could not be judged

A judge that fails a case is not used as a reward, because it would reward something other than what it is asked about.
Untuned multimodal LLMs are near chance on lip sync (52.6 % in FantasyTalking2, 2508.11255). A certificate is a file
under the fingerprint of the judge.

The parts in order: the sanity set and its results, certificates, and the sanity set of clips.
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

MIN_ORDER, MIN_DROP, MAX_UNJUDGED_SHARE = 0.75, 0.5, 0.2
"""Least share of pairs in the right order, least drop in grades, largest share of items without a score."""
MIN_SANITY_CLIPS = 4
"""Least number of clips."""
MIN_SANITY_SECONDS = 1.1
"""Least length of a clip."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class KnownDamage(Generic[Item]):
    """One kind of damage of known strength.

    Args:
        name: name of the damage.
        unit: unit of the strengths.
        strengths: strengths that are tested, in rising order.
        apply: ``apply(item, strength, seed)`` returns the damaged item.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Item, float, int], Item]


@dataclass(frozen=True)
class SanitySet(Generic[Item]):
    """The damage that a judge must notice, by aspect.

    Args:
        cases: the kinds of damage that each aspect must notice.
        prepare: checks and adapts real items; raises ``BadInput`` for one that cannot be used.
        min_items: least number of real items.
        what: a word for the items, for messages.
        min_drop: least difference in grades between clean and strongest damage.
        all_aspects: whether the other aspects are judged too, to report how far they fall.
    """

    cases: Mapping[Aspect, Sequence[KnownDamage[Item]]]
    prepare: Callable[[Sequence[Item]], list[Item]]
    min_items: int
    what: str
    min_drop: float = MIN_DROP
    all_aspects: bool = False


@dataclass(frozen=True)
class CaseResult:
    """The result of a judge on one kind of damage.

    Args:
        aspect: the aspect that must notice the damage.
        damage: name of the damage.
        unit: unit of the strengths.
        strengths: 0 and the strengths of the damage.
        means: mean score at each strength, over the items that were judged at all strengths.
        clips: number of these items.
        lost: number of the other items.
        order: share of pairs of strengths in the right order.
        foreign: by other aspect, how far it fell at the strongest damage.
        least_drop: the drop that is needed, in grades.
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
        """The difference in grades between clean and strongest damage."""
        return self.means[0] - self.means[-1] if self.clips else 0.0

    @property
    def passed(self) -> bool:
        """Whether the judge passes: enough items judged, enough pairs in the right order, and a large enough drop."""
        judged = self.clips + self.lost
        enough = judged > 0 and self.lost <= MAX_UNJUDGED_SHARE * judged
        return enough and self.order >= MIN_ORDER and self.drop >= self.least_drop


@dataclass(frozen=True)
class Certificate:
    """The results of a judge on a sanity set.

    Args:
        judge: name of the judge.
        kind: whether a model looks or experts measure.
        fingerprint: fingerprint of the judge.
        results: one result per kind of damage.
    """

    judge: str
    kind: str
    fingerprint: str
    results: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Whether the judge passes every case."""
        return bool(self.results) and all(result.passed for result in self.results)

    def failed(self) -> str:
        """Return a text that lists the failed cases."""
        return ", ".join(f"{r.aspect}/{r.damage} ({r.order:.0%})" for r in self.results if not r.passed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are written to a file."""
        cases = [{**asdict(result), "drop": result.drop, "passed": result.passed} for result in self.results]
        return {"judge": self.judge, "kind": self.kind, "fingerprint": self.fingerprint, "passed": self.passed,
                "cases": cases}  # fmt: skip


def certify_judge(judge: ItemJudge[Item], items: Sequence[Item], by: SanitySet[Item], seed: int = 0) -> Certificate:
    """Let a judge grade every item with every damage of a sanity set, and return the results.

    Args:
        judge: the judge.
        items: real clips or pictures.
        by: the sanity set.
        seed: seed of the damage.

    Raises:
        BadInput: there are too few items, or one cannot be used.
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
    """Return the result on one damage from verdicts by strength (0 first) and item."""
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
    """Return the result on one damage from the scores ``[L, N]`` of N items at L strengths, NaN without a score."""
    judged = np.isfinite(scores).all(0)
    valid = scores[:, judged]
    pairs = [np.sign(valid[a] - valid[b]) / 2 + 0.5 for a, b in combinations(range(len(scores)), 2)]
    order = float(np.mean(pairs)) if valid.size else 0.0
    means = tuple(float(mean) for mean in valid.mean(1)) if valid.size else (0.0,) * len(scores)
    return CaseResult(
        aspect, damage, unit, strengths, means, int(judged.sum()), int((~judged).sum()), order, foreign, least_drop
    )


# --- Certificates


def save_certificate(certificate: Certificate, folder: Path) -> Path:
    """Write a certificate into ``folder`` and return its path; ``require_certificate`` reads it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{certificate.fingerprint}.json"
    write_json(path, certificate.to_dict())
    return path


class HasFingerprint(Protocol):
    """The interface of a judge that a certificate needs."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def require_certificate(
    judge: HasFingerprint, folders: Sequence[Path], command: str = "flowportrait judge check"
) -> None:
    """Check that a judge has passed the sanity set with its present settings.

    Args:
        judge: the judge that is to be a reward.
        folders: folders with certificates.
        command: the command that makes a certificate, for the message.

    Raises:
        BadInput: there is no certificate with the judge's fingerprint, or the judge failed.
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


# --- The sanity set of clips


def corrupt_clip(clip: JudgedClip, damage: str, strength: float, seed: int = 0) -> JudgedClip:
    """Return a clip with one damage; the face is tracked again if the frames changed and no landmarks are known."""
    damaged = corrupt(Footage(clip.frames, clip.audio), damage, strength, seed)
    assert damaged.frames is not None
    assert damaged.audio is not None
    name = f"{clip.name} {damage} {strength:g}"
    if damaged.frames is clip.frames:
        return clip.with_sound(damaged.audio, name)
    return JudgedClip(damaged.frames, damaged.audio, name, clip.generator, known_landmarks=clip.known_landmarks)


def _check_clips(clips: Sequence[JudgedClip]) -> list[JudgedClip]:
    for clip in progress(clips, len(clips), "looking for faces"):
        if clip.seconds < MIN_SANITY_SECONDS or clip.is_silent() or clip.validation_error() is not None:
            raise BadInput(
                f"{clip.name} cannot be in the sanity set: give clips of 1.2 s or more with a face and speech."
            )
    return list(clips)


def _clip_damage(name: str) -> KnownDamage[JudgedClip]:
    entry = CORRUPTIONS[name]

    def apply(clip: JudgedClip, strength: float, seed: int) -> JudgedClip:
        return corrupt_clip(clip, name, strength, seed)

    return KnownDamage(name, entry.unit, tuple(entry.strengths), apply)


CLIP_CASES: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("offset", "time-warp"),
    "expressiveness": ("still", "slowed"),
    "motion": ("jitter", "frozen frames", "flicker"),
}
"""The kinds of damage that each aspect of clips must notice."""
CLIP_SANITY = SanitySet(
    {aspect: [_clip_damage(name) for name in names] for aspect, names in CLIP_CASES.items()}, _check_clips,
    MIN_SANITY_CLIPS,
    "clips", all_aspects=True,
)  # fmt: skip

"""The sanity set: real clips with damage of known cause and strength, which every judge must put in order.

    for every pair of strengths a < b of one clip:   right if score(a) > score(b), half if equal
    a case passes if the share of right pairs ≥ ``LEAST_ORDER``, clean − strongest ≥ ``LEAST_DROP`` grades,
    and at most ``MOST_LOST`` of the clips could not be judged

A judge that fails a case is not trained on: it would pay for something other than what it is asked about. Untuned
multimodal LLMs are near chance on lip sync (52.6 % in FantasyTalking2, 2508.11255).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.errors import BadInput
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.rubric import ASPECTS, Aspect
from flowportrait.judge.verdict import Judge, Verdict
from flowportrait.terminal import progress
from flowportrait.written import write_json

CASES: dict[Aspect, tuple[str, ...]] = {
    "lip_sync": ("offset", "time-warp"),
    "expressiveness": ("still", "slowed"),
    "motion": ("jitter", "frozen frames", "flicker"),
}
"""Which damage an aspect must notice."""
LEAST_ORDER, LEAST_DROP, MOST_LOST = 0.75, 0.5, 0.2
FEWEST_CLIPS = 4
SHORTEST_SECONDS = 1.1


@dataclass(frozen=True)
class CaseResult:
    """strengths: 0 and three that grow; means: mean score at each, over ``clips`` that were judged at all of them;
    order: share of pairs in the right order; foreign: how much the other aspects fell at the strongest."""

    aspect: str
    damage: str
    unit: str
    strengths: tuple[float, ...]
    means: tuple[float, ...]
    clips: int
    lost: int
    order: float
    foreign: dict[str, float]
    least_drop: float = LEAST_DROP

    @property
    def drop(self) -> float:
        """Grades between clean and strongest."""
        return self.means[0] - self.means[-1] if self.clips else 0.0

    @property
    def passed(self) -> bool:
        """See the module."""
        judged = self.clips + self.lost
        enough = judged > 0 and self.lost <= MOST_LOST * judged
        return enough and self.order >= LEAST_ORDER and self.drop >= self.least_drop


@dataclass(frozen=True)
class Certificate:
    """What a judge did with the sanity set."""

    judge: str
    kind: str
    fingerprint: str
    results: tuple[CaseResult, ...]

    @property
    def passed(self) -> bool:
        """Every case."""
        return bool(self.results) and all(result.passed for result in self.results)

    def failed(self) -> str:
        """The failed cases, to be read."""
        return ", ".join(f"{r.aspect}/{r.damage} ({r.order:.0%})" for r in self.results if not r.passed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        cases = [{**asdict(result), "drop": result.drop, "passed": result.passed} for result in self.results]
        return {"judge": self.judge, "kind": self.kind, "fingerprint": self.fingerprint, "passed": self.passed,
                "cases": cases}  # fmt: skip


def examine(judge: Judge, clips: Sequence[Exhibit], seed: int = 0) -> Certificate:
    """Show ``judge`` every case on every clip.

    Raises:
        BadInput: too few or too short clips, or one without a face or sound.
    """
    if len(clips) < FEWEST_CLIPS:
        raise BadInput(f"{len(clips)} clips are too few to examine a judge: give at least {FEWEST_CLIPS} real ones.")
    for clip in progress(clips, len(clips), "looking for faces"):
        if clip.seconds < SHORTEST_SECONDS or clip.silent() or clip.trouble() is not None:
            raise BadInput(
                f"{clip.name} cannot be in the sanity set: give clips of 1.2 s or more with a face and speech."
            )
    cases = [(aspect, damage) for aspect in ASPECTS for damage in CASES[aspect]]
    steps = [(case, strength) for case in cases for strength in CORRUPTIONS[case[1]].strengths]
    levels: dict[tuple[Aspect, str], list[list[Verdict]]] = {}
    clean: list[Verdict] = []
    for step in progress([None, *steps], 1 + len(steps), "judging"):
        if step is None:
            clean = judge.judge(list(clips))
            continue
        found, strength = step
        levels.setdefault(found, [clean])
        levels[found].append(judge.judge([spoilt(clip, found[1], strength, seed) for clip in clips]))
    results = [case(*found, levels[found]) for found in cases]
    return Certificate(judge.name, judge.kind, judge.fingerprint, tuple(results))


def case(aspect: Aspect, damage: str, levels: Sequence[Sequence[Verdict]]) -> CaseResult:
    """One case from the verdicts at strength 0 and the three of the catalogue."""
    scores = np.array([[_number(verdict, aspect) for verdict in level] for level in levels])
    foreign: dict[str, float] = {}
    for other in ASPECTS:
        if other != aspect:
            first, last = ([_number(verdict, other) for verdict in level] for level in (levels[0], levels[-1]))
            fall = np.array(first) - np.array(last)
            foreign[other] = float(np.nanmean(fall)) if np.isfinite(fall).any() else 0.0
    entry = CORRUPTIONS[damage]
    return outcome(aspect, damage, entry.unit, (0.0, *entry.strengths), scores, foreign)


def outcome(
    aspect: str, damage: str, unit: str, strengths: tuple[float, ...], scores: np.ndarray, foreign: dict[str, float],
    least_drop: float = LEAST_DROP,
) -> CaseResult:  # fmt: skip
    """One case from the scores ``[L, N]`` of N clips at L strengths, NaN where there was none."""
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


class Examined(Protocol):
    """Whoever can have a certificate."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def require_sound(judge: Examined, folders: Sequence[Path], how: str = "flowportrait judge check") -> None:
    """That this very judge has passed; ``how`` it would be examined.

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
    raise BadInput(f"The {judge.name} as it is set has not passed the sanity set: run {how} first.")


def spoilt(clip: Exhibit, damage: str, strength: float, seed: int = 0) -> Exhibit:
    """The clip with one damage; where its face is, is found anew."""
    made = corrupt(Footage(clip.frames, clip.audio), damage, strength, seed)
    assert made.frames is not None
    assert made.audio is not None
    if made.frames is clip.frames:
        return clip.with_sound(made.audio, f"{clip.name} {damage} {strength:g}")
    return Exhibit(made.frames, made.audio, f"{clip.name} {damage} {strength:g}", clip.generator, places=clip.places)


def _number(verdict: Verdict, aspect: Aspect) -> float:
    score = verdict.findings[aspect].score
    return float("nan") if score is None else score

"""Both rubrics without a model: what can be measured of a picture against real ones, and nothing else.

    fitness of a number = 1 / (1 + exp(beyond))         beyond: spreads past where real pictures end
    reward = mean ln fitness      grade = 1 + 4 · mean fitness

ai_portrait: every artefact of the catalogue that has a detector. omni_reward: detail, contrast and colourfulness, which
can only be too little, and exposure, which can be too little or too much; like most general scorers it finds no fault
with strong colours. A picture without a face is worth as little as one with every artefact.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from flowportrait.judge.kind import Kind
from flowportrait.portraitgen.limits import SHIPPED, Limit, Limits
from flowportrait.portraitgen.look import Look
from flowportrait.portraitgen.quality import figures
from flowportrait.portraitgen.rubric import RubricName
from flowportrait.portraitgen.verdict import Still, StillVerdict
from flowportrait.reward.batch import Failure

FACELESS = 3.0
"""Spreads beyond every limit that a picture without a face counts for."""
ALLOWED = 1.5
"""Spreads by which a picture may be darker or brighter than is usual."""
_CAPPED = 6.0
"""Further out makes no difference, lest one number decide everything."""


class MeasuredStills:
    """A ``StillJudge`` that measures."""

    kind: Kind = "measured panel"
    name = "measured panel"

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits.load()

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(b"stills 1 " + SHIPPED.read_bytes()).hexdigest()[:16]

    def judge(self, stills: list[Still], rubric: RubricName) -> list[StillVerdict]:
        """See ``StillJudge``."""
        return [self.verdict(still.look, rubric) for still in stills]

    def verdict(self, seen: Look, rubric: RubricName) -> StillVerdict:
        """Of a picture that was looked at."""
        if rubric == "omni_reward":
            return self._quality(seen)
        found = self.limits.beyond(seen)
        artefacts = {name: None if value is None else value > 0 for name, value in found.items()}
        if seen.faces and seen.scale is None:
            small = Failure("no_face", "the face is too small to be measured")
            return StillVerdict(rubric, None, artefacts=artefacts, failure=small)
        known = {name: value for name, value in found.items() if value is not None and name != "second_face"}
        if not seen.faces:
            known = dict.fromkeys(known, FACELESS)
        value, grade = worth(known)
        worst = sorted((name for name, has in artefacts.items() if has), key=lambda name: -(found[name] or 0))
        return StillVerdict(
            rubric, grade, value, artefacts=artefacts, rationale=f"measured: {', '.join(worst) or 'no artefact'}"
        )

    def _quality(self, seen: Look) -> StillVerdict:
        found = shortfall(figures(seen), self.limits.table[seen.scale or "small"])
        value, grade = worth(found)
        return StillVerdict(
            "omni_reward", grade, value, {name: worth({name: own})[1] for name, own in found.items()},
            rationale="measured: " + ", ".join(f"{name} {-own:+.1f}" for name, own in found.items()),
        )  # fmt: skip


def worth(beyond: Mapping[str, float]) -> tuple[float, float]:
    """Reward and grade of numbers in spreads past their limits."""
    numbers = np.array(list(beyond.values())).clip(-_CAPPED, _CAPPED)
    logs = -np.logaddexp(0, numbers)
    return float(logs.mean()), float(1 + 4 * np.exp(logs).mean())


def shortfall(found: Mapping[str, float | None], usual: Mapping[str, Limit]) -> dict[str, float]:
    """How far figures of quality fall short of what is usual, in spreads; a figure that needs a face and has none falls
    short as far as a missing face."""
    short: dict[str, float] = {}
    for name, value in found.items():
        away = -FACELESS if value is None else (value - usual[name].mean) / usual[name].spread
        if name == "brightness":
            short["exposure"] = abs(away) - ALLOWED
        else:
            short[name] = -away
    return short

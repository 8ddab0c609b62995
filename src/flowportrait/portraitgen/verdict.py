"""What is known of one portrait after it was judged, whoever judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from flowportrait.judge.kind import Kind
from flowportrait.portraitgen.look import Look, look
from flowportrait.portraitgen.rubric import RubricName
from flowportrait.reward.batch import Failure


@dataclass(frozen=True)
class Still:
    """A picture ``[H, W, 3]`` uint8 RGB, the prompt it was made for (empty: unknown) and a name for reports."""

    picture: np.ndarray
    prompt: str = ""
    name: str = "picture"

    @cached_property
    def look(self) -> Look:
        """Looked at once, whoever asks."""
        return look(self.picture)


@dataclass(frozen=True)
class StillVerdict:
    """score 1 … 5, None with a failure; value: the score as a reward, where more can be said than in grades;
    dimensions by name; artefacts: name to whether the picture has it, None where nobody could tell."""

    rubric: RubricName
    score: float | None
    value: float | None = None
    dimensions: Mapping[str, float] = field(default_factory=dict)
    artefacts: Mapping[str, bool | None] = field(default_factory=dict)
    rationale: str = ""
    spread: float = 0.0
    failure: Failure | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "score": self.score,
            "dimensions": dict(self.dimensions),
            "artefacts": dict(self.artefacts),
            "rationale": self.rationale,
            "spread": self.spread,
            "failure": None if self.failure is None else self.failure._asdict(),
        }


class StillJudge(Protocol):
    """Measured, by server, or a model in this process."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes its verdicts: results with different ones are not compared."""
        ...

    def judge(self, stills: list[Still], rubric: RubricName) -> list[StillVerdict]:
        """One verdict per picture, in order."""
        ...

"""How often a judge says what people said about the same two clips.

    right 1 · wrong 0 · cannot tell ½ (a margin within the band, or no answer)       over pairs that people decided

The interval is Wilson's. Without an opinion a judge stands at one half, so that refusing gains nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from flowportrait.errors import BadInput
from flowportrait.judge.comparing import Choices, Two, choose
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.rubric import ASPECTS, Aspect
from flowportrait.judge.verdict import Judge
from flowportrait.preference.judged import NAMES
from flowportrait.preference.pairs import Label, Pair

BAND = 0.1
"""Margin under which a judge cannot tell."""
_Z = 1.96


class Stated(NamedTuple):
    """Two clips, and per aspect which of them people preferred."""

    clips: Two
    labels: Mapping[Aspect, Label]


class Miss(NamedTuple):
    """A decided pair on which the judge was not right."""

    stated: Stated
    aspect: Aspect
    margin: float | None
    why: str


@dataclass(frozen=True)
class Agreement:
    """right: share, over ``decided`` pairs and aspects; by_aspect: the same of each; turned: share of comparisons that
    followed the place; untold: share on which the judge had no opinion; seconds: per clip shown."""

    right: float
    decided: int
    by_aspect: Mapping[Aspect, tuple[float, int]]
    turned: float | None
    untold: float
    seconds: float

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        return wilson(self.right, self.decided)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        low, high = self.interval
        told = {aspect: {"right": share, "decided": count} for aspect, (share, count) in self.by_aspect.items()}
        return {"right": self.right, "from": low, "to": high, "decided": self.decided, "aspects": told,
                "turned": self.turned, "untold": self.untold, "seconds_per_clip": self.seconds}  # fmt: skip


def agreement(judge: Judge, stated: Sequence[Stated], band: float = BAND) -> tuple[Agreement, list[Miss]]:
    """How a judge agrees, and where it does not.

    Raises:
        BadInput: nobody decided anything.
    """
    began = time.monotonic()
    choices = choose(judge, [one.clips for one in stated])
    seconds = (time.monotonic() - began) / max(1, 2 * len(stated))
    return counted(stated, choices, band, seconds)


def counted(
    stated: Sequence[Stated], choices: Sequence[Choices], band: float, seconds: float = 0.0
) -> tuple[Agreement, list[Miss]]:
    """The same from choices that are known."""
    marks: dict[Aspect, list[float]] = {aspect: [] for aspect in ASPECTS}
    turned, misses = [], []
    for one, chosen in zip(stated, choices, strict=True):
        for aspect, label in one.labels.items():
            if label == "tie":
                continue
            choice = chosen[aspect]
            mark = marked(choice.margin, label, band)
            marks[aspect].append(mark)
            if choice.turned is not None:
                turned.append(choice.turned)
            if mark < 1:
                misses.append(Miss(one, aspect, choice.margin, choice.why))
    every = [mark for own in marks.values() for mark in own]
    if not every:
        raise BadInput("No pair is decided in sync, expression or motion: give pairs in what a judge grades.")
    shares = {aspect: (sum(own) / len(own), len(own)) for aspect, own in marks.items() if own}
    untold = every.count(0.5) / len(every)
    lost = sum(turned) / len(turned) if turned else None
    return Agreement(sum(every) / len(every), len(every), shares, lost, untold, seconds), misses


def marked(margin: float | None, label: Label, band: float) -> float:
    """1 for what people said, 0 for the opposite, ½ for nothing."""
    if margin is None or abs(margin) <= band:
        return 0.5
    return float((margin > 0) == (label == "A"))


def stated_from(pairs: Sequence[Pair], folder: Path) -> list[Stated]:
    """Pairs of a file as clips; each clip is read once.

    Raises:
        BadInput: a clip is missing or cannot be read.
    """
    clips: dict[str, Exhibit] = {}
    own = {NAMES[aspect]: aspect for aspect in ASPECTS}
    found = []
    for pair in pairs:
        for name in (pair.a, pair.b):
            if name not in clips:
                if not (folder / name).is_file():
                    raise BadInput(f"{folder / name} is missing: pairs name clips beside their file.")
                clips[name] = Exhibit.from_video(folder / name)
        labels: dict[Aspect, Label] = {own[aspect]: label for aspect, label in pair.aspects.items() if aspect in own}
        found.append(Stated((clips[pair.a], clips[pair.b]), labels))
    return found


def wilson(share: float, count: int) -> tuple[float, float]:
    """Interval of a share of ``count``."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return middle - half, middle + half

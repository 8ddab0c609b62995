"""Pair and point in one: the same panel grades clips, and says of two which is better.

    both orders, every sample:   (a, b) ─► first | second | same        margin = mean of ±1, 0 for same
                                 (b, a) ─► second | first | same        turned = share that went with the place

A model that prefers whatever is shown first gives 0 and is told apart by ``turned``. After UnifiedReward (2503.05236),
one model for pairs and points; who can only grade is asked for two grades, and their difference is the margin.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from flowportrait.judge.asking import ask_for
from flowportrait.judge.evidence import Evidence, gather
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.opinion import Reply, Unusable, describe_value, read_object, text_or_empty
from flowportrait.judge.panel import Panel
from flowportrait.judge.question import SYSTEM, Question
from flowportrait.judge.rubric import ASPECTS, Aspect
from flowportrait.judge.verdict import Judge
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.reward.batch import Failure

Two = tuple[Exhibit, Exhibit]
_WORTH = {"first": 1.0, "same": 0.0, "second": -1.0}
_WHICH = (
    "You are shown two clips, the first one and then the second one. Do not grade. Say which of them is better by this "
    'rubric, and answer with one JSON object and nothing else: {"rationale": "two or three sentences", "better": '
    '"first", "second" or "same"}.'
)
_PAUSE = SAMPLE_RATE // 2


@dataclass(frozen=True)
class Choice:
    """margin: above 0 the first clip is better, None if nobody could tell; turned: share of samples whose answer stayed
    with the place when the clips changed places, None where points were compared; why: in words."""

    margin: float | None
    turned: float | None = None
    why: str = ""


Choices = dict[Aspect, Choice]


@runtime_checkable
class Comparer(Protocol):
    """A judge that looks at two clips together."""

    def prefer(self, pairs: Sequence[Two]) -> list[Choices]:
        """One value per pair, in order; margins from −1 to 1."""
        ...


def choose(judge: Judge, pairs: Sequence[Two]) -> list[Choices]:
    """Whoever judges: by looking at both, or else by the difference of two grades, −4 to 4."""
    if isinstance(judge, Comparer):
        return judge.prefer(pairs)
    clips = list({clip.digest: clip for pair in pairs for clip in pair}.values())
    known = dict(zip([clip.digest for clip in clips], judge.judge(clips), strict=True))
    found = []
    for pair in pairs:
        own: Choices = {}
        for aspect in ASPECTS:
            sides = [known[clip.digest].findings[aspect] for clip in pair]
            grades = [side.score for side in sides if side.score is not None]
            margin = grades[0] - grades[1] if len(grades) == 2 else None
            own[aspect] = Choice(margin, why=" / ".join(side.rationale for side in sides))
        found.append(own)
    return found


class ComparingPanel(Panel):
    """A panel that also compares."""

    def prefer(self, pairs: Sequence[Two]) -> list[Choices]:
        """See ``Comparer``: every specialist, every sample, both orders."""
        asked = [
            (place, aspect, sample, swapped) for place in range(len(pairs)) for aspect in ASPECTS
            for sample in range(self.settings.samples) for swapped in (False, True)
        ]  # fmt: skip
        questions = [self._which(pairs[place], aspect, sample, swapped) for place, aspect, sample, swapped in asked]
        replies, failures = ask_for(questions, self.backend, self._cache)
        said: dict[tuple[int, Aspect], list[tuple[float, str] | Failure]] = {}
        for index, (place, aspect, _, swapped) in enumerate(asked):
            if index in replies:
                worth, why = read_choice(replies[index])
                answer: tuple[float, str] | Failure = (-worth if swapped else worth, why)
            else:
                answer = failures[index]
            said.setdefault((place, aspect), []).append(answer)
        return [{aspect: settled(said[place, aspect]) for aspect in ASPECTS} for place in range(len(pairs))]

    def _which(self, pair: Two, aspect: Aspect, sample: int, swapped: bool) -> Question:
        first, second = pair[::-1] if swapped else pair
        text = f"Aspect: {aspect}\n{self.rubric(aspect)}\n{_WHICH}"
        content = f"{first.digest} {second.digest} {self.settings.sheets}"

        def show() -> Evidence:
            return both(first, second, aspect, self.settings.sheets)

        return Question(SYSTEM, text, "pair", content, sample, read_choice, show)


def settled(said: Sequence[tuple[float, str] | Failure]) -> Choice:
    """One choice from answers in pairs: each sample in the order given and swapped, the second turned back. An answer
    without its counterpart does not count."""
    kept, turned = [], []
    for one, other in zip(said[::2], said[1::2], strict=True):
        if isinstance(one, Failure) or isinstance(other, Failure):
            continue
        kept += [one, other]
        turned.append(float(one[0] * other[0] < 0))
    if not kept:
        why = next(answer.detail for answer in said if isinstance(answer, Failure))
        return Choice(None, None, f"no sample was answered in both orders: {why}")
    margin = statistics.fmean(worth for worth, _ in kept)
    nearest = min(kept, key=lambda answer: abs(answer[0] - margin))
    return Choice(margin, statistics.fmean(turned), nearest[1])


def both(first: Exhibit, second: Exhibit, aspect: Aspect, sheets: int) -> Evidence:
    """Evidence of two clips one after the other: sheets with captions that say whose, close-ups and sounds in a row."""
    parts = [gather(clip, aspect, max(1, sheets // 2)) for clip in (first, second)]
    named = zip(("First clip", "Second clip"), parts, strict=True)
    pictures = tuple((f"{whose}. {caption}", picture) for whose, part in named for caption, picture in part.pictures)
    heard = [part.audio for part in parts]
    audio = np.concatenate([heard[0], np.zeros(_PAUSE, np.float32), heard[1]]) if len(heard[0]) else heard[0]
    return replace(
        parts[0], pictures=pictures, video=np.concatenate([part.video for part in parts]), audio=audio,
        clip=one_after_the_other(first, second),
    )  # fmt: skip


def one_after_the_other(first: Exhibit, second: Exhibit) -> Exhibit:
    """Both as one clip, the second in the size of the first."""
    height, width = first.frames.shape[1:3]
    fitted = [cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in second.frames]
    frames = np.concatenate([first.frames, np.stack(fitted)])
    return Exhibit(frames, np.concatenate([first.audio, second.audio]), f"{first.name} and {second.name}")


def read_choice(reply: Reply) -> tuple[float, str]:
    """1 for the first, −1 for the second, 0 for neither, and the reasons.

    Raises:
        Unusable: no such answer.
    """
    found: dict[str, Any] = read_object(reply, ("better",))
    better, why = text_or_empty(found["better"]), text_or_empty(found.get("rationale"))
    if better not in _WORTH or not why:
        said = describe_value(found["better"])
        raise Unusable(Failure("malformed", f"better is {said}, not first, second or same with a rationale"))
    return _WORTH[better], why

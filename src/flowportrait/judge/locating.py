"""Evidence in time and place before a grade: when, then where, then what it is worth.

    whole clip ─► windows [start, end] ─► each window alone ─► there or not, and in which box ─► E[score]

A flaw that is not found again when its window is looked at alone does not count. After CaC (2605.11723): time window,
box, reasoning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from flowportrait.judge.asking import ask_for
from flowportrait.judge.evidence import gather
from flowportrait.judge.exhibit import SHORTEST, Exhibit
from flowportrait.judge.opinion import (
    Flaw,
    Opinion,
    Reply,
    Unusable,
    describe_value,
    read_flaws,
    read_object,
    read_opinion,
)
from flowportrait.judge.panel import Asked, Panel
from flowportrait.judge.question import ANSWER, Question
from flowportrait.judge.rubric import Aspect
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME
from flowportrait.reward.batch import Failure

MOST_WINDOWS = 3
_WHEN = (
    f"Do not grade yet. Name the up to {MOST_WINDOWS} moments that are worst by this rubric, and answer with one JSON "
    'object and nothing else: {"windows": [{"start": seconds, "end": seconds, "what": "a few words"}]}, with an empty '
    "list if nothing is wrong."
)
_WHERE = (
    "Somebody says that this is wrong in what you are shown: {what!r}. Look for it without taking it for granted, and "
    'answer with one JSON object and nothing else: {{"seen": true or false, "box": [left, top, right, bottom] as '
    "shares of the picture from 0 to 1}}."
)


@dataclass(frozen=True)
class Located:
    """A flaw that was found again; box: left, top, right, bottom as shares of the picture shown."""

    flaw: Flaw
    box: tuple[float, float, float, float]


class LocatingPanel(Panel):
    """A panel whose specialists find moment and place before they grade; disputes are settled as ever."""

    def _opine(self, exhibits: list[Exhibit], asked: Sequence[Asked]) -> list[Opinion | Failure]:
        """See ``Panel``: two questions and one per window each."""
        shown = self._shows(exhibits, asked)

        def step(index: int, tag: str | None, words: str, check: Callable[[Reply], object]) -> Question:
            place, aspect, sample = asked[index]
            return self._step(exhibits[place], aspect, sample, tag or aspect, words, check, shown[place, aspect])

        readers = [partial(read_windows, seconds=exhibits[place].seconds) for place, _, _ in asked]
        when = [step(i, "windows", _WHEN, reader) for i, reader in enumerate(readers)]
        replies, failures = ask_for(when, self.backend, self._cache)
        named = {index: readers[index](reply) for index, reply in replies.items()}
        looks = [(index, flaw) for index in sorted(named) for flaw in named[index]]
        where = [self._where(exhibits[asked[index][0]], *asked[index][1:], flaw) for index, flaw in looks]
        boxes, _ = ask_for(where, self.backend, self._cache)
        kept: dict[int, list[Located]] = {}
        for order, (index, flaw) in enumerate(looks):
            if order in boxes and (box := read_box(boxes[order])) is not None:
                kept.setdefault(index, []).append(Located(flaw, box))
        going, questions = sorted(named), []
        for index in going:
            told = [{**one.flaw._asdict(), "box": one.box} for one in kept.get(index, [])]
            words = f"Found, and found again when looked at alone: {json.dumps(told, ensure_ascii=False)}\n"
            check = partial(read_opinion, seconds=exhibits[asked[index][0]].seconds)
            questions.append(step(index, None, f"{words}Grade by the rubric. {ANSWER}", check))
        grades, ungraded = ask_for(questions, self.backend, self._cache)
        said: dict[int, Opinion | Failure] = dict(failures)
        for order, index in enumerate(going):
            seconds = exhibits[asked[index][0]].seconds
            said[index] = read_opinion(grades[order], seconds) if order in grades else ungraded[order]
        return [said[index] for index in range(len(asked))]

    def _where(self, exhibit: Exhibit, aspect: Aspect, sample: int, flaw: Flaw) -> Question:
        part = window(exhibit, flaw)
        words = _WHERE.format(what=flaw.what)
        return self._step(part, aspect, sample, "box", words, read_box, lambda: gather(part, aspect, 1))


def window(exhibit: Exhibit, flaw: Flaw) -> Exhibit:
    """The moment of a flaw alone, long enough to be looked at."""
    first = int(flaw.start * FPS)
    last = min(len(exhibit), max(int(flaw.end * FPS) + 1, first + SHORTEST))
    first = max(0, min(first, last - SHORTEST))
    return Exhibit(
        exhibit.frames[first:last], exhibit.audio[first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME], exhibit.name,
        exhibit.generator, places=exhibit.landmarks[first:last],
    )  # fmt: skip


def read_box(reply: Reply) -> tuple[float, float, float, float] | None:
    """Where it was seen, None if it was not.

    Raises:
        Unusable: neither.
    """
    found = read_object(reply, ("seen",))
    if found["seen"] is False:
        return None
    box = found.get("box")
    if found["seen"] is not True or not isinstance(box, list) or len(box) != 4:
        raise Unusable(Failure("malformed", "no seen and box"))
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unusable(Failure("malformed", f"no box: {describe_value(box)}")) from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise Unusable(Failure("malformed", f"no box: {describe_value(box)}"))
    return left, top, right, bottom


def read_windows(reply: Reply, seconds: float) -> tuple[Flaw, ...]:
    """The moments named in a reply about a clip of ``seconds``; those that it does not have are left out.

    Raises:
        Unusable: no list of start, end and what.
    """
    return read_flaws(read_object(reply, ("windows",))["windows"], seconds)[:MOST_WINDOWS]

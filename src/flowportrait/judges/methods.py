"""This module holds the other methods of a panel: think first, locate flaws first, and compare two clips.

    think     clip ─► thoughts (no grade asked for) ─► thoughts + clip ─► E[score]
    locate    whole clip ─► windows [start, end] ─► each window alone ─► flaw seen or not, and its box ─► E[score]
    compare   both orders, every sample:  (a, b) ─► first | second | same     margin = mean of ±1, 0 for same
                                          (b, a) ─► second | first | same     position bias = share of samples that
                                                                              chose the same position twice

``ThinkingPanel``, ``LocatingPanel`` and ``ComparingPanel`` differ from ``Panel`` in the questions that they ask.
``compare_pairs`` compares two clips by any judge.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from flowportrait.judges.answers import (
    BOX_FORMAT,
    CHOICE_FORMAT,
    MAX_WINDOWS,
    THOUGHTS_FORMAT,
    Box,
    Flaw,
    Grade,
    windows_format,
)
from flowportrait.judges.clips import MIN_JUDGED_FRAMES, JudgedClip, JudgeInput, clip_input, pair_input
from flowportrait.judges.panel import Panel, SampleKey
from flowportrait.judges.questions import Question, ask_all
from flowportrait.judges.rubric import CLIP_ASPECTS, GRADE_INSTRUCTION, SPECIALIST_SYSTEM, Aspect
from flowportrait.judges.verdicts import Judge
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.video import FPS
from flowportrait.rewards.batch import Failure

_THINK = (
    "Do not grade yet. Write down what you see and hear that speaks for a high or a low grade, moment by moment, and "
    'answer with one JSON object and nothing else: {"thoughts": "at most ten sentences"}.'
)
_WHEN = (
    f"Do not grade yet. Name the up to {MAX_WINDOWS} moments that are worst by this rubric, and answer with one JSON "
    'object and nothing else: {"windows": [{"start": seconds, "end": seconds, "what": "a few words"}]}, with an empty '
    "list if nothing is wrong."
)
_WHERE = (
    "Somebody says that this is wrong in what you are shown: {what!r}. Look for it without taking it for granted, and "
    'answer with one JSON object and nothing else: {{"seen": true or false, "box": [left, top, right, bottom] as '
    "shares of the picture from 0 to 1}}."
)
_WHICH = (
    "You are shown two clips, the first one and then the second one. Do not grade. Say which of them is better by this "
    'rubric, and answer with one JSON object and nothing else: {"rationale": "two or three sentences", "better": '
    '"first", "second" or "same"}.'
)

ClipPair = tuple[JudgedClip, JudgedClip]

# --- Thinking first


class ThinkingPanel(Panel[JudgedClip]):
    """A panel of specialists that write down what they see before they grade.

    A model that states its grade and its reasons in one answer argues for the grade it has chosen. After DeScore
    (2605.05922); its second stage is a trained regression head, here it is the same model with its log-probabilities.
    """

    def _grade(self, items: Sequence[JudgedClip], requests: Sequence[SampleKey]) -> list[Grade | Failure]:
        """See ``Panel``; each grade takes two questions."""
        inputs = self._inputs(items, requests)
        thinking = [
            self._question(items[index], aspect, sample, "thoughts", _THINK, THOUGHTS_FORMAT, inputs[index, aspect])
            for index, aspect, sample in requests
        ]
        thoughts, failures = ask_all(thinking, self.backend, self.cache)
        words = {
            place: f"What was noted before grading:\n{thought}\nGrade by the rubric. {GRADE_INSTRUCTION}"
            for place, thought in thoughts.items()
        }
        return self._ask_for_grades(items, requests, words, failures)


# --- Locating flaws first


class LocatingPanel(Panel[JudgedClip]):
    """A panel of specialists that locate flaws in time and in the picture before they grade.

    A flaw that is not seen again when its window is shown alone does not count. After CaC (2605.11723).
    """

    def _grade(self, items: Sequence[JudgedClip], requests: Sequence[SampleKey]) -> list[Grade | Failure]:
        """See ``Panel``; each grade takes two questions and one more per window."""
        inputs = self._inputs(items, requests)
        when = [
            self._question(items[index], aspect, sample, "windows", _WHEN, windows_format(items[index].seconds),
                           inputs[index, aspect])
            for index, aspect, sample in requests
        ]  # fmt: skip
        windows, failures = ask_all(when, self.backend, self.cache)
        suspects = [(place, flaw) for place in sorted(windows) for flaw in windows[place]]
        where = [
            self._window_question(items[requests[place][0]], *requests[place][1:], flaw) for place, flaw in suspects
        ]
        boxes, _ = ask_all(where, self.backend, self.cache)
        located: dict[int, list[tuple[Flaw, Box]]] = {place: [] for place in windows}
        for order, (place, flaw) in enumerate(suspects):
            if (box := boxes.get(order)) is not None:
                located[place].append((flaw, box))
        words = {}
        for place, flaws in located.items():
            flaws_json = json.dumps([{**flaw._asdict(), "box": box} for flaw, box in flaws], ensure_ascii=False)
            found = f"Found, and found again when looked at alone: {flaws_json}\n"
            words[place] = f"{found}Grade by the rubric. {GRADE_INSTRUCTION}"
        return self._ask_for_grades(items, requests, words, failures)

    def _window_question(self, clip: JudgedClip, aspect: Aspect, sample: int, flaw: Flaw) -> Question[Box | None]:
        part = clip_around_flaw(clip, flaw)
        words = _WHERE.format(what=flaw.what)
        return self._question(part, aspect, sample, "box", words, BOX_FORMAT, lambda: clip_input(part, aspect, 1))


def clip_around_flaw(clip: JudgedClip, flaw: Flaw) -> JudgedClip:
    """Return the part of a clip that a flaw covers, at least ``MIN_JUDGED_FRAMES`` frames if the clip has them."""
    first = int(flaw.start * FPS)
    last = min(len(clip), max(int(flaw.end * FPS) + 1, first + MIN_JUDGED_FRAMES))
    first = max(0, min(first, last - MIN_JUDGED_FRAMES))
    return JudgedClip(
        clip.frames[first:last], clip.audio[first * SAMPLES_PER_FRAME : last * SAMPLES_PER_FRAME], clip.name,
        clip.generator, known_landmarks=clip.landmarks[first:last],
    )  # fmt: skip


# --- Comparing two clips


@dataclass(frozen=True)
class PairChoice:
    """A judge's choice between two clips in one aspect.

    Args:
        margin: above 0 if the first clip is better, below 0 if the second is, None if there is no answer.
        position_bias: share of samples that chose the same position again when the clips changed places; None if two
            grades were compared.
        rationale: the judge's reasons.
    """

    margin: float | None
    position_bias: float | None = None
    rationale: str = ""


PairChoices = dict[Aspect, PairChoice]


@runtime_checkable
class PairJudge(Protocol):
    """The interface of a judge that looks at two clips together."""

    def compare(self, pairs: Sequence[ClipPair]) -> list[PairChoices]:
        """Return one choice per pair and aspect, in order, with margins from −1 to 1."""
        ...


def compare_pairs(judge: Judge, pairs: Sequence[ClipPair]) -> list[PairChoices]:
    """Return a judge's choice per pair.

    A ``PairJudge`` looks at both clips, with margins from −1 to 1. Any other judge grades each clip, and the margin is
    the difference of the two grades, −4 to 4.
    """
    if isinstance(judge, PairJudge):
        return judge.compare(pairs)
    clips = list({clip.digest: clip for pair in pairs for clip in pair}.values())
    verdicts = dict(zip([clip.digest for clip in clips], judge.judge(clips), strict=True))
    found = []
    for pair in pairs:
        choices: PairChoices = {}
        for aspect in CLIP_ASPECTS:
            sides = [verdicts[clip.digest].aspects[aspect] for clip in pair]
            grades = [side.score for side in sides if side.score is not None]
            margin = grades[0] - grades[1] if len(grades) == 2 else None
            choices[aspect] = PairChoice(margin, rationale=" / ".join(side.rationale for side in sides))
        found.append(choices)
    return found


class ComparingPanel(Panel[JudgedClip]):
    """A panel that grades without preparation, and compares two clips by looking at both.

    Every pair is shown in both orders, so that a model that prefers the clip shown first reaches a margin of 0 and a
    high position bias. After UnifiedReward (2503.05236), one model for pairs and points.
    """

    def compare(self, pairs: Sequence[ClipPair]) -> list[PairChoices]:
        """See ``PairJudge``; every specialist is asked for every sample in both orders."""
        requests = [
            (index, aspect, sample, swapped) for index in range(len(pairs)) for aspect in CLIP_ASPECTS
            for sample in range(self.first_sample, self.first_sample + self.settings.samples)
            for swapped in (False, True)
        ]  # fmt: skip
        questions = [self._pair_question(pairs[index], aspect, sample, swapped)
                     for index, aspect, sample, swapped in requests]  # fmt: skip
        answers, failures = ask_all(questions, self.backend, self.cache)
        found: dict[tuple[int, Aspect], list[tuple[float, str] | Failure]] = {}
        for place, (index, aspect, _, swapped) in enumerate(requests):
            answer = failures[place] if place not in answers else _in_given_order(answers[place], swapped)
            found.setdefault((index, aspect), []).append(answer)
        return [
            {aspect: combine_orders(found[index, aspect]) for aspect in CLIP_ASPECTS} for index in range(len(pairs))
        ]

    def _pair_question(self, pair: ClipPair, aspect: Aspect, sample: int, swapped: bool) -> Question[Any]:
        first, second = pair[::-1] if swapped else pair
        text = f"Aspect: {aspect}\n{self.rubric(aspect)}\n{_WHICH}"
        content = f"{first.digest} {second.digest} {self.settings.sheets}"

        def make_input() -> JudgeInput:
            return pair_input(first, second, aspect, self.settings.sheets)

        return Question(SPECIALIST_SYSTEM, text, "pair", content, sample, CHOICE_FORMAT, make_input)


def _in_given_order(answer: tuple[float, str], swapped: bool) -> tuple[float, str]:
    """Return the answer about a pair in its given order."""
    return (-answer[0], answer[1]) if swapped else answer


def combine_orders(answers: Sequence[tuple[float, str] | Failure]) -> PairChoice:
    """Return one choice from the answers of all samples.

    Args:
        answers: (margin, rationale) or a failure, two for every sample: the pair as given, then with the clips
            swapped; the margin always refers to the given order. An answer without its counterpart does not count.
    """
    counted, biased = [], []
    for one, other in zip(answers[::2], answers[1::2], strict=True):
        if isinstance(one, Failure) or isinstance(other, Failure):
            continue
        counted += [one, other]
        biased.append(float(one[0] * other[0] < 0))
    if not counted:
        why = next(answer.detail for answer in answers if isinstance(answer, Failure))
        return PairChoice(None, None, f"no sample was answered in both orders: {why}")
    margin = statistics.fmean(value for value, _ in counted)
    nearest = min(counted, key=lambda answer: abs(answer[0] - margin))
    return PairChoice(margin, statistics.fmean(biased), nearest[1])

"""This module measures how a judge agrees with human preferences, and learns a rubric library from them.

    right 1 · wrong 0 · no opinion ½ (a margin within the band, or no answer)       over pairs that people decided

    library ─► judge ─► training pairs ─► misses ─► a revision ─► held-out pairs ─► accepted if agreement rises

The first part measures the agreement. A judge without an opinion reaches one half, so that refusing gains nothing; the
interval is Wilson's. The second part learns: the judge is not trained, only the rules that it reads or the experts that
it asks change. Because held-out pairs decide about every revision, their last value is optimistic; a third part of the
pairs, asked once before and once after, measures the gain. After RewardHarness (2605.08703: a frozen model, a library
evolved from a hundred examples); its prompts are not public.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from flowportrait.errors import BadInput
from flowportrait.judges.answers import rule_format
from flowportrait.judges.clips import JudgedClip, JudgeInput, pair_input
from flowportrait.judges.methods import ClipPair, PairChoices, compare_pairs
from flowportrait.judges.questions import Backend, Question, ReplyCache, ask_all
from flowportrait.judges.rubric import CLIP_ASPECTS, Aspect, RubricLibrary, rubric_text
from flowportrait.judges.verdicts import Judge
from flowportrait.media.faces import interpolate_missing_frames
from flowportrait.preferences.clips import track_clip_faces
from flowportrait.preferences.dataset import JUDGE_ASPECTS, Label, PreferenceDataset
from flowportrait.rewards.batch import RewardBatch

NO_OPINION_BAND = 0.1
"""Margin up to which a judge counts as having no opinion."""
TRAIN_SHARE, HELD_OUT_SHARE = 0.4, 0.4
"""Shares of the pairs to learn from and to decide by; the rest measures the gain."""
MIN_PAIRS = 10
"""Least number of decided pairs to learn from."""
MAX_MISSES_SHOWN = 6
"""Most misses that are described to the model that writes a rule."""
_MAX_RATIONALE = 300
_Z = 1.96
Element = TypeVar("Element")
_EDITOR_SYSTEM = (
    "You edit the rubric of a panel that judges videos of talking faces. People compared pairs of clips; the panel "
    "disagreed with them. Find what the panel overlooks or overrates, and write one short rule that a judge can apply "
    "to any clip."
)


class LabelledPair(NamedTuple):
    """Two clips and, by aspect, which of them people preferred."""

    clips: ClipPair
    labels: Mapping[Aspect, Label]


class Miss(NamedTuple):
    """A decided pair on which the judge was wrong or had no opinion."""

    pair: LabelledPair
    aspect: Aspect
    margin: float | None
    rationale: str


@dataclass(frozen=True)
class Agreement:
    """The agreement of a judge with human preferences.

    Args:
        accuracy: mean mark (1, ½ or 0) over the decided pairs and aspects.
        decided: number of pairs and aspects that people decided.
        by_aspect: accuracy and number by aspect.
        position_bias: share of comparisons that followed the position; None without comparisons.
        no_opinion: share of marks ½.
        seconds: time per clip.
    """

    accuracy: float
    decided: int
    by_aspect: Mapping[Aspect, tuple[float, int]]
    position_bias: float | None
    no_opinion: float
    seconds: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy."""
        return wilson_interval(self.accuracy, self.decided)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        low, high = self.interval
        aspects = {aspect: {"right": share, "decided": count} for aspect, (share, count) in self.by_aspect.items()}
        return {"right": self.accuracy, "from": low, "to": high, "decided": self.decided, "aspects": aspects,
                "turned": self.position_bias, "untold": self.no_opinion, "seconds_per_clip": self.seconds}  # fmt: skip


def measure_agreement(
    judge: Judge, pairs: Sequence[LabelledPair], band: float = NO_OPINION_BAND
) -> tuple[Agreement, list[Miss]]:
    """Ask a judge about pairs and return its agreement with people, and the pairs on which it was not right.

    Args:
        judge: the judge.
        pairs: clips and people's preferences.
        band: margin up to which the judge has no opinion.

    Raises:
        BadInput: people decided no pair.
    """
    began = time.monotonic()
    choices = compare_pairs(judge, [one.clips for one in pairs])
    seconds = (time.monotonic() - began) / max(1, 2 * len(pairs))
    return count_agreement(pairs, choices, band, seconds)


def count_agreement(
    pairs: Sequence[LabelledPair], choices: Sequence[PairChoices], band: float, seconds: float = 0.0
) -> tuple[Agreement, list[Miss]]:
    """Return the agreement and the misses of known choices.

    Args:
        pairs: clips and people's preferences.
        choices: the judge's choice for each pair.
        band: margin up to which the judge has no opinion.
        seconds: time per clip, for the result.

    Raises:
        BadInput: people decided no pair.
    """
    marks: dict[Aspect, list[float]] = {aspect: [] for aspect in CLIP_ASPECTS}
    biases, misses = [], []
    for pair, pair_choices in zip(pairs, choices, strict=True):
        for aspect, label in pair.labels.items():
            if label is Label.TIE:
                continue
            choice = pair_choices[aspect]
            mark = agreement_mark(choice.margin, label, band)
            marks[aspect].append(mark)
            if choice.position_bias is not None:
                biases.append(choice.position_bias)
            if mark < 1:
                misses.append(Miss(pair, aspect, choice.margin, choice.rationale))
    all_marks = [mark for aspect_marks in marks.values() for mark in aspect_marks]
    if not all_marks:
        raise BadInput("No pair is decided in sync, expression or motion: give pairs in what a judge grades.")
    shares = {aspect: (sum(found) / len(found), len(found)) for aspect, found in marks.items() if found}
    no_opinion = all_marks.count(0.5) / len(all_marks)
    bias = sum(biases) / len(biases) if biases else None
    return Agreement(sum(all_marks) / len(all_marks), len(all_marks), shares, bias, no_opinion, seconds), misses


def agreement_mark(margin: float | None, label: Label, band: float) -> float:
    """Return 1 if the margin agrees with the label, 0 if it contradicts it, ½ within the band or without a margin."""
    if margin is None or abs(margin) <= band:
        return 0.5
    return float((margin > 0) == (label is Label.FIRST))


def read_labelled_pairs(dataset: PreferenceDataset) -> list[LabelledPair]:
    """Read the clips of a preference dataset; each clip is read and its face is tracked once.

    Raises:
        BadInput: a clip is missing or cannot be read.
    """
    clips = {name: _read_clip(dataset.folder / name) for name in dataset.clip_names}
    judged = {JUDGE_ASPECTS[aspect]: aspect for aspect in CLIP_ASPECTS}
    return [
        LabelledPair(
            (clips[pair.first], clips[pair.second]),
            {judged[a]: label for a, label in pair.labels.items() if a in judged},
        )
        for pair in dataset
    ]


def _read_clip(path: Path) -> JudgedClip:
    if not path.is_file():
        raise BadInput(f"{path} is missing: pairs name clips beside their file.")
    clip = JudgedClip.from_video(path)
    faces = track_clip_faces(path)
    batch = RewardBatch.from_frames([clip.frames], [clip.audio], faces=[faces])
    landmarks = interpolate_missing_frames(faces.landmarks, faces.valid)[..., :2] if faces.valid.any() else None
    return replace(clip, known_batch=batch, known_landmarks=landmarks)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval of a share of ``count``."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return middle - half, middle + half


# --- Learning a library


class Proposer(Protocol):
    """The interface of a function that proposes the next revision of a library."""

    def __call__(self, library: RubricLibrary, misses: Sequence[Miss], number: int) -> RubricLibrary | None:
        """Return a revised library, None if there is nothing left to propose.

        Args:
            library: the library so far.
            misses: training pairs on which the judge with this library is not right.
            number: index of the revision.
        """
        ...


@dataclass(frozen=True)
class Revision:
    """A revision of a library: its entries by aspect, and the accuracy on held-out pairs before and after it."""

    entries: dict[str, list[str]]
    before: float
    after: float

    @property
    def is_accepted(self) -> bool:
        """Whether the revision was accepted, because the accuracy rose."""
        return self.after > self.before


@dataclass(frozen=True)
class LearnedLibrary:
    """The result of learning a library.

    Args:
        library: the library with all accepted revisions.
        rounds: all revisions that were tried.
        first: agreement before learning, on pairs that decided nothing; None without such pairs.
        last: agreement after learning on the same pairs.
    """

    library: RubricLibrary
    rounds: tuple[Revision, ...]
    first: Agreement | None
    last: Agreement | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "rounds": [asdict(one) | {"kept": one.is_accepted} for one in self.rounds],
            "untouched pairs, before": self.first.to_dict() if self.first else None,
            "untouched pairs, after": self.last.to_dict() if self.last else None,
        }


def learn_library(
    judge_with: Callable[[RubricLibrary], Judge],
    pairs: Sequence[LabelledPair],
    propose: Proposer,
    rounds: int,
    start: RubricLibrary | None = None,
    band: float = NO_OPINION_BAND,
) -> LearnedLibrary:
    """Try revisions of a library and keep those that raise the agreement on held-out pairs.

    Args:
        judge_with: returns the judge with a library.
        pairs: clips and people's preferences. They are split in order, so pairs of one clip should be neighbours.
        propose: proposes revisions.
        rounds: most revisions to try.
        start: library to begin with, empty by default.
        band: margin up to which the judge has no opinion.

    Raises:
        BadInput: people decided fewer than ``MIN_PAIRS`` pairs.
    """
    pairs = [one for one in pairs if any(label is not Label.TIE for label in one.labels.values())]
    if len(pairs) < MIN_PAIRS:
        few = f"{len(pairs)} pairs that people decided in sync, expression or motion are too few to learn from"
        raise BadInput(f"{few}: give at least {MIN_PAIRS}, a hundred are good.")
    library = start or RubricLibrary()
    train, held_out, untouched = split_pairs(pairs)
    first = measure_agreement(judge_with(library), untouched, band)[0] if untouched else None
    misses = measure_agreement(judge_with(library), train, band)[1]
    best = measure_agreement(judge_with(library), held_out, band)[0].accuracy
    done: list[Revision] = []
    for number in range(rounds):
        revision = propose(library, misses, number)
        if revision is None:
            break
        after = measure_agreement(judge_with(revision), held_out, band)[0].accuracy
        done.append(Revision({aspect: list(revision.of(aspect)) for aspect in CLIP_ASPECTS}, best, after))
        if done[-1].is_accepted:
            library, best = revision, after
            misses = measure_agreement(judge_with(library), train, band)[1]
    last = measure_agreement(judge_with(library), untouched, band)[0] if untouched else None
    return LearnedLibrary(library, tuple(done), first, last)


def split_pairs(pairs: Sequence[Element]) -> tuple[Sequence[Element], Sequence[Element], Sequence[Element]]:
    """Split pairs in order into those to learn from, to decide by, and to report on."""
    one, two = round(TRAIN_SHARE * len(pairs)), round((TRAIN_SHARE + HELD_OUT_SHARE) * len(pairs))
    return pairs[:one], pairs[one:two], pairs[two:]


@dataclass(frozen=True)
class RuleEditor:
    """A ``Proposer`` that shows a model one miss, describes others in words, and lets it write a rule.

    Args:
        backend: the model.
        cache: cache of its replies.
        sheets: sheets of pictures of the pair that is shown.
    """

    backend: Backend
    cache: ReplyCache
    sheets: int = 4

    def __call__(self, library: RubricLibrary, misses: Sequence[Miss], number: int) -> RubricLibrary | None:
        """See ``Proposer``; every round begins with another miss."""
        if not misses:
            return None
        turn = [misses[(number + place) % len(misses)] for place in range(min(MAX_MISSES_SHOWN, len(misses)))]
        aspect = turn[0].aspect
        cases = [describe_miss(miss) for miss in turn if miss.aspect == aspect]
        entries = dict(enumerate(library.of(aspect)))
        text = (
            f"Aspect: {aspect}\n{rubric_text(aspect)}\nRules so far: {json.dumps(entries, ensure_ascii=False)}\n"
            "Where the panel disagreed with people (you are shown the first case):\n"
            f"{json.dumps(cases, ensure_ascii=False)}\n"
            'Answer with one JSON object and nothing else: {"rule": "one sentence", "replaces": number of the rule it '
            "replaces, or null}."
        )

        def make_input() -> JudgeInput:
            return pair_input(*turn[0].pair.clips, aspect, self.sheets)

        content = " ".join(clip.digest for clip in turn[0].pair.clips)
        question = Question(_EDITOR_SYSTEM, text, "edit", content, number, rule_format(len(entries)), make_input)
        answers, _ = ask_all([question], self.backend, self.cache)
        if not answers:
            return library
        rule, replaces = answers[0]
        return library.with_entry(aspect, rule, replaces)


@dataclass(frozen=True)
class ExpertToggles:
    """A ``Proposer`` for measured panels that adds one expert to an aspect or removes it, one after the other."""

    experts: tuple[str, ...]

    def __call__(self, library: RubricLibrary, misses: Sequence[Miss], number: int) -> RubricLibrary | None:
        """See ``Proposer``."""
        places = list(product(CLIP_ASPECTS, self.experts))
        for aspect, expert in places[number % len(places) :]:
            current = library.of(aspect)
            if expert not in current:
                return library.with_entry(aspect, expert)
            if len(current) > 1:
                return library.without(aspect, expert)
        return None


def describe_miss(miss: Miss) -> dict[str, object]:
    """Return a miss as the values that a question shows."""
    better = "first" if miss.pair.labels[miss.aspect] is Label.FIRST else "second"
    answer = "nothing" if miss.margin is None else "same" if abs(miss.margin) <= NO_OPINION_BAND else (
        "first" if miss.margin > 0 else "second"
    )  # fmt: skip
    return {"people preferred": better, "the panel": answer, "because": miss.rationale[:_MAX_RATIONALE]}

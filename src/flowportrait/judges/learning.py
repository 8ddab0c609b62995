"""Agreement with people's preferences, and learning from them what a judge goes by.

    right 1 · wrong 0 · cannot tell ½ (a margin within the band, or no answer)       over pairs that people decided

    library ─► judge ─► pairs shown ─► misses ─► a revision ─► held-out pairs ─► kept only if agreement rises

The interval of an agreement is Wilson's. Without an opinion a judge stands at one half, so that refusing gains nothing.
Nothing is trained: the judge stays as it is, only what it reads or measures by changes. Held-out pairs decide many
times, so that their last value flatters; a third part, asked once before and once after, says what was gained. After
RewardHarness (2605.08703: a frozen model, a library evolved from a hundred examples); its prompts are not public.
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
from flowportrait.judges.rubric import ASPECTS, Aspect, Library, rubric_text
from flowportrait.judges.verdicts import Judge
from flowportrait.media.faces import bridge
from flowportrait.preferences.clips import clip_faces
from flowportrait.preferences.dataset import JUDGE_ASPECTS, Label, PreferenceDataset
from flowportrait.rewards.batch import RewardBatch

BAND = 0.1
"""Margin under which a judge cannot tell."""
TRAIN_SHARE, HELD_OUT_SHARE = 0.4, 0.4
"""Of the pairs; the rest is asked before and after."""
MIN_PAIRS = 10
MAX_MISSES_SHOWN = 6
_MAX_RATIONALE = 300
_Z = 1.96
Element = TypeVar("Element")
_EDITOR_SYSTEM = (
    "You edit the rubric of a panel that judges videos of talking faces. People compared pairs of clips; the panel "
    "disagreed with them. Find what the panel overlooks or overrates, and write one short rule that a judge can apply "
    "to any clip."
)


class LabelledPair(NamedTuple):
    """Two clips, and per aspect which of them people preferred."""

    clips: ClipPair
    labels: Mapping[Aspect, Label]


class Miss(NamedTuple):
    """A decided pair on which the judge was not right."""

    pair: LabelledPair
    aspect: Aspect
    margin: float | None
    rationale: str


@dataclass(frozen=True)
class Agreement:
    """How often a judge says what people said.

    Args:
        accuracy: share over ``decided`` pairs and aspects.
        decided: pairs and aspects that people decided.
        by_aspect: accuracy and decided of each aspect.
        position_bias: share of comparisons that followed the position; None without comparisons.
        no_opinion: share on which the judge could not tell.
        seconds: per clip shown.
    """

    accuracy: float
    decided: int
    by_aspect: Mapping[Aspect, tuple[float, int]]
    position_bias: float | None
    no_opinion: float
    seconds: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the accuracy."""
        return wilson(self.accuracy, self.decided)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        low, high = self.interval
        aspects = {aspect: {"right": share, "decided": count} for aspect, (share, count) in self.by_aspect.items()}
        return {"right": self.accuracy, "from": low, "to": high, "decided": self.decided, "aspects": aspects,
                "turned": self.position_bias, "untold": self.no_opinion, "seconds_per_clip": self.seconds}  # fmt: skip


def agreement(judge: Judge, pairs: Sequence[LabelledPair], band: float = BAND) -> tuple[Agreement, list[Miss]]:
    """Return how a judge agrees with people, and the pairs on which it does not.

    Raises:
        BadInput: no pair is decided.
    """
    began = time.monotonic()
    choices = compare_pairs(judge, [one.clips for one in pairs])
    seconds = (time.monotonic() - began) / max(1, 2 * len(pairs))
    return count_agreement(pairs, choices, band, seconds)


def count_agreement(
    pairs: Sequence[LabelledPair], choices: Sequence[PairChoices], band: float, seconds: float = 0.0
) -> tuple[Agreement, list[Miss]]:
    """Return the same from choices that are known."""
    marks: dict[Aspect, list[float]] = {aspect: [] for aspect in ASPECTS}
    biases, misses = [], []
    for one, chosen in zip(pairs, choices, strict=True):
        for aspect, label in one.labels.items():
            if label is Label.TIE:
                continue
            choice = chosen[aspect]
            mark = agreement_mark(choice.margin, label, band)
            marks[aspect].append(mark)
            if choice.position_bias is not None:
                biases.append(choice.position_bias)
            if mark < 1:
                misses.append(Miss(one, aspect, choice.margin, choice.rationale))
    every = [mark for own in marks.values() for mark in own]
    if not every:
        raise BadInput("No pair is decided in sync, expression or motion: give pairs in what a judge grades.")
    shares = {aspect: (sum(own) / len(own), len(own)) for aspect, own in marks.items() if own}
    no_opinion = every.count(0.5) / len(every)
    bias = sum(biases) / len(biases) if biases else None
    return Agreement(sum(every) / len(every), len(every), shares, bias, no_opinion, seconds), misses


def agreement_mark(margin: float | None, label: Label, band: float) -> float:
    """Return 1 for what people said, 0 for the opposite, ½ for a margin within the band or none."""
    if margin is None or abs(margin) <= band:
        return 0.5
    return float((margin > 0) == (label is Label.FIRST))


def read_labelled_pairs(dataset: PreferenceDataset) -> list[LabelledPair]:
    """Read the clips of pairs; each clip is read once, and its face is tracked once.

    Raises:
        BadInput: a clip is missing or cannot be read.
    """
    clips = {name: _read_clip(dataset.folder / name) for name in dataset.clip_names}
    own = {JUDGE_ASPECTS[aspect]: aspect for aspect in ASPECTS}
    return [
        LabelledPair(
            (clips[pair.first], clips[pair.second]), {own[a]: label for a, label in pair.labels.items() if a in own}
        )
        for pair in dataset
    ]


def _read_clip(path: Path) -> JudgedClip:
    if not path.is_file():
        raise BadInput(f"{path} is missing: pairs name clips beside their file.")
    clip = JudgedClip.from_video(path)
    faces = clip_faces(path)
    batch = RewardBatch.from_frames([clip.frames], [clip.audio], faces=[faces])
    landmarks = bridge(faces.landmarks, faces.valid)[..., :2] if faces.valid.any() else None
    return replace(clip, known_batch=batch, known_landmarks=landmarks)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of ``count``."""
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return middle - half, middle + half


# --- learning from preferences


class Proposer(Protocol):
    """A way to suggest the next revision of a library."""

    def __call__(self, library: Library, misses: Sequence[Miss], number: int) -> Library | None:
        """Return revision ``number``, None if there is none."""
        ...


@dataclass(frozen=True)
class Revision:
    """A revision: agreement on held-out pairs before and after it, and whether it was kept."""

    entries: dict[str, list[str]]
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after > self.before


@dataclass(frozen=True)
class LearnedLibrary:
    """The library that was kept, its revisions, and the agreement before and after.

    ``first`` and ``last`` are of pairs that decided nothing; None where there were too few.
    """

    library: Library
    rounds: tuple[Revision, ...]
    first: Agreement | None
    last: Agreement | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a report."""
        return {
            "rounds": [asdict(one) | {"kept": one.kept} for one in self.rounds],
            "untouched pairs, before": self.first.to_dict() if self.first else None,
            "untouched pairs, after": self.last.to_dict() if self.last else None,
        }


def improve(
    judge_with: Callable[[Library], Judge],
    pairs: Sequence[LabelledPair],
    propose: Proposer,
    rounds: int,
    start: Library | None = None,
    band: float = BAND,
) -> LearnedLibrary:
    """Try up to ``rounds`` revisions of ``start`` and keep those that raise the agreement on held-out pairs.

    Pairs of one clip should stand together: the parts are cut in order.

    Raises:
        BadInput: too few pairs that people decided.
    """
    pairs = [one for one in pairs if any(label is not Label.TIE for label in one.labels.values())]
    if len(pairs) < MIN_PAIRS:
        few = f"{len(pairs)} pairs that people decided in sync, expression or motion are too few to learn from"
        raise BadInput(f"{few}: give at least {MIN_PAIRS}, a hundred are good.")
    library = start or Library()
    train, held_out, untouched = split_pairs(pairs)
    first = agreement(judge_with(library), untouched, band)[0] if untouched else None
    misses = agreement(judge_with(library), train, band)[1]
    best = agreement(judge_with(library), held_out, band)[0].accuracy
    done: list[Revision] = []
    for number in range(rounds):
        revision = propose(library, misses, number)
        if revision is None:
            break
        after = agreement(judge_with(revision), held_out, band)[0].accuracy
        done.append(Revision({aspect: list(revision.of(aspect)) for aspect in ASPECTS}, best, after))
        if done[-1].kept:
            library, best = revision, after
            misses = agreement(judge_with(library), train, band)[1]
    last = agreement(judge_with(library), untouched, band)[0] if untouched else None
    return LearnedLibrary(library, tuple(done), first, last)


def split_pairs(pairs: Sequence[Element]) -> tuple[Sequence[Element], Sequence[Element], Sequence[Element]]:
    """Split pairs, in order, into those to learn from, to decide by, and to report on."""
    one, two = round(TRAIN_SHARE * len(pairs)), round((TRAIN_SHARE + HELD_OUT_SHARE) * len(pairs))
    return pairs[:one], pairs[one:two], pairs[two:]


@dataclass(frozen=True)
class RuleEditor:
    """A ``Proposer``: a model is told misses in words, shown one of them, and writes a rule."""

    backend: Backend
    cache: ReplyCache
    sheets: int = 4

    def __call__(self, library: Library, misses: Sequence[Miss], number: int) -> Library | None:
        """See ``Proposer``. Every round begins at another miss."""
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
    """A ``Proposer`` for measured panels: every expert is added to or taken from every aspect, one at a time."""

    experts: tuple[str, ...]

    def __call__(self, library: Library, misses: Sequence[Miss], number: int) -> Library | None:
        """See ``Proposer``."""
        places = list(product(ASPECTS, self.experts))
        for aspect, expert in places[number % len(places) :]:
            own = library.of(aspect)
            if expert not in own:
                return library.with_entry(aspect, expert)
            if len(own) > 1:
                return library.without(aspect, expert)
        return None


def describe_miss(miss: Miss) -> dict[str, object]:
    """Return a miss in words."""
    better = "first" if miss.pair.labels[miss.aspect] is Label.FIRST else "second"
    answer = "nothing" if miss.margin is None else "same" if abs(miss.margin) <= BAND else (
        "first" if miss.margin > 0 else "second"
    )  # fmt: skip
    return {"people preferred": better, "the panel": answer, "because": miss.rationale[:_MAX_RATIONALE]}

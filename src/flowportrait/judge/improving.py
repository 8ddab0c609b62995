"""A rubric library that gets better from a hundred preferences.

    library ─► judge ─► pairs shown ─► misses ─► a revision ─► held-out pairs ─► kept only if agreement rises

Nothing is trained: the judge stays as it is, only what it reads or measures by changes. Held-out pairs decide many
times, so that their last figure flatters; a third part, asked once before and once after, says what was gained. After
RewardHarness (2605.08703: a frozen model, a library evolved from a hundred examples); its prompts are not public.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Protocol, TypeVar

from flowportrait.errors import BadInput
from flowportrait.judge.asking import ask_for
from flowportrait.judge.cache import Cache
from flowportrait.judge.comparing import both
from flowportrait.judge.evidence import Evidence
from flowportrait.judge.library import Library
from flowportrait.judge.opinion import Reply, Unusable, describe_value, read_object
from flowportrait.judge.preferring import BAND, Agreement, Miss, Stated, agreement
from flowportrait.judge.question import Backend, Question
from flowportrait.judge.rubric import ASPECTS, rubric_text
from flowportrait.judge.verdict import Judge
from flowportrait.reward.batch import Failure

SHOWN, HELD = 0.4, 0.4
"""Shares of the pairs; the rest is asked before and after."""
FEWEST = 10
"""Pairs."""
MOST_TOLD = 6
_LONGEST = 300
_EDITOR = (
    "You edit the rubric of a panel that judges videos of talking faces. People compared pairs of clips; the panel "
    "disagreed with them. Find what the panel overlooks or overrates, and write one short rule that a judge can apply "
    "to any clip."
)


class Proposer(Protocol):
    """Whoever suggests the next revision."""

    def __call__(self, library: Library, misses: Sequence[Miss], number: int) -> Library | None:
        """A revision, None if there is none."""
        ...


@dataclass(frozen=True)
class Round:
    """A revision: agreement on held-out pairs before and after it, and whether it was kept."""

    entries: dict[str, list[str]]
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after > self.before


@dataclass(frozen=True)
class Learned:
    """library: what was kept; first, last: agreement on pairs that decided nothing, None where there were too few."""

    library: Library
    rounds: tuple[Round, ...]
    first: Agreement | None
    last: Agreement | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report."""
        return {
            "rounds": [asdict(one) | {"kept": one.kept} for one in self.rounds],
            "untouched pairs, before": self.first.to_dict() if self.first else None,
            "untouched pairs, after": self.last.to_dict() if self.last else None,
        }


def improve(
    judge_with: Callable[[Library], Judge],
    stated: Sequence[Stated],
    propose: Proposer,
    rounds: int,
    start: Library | None = None,
    band: float = BAND,
) -> Learned:
    """Up to ``rounds`` revisions of ``start``. Pairs of one clip should stand together: the parts are cut in order.

    Raises:
        BadInput: too few pairs that people decided.
    """
    stated = [one for one in stated if any(label != "tie" for label in one.labels.values())]
    if len(stated) < FEWEST:
        few = f"{len(stated)} pairs that people decided in sync, expression or motion are too few to learn from"
        raise BadInput(f"{few}: give at least {FEWEST}, a hundred are good.")
    library = start or Library()
    shown, held, rest = parts(stated)
    first = agreement(judge_with(library), rest, band)[0] if rest else None
    misses = agreement(judge_with(library), shown, band)[1]
    best = agreement(judge_with(library), held, band)[0].right
    done: list[Round] = []
    for number in range(rounds):
        revision = propose(library, misses, number)
        if revision is None:
            break
        after = agreement(judge_with(revision), held, band)[0].right
        done.append(Round({aspect: list(revision.of(aspect)) for aspect in ASPECTS}, best, after))
        if done[-1].kept:
            library, best = revision, after
            misses = agreement(judge_with(library), shown, band)[1]
    return Learned(library, tuple(done), first, agreement(judge_with(library), rest, band)[0] if rest else None)


Pair = TypeVar("Pair")


def parts(stated: Sequence[Pair]) -> tuple[Sequence[Pair], Sequence[Pair], Sequence[Pair]]:
    """Pairs to learn from, to decide by, and to report on."""
    one, two = round(SHOWN * len(stated)), round((SHOWN + HELD) * len(stated))
    return stated[:one], stated[one:two], stated[two:]


@dataclass(frozen=True)
class Editor:
    """A model writes the revisions: it is told misses in words and shown one of them."""

    backend: Backend
    cache: Cache
    sheets: int = 4

    def __call__(self, library: Library, misses: Sequence[Miss], number: int) -> Library | None:
        """See ``Proposer``. Every round begins at another miss."""
        if not misses:
            return None
        turn = [misses[(number + place) % len(misses)] for place in range(min(MOST_TOLD, len(misses)))]
        aspect = turn[0].aspect
        told = [told_of(miss) for miss in turn if miss.aspect == aspect]
        entries = dict(enumerate(library.of(aspect)))
        text = (
            f"Aspect: {aspect}\n{rubric_text(aspect)}\nRules so far: {json.dumps(entries, ensure_ascii=False)}\n"
            "Where the panel disagreed with people (you are shown the first case):\n"
            f"{json.dumps(told, ensure_ascii=False)}\n"
            'Answer with one JSON object and nothing else: {"rule": "one sentence", "replaces": number of the rule it '
            "replaces, or null}."
        )

        def check(reply: Reply) -> tuple[str, int | None]:
            return read_rule(reply, len(entries))

        def show() -> Evidence:
            return both(*turn[0].stated.clips, aspect, self.sheets)

        content = " ".join(clip.digest for clip in turn[0].stated.clips)
        question = Question(_EDITOR, text, "edit", content, number, check, show)
        replies, _ = ask_for([question], self.backend, self.cache)
        if not replies:
            return library
        rule, replaces = check(replies[0])
        return library.with_entry(aspect, rule, replaces)


@dataclass(frozen=True)
class Toggles:
    """For a measured panel: every expert is put into or taken out of every aspect, one at a time."""

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


def told_of(miss: Miss) -> dict[str, object]:
    """A miss in words."""
    better = "first" if miss.stated.labels[miss.aspect] == "A" else "second"
    said = "nothing" if miss.margin is None else "same" if abs(miss.margin) <= BAND else (
        "first" if miss.margin > 0 else "second"
    )  # fmt: skip
    return {"people preferred": better, "the panel": said, "because": miss.why[:_LONGEST]}


def read_rule(reply: Reply, entries: int) -> tuple[str, int | None]:
    """A rule, and the number of the one that it replaces.

    Raises:
        Unusable: neither.
    """
    found = read_object(reply, ("rule",))
    rule, replaces = found["rule"], found.get("replaces")
    if not isinstance(rule, str) or not rule.strip() or len(rule) > _LONGEST:
        raise Unusable(Failure("malformed", f"no rule of at most {_LONGEST} letters"))
    if replaces is not None and (type(replaces) is not int or not 0 <= replaces < entries):
        raise Unusable(Failure("malformed", f"replaces is {describe_value(replaces)}, no number of a rule"))
    return rule.strip(), replaces

"""What is in a heap of pairs, and which of them must not be learned from.

    pairs ─► contradicted by the same annotator ─► clips missing ─► a clip preferred to itself ─► leaked ─► kept

Whatever is left out is counted under one reason and said in a sentence. A speaker, portrait or clip that occurs
outside ``train`` too leaks: its training pairs go, because what measures must stay unseen.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.preference.agreement import krippendorff_alpha
from flowportrait.preference.pairs import ASPECTS, LABELS, Aspect, Pair

TRAIN = "train"
NEARLY_ALL = 0.98
"""Share of ties from which on an aspect is called empty."""


@dataclass(frozen=True)
class Inspection:
    """kept: pairs to learn from; excluded: reason → how many; sentences: what a person should know; counts: the
    table."""

    kept: list[Pair]
    excluded: dict[str, int]
    sentences: list[str]
    counts: dict[str, Any]


def inspect_pairs(pairs: Sequence[Pair], folder: Path | None = None) -> Inspection:
    """Look at pairs; ``folder``: where their relative clip paths start, None to trust that clips exist."""
    reasons: dict[int, str] = {}
    for reason, found in (
        ("contradicted by the same annotator", contradictions(pairs)),
        ("clip missing", set() if folder is None else _without_clips(pairs, folder)),
        ("a clip preferred to itself", _of_one_clip(pairs)),
        ("leaked between splits", leaks(pairs)),
    ):
        for index in found:
            reasons.setdefault(index, reason)
    kept = [pair for index, pair in enumerate(pairs) if index not in reasons]
    counts = _counts(pairs)
    return Inspection(kept, dict(Counter(reasons.values())), _sentences(pairs, kept, counts), counts)


def require_lesson(inspection: Inspection, aspects: Sequence[Aspect]) -> list[Pair]:
    """The kept pairs, if there is something to learn about each of ``aspects``.

    Raises:
        BadInput: nothing is left, or an aspect has ties only.
    """
    if not inspection.kept:
        why = ", ".join(f"{count} {reason}" for reason, count in inspection.excluded.items())
        raise BadInput(f"None of the pairs can be learned from ({why}): collect more.")
    for aspect in aspects:
        labels = [pair.aspects[aspect] for pair in inspection.kept if aspect in pair.aspects]
        if labels and set(labels) == {"tie"}:
            raise BadInput(f"All {len(labels)} judgements of {aspect} are ties: there is nothing to learn about it.")
    return inspection.kept


def contradictions(pairs: Sequence[Pair]) -> set[int]:
    """Pairs whose annotator also said the opposite about the same two clips, in the same aspect."""
    said: dict[tuple[str, str, str, str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, pair in enumerate(pairs):
        ordered = pair.in_order()
        for aspect, label in ordered.aspects.items():
            said[ordered.a, ordered.b, pair.source, pair.annotator, aspect][label].append(index)
    found: set[int] = set()
    for labels in said.values():
        if labels.keys() >= {"A", "B"}:
            found.update(labels["A"], labels["B"])
    return found


def leaks(pairs: Sequence[Pair]) -> set[int]:
    """Training pairs that share a speaker, a portrait or a clip with a pair of another split."""
    elsewhere = {thing for pair in pairs if pair.split and pair.split != TRAIN for thing in _traces(pair)}
    return {index for index, pair in enumerate(pairs) if pair.split == TRAIN and _traces(pair) & elsewhere}


def _traces(pair: Pair) -> set[tuple[str, str]]:
    named = {("speaker", pair.speaker), ("portrait", pair.portrait), ("clip", pair.a), ("clip", pair.b)}
    return {(kind, name) for kind, name in named if name}


def _without_clips(pairs: Sequence[Pair], folder: Path) -> set[int]:
    there = {name: (folder / name).is_file() for pair in pairs for name in (pair.a, pair.b)}
    return {index for index, pair in enumerate(pairs) if not (there[pair.a] and there[pair.b])}


def _of_one_clip(pairs: Sequence[Pair]) -> set[int]:
    return {index for index, pair in enumerate(pairs) if pair.a == pair.b and set(pair.aspects.values()) != {"tie"}}


def _counts(pairs: Sequence[Pair]) -> dict[str, Any]:
    aspects: dict[str, Any] = {}
    for aspect in ASPECTS:
        labels = Counter(pair.aspects[aspect] for pair in pairs if aspect in pair.aspects)
        if not labels:
            continue
        units: dict[tuple[str, str], list[str]] = defaultdict(list)
        for pair in map(Pair.in_order, pairs):
            if aspect in pair.aspects:
                units[pair.a, pair.b].append(pair.aspects[aspect])
        split_votes = sum({"A", "B"} <= set(labels) for labels in units.values())
        aspects[aspect] = {
            **{label: labels[label] for label in LABELS},
            "ties": labels["tie"] / labels.total(),
            "alpha": krippendorff_alpha(units.values()),
            "judged_twice": sum(len(labels) > 1 for labels in units.values()),
            "disputed": split_votes,
        }
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "clips": len({name for pair in pairs for name in (pair.a, pair.b)}),
        "sources": dict(Counter(pair.source for pair in pairs).most_common()),
        "annotators": len({(pair.source, pair.annotator) for pair in pairs}),
        "splits": dict(Counter(pair.split or "none named" for pair in pairs)),
        "speakers": len({pair.speaker for pair in pairs if pair.speaker}),
        "portraits": len({pair.portrait for pair in pairs if pair.portrait}),
        "aspects": aspects,
    }


def _sentences(pairs: Sequence[Pair], kept: Sequence[Pair], counts: dict[str, Any]) -> list[str]:
    found = []
    if not kept:
        found.append("Nothing is left to learn from.")
    if counts["annotators"] == 1:
        found.append("One annotator only: agreement cannot be measured, and one taste is what would be learned.")
    for aspect, row in counts["aspects"].items():
        if row["ties"] >= NEARLY_ALL:
            found.append(f"{aspect.capitalize()} is {row['ties']:.0%} ties: it teaches next to nothing.")
        if row["alpha"] is not None and row["alpha"] <= 0:
            found.append(f"On {aspect} the annotators agree no better than chance (alpha {row['alpha']:.2f}).")
    by_split: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for pair in pairs:
        by_split[pair.split] |= _traces(pair)
    held_out = set().union(*(traces for split, traces in by_split.items() if split not in ("", TRAIN)))
    shared = Counter(kind for kind, _ in by_split[TRAIN] & held_out)
    for kind, count in shared.items():
        few = count == 1
        found.append(
            f"{count} {kind}{'' if few else 's'} of the training split also "
            f"{'occurs' if few else 'occur'} in another one: those training pairs are left out."
        )
    if not any(pair.split for pair in pairs):
        found.append("No split is named: leaks between training and measuring cannot be ruled out.")
    return found

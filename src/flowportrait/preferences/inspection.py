"""Inspection of preference pairs: counts, agreement, contradictions and leaks, and the pairs that remain usable.

    pairs ─► contradicted by the same annotator ─► clips missing ─► a clip preferred to itself ─► leaked ─► usable

Every excluded pair is counted under one reason and reported in a sentence. A speaker, portrait or clip that also occurs
outside ``train`` is a leak: its training pairs are excluded, because evaluation needs unseen speakers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.preferences.dataset import ASPECTS, LABELS, Aspect, Label, PreferenceDataset, PreferencePair
from flowportrait.terminal import log


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for nominal data, the agreement of annotators.

        α = 1 − D_o / D_e        D_o = Σ_{c≠k} o_ck / n        D_e = Σ_{c≠k} n_c n_k / (n (n − 1))

    ``o_ck`` counts ordered pairs of values within a unit, each unit weighted by 1 / (m_u − 1) for its m_u values
    (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011). 1 is perfect agreement, 0 is chance, below 0 is
    systematic disagreement.

    Args:
        units: the values given to each unit, in any order; units with fewer than two values do not count.

    Returns:
        Alpha; None if no unit has two values, or if all values are equal.
    """
    coincidences: defaultdict[tuple[Hashable, Hashable], float] = defaultdict(float)
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        for one, count in counts.items():
            for other, other_count in counts.items():
                pairs = count * (other_count - (one == other))
                coincidences[one, other] += pairs / (len(values) - 1)
    totals: defaultdict[Hashable, float] = defaultdict(float)
    for (one, _), weight in coincidences.items():
        totals[one] += weight
    total = sum(totals.values())
    expected = total**2 - sum(weight**2 for weight in totals.values())
    if not total or not expected:
        return None
    observed = sum(weight for (one, other), weight in coincidences.items() if one != other)
    return 1.0 - observed * (total - 1) / expected


TRAIN_SPLIT = "train"
USELESS_TIE_SHARE = 0.98
"""Share of ties from which an aspect is reported as useless."""


@dataclass(frozen=True)
class PairInspection:
    """The result of an inspection.

    Attributes:
        usable: the pairs for training.
        excluded: number of excluded pairs by reason.
        sentences: findings that a person should read.
        counts: statistics of all pairs.
    """

    usable: PreferenceDataset
    excluded: dict[str, int]
    sentences: list[str]
    counts: dict[str, Any]


def inspect_pairs(dataset: PreferenceDataset, check_files: bool = True) -> PairInspection:
    """Inspect the pairs of a dataset.

    Args:
        dataset: the pairs.
        check_files: exclude pairs of clips that do not exist.
    """
    reasons: dict[int, str] = {}
    pairs = dataset.pairs
    for reason, indices in (
        ("contradicted by the same annotator", find_contradictions(pairs)),
        ("clip missing", _missing_clips(dataset) if check_files else set()),
        ("a clip preferred to itself", _self_preferences(pairs)),
        ("leaked between splits", find_leaks(pairs)),
    ):
        for index in indices:
            reasons.setdefault(index, reason)
    usable = tuple(pair for index, pair in enumerate(pairs) if index not in reasons)
    counts = _counts(pairs)
    return PairInspection(
        replace(dataset, pairs=usable), dict(Counter(reasons.values())), _sentences(pairs, usable, counts), counts
    )


def select_training_pairs(
    dataset: PreferenceDataset, aspects: Callable[[PairInspection], Sequence[Aspect]], explain: bool = False
) -> PreferenceDataset:
    """Return the pairs for training: those of the training split if splits are named. Excluded pairs are logged.

    Args:
        dataset: the pairs.
        aspects: function that returns the aspects that need at least one usable pair without a tie, if judged at all.
        explain: log the findings that a person should read.

    Raises:
        BadInput: no pair is left, or one of the aspects has only ties.
    """
    inspection = inspect_pairs(dataset)
    for sentence in inspection.sentences if explain else ():
        log(sentence)
    for reason, count in inspection.excluded.items():
        log(f"Left out: {count} pairs: {reason}.")
    usable = require_decided_labels(inspection, aspects(inspection))
    return replace(usable, pairs=tuple(pair for pair in usable if pair.split in ("", TRAIN_SPLIT)))


def require_decided_labels(inspection: PairInspection, aspects: Sequence[Aspect]) -> PreferenceDataset:
    """Return the usable pairs, after a check that every one of ``aspects`` has labels other than ties.

    Raises:
        BadInput: no pair is left, or an aspect has only ties.
    """
    if not inspection.usable:
        why = ", ".join(f"{count} {reason}" for reason, count in inspection.excluded.items())
        raise BadInput(f"None of the pairs can be learned from ({why}): collect more.")
    for aspect in aspects:
        labels = [pair.labels[aspect] for pair in inspection.usable if aspect in pair.labels]
        if labels and set(labels) == {Label.TIE}:
            raise BadInput(f"All {len(labels)} judgements of {aspect} are ties: there is nothing to learn about it.")
    return inspection.usable


def find_contradictions(pairs: Sequence[PreferencePair[str]]) -> set[int]:
    """Return the indices of pairs that their annotator also judged the other way round in the same aspect."""
    indices_by_label: dict[tuple[str, str, str, str, str], dict[Label, list[int]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for index, pair in enumerate(map(_sorted_clips, pairs)):
        for aspect, label in pair.labels.items():
            indices_by_label[pair.first, pair.second, pair.source, pair.annotator, aspect][label].append(index)
    indices: set[int] = set()
    for labels in indices_by_label.values():
        if labels.keys() >= {Label.FIRST, Label.SECOND}:
            indices.update(labels[Label.FIRST], labels[Label.SECOND])
    return indices


def find_leaks(pairs: Sequence[PreferencePair[str]]) -> set[int]:
    """Return the indices of training pairs that share a speaker, portrait or clip with a pair of another split."""
    held_out = {trace for pair in pairs if pair.split and pair.split != TRAIN_SPLIT for trace in _identities(pair)}
    return {index for index, pair in enumerate(pairs) if pair.split == TRAIN_SPLIT and _identities(pair) & held_out}


def _sorted_clips(pair: PreferencePair[str]) -> PreferencePair[str]:
    """Return the pair with its clips in alphabetical order."""
    return pair if pair.first <= pair.second else pair.swapped()


def _identities(pair: PreferencePair[str]) -> set[tuple[str, str]]:
    identities = {("speaker", pair.speaker), ("portrait", pair.portrait), ("clip", pair.first), ("clip", pair.second)}
    return {(kind, name) for kind, name in identities if name}


def _missing_clips(dataset: PreferenceDataset) -> set[int]:
    missing = {name for name in dataset.clip_names if not (dataset.folder / name).is_file()}
    return {index for index, pair in enumerate(dataset) if not missing.isdisjoint(pair.clips)}


def _self_preferences(pairs: Sequence[PreferencePair[str]]) -> set[int]:
    return {
        index
        for index, pair in enumerate(pairs)
        if pair.first == pair.second and set(pair.labels.values()) != {Label.TIE}
    }


def _counts(pairs: Sequence[PreferencePair[str]]) -> dict[str, Any]:
    aspects: dict[str, Any] = {}
    for aspect in ASPECTS:
        labels = Counter(pair.labels[aspect] for pair in pairs if aspect in pair.labels)
        if not labels:
            continue
        by_clips: dict[tuple[str, str], list[Label]] = defaultdict(list)
        for pair in map(_sorted_clips, pairs):
            if aspect in pair.labels:
                by_clips[pair.clips].append(pair.labels[aspect])
        aspects[aspect] = {
            **{label.name.lower(): labels[label] for label in LABELS},
            "ties": labels[Label.TIE] / labels.total(),
            "alpha": krippendorff_alpha(by_clips.values()),
            "judged_twice": sum(len(votes) > 1 for votes in by_clips.values()),
            "disputed": sum({Label.FIRST, Label.SECOND} <= set(votes) for votes in by_clips.values()),
        }
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "clips": len({name for pair in pairs for name in pair.clips}),
        "sources": dict(Counter(pair.source for pair in pairs).most_common()),
        "annotators": len({(pair.source, pair.annotator) for pair in pairs}),
        "splits": dict(Counter(pair.split or "none named" for pair in pairs)),
        "speakers": len({pair.speaker for pair in pairs if pair.speaker}),
        "portraits": len({pair.portrait for pair in pairs if pair.portrait}),
        "aspects": aspects,
    }


def _sentences(
    pairs: Sequence[PreferencePair[str]], usable: Sequence[PreferencePair[str]], counts: dict[str, Any]
) -> list[str]:
    sentences = []
    if not usable:
        sentences.append("Nothing is left to learn from.")
    if counts["annotators"] == 1:
        sentences.append("One annotator only: agreement cannot be measured, and one taste is what would be learned.")
    for aspect, row in counts["aspects"].items():
        if row["ties"] >= USELESS_TIE_SHARE:
            sentences.append(f"{aspect.capitalize()} is {row['ties']:.0%} ties: it teaches next to nothing.")
        if row["alpha"] is not None and row["alpha"] <= 0:
            sentences.append(f"On {aspect} the annotators agree no better than chance (alpha {row['alpha']:.2f}).")
    by_split: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for pair in pairs:
        by_split[pair.split] |= _identities(pair)
    held_out = set().union(*(traces for split, traces in by_split.items() if split not in ("", TRAIN_SPLIT)))
    shared = Counter(kind for kind, _ in by_split[TRAIN_SPLIT] & held_out)
    for kind, count in shared.items():
        single = count == 1
        sentences.append(
            f"{count} {kind}{'' if single else 's'} of the training split also "
            f"{'occurs' if single else 'occur'} in another one: those training pairs are left out."
        )
    if not any(pair.split for pair in pairs):
        sentences.append("No split is named: leaks between training and measuring cannot be ruled out.")
    return sentences

"""What the answers say: per aspect and two systems, who is preferred and how sure that is.

    preferred = wins / (wins + losses)      p: exact two-sided binomial test of ½, ties left out (sign test)
    with ties = (wins + ties / 2) / all     p by person: the same test on each participant's own majority
    strengths: Bradley–Terry with ties      agreement: Krippendorff's alpha

The binomial test takes every answer as independent, which several answers of one person are not: where the two p
disagree, believe the one by person. p values are Holm-corrected over all rows of the table.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import holm_correction
from flowportrait.preference.agreement import krippendorff_alpha
from flowportrait.preference.pairs import Aspect, Pair, write_pairs
from flowportrait.study.attention import why_left_out
from flowportrait.study.bradley_terry import Vote, davidson
from flowportrait.study.plan import ANSWERS, MEDIA, QUESTIONS, Study
from flowportrait.study.store import Answers, Store
from flowportrait.written import write_text

PAIRS = "pairs.jsonl"


@dataclass(frozen=True)
class Row:
    """One aspect of two systems. preferred and its exact 95 % interval are system_a's; p_holm: corrected p."""

    aspect: Aspect
    system_a: str
    system_b: str
    wins: int
    losses: int
    ties: int
    preferred: float | None
    low: float | None
    high: float | None
    with_ties: float
    p: float
    p_person: float
    p_holm: float = 1.0


def analyse_study(folder: Path, output: Path) -> dict[str, Any]:
    """Write ``analysis.json`` (what is returned) and ``analysis.html`` into ``output``, ``pairs.jsonl`` into the study.

    Raises:
        BadInput: no study, no answers, or none that count.
    """
    study = Study.load(folder)
    if not (folder / ANSWERS).is_file():
        raise BadInput(f"{folder} has no answers yet: run 'flowportrait study serve {folder}' and take part.")
    everything = {number: said for number, said in Store(folder, study).everything().items() if number is not None}
    reasons = {number: why_left_out(study, said) for number, said in everything.items()}
    kept = {number: said for number, said in everything.items() if not reasons[number]}
    if not kept:
        counted = "; ".join(f"{n} {why}" for why, n in Counter(reasons.values()).items()) or "nobody answered"
        raise BadInput(f"{folder} has no answers that count ({counted}): ask more people.")
    votes = {aspect: _votes(study, kept, aspect) for aspect in QUESTIONS}
    rows = holm([row for aspect, own in votes.items() for row in _rows(aspect, own)])
    strengths = {aspect: davidson(own, study.systems) for aspect, own in votes.items()}
    analysis = {
        "study": study.title,
        "identity": study.identity,
        "systems": list(study.systems),
        "participants": len(everything),
        "kept": len(kept),
        "left_out": dict(Counter(why for why in reasons.values() if why)),
        "answers": sum(map(len, votes.values())),
        "preferences": [asdict(row) for row in rows],
        "strengths": {
            aspect: {
                "theta": found.theta,
                "half_width_95": {name: half if np.isfinite(half) else None for name, half in found.half.items()},
                "tie": found.tie, "interval": "sandwich by participant" if found.robust else "information matrix",
            }
            for aspect, found in strengths.items()
        },
        "agreement": {aspect: _alpha(study, kept, aspect) for aspect in QUESTIONS},
        "pairs": write_pairs(folder / PAIRS, export(study, kept)),
        "excluded_files": study.excluded or {},
    }  # fmt: skip
    from flowportrait.study.report import render_report

    output.mkdir(parents=True, exist_ok=True)
    for name, text in (("analysis.json", json.dumps(analysis, indent=2)), ("analysis.html", render_report(analysis))):
        write_text(output / name, text + "\n")
    return analysis


def export(study: Study, kept: dict[int, Answers]) -> list[Pair]:
    """Every answer that counts, without the checks, for the reward model."""
    return [
        Pair(
            prompt=one.prompt, a=f"{MEDIA}/{one.a}", b=f"{MEDIA}/{one.b}", aspects=dict(said[one.key]), source="study",
            annotator=f"p{number:03}", speaker=one.speaker, portrait=one.portrait, split=one.split,
        )
        for number, said in kept.items() for one in study.pairs if said.get(one.key)
    ]  # fmt: skip


def holm(rows: Sequence[Row]) -> list[Row]:
    """Holm's step-down correction over all rows."""
    corrected = holm_correction([row.p for row in rows])
    return [replace(row, p_holm=p or 0.0) for row, p in zip(rows, corrected, strict=True)]


def _votes(study: Study, kept: dict[int, Answers], aspect: Aspect) -> list[Vote]:
    return [
        Vote(number, one.system_a, one.system_b, said[one.key][aspect])
        for number, said in kept.items()
        for one in study.pairs
        if aspect in said.get(one.key, {})
    ]


def _rows(aspect: Aspect, votes: Sequence[Vote]) -> list[Row]:
    between: dict[tuple[str, str], list[Vote]] = defaultdict(list)
    for vote in votes:
        between[vote.system_a, vote.system_b].append(vote)
    rows = []
    for (one, other), own in between.items():
        labels = Counter(vote.label for vote in own)
        wins, losses, ties = labels["A"], labels["B"], labels["tie"]
        majority: Counter[int] = Counter()
        for vote in own:
            majority[vote.participant] += (vote.label == "A") - (vote.label == "B")
        for_a, for_b = sum(m > 0 for m in majority.values()), sum(m < 0 for m in majority.values())
        test = binomtest(wins, wins + losses) if wins + losses else None
        low, high = test.proportion_ci(method="exact") if test else (None, None)
        rows.append(
            Row(
                aspect, one, other, wins, losses, ties, wins / (wins + losses) if test else None, low, high,
                with_ties=(wins + ties / 2) / len(own),
                p=float(test.pvalue) if test else 1.0,
                p_person=float(binomtest(for_a, for_a + for_b).pvalue) if for_a + for_b else 1.0,
            )
        )  # fmt: skip
    return rows


def _alpha(study: Study, kept: dict[int, Answers], aspect: Aspect) -> float | None:
    judged = ([said.get(one.key, {}).get(aspect) for said in kept.values()] for one in study.pairs)
    return krippendorff_alpha([label for label in unit if label is not None] for unit in judged)

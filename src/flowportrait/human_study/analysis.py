"""This module analyses the answers of a study: which system is preferred in each aspect, and how certain that is.

The parts in order: the tests of preferences (``analyse_study`` writes ``analysis.json``, ``analysis.html`` and the
preference pairs), and the HTML page (``render_analysis``). The strengths of systems are in ``human_study.strengths``,
and the intervals that account for participants and pairs in ``human_study.clusters``.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import holm_correction
from flowportrait.files import write_text
from flowportrait.human_study.clusters import clustered_preferences
from flowportrait.human_study.plan import ANSWERS_FILE, MEDIA_FOLDER, QUESTIONS, Answers, AnswerStore, Study
from flowportrait.human_study.strengths import StudyVote, fit_strengths
from flowportrait.preferences.dataset import LABELS, PAIRS_FILE, Aspect, Label, PreferencePair, write_pairs
from flowportrait.preferences.inspection import krippendorff_alpha

# --- Preferences

CHECKED_ASPECT: Aspect = "overall"
"""The aspect of attention checks that is evaluated."""


@dataclass(frozen=True)
class PreferenceResult:
    """The result of one aspect for two systems.

        preferred = wins / (wins + losses)      p: exact two-sided binomial test of ½, ties left out (sign test)
        with_ties = (wins + ties / 2) / all     p_person: the same test on each participant's own majority

    The binomial test takes all answers as independent, which neither several answers of one person nor several about
    one pair are; ``p_person`` accounts for the persons. ``clustered_preferences`` accounts for both: report that.

    Args:
        aspect: the aspect.
        system_a: the first system.
        system_b: the second system.
        wins: answers that prefer ``system_a``.
        losses: answers that prefer ``system_b``.
        ties: answers that prefer neither.
        preferred: share of ``system_a`` without ties; None without wins and losses.
        low: lower end of the exact 95 % interval of ``preferred``.
        high: upper end of the interval.
        with_ties: share of ``system_a`` with every tie as half a win.
        p: p value over answers.
        p_person: p value over participants.
        p_holm: ``p``, Holm-corrected over all rows.
    """

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
    """Analyse a study, and write its results and preference pairs.

    Args:
        folder: folder of the study; ``pairs.jsonl`` is written into it.
        output: folder for ``analysis.json`` and ``analysis.html``.

    Returns:
        The content of ``analysis.json``.

    Raises:
        BadInput: there is no study, no answer, or no answer that counts.
    """
    study = Study.load(folder)
    if not (folder / ANSWERS_FILE).is_file():
        raise BadInput(
            f"{folder} has no answers yet: run 'flowportrait preferences study serve {folder}' and take part."
        )
    answers = AnswerStore(folder, study).all_answers()
    by_participant = {number: replies for number, replies in answers.items() if number is not None}
    reasons = {number: exclusion_reason(study, replies) for number, replies in by_participant.items()}
    counted_answers = {number: replies for number, replies in by_participant.items() if not reasons[number]}
    if not counted_answers:
        reasons_text = "; ".join(f"{n} {why}" for why, n in Counter(reasons.values()).items()) or "nobody answered"
        raise BadInput(f"{folder} has no answers that count ({reasons_text}): ask more people.")
    votes = {aspect: _votes_on(study, counted_answers, aspect) for aspect in QUESTIONS}
    rows = correct_p_values([row for aspect, of_aspect in votes.items() for row in _preference_rows(aspect, of_aspect)])
    strengths = {aspect: fit_strengths(of_aspect, study.systems) for aspect, of_aspect in votes.items()}
    analysis = {
        "study": study.title,
        "identity": study.identity,
        "systems": list(study.systems),
        "participants": len(by_participant),
        "kept": len(counted_answers),
        "left_out": dict(Counter(why for why in reasons.values() if why)),
        "answers": sum(map(len, votes.values())),
        "preferences": [asdict(row) for row in rows],
        "strengths": {
            aspect: {
                "theta": estimate.theta,
                "half_width_95": {name: half if np.isfinite(half) else None for name, half in estimate.half.items()},
                "tie": estimate.tie, "interval": "sandwich by participant" if estimate.robust else "information matrix",
            }
            for aspect, estimate in strengths.items()
        },
        "clustered": {
            aspect: [asdict(row) for row in clustered_preferences(of_aspect, study.systems)]
            for aspect, of_aspect in votes.items()
        },
        "agreement": {aspect: _agreement_alpha(study, counted_answers, aspect) for aspect in QUESTIONS},
        "pairs": write_pairs(folder / PAIRS_FILE, answers_to_pairs(study, counted_answers)),
        "excluded_files": study.excluded or {},
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    for name, text in (("analysis.json", json.dumps(analysis, indent=2)), ("analysis.html", render_analysis(analysis))):
        write_text(output / name, text + "\n")
    return analysis


def exclusion_reason(study: Study, answers: Answers) -> str:
    """Return why a participant's answers do not count, or an empty string if they do.

    Answers do not count if the participant did not prefer the intact video to a damaged one overall, preferred one of
    two identical videos overall in more than half of such checks, or stopped before the first damaged video.
    """
    labels: dict[str, list[Label]] = {"broken": [], "identical": []}
    for check in study.checks:
        if CHECKED_ASPECT in (replies := answers.get(check.key, {})):
            labels[check.kind].append(replies[CHECKED_ASPECT])
    if any(label is not Label.FIRST for label in labels["broken"]):
        return "did not prefer the intact video to a ruined one"
    if 2 * sum(label is not Label.TIE for label in labels["identical"]) > max(1, len(labels["identical"])):
        return "preferred one of two identical videos"
    if not labels["broken"] and any(check.kind == "broken" for check in study.checks):
        return "stopped before the first attention check"
    return ""


def answers_to_pairs(study: Study, counted_answers: dict[int, Answers]) -> list[PreferencePair[str]]:
    """Return every answer that counts as a preference pair to learn from, without the attention checks."""
    return [
        PreferencePair(
            prompt=one.prompt, first=f"{MEDIA_FOLDER}/{one.a}", second=f"{MEDIA_FOLDER}/{one.b}",
            labels=dict(answers[one.key]),
            source="study", annotator=f"p{number:03}", speaker=one.speaker, portrait=one.portrait, split=one.split,
        )
        for number, answers in counted_answers.items() for one in study.pairs if answers.get(one.key)
    ]  # fmt: skip


def correct_p_values(rows: Sequence[PreferenceResult]) -> list[PreferenceResult]:
    """Return the rows with p values corrected by Holm's step-down method over all rows."""
    corrected = holm_correction([row.p for row in rows])
    return [replace(row, p_holm=p or 0.0) for row, p in zip(rows, corrected, strict=True)]


def _votes_on(study: Study, counted_answers: dict[int, Answers], aspect: Aspect) -> list[StudyVote]:
    return [
        StudyVote(number, one.system_a, one.system_b, answers[one.key][aspect], one.key)
        for number, answers in counted_answers.items()
        for one in study.pairs
        if aspect in answers.get(one.key, {})
    ]


def _preference_rows(aspect: Aspect, votes: Sequence[StudyVote]) -> list[PreferenceResult]:
    between: dict[tuple[str, str], list[StudyVote]] = defaultdict(list)
    for vote in votes:
        between[vote.system_a, vote.system_b].append(vote)
    rows = []
    for (one, other), of_pair in between.items():
        labels = Counter(vote.label for vote in of_pair)
        wins, losses, ties = (labels[label] for label in LABELS)
        majority: Counter[int] = Counter()
        for vote in of_pair:
            majority[vote.participant] += (vote.label is Label.FIRST) - (vote.label is Label.SECOND)
        for_a, for_b = sum(m > 0 for m in majority.values()), sum(m < 0 for m in majority.values())
        test = binomtest(wins, wins + losses) if wins + losses else None
        low, high = test.proportion_ci(method="exact") if test else (None, None)
        rows.append(
            PreferenceResult(
                aspect, one, other, wins, losses, ties, wins / (wins + losses) if test else None, low, high,
                with_ties=(wins + ties / 2) / len(of_pair),
                p=float(test.pvalue) if test else 1.0,
                p_person=float(binomtest(for_a, for_a + for_b).pvalue) if for_a + for_b else 1.0,
            )
        )  # fmt: skip
    return rows


def _agreement_alpha(study: Study, counted_answers: dict[int, Answers], aspect: Aspect) -> float | None:
    judged = ([answers.get(one.key, {}).get(aspect) for answers in counted_answers.values()] for one in study.pairs)
    return krippendorff_alpha([label for label in unit if label is not None] for unit in judged)


# --- The page

ASPECT_TITLES = {"sync": "Lip sync", "expression": "Expression", "motion": "Motion", "overall": "Overall"}


def render_analysis(analysis: dict[str, Any]) -> str:
    """Return the HTML page of an analysis; it loads nothing from elsewhere.

    It shows numbers of participants and answers, a bar of wins, ties and losses for every row, the strengths with their
    intervals, and the agreement (Krippendorff's alpha).
    """
    cards = [
        (analysis["kept"], f"of {analysis['participants']} participants count"),
        (analysis["answers"], "answers"),
        (len(analysis["systems"]), "systems"),
    ]
    body = [f"<div class=cards>{''.join(f'<div class=card><b>{n}</b>{escape(what)}</div>' for n, what in cards)}</div>"]
    body += ["<h2>Who is preferred</h2>", _preferences_table(analysis["preferences"])]
    body += [
        "<p class=soft>Preferred: share of wins without ties, with its exact 95 % interval. p: exact two-sided "
        "binomial test against ½, ties left out, taking every answer as independent. By person: the same test on each "
        "participant's own majority. Holm: p corrected for all rows.</p>",
        "<h2>With the dependence of answers</h2>",
        _clustered_table(analysis["clustered"]),
        "<p class=soft>Answers of one participant, and answers about one pair, are alike. Intervals are from a "
        "bootstrap over participants and pairs, and never narrower than for independent answers. Design effect: "
        "the variance relative to that of independent answers. Strength: difference of the Bradley–Terry θ.</p>",
    ]
    body += [
        "<h2>Strengths</h2>",
        *(_strengths_plot(k, v, analysis["systems"]) for k, v in analysis["strengths"].items()),
    ]
    body += [
        "<p class=soft>Bradley–Terry with ties (Davidson), log scale, mean zero, with 95 % intervals "
        f"({escape(next(iter(analysis['strengths'].values()))['interval'])}).</p>"
    ]
    body += ["<h2>Agreement</h2>", _agreement_cards(analysis["agreement"])]
    notes = [f"{n} participant{'s' * (n > 1)} left out: {escape(why)}." for why, n in analysis["left_out"].items()]
    notes += [f"{escape(name)} is not in the study: {escape(why)}" for name, why in analysis["excluded_files"].items()]
    if notes:
        body += ["<h2>Left out</h2><ul>", *(f"<li>{note}</li>" for note in notes), "</ul>"]
    title = escape(analysis["study"])
    style = (files("flowportrait") / "human_study" / "page" / "analysis.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{title}</title><style>{style}</style><h1>{title}</h1>{''.join(body)}</html>"
    )


def format_p_value(p: float) -> str:
    """Return a p value as text, with three decimals or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _preferences_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        total = row["wins"] + row["ties"] + row["losses"]
        parts = "".join(f'<i style="width:{100 * row[k] / total:.1f}%"></i>' for k in ("wins", "ties", "losses"))
        share = "–"
        if row["preferred"] is not None:
            share = f"{row['preferred']:.0%} <small>{row['low']:.0%}–{row['high']:.0%}</small>"
        cells = (
            ASPECT_TITLES[row["aspect"]], f"{escape(row['system_a'])} <small>over</small> {escape(row['system_b'])}",
            f'<div class=bar>{parts}</div>', f"{row['wins']} / {row['ties']} / {row['losses']}", share,
            format_p_value(row["p"]), format_p_value(row["p_person"]), format_p_value(row["p_holm"]),
        )  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("", "", "", "won / same / lost", "preferred", "p", "by person", "Holm")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead>{''.join(lines)}</table></div>"


def _clustered_table(by_aspect: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for aspect, rows in by_aspect.items():
        for row in rows:
            cells = (
                ASPECT_TITLES[aspect], f"{escape(row['system_a'])} <small>over</small> {escape(row['system_b'])}",
                f"{row['participants']} × {row['pairs']}", format_clustered_share(row), format_p_value(row["p"]),
                f"{row['design_effect']:.1f}",
                f"{row['strength']:+.2f} <small>{row['strength_low']:+.2f} to {row['strength_high']:+.2f}</small>",
            )  # fmt: skip
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("", "", "participants × pairs", "preferred", "p", "design effect", "strength")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead>{''.join(lines)}</table></div>"


def format_clustered_share(row: dict[str, Any]) -> str:
    """Return a preferred share with its interval as text; a dash without wins and losses."""
    return "–" if row["preferred"] is None else f"{row['preferred']:.0%} ({row['low']:.0%}–{row['high']:.0%})"


def _strengths_plot(aspect: str, found: dict[str, Any], systems: list[str]) -> str:
    halves = {name: found["half_width_95"][name] or 0.0 for name in systems}
    reach = max([abs(found["theta"][name]) + halves[name] for name in systems] + [1.0])
    height = 28 * len(systems) + 34

    def x(value: float) -> float:
        return 500 + 260 * value / reach

    marks = []
    ranked = sorted(systems, key=lambda name: -found["theta"][name])
    for line, name in enumerate(ranked):
        y, at = 42 + 28 * line, found["theta"][name]
        marks.append(
            f'<text x="220" y="{y + 4}" text-anchor="end">{escape(name)}</text>'
            f'<line x1="{x(at - halves[name]):.1f}" x2="{x(at + halves[name]):.1f}" y1="{y}" y2="{y}" '
            f'stroke="var(--a)" stroke-width="2"/><circle cx="{x(at):.1f}" cy="{y}" r="5" fill="var(--a)"/>'
            f'<text class="soft" x="780" y="{y + 4}">{at:+.2f} ± {halves[name]:.2f}</text>'
        )
    return (
        f'<svg viewBox="0 0 900 {height}" role="img" aria-label="Strengths, {ASPECT_TITLES[aspect]}">'
        f'<text x="0" y="16" font-weight="600">{ASPECT_TITLES[aspect]}</text>'
        f'<line x1="500" x2="500" y1="26" y2="{height - 6}" stroke="var(--line)"/>{"".join(marks)}</svg>'
    )


def _agreement_cards(alphas: dict[str, float | None]) -> str:
    cells = "".join(
        f"<div class=card><b>{'–' if alpha is None else f'{alpha:.2f}'}</b>{ASPECT_TITLES[aspect]}</div>"
        for aspect, alpha in alphas.items()
    )
    legend = "Krippendorff's alpha: 1 agreement, 0 chance; – cannot be said."
    return f"<div class=cards>{cells}</div><p class=soft>{legend}</p>"

"""The analysis as one HTML page without anything from elsewhere: cards, a bar of wins, ties and losses per row, and the
strengths with their intervals."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from typing import Any

TITLES = {"sync": "Lip sync", "expression": "Expression", "motion": "Motion", "overall": "Overall"}


def render_report(analysis: dict[str, Any]) -> str:
    """The page."""
    cards = [
        (analysis["kept"], f"of {analysis['participants']} participants count"),
        (analysis["answers"], "answers"),
        (len(analysis["systems"]), "systems"),
    ]
    body = [f"<div class=cards>{''.join(f'<div class=card><b>{n}</b>{escape(what)}</div>' for n, what in cards)}</div>"]
    body += ["<h2>Who is preferred</h2>", _preferences(analysis["preferences"])]
    body += [
        "<p class=soft>Preferred: share of wins without ties, with its exact 95 % interval. p: exact two-sided "
        "binomial test against ½, ties left out, taking every answer as independent. By person: the same test on each "
        "participant's own majority. Holm: p corrected for all rows.</p>"
    ]
    body += ["<h2>Strengths</h2>", *(_forest(k, v, analysis["systems"]) for k, v in analysis["strengths"].items())]
    body += [
        "<p class=soft>Bradley–Terry with ties (Davidson), log scale, mean zero, with 95 % intervals "
        f"({escape(next(iter(analysis['strengths'].values()))['interval'])}).</p>"
    ]
    body += ["<h2>Agreement</h2>", _agreement(analysis["agreement"])]
    notes = [f"{n} participant{'s' * (n > 1)} left out: {escape(why)}." for why, n in analysis["left_out"].items()]
    notes += [f"{escape(name)} is not in the study: {escape(why)}" for name, why in analysis["excluded_files"].items()]
    if notes:
        body += ["<h2>Left out</h2><ul>", *(f"<li>{note}</li>" for note in notes), "</ul>"]
    title = escape(analysis["study"])
    style = (files("flowportrait") / "study" / "page" / "analysis.css").read_text(encoding="utf-8")
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{title}</title><style>{style}</style><h1>{title}</h1>{''.join(body)}</html>"
    )


def probability(p: float) -> str:
    """A p value as people write it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _preferences(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        total = row["wins"] + row["ties"] + row["losses"]
        parts = "".join(f'<i style="width:{100 * row[k] / total:.1f}%"></i>' for k in ("wins", "ties", "losses"))
        share = "–"
        if row["preferred"] is not None:
            share = f"{row['preferred']:.0%} <small>{row['low']:.0%}–{row['high']:.0%}</small>"
        cells = (
            TITLES[row["aspect"]], f"{escape(row['system_a'])} <small>over</small> {escape(row['system_b'])}",
            f'<div class=bar>{parts}</div>', f"{row['wins']} / {row['ties']} / {row['losses']}", share,
            probability(row["p"]), probability(row["p_person"]), probability(row["p_holm"]),
        )  # fmt: skip
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("", "", "", "won / same / lost", "preferred", "p", "by person", "Holm")
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead>{''.join(lines)}</table></div>"


def _forest(aspect: str, found: dict[str, Any], systems: list[str]) -> str:
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
        f'<svg viewBox="0 0 900 {height}" role="img" aria-label="Strengths, {TITLES[aspect]}">'
        f'<text x="0" y="16" font-weight="600">{TITLES[aspect]}</text>'
        f'<line x1="500" x2="500" y1="26" y2="{height - 6}" stroke="var(--line)"/>{"".join(marks)}</svg>'
    )


def _agreement(alphas: dict[str, float | None]) -> str:
    cells = "".join(
        f"<div class=card><b>{'–' if alpha is None else f'{alpha:.2f}'}</b>{TITLES[aspect]}</div>"
        for aspect, alpha in alphas.items()
    )
    legend = "Krippendorff's alpha: 1 agreement, 0 chance; – cannot be said."
    return f"<div class=cards>{cells}</div><p class=soft>{legend}</p>"

"""By whom: figures and detector failures per group of clips (language, skin tone, age …), with counts.

A table (CSV) names the clips in its column ``clip`` and their labels in the others:

    clip,language,skin tone
    00154,Arabic,III
"""

from __future__ import annotations

import csv
import html
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.evaluate.compare import Row, bootstrap, column
from flowportrait.evaluate.metrics import BY_KEY
from flowportrait.evaluate.table import number

SHOWN = ("sync_in_time", "sync_in_time_short", "ler", "ecs", "tfi", "identity_kept", "csim")

Labels = dict[str, dict[str, str]]
"""labels[column][clip]."""


def read_labels(path: Path) -> Labels:
    """The table.

    Raises:
        BadInput: missing, without a column ``clip`` and another one, or with no line.
    """
    if not path.is_file():
        raise BadInput(f"No table of groups at {path}: give a CSV file with a column 'clip'.")
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = list(csv.DictReader(stream))
    if not lines or "clip" not in lines[0] or len(lines[0]) < 2:
        raise BadInput(f"{path} needs a column 'clip' and at least one column of labels, with a line per clip.")
    names = [name for name in lines[0] if name and name != "clip"]
    return {name: {line["clip"]: (line[name] or "").strip() for line in lines if line[name]} for name in names}


def by_group(
    rows: dict[str, dict[str, Row]], labels: Labels, excluded: list[dict[str, str]]
) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """found[column][label][system]: clips, frames, frames without a face, files left out, and each shown metric as
    mean, low, high."""
    found: dict[str, dict[str, dict[str, dict[str, Any]]]] = {}
    for name, of_clip in labels.items():
        for label in sorted(set(of_clip.values())):
            for system, clips in rows.items():
                own = {clip: row for clip, row in clips.items() if of_clip.get(clip) == label}
                left = [e for e in excluded if e["system"] == system and of_clip.get(Path(e["file"]).stem) == label]
                if not own and not left:
                    continue
                values = {key: column(own, key)[1] for key in SHOWN}
                estimates = {key: bootstrap(v) for key, v in values.items() if len(v)}
                found.setdefault(name, {}).setdefault(label, {})[system] = {
                    "clips": len(own),
                    "frames": sum(int(row.get("frames") or 0) for row in own.values()),
                    "frames_without_face": sum(int(row.get("frames_without_face") or 0) for row in own.values()),
                    "left_out": len(left),
                    "metrics": {key: [e.mean, e.low, e.high] for key, e in estimates.items()},
                }
    return found


def groups_table(groups: dict[str, dict[str, dict[str, dict[str, Any]]]]) -> str:
    """HTML: a table per column of labels."""
    return "".join(f"<h3>{html.escape(name)}</h3>{_one(labels)}" for name, labels in groups.items())


def _one(labels: dict[str, dict[str, dict[str, Any]]]) -> str:
    entries = [entry for systems in labels.values() for entry in systems.values()]
    shown = [key for key in SHOWN if any(key in entry["metrics"] for entry in entries)]
    head = "".join(f"<th>{BY_KEY[key].title}</th>" for key in shown)
    lines = []
    for label, systems in labels.items():
        for system, entry in systems.items():
            cells = "".join(f"<td>{_cell(entry['metrics'].get(key), key)}</td>" for key in shown)
            lost = f"{entry['frames_without_face']} of {entry['frames']}"
            lines.append(
                f"<tr><th>{html.escape(label)}</th><td>{html.escape(system)}</td><td>{entry['clips']}</td>"
                f"<td>{lost}</td><td>{entry['left_out']}</td>{cells}</tr>"
            )
    return (
        "<div class=scroll><table><thead><tr><th></th><th>system</th><th>clips</th><th>frames without face</th>"
        f"<th>left out</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(values: list[float] | None, key: str) -> str:
    if values is None:
        return "<span class=none>–</span>"
    mean, *interval = (number(value, BY_KEY[key]) for value in values if value is not None)
    return f"<b>{mean}</b>" + (f"<small>{' … '.join(interval)}</small>" if interval else "")

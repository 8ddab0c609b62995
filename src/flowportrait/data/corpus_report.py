"""An overview of a corpus in one HTML file: figures, faces, mouths, and examples of what was rejected."""

from __future__ import annotations

import base64
import html
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flowportrait.data.corpus import REJECTED_LIST, FaceClip, Record, corpus_records, read_records
from flowportrait.files import write_text
from flowportrait.media.video import FPS

REPORT_FACES = 40
REPORT_EXAMPLES = 8
REPORT_SPEAKERS = 30
MEASURE_TITLES = {
    "frames": "length (s)", "eyes": "px between the eyes", "yaw": "head turned (degrees)", "sharpness": "sharpness",
    "light": "brightness", "speech": "share of speech", "sync": "sync margin", "delay": "sound late (frames)",
}  # fmt: skip
REPORT_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1100px; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .9em .25em 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums } figure { display: inline-block; margin: 0 6px 6px 0 }
figcaption { font-size: 11px; color: #666; width: 128px; overflow: hidden; white-space: nowrap }
img { display: block } h2 { margin-top: 2em; font-size: 1.15em } .small { color: #666 }
"""


def write_corpus_report(corpus: Path) -> dict[str, Any]:
    """Write ``report.html`` into a corpus and return its path and the main figures.

    Raises:
        BadInput: the folder is no corpus.
    """
    accepted, rejected = corpus_records(corpus), list(read_records(corpus / REJECTED_LIST))
    reasons = Counter(str(record.get("reason", "unnamed")) for record in rejected)
    hours = sum(record["frames"] for record in accepted) / FPS / 3600
    speakers = len({record["speaker"] for record in accepted})
    parts = [
        f"<h1>Corpus {html.escape(corpus.resolve().name)}</h1>",
        f"<p>{len(accepted)} clips, {hours:.2f} hours, {speakers} speakers; "
        f"{len(rejected)} clips or videos rejected.</p>",
        _splits(accepted),
        "<h2>Kept: what was measured</h2>",
        _histograms(accepted),
        "<h2>Kept: faces</h2>",
        _faces(corpus, _evenly_spaced(accepted, REPORT_FACES)),
        "<h2>Kept: mouths through a clip</h2>",
        _mouths(corpus, _evenly_spaced(accepted, REPORT_EXAMPLES)),
        "<h2>Rejected</h2>",
        *(_reason(corpus, reason, count, rejected) for reason, count in reasons.most_common()),
        "<h2>Speakers</h2>",
        _speakers(accepted),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>Corpus</title><style>{REPORT_STYLE}</style>{''.join(parts)}"
    target = corpus / "report.html"
    write_text(target, page)
    return {"report": str(target), "clips": len(accepted), "hours": round(hours, 3), "rejected": dict(reasons)}


def _evenly_spaced(records: Sequence[Record], count: int) -> list[Record]:
    """Return ``count`` records evenly spaced over the list, so that no speaker fills the page."""
    places = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int))
    return [records[place] for place in places] if records else []


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = []
    for first, *rest in rows:
        numbers = "".join(f"<td class=n>{html.escape(str(value))}</td>" for value in rest)
        lines.append(f"<tr><td>{html.escape(str(first))}</td>{numbers}</tr>")
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _splits(accepted: list[Record]) -> str:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in accepted:
        groups[record["split"]].append(record)
    rows = [
        (name, len(records), len({r["speaker"] for r in records}), _minutes(records))
        for name, records in sorted(groups.items())
    ]
    return _table(("split", "clips", "speakers", "minutes"), rows)


def _speakers(accepted: list[Record]) -> str:
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in accepted:
        groups[record["speaker"]].append(record)
    order = sorted(groups.items(), key=lambda item: -sum(r["frames"] for r in item[1]))
    rows = [(name, records[0]["split"], len(records), _minutes(records)) for name, records in order[:REPORT_SPEAKERS]]
    more = f"<p class=small>and {len(order) - REPORT_SPEAKERS} more</p>" if len(order) > REPORT_SPEAKERS else ""
    return _table(("speaker", "split", "clips", "minutes"), rows) + more


def _minutes(records: list[Record]) -> str:
    return f"{sum(record['frames'] for record in records) / FPS / 60:.1f}"


def _histograms(accepted: list[Record]) -> str:
    """Return one small histogram for each measure that the records hold."""
    from matplotlib.figure import Figure

    columns = {name: [r[name] for r in accepted if r.get(name) is not None] for name in MEASURE_TITLES}
    columns = {name: values for name, values in columns.items() if values}
    if not columns:
        return "<p class=small>Nothing was measured.</p>"
    rows = -(-len(columns) // 4)
    figure = Figure((11, 2.1 * rows), dpi=100, layout="constrained")
    for place, (name, values) in enumerate(columns.items()):
        axes = figure.add_subplot(rows, 4, place + 1)
        scale = FPS if name == "frames" else 1
        axes.hist(np.array(values) / scale, bins=30, color="#4477aa")
        axes.set_title(MEASURE_TITLES[name], fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return _image(content.getvalue(), "png")


def _faces(corpus: Path, records: Sequence[Record]) -> str:
    pictures = ((record, corpus / "pictures" / f"{record['name']}.jpg") for record in records)
    figures = [_figure(path.read_bytes(), "jpeg", record["name"]) for record, path in pictures if path.is_file()]
    return "".join(figures) or "<p class=small>This corpus was prepared without pictures.</p>"


def _mouths(corpus: Path, records: Sequence[Record]) -> str:
    """Return twelve stabilised mouths of each clip in a row: a track that slips is seen here first."""
    strips = []
    for record in records:
        path = corpus / "clips" / f"{record['name']}.safetensors"
        if path.is_file():
            mouth = FaceClip.load(path).mouth
            row = np.hstack(mouth[np.linspace(0, len(mouth) - 1, 12).round().astype(int)])
            _, content = cv2.imencode(".jpg", row)
            strips.append(_image(content.tobytes(), "jpeg"))
    return "".join(strips)


def _reason(corpus: Path, reason: str, count: int, rejected: list[Record]) -> str:
    matching = [record for record in rejected if record.get("reason", "unnamed") == reason]
    sentences = "".join(f"<li>{html.escape(str(record['rejected']))}</li>" for record in matching[:3])
    pictures = [record for record in matching if (corpus / "pictures" / f"{record['name']}.jpg").is_file()]
    figures = _faces(corpus, _evenly_spaced(pictures, REPORT_EXAMPLES)) if pictures else ""
    return f"<h3>{html.escape(reason)}: {count}</h3><ul class=small>{sentences}</ul>{figures}"


def _figure(content: bytes, kind: str, caption: str) -> str:
    return f"<figure>{_image(content, kind)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _image(content: bytes, kind: str) -> str:
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'

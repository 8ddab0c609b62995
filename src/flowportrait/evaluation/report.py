"""The HTML report of an evaluation: one self-contained file, readable offline and printable.

It begins with the changes in words; then come the videos, the table with intervals, the worst clips, and how it was
measured and what was left out. Contact sheets (frames with zooms on the mouth) and animated pictures come first in this
file, then the page, then its list of worst clips.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from importlib.resources import files as package_files
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from flowportrait.errors import BadInput
from flowportrait.evaluation.comparison import SystemComparison
from flowportrait.evaluation.control import ControlledGain, html_control_table
from flowportrait.evaluation.figures import (
    KEY_METRICS,
    SIGNIFICANCE_LEVEL,
    badness,
    curves_svg,
    distributions_svg,
    format_metric,
    ground_truth_name,
    html_groups_table,
    html_table,
    intervals_svg,
    radar_svg,
    rate_difference,
    strips_svg,
)
from flowportrait.evaluation.metrics import METRIC_BY_KEY, METRICS, REAL
from flowportrait.files import atomic_write, write_text
from flowportrait.media.crop import canonical_transform
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import FPS, iter_frames

# --- Contact sheets and animated pictures ---

SHEET_CELL_WIDTH = 192
"""Width in pixels of a frame on a contact sheet."""
MOUTH_ZOOM_WIDTH = 0.9
"""Width of the mouth zoom in outer-eye-corner distances."""
SHEET_GAP = 4
_LABEL_HEIGHT = 20


def draw_contact_sheet(path: Path, columns: int = 10) -> np.ndarray:
    """Draw evenly spaced frames of a video side by side, each with its time and a zoom on its mouth.

    Frames without a face have an empty zoom.

    Args:
        path: the video.
        columns: number of frames.

    Returns:
        The sheet ``[H, W, 3]`` uint8 RGB.

    Raises:
        BadInput: the file is missing or cannot be decoded.
    """
    total = sum(1 for _ in iter_frames(path))
    chosen = np.unique(np.linspace(0, total - 1, min(columns, total)).round().astype(int))
    cells = []
    with FaceTracker(still=True) as tracker:
        for index, frame in enumerate(iter_frames(path)):
            if index in chosen:
                faces = tracker.detect(frame)
                cells.append(_cell(frame, faces[0][0] if faces else None, index / FPS))
    gap = np.full((cells[0].shape[0], SHEET_GAP, 3), 255, np.uint8)
    return np.hstack([piece for cell in cells for piece in (cell, gap)][:-1])


def _cell(frame: np.ndarray, landmarks: np.ndarray | None, seconds: float) -> np.ndarray:
    picture = (
        _face_view(frame, landmarks)
        if landmarks is not None
        else cv2.resize(_square(frame), (SHEET_CELL_WIDTH, SHEET_CELL_WIDTH))
    )
    zoom = np.full((round(SHEET_CELL_WIDTH * 0.62), SHEET_CELL_WIDTH, 3), 255, np.uint8)
    if landmarks is not None:
        matrix = canonical_transform(landmarks) * (SHEET_CELL_WIDTH / MOUTH_ZOOM_WIDTH)
        matrix[:, 2] += (
            np.array([SHEET_CELL_WIDTH / 2, zoom.shape[0] / 2])
            - np.array([0.0, 0.84]) * SHEET_CELL_WIDTH / MOUTH_ZOOM_WIDTH
        )
        zoom = cv2.warpAffine(frame, matrix, zoom.shape[1::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    label = np.full((_LABEL_HEIGHT, SHEET_CELL_WIDTH, 3), 255, np.uint8)
    cv2.putText(label, f"{seconds:.2f} s", (2, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (90, 90, 90), 1, cv2.LINE_AA)
    return np.vstack([label, picture, np.full((SHEET_GAP, SHEET_CELL_WIDTH, 3), 255, np.uint8), zoom])


def _square(frame: np.ndarray) -> np.ndarray:
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return frame[top : top + side, left : left + side]


def _face_view(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Crop a square of 1.9 face heights around the head, moved inside the frame if it fits."""
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    side = min(1.9 * float((high - low).max()), *frame.shape[:2])
    centre = np.clip((low + high) / 2, side / 2, np.array(frame.shape[1::-1]) - side / 2)
    matrix = np.array([[1.0, 0, side / 2 - centre[0]], [0, 1.0, side / 2 - centre[1]]]) * (SHEET_CELL_WIDTH / side)
    flags = cv2.INTER_AREA if side > SHEET_CELL_WIDTH else cv2.INTER_CUBIC
    if side > 1.5 * SHEET_CELL_WIDTH:
        frame = cv2.GaussianBlur(frame, (0, 0), 0.4 * side / SHEET_CELL_WIDTH)
    return cv2.warpAffine(
        frame, matrix, (SHEET_CELL_WIDTH, SHEET_CELL_WIDTH), flags=flags, borderMode=cv2.BORDER_REPLICATE
    )


_QUALITY = 60


def write_animated_webp(
    videos: Sequence[Path], target: Path, side: int = 256, seconds: float = 6.0, every: int = 2
) -> None:
    """Write an endless animated WebP of square videos side by side, as long as the shortest of them.

    Args:
        videos: the videos.
        target: file to write.
        side: side of each video in pixels.
        seconds: length of the beginning that is shown.
        every: use every n-th frame.

    Raises:
        BadInput: a file is missing or cannot be decoded.
    """
    streams = [islice(iter_frames(path), 0, round(seconds * FPS), every) for path in videos]
    frames = [
        Image.fromarray(np.hstack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in at_once]))
        for at_once in zip(*streams, strict=False)
    ]
    with atomic_write(target) as unfinished:
        frames[0].save(
            unfinished, "WEBP", save_all=True, append_images=frames[1:], duration=1000 * every // FPS, loop=0,
            quality=_QUALITY, method=4,
        )  # fmt: skip


# --- The page ---

MAX_EMBEDDED_VIDEO_BYTES = 40_000_000
"""Bytes up to which a video is embedded; larger files are only named."""
HEADLINE_METRICS = ("ler", "sync_in_time", "sync_in_time_short", "ecs", "tfi", "silent_lip")
MAX_REMARKS = 40


def write_html_report(
    output: Path,
    *,
    title: str,
    comparison: SystemComparison,
    videos: dict[str, Path],
    curves: list[dict[str, float]] | None,
    notes: list[str],
    files: dict[str, dict[str, Path]] | None = None,
    controlled: Sequence[ControlledGain] = (),
) -> Path:
    """Write a self-contained HTML page and return its path.

    Args:
        output: the page.
        title: its heading.
        comparison: the results.
        videos: one example per system, shown side by side.
        curves: one row per post-training iteration with ``iteration`` and any logged quantities.
        notes: sentences printed under the table.
        files: ``files[system][clip]``, for pictures of the worst clips.
        controlled: gains beside those of the random-reward control.
    """
    sections = [
        _headline(comparison),
        _videos(videos),
        _section("Metrics", html_table(comparison) + _notes(comparison, notes)),
        _section(
            "Against chance",
            html_control_table(controlled),
            "Gain over the starting point, beside the gain of the same training with random rewards.",
        ),
        _section("By group", html_groups_table(comparison.groups)),
        _section("Against real footage", radar_svg(comparison), "1 − |m − real| / |real|: the rim is real footage."),
        _section("Intervals", intervals_svg(comparison), "Mean and 95 % interval."),
        _section("Every clip", distributions_svg(comparison), "A dot is a clip, the bar is the median."),
        _section(
            "Clip by clip",
            strips_svg(comparison),
            "A column is a clip; red is worse than the other clips, blue is better.",
        ),
        _section("Worst clips", html_worst_clips(comparison, files or {})),
        _section("Post-training", curves_svg(curves) if curves else "", "Thin: each iteration. Thick: running mean."),
        _section("Frame by frame", _sheets(videos)),
        _section("Excluded files and remarks", _left_out(comparison)),
        _section("Networks", _networks(comparison)),
        _section("Meaning of the metrics", _glossary(comparison)),
    ]
    page = (package_files("flowportrait.evaluation") / "report.html").read_text(encoding="utf-8")
    page = page.replace("{{title}}", html.escape(title)).replace("{{body}}", "\n".join(filter(None, sections)))
    write_text(output, page)
    return output


def _section(heading: str, body: str, lead: str = "") -> str:
    if not body:
        return ""
    lead = f"<p class=lead>{lead}</p>" if lead else ""
    return f"<section><h2>{heading}</h2>{lead}{body}</section>"


def _headline(comparison: SystemComparison) -> str:
    """Return cards with the relative change of the headline metrics, if one system is compared with a baseline."""
    if len({difference.system for difference in comparison.differences}) != 1:
        return ""
    cards = []
    for difference in comparison.differences:
        if difference.metric in HEADLINE_METRICS and difference.change is not None:
            metric = METRIC_BY_KEY[difference.metric]
            kind = rate_difference(difference, metric)
            p = "" if difference.p is None else f" · p {_format_p(difference.p)}"
            cards.append(
                f"<div class='card {kind}'><b>{difference.change:+.0%}</b><span>{metric.title}</span>"
                f"<small>{html.escape(difference.system)} against {html.escape(difference.baseline)}, "
                f"{difference.difference.clips} clips{p}</small></div>"
            )
    return f"<section class=cards>{''.join(cards)}</section>" if cards else ""


def _format_p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"


def _notes(comparison: SystemComparison, notes: list[str]) -> str:
    lines = [*notes]
    if comparison.baseline:
        lines.append(
            f"Percentages: relative to {comparison.baseline} on the same clips; * = Wilcoxon signed-rank, "
            f"Holm-corrected p < {SIGNIFICANCE_LEVEL}."
        )
    if ground_truth_name(comparison) is None:
        lines.append("No real footage was given, so there is no ground-truth column for comparison.")
    return _list(lines)


def _list(lines: list[str], kind: str = "notes") -> str:
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul class={kind}>{items}</ul>" if lines else ""


def _left_out(comparison: SystemComparison) -> str:
    excluded = [f"{e['system']}/{e['file']}, left out: {e['reason']}" for e in comparison.excluded]
    more = len(comparison.remarks) - MAX_REMARKS
    tail = [f"… and {more} more in metrics.json."] if more > 0 else []
    return _list(excluded + comparison.remarks[:MAX_REMARKS] + tail)


def _networks(comparison: SystemComparison) -> str:
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in comparison.networks.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _glossary(comparison: SystemComparison) -> str:
    measured = [m for m in METRICS if any(m.key in estimates for estimates in comparison.estimates.values())]
    return "<dl>" + "".join(f"<dt>{m.title}</dt><dd>{html.escape(m.meaning)}</dd>" for m in measured) + "</dl>"


def _videos(videos: dict[str, Path]) -> str:
    figures = []
    for name, path in videos.items():
        if path.stat().st_size > MAX_EMBEDDED_VIDEO_BYTES:
            body = f"<p class=lead>{html.escape(path.name)} is too large to embed.</p>"
        else:
            data = base64.b64encode(path.read_bytes()).decode()
            body = f"<video controls playsinline preload=metadata src='data:video/mp4;base64,{data}'></video>"
        figures.append(f"<figure>{body}<figcaption>{html.escape(name)}</figcaption></figure>")
    if not figures:
        return ""
    both = "<button type=button onclick='playAll()'>Play together</button>" if len(figures) > 1 else ""
    return f"<section class=seen><h2>Videos</h2>{both}<div class=videos>{''.join(figures)}</div></section>"


def _sheets(videos: dict[str, Path]) -> str:
    return "".join(
        f"<figure class=sheet><figcaption>{html.escape(name)}</figcaption>"
        f"<img alt='frames of {html.escape(name)}, mouths below' "
        f"src='{jpeg_data_url(draw_contact_sheet(path), 88)}'></figure>"
        for name, path in videos.items()
    )


# --- The worst clips ---

WORST_CLIPS_LISTED = 5
"""Clips per system."""
WORST_CLIP_SHEETS = 2
"""Contact sheets per system."""
WORST_METRICS_NAMED = 3
"""Metrics that are named per clip."""


def rank_clips(comparison: SystemComparison, system: str) -> list[tuple[str, float, list[str]]]:
    """Rank the clips of a system from worst to best.

    Returns:
        Name of each clip, the mean ``badness`` of its three worst metrics, and the keys of those metrics.
    """
    ranked = []
    for clip, row in comparison.rows[system].items():
        scores = {k: badness(comparison, METRIC_BY_KEY[k], row[k]) for k in KEY_METRICS if row.get(k) is not None}
        keys = sorted(scores, key=lambda k: -scores[k])[:WORST_METRICS_NAMED]
        if keys:
            ranked.append((clip, float(np.mean([scores[k] for k in keys])), keys))
    return sorted(ranked, key=lambda entry: -entry[1])


def html_worst_clips(comparison: SystemComparison, files: dict[str, dict[str, Path]]) -> str:
    """Return HTML with the worst clips of every system, their worst metrics, and contact sheets of the first."""
    parts = []
    for system, rows in comparison.rows.items():
        if system == REAL or len(rows) < 2:
            continue
        lines = []
        for rank, (clip, mark, keys) in enumerate(rank_clips(comparison, system)[:WORST_CLIPS_LISTED]):
            why = ", ".join(
                f"{METRIC_BY_KEY[k].title} {format_metric(float(rows[clip][k] or 0), METRIC_BY_KEY[k])}" for k in keys
            )
            sheet = _sheet(files.get(system, {}).get(clip)) if rank < WORST_CLIP_SHEETS else ""
            lines.append(
                f"<li><b>{html.escape(clip)}</b> <small>{mark:.1f} spreads from the median: {why}</small>{sheet}</li>"
            )
        parts.append(f"<h3>{html.escape(system)}</h3><ol class=worst>{''.join(lines)}</ol>")
    return "".join(parts)


def _sheet(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        picture = draw_contact_sheet(path, columns=8)
    except BadInput:
        return ""
    return f"<div class=sheet><img alt='frames of {html.escape(path.stem)}' src='{jpeg_data_url(picture)}'></div>"


def jpeg_data_url(image: np.ndarray, quality: int = 82) -> str:
    """Encode an RGB picture ``[H, W, 3]`` uint8 as the data URL of a JPEG."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()

"""The watermark measured: what it survives, whether it is found where it is not, and its cost."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from benchmarks.material import picture_paths, speech_paths, use_one_thread
from benchmarks.record import Record
from benchmarks.timing import median_in_turns
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, read_audio
from flowportrait.media.formats import OUTPUT_FORMATS
from flowportrait.media.image import read_image
from flowportrait.media.stream import write_video_stream
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.provenance.inspection import inspect_provenance
from flowportrait.provenance.manifest import VideoOrigin, self_signed, sidecar_path, sign_video
from flowportrait.provenance.publish import Provenance, write_video_with_provenance
from flowportrait.provenance.watermark import add_watermark, find_watermark

Frames = Iterable[np.ndarray]


@dataclass(frozen=True)
class WatermarkOptions:
    """Measure whether the watermark survives, whether it is found in unmarked footage, and what it costs.

    Marked material: portraits animated at 512 px for 4 s, and real footage of 1 s. "survival" writes it as ``animate``
    does and then changes it; "formats" tells what every kind of output carries; "false-alarms" searches unmarked
    footage at every zoom and shift; "cost" is processor time of one core for the same frames with and without marks.
    """

    data: Path
    """Folder of footage with portraits, speech and videos."""
    part: tuple[Literal["cost", "formats", "survival", "false-alarms"], ...] = (
        "cost", "formats", "survival", "false-alarms",
    )  # fmt: skip
    """Parts to measure."""
    portraits: int = 13
    """Portraits that are animated."""
    clips: int = 40
    """Marked clips of real footage."""
    unmarked: int = 200
    """Unmarked clips of real footage."""


def watermark(options: WatermarkOptions, record: Record) -> None:
    use_one_thread()
    footage = [path for folder in ("anchors", "grid", "clips") for path in sorted(options.data.glob(f"{folder}/*.mp4"))]
    random.Random(0).shuffle(footage)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"cost", "formats", "survival"} & set(options.part):
            animator, photos = Animator.from_pretrained("rl"), picture_paths(options.data / "portraits")
            speech = read_audio(speech_paths(options.data)[0])[: 4 * SAMPLE_RATE]
            if "cost" in options.part:
                _measure_cost(animator, read_image(photos[0]), speech, folder, record)
        if {"formats", "survival"} & set(options.part):
            videos = []
            for photo in photos[: options.portraits]:
                try:
                    videos.append(list(animator.animate(read_image(photo), speech, size=512)))
                except BadInput as error:
                    record.note(f"{photo.name} is left out: {error}")
            real = [list(islice(iter_frames(path), 25)) for path in footage[: options.clips]]
            for title, clips in (("animated portraits", videos), ("real footage", real)):
                if clips and "formats" in options.part:
                    _measure_formats(title, clips, folder, record)
                if clips and "survival" in options.part:
                    _measure_survival(title, clips, folder, record)
    if "false-alarms" in options.part:
        unmarked = footage[options.clips : options.clips + options.unmarked]
        if not unmarked:
            raise BadInput(f"No unmarked videos are left in {options.data}: give fewer --clips, or more footage.")
        margins = [_margin(path) for path in unmarked]
        record.add("unmarked footage", "found", sum(margin > 0 for margin in margins), group="false alarms",
                   n=len(margins))  # fmt: skip
        record.add("unmarked footage", "searched", len(margins), group="false alarms")
        record.add("unmarked footage", "largest margin", max(margins), unit="σ", group="false alarms")


def _margin(path: Path) -> float:
    """Return by how many standard deviations the score of the mark is above the threshold."""
    match = find_watermark(iter_frames(path))
    return match.score - match.threshold


# --- Survival ---------------------------------------------------------------------------


def _scale(frames: Frames, share: float) -> Iterator[np.ndarray]:
    """Yield every frame at ``share`` of its size."""
    for frame in frames:
        yield cv2.resize(frame, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)


def _crop(frames: Frames, share: float) -> Iterator[np.ndarray]:
    """Yield a rectangle of ``share`` of each side, off the middle."""
    for frame in frames:
        height, width = frame.shape[:2]
        top, left = round(0.35 * (1 - share) * height), round(0.6 * (1 - share) * width)
        yield np.ascontiguousarray(frame[top : top + round(share * height), left : left + round(share * width)])


CHANGES: dict[str, tuple[Callable[[Frames], Frames], int]] = {
    "as written": (lambda frames: frames, 0),
    "H.264 crf 23": (lambda frames: frames, 23),
    "H.264 crf 28": (lambda frames: frames, 28),
    "H.264 crf 33": (lambda frames: frames, 33),
    "half size, crf 23": (lambda frames: _scale(frames, 0.5), 23),
    "half size, crf 28": (lambda frames: _scale(frames, 0.5), 28),
    "cropped to 70 %, crf 23": (lambda frames: _crop(frames, 0.7), 23),
    "cropped to 70 %, half size, crf 23": (lambda frames: _scale(_crop(frames, 0.7), 0.5), 23),
}
"""Changes of a marked video, and the quality at which it is written again; 0: not at all."""


def _measure_survival(title: str, clips: list[list[np.ndarray]], folder: Path, record: Record) -> None:
    group, psnr, growth, largest = f"{title}, survival", list[float](), list[float](), 0
    margins: dict[str, list[float]] = {change: [] for change in CHANGES}
    written, bare, changed = (folder / f"{name}.mp4" for name in ("written", "bare", "changed"))
    for frames in clips:
        marked = list(add_watermark(frames))
        difference = np.stack(marked).astype(np.int16) - np.stack(frames)
        psnr.append(10 * np.log10(255**2 / np.square(difference, dtype=np.float32).mean()))
        largest = max(largest, int(np.abs(difference).max()))
        write_video(written, marked, None)
        write_video(bare, frames, None)
        growth.append(written.stat().st_size / bare.stat().st_size)
        for change, (change_frames, crf) in CHANGES.items():
            if crf:
                write_video(changed, change_frames(iter_frames(written)), None, crf=crf)
            margins[change].append(_margin(changed if crf else written))
    _add_margins(record, group, margins)
    record.add("mark", "PSNR", float(np.mean(psnr)), unit="dB", group=f"{title}, mark", n=len(clips))
    record.add("mark", "largest change", largest, unit="of 255", group=f"{title}, mark")
    record.add("mark", "file size", float(np.mean(growth)), unit="times unmarked", group=f"{title}, mark", n=len(clips))


def _add_margins(record: Record, group: str, margins: dict[str, list[float]]) -> None:
    for system, values in margins.items():
        record.add(system, "found", sum(value > 0 for value in values), unit=f"of {len(values)}", group=group)
        record.add(system, "median margin", float(np.median(values)), unit="σ", group=group, n=len(values))


# --- Formats and cost -------------------------------------------------------------------


def _measure_formats(title: str, clips: list[list[np.ndarray]], folder: Path, record: Record) -> None:
    provenance, group = Provenance(VideoOrigin("portrait"), self_signed()), f"{title}, formats"
    silence, tags = np.zeros(SAMPLES_PER_FRAME, np.float32), provenance.origin.tags()
    for system in (*OUTPUT_FORMATS, "stream .mp4", "stream .webm"):
        path, found = folder / f"format{system.split()[-1]}", []
        for frames in clips:
            if system.startswith("stream"):
                sidecar_path(path).unlink(missing_ok=True)
                write_video_stream(path, add_watermark(frames), lambda i: silence, tags=tags)
            else:
                write_video_with_provenance(path, frames, None, provenance)
            found.append(inspect_provenance(path))
        count = f"of {len(clips)}"
        signed = [one.signature for one in found if one.signature.intact]
        record.add(system, "tags", sum(one.tagged for one in found), unit=count, group=group)
        record.add(system, "manifest inside", sum(not one.sidecar for one in signed), unit=count, group=group)
        record.add(system, "manifest beside", sum(bool(one.sidecar) for one in signed), unit=count, group=group)
        _add_margins(record, group, {system: [one.watermark.score - one.watermark.threshold for one in found]})


def _measure_cost(animator: Animator, photo: np.ndarray, speech: np.ndarray, folder: Path, record: Record) -> None:
    path, provenance = folder / "cost.mp4", Provenance(VideoOrigin("portrait"), self_signed())
    assert provenance.credential is not None
    credential, origin = provenance.credential, provenance.origin
    frames = list(animator.animate(photo, speech, size=512))
    marked = list(add_watermark(frames))
    work: dict[str, Callable[[], object]] = {
        "drawing": lambda: list(animator.animate(photo, speech, size=512)),
        "writing": lambda: write_video(path, frames, speech),
        "marking": lambda: list(add_watermark(frames)),
        "writing marked frames": lambda: write_video(path, marked, speech, tags=origin.tags()),
        "signing": lambda: sign_video(path, origin, credential),
    }
    spent = median_in_turns(work, repeats=5)
    for system, seconds in spent.items():
        record.add(system, "processor", 1000 * seconds / len(frames), unit="ms/frame", group="cost at 512 px")
    more = spent["marking"] + spent["writing marked frames"] - spent["writing"] + spent["signing"]
    share = more / (spent["drawing"] + spent["writing"])
    record.add("provenance", "share of drawing and writing", 100 * share, unit="%", group="cost", n=len(frames))

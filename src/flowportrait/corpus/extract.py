"""One video to the clips in it: faces followed, one clip per face, each measured and judged.

Of faces that are seen at the same time only the one whose lips fit the sound best can be the speaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowportrait.corpus.clip import Clip
from flowportrait.corpus.quality import Gates, judge, measure, out_of_step
from flowportrait.corpus.sources import Source
from flowportrait.corpus.tracks import Track, follow
from flowportrait.errors import BadInput
from flowportrait.generator.speech_stream import speech_gate
from flowportrait.media.audio import has_audio, read_audio
from flowportrait.media.face import bridge
from flowportrait.media.video import FPS, SAMPLES_PER_FRAME, iter_frames

HEAD_ROOM = 1.9
"""Side of the crop over the extent of the face throughout the clip."""
SHORTEST = 5
"""Frames below which a track is a flash of the detector and not worth a line."""


@dataclass(frozen=True)
class Candidate:
    """A face track as a clip: its record for the index (``rejected`` and ``reason`` among it where it was), the clip,
    and a picture ``[128, 128, 3]``."""

    record: dict[str, Any]
    clip: Clip | None
    picture: np.ndarray | None


def extract(source: Source, gates: Gates, on_frame: Callable[[], None] = lambda: None) -> tuple[list[Candidate], float]:
    """Every face track of a video, kept or rejected, and how many seconds the video lasts; one rejection where it is
    of no use as a whole. ``on_frame`` is called for every frame that was read."""
    shown = 0

    def counted() -> Iterator[np.ndarray]:
        nonlocal shown
        for frame in iter_frames(source.path):
            shown += 1
            on_frame()
            yield frame

    base = {"name": source.name, "speaker": source.speaker, "split": source.split, "source": source.name}
    try:
        wave = _sound(source)
        tracks = [track for track in follow(counted()) if len(track) >= SHORTEST]
    except BadInput as error:
        return [Candidate(base | {"rejected": str(error), "reason": _reason(error)}, None, None)], shown / FPS
    if not tracks:
        rejected = base | {"rejected": f"{source.path} shows no face", "reason": "no face"}
        return [Candidate(rejected, None, None)], shown / FPS
    tracks.sort(key=lambda track: (track.start, -len(track)))
    found = [
        _candidate(base if len(tracks) == 1 else base | {"name": f"{source.name}@{number:02d}"}, track, wave, gates)
        for number, track in enumerate(tracks)
    ]
    return _one_at_a_time(found), shown / FPS


def read_clip(path: Path, gates: Gates | None = None) -> Clip:
    """The longest usable clip of one video.

    Raises:
        BadInput: there is none; the reason in the message.
    """
    candidates, _ = extract(Source(path, path.stem, "", ""), gates or Gates())
    usable = [candidate.clip for candidate in candidates if "rejected" not in candidate.record]
    if not usable:
        raise BadInput(f"{path} is of no use for training: {candidates[0].record['rejected']}.")
    return max((clip for clip in usable if clip is not None), key=len)


def _sound(source: Source) -> np.ndarray:
    path: Path = source.path
    if not has_audio(path) and path.is_file() and source.sound is not None:
        path = source.sound
    return read_audio(path)


def _reason(error: BadInput) -> str:
    text = str(error)
    return "no sound" if "no audio stream" in text or "no sound samples" in text else "unreadable"


def _candidate(base: dict[str, Any], track: Track, wave: np.ndarray, gates: Gates) -> Candidate:
    clip = _clip(track, wave, late=0)
    quality = measure(clip, track)
    late = out_of_step(quality, gates)
    if late:
        clip = _clip(track, wave, late)
        quality = measure(clip, track)
        base = base | {"put_right": late}
    record = base | {"start": round(track.start / FPS, 2), **quality.to_dict()}
    failed = judge(quality, gates)
    if failed:
        record |= {"reason": failed[0], "rejected": f"{base['name']}: {failed[1]}"}
    return Candidate(record, clip, track.picture)


def _clip(track: Track, wave: np.ndarray, late: int) -> Clip:
    """The track as a clip, with sound taken from ``late`` frames further on."""
    valid = np.array([points is not None for points in track.landmarks])

    def column(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
        lost = np.full(shape, np.nan, np.float32)
        return bridge(np.array([lost if value is None else value for value in values]), valid)

    landmarks = column(track.landmarks, (478, 3))
    mouth = np.array([np.zeros((48, 64), np.uint8) if patch is None else patch for patch in track.mouth])
    # A lost frame shows the mouth seen last.
    mouth = mouth[np.maximum.accumulate(np.where(valid, np.arange(len(valid)), 0))]
    audio = np.zeros(len(track) * SAMPLES_PER_FRAME, np.float32)
    places = np.arange(len(audio)) + (track.start + late) * SAMPLES_PER_FRAME
    there = (places >= 0) & (places < len(wave))
    audio[there] = wave[places[there]]
    return Clip(
        landmarks,
        column(track.blendshapes, (52,)),
        mouth,
        np.array(track.size),
        audio,
        speech=speech_gate(audio) > 0.5,
        crop=_crop(landmarks),
    )


def _crop(landmarks: np.ndarray) -> np.ndarray:
    """Left, top and side of a square that holds the head in every frame."""
    low, high = (f(landmarks[..., :2].reshape(-1, 2), 0) for f in (np.min, np.max))
    face = np.ptp(landmarks[..., :2], axis=1).max(-1).mean()
    side = max(float((high - low).max()), HEAD_ROOM * float(face))
    corner = (low + high) / 2 - side / 2
    return np.round([*corner, side]).astype(np.int32)


def _one_at_a_time(found: list[Candidate]) -> list[Candidate]:
    """Reject every clip that overlaps with a better synchronised one."""

    def fit(candidate: Candidate) -> float:
        return candidate.record.get("sync") or -1.0

    kept: list[Candidate] = []
    result = []
    for candidate in sorted(found, key=fit, reverse=True):
        record = candidate.record
        if "rejected" not in record and any(_overlap(record, other.record) for other in kept):
            record = record | {"reason": "other face", "rejected": f"{record['name']}: another face speaks"}
        elif "rejected" not in record:
            kept.append(candidate)
        result.append(Candidate(record, candidate.clip, candidate.picture))
    return sorted(result, key=lambda candidate: candidate.record["name"])


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    starts = max(a["start"], b["start"])
    return bool(starts < min(a["start"] + a["frames"] / FPS, b["start"] + b["frames"] / FPS) - 0.1)

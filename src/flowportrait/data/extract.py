"""Extract the clips in a video: faces are tracked, one clip per face, each measured and accepted or rejected.

    frame ─► cut? ─► faces ─► tracks, one per person and shot ─► clips ─► measured ─► gates ─► kept or rejected

Of faces that are visible at the same time only the one with the lips that fit the sound best can be the speaker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowportrait.data.corpus import FaceClip, SourceVideo
from flowportrait.data.face_tracks import FaceTrack, track_faces
from flowportrait.data.quality_gates import QualityGates, first_failed_gate, measure_quality, sound_delay_to_correct
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLES_PER_FRAME, has_audio, read_audio
from flowportrait.media.faces import interpolate_missing_frames
from flowportrait.media.video import FPS, iter_frames
from flowportrait.models.speech_stream import speech_gate

CROP_TO_FACE = 1.9
"""Side of the crop divided by the extent of the face, over the whole clip."""
MIN_TRACK_FRAMES = 5
"""Frames below which a track is a false detection that is not recorded."""


@dataclass(frozen=True)
class ClipCandidate:
    """A face track as a clip.

    Attributes:
        record: for the index, with ``rejected`` and ``reason`` if it was rejected.
        clip: the clip.
        picture: ``[128, 128, 3]``.
    """

    record: dict[str, Any]
    clip: FaceClip | None
    picture: np.ndarray | None


def extract_clips(
    source: SourceVideo, gates: QualityGates, on_frame: Callable[[], None] = lambda: None
) -> tuple[list[ClipCandidate], float]:
    """Return every face track of a video, kept or rejected, and how many seconds the video lasts.

    A video that is of no use as a whole gives one rejection. ``on_frame`` is called for every frame that was read.
    """
    frames_read = 0

    def counted_frames() -> Iterator[np.ndarray]:
        nonlocal frames_read
        for frame in iter_frames(source.path):
            frames_read += 1
            on_frame()
            yield frame

    base = {"name": source.name, "speaker": source.speaker, "split": source.split, "source": source.name}
    try:
        wave = _read_sound(source)
        tracks = [track for track in track_faces(counted_frames()) if len(track) >= MIN_TRACK_FRAMES]
    except BadInput as error:
        return [
            ClipCandidate(base | {"rejected": str(error), "reason": _rejection_reason(error)}, None, None)
        ], frames_read / FPS
    if not tracks:
        rejected = base | {"rejected": f"{source.path} shows no face", "reason": "no face"}
        return [ClipCandidate(rejected, None, None)], frames_read / FPS
    tracks.sort(key=lambda track: (track.start, -len(track)))
    candidates = [
        _build_candidate(
            base if len(tracks) == 1 else base | {"name": f"{source.name}@{number:02d}"}, track, wave, gates
        )
        for number, track in enumerate(tracks)
    ]
    return _reject_overlapping(candidates), frames_read / FPS


def longest_usable_clip(path: Path, gates: QualityGates | None = None) -> FaceClip:
    """Return the longest usable clip of one video.

    Raises:
        BadInput: there is none; the message has the reason.
    """
    candidates, _ = extract_clips(SourceVideo(path, path.stem, "", ""), gates or QualityGates())
    usable = [candidate.clip for candidate in candidates if "rejected" not in candidate.record]
    if not usable:
        raise BadInput(f"{path} is of no use for training: {candidates[0].record['rejected']}.")
    return max((clip for clip in usable if clip is not None), key=len)


def _read_sound(source: SourceVideo) -> np.ndarray:
    path: Path = source.path
    if not has_audio(path) and path.is_file() and source.sound is not None:
        path = source.sound
    return read_audio(path)


def _rejection_reason(error: BadInput) -> str:
    text = str(error)
    return "no sound" if "no audio stream" in text or "no sound samples" in text else "unreadable"


def _build_candidate(base: dict[str, Any], track: FaceTrack, wave: np.ndarray, gates: QualityGates) -> ClipCandidate:
    clip = _build_clip(track, wave, sound_delay=0)
    quality = measure_quality(clip, track)
    sound_delay = sound_delay_to_correct(quality, gates)
    if sound_delay:
        clip = _build_clip(track, wave, sound_delay)
        quality = measure_quality(clip, track)
        base = base | {"put_right": sound_delay}
    record = base | {"start": round(track.start / FPS, 2), **quality.to_dict()}
    failed = first_failed_gate(quality, gates)
    if failed:
        record |= {"reason": failed[0], "rejected": f"{base['name']}: {failed[1]}"}
    return ClipCandidate(record, clip, track.picture)


def _build_clip(track: FaceTrack, wave: np.ndarray, sound_delay: int) -> FaceClip:
    """Return the track as a clip, with sound from ``sound_delay`` frames further on."""
    valid = np.array([points is not None for points in track.landmarks])

    def column(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
        missing = np.full(shape, np.nan, np.float32)
        return interpolate_missing_frames(np.array([missing if value is None else value for value in values]), valid)

    landmarks = column(track.landmarks, (478, 3))
    mouth = np.array([np.zeros((48, 64), np.uint8) if patch is None else patch for patch in track.mouth])
    # A frame without a face repeats the last mouth.
    mouth = mouth[np.maximum.accumulate(np.where(valid, np.arange(len(valid)), 0))]
    audio = np.zeros(len(track) * SAMPLES_PER_FRAME, np.float32)
    places = np.arange(len(audio)) + (track.start + sound_delay) * SAMPLES_PER_FRAME
    is_inside = (places >= 0) & (places < len(wave))
    audio[is_inside] = wave[places[is_inside]]
    return FaceClip(
        landmarks,
        column(track.blendshapes, (52,)),
        mouth,
        np.array(track.size),
        audio,
        speech=speech_gate(audio) > 0.5,
        crop=_crop(landmarks),
    )


def _crop(landmarks: np.ndarray) -> np.ndarray:
    """Return left, top and side of a square that holds the head in every frame."""
    low, high = (f(landmarks[..., :2].reshape(-1, 2), 0) for f in (np.min, np.max))
    face = np.ptp(landmarks[..., :2], axis=1).max(-1).mean()
    side = max(float((high - low).max()), CROP_TO_FACE * float(face))
    corner = (low + high) / 2 - side / 2
    return np.round([*corner, side]).astype(np.int32)


def _reject_overlapping(candidates: list[ClipCandidate]) -> list[ClipCandidate]:
    """Reject every clip that overlaps with a better synchronised one."""

    def fit(candidate: ClipCandidate) -> float:
        return candidate.record.get("sync") or -1.0

    accepted: list[ClipCandidate] = []
    result = []
    for candidate in sorted(candidates, key=fit, reverse=True):
        record = candidate.record
        if "rejected" not in record and any(_overlap(record, other.record) for other in accepted):
            record = record | {"reason": "other face", "rejected": f"{record['name']}: another face speaks"}
        elif "rejected" not in record:
            accepted.append(candidate)
        result.append(ClipCandidate(record, candidate.clip, candidate.picture))
    return sorted(result, key=lambda candidate: candidate.record["name"])


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    starts = max(a["start"], b["start"])
    return bool(starts < min(a["start"] + a["frames"] / FPS, b["start"] + b["frames"] / FPS) - 0.1)

"""Gates of quality: every clip is measured, and a rejected one records the first gate that it fails."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from flowportrait.config import at_least
from flowportrait.data.corpus import FaceClip
from flowportrait.data.face_tracks import FaceTrack
from flowportrait.media.faces import face_yaw
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.rewards.sync import MotionSyncExpert, lower_face_motion

MAX_TRIED_DELAY = 10
"""Frames of delay between lips and sound that are tried."""
MIN_SYNC_FRAMES = 30
"""Fewest frames of which lip sync can be measured."""
TRUSTED_DELAY_FRAMES, TRUSTED_DELAY_MARGIN = 75, 0.15
"""Smallest length in frames and smallest margin at which a measured delay is corrected."""


@dataclass(frozen=True)
class QualityGates:
    """Limits for clips that training uses. ``--set gate=value`` changes one."""

    frames: int = 20
    """Smallest number of frames."""
    eyes: float = 24.0
    """Smallest distance of the outer eye corners in pixels, in nine frames of ten."""
    seen: float = 0.98
    """Smallest share of the frames in which the tracker finds the face."""
    yaw: float = 45.0
    """Largest angle in degrees by which the head is turned aside, in nine frames of ten."""
    sharpness: float = 0.12
    """Smallest contrast of the finest detail relative to that of the face. A face blurred over a tenth of its
    width has 0.1."""
    darkest: float = 35.0
    """Smallest mean brightness of the face, of 255."""
    brightest: float = 225.0
    """Largest mean brightness of the face, of 255."""
    speech: float = 0.2
    """Smallest share of the frames in which somebody speaks."""
    sync: float = 0.06
    """Smallest margin by which lips fit the sound better in time (within two frames) than at other delays. The right
    sound has 0.32, the sound of another sentence 0.02. Clips under 30 frames are not tested. −2 turns the gate off."""

    def __post_init__(self) -> None:
        at_least(self, frames=1, eyes=0, seen=0, yaw=0, sharpness=0, darkest=0, brightest=0, speech=0, sync=-2)


@dataclass(frozen=True)
class ClipQuality:
    """Measurements of one clip, in the units of ``QualityGates``.

    Sync, delay and peak are None where the clip is too short to measure them.

    Attributes:
        delay: frames by which the sound is late where it fits best.
        peak: the margin there.
    """

    frames: int
    eyes: float
    seen: float
    yaw: float
    sharpness: float
    light: float
    speech: float
    sync: float | None
    delay: int | None
    peak: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, rounded for reading."""
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}


def measure_quality(clip: FaceClip, track: FaceTrack) -> ClipQuality:
    """Measure the quality of a clip and the track that it was cut from."""
    eyes = np.linalg.norm(clip.landmarks[:, 33, :2] - clip.landmarks[:, 263, :2], axis=1)
    turned = np.abs([face_yaw(points) for points in clip.landmarks[::3]])
    sync, delay, peak = sync_margin(clip) if len(clip) >= MIN_SYNC_FRAMES else (None, None, None)
    return ClipQuality(
        frames=len(clip),
        eyes=float(np.quantile(eyes, 0.1)),
        seen=sum(points is not None for points in track.landmarks) / len(track),
        yaw=float(np.quantile(turned, 0.9)),
        sharpness=float(np.median(track.sharpness)),
        light=float(np.median(track.light)),
        speech=float(clip.speech.mean()) if clip.speech is not None else 1.0,
        sync=sync,
        delay=delay,
        peak=peak,
    )


def first_failed_gate(quality: ClipQuality, gates: QualityGates) -> tuple[str, str] | None:
    """Return the first gate that a clip fails, as one word and as a sentence; None for a clip worth training on."""
    q, g = quality, gates
    failures = (
        ("short", q.frames < g.frames, f"{q.frames} frames, fewer than {g.frames}"),
        ("small", q.eyes < g.eyes, f"{q.eyes:.0f} px between the eyes, under {g.eyes:.0f}"),
        ("lost", q.seen < g.seen, f"the face is seen in {q.seen:.0%} of the frames, under {g.seen:.0%}"),
        ("turned", q.yaw > g.yaw, f"the head is turned by {q.yaw:.0f} degrees, over {g.yaw:.0f}"),
        ("blurred", q.sharpness < g.sharpness, f"sharpness {q.sharpness:.3f}, under {g.sharpness}"),
        ("dark", q.light < g.darkest, f"brightness {q.light:.0f} of 255, under {g.darkest:.0f}"),
        ("bright", q.light > g.brightest, f"brightness {q.light:.0f} of 255, over {g.brightest:.0f}"),
        ("silent", q.speech < g.speech, f"speech in {q.speech:.0%} of the time, under {g.speech:.0%}"),
        ("unsynced", q.sync is not None and q.sync < g.sync,
         f"lips and sound do not fit (margin {q.sync or 0:.2f}, under {g.sync}; best {q.delay} frames late)"),
    )  # fmt: skip
    return next(((name, words) for name, failed, words in failures if failed), None)


@torch.no_grad()
def sync_margin(clip: FaceClip) -> tuple[float, int, float]:
    """Return how much better lips and sound fit in time (within two frames) than at other delays, and the best delay.

    The expert is the reward's, which reads motion and not pixels: so the evaluation's own expert does not select the
    footage that it is trained on.

    Returns:
        The margin in time, the delay in frames where lips and sound fit best, and the margin there.
    """
    expert = MotionSyncExpert.load()
    face = expert.embed_face(lower_face_motion(clip.landmarks, clip.blendshapes)[None])[0]
    voice = expert.embed_audio(log_mel(normalize_loudness(clip.audio))[None])[0]
    length, fits = len(face), []
    for delay in range(-MAX_TRIED_DELAY, MAX_TRIED_DELAY + 1):
        face_part, voice_part = (
            face[max(0, -delay) : length - max(0, delay)],
            voice[max(0, delay) : length - max(0, -delay)],
        )
        fits.append(float((face_part * voice_part).sum(-1).mean()))
    table = np.array(fits)
    median = float(np.median(table))
    return (
        float(table[MAX_TRIED_DELAY - 2 : MAX_TRIED_DELAY + 3].max()) - median,
        int(table.argmax()) - MAX_TRIED_DELAY,
        float(table.max()) - median,
    )


def sound_delay_to_correct(quality: ClipQuality, gates: QualityGates) -> int:
    """Return by how many frames the sound is late (early if negative) in footage that is otherwise in sync.

    That is a clear peak away from zero in a clip of three seconds or more. It is zero where there is nothing to
    correct.
    """
    if quality.sync is None or quality.delay is None or quality.peak is None or quality.frames < TRUSTED_DELAY_FRAMES:
        return 0
    clear = quality.sync < gates.sync and quality.peak > TRUSTED_DELAY_MARGIN and abs(quality.delay) < MAX_TRIED_DELAY
    return quality.delay if clear else 0

"""What training cannot use, and why: every clip is measured, and a rejected one is told the first gate it fails."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from flowportrait.config import at_least
from flowportrait.corpus.clip import Clip
from flowportrait.corpus.tracks import Track
from flowportrait.media.face import yaw
from flowportrait.media.mel import level, log_mel
from flowportrait.reward.sync import SyncExpert, lower_face

REACH = 10
"""Frames of delay between lips and sound that are tried."""
LIP_READABLE = 30
"""Frames from which on lip sync can be judged."""
SURE_FRAMES, SURE_PEAK = 75, 0.15
"""Length and margin from which on a delay is believed and put right."""


@dataclass(frozen=True)
class Gates:
    """The least, or the most, that a clip for training shows. ``--set gate=value`` changes one."""

    frames: int = 20
    """Frames at least."""
    eyes: float = 24.0
    """Pixels between the outer eye corners at least, in nine frames of ten."""
    seen: float = 0.98
    """Share of the frames in which the tracker sees the face."""
    yaw: float = 45.0
    """Degrees the head is turned aside at most, in nine frames of ten."""
    sharpness: float = 0.12
    """Contrast of the finest detail over that of the face at least; 0.1 is a face blurred over a tenth of its width."""
    darkest: float = 35.0
    """Mean brightness of the face, of 255, at least."""
    brightest: float = 225.0
    """And at most."""
    speech: float = 0.2
    """Share of the frames in which somebody speaks, at least."""
    sync: float = 0.06
    """Margin of lips and sound in time (within two frames) over other delays at least; right sound has 0.32, the sound
    of another sentence 0.02. Not judged below 30 frames. −2 turns it off."""

    def __post_init__(self) -> None:
        at_least(self, frames=1, eyes=0, seen=0, yaw=0, sharpness=0, darkest=0, brightest=0, speech=0, sync=-2)


@dataclass(frozen=True)
class Quality:
    """Measured on one clip, in the units of ``Gates``; delay: frames by which the sound is late where it fits best;
    peak: the margin there. The last three are None where the clip is too short to tell."""

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
        """Plain values, rounded for reading."""
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(self).items()}


def measure(clip: Clip, track: Track) -> Quality:
    """The quality of a clip and the track it was cut from."""
    eyes = np.linalg.norm(clip.landmarks[:, 33, :2] - clip.landmarks[:, 263, :2], axis=1)
    turned = np.abs([yaw(points) for points in clip.landmarks[::3]])
    sync, delay, peak = sync_margin(clip) if len(clip) >= LIP_READABLE else (None, None, None)
    return Quality(
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


def judge(quality: Quality, gates: Gates) -> tuple[str, str] | None:
    """The first gate a clip fails, as one word and in words; None for a clip worth training on."""
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
def sync_margin(clip: Clip) -> tuple[float, int, float]:
    """How much better lips and sound fit when in time (within two frames) than at other delays; the best delay, and
    how much better they fit there.

    The expert is the reward's, which reads motion and not pixels: footage for the evaluation's own expert is not
    chosen by itself.
    """
    expert = SyncExpert.load()
    face = expert.embed_face(lower_face(clip.landmarks, clip.blendshapes)[None])[0]
    voice = expert.embed_audio(log_mel(level(clip.audio))[None])[0]
    length, fits = len(face), []
    for late in range(-REACH, REACH + 1):
        lips, sound = face[max(0, -late) : length - max(0, late)], voice[max(0, late) : length - max(0, -late)]
        fits.append(float((lips * sound).sum(-1).mean()))
    table = np.array(fits)
    usual = float(np.median(table))
    return float(table[REACH - 2 : REACH + 3].max()) - usual, int(table.argmax()) - REACH, float(table.max()) - usual


def out_of_step(quality: Quality, gates: Gates) -> int:
    """Frames by which the sound is clearly late (early if negative) in footage that is else in sync: a clear peak away
    from zero in a clip of three seconds or more. Zero where there is nothing to put right."""
    if quality.sync is None or quality.delay is None or quality.peak is None or quality.frames < SURE_FRAMES:
        return 0
    clear = quality.sync < gates.sync and quality.peak > SURE_PEAK and abs(quality.delay) < REACH
    return quality.delay if clear else 0

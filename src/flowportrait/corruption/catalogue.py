"""The catalogue of all corruptions, with their strengths and the aspects that they hurt.

kind      takes             returns              used for
timing    ``Footage``       ``Footage``          judges, rewards and metrics of clips; preference pairs of videos
face      ``Footage``       ``Footage``          the same
picture   ``Footage``       ``Footage``          the same
head      ``Footage``       ``Footage``          checks of the head pose
motion    ``MotionWindow``  motion ``[T, 30]``   preference pairs in motion space
still     ``FacePicture``   picture ``[H, W, 3]``  judges of portraits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args, overload

import numpy as np

from flowportrait.corruption import clips, motion, stills
from flowportrait.corruption.clips import Footage, Seed
from flowportrait.corruption.motion import MotionWindow
from flowportrait.corruption.stills import FacePicture
from flowportrait.errors import BadInput

Kind = Literal["timing", "face", "picture", "head", "motion", "still"]
"""Kind of a corruption; see the table above."""

KINDS: tuple[Kind, ...] = get_args(Kind)
CLIP_KINDS: tuple[Kind, ...] = ("timing", "face", "picture")
"""Kinds of ``CORRUPTIONS``; those of the head are left out, as they serve the check of the head pose only."""


@dataclass(frozen=True)
class Corruption:
    """One entry of the catalogue.

    ``damage(subject, strength, rng)`` returns a damaged copy. For clips, strength 0 returns the clip unchanged.
    """

    name: str
    kind: Kind
    damage: Callable[..., Any]
    unit: str
    """Unit of the strengths."""
    strengths: tuple[float, ...]
    """Strengths from hardly visible to obvious."""
    hurts: tuple[str, ...]
    """Aspects in which the intact subject is better: sync, expression, motion, picture; for stills, the detector."""
    needs: tuple[str, ...] = ()
    """Tracks that the clip must have: frames, audio, landmarks."""
    held_out: bool = False
    """Whether reward models are evaluated on this motion damage and never trained on it."""

    @property
    def subtle(self) -> float:
        """The lowest strength of the catalogue."""
        return self.strengths[0]

    @property
    def coarse(self) -> float:
        """The highest strength of the catalogue."""
        return self.strengths[-1]


FRAMES, LANDMARKS = ("frames",), ("frames", "landmarks")
STILL_STRENGTHS = (0.33, 0.67, 1.0)


def _still(name: str, damage: Callable[..., Any], hurts: str) -> Corruption:
    return Corruption(name, "still", damage, "of its full strength", STILL_STRENGTHS, (hurts,))


CATALOGUE: tuple[Corruption, ...] = (
    Corruption("offset", "timing", clips.offset_audio, "frames", (2.0, 5.0, 10.0), ("sync",), ("audio",)),
    Corruption("time-warp", "timing", clips.warp_time, "frames", (2.0, 4.0, 7.0), ("sync",)),
    Corruption("swapped segments", "timing", clips.swap_segments, "frames", (6.0, 10.0, 15.0), ("sync",)),
    Corruption("frozen frames", "timing", clips.freeze_frames, "frames", (2.0, 5.0, 10.0), ("motion",)),
    Corruption("jitter", "face", clips.jitter_frames, "px", (0.5, 1.5, 4.0), ("motion",), FRAMES),
    Corruption("frozen eyes", "face", clips.freeze_eyes, "share of clip", (0.5, 0.8, 1.0), ("expression",), LANDMARKS),
    Corruption("still", "face", clips.freeze_picture, "share of clip", (0.5, 0.8, 1.0), ("expression",)),
    Corruption("slowed", "face", clips.slow_down, "share of speed", (0.25, 0.5, 0.75), ("expression",)),
    Corruption("blur", "picture", clips.blur_frames, "px", (1.0, 2.0, 4.0), ("picture",), FRAMES),
    Corruption("colour pumping", "picture", clips.pump_colour, "levels", (6.0, 12.0, 25.0), ("picture",), FRAMES),
    Corruption("flicker", "picture", clips.add_flicker, "levels", (2.0, 5.0, 12.0), ("picture",), FRAMES),
    Corruption("seam", "picture", clips.add_seam, "levels", (5.0, 12.0, 30.0), ("picture",), LANDMARKS),
    Corruption("stretched", "head", clips.stretch_head, "share of width", (0.03, 0.08, 0.16), ("motion",), LANDMARKS),
    Corruption("whipped", "head", clips.shake_head, "degrees", (3.0, 8.0, 15.0), ("motion",), LANDMARKS),
    Corruption("shift", "motion", motion.shift_motion, "frames", (2, 8), ("sync",)),
    Corruption("time-warp", "motion", motion.warp_motion_time, "frames", (2, 5), ("sync",)),
    Corruption("other speech", "motion", motion.replace_speech, "share", (0.5, 1), ("sync",)),
    Corruption("frozen eyes", "motion", motion.freeze_upper_face, "share", (0.6, 1), ("expression",)),
    Corruption("dull", "motion", motion.weaken_expression, "share", (0.4, 1), ("expression",)),
    Corruption("grimace", "motion", motion.exaggerate_expression, "share", (0.8, 3), ("expression",)),
    Corruption("jitter", "motion", motion.add_tremor, "deviations", (0.03, 0.3), ("motion",)),
    Corruption("sway", "motion", motion.add_head_sway, "deviations", (0.1, 0.6), ("motion",)),
    Corruption("stiff head", "motion", motion.weaken_head, "share", (0.6, 1), ("motion",)),
    Corruption("swapped segments", "motion", motion.swap_motion_segments, "frames", (4, 10), ("sync",), held_out=True),
    Corruption("loudness jaw", "motion", motion.follow_loudness, "share", (0.6, 1), ("sync",), held_out=True),
    Corruption(
        "dead face", "motion", motion.weaken_all_but_lips, "share", (0.5, 1), ("expression", "motion"), held_out=True
    ),
    Corruption("smeared lips", "motion", motion.smooth_lips, "frames", (5, 15), ("expression",), held_out=True),
    Corruption("stutter", "motion", motion.add_stutter, "frames", (1, 4), ("motion",), held_out=True),
    Corruption("jump", "motion", motion.add_head_jump, "deviations", (0.3, 1.5), ("motion",), held_out=True),
    _still("chroma", stills.oversaturate, "over_saturated"),
    _still("airbrush", stills.smooth_skin, "over_smooth"),
    _still("tint", stills.shift_skin_hue, "skin_hue"),
    _still("shine", stills.add_shine, "oily"),
    _still("blur", stills.blur_picture, "blur"),
    _still("jpeg", stills.compress_jpeg, "blocks"),
    _still("faded", stills.reduce_contrast, "contrast"),
    _still("dark", stills.underexpose, "exposure"),
)


def corruptions(*kinds: Kind, held_out: bool | None = None) -> dict[str, Corruption]:
    """Return the entries of the catalogue of these kinds, by name.

    Args:
        *kinds: kinds of one subject (clip, motion or still); names are unique only within a subject.
        held_out: True for corruptions held out of training, False for the others, None for both.
    """
    return {
        entry.name: entry
        for entry in CATALOGUE
        if entry.kind in kinds and (held_out is None or entry.held_out == held_out)
    }


CORRUPTIONS = corruptions(*CLIP_KINDS)
"""Corruptions of clips by name."""
MOTION_CORRUPTIONS = corruptions("motion", held_out=False)
"""Corruptions of motion that reward models are trained on."""
HELD_OUT_MOTION_CORRUPTIONS = corruptions("motion", held_out=True)
"""Corruptions of motion that reward models are only evaluated on."""


@overload
def corrupt(subject: Footage, name: str, strength: float, rng: Seed = 0) -> Footage: ...
@overload
def corrupt(subject: MotionWindow | FacePicture, name: str, strength: float, rng: Seed = 0) -> np.ndarray: ...
def corrupt(
    subject: Footage | MotionWindow | FacePicture, name: str, strength: float, rng: Seed = 0
) -> Footage | np.ndarray:
    """Return a damaged copy of a clip, a window of motion or a still.

    Args:
        subject: what is damaged; clips give clips, motion windows motion ``[T, 30]``, stills pictures ``[H, W, 3]``.
        name: name of the corruption in the catalogue.
        strength: strength in the corruption's own unit.
        rng: seed or generator of random damage.

    Raises:
        BadInput: if there is no such corruption of this subject, or the clip lacks a track that it needs.
    """
    if isinstance(subject, Footage):
        known = corruptions(*CLIP_KINDS, "head")
    else:
        known = corruptions("motion" if isinstance(subject, MotionWindow) else "still")
    if name not in known:
        raise BadInput(f"Unknown corruption '{name}': choose from {', '.join(known)}.")
    damaged: Footage | np.ndarray = known[name].damage(subject, strength, np.random.default_rng(rng))
    return damaged

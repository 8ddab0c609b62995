"""Every corruption by name, with its unit and three strengths from hardly visible to plain."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from flowportrait.corruption import face, picture, timing
from flowportrait.corruption.footage import Footage
from flowportrait.errors import BadInput


class Damage(Protocol):
    """``(clip, strength, seed)`` to a new clip of the same length; the given one stays as it is."""

    def __call__(self, clip: Footage, strength: float, seed: int = 0, /) -> Footage: ...


class Corruption(NamedTuple):
    """damage and unit of its strength; strengths: mild, plain, strong; hurts: what a judge should notice
    (``sync``, ``liveliness``, ``steadiness``, ``picture``); needs: the tracks of the clip it cannot do without."""

    damage: Damage
    unit: str
    strengths: tuple[float, float, float]
    hurts: str
    needs: tuple[str, ...] = ("frames",)


CORRUPTIONS: dict[str, Corruption] = {
    "offset": Corruption(timing.offset_audio, "frames", (2.0, 5.0, 10.0), "sync", ("audio",)),
    "time-warp": Corruption(timing.warp_time, "frames", (2.0, 4.0, 7.0), "sync", ()),
    "swapped segments": Corruption(timing.swap_segments, "frames", (6.0, 10.0, 15.0), "sync", ()),
    "frozen frames": Corruption(timing.freeze_frames, "frames", (2.0, 5.0, 10.0), "steadiness", ()),
    "jitter": Corruption(face.jitter, "px", (0.5, 1.5, 4.0), "steadiness"),
    "frozen eyes": Corruption(
        face.frozen_eyes, "share of clip", (0.5, 0.8, 1.0), "liveliness", ("frames", "landmarks")
    ),
    "still": Corruption(face.still, "share of clip", (0.5, 0.8, 1.0), "liveliness", ()),
    "slowed": Corruption(face.less_lively, "share of speed", (0.25, 0.5, 0.75), "liveliness", ()),
    "blur": Corruption(picture.blur, "px", (1.0, 2.0, 4.0), "picture"),
    "colour pumping": Corruption(picture.pump_colour, "levels", (6.0, 12.0, 25.0), "picture"),
    "flicker": Corruption(picture.flicker, "levels", (2.0, 5.0, 12.0), "picture"),
    "seam": Corruption(picture.seam, "levels", (5.0, 12.0, 30.0), "picture", ("frames", "landmarks")),
}


def corrupt(clip: Footage, name: str, strength: float, seed: int = 0) -> Footage:
    """``clip`` damaged by the corruption of that name.

    Raises:
        BadInput: no such corruption, or the clip lacks what it needs.
    """
    if name not in CORRUPTIONS:
        raise BadInput(f"Unknown corruption '{name}': choose from {', '.join(CORRUPTIONS)}.")
    return CORRUPTIONS[name].damage(clip, strength, seed)

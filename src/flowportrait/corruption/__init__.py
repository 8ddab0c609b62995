"""Damage with a known cause and strength: what a judge or a reward must notice.

    damaged = corrupt(clip, "offset", 5.0)          strength in natural units (frames, pixels, levels)

``CATALOGUE`` lists every kind of damage; ``corruptions("motion")`` gives those of one kind by name.
"""

from flowportrait.corruption.catalogue import (
    CATALOGUE,
    CORRUPTIONS,
    HELD_OUT_MOTION_CORRUPTIONS,
    MOTION_CORRUPTIONS,
    Corruption,
    corrupt,
    corruptions,
)
from flowportrait.corruption.clips import Footage
from flowportrait.corruption.motion import MotionWindow

__all__ = [
    "CATALOGUE",
    "CORRUPTIONS",
    "HELD_OUT_MOTION_CORRUPTIONS",
    "MOTION_CORRUPTIONS",
    "Corruption",
    "Footage",
    "MotionWindow",
    "corrupt",
    "corruptions",
]

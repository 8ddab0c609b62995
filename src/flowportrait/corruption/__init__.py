"""Synthetic damage with a known cause and strength, which a judge, a metric or a reward must detect.

    damaged = corrupt(clip, "offset", 5.0)          strength in natural units (frames, pixels, levels)

``CATALOGUE`` lists every corruption; ``corruptions("motion")`` returns those of one kind by name.
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

"""Damage with a known cause and a known strength: what a judge or a reward must notice, and nothing else.

    clip' = damage(clip, strength)          strength in natural units (frames, pixels, levels); 0 is the clip itself

``CORRUPTIONS`` in ``flowportrait.corruption.catalogue`` lists them all by name.
"""

from flowportrait.corruption.catalogue import CORRUPTIONS, Corruption, corrupt
from flowportrait.corruption.footage import Footage

__all__ = ["CORRUPTIONS", "Corruption", "Footage", "corrupt"]

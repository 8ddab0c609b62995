"""What another package adds to FlowPortrait: one part of every kind, each announced in ``pyproject.toml``."""

from __future__ import annotations


class QuietMotion:
    """Prefers little motion; stands for a reward of somebody's own."""

    name = "quiet_motion"

"""Stable Diffusion 3 and 3.5: nothing special."""

from __future__ import annotations

from flowportrait.policies.families.family import Family


class SD3(Family):
    """True guidance, both branches in one call."""

    name = "sd3.5"
    pipelines = ("StableDiffusion3Pipeline",)

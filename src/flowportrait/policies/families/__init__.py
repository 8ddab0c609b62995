"""One thin adapter per family of diffusers pipelines, found by the pipeline's class."""

from __future__ import annotations

from typing import Any

from flowportrait.errors import BadInput
from flowportrait.policies.families import flux, hunyuan, ltx, qwen_image, sd3, wan, z_image
from flowportrait.policies.families.family import Family

FAMILIES: tuple[type[Family], ...] = (
    ltx.LTX2, ltx.LTX, wan.Wan, hunyuan.HunyuanVideo15, sd3.SD3, flux.Flux, flux.Flux2, z_image.ZImage,
    qwen_image.QwenImage,
)  # fmt: skip
"""Every family, video first."""


def family_of(pipeline: Any) -> Family:
    """The adapter for a pipeline.

    Raises:
        BadInput: its class is of no family, with the classes that are.
    """
    name = type(pipeline).__name__
    for family in FAMILIES:
        if name in family.pipelines:
            return family(pipeline)
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise BadInput(
        f"{name} is of no supported family: load it as one of {known}, or write a generator of three methods "
        "(docs/own_generator.md)."
    )

"""The model card of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowportrait.models.arflow import ARFlow


_CARD = """---
library_name: flowportrait
pipeline_tag: audio-to-video
tags: [talking-head, audio-driven-portrait, flow-matching]
---

# {title}

Speech in, motion of a face out: {chunk} frames at a time, {steps} steps each, {look_ahead} ms of look-ahead.

| | |
|---|---|
| backbone | {backbone} |
| front end | {front_end} |
| weights | {trained:.1f} million trained of {all:.1f} million |
| sampling | {steps} steps, guidance {guidance:g} |

```python
import flowportrait as fp
fp.AnimatePipeline.from_pretrained("FOLDER")("photo.jpg", "speech.wav").save("talking.mp4")
```

## Training data

{data}

## Figures

{figures}

## Limits

It moves a face that is in a photo; it does not know whether the person agreed. It was made to be watched, not to be
taken for a recording: videos carry a mark that says so. Languages, voices and head poses far from its training data
come out worse, and the lips of long vowels more often than the eyes.
"""


def card(model: ARFlow, data: str = "", figures: str = "") -> str:
    """Markdown with a header that model hubs read. ``data`` and ``figures``: what is known of them."""
    config = model.config
    small = f"Qwen3 decoder, {config.layers} layers of {config.hidden}, trained from nothing"
    pretrained = f"`{config.backbone}` ({config.adapt})"
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return _CARD.format(
        title="A FlowPortrait generator", chunk=config.chunk, steps=config.steps, look_ahead=120,
        backbone=pretrained if config.backbone else small, front_end=config.front_end, guidance=config.guidance,
        trained=sum(n for n, learns in sizes if learns) / 1e6, all=sum(n for n, _ in sizes) / 1e6,
        data=data or "Not told to this card.",
        figures=figures or "Not measured yet: `flowportrait evaluate bench` does it.",
    )  # fmt: skip

"""The model card that is written beside a checkpoint."""

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

This generator turns speech into motion of a face: {chunk} frames at a time, {steps} steps each, {look_ahead} ms of
look-ahead.

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

It animates the face in a photo and cannot know whether that person agreed. Its videos must not be passed off as
recordings; they carry a mark that says how they were made. Languages, voices and head poses far from its training data
are animated less well, and the lips of long vowels more often than the eyes.
"""


def model_card_markdown(model: ARFlow, data: str = "", figures: str = "") -> str:
    """Return a model card in Markdown, with the header that model hubs read.

    Args:
        model: the generator to describe.
        data: description of the training data.
        figures: measured figures.
    """
    config = model.config
    small = f"Qwen3 decoder, {config.layers} layers of {config.hidden}, trained from scratch"
    pretrained = f"`{config.backbone}` ({config.adapt})"
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return _CARD.format(
        title="A FlowPortrait generator", chunk=config.chunk, steps=config.steps, look_ahead=120,
        backbone=pretrained if config.backbone else small, front_end=config.front_end, guidance=config.guidance,
        trained=sum(n for n, trained in sizes if trained) / 1e6, all=sum(n for n, _ in sizes) / 1e6,
        data=data or "Not documented.", figures=figures or "Not measured yet: run `flowportrait evaluate bench`.",
    )  # fmt: skip

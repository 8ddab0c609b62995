"""The model card that is written beside a checkpoint, in the format of the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flowportrait.files import write_text

if TYPE_CHECKING:
    from flowportrait.models.arflow import ARFlow


CARD_FILE = "README.md"

FRONT_MATTER = """library_name: flowportrait
pipeline_tag: image-to-video
tags: [talking-head, audio-driven-portrait, audio-to-video, lip-sync, flow-matching]
"""
"""What the card of every generator says to model hubs, beside licence and language."""

_INHERITED = re.compile(r"^(?:license|license_name|license_link|language):.*\n(?:[ -].*\n)*", re.M)

_CARD = """---
{front}---

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

## Licence

{licence}

## Limits

It animates the face in a photo and cannot know whether that person agreed. Its videos must not be passed off as
recordings; they carry a mark that says how they were made. Languages, voices and head poses far from its training data
are animated less well, and the lips of long vowels more often than the eyes.
"""


@dataclass(frozen=True)
class ModelOrigin:
    """The checkpoint that a generator was loaded from: what is trained from it has its licence.

    Attributes:
        name: the name that it was loaded by.
        card: the text of its card; empty if it has none.
    """

    name: str
    card: str = ""

    @classmethod
    def read(cls, folder: Path, name: str) -> ModelOrigin:
        """Read the card in a folder."""
        path = folder / CARD_FILE
        return cls(name, path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "")

    @property
    def front_matter(self) -> str:
        """The lines of the card on licence and language, as they stand there."""
        is_header = self.card.startswith("---\n") and self.card.count("---\n") > 1
        header = self.card.split("---\n", 2)[1] if is_header else ""
        return "".join(found[0] for found in _INHERITED.finditer(header))


def model_card_markdown(model: ARFlow, data: str = "", figures: str = "") -> str:
    """Return a model card in Markdown, with the header that model hubs read.

    Args:
        model: the generator to describe; its ``origin`` names the licence.
        data: description of the training data.
        figures: measured figures.
    """
    config, origin = model.config, model.origin
    small = f"Qwen3 decoder, {config.layers} layers of {config.hidden}, trained from scratch"
    pretrained = f"`{config.backbone}` ({config.adapt})"
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    if origin is None:
        front = "license: unknown\n"
        licence = "Trained from nothing: the licence is what the footage allows. Name it at the top of this card."
    else:
        front = origin.front_matter or "license: unknown\n"
        licence = f"Trained from `{origin.name}`, whose licence holds for these weights as well."
        data = data or f"That of `{origin.name}`, from which it was trained further."
    return _CARD.format(
        front=front + FRONT_MATTER, licence=licence,
        title="A FlowPortrait generator", chunk=config.chunk, steps=config.steps, look_ahead=120,
        backbone=pretrained if config.backbone else small, front_end=config.front_end, guidance=config.guidance,
        trained=sum(n for n, trained in sizes if trained) / 1e6, all=sum(n for n, _ in sizes) / 1e6,
        data=data or "Not documented.", figures=figures or "Not measured yet: run `flowportrait evaluate bench`.",
    )  # fmt: skip


def set_card_section(folder: Path, title: str, content: str) -> None:
    """Replace the text of a section in the card of a folder; a card without that section stays as it is."""
    card = folder / CARD_FILE
    text = card.read_text(encoding="utf-8")
    pattern = re.compile(rf"(^## {re.escape(title)}\n\n).*?(?=\n\n## |\Z)", re.M | re.S)
    write_text(card, pattern.sub(lambda found: found[1] + content, text, count=1))

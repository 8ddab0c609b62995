"""Portraits as tokens for a generator with vision: framed alike in training and inference, encoded once.

    photo ─► picture of the face ─► vision tower ─► P tokens, before the first chunk

A training clip comes with a picture of another clip of the same person: it tells whose face it is, not what this clip's
lips are doing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flowportrait.corpus.motion_set import MotionClip
from flowportrait.corpus.tracks import picture
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait


def encode_portraits(model: ARFlow, portraits: Sequence[Portrait]) -> torch.Tensor | None:
    """Encode N portraits to tokens ``[N, P, hidden]``; None for none, and for a model without vision."""
    if not portraits or model.vision is None:
        return None
    return model.encode_portrait([picture(portrait.crop, portrait.landmarks) for portrait in portraits])


def with_portraits(model: ARFlow, corpus: Path, clips: Sequence[MotionClip]) -> list[MotionClip]:
    """Add to clips the tokens of a portrait of their speaker, upright and mirrored ``[2, P, hidden]``.

    Raises:
        BadInput: a speaker has no picture in the corpus.
    """
    speakers: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    found = []
    for speaker, own in speakers.items():
        paths = [corpus / "pictures" / f"{clip.name}.jpg" for clip in own]
        tokens = [_upright_and_mirrored(model, read_image(path)) for path in paths if path.is_file()]
        if not tokens:
            raise BadInput(
                f"{corpus} has no picture of {speaker}, and use_vision=true needs one: prepare the videos anew."
            )
        found += [replace(clip, portrait=tokens[(place + 1) % len(tokens)]) for place, clip in enumerate(own)]
    return found


def _upright_and_mirrored(model: ARFlow, face: np.ndarray) -> torch.Tensor:
    return model.encode_portrait([face, np.ascontiguousarray(face[:, ::-1])]).half().cpu()

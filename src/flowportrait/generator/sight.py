"""What a generator that sees is shown of a person: framed alike in training and at work, looked at once.

    photo ─► picture of the face ─► look ─► P tokens, before the first chunk

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


def seen(model: ARFlow, portraits: Sequence[Portrait]) -> torch.Tensor | None:
    """Tokens ``[N, P, hidden]`` of N portraits; None of none, and for a model that does not see."""
    if not portraits or model.vision is None:
        return None
    return model.look([picture(portrait.crop, portrait.landmarks) for portrait in portraits])


def with_portraits(model: ARFlow, corpus: Path, clips: Sequence[MotionClip]) -> list[MotionClip]:
    """The clips with what ``model`` sees of their speakers, upright and mirrored ``[2, P, hidden]``.

    Raises:
        BadInput: a speaker has no picture in the corpus.
    """
    speakers: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    found = []
    for speaker, own in speakers.items():
        paths = [corpus / "pictures" / f"{clip.name}.jpg" for clip in own]
        tokens = [_both(model, read_image(path)) for path in paths if path.is_file()]
        if not tokens:
            raise BadInput(f"{corpus} has no picture of {speaker}, and sees=true needs one: prepare the videos anew.")
        found += [replace(clip, portrait=tokens[(place + 1) % len(tokens)]) for place, clip in enumerate(own)]
    return found


def _both(model: ARFlow, face: np.ndarray) -> torch.Tensor:
    return model.look([face, np.ascontiguousarray(face[:, ::-1])]).half()

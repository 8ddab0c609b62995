"""What a generator begins its training with: the front end's own weights, and those of another checkpoint."""

from __future__ import annotations

import torch

from flowportrait.checkpoints import load_generator
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.pretrain_config import PretrainConfig
from flowportrait.generator.speech_encoder import SpeechEncoder


def new_model(config: PretrainConfig) -> ARFlow:
    """A generator to train: the front end's own weights, and what ``start_from`` has to give."""
    model = ARFlow(config.generator)
    if isinstance(model.speech, SpeechEncoder):
        model.speech.load_weights().eval()
    if config.start_from:
        inherit(model, load_generator(config.start_from), hearing=not config.lip_steps)
    return model


_HEARING = ("speech.", "lip_reader.", "audio_", "silence")


@torch.no_grad()
def inherit(model: ARFlow, other: ARFlow, hearing: bool = False) -> None:
    """Take over parameters and buffers of the same name, those that hear only with ``hearing``; where shapes differ,
    the common corner, with zeros around it in the flow head (inputs it did not have must not disturb it)."""
    theirs = other.state_dict()
    for name, own in model.state_dict().items():
        if name not in theirs or (name.startswith(_HEARING) and not hearing):
            continue
        if name.startswith("head.") and own.shape != theirs[name].shape:
            own.zero_()
        corner = tuple(slice(min(a, b)) for a, b in zip(own.shape, theirs[name].shape, strict=True))
        own[corner] = theirs[name][corner]

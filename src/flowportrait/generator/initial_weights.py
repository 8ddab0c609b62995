"""Initial weights of a generator to train: the front end's own, and those of another checkpoint."""

from __future__ import annotations

import torch

from flowportrait.checkpoints import load_generator
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.pretrain_config import PretrainConfig
from flowportrait.generator.speech_encoder import SpeechEncoder


def initial_model(config: PretrainConfig) -> ARFlow:
    """Build a generator to train, with the front end's own weights and those of ``start_from``."""
    model = ARFlow(config.generator)
    if isinstance(model.speech, SpeechEncoder):
        model.speech.load_weights().eval()
    if config.start_from:
        copy_weights(model, load_generator(config.start_from), audio=not config.lip_steps)
    return model


_AUDIO = ("speech.", "lip_reader.", "audio_", "silence")


@torch.no_grad()
def copy_weights(model: ARFlow, other: ARFlow, audio: bool = False) -> None:
    """Copy parameters and buffers of the same name, those of the audio side only with ``audio``; where shapes differ,
    the common corner, with zeros around it in the flow head (inputs it did not have must not disturb it)."""
    theirs = other.state_dict()
    for name, own in model.state_dict().items():
        if name not in theirs or (name.startswith(_AUDIO) and not audio):
            continue
        if name.startswith("head.") and own.shape != theirs[name].shape:
            own.zero_()
        corner = tuple(slice(min(a, b)) for a, b in zip(own.shape, theirs[name].shape, strict=True))
        own[corner] = theirs[name][corner]

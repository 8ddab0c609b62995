"""How expressive a performance is asked to be: nothing at 1, monotone around it, and the lips stay in time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tools.train_intensity import amplitudes

from flowportrait.errors import BadInput
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.sampler import GenerationSession, sample_motion
from flowportrait.models.training_clips import lip_opening_per_number
from flowportrait.pipelines.animator import Animator
from tests.models.test_generator import TINY

SECONDS = 4


def syllables() -> np.ndarray:
    """Noise in syllables of a quarter of a second ``[N]``."""
    rng, clock = np.random.default_rng(0), np.arange(16_000 * SECONDS) / 16_000
    return (rng.normal(size=len(clock)) * 0.05 * (1 + np.sin(8 * np.pi * clock))).astype(np.float32)


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_a_livelier_performance_is_livelier_and_its_lips_keep_time(name: str) -> None:
    model, sounds = load_generator(name).requires_grad_(False), np.stack([syllables()] * 4)
    calm, usual, lively = (sample_motion(model, sounds, [0, 1, 2, 3], intensity=x) for x in (0.6, 1.0, 1.6))
    sizes = torch.stack([amplitudes(motion).mean(0) for motion in (calm, usual, lively)])
    assert (sizes.diff(dim=0) > 0).all()
    assert float((sizes[2] - sizes[0]).mean()) > 0.2
    gaps = torch.stack([(motion @ lip_opening_per_number()).flatten() for motion in (usual, lively)])
    assert torch.corrcoef(gaps)[0, 1] > 0.8


def test_nothing_is_asked_by_default_and_a_state_remembers_what_was() -> None:
    model, sound = load_generator("sft").requires_grad_(False), syllables()[: 16_000 * 2]
    plain, asked = (list(GenerationSession(model, 3, intensity=x).push(sound)) for x in (1.0, 1.5))
    assert all(torch.equal(a, b) for a, b in zip(GenerationSession(model, 3).push(sound), plain, strict=True))
    assert not torch.allclose(plain[0], asked[0])
    session = GenerationSession(model, 3, intensity=1.5)
    first = list(session.push(sound[:16_000]))
    rest = list(GenerationSession(model, state=session.state()).push(sound[16_000:]))
    assert torch.allclose(torch.cat([*first, *rest]), torch.cat(asked), atol=1e-2)


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(BadInput, match="from 0"):
        next(Animator.from_pretrained("sft", 3.0).motion(syllables()))
    with pytest.raises(BadInput, match="shipped generators"):
        next(Animator(ARFlow(TINY).eval(), 1.2).motion(syllables()))

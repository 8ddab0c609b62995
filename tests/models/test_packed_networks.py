"""A generator samples with packed networks what it samples with its own, for as long as its weights stay."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.packed_networks import pack_networks
from flowportrait.models.sampler import sample_motion

TOLERANCE = 1e-4
"""Standard deviations of motion; sums in another order differ by less than a twentieth of it."""


@pytest.fixture
def model() -> ARFlow:
    return load_generator("rl")


def motion(model: ARFlow, *seeds: int) -> torch.Tensor:
    """Motion of five seconds of noise in syllables: longer than the horizon, so that the cache is emptied once."""
    time = np.arange(5 * 16_000) / 16_000
    sound = np.random.default_rng(1).normal(size=len(time)) * 0.05 * (1 + np.sin(8 * np.pi * time))
    return sample_motion(model, np.stack([sound.astype(np.float32)] * len(seeds)), seeds)


@pytest.mark.parametrize("seeds", [(3,), (3, 4, 5)])
def test_packed_networks_sample_the_same_motion(model: ARFlow, seeds: tuple[int, ...]) -> None:
    expected = motion(model, *seeds)
    pack_networks(model)
    assert model.packed_head
    assert model.backbone.packed
    assert (motion(model, *seeds) - expected).abs().max() < TOLERANCE


def test_candidates_for_a_chunk_share_its_context(model: ARFlow) -> None:
    context, sigmas = torch.randn(1, 2, model.head.context.in_features), torch.linspace(1, 0, 3)
    x = torch.randn(3, model.latent_dim)
    with torch.no_grad():
        expected = model.velocity_field(sigmas, context)(x, sigmas[1])
        pack_networks(model)
        packed = model.velocity_field(sigmas, context)(x, sigmas[1])
    assert expected.shape == packed.shape == x.shape
    assert (packed - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", ["head.blocks.1.mlp.0.weight", "backbone.decoder.layers.2.mlp.up_proj.weight"])
def test_a_weight_that_changes_ends_the_packing(model: ARFlow, name: str) -> None:
    pack_networks(model)
    before = motion(model, 3)
    with torch.no_grad():
        model.get_parameter(name).mul_(1.1)
    assert not (model.packed_head and model.backbone.packed)
    changed = motion(model, 3)
    assert (changed - before).abs().max() > 100 * TOLERANCE
    model.packed_head = model.backbone.packed = None
    assert (motion(model, 3) - changed).abs().max() < TOLERANCE


def test_weights_that_float16_does_not_hold_keep_their_digits(model: ARFlow) -> None:
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.mul_(1 + 1e-4)
    expected = motion(model, 3)
    pack_networks(model)
    assert model.packed_head
    assert (motion(model, 3) - expected).abs().max() < TOLERANCE


def test_copies_and_gradients_use_the_networks_themselves(model: ARFlow) -> None:
    pack_networks(model)
    copied = copy.deepcopy(model)
    assert copied.packed_head is None
    assert copied.backbone.packed is None
    context = torch.randn(1, 2, model.head.context.in_features, requires_grad=True)
    x, sigmas = torch.randn(1, model.latent_dim), torch.linspace(1, 0, 3)
    model.velocity_field(sigmas, context)(x, sigmas[0]).square().sum().backward()
    assert context.grad is not None
    assert context.grad.abs().max() > 0


def test_other_networks_than_float32_are_left_alone(model: ARFlow) -> None:
    model.double()
    pack_networks(model)
    assert model.packed_head is None
    assert model.backbone.packed is None

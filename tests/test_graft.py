"""Lips of one generator on another's head and eyes."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from flowportrait.corpus.motion_set import MotionClip, WindowSampler
from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.posttrain.graft import FRAMES, Graft, graft
from tests.test_posttrain import TINY, tiny_policy


def sampler(model: ARFlow) -> WindowSampler:
    draws = torch.Generator().manual_seed(0)
    heard = model.listen(torch.randn(2, 8 * FRAMES, 80, generator=draws))
    clips = [
        MotionClip(str(i), f"s{i}", torch.randn(2 * FRAMES, 30, generator=draws), heard[i], torch.zeros(19))
        for i in range(2)
    ]
    return WindowSampler(clips, FRAMES, torch.Generator().manual_seed(0))


def another(model: ARFlow) -> ARFlow:
    """The same, post-trained by chance."""
    other = copy.deepcopy(model)
    draws = torch.Generator().manual_seed(1)
    for parameter in other.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)
    return other


def test_a_student_that_is_the_rest_has_all_of_the_lips_to_learn_and_nothing_else() -> None:
    lips = tiny_policy().requires_grad_(False)
    rest = another(lips)
    loss = Graft(copy.deepcopy(rest), lips, rest, sampler(lips))
    assert float(loss(0)) > 0
    assert loss.apart.tolist() == pytest.approx([1, 0])


def test_a_graft_comes_nearer_to_one_in_the_lips_and_stays_with_the_other_elsewhere() -> None:
    lips = tiny_policy()
    rest = another(lips)
    rest.config = replace(rest.config, guidance=1.5)
    grafted = graft(lips, rest, sampler(lips), steps=60)
    assert grafted.config == rest.config, "it is drawn as the rest is"
    loss = Graft(grafted, lips, rest, sampler(lips))
    with torch.no_grad():
        shares = torch.stack([(loss(step), loss.apart)[1] for step in range(4)]).mean(0)
    assert shares[0] < 0.8
    assert shares[1] < 0.2


def test_different_architectures_are_not_grafted() -> None:
    with pytest.raises(BadInput, match="one architecture"):
        graft(tiny_policy(), ARFlow(replace(TINY, hidden=2 * TINY.hidden)), sampler(tiny_policy()), 1)

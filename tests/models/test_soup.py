"""Mixed checkpoints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tools.average_checkpoints import soup

from flowportrait.errors import BadInput
from flowportrait.models.arflow import load_generator


def test_a_soup_of_one_is_itself_and_of_two_lies_between() -> None:
    one, other = load_generator("sft"), load_generator("rl")
    other.config = one.config
    weight = "motion_in.weight"
    a, b = one.state_dict()[weight].clone(), other.state_dict()[weight].clone()
    assert not torch.equal(a, b), "rl was trained"
    assert torch.equal(soup([one]).state_dict()[weight], a)
    assert torch.allclose(soup([one, other]).state_dict()[weight], (a + b) / 2)
    assert torch.allclose(soup([one, other], [0.25, 0.75]).state_dict()[weight], 0.25 * a + 0.75 * b)
    assert torch.equal(one.state_dict()[weight], a), "what is mixed is left as it was"


def test_what_does_not_mix_is_refused() -> None:
    one, other = load_generator("sft"), load_generator("sft")
    with pytest.raises(BadInput, match="do not fit 1 checkpoints"):
        soup([one], [0.5])
    other.config = replace(one.config, guidance=1.0)
    with pytest.raises(BadInput, match="one and the same configuration"):
        soup([one, other])

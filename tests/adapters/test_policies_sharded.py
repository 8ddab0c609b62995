"""A pipeline of diffusers in shards (FSDP2) with recomputed activations, on two processes, gives what one gives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
from flowportrait.training.state import read_state, write_checkpoint, write_state
from tests.adapters.test_policies import trainer
from tests.processes import iterate, joined, sharded, together

ROUNDING = 1e-4


def work(folder: Path) -> Any:
    """Two iterations, saved in between; what was learned."""
    run = trainer("flux.1", folder, checkpointing=True)
    iterate(run, 1)
    write_state(run, folder / "state")
    found = iterate(run, 1)
    write_checkpoint(run, folder / "made")
    return found


@pytest.mark.slow
def test_two_processes_in_shards_learn_what_one_learns_and_either_resumes(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    for place in (two, one):
        place.mkdir()
    joined(together(lambda _: torch.save(sharded(lambda: work(two)), two / f"{os.environ['RANK']}.pt")))
    alone = work(one)
    found = [torch.load(two / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for own in found:
        for name, wanted in alone["weights"]["live"].items():
            assert (own["weights"]["live"][name] - wanted).norm() <= ROUNDING * wanted.norm().clamp_min(1e-3), name
    assert len(list((two / "state" / "000001" / "weights").iterdir())) == 2
    assert (two / "made" / "pytorch_lora_weights.safetensors").is_file()
    again = trainer("flux.1", tmp_path, checkpointing=True)
    read_state(again, two / "state")
    resumed = iterate(again, 1)
    for name, wanted in alone["weights"]["live"].items():
        assert (resumed["weights"]["live"][name] - wanted).norm() <= 2 * ROUNDING * wanted.norm().clamp_min(1e-3), name


@pytest.mark.slow
def test_half_precision_weights_and_float32_adapters_share_their_shards(tmp_path: Path) -> None:
    def work() -> Any:
        return iterate(trainer("flux.1", tmp_path, half=True, checkpointing=True, autocast="bf16"), 1)

    joined(together(lambda _: torch.save(sharded(work), tmp_path / f"{os.environ['RANK']}.pt")))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    for own in found:
        assert own["records"][0]["ratio/first_error"] == 0.0
        assert own["records"][0]["noise_gap"] < 0.05
        assert {value.dtype for value in own["weights"]["live"].values()} == {torch.float32}

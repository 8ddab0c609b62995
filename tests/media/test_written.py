"""Files are complete or not there, whatever interrupts their writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowportrait.files import atomic_write, write_json, write_weights


def test_an_interruption_leaves_what_was_there_and_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"before": 1})

    def interrupted() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads(path.read_text()) == {"before": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_finds_the_name_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    with atomic_write(path) as partial:
        partial.write_bytes(b"some")
        assert not list(tmp_path.glob("*.safetensors"))
    assert path.read_bytes() == b"some"


def test_weights_are_halves_and_counts_stay_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_weights(path, {"weight": torch.ones(3, 2).T / 3, "seen": torch.tensor(70_000)})
    found = load_file(path)
    assert found["weight"].dtype == torch.float16
    assert found["weight"].shape == (2, 3)
    assert found["seen"].item() == 70_000

"""The exported streaming step draws what the generator draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowportrait.cli import main
from flowportrait.flow.noise import unit_noise
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.config import GeneratorConfig
from flowportrait.generator.onnx_step import OnnxSteps, export_step
from flowportrait.generator.sample import generate

pytest.importorskip("onnx")
SMALL = GeneratorConfig(
    hidden=32, layers=2, heads=2, window=4, horizon=6, audio_width=16, head_width=32, head_depth=1, steps=2,
    front_end="mel", spread_head=1.2,
)  # fmt: skip


def restless(guidance: float) -> ARFlow:
    torch.manual_seed(0)
    model = ARFlow(replace(SMALL, guidance=guidance)).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_graph_draws_what_the_generator_draws_beyond_window_and_horizon(tmp_path: Path, guidance: float) -> None:
    model, path = restless(guidance), tmp_path / "step.onnx"
    export_step(model, path)
    with torch.no_grad():
        condition = model.condition(torch.randn(1, 16 * 14, 80))
        ours = torch.cat(list(generate(model, condition, [7])), 1).numpy()
    steps = OnnxSteps(path, condition.audio.numpy(), condition.style.numpy())
    theirs = [steps(unit_noise(model.latent_dim, 7, chunk)[None].numpy()) for chunk in range(14)]
    assert np.abs(ours - np.concatenate(theirs, 1)).max() < 1e-3
    assert np.abs(ours).max() > 0.1


@pytest.mark.slow
def test_a_compiled_head_draws_the_same() -> None:
    model = restless(2.0)
    with torch.no_grad():
        condition = model.condition(torch.randn(1, 64, 80))
        plain = torch.cat(list(generate(model, condition, [7])), 1)
        model.compile_head()
        assert torch.allclose(torch.cat(list(generate(model, condition, [7])), 1), plain, atol=1e-4)


def test_the_command_writes_a_graph_or_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    restless(2.0).save_pretrained(tmp_path / "run")
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "a.onnx")]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"run", "a.onnx", "a.json"}
    assert main(["export", "--output", str(tmp_path / "a.bin")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err

"""The exported streaming step draws what the generator draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from flowportrait.cli import main
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.sampler import OnnxStep, Sampler, export_step, sample_chunks

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
        ours = torch.cat(list(sample_chunks(model, condition, [7])), 1)
        theirs = torch.cat(list(sample_chunks(model, condition, [7], step=OnnxStep(path))), 1)
    assert (ours - theirs).abs().max() < 1e-3
    assert ours.abs().max() > 0.1


@pytest.mark.slow
def test_a_compiled_head_draws_the_same() -> None:
    model = restless(2.0)
    with torch.no_grad():
        condition = model.condition(torch.randn(1, 64, 80))
        plain = torch.cat(list(sample_chunks(model, condition, [7])), 1)
        model.compile_head()
        assert torch.allclose(torch.cat(list(sample_chunks(model, condition, [7])), 1), plain, atol=1e-4)


def test_the_command_writes_a_graph_or_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    restless(2.0).save_pretrained(tmp_path / "run")
    assert main(["export", "--checkpoint", str(tmp_path / "run"), "--output", str(tmp_path / "a.onnx")]) == 0
    assert {file.name for file in tmp_path.iterdir()} == {"run", "a.onnx", "a.json"}
    assert main(["export", "--output", str(tmp_path / "a.bin")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err


def test_a_sampler_draws_with_an_exported_step_and_goes_on_from_a_state(tmp_path: Path) -> None:
    model, path = restless(2.0), tmp_path / "step.onnx"
    export_step(model, path)
    sound = (0.1 * np.random.default_rng(0).normal(size=640 * 50)).astype(np.float32)
    ours, theirs = (Sampler(model, [3], step=step) for step in (None, OnnxStep(path)))
    begun = [torch.cat(list(sampler.push(sound[: 640 * 33])), 1) for sampler in (ours, theirs)]
    assert torch.allclose(*begun, atol=1e-3)
    resumed = Sampler(model, state=theirs.state(), step=OnnxStep(path))
    rest = [torch.cat([*sampler.push(sound[640 * 33 :]), *sampler.finish()], 1) for sampler in (ours, theirs, resumed)]
    assert torch.allclose(rest[0], rest[1], atol=1e-3)
    assert torch.allclose(rest[1], rest[2], atol=1e-3)
    assert rest[0].abs().max() > 0.1

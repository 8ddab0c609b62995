"""Claims about the AR-Flow generator, on a tiny one with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.sampler import sample_from_mel
from flowportrait.models.training_clips import augment_mel
from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER_FACE

TINY = GeneratorConfig(
    hidden=32, layers=2, heads=2, window=4, horizon=6, audio_width=16, head_width=32, head_depth=1, steps=3
)
FRAMES = 40


@pytest.fixture(scope="module")
def model() -> ARFlow:
    torch.manual_seed(0)
    model = ARFlow(TINY).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def mel() -> torch.Tensor:
    return torch.randn(2, 4 * FRAMES, 80, generator=torch.Generator().manual_seed(1))


def test_cached_and_teacher_forced_contexts_agree_beyond_the_horizon(model: ARFlow, mel: torch.Tensor) -> None:
    latents = torch.randn(2, FRAMES // 4, TINY.latent_dim)
    condition = model.condition(mel)
    with torch.no_grad():
        whole = model.contexts(condition, latents)
        session = model.session(condition)
        for chunk in range(latents.shape[1]):
            assert torch.allclose(session.context(), whole[:, chunk], atol=1e-4)
            session.append(latents[:, chunk])


def test_no_chunk_hears_more_than_120_ms_ahead(model: ARFlow, mel: torch.Tensor) -> None:
    changed = mel.clone()
    first = 4 * 24 + 12  # 120 ms after the end of the chunk that ends with frame 23
    changed[:, first:] += 1.0
    before, after = sample_from_mel(model, mel, [3, 4]), sample_from_mel(model, changed, [3, 4])
    assert torch.equal(before[:, :24], after[:, :24])
    assert not torch.equal(before[:, 24:], after[:, 24:])


def test_a_sample_does_not_depend_on_its_neighbours(model: ARFlow, mel: torch.Tensor) -> None:
    together = sample_from_mel(model, mel, [3, 4])
    alone = sample_from_mel(model, mel[1:], [4])
    assert torch.allclose(together[1:], alone, atol=1e-4)


def test_guidance_of_one_is_no_guidance_and_zero_forgets_the_audio(model: ARFlow, mel: torch.Tensor) -> None:
    def at(guidance: float) -> torch.Tensor:
        twin = ARFlow(replace(TINY, guidance=guidance)).eval()
        twin.load_state_dict(model.state_dict())
        return sample_from_mel(twin, mel, [3, 3])

    plain, deaf = at(1.0), at(0.0)
    assert torch.allclose(plain, at(1.000001), atol=1e-3)
    assert torch.allclose(deaf[0], deaf[1], atol=1e-5)
    assert not torch.allclose(plain[0], plain[1], atol=1e-2)


def test_a_checkpoint_survives_the_disk_to_half_precision(model: ARFlow, mel: torch.Tensor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = ARFlow.from_pretrained(tmp_path)
    assert torch.allclose(sample_from_mel(model, mel, [1, 2]), sample_from_mel(loaded, mel, [1, 2]), atol=0.05)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=str(tmp_path)):
        ARFlow.from_pretrained(tmp_path)


def test_augmentation_changes_the_voice_but_not_the_timing() -> None:
    generator = torch.Generator().manual_seed(0)
    mel = torch.full((16, 120, 80), -1.0)
    mel[:, 60:] = 1.0
    heard = augment_mel(mel, generator)
    assert heard.shape == mel.shape
    assert torch.isfinite(heard).all()
    louder = heard[:, 60:].mean((1, 2)) > heard[:, :60].mean((1, 2))
    assert louder.all()
    step = (heard.mean(2).diff(dim=1).argmax(1) - 59).abs()
    assert step.max() == 0


def test_what_is_to_move_more_starts_from_wider_noise_and_lips_do_not(model: ARFlow) -> None:
    wider = ARFlow(replace(model.config, spread_head=2.0, spread_brows=1.5))
    noise = torch.ones(3, model.latent_dim)
    parts = wider.initial_state(noise).unflatten(-1, (-1, model.config.chunk))
    assert (parts[:, HEAD] == 2).all()
    assert (parts[:, BROWS] == 1.5).all()
    assert (parts[:, LOWER_FACE] == 1).all()
    calmer = ARFlow(replace(model.config, spread_mouth=0.5)).initial_state(noise)
    assert (calmer.unflatten(-1, (-1, model.config.chunk))[:, LOWER_FACE] == 0.5).all()
    assert torch.equal(model.initial_state(noise), noise)

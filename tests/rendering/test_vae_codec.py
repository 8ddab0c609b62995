"""Claims about latents of diffusers autoencoders, on small ones of the real classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.rendering.vae_codec import LatentScale, TinyAutoencoder, VaeCodec

diffusers = pytest.importorskip("diffusers")

FOUR = (8, 8, 8, 8)
ONE = (1, 1, 1, 1, 1)


def wan() -> Any:
    return diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def ltx(**more: Any) -> Any:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=FOUR, decoder_block_out_channels=FOUR, layers_per_block=ONE,
        decoder_layers_per_block=ONE, **more,
    )  # fmt: skip


def flux2() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=FOUR, layers_per_block=1, latent_channels=4, norm_num_groups=4
    )


def kl() -> Any:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, scaling_factor=0.36, shift_factor=0.12, **blocks
    )


def tiny() -> Any:
    return diffusers.AutoencoderTiny(encoder_block_out_channels=FOUR, decoder_block_out_channels=FOUR)


def footage(frames: int, height: int = 40, width: int = 50) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (wan, (3, 16, 5, 7)),
        (ltx, (2, 8, 2, 2)),
        (flux2, (6, 16, 3, 4)),
        (kl, (6, 4, 20, 25)),
        (tiny, (6, 4, 5, 7)),
        (lambda: TinyAutoencoder(16, pooled=True), (6, 16, 5, 7)),
    ],
)
def test_as_many_frames_of_the_same_size_come_back(build: Callable[[], Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    codec = VaeCodec(build())
    latents = codec.encode(footage(6))
    assert tuple(latents.values.shape) == shape
    again = list(codec.decode(latents))
    assert len(again) == 6
    assert {frame.shape for frame in again} == {(40, 50, 3)}
    assert {frame.dtype for frame in again} == {np.dtype(np.uint8)}
    assert torch.equal(codec.encode(footage(6)).values, latents.values)


@settings(max_examples=6)
@given(frames=st.integers(1, 11))
def test_wan_groups_four_frames_after_the_first(frames: int) -> None:
    codec = VaeCodec(wan())
    latents = codec.encode(footage(frames, 16, 16))
    assert len(latents.values) == 1 + -(-(frames - 1) // 4)
    assert len(list(codec.decode(latents))) == frames


def test_later_frames_do_not_change_earlier_causal_latents() -> None:
    torch.manual_seed(0)
    codec = VaeCodec(wan())
    clip = footage(9, 16, 16)
    other = clip.copy()
    other[5:] = 0
    assert torch.allclose(codec.encode(clip).values[:2], codec.encode(other).values[:2], atol=1e-5)


def test_image_latents_do_not_depend_on_the_frames_beside_them() -> None:
    torch.manual_seed(0)
    codec = VaeCodec(tiny())
    together = codec.encode(footage(6)).values
    alone = torch.cat([codec.encode(footage(6)[i : i + 1]).values for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("build", [wan, ltx, flux2, kl, tiny])
def test_scaling_is_undone(build: Callable[[], Any]) -> None:
    scale = LatentScale.of(build())
    raw = torch.randn(2, max(1, scale.mean.numel() // scale.patch**2), 4, 4)
    assert torch.allclose(scale.restore(scale.normalise(raw)), raw, atol=1e-5)


def test_each_family_is_scaled_by_its_own_rule() -> None:
    raw = torch.randn(2, 4, 4, 4)
    assert torch.allclose(LatentScale.of(kl()).normalise(raw), (raw - 0.12) * 0.36)
    model = flux2()
    model.bn.running_mean.fill_(2.0)
    model.bn.running_var.fill_(4.0)
    assert LatentScale.of(model).normalise(torch.full((1, 4, 4, 4), 2.0)).abs().max() < 1e-6
    assert LatentScale.of(model).normalise(raw).shape == (2, 16, 2, 2)
    means = torch.tensor(wan().config.latents_mean)
    assert torch.allclose(LatentScale.of(wan()).normalise(means.reshape(1, 16, 1, 1)), torch.zeros(1), atol=1e-6)
    eight = torch.randn(2, 8, 4, 4)
    assert torch.allclose(LatentScale.of(ltx(scaling_factor=0.5)).normalise(eight), eight * 0.5)


def test_a_saved_autoencoder_is_loaded_by_its_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = wan()
    model.save_pretrained(tmp_path / "whole" / "vae")
    codec = VaeCodec.from_pretrained(tmp_path / "whole", subfolder="vae")
    assert torch.equal(codec.encode(footage(5)).values, VaeCodec(model).encode(footage(5)).values)
    with pytest.raises(BadInput, match="No autoencoder could be loaded from"):
        VaeCodec.from_pretrained(tmp_path / "nothing")


def test_published_weight_files_of_a_tiny_autoencoder_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyAutoencoder(16, pooled=True)
    for name in ("encoder", "decoder"):
        torch.save(getattr(model, name).state_dict(), tmp_path / f"{name}.pth")
    again = TinyAutoencoder.read(tmp_path / "encoder.pth", tmp_path / "decoder.pth")
    assert torch.equal(VaeCodec(again).encode(footage(2)).values, VaeCodec(model).encode(footage(2)).values)
    with pytest.raises(BadInput, match="not the two halves"):
        TinyAutoencoder.read(tmp_path / "decoder.pth", tmp_path / "encoder.pth")


@pytest.mark.data
def test_the_tiny_flux2_autoencoder_gives_real_frames_back() -> None:
    data = Path(os.environ["FLOWPORTRAIT_DATA"])
    weights = [data.parent / "models" / f"taef2_{name}.pth" for name in ("encoder", "decoder")]
    from flowportrait.media.video import iter_frames

    frames = np.stack(list(islice(iter_frames(data / "clips" / "obama_uncrop_20s.mp4"), 2)))[:, :256, :256]
    codec = VaeCodec(TinyAutoencoder.read(*weights))
    latents = codec.encode(frames)
    again = np.stack(list(codec.decode(latents)))
    assert 10 * np.log10(255**2 / np.square(again.astype(float) - frames).mean()) > 34
    assert 0.5 < latents.values.std() < 1.5

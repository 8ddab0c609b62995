"""LTX-Video and LTX-2, image to video: the first latent frame is the picture's, clean; latents as tokens.

LTX-2 makes sound along with the picture. Here its sound is given, clean and at time zero like the first frame, so that
the picture is made to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowportrait.errors import BadInput
from flowportrait.policies.families.family import Call, Family

if TYPE_CHECKING:
    import torch

    from flowportrait.policies.interface import Item

FFT = 1024
"""Samples of a window of the sound autoencoder's spectrogram."""


class LTX(Family):
    """x: the latent frames after the first ``[B, C, T − 1, h, w]``."""

    name = "ltx-video"
    pipelines = ("LTXImageToVideoPipeline",)
    takes = frozenset({"text", "image"})
    needs = frozenset({"text", "image"})
    fps = 25.0

    def rows(self, call: Call, x: torch.Tensor) -> Call:
        given = call["hidden_states"].shape[1] - self.packed(x).shape[1]
        return {**call, "hidden_states": call["hidden_states"][:, :given]}

    def call(self, x: torch.Tensor, kept: Call) -> Call:
        import torch

        first = kept["hidden_states"]
        return {**kept, "hidden_states": torch.cat([first, self.packed(x).to(first.dtype)], 1)}

    def read(self, output: Any, x: torch.Tensor, kept: Call) -> torch.Tensor:
        return self.unpacked(output[:, kept["hidden_states"].shape[1] :], x.shape[2:])

    def latents(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        import torch

        first = self.unpacked(kept["hidden_states"], (1, *x.shape[3:]))
        return torch.cat([first.to(x.dtype), x], 2)

    def start(self, x: torch.Tensor, kept: Call) -> torch.Tensor | None:
        return self.packed(self.latents(x, kept))

    def packed(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, C, T, h, w]`` to tokens ``[B, T·h·w, C]``, in patches where the model has such."""
        return self.pipeline._pack_latents(x, *self.patch)

    def unpacked(self, tokens: torch.Tensor, size: Any) -> torch.Tensor:
        """Inverse of ``packed``."""
        return self.pipeline._unpack_latents(tokens, *size, *self.patch)

    @property
    def patch(self) -> tuple[int, int]:
        """Along height and width, and along time."""
        return self.pipeline.transformer_spatial_patch_size, self.pipeline.transformer_temporal_patch_size


class LTX2(LTX):
    """LTX-2, driven by speech."""

    name = "ltx-2"
    pipelines = ("LTX2ImageToVideoPipeline",)
    takes = frozenset({"text", "image", "audio"})
    needs = frozenset({"text", "image", "audio"})
    fps = 24.0
    plain: Mapping[str, float] = {
        "stg_scale": 0.0, "audio_stg_scale": 0.0, "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0,
        "modality_scale": 1.0, "audio_modality_scale": 1.0,
    }  # fmt: skip
    timed = ("timestep", "audio_timestep", "sigma", "audio_sigma")

    def start(self, x: torch.Tensor, kept: Call) -> None:
        # The pipeline makes its own sound: it cannot be given one.
        return None

    def drive(self, kept: Call, item: Item) -> Call:
        import torch

        from flowportrait.media.audio import read_audio

        assert item.audio is not None
        length = kept["audio_hidden_states"].shape[1]
        sound = self.listen(torch.from_numpy(read_audio(item.audio)), length).to(kept["audio_hidden_states"])
        quiet = torch.zeros_like(kept["audio_timestep"])
        return kept | {"audio_hidden_states": sound, "audio_timestep": quiet, "audio_sigma": quiet}

    def listen(self, wave: torch.Tensor, length: int) -> torch.Tensor:
        """Normalised sound tokens ``[1, length, C]`` of 16 kHz speech ``[N]``, cut or followed by silence."""
        import torch.nn.functional as F

        encoder, hop = self.pipeline.audio_vae, self.pipeline.audio_hop_length
        samples = length * self.pipeline.audio_vae_temporal_compression_ratio * hop
        wave = F.pad(wave[:samples], (0, max(0, samples - len(wave))))
        mel = spectrogram(wave, self.pipeline.audio_sampling_rate, hop, encoder.config.mel_bins)
        channels = encoder.config.in_channels
        latents = encoder.encode(mel.expand(1, channels, -1, -1).to(encoder.device, encoder.dtype)).latent_dist.mode()
        tokens = self.pipeline._pack_audio_latents(latents)[:, :length]
        return self.pipeline._normalize_audio_latents(tokens, encoder.latents_mean, encoder.latents_std)


def spectrogram(wave: torch.Tensor, rate: int, hop: int, bands: int) -> torch.Tensor:
    """Log-mel magnitudes ``[1 + N / hop, bands]`` as LTX-2's sound autoencoder was trained on."""
    import torch
    from transformers.audio_utils import mel_filter_bank

    from flowportrait.media.audio import SAMPLE_RATE

    if rate != SAMPLE_RATE:
        raise BadInput(f"The sound autoencoder wants {rate} Hz, where {SAMPLE_RATE} Hz are given: take LTX-2's own.")
    bank = mel_filter_bank(FFT // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    spectrum = torch.stft(wave, FFT, hop, window=torch.hann_window(FFT), return_complex=True).abs()
    return (spectrum.T @ torch.from_numpy(bank).float()).clamp_min(1e-5).log()

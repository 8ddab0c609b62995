"""The families of diffusers pipelines that are known.

FLUX.1 and FLUX.2: latents as tokens, guidance told to the network; FLUX.2 may see pictures beside what it makes.

HunyuanVideo 1.5, image to video: the first frame and a mask in channels beside x; guided by a part of its own.

LTX-Video and LTX-2, image to video: the first latent frame is the picture's, clean; latents as tokens.

LTX-2 makes sound along with the picture. Here its sound is given, clean and at time zero like the first frame, so that
the picture is made to it.

Qwen-Image: FLUX's tokens, texts of any length, and guidance that keeps the length of the prompted prediction.

Stable Diffusion 3 and 3.5: nothing special.

Wan 2.1 and 2.2, image to video: the first frame in channels beside x, or as a first latent that is given (2.2, 5B);
two networks, one for high and one for low noise (2.2, 14B).

Z-Image: lists in place of batches, time from 0 (noise) to 1, the velocity with the other sign.

One thin adapter per family of diffusers pipelines, found by the pipeline's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowportrait.adapters.pipeline_family import Call, Family
from flowportrait.errors import BadInput

if TYPE_CHECKING:
    import torch

    from flowportrait.adapters.pipeline_family import RecordedStep
    from flowportrait.adapters.policy import Item


class Flux(Family):
    """FLUX.1: tokens of 2 × 2 latents; true guidance beside the embedded one where a negative prompt is given."""

    name = "flux.1"
    pipelines = ("FluxPipeline",)
    guided_by = "true_cfg_scale"

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels) // 4

    def latents(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        high, wide = (int(kept["img_ids"][: x.shape[1], axis].max()) + 1 for axis in (1, 2))
        cell = 2 * self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(x, high * cell, wide * cell, self.pipeline.vae_scale_factor)


class Flux2(Family):
    """FLUX.2: tokens of one normalised 2 × 2 patch each, then those of reference pictures."""

    name = "flux.2"
    pipelines = ("Flux2KleinPipeline", "Flux2Pipeline")
    takes = frozenset({"text", "image"})

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels) // 4

    def shift(self, recorded: RecordedStep, steps: int) -> float | None:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(image_seq_len=recorded.sample.shape[1], num_steps=steps))

    def latents(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        ids = kept["img_ids"][0, : x.shape[1]]
        high, wide = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
        return x.transpose(1, 2).unflatten(2, (high, wide))

    def start(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        return self.latents(x, kept)


class HunyuanVideo15(Family):
    """See the module."""

    name = "hunyuan-video-1.5"
    pipelines = ("HunyuanVideo15ImageToVideoPipeline",)
    takes = frozenset({"text", "image"})
    needs = frozenset({"text", "image"})
    fps = 24.0

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.out_channels)

    def guidance(self, arguments: dict[str, Any]) -> float:
        guider = self.pipeline.guider
        if (guider._start, guider._stop) != (0.0, 1.0):
            raise BadInput("The guider starts late or stops early, which is not replayed: let it guide at every step.")
        return float(guider.guidance_scale)


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


LONGEST = 512
"""Text tokens that rows are filled up to; a batch is cut to its own longest."""


class QwenImage(Family):
    """v = u·‖v⁺‖/‖u‖ with u = v⁻ + w (v⁺ − v⁻), norms per token."""

    name = "qwen-image"
    pipelines = ("QwenImagePipeline",)
    guided_by = "true_cfg_scale"

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels) // 4

    def rows(self, call: Call, x: torch.Tensor) -> Call:
        import torch
        import torch.nn.functional as F

        text, mask = call["encoder_hidden_states"], call.get("encoder_hidden_states_mask")
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask.bool()
        missing = max(0, LONGEST - text.shape[1])
        return super().rows(call, x) | {
            "encoder_hidden_states": F.pad(text, (0, 0, 0, missing)),
            "encoder_hidden_states_mask": F.pad(mask, (0, missing)),
        }

    def call(self, x: torch.Tensor, kept: Call) -> Call:
        mask = kept["encoder_hidden_states_mask"]
        used = int(mask.sum(1).max())
        return super().call(x, kept) | {
            "encoder_hidden_states": kept["encoder_hidden_states"][:, :used],
            "encoder_hidden_states_mask": mask[:, :used],
            "img_shapes": kept["img_shapes"] * len(x),
        }

    def guide(self, prompted: torch.Tensor, unprompted: torch.Tensor, weight: float) -> torch.Tensor:
        combined = super().guide(prompted, unprompted, weight)
        return combined * (prompted.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def latents(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        ((_, high, wide),) = kept["img_shapes"][0]
        cell = 2 * self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(x, high * cell, wide * cell, self.pipeline.vae_scale_factor)


class SD3(Family):
    """True guidance, both branches in one call."""

    name = "sd3.5"
    pipelines = ("StableDiffusion3Pipeline",)


class Wan(Family):
    """See the module."""

    name = "wan"
    pipelines = ("WanImageToVideoPipeline",)
    takes = frozenset({"text", "image"})
    needs = frozenset({"text", "image"})
    fps = 16.0

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.out_channels)

    @property
    def first_given(self) -> bool:
        """Whether the first latent frame is the picture's, clean."""
        return bool(self.pipeline.config.expand_timesteps)

    def sampled(self, sample: torch.Tensor) -> torch.Tensor:
        return sample[:, :, 1:] if self.first_given else sample

    def rows(self, call: Call, x: torch.Tensor) -> Call:
        if self.first_given:
            return {**call, "hidden_states": call["hidden_states"][:, :, :1]}
        return super().rows(call, x)

    def call(self, x: torch.Tensor, kept: Call) -> Call:
        import torch

        if self.first_given:
            first = kept["hidden_states"]
            return {**kept, "hidden_states": torch.cat([first, x.to(first.dtype)], 2)}
        return super().call(x, kept)

    def network(self, call: Call, sigma: torch.Tensor) -> Any:
        import torch

        ratio = self.pipeline.config.boundary_ratio
        if ratio is None:
            return super().network(call, sigma)
        low = sigma < ratio
        result = call["hidden_states"].new_empty(0)
        for rows, part in ((~low, self.pipeline.transformer), (low, self.pipeline.transformer_2)):
            if rows.any():
                own = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in call.items()}
                made = part(**own, return_dict=False)[0]
                result = result if len(result) else made.new_zeros(len(sigma), *made.shape[1:])
                result = result.index_put((rows.nonzero()[:, 0],), made)
        return result

    def read(self, output: Any, x: torch.Tensor, kept: Call) -> torch.Tensor:
        return output[:, :, 1:] if self.first_given else super().read(output, x, kept)

    def latents(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        import torch

        return torch.cat([kept["hidden_states"].to(x.dtype), x], 2) if self.first_given else x

    def start(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        return self.latents(x, kept)


"""Text tokens that rows are filled up to; the network gets each text at its own length."""


class ZImage(Family):
    """v = −(u⁺ + w (u⁺ − u⁻)) of the network's u."""

    name = "z-image"
    pipelines = ("ZImagePipeline",)
    prompted_first = True

    def rows(self, call: Call, x: torch.Tensor) -> Call:
        import torch
        import torch.nn.functional as F

        (text,) = call["cap_feats"]
        length = torch.tensor([len(text)], device=text.device)
        padded = F.pad(text, (0, 0, 0, max(0, LONGEST - len(text))))[None]
        rest = {name: value for name, value in call.items() if name not in ("x", "t", "cap_feats")}
        return rest | {"timestep": call["t"], "text": padded, "length": length}

    def call(self, x: torch.Tensor, kept: Call) -> Call:
        rest = {name: value for name, value in kept.items() if name not in ("timestep", "text", "length")}
        texts = [text[:length] for text, length in zip(kept["text"], kept["length"].tolist(), strict=True)]
        return rest | {"x": list(x.to(kept["text"].dtype).unsqueeze(2).unbind()), "t": kept["timestep"],
                       "cap_feats": texts}  # fmt: skip

    def times(self, sigma: torch.Tensor, recorded: torch.Tensor, time: float) -> torch.Tensor:
        return 1 - sigma

    def read(self, output: Any, x: torch.Tensor, kept: Call) -> torch.Tensor:
        import torch

        return -torch.stack(list(output)).float().squeeze(2)

    def guide(self, prompted: torch.Tensor, unprompted: torch.Tensor, weight: float) -> torch.Tensor:
        return prompted + weight * (prompted - unprompted)


FAMILIES: tuple[type[Family], ...] = (
    LTX2, LTX, Wan, HunyuanVideo15, SD3, Flux, Flux2, ZImage,
    QwenImage,
)  # fmt: skip
"""Every family, video first."""


def family_of(pipeline: Any) -> Family:
    """The adapter for a pipeline.

    Raises:
        BadInput: its class is of no family, with the classes that are.
    """
    name = type(pipeline).__name__
    for family in FAMILIES:
        if name in family.pipelines:
            return family(pipeline)
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise BadInput(
        f"{name} is of no supported family: load it as one of {known}, or write a generator of three methods "
        "(docs/own_generator.md)."
    )

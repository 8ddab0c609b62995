"""The supported families of diffusers pipelines: one thin adapter per family, found by the class of the pipeline.

    FLUX.1, FLUX.2        latents as tokens, guidance as an input of the network; FLUX.2 takes reference pictures
    HunyuanVideo 1.5      image to video; the first frame and a mask in further channels
    LTX-Video, LTX-2      image to video; the first latent frame is clean, latents as tokens; LTX-2 with given speech
    Qwen-Image            FLUX's tokens, texts of any length, guidance that keeps a norm
    Stable Diffusion 3    no peculiarities
    Wan 2.1, 2.2          image to video; two networks in the 14B of 2.2
    Z-Image               lists instead of batches, time from 0 to 1, the velocity with the opposite sign

Each overrides the methods of ``PipelineFamily`` in which it differs. ``family_of`` finds the adapter of a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowportrait.adapters.pipeline_family import Call, PipelineFamily
from flowportrait.errors import BadInput

if TYPE_CHECKING:
    import torch

    from flowportrait.adapters.policy import Item
    from flowportrait.adapters.recorded_calls import RecordedStep


class Flux(PipelineFamily):
    """FLUX.1: tokens of 2 × 2 latents; with a negative prompt, true guidance besides the embedded one."""

    name = "flux.1"
    pipelines = ("FluxPipeline",)
    guidance_argument = "true_cfg_scale"

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels) // 4

    def latents(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        high, wide = (int(arguments["img_ids"][: x.shape[1], axis].max()) + 1 for axis in (1, 2))
        cell = 2 * self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(x, high * cell, wide * cell, self.pipeline.vae_scale_factor)


class Flux2(PipelineFamily):
    """FLUX.2: one token per normalised 2 × 2 patch, followed by the tokens of reference pictures."""

    name = "flux.2"
    pipelines = ("Flux2KleinPipeline", "Flux2Pipeline")
    takes = frozenset({"text", "image"})

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels) // 4

    def shift(self, recorded: RecordedStep, steps: int) -> float | None:
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(image_seq_len=recorded.sample.shape[1], num_steps=steps))

    def latents(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        ids = arguments["img_ids"][0, : x.shape[1]]
        high, wide = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
        return x.transpose(1, 2).unflatten(2, (high, wide))

    def start(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        return self.latents(x, arguments)


class HunyuanVideo15(PipelineFamily):
    """HunyuanVideo 1.5, image to video: the first frame and a mask are further channels; a guider object guides."""

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


class LTX(PipelineFamily):
    """LTX-Video, image to video: the first latent frame is that of the picture, clean; latents as tokens.

    x holds the latent frames after the first ``[B, C, T − 1, h, w]``.
    """

    name = "ltx-video"
    pipelines = ("LTXImageToVideoPipeline",)
    takes = frozenset({"text", "image"})
    needs = frozenset({"text", "image"})
    fps = 25.0

    def recorded_inputs(self, call: Call, x: torch.Tensor) -> Call:
        clean_tokens = call["hidden_states"].shape[1] - self.pack(x).shape[1]
        return {**call, "hidden_states": call["hidden_states"][:, :clean_tokens]}

    def call(self, x: torch.Tensor, arguments: Call) -> Call:
        import torch

        first = arguments["hidden_states"]
        return {**arguments, "hidden_states": torch.cat([first, self.pack(x).to(first.dtype)], 1)}

    def read_velocity(self, output: Any, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        return self.unpack(output[:, arguments["hidden_states"].shape[1] :], x.shape[2:])

    def latents(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        import torch

        first = self.unpack(arguments["hidden_states"], (1, *x.shape[3:]))
        return torch.cat([first.to(x.dtype), x], 2)

    def start(self, x: torch.Tensor, arguments: Call) -> torch.Tensor | None:
        return self.pack(self.latents(x, arguments))

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Rearrange ``[B, C, T, h, w]`` to tokens ``[B, T·h·w, C]``, or to one token per patch if there are patches."""
        return self.pipeline._pack_latents(x, *self.patch)

    def unpack(self, tokens: torch.Tensor, size: Any) -> torch.Tensor:
        """Rearrange tokens to ``[B, C, T, h, w]``, the inverse of ``pack``."""
        return self.pipeline._unpack_latents(tokens, *size, *self.patch)

    @property
    def patch(self) -> tuple[int, int]:
        """Size of a patch along height and width, and along time."""
        return self.pipeline.transformer_spatial_patch_size, self.pipeline.transformer_temporal_patch_size


FFT_SIZE = 1024
"""Samples in a window of the sound autoencoder's spectrogram."""


class LTX2(LTX):
    """LTX-2, driven by speech.

    The pipeline generates sound along with the picture. Here the sound is given, clean and at time zero like the first
    frame, so that the picture follows it.
    """

    name = "ltx-2"
    pipelines = ("LTX2ImageToVideoPipeline",)
    takes = frozenset({"text", "image", "audio"})
    needs = frozenset({"text", "image", "audio"})
    fps = 24.0
    neutral_arguments: Mapping[str, float] = {
        "stg_scale": 0.0, "audio_stg_scale": 0.0, "guidance_rescale": 0.0, "audio_guidance_rescale": 0.0,
        "modality_scale": 1.0, "audio_modality_scale": 1.0,
    }  # fmt: skip
    timestep_arguments = ("timestep", "audio_timestep", "sigma", "audio_sigma")

    def start(self, x: torch.Tensor, arguments: Call) -> None:
        # The pipeline generates its own sound and cannot be given one.
        return None

    def add_inputs(self, arguments: Call, item: Item) -> Call:
        import torch

        from flowportrait.media.audio import read_audio

        assert item.audio is not None
        length = arguments["audio_hidden_states"].shape[1]
        sound = self.encode_speech(torch.from_numpy(read_audio(item.audio)), length).to(
            arguments["audio_hidden_states"]
        )
        quiet = torch.zeros_like(arguments["audio_timestep"])
        return arguments | {"audio_hidden_states": sound, "audio_timestep": quiet, "audio_sigma": quiet}

    def encode_speech(self, wave: torch.Tensor, length: int) -> torch.Tensor:
        """Encode 16 kHz speech ``[N]``, cut or padded with silence, as normalised sound tokens ``[1, length, C]``."""
        import torch.nn.functional as F

        encoder, hop = self.pipeline.audio_vae, self.pipeline.audio_hop_length
        samples = length * self.pipeline.audio_vae_temporal_compression_ratio * hop
        wave = F.pad(wave[:samples], (0, max(0, samples - len(wave))))
        mel = log_mel_magnitudes(wave, self.pipeline.audio_sampling_rate, hop, encoder.config.mel_bins)
        channels = encoder.config.in_channels
        latents = encoder.encode(mel.expand(1, channels, -1, -1).to(encoder.device, encoder.dtype)).latent_dist.mode()
        tokens = self.pipeline._pack_audio_latents(latents)[:, :length]
        return self.pipeline._normalize_audio_latents(tokens, encoder.latents_mean, encoder.latents_std)


def log_mel_magnitudes(wave: torch.Tensor, rate: int, hop: int, bands: int) -> torch.Tensor:
    """Return the log-mel magnitudes ``[1 + N / hop, bands]`` that LTX-2's sound autoencoder was trained on.

    Raises:
        BadInput: the autoencoder has another sampling rate than 16 kHz.
    """
    import torch
    from transformers.audio_utils import mel_filter_bank

    from flowportrait.media.audio import SAMPLE_RATE

    if rate != SAMPLE_RATE:
        raise BadInput(f"The sound autoencoder expects {rate} Hz but gets {SAMPLE_RATE} Hz: take LTX-2's own.")
    bank = mel_filter_bank(FFT_SIZE // 2 + 1, bands, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    spectrum = torch.stft(wave, FFT_SIZE, hop, window=torch.hann_window(FFT_SIZE), return_complex=True).abs()
    return (spectrum.T @ torch.from_numpy(bank).float()).clamp_min(1e-5).log()


MAX_TEXT_TOKENS = 512
"""Text tokens that rows are padded to; the network gets a batch cut to its longest text."""


class QwenImage(PipelineFamily):
    """Qwen-Image: FLUX's tokens, texts of any length, and guidance that keeps the norm of the prompted prediction.

    v = u·‖v⁺‖/‖u‖ with u = v⁻ + w (v⁺ − v⁻), norms per token
    """

    name = "qwen-image"
    pipelines = ("QwenImagePipeline",)
    guidance_argument = "true_cfg_scale"

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.in_channels) // 4

    def recorded_inputs(self, call: Call, x: torch.Tensor) -> Call:
        import torch
        import torch.nn.functional as F

        text, mask = call["encoder_hidden_states"], call.get("encoder_hidden_states_mask")
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask.bool()
        missing = max(0, MAX_TEXT_TOKENS - text.shape[1])
        return super().recorded_inputs(call, x) | {
            "encoder_hidden_states": F.pad(text, (0, 0, 0, missing)),
            "encoder_hidden_states_mask": F.pad(mask, (0, missing)),
        }

    def call(self, x: torch.Tensor, arguments: Call) -> Call:
        mask = arguments["encoder_hidden_states_mask"]
        used = int(mask.sum(1).max())
        return super().call(x, arguments) | {
            "encoder_hidden_states": arguments["encoder_hidden_states"][:, :used],
            "encoder_hidden_states_mask": mask[:, :used],
            "img_shapes": arguments["img_shapes"] * len(x),
        }

    def guide(self, prompted: torch.Tensor, unprompted: torch.Tensor, weight: float) -> torch.Tensor:
        combined = super().guide(prompted, unprompted, weight)
        return combined * (prompted.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))

    def latents(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        ((_, high, wide),) = arguments["img_shapes"][0]
        cell = 2 * self.pipeline.vae_scale_factor
        return self.pipeline._unpack_latents(x, high * cell, wide * cell, self.pipeline.vae_scale_factor)


class SD3(PipelineFamily):
    """Stable Diffusion 3 and 3.5: true guidance, with both branches in one call."""

    name = "sd3.5"
    pipelines = ("StableDiffusion3Pipeline",)


class Wan(PipelineFamily):
    """Wan 2.1 and 2.2, image to video.

    The first frame is given in further channels, or as a first latent frame (2.2, 5B). The 14B of 2.2 has two networks,
    one for high and one for low noise.
    """

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
        """Whether the first latent frame is that of the picture, clean."""
        return bool(self.pipeline.config.expand_timesteps)

    def generated_part(self, sample: torch.Tensor) -> torch.Tensor:
        return sample[:, :, 1:] if self.first_given else sample

    def recorded_inputs(self, call: Call, x: torch.Tensor) -> Call:
        if self.first_given:
            return {**call, "hidden_states": call["hidden_states"][:, :, :1]}
        return super().recorded_inputs(call, x)

    def call(self, x: torch.Tensor, arguments: Call) -> Call:
        import torch

        if self.first_given:
            first = arguments["hidden_states"]
            return {**arguments, "hidden_states": torch.cat([first, x.to(first.dtype)], 2)}
        return super().call(x, arguments)

    def network(self, call: Call, sigma: torch.Tensor) -> Any:
        import torch

        ratio = self.pipeline.config.boundary_ratio
        if ratio is None:
            return super().network(call, sigma)
        low = sigma < ratio
        result = call["hidden_states"].new_empty(0)
        for rows, part in ((~low, self.pipeline.transformer), (low, self.pipeline.transformer_2)):
            if rows.any():
                arguments = {
                    name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in call.items()
                }
                output = part(**arguments, return_dict=False)[0]
                result = result if len(result) else output.new_zeros(len(sigma), *output.shape[1:])
                result = result.index_put((rows.nonzero()[:, 0],), output)
        return result

    def read_velocity(self, output: Any, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        return output[:, :, 1:] if self.first_given else super().read_velocity(output, x, arguments)

    def latents(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        import torch

        return torch.cat([arguments["hidden_states"].to(x.dtype), x], 2) if self.first_given else x

    def start(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        return self.latents(x, arguments)


class ZImage(PipelineFamily):
    """Z-Image: lists instead of batches, time from 0 (noise) to 1, and the velocity with the opposite sign.

    v = −(u⁺ + w (u⁺ − u⁻)) of the network's output u. The network gets each text at its own length.
    """

    name = "z-image"
    pipelines = ("ZImagePipeline",)
    prompted_first = True

    def recorded_inputs(self, call: Call, x: torch.Tensor) -> Call:
        import torch
        import torch.nn.functional as F

        (text,) = call["cap_feats"]
        length = torch.tensor([len(text)], device=text.device)
        padded = F.pad(text, (0, 0, 0, max(0, MAX_TEXT_TOKENS - len(text))))[None]
        rest = {name: value for name, value in call.items() if name not in ("x", "t", "cap_feats")}
        return rest | {"timestep": call["t"], "text": padded, "length": length}

    def call(self, x: torch.Tensor, arguments: Call) -> Call:
        rest = {name: value for name, value in arguments.items() if name not in ("timestep", "text", "length")}
        texts = [text[:length] for text, length in zip(arguments["text"], arguments["length"].tolist(), strict=True)]
        return rest | {"x": list(x.to(arguments["text"].dtype).unsqueeze(2).unbind()), "t": arguments["timestep"],
                       "cap_feats": texts}  # fmt: skip

    def timesteps(self, sigma: torch.Tensor, recorded: torch.Tensor, time: float) -> torch.Tensor:
        return 1 - sigma

    def read_velocity(self, output: Any, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        import torch

        return -torch.stack(list(output)).float().squeeze(2)

    def guide(self, prompted: torch.Tensor, unprompted: torch.Tensor, weight: float) -> torch.Tensor:
        return prompted + weight * (prompted - unprompted)


FAMILIES: tuple[type[PipelineFamily], ...] = (LTX2, LTX, Wan, HunyuanVideo15, SD3, Flux, Flux2, ZImage, QwenImage)
"""All families, video first."""


def family_of(pipeline: Any) -> PipelineFamily:
    """Return the adapter of a pipeline.

    Raises:
        BadInput: no family has the class of the pipeline; the message lists the classes that are supported.
    """
    name = type(pipeline).__name__
    for family in FAMILIES:
        if name in family.pipelines:
            return family(pipeline)
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise BadInput(
        f"{name} is of no supported family: load it as one of {known}, or write a generator of three methods "
        "(docs/guides/generators.md)."
    )

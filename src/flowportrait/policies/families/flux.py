"""FLUX.1 and FLUX.2: latents as tokens, guidance told to the network; FLUX.2 may see pictures beside what it makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowportrait.policies.families.family import Call, Family

if TYPE_CHECKING:
    import torch

    from flowportrait.policies.recorded_call import RecordedStep


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

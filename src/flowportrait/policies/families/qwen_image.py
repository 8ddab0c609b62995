"""Qwen-Image: FLUX's tokens, texts of any length, and guidance that keeps the length of the prompted prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowportrait.policies.families.family import Call, Family

if TYPE_CHECKING:
    import torch

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

"""Wan 2.1 and 2.2, image to video: the first frame in channels beside x, or as a first latent that is given (2.2, 5B);
two networks, one for high and one for low noise (2.2, 14B)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowportrait.policies.families.family import Call, Family

if TYPE_CHECKING:
    import torch


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

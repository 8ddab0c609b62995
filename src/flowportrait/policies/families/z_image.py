"""Z-Image: lists in place of batches, time from 0 (noise) to 1, the velocity with the other sign."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowportrait.policies.families.family import Call, Family

if TYPE_CHECKING:
    import torch

LONGEST = 512
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

"""What the families of pipelines have in common, and where they may differ.

hidden_states = x, followed in dimension 1 by what the model is shown beside it (masks, first frame, references)
timestep      = what was recorded at time t, times σ·1000 / t                       (0 where the picture is given)
v             = v⁻ + w (v⁺ − v⁻), of the first ``x.shape[1]`` entries of the output
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from flowportrait.policies.interface import Item
    from flowportrait.policies.recorded_call import RecordedStep

Call = dict[str, Any]
"""Arguments of the transformer by name."""


class Family:
    """A family with nothing special; see ``families`` for those with."""

    name = ""
    pipelines: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset({"text"})
    """What its items may have; an image is an image to animate."""
    needs: frozenset[str] = frozenset({"text"})
    """What its items must have."""
    guided_by = "guidance_scale"
    """The pipeline's argument that sets true guidance."""
    prompted_first = False
    """In one call for both branches, whether the prompted one comes first."""
    plain: Mapping[str, float] = {}
    """Arguments that switch off what the pipeline adds to guidance by default."""
    timed: tuple[str, ...] = ("timestep",)
    """Arguments of the transformer that follow the noise level."""
    fps = 25.0

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def latent_channels(self) -> int:
        """Channels of the autoencoder's latents that the transformer works in."""
        return int(self.pipeline.transformer.config.in_channels)

    def guidance(self, arguments: dict[str, Any]) -> float:
        """w, given what the pipeline is called with."""
        default = inspect.signature(self.pipeline.__call__).parameters[self.guided_by].default
        return float(arguments.get(self.guided_by, default))

    def sampled(self, sample: torch.Tensor) -> torch.Tensor:
        """Of what the scheduler integrates, what is not given."""
        return sample

    def rows(self, call: Call, x: torch.Tensor) -> Call:
        """A call that was recorded, without x itself: only what is kept of it."""
        return {**call, "hidden_states": call["hidden_states"][:, x.shape[1] :]}

    def call(self, x: torch.Tensor, kept: Call) -> Call:
        """Inverse of ``rows`` for any x."""
        import torch

        hidden = torch.cat([x.to(kept["hidden_states"].dtype), kept["hidden_states"]], 1)
        return {**kept, "hidden_states": hidden}

    def drive(self, kept: Call, item: Item) -> Call:
        """The call with what the pipeline has no argument for."""
        return kept

    def times(self, sigma: torch.Tensor, recorded: torch.Tensor, time: float) -> torch.Tensor:
        """Time steps at noise levels ``[B]``, from those recorded at ``time`` ``[B, …]``."""
        level = sigma.reshape(-1, *(1,) * (recorded.ndim - 1))
        return recorded.float() * (level * (1000.0 / time))

    def network(self, call: Call, sigma: torch.Tensor) -> Any:
        """The transformer's output."""
        return self.pipeline.transformer(**call, return_dict=False)[0]

    def read(self, output: Any, x: torch.Tensor, kept: Call) -> torch.Tensor:
        """Velocity in the shape of x."""
        return output[:, : x.shape[1]]

    def guide(self, prompted: torch.Tensor, unprompted: torch.Tensor, weight: float) -> torch.Tensor:
        """Both branches combined."""
        return unprompted + weight * (prompted - unprompted)

    def shift(self, recorded: RecordedStep, steps: int) -> float | None:
        """mu of the schedule of so many steps."""
        return recorded.mu

    def start(self, x: torch.Tensor, kept: Call) -> torch.Tensor | None:
        """x at σ = 1 as the pipeline takes it for its argument ``latents``, if it can be given all that was asked."""
        return x

    def latents(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        """x as the autoencoder's normalised latents ``[B, C, h, w]`` or ``[B, C, T, h, w]``."""
        return x

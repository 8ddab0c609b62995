"""The base class of families of diffusers pipelines.

    pipeline(prompt, …) ─► encoders ─► transformer(hidden_states, timestep, conditions) ─► scheduler.step(v, t, x)
                                              └── recorded: calls ──┘                        └─ recorded, and stop

The pipeline itself encodes texts and pictures, builds masks and packs latents; nothing of this is implemented here
again. The record is also a test: the velocity computed from the calls must equal the one that the pipeline passed to
its scheduler. ``PipelineFamily`` turns recorded calls (``adapters.recorded_calls``) into calls at any x and σ.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from flowportrait.adapters.policy import Item
    from flowportrait.adapters.recorded_calls import RecordedStep


# --- Families ----------------------------------------------------------------------------------------------------

Call = dict[str, Any]
"""Arguments of the transformer by name."""


class PipelineFamily:
    """A family of pipelines. The defaults below fit most; ``adapters.families`` overrides where a family differs.

    hidden_states = x, followed in dimension 1 by further inputs (masks, first frame, references)
    timestep      = the recorded one at time t, times σ·1000 / t                       (0 for a given picture)
    v             = v⁻ + w (v⁺ − v⁻), of the first ``x.shape[1]`` entries of the output
    """

    name = ""
    pipelines: tuple[str, ...] = ()
    takes: frozenset[str] = frozenset({"text"})
    """Inputs that its items may have: text, image or audio; an image is an image to animate."""
    needs: frozenset[str] = frozenset({"text"})
    """Inputs that its items must have."""
    guidance_argument = "guidance_scale"
    """The argument of the pipeline that sets the weight of true guidance."""
    prompted_first = False
    """Whether the prompted branch comes first in one call for both branches."""
    neutral_arguments: Mapping[str, float] = {}
    """Arguments that switch off the pipeline's default additions to guidance."""
    timestep_arguments: tuple[str, ...] = ("timestep",)
    """Arguments of the transformer that depend on the noise level."""
    fps = 25.0
    """Default frame rate of its videos."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def latent_channels(self) -> int:
        """Channels of the autoencoder's latents that the transformer works in."""
        return int(self.pipeline.transformer.config.in_channels)

    def guidance(self, arguments: dict[str, Any]) -> float:
        """Return the weight w of guidance, given the arguments of the pipeline."""
        default = inspect.signature(self.pipeline.__call__).parameters[self.guidance_argument].default
        return float(arguments.get(self.guidance_argument, default))

    def generated_part(self, sample: torch.Tensor) -> torch.Tensor:
        """Return x, the part of the scheduler's sample that is generated and not given."""
        return sample

    def recorded_inputs(self, call: Call, x: torch.Tensor) -> Call:
        """Return a recorded call without x; only this part is stored."""
        return {**call, "hidden_states": call["hidden_states"][:, x.shape[1] :]}

    def call(self, x: torch.Tensor, arguments: Call) -> Call:
        """Return the call at any x, the inverse of ``recorded_inputs``."""
        import torch

        hidden = torch.cat([x.to(arguments["hidden_states"].dtype), arguments["hidden_states"]], 1)
        return {**arguments, "hidden_states": hidden}

    def add_inputs(self, arguments: Call, item: Item) -> Call:
        """Return the call with inputs of the item for which the pipeline has no argument."""
        return arguments

    def timesteps(self, sigma: torch.Tensor, recorded: torch.Tensor, time: float) -> torch.Tensor:
        """Return the time steps ``[B, …]`` at noise levels ``[B]``, given those recorded at ``time``."""
        level = sigma.reshape(-1, *(1,) * (recorded.ndim - 1))
        return recorded.float() * (level * (1000.0 / time))

    def network(self, call: Call, sigma: torch.Tensor) -> Any:
        """Return the output of the transformer."""
        return self.pipeline.transformer(**call, return_dict=False)[0]

    def read_velocity(self, output: Any, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        """Return the velocity in the shape of x, from the output of the transformer."""
        return output[:, : x.shape[1]]

    def guide(self, prompted: torch.Tensor, unprompted: torch.Tensor, weight: float) -> torch.Tensor:
        """Return the guided velocity, given those with and without the prompt."""
        return unprompted + weight * (prompted - unprompted)

    def shift(self, recorded: RecordedStep, steps: int) -> float | None:
        """Return mu, the shift of the schedule for a number of steps."""
        return recorded.mu

    def start(self, x: torch.Tensor, arguments: Call) -> torch.Tensor | None:
        """Return x at σ = 1 as the pipeline's argument ``latents``, or None if it cannot be given the same inputs."""
        return x

    def latents(self, x: torch.Tensor, arguments: Call) -> torch.Tensor:
        """Return x as normalised latents of the autoencoder, ``[B, C, h, w]`` or ``[B, C, T, h, w]``."""
        return x

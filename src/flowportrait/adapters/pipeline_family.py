"""The base class of families of diffusers pipelines, and recording what a pipeline passes to its transformer.

    pipeline(prompt, …) ─► encoders ─► transformer(hidden_states, timestep, conditions) ─► scheduler.step(v, t, x)
                                              └── recorded: calls ──┘                        └─ recorded, and stop

The pipeline itself encodes texts and pictures, masks and packs; none of that is implemented again here. The record is
also a test: the velocity computed from the calls must be the one that the pipeline gave its scheduler. ``PipelineFamily`` turns
recorded calls into calls at any x and σ.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    from flowportrait.adapters.policy import Item


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
        """Return a recorded call without x, which is what is kept of it."""
        return {**call, "hidden_states": call["hidden_states"][:, x.shape[1] :]}

    def call(self, x: torch.Tensor, kept: Call) -> Call:
        """Return the call at any x, the inverse of ``recorded_inputs``."""
        import torch

        hidden = torch.cat([x.to(kept["hidden_states"].dtype), kept["hidden_states"]], 1)
        return {**kept, "hidden_states": hidden}

    def add_inputs(self, kept: Call, item: Item) -> Call:
        """Return the call with inputs of the item for which the pipeline has no argument."""
        return kept

    def timesteps(self, sigma: torch.Tensor, recorded: torch.Tensor, time: float) -> torch.Tensor:
        """Return the time steps ``[B, …]`` at noise levels ``[B]``, given those recorded at ``time``."""
        level = sigma.reshape(-1, *(1,) * (recorded.ndim - 1))
        return recorded.float() * (level * (1000.0 / time))

    def network(self, call: Call, sigma: torch.Tensor) -> Any:
        """Return the output of the transformer."""
        return self.pipeline.transformer(**call, return_dict=False)[0]

    def read_velocity(self, output: Any, x: torch.Tensor, kept: Call) -> torch.Tensor:
        """Return the velocity in the shape of x, from the output of the transformer."""
        return output[:, : x.shape[1]]

    def guide(self, prompted: torch.Tensor, unprompted: torch.Tensor, weight: float) -> torch.Tensor:
        """Return the guided velocity, given those with and without the prompt."""
        return unprompted + weight * (prompted - unprompted)

    def shift(self, recorded: RecordedStep, steps: int) -> float | None:
        """Return mu, the shift of the schedule for a number of steps."""
        return recorded.mu

    def start(self, x: torch.Tensor, kept: Call) -> torch.Tensor | None:
        """Return x at σ = 1 as the pipeline's argument ``latents``, or None if it cannot be given the same inputs."""
        return x

    def latents(self, x: torch.Tensor, kept: Call) -> torch.Tensor:
        """Return x as normalised latents of the autoencoder, ``[B, C, h, w]`` or ``[B, C, T, h, w]``."""
        return x


# --- Recording ---------------------------------------------------------------------------------------------------


class RecordedStep(NamedTuple):
    """The first denoising step of a pipeline.

    Attributes:
        calls: the transformer's arguments by name, one dict per call.
        velocity: what the scheduler got, like ``time`` (0 to 1000) and ``sample``.
        mu: the shift of the schedule, where the pipeline sets one.
        evenly: whether the pipeline asks for evenly spaced levels before they are shifted, or leaves them to its
            scheduler.
    """

    calls: list[dict[str, Any]]
    velocity: torch.Tensor
    time: torch.Tensor
    sample: torch.Tensor
    mu: float | None
    evenly: bool


class _StopPipeline(Exception):
    """Raised to leave the pipeline once everything is recorded."""


@torch.no_grad()
def record_first_step(pipeline: Any, arguments: Mapping[str, Any]) -> RecordedStep:
    """Run ``pipeline(**arguments)`` up to the first step of its scheduler, and return what was recorded.

    Raises:
        BadInput: the pipeline refuses the arguments.
    """
    calls: list[dict[str, Any]] = []
    recorded: dict[str, Any] = {}
    scheduler = copy.deepcopy(pipeline.scheduler)
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def record_schedule(*args: Any, **kwargs: Any) -> None:
        recorded.update(mu=kwargs.get("mu"), evenly=kwargs.get("sigmas") is not None)
        set_timesteps(*args, **kwargs)

    def record_step(velocity: torch.Tensor, time: torch.Tensor, sample: torch.Tensor, **_: Any) -> None:
        recorded.update(velocity=velocity, time=time, sample=sample)
        raise _StopPipeline

    scheduler.set_timesteps, scheduler.step = record_schedule, record_step
    with _with_scheduler(pipeline, scheduler), _recording_calls(pipeline.transformer, calls):
        try:
            pipeline(**arguments, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
        except _StopPipeline:
            pass
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f"{type(pipeline).__name__} refuses what it is given ({reason}).") from error
    return RecordedStep(calls, **recorded)


@contextmanager
def with_euler_steps(pipeline: Any, levels: torch.Tensor) -> Iterator[None]:
    """Let the pipeline take Euler steps inside the block; another scheduler is replaced at the same noise levels.

    Args:
        pipeline: a diffusers pipeline.
        levels: noise levels ``[K + 1]``.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = copy.deepcopy(pipeline.scheduler)
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler = FlowMatchEulerDiscreteScheduler()
        set_timesteps = scheduler.set_timesteps
        scheduler.set_timesteps = lambda *_, **__: set_timesteps(sigmas=levels[:-1].tolist())
    with _with_scheduler(pipeline, scheduler):
        yield


@contextmanager
def _with_scheduler(pipeline: Any, scheduler: Any) -> Iterator[None]:
    before, pipeline.scheduler = pipeline.scheduler, scheduler
    progress_bar = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = before
        pipeline._progress_bar_config = progress_bar


@contextmanager
def _recording_calls(transformer: torch.nn.Module, calls: list[dict[str, Any]]) -> Iterator[None]:
    signature = inspect.signature(transformer.forward)

    def record(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        calls.append({name: value for name, value in arguments.items() if name != "return_dict"})

    handle = transformer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def split_branches(calls: Sequence[Call], prompted_first: bool) -> list[Call]:
    """Split recorded calls into one call per branch, with one row each and the prompted branch first.

    Of several calls, the first is the prompted one.
    """
    branches = []
    for call in calls:
        rows = len(call["x"] if "x" in call else call["hidden_states"])
        branches += [{name: _row(value, rows, at) for name, value in call.items()} for at in range(rows)]
    in_one_call = len(calls) == 1 and len(branches) > 1
    return branches[::-1] if in_one_call and not prompted_first else branches


def _row(value: Any, rows: int, at: int) -> Any:
    if isinstance(value, (torch.Tensor, list)) and len(value) == rows:
        return value[at : at + 1]
    return value


def is_per_item(value: Any) -> bool:
    """Return whether an argument has a row per item, and is not shared by all items."""
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == 1


def same_arguments(one: Call, other: Call) -> bool:
    """Return whether two calls have the same arguments with the same values."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)

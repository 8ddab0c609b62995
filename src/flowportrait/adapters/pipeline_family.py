"""What differs between families of diffusers pipelines, and calls recorded from them.

What the families of pipelines have in common, and where they may differ.

hidden_states = x, followed in dimension 1 by what the model is shown beside it (masks, first frame, references)
timestep      = what was recorded at time t, times σ·1000 / t                       (0 where the picture is given)
v             = v⁻ + w (v⁺ − v⁻), of the first ``x.shape[1]`` entries of the output

Record what a pipeline of diffusers passes to its transformer at the first denoising step.

    pipeline(prompt, …) ─► encoders ─► transformer(hidden_states, timestep, conditions) ─► scheduler.step(v, t, x)
                                              └── recorded: calls ──┘                        └─ recorded, and stop

The pipeline itself encodes texts and pictures, masks and packs; nothing of that is written a second time. The record is
also the proof: the velocity computed from the calls must be the one that the pipeline gave its scheduler.
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


class RecordedStep(NamedTuple):
    """calls: the transformer's arguments by name, one dict per call; velocity, time (0 to 1000) and sample as the
    scheduler got them; mu, the shift of its schedule, where the pipeline sets one; evenly: whether the pipeline asks
    for evenly spaced levels before they are shifted, or leaves them to its scheduler."""

    calls: list[dict[str, Any]]
    velocity: torch.Tensor
    time: torch.Tensor
    sample: torch.Tensor
    mu: float | None
    evenly: bool


class _StopPipeline(Exception):
    """Raised out of the pipeline as soon as everything is recorded."""


@torch.no_grad()
def record_first_step(pipeline: Any, arguments: Mapping[str, Any]) -> RecordedStep:
    """Run ``pipeline(**arguments)`` up to its scheduler's first step.

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
    """The pipeline with Euler's steps, where its scheduler takes others, at the same noise levels ``[K + 1]``."""
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
    own, pipeline.scheduler = pipeline.scheduler, scheduler
    shown = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = own
        pipeline._progress_bar_config = shown


@contextmanager
def _recording_calls(transformer: torch.nn.Module, calls: list[dict[str, Any]]) -> Iterator[None]:
    signature = inspect.signature(transformer.forward)

    def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        calls.append({name: value for name, value in arguments.items() if name != "return_dict"})

    handle = transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def split_branches(calls: Sequence[Call], prompted_first: bool) -> list[Call]:
    """One call per branch with one row each, the prompted one first; of several calls the first is the prompted one."""
    branches = []
    for call in calls:
        rows = len(call["x"] if "x" in call else call["hidden_states"])
        branches += [{name: _row(value, rows, at) for name, value in call.items()} for at in range(rows)]
    together = len(calls) == 1 and len(branches) > 1
    return branches[::-1] if together and not prompted_first else branches


def _row(value: Any, rows: int, at: int) -> Any:
    if isinstance(value, (torch.Tensor, list)) and len(value) == rows:
        return value[at : at + 1]
    return value


def is_per_item(value: Any) -> bool:
    """Whether an argument belongs to one item, and not to all of them."""
    return isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == 1


def same_arguments(one: Call, other: Call) -> bool:
    """Whether two calls have the same arguments with the same values."""

    def same(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)

"""What a pipeline of diffusers tells its transformer, overheard at the first denoising step.

    pipeline(prompt, …) ─► encoders ─► transformer(hidden_states, timestep, conditions) ─► scheduler.step(v, t, x)
                                                 └── heard: calls ──┘                          └─ heard, and stop

The pipeline itself encodes texts and pictures, masks and packs; nothing of that is written a second time. What is
heard is also the proof: the velocity made from the calls must be the one that the pipeline gave its scheduler.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from flowportrait.errors import BadInput


class Heard(NamedTuple):
    """calls: the transformer's arguments by name, one dict per call; velocity, time (0 to 1000) and sample as the
    scheduler got them; mu, the shift of its schedule, where the pipeline sets one; evenly: whether the pipeline asks
    for evenly spaced levels before they are shifted, or leaves them to its scheduler."""

    calls: list[dict[str, Any]]
    velocity: torch.Tensor
    time: torch.Tensor
    sample: torch.Tensor
    mu: float | None
    evenly: bool


class _Enough(Exception):
    """Raised out of the pipeline as soon as everything was heard."""


@torch.no_grad()
def hear(pipeline: Any, arguments: Mapping[str, Any]) -> Heard:
    """Run ``pipeline(**arguments)`` up to its scheduler's first step.

    Raises:
        BadInput: the pipeline refuses the arguments.
    """
    calls: list[dict[str, Any]] = []
    told: dict[str, Any] = {}
    scheduler = copy.deepcopy(pipeline.scheduler)
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def listen_to_schedule(*args: Any, **kwargs: Any) -> None:
        told.update(mu=kwargs.get("mu"), evenly=kwargs.get("sigmas") is not None)
        set_timesteps(*args, **kwargs)

    def listen_to_step(velocity: torch.Tensor, time: torch.Tensor, sample: torch.Tensor, **_: Any) -> None:
        told.update(velocity=velocity, time=time, sample=sample)
        raise _Enough

    scheduler.set_timesteps, scheduler.step = listen_to_schedule, listen_to_step
    with _instead(pipeline, scheduler), _listening(pipeline.transformer, calls):
        try:
            pipeline(**arguments, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
        except _Enough:
            pass
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise BadInput(f"{type(pipeline).__name__} refuses what it is given ({reason}).") from error
    return Heard(calls, told["velocity"], told["time"], told["sample"], told["mu"], told["evenly"])


@contextmanager
def eulerian(pipeline: Any, levels: torch.Tensor) -> Iterator[None]:
    """The pipeline with Euler's steps, where its scheduler takes others, at the same noise levels ``[K + 1]``."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = copy.deepcopy(pipeline.scheduler)
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler = FlowMatchEulerDiscreteScheduler()
        set_timesteps = scheduler.set_timesteps
        scheduler.set_timesteps = lambda *_, **__: set_timesteps(sigmas=levels[:-1].tolist())
    with _instead(pipeline, scheduler):
        yield


@contextmanager
def _instead(pipeline: Any, scheduler: Any) -> Iterator[None]:
    own, pipeline.scheduler = pipeline.scheduler, scheduler
    shown = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = own
        pipeline._progress_bar_config = shown


@contextmanager
def _listening(transformer: torch.nn.Module, calls: list[dict[str, Any]]) -> Iterator[None]:
    signature = inspect.signature(transformer.forward)

    def note(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard = signature.bind(*args, **kwargs).arguments
        calls.append({name: value for name, value in heard.items() if name != "return_dict"})

    handle = transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()

"""The calls that a diffusers pipeline makes to its transformer, recorded and repeated."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from flowportrait.adapters.pipeline_family import Call
from flowportrait.errors import BadInput

if TYPE_CHECKING:
    pass


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

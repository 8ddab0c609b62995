"""Checks that a third-party generator can be post-trained.

    encode ─► velocity ─► rollout = replay ─► gradient ─► decode     each called twice, for one item and for several

Training would hide these faults: rewards would stay low, or rise for the wrong reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from flowportrait.adapters.policy import DecodedSamples, Generator, GeneratorPolicy, Item, ItemCondition
from flowportrait.errors import BadInput
from flowportrait.flow.kernels import flow_sde_kernel, log_ratio
from flowportrait.flow.noise import NoiseKey, keyed_noise
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.rollout import (
    ReplayMismatch,
    Trajectory,
    check_replayed_noise,
    iterate_tensors,
    map_tensors,
    replay_velocity,
    rollout,
)

TOLERANCE = 1e-3
"""Largest relative difference between a result for one item and the same result in a batch; rounding stays under
1e-4."""
CHECK_STEPS = 4


class CheckResult(NamedTuple):
    """The name of a check, whether it passed, and a message: what was found, or what is wrong and what to do."""

    name: str
    passed: bool
    message: str


class _Failed(Exception):
    """A check failed; the message says what is wrong and what to do."""


def check_generator(generator: Generator, items: Sequence[Item]) -> list[CheckResult]:
    """Check a generator, from encoding to decoding.

    Args:
        generator: the generator.
        items: with two or more, it is also checked that their velocities differ.

    Returns:
        The results up to the first that failed: later failures would only follow from it.
    """
    policy = GeneratorPolicy(generator)
    checks = _Checks(policy, list(items))
    results: list[CheckResult] = []
    for name, run_check in checks.by_name().items():
        try:
            message = run_check()
        except _Failed as failure:
            return [*results, CheckResult(name, False, str(failure))]
        except BadInput as error:
            return [*results, CheckResult(name, False, str(error))]
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return [*results, CheckResult(name, False, f"{name} raises {type(error).__name__} ({reason}).")]
        results.append(CheckResult(name, True, message))
    return results


class _Checks:
    def __init__(self, policy: GeneratorPolicy, items: list[Item]) -> None:
        self.policy = policy
        self.generator = policy.generator
        self.items = items
        self.known: Any = None
        self.trajectory: Trajectory | None = None

    def by_name(self) -> dict[str, Callable[[], str]]:
        return {
            "encode": self.check_encode, "velocity": self.check_velocity, "condition": self.check_condition,
            "replay": self.check_replay, "gradient": self.check_gradient, "decode": self.check_decode,
            "delivery": self.check_delivery,
        }  # fmt: skip

    def check_encode(self) -> str:
        self.known = self.policy.encode(self.items)
        parts = list(iterate_tensors(self.known))
        for part in parts:
            if not isinstance(part, torch.Tensor):
                raise _Failed(f"encode returns a {type(part).__name__} inside its tuple: return tensors only.")
            if part.ndim == 0 or len(part) != len(self.items):
                raise _Failed(f"encode returns {tuple(part.shape)} for {len(self.items)} items: give a row each.")
        second = list(iterate_tensors(self.policy.encode(self.items)))
        if not all(torch.equal(a, b) for a, b in zip(parts, second, strict=True)):
            raise _Failed("encode gives something else the second time: switch off dropout and draw nothing in it.")
        alone = list(iterate_tensors(self.policy.encode(self.items[-1:])))
        if not all(a[-1:].shape == b.shape and _gap(a[-1:], b) <= TOLERANCE for a, b in zip(parts, alone, strict=True)):
            raise _Failed("encode gives an item other rows alone than among others: fill up to a fixed length.")
        return f"{len(parts)} tensors, the same each time and alone"

    def check_velocity(self) -> str:
        shape = tuple(self.generator.shape)
        x = torch.stack([keyed_noise(shape, 1, row) for row in range(len(self.items))]).to(self.policy.device)
        sigma = torch.linspace(0.9, 0.3, len(x)).to(x)
        with torch.no_grad():
            v, second = (self.generator.velocity(x, sigma, self.known) for _ in range(2))
            if tuple(v.shape) != tuple(x.shape):
                raise _Failed(f"velocity returns {tuple(v.shape)} for x of {tuple(x.shape)}: return the shape of x.")
            if not torch.isfinite(v).all():
                raise _Failed("velocity is not finite at ordinary noise: look for a division by σ or 1 − σ.")
            if not torch.equal(v, second):
                raise _Failed("velocity gives something else the second time: draw nothing in it, and no dropout.")
            last = map_tensors(lambda part: part[-1:], self.known)
            alone = self.generator.velocity(x[-1:], sigma[-1:], last)
        if _gap(v[-1:], alone) > TOLERANCE:
            raise _Failed("velocity of a sample depends on the others in its batch: no statistics over the batch.")
        return f"shape {shape}, the same each time and alone"

    def check_condition(self) -> str:
        if len(self.items) < 2:
            return "one item only: whether items have different velocities was not checked"
        x = keyed_noise(tuple(self.generator.shape), 2)[None].to(self.policy.device)
        sigma = torch.full((1,), 0.7).to(x)
        with torch.no_grad():
            one, other = (
                self.generator.velocity(x, sigma, map_tensors(lambda part, at=row: part[at : at + 1], self.known))
                for row in (0, 1)
            )
        if torch.equal(one, other):
            raise _Failed("velocity is the same for two items: what encode returned for them does not reach it.")
        return "two items have different velocities"

    def check_replay(self) -> str:
        rows = torch.arange(len(self.items))
        plan = AllSteps(steps=CHECK_STEPS)(0, 0, len(rows), 1)
        plan = replace(plan, sigmas=self.policy.levels(plan.sigmas))
        self.policy.eval()
        self.trajectory = rollout(
            self.policy, ItemCondition(self.known), rows, rows, plan, flow_sde_kernel(0.7), NoiseKey(0)
        )
        self.policy.train()
        with torch.no_grad():
            v, second = (replay_velocity(self.policy, self.trajectory) for _ in range(2))
        try:
            gap = check_replayed_noise(self.trajectory, v)
        except ReplayMismatch as error:
            raise _Failed(f"{error}; in training mode it is another function (dropout, batch statistics).") from error
        worst = float(log_ratio(self.trajectory.noise_gain, self.trajectory.noise, second - v).abs().max())
        if worst != 0:
            raise _Failed(f"the ratio before the first update is off 1 by {worst:.2g}: the velocity is not repeatable.")
        return f"ratio exactly 1; noise recomputed within {gap:.1g}"

    def check_gradient(self) -> str:
        assert self.trajectory is not None
        trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        if not trained:
            raise _Failed("no parameter requires a gradient: there is nothing to train.")
        v = replay_velocity(self.policy, self.trajectory)
        if not v.requires_grad:
            raise _Failed("the velocity has no gradient: take torch.no_grad, detach or numpy out of it.")
        v.square().mean().backward()
        reached = [name for name, p in trained.items() if p.grad is not None and bool(p.grad.abs().sum() > 0)]
        self.policy.zero_grad(set_to_none=True)
        if not reached:
            raise _Failed("the gradient is zero everywhere: the last layer may be zero or cut off.")
        return f"reaches {len(reached)} of {len(trained)} parameters"

    def check_decode(self) -> str:
        assert self.trajectory is not None
        condition, latents = ItemCondition(self.known), self.trajectory.latents
        decoded, second = (self.policy.decode(latents, condition) for _ in range(2))
        _check_decoded(decoded, len(self.items))
        if not _same(decoded, second, 0):
            raise _Failed("decode gives something else the second time: draw nothing in it.")
        last = torch.tensor([len(self.items) - 1])
        if not _same(_last(decoded), self.policy.decode(latents[-1:], condition.select(last)), 1):
            raise _Failed("decode gives a sample another picture alone than among others: decode samples one by one.")
        return "the same each time and alone"

    def check_delivery(self) -> str:
        delivery_gap = getattr(self.generator, "delivery_gap", None)
        if delivery_gap is None:
            return "no pipeline to compare the pictures with"
        gap = delivery_gap(self.items[0])
        if gap is None:
            return "its own pipeline cannot be called with the same inputs"
        if gap > 1:
            raise _Failed(f"rewards see other pictures than its own pipeline delivers: they differ by {gap} of 255.")
        return "its own pipeline delivers the same pictures"


def _check_decoded(decoded: DecodedSamples, count: int) -> None:
    if not isinstance(decoded, DecodedSamples):
        raise _Failed(f"decode returns a {type(decoded).__name__}: return flowportrait.adapters.policy.DecodedSamples.")
    if decoded.motion is not None and (decoded.motion.ndim != 3 or decoded.motion.shape[::2] != (count, 30)):
        raise _Failed(f"decode returns motion of {tuple(decoded.motion.shape)}: it is [{count}, T, 30].")
    if decoded.data is not None and (decoded.data.ndim < 2 or len(decoded.data) != count):
        raise _Failed(f"decode returns data of {tuple(decoded.data.shape)}: it is [{count}, T, ...].")
    if decoded.frames is None and decoded.motion is None and decoded.data is None:
        raise _Failed("decode returns neither frames nor motion nor data: return one of them.")
    for clip in decoded.frames or ():
        if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
            kind = f"{getattr(clip, 'dtype', type(clip).__name__)} {tuple(getattr(clip, 'shape', ()))}"
            raise _Failed(f"decode returns {kind}: frames are RGB uint8 [T, H, W, 3].")
    if decoded.frames is not None and len(decoded.frames) != count:
        raise _Failed(f"decode returns {len(decoded.frames)} clips for {count} samples.")


def _last(decoded: DecodedSamples) -> DecodedSamples:
    return decoded._replace(
        frames=None if decoded.frames is None else decoded.frames[-1:],
        motion=None if decoded.motion is None else decoded.motion[-1:],
        data=None if decoded.data is None else decoded.data[-1:],
    )


def _same(one: DecodedSamples, other: DecodedSamples, levels: int) -> bool:
    pictures = all(
        a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).max() <= levels
        for a, b in zip(one.frames or (), other.frames or (), strict=True)
    )
    tensors = [(one.motion, other.motion), (one.data, other.data)]
    return pictures and all(a is None or b is None or _gap(a, b) <= levels * TOLERANCE for a, b in tensors)


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the norm of the difference relative to the norm of ``other``."""
    a, b = one.double(), other.double()
    return float((a - b).norm() / b.norm().clamp_min(1e-9))

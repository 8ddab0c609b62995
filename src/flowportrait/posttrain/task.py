"""What a policy is to do and how its result is seen: prompts in, something to score out.

    draw(iteration) ─► prompts ─► condition(policy) ─► (rollout) ─► batch(policy, latents) ─► rewards

A task knows its generator's inputs and outputs; the trainer knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from flowportrait.codec.basis import BROWS, GAZE, HEAD, LOWER
from flowportrait.codec.delivery import deliver
from flowportrait.generator.arflow import ARFlow, Condition
from flowportrait.posttrain.items import Item, draw_items
from flowportrait.posttrain.trajectory import Trajectory
from flowportrait.reward.interface import Draw, RewardBatch

DrawFor = Callable[[Sequence[int]], Draw]
"""Given the portrait of each row of a batch, how to render it small."""


class Prompts(NamedTuple):
    """One row per group: the speech ``[G, 4T, 80]``, whose face it is, where it is known how it was really spoken,
    ``[G, 1 + T, 30]`` with the frame before, the sound ``[G, 640 T]`` for judges that listen, and where the policy is
    to hear it disturbed, what it hears ``[G, 4T, 80]``."""

    mel: torch.Tensor
    portraits: list[int]
    motion: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    heard: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> Prompts:
        """The rows at these indices."""
        known = (None if part is None else part[rows] for part in (self.motion, self.audio, self.heard))
        return Prompts(self.mel[rows], [self.portraits[int(row)] for row in rows], *known)


class Task(Protocol):
    """See the module; ``Any`` where only task and generator know the type."""

    @property
    def regions(self) -> Mapping[str, torch.Tensor]:
        """Latent regions by name: ``[D]`` of 0 and 1."""
        ...

    def draw(self, groups: int, seed: int, iteration: int) -> Any:
        """The prompts of an iteration, one row per group, a function of its arguments alone; has ``select``."""
        ...

    def condition(self, policy: Any, prompts: Any) -> Any:
        """What the policy is to know, one row per group."""
        ...

    def batch(self, policy: Any, trajectory: Trajectory, prompts: Any) -> RewardBatch:
        """Finished latents as rewards see them, under one row of prompts per sample."""
        ...

    def real(self, policy: Any, prompts: Any) -> torch.Tensor | None:
        """Latents ``[G, N, D]`` of the real clips of the same prompts, where there are such."""
        ...


class TalkingTask:
    """Windows of speech, each spoken by one of the portraits."""

    def __init__(
        self,
        items: Sequence[Item],
        frames: int,
        draw_for: DrawFor | None,
        chunk: int,
        looks: torch.Tensor | None = None,
    ) -> None:
        """looks ``[portraits, P, hidden]``: what a policy that sees saw of them."""
        self.items = items
        self.frames = frames
        self.draw_for = draw_for
        self.looks = looks
        self.regions = latent_regions(chunk)

    def draw(self, groups: int, seed: int, iteration: int) -> Prompts:
        return Prompts(*draw_items(self.items, groups, self.frames, seed, iteration))

    def condition(self, policy: ARFlow, prompts: Prompts) -> Condition:
        device = next(policy.parameters()).device
        start = None if prompts.motion is None else prompts.motion[:, 0].to(device)
        portrait = None if self.looks is None else self.looks[prompts.portraits].to(device)
        heard = prompts.mel if prompts.heard is None else prompts.heard
        return policy.condition(heard.to(device), start=start, portrait=portrait)

    def real(self, policy: ARFlow, prompts: Prompts) -> torch.Tensor | None:
        if prompts.motion is None:
            return None
        return encode_after(policy, prompts.motion.to(next(policy.parameters()).device))

    def batch(self, policy: ARFlow, trajectory: Trajectory, prompts: Prompts) -> RewardBatch:
        latents = trajectory.latents.to(next(policy.parameters()).device)
        motion = policy.to_motion(latents, trajectory.condition.start).cpu()
        return RewardBatch(
            deliver(motion, policy.config.chunk, policy.config.ease),
            prompts.mel,
            self.draw_for(prompts.portraits) if self.draw_for else None,
            audio=prompts.audio,
            group=trajectory.group,
            policy=policy,
            condition=trajectory.condition,
            latents=latents,
        )


def encode_after(policy: ARFlow, motion: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, N, D]`` of real motion ``[B, 1 + T, 30]`` after its first frame."""
    chunks = motion[:, 1:].unflatten(1, (-1, policy.config.chunk))
    before = torch.cat([motion[:, :1], chunks[:, :-1, -1]], 1)
    return policy.space.encode(chunks, before)


def latent_regions(chunk: int) -> dict[str, torch.Tensor]:
    """Latent numbers ``[D]`` (0 or 1) of mouth, eyes with brows, and head."""
    spans = {"mouth": LOWER, "eyes": slice(BROWS.start, GAZE.stop), "head": HEAD}
    return {name: _numbers(span, chunk) for name, span in spans.items()}


def _numbers(span: slice, chunk: int) -> torch.Tensor:
    """A span of the 30 motion numbers in a chunk's latents, where each number has ``chunk`` modes."""
    mask = torch.zeros(30, chunk)
    mask[span] = 1
    return mask.flatten()

"""Conditional flow matching on motion.

    L = E ‖ w ⊙ ( v(x_σ, σ | h) − (ε − z) ) ‖²,   x_σ = (1−σ) z + σ ε,   h from noised history

The history the backbone sees, and the frame each chunk continues from, are displaced by a random amount, so that
at sampling time its own small errors look familiar and are undone (against exposure bias; ``rollout_history`` is
the stronger remedy, for the end of a training). The speech is dropped in a tenth of the items, for guidance.
"""

from __future__ import annotations

import torch
from torch import nn

from flowportrait.codec.basis import MOTION_DIM
from flowportrait.corpus.motion_set import MotionClip, WindowSampler
from flowportrait.flow.path import interpolate, target_velocity
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.chunk_space import ChunkSpace
from flowportrait.generator.pretrain_config import PretrainConfig

MOTION_WEIGHT = (
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6,
    0.5, 0.5, 0.5, 0.5, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
)  # fmt: skip
"""Weight of each motion number in the loss: what carries the lips counts most."""


def flow_matching_loss(
    model: ARFlow,
    motion: torch.Tensor,
    features: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
    portrait: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean loss over a batch.

    Args:
        motion: ``[B, 1 + T, 30]``, the frame before first.
        features: of the sound ``[B, T, features]``, see ``ARFlow.audio_features``.
        style: ``[B, 19]``.
        portrait: for a model with vision ``[B, P, hidden]``, see ``ARFlow.encode_portrait``.
    """
    batch = len(motion)
    start, motion = motion[:, 0], motion[:, 1:].unflatten(1, (-1, model.config.chunk))
    level = config.history_noise * torch.rand(batch, 1, 1, 1, generator=generator).to(motion.device)
    displacement = torch.randn(*motion.shape[:2], 1, MOTION_DIM, generator=generator).to(motion.device)
    jitter = 0.3 * torch.randn(motion.shape, generator=generator).to(motion.device)
    history = motion + level * model.space.step_size * (displacement + jitter)
    return chunk_loss(model, start, history, motion, features, style, config, generator, portrait)


def chunk_loss(
    model: ARFlow,
    start: torch.Tensor,
    history: torch.Tensor,
    goal: torch.Tensor,
    features: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
    portrait: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean loss of drawing the chunks ``goal`` ``[B, N, chunk, 30]``, each after those of ``history`` before it.
    Portraits are left out of whole batches as often as styles: without one it has to speak too."""

    def chance(share: float) -> torch.Tensor:
        return (torch.rand(len(start), generator=generator) < share).to(start.device)

    base = torch.cat([start[:, None], history[:, :-1, -1]], 1)
    latents = model.space.encode(goal, base)
    style = torch.where(chance(config.drop_style)[:, None], model.rest_style, style)
    if portrait is not None and torch.rand((), generator=generator) < config.drop_style:
        portrait = None
    condition = model.condition_from_features(features, style, start, chance(config.drop_audio), portrait)
    context = model.contexts_after(condition, history[:, :-1].flatten(1, 2))
    # Logit-normal σ: the middle of the path is the hard part.
    sigma = torch.sigmoid(torch.randn(latents.shape[:2], generator=generator)).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    error = model.head(interpolate(latents, noise, sigma[..., None]), sigma, context)
    error = error - target_velocity(latents, noise)
    return (latent_weight(model.space) * error.float().square()).mean()


def latent_weight(space: ChunkSpace) -> torch.Tensor:
    """Weight of each latent ``[chunk·30]``: that of its motion number, times the root of its mode's share."""
    share = (space.scale / space.scale[:, :1]).sqrt().clamp_min(0.2)
    return (share.new_tensor(MOTION_WEIGHT)[:, None] * share).flatten()


class Matching(nn.Module):
    """The loss as a network, for what wraps networks: three tensors of a window, or the five of a ``HistoryBatch``;
    portraits follow them where there are any."""

    def __init__(self, model: ARFlow, config: PretrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, drawn: tuple[torch.Tensor, ...], generator: torch.Generator) -> torch.Tensor:
        """Mean loss; see ``flow_matching_loss`` and ``chunk_loss``."""
        if len(drawn) < 5:
            motion, features, style, *portrait = drawn
            return flow_matching_loss(self.model, motion, features, style, self.config, generator, *portrait)
        start, history, goal, features, style, *portrait = drawn
        return chunk_loss(self.model, start, history, goal, features, style, self.config, generator, *portrait)

    def wake(self) -> None:
        """Nothing; a forward pass by name, with which FSDP learns who is outermost before any part is called."""


@torch.no_grad()
def held_out_loss(model: ARFlow, clips: list[MotionClip], config: PretrainConfig) -> float:
    """Flow-matching loss on unseen speakers, same draws every time."""
    generator = torch.Generator().manual_seed(1)
    sampler = WindowSampler(clips, config.windows[0], generator)
    losses, device = [], model.rest_style.device
    for _ in range(4):
        motion, features, style, *portrait = (part.to(device) for part in sampler.draw(64))
        losses.append(flow_matching_loss(model, motion, features, style, config, generator, *portrait).item())
    return sum(losses) / len(losses)

"""What a reward that steers must know besides who is better: which way is better.

    L = 1 − cos( ∇_x r_sync(x_σ, σ | past),  ∇_x₀ expert(x₀) )

Whoever only tells intact lips from damaged ones may rise in any direction. The slope that guidance follows is that of
E[expert(x₀) | x_σ], the mean of the expert's slopes over what x_σ can become, and its direction is what is learned; of
a chunk given its clean past, as in a live session. The expert is the reward side's (``reward.sync``).
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from flowportrait.flow.path import interpolate
from flowportrait.preference.latent_pairs import LatentPairs
from flowportrait.preference.latent_reward import LatentReward
from flowportrait.preference.made_pairs import DIMENSIONS
from flowportrait.reward.sync import SyncExpert

SYNC = DIMENSIONS.index("sync")


def slope_loss(model: LatentReward, pairs: LatentPairs, expert: SyncExpert) -> torch.Tensor:
    """The module's L over the lips of the intact clips, a scalar; noise and σ drawn for every clip."""
    clean, start = pairs.intact()
    wanted = expert_slope(model, clean, start, pairs.mel, expert)
    sigma = torch.rand(len(clean))
    noisy = interpolate(clean, torch.randn_like(clean), sigma[:, None, None]).requires_grad_()
    score = model(noisy, sigma, pairs.heard, start, clean).mean[..., SYNC].sum()
    (own,) = torch.autograd.grad(score, noisy, create_graph=True)
    lips = model.sync.rows
    return 1 - cosine_similarity(own[..., lips], wanted[..., lips], dim=-1).mean()


def expert_slope(
    model: LatentReward, clean: torch.Tensor, start: torch.Tensor, mel: torch.Tensor, expert: SyncExpert
) -> torch.Tensor:
    """Of the expert's mean cosine in clean latents ``[B, N, D]``."""
    point = clean.detach().requires_grad_()
    score = expert.score(model.space.decode_track(point, start).flatten(1, 2), mel)[1].sum()
    (slope,) = torch.autograd.grad(score, point)
    return slope

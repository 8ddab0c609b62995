"""Train the small flow that draws portraits.

    python -m tools.train_portrait_flow faces.safetensors FOLDER

FOLDER/clean    L = E ‖ v(x_σ, σ | attributes) − (ε − z) ‖²      on faces as filmed, mirrored at random
FOLDER/spoilt   the same, continued on smoothed and over-saturated faces: the start of post-training
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track

from flowportrait.config import at_least
from flowportrait.flow.schedules import interpolate, target_velocity
from flowportrait.portraitgen.measured_judge import FramedFaces
from flowportrait.portraitgen.still_flow import PictureSpace, PortraitFlow, PortraitFlowConfig, frames_to_pictures
from flowportrait.training.optimize import GuardedStep

_MIRRORED = torch.tensor([-1.0, 1.0, 1.0, 1.0, 1.0])
"""Signs of the attributes under mirroring; only the yaw changes."""


@dataclass(frozen=True)
class TrainConfig:
    """How the flow is trained."""

    steps: int = 5000
    spoiling: int = 1000
    """Steps on degraded faces."""
    batch: int = 128
    learning_rate: float = 1e-3
    ema: float = 0.998
    smoothing: float = 1.5
    """Standard deviation of the blur, in pixels."""
    saturation: float = 1.6
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, steps=5, spoiling=5, batch=2, learning_rate=0, ema=0, smoothing=0, saturation=0)


def spoilt(face: np.ndarray, smoothing: float, saturation: float) -> np.ndarray:
    """Return a face ``[S, S, 3]`` uint8 with typical flaws of generators.

    Its skin has no texture and its colours are over-saturated.
    """
    lab = cv2.cvtColor(cv2.GaussianBlur(face, (0, 0), smoothing).astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab[..., 1:] *= saturation
    return np.round(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255).astype(np.uint8)


def train(faces: FramedFaces, folder: Path, config: TrainConfig | None = None) -> None:
    """Train and write both checkpoints; an existing clean one is used as it is."""
    config = config or TrainConfig()
    training = faces.select(~faces.dev)
    attributes, speaker = torch.from_numpy(training.attributes), torch.from_numpy(training.speaker).long()
    weight = 1 / torch.bincount(speaker).float()[speaker]
    torch.manual_seed(config.seed)
    if (folder / "clean" / "model.safetensors").is_file():
        flow = PortraitFlow.from_pretrained(folder / "clean")
    else:
        flow = PortraitFlow(PortraitFlowConfig(side=training.small.shape[1]))
        flow.attribute_statistics.copy_(torch.stack([attributes.mean(0), attributes.std(0).clamp_min(1e-3)]))
        pictures = frames_to_pictures(training.small)
        space = PictureSpace.fit(torch.cat([pictures, pictures.flip(-1)]), flow.latent_dim)
        flow.space.load_state_dict(space.state_dict())
        flow = fit(flow, pictures, attributes, weight, config, config.steps)
        flow.save_pretrained(folder / "clean")
    degraded = np.stack([spoilt(face, config.smoothing, config.saturation) for face in training.small])
    fit(flow, frames_to_pictures(degraded), attributes, weight, config, config.spoiling).save_pretrained(
        folder / "spoilt"
    )


def fit(
    flow: PortraitFlow,
    pictures: torch.Tensor,
    attributes: torch.Tensor,
    weight: torch.Tensor,
    config: TrainConfig,
    steps: int,
) -> PortraitFlow:
    """Train ``flow`` and return it with averaged weights.

    Args:
        flow: the flow, trained in place.
        pictures: ``[N, 3, S, S]``.
        attributes: their attributes ``[N, 5]``.
        weight: sampling weights of the pictures ``[N]``.
        config: the settings.
        steps: number of steps.
    """
    latents = torch.stack([flow.space.encode(pictures), flow.space.encode(pictures.flip(-1))])
    conditions = torch.stack([flow.standardise(attributes), flow.standardise(attributes * _MIRRORED)])
    average = copy.deepcopy(flow).eval()
    optimizer = torch.optim.AdamW(flow.parameters(), lr=config.learning_rate, weight_decay=0.01)
    guarded_step = GuardedStep(flow.parameters(), optimizer)
    # The rise takes at least two steps: OneCycleLR divides by their number less one.
    rise = max(0.05, 2 / steps)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=rise)
    flow.train()
    for step in track(range(steps), "learning"):
        rows = torch.multinomial(weight, config.batch, replacement=True)
        side = torch.randint(2, (config.batch,))
        z, noise = latents[side, rows], torch.randn(config.batch, flow.latent_dim)
        sigma = torch.rand(config.batch)
        context = flow.attributes_in(conditions[side, rows])
        velocity = flow.velocity(interpolate(z, noise, sigma[:, None]), sigma, context)
        loss = (velocity - target_velocity(z, noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        schedule.step()
        keep = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for mean, new in zip(average.parameters(), flow.parameters(), strict=True):
                mean.lerp_(new, 1 - keep)
    print(f"loss {float(loss.detach()):.3f} after {steps} steps, {sum(p.numel() for p in flow.parameters())} weights")
    return average


if __name__ == "__main__":
    train(FramedFaces.load(Path(sys.argv[1])), Path(sys.argv[2]))

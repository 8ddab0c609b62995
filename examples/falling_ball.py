"""A falling ball, after the abstracts of PhyGround and MMPhysVideo: an illustration of the kind, not a reproduction.

PhyGround (2605.10806) grades videos law by law; MMPhysVideo (2604.02817) generates perceptual streams beside the
picture. Here a flow model makes what a camera sees of a bouncing ball (x, y and ten times the radius in the picture)
and, as a second stream, its depth. It has learned from films in which all of this is wrong. A rule checks each law.

    python -m examples.falling_ball OUTPUT
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import flowportrait as fp
from flowportrait.adapters.policy import Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.adapters.small_flow import SmallFlow
from flowportrait.rl.controlled_training import ControlledResult, train_with_control

FRAMES, FALL, STEP, GRAVITY, RADIUS = 16, 6, 0.08, 9.8, 0.2
"""Frames, those before any bounce, seconds between them, m/s², and radius of the ball in metres."""
CENTRE, SCALE = torch.tensor([0.0, 0.3, 0.5, 4.0]), torch.tensor([0.1, 0.25, 0.06, 0.7])
"""Mean and scale of the four columns of a film."""


def starts(texts: Sequence[str]) -> torch.Tensor:
    """Return ``[B, 3]``: the height of the start in metres, the speeds to the right and away in m/s."""
    return torch.tensor([[float(word) for word in text.split()] for text in texts])


def height(batch: fp.RewardBatch) -> torch.Tensor:
    """Return the height of the ball above the floor in metres ``[B, T]``, from the picture and the depth."""
    return batch.data[..., 1] * batch.data[..., 3]


def gravity(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the error of the acceleration in the first fall, as a share of g ``[B]``."""
    powers = (STEP * torch.arange(FALL)[:, None]) ** torch.arange(3)
    fitted = height(batch)[:, :FALL] @ torch.linalg.pinv(powers).T
    return -(2 * fitted[:, 2] / GRAVITY + 1).abs().clamp_max(3)


def energy(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the mean energy that the ball has beyond that of its start, as a share of it ``[B]``."""
    y = height(batch)
    speed = (y[:, 2:] - y[:, :-2]) / (2 * STEP)
    start = GRAVITY * y[:, :1].clamp_min(0.1)
    return -((GRAVITY * y[:, 1:-1] + speed.square() / 2) / start - 1).clamp_min(0).mean(1)


def floor(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the mean depth of the ball in the floor, in decimetres ``[B]``."""
    return -10 * (-height(batch)).clamp_min(0).mean(1)


def agreement(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the error of the depth stream, as a share of the depth at which the ball has its radius ``[B]``."""
    seen = 10 * RADIUS / batch.data[..., 2].clamp_min(0.1)
    return -(batch.data[..., 3] / seen - 1).abs().mean(1)


def make_films(count: int, seed: int) -> tuple[list[Item], torch.Tensor]:
    """Return starts, and latents ``[count, T, 4]`` of films with wrong gravity, bounces, floor and depth."""
    draw = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 3, generator=draw) + torch.tensor([1.5, -0.5, -0.5])
    error = torch.rand(count, 4, generator=draw)
    pull, bounce, level = GRAVITY * (0.4 + 0.8 * error[:, 0]), 0.6 + 0.6 * error[:, 1], -0.4 * error[:, 2]
    y, speed, heights = start[:, 0], torch.zeros(count), []
    for _ in range(FRAMES):
        heights.append(y)
        y, speed = y + speed * STEP - pull * STEP**2 / 2, speed - pull * STEP
        y, speed = torch.maximum(y, level), torch.where(y < level, bounce * speed.abs(), speed)
    seconds = STEP * torch.arange(FRAMES)
    depth = 4 + start[:, 2:] * seconds
    film = [start[:, 1:2] * seconds / depth, torch.stack(heights, 1) / depth, 10 * RADIUS / depth]
    film.append(depth * (0.7 + 0.6 * error[:, 3:]))
    texts = [" ".join(f"{number:.3f}" for number in row) for row in start.tolist()]
    return [Item(f"{seed}-{i}", text) for i, text in enumerate(texts)], (torch.stack(film, -1) - CENTRE) / SCALE


def main(output: Path, iterations: int = 30) -> ControlledResult:
    """Post-train on 48 starts, and score 32 others."""
    model = SmallFlow((FRAMES, 4), 3, starts, lambda x: CENTRE + SCALE * x, fps=1 / STEP)
    fit_generator(model, *make_films(4096, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "cps", groups=12, group_size=16, iterations=iterations, learning_rate=1e-3, checkpoint_every=iterations
    )
    rewards = {gravity: 0.5, energy: 0.1, floor: 0.1, agreement: 0.3}
    return train_with_control(model, rewards, config, make_films(48, 1)[0], make_films(32, 2)[0], output)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

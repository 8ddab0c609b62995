"""Camera paths whose previews keep the subject in the frame, after the abstracts of VERTIGO and Geo-Align; an illustration of the kind, not a reproduction.

VERTIGO (2604.02467) renders previews of generated camera paths and trains by DPO on their ranking; Geo-Align (2605.23903)
rewards metric geometry. Here a flow model makes paths around a subject, which are projected as eight corners of a cube.
It has learned from paths that move well and aim badly, and that pass through an obstacle. Rules judge the preview.

    python -m examples.camera_path OUTPUT
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import flowportrait as fp
from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.rl.control import ControlledResult, train_with_control

FRAMES, OBSTACLE_RADIUS = 12, 0.7
CORNERS = torch.cartesian_prod(*[torch.tensor([-0.3, 0.3])] * 3)


def scenes(texts: Sequence[str]) -> torch.Tensor:
    """Return ``[B, 5]``: x, y and height of the subject, x and y of the obstacle, in metres."""
    return torch.tensor([[float(word) for word in text.split()] for text in texts])


class CameraModel(nn.Module):
    """Velocity of paths ``[B, T, 5]``: position in metres, then yaw and pitch in radians."""

    shape = (FRAMES, 5)

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        size = FRAMES * 5
        self.net = nn.Sequential(nn.Linear(size + 6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, size))  # fmt: skip

    def encode(self, items: Sequence[Item]) -> tuple[torch.Tensor]:
        return (scenes([item.text for item in items]),)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: tuple[torch.Tensor]) -> torch.Tensor:
        clean = self.net(torch.cat([x.flatten(1), sigma[:, None], known[0]], 1)).reshape(x.shape)
        return (x - clean) / sigma.clamp_min(0.1)[:, None, None]

    def decode(self, x: torch.Tensor, known: tuple[torch.Tensor]) -> DecodedSamples:
        return DecodedSamples(data=x)


def preview(path: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
    """Return the corners of the subject in the picture ``[B, T, 8, 3]``: x, y (the frame is −1 to 1) and depth."""
    ray = (subject[:, None, None] + CORNERS) - path[:, :, None, :3]
    yaw, pitch = path[:, :, None, 3], path[:, :, None, 4]
    ahead, left = ray[..., 0] * yaw.cos() + ray[..., 1] * yaw.sin(), ray[..., 1] * yaw.cos() - ray[..., 0] * yaw.sin()
    depth, up = ahead * pitch.cos() + ray[..., 2] * pitch.sin(), ray[..., 2] * pitch.cos() - ahead * pitch.sin()
    return torch.stack([1.6 * left / depth.clamp_min(0.1), 1.6 * up / depth.clamp_min(0.1), depth], -1)


def in_frame(batch: fp.RewardBatch) -> torch.Tensor:
    """Return the share of frames and corners that the preview shows ``[B]``."""
    corners = preview(batch.data, scenes(batch.transcript)[:, :3])
    return ((corners[..., :2].abs() < 1).all(-1) & (corners[..., 2] > 0.1)).float().mean((1, 2))


def no_collision(batch: fp.RewardBatch) -> torch.Tensor:
    """Return the share of frames in which the camera is outside the obstacle, a column ``[B]``."""
    distance = (batch.data[..., :2] - scenes(batch.transcript)[:, None, 3:]).norm(dim=-1)
    return (distance > OBSTACLE_RADIUS).float().mean(1)


def smooth(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the mean size of second differences ``[B]``."""
    return -batch.data.diff(n=2, dim=1).abs().mean((1, 2))


def make_scenes(count: int, seed: int) -> tuple[list[Item], torch.Tensor]:
    """Return scenes, and a path ``[count, T, 5]`` through each: an arc, aimed beside the subject."""
    draw = torch.Generator().manual_seed(seed)
    subject = torch.randn(count, 3, generator=draw) * torch.tensor([0.5, 0.5, 0.2])
    start, turn = 6.28 * torch.rand(count, 1, generator=draw), 0.5 + torch.rand(count, 1, generator=draw)
    angle = start * 0 - 0.75 + turn * (torch.linspace(0, 1, FRAMES) - 0.5)
    radius = 2.5 + 0.5 * torch.randn(count, 1, generator=draw)
    position = subject[:, None] + torch.stack([radius * angle.cos(), radius * angle.sin(), 0.4 + 0 * angle], -1)
    obstacle = position[:, FRAMES // 2, :2] + 0.6 * torch.randn(count, 2, generator=draw)
    miss = 0.5 * torch.randn(count, 1, 2, generator=draw)
    yaw, pitch = angle + 3.14159, torch.atan2(-0.4 + 0 * angle, radius + 0 * angle)
    path = torch.cat([position, torch.stack([yaw, pitch], -1) + miss], -1)
    words = torch.cat([subject, obstacle], 1).tolist()
    return [Item(f"{seed}-{i}", " ".join(f"{v:.3f}" for v in row)) for i, row in enumerate(words)], path


def main(output: Path, iterations: int = 40) -> ControlledResult:
    """Post-train on 48 scenes, and score 32 others."""
    torch.manual_seed(0)
    model = CameraModel()
    fit_generator(model, *make_scenes(4096, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "flow-dpo", groups=48, group_size=6, updates=4, iterations=iterations, learning_rate=5e-4,
        checkpoint_every=iterations, **{"objective.beta": 300.0, "objective.anchor": 1.0},
    )
    train, held_out = make_scenes(48, 1)[0], make_scenes(32, 2)[0]
    return train_with_control(model, {in_frame: 0.4, no_collision: 0.3, smooth: 0.3}, config, train, held_out, output)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

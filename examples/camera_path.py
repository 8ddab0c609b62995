"""Camera paths, after the abstracts of VERTIGO and Geo-Align: an illustration of the kind, not a reproduction.

VERTIGO (2604.02467) renders previews of generated camera paths and trains by DPO on their ranking; Geo-Align
(2605.23903) rewards metric geometry. Here a flow model makes paths around a subject; rules judge a preview, which is
the projection of a cube. The model has learned from paths that move well, aim badly, and may pass through an obstacle.

    python -m examples.camera_path OUTPUT
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

FRAMES, OBSTACLE_RADIUS, LENS = 12, 0.7, 1.6
CORNERS = torch.cartesian_prod(*[torch.tensor([-0.3, 0.3])] * 3)


def scenes(texts: Sequence[str]) -> torch.Tensor:
    """Return ``[B, 5]``: x, y and height of the subject, x and y of the obstacle, in metres."""
    return torch.tensor([[float(word) for word in text.split()] for text in texts])


def preview(path: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
    """Return the corners of the subject in the picture ``[B, T, 8, 3]``: x, y (the frame is −1 to 1) and depth."""
    ray = (subject[:, None, None] + CORNERS) - path[:, :, None, :3]
    yaw, pitch = path[:, :, None, 3], path[:, :, None, 4]
    ahead, left = ray[..., 0] * yaw.cos() + ray[..., 1] * yaw.sin(), ray[..., 1] * yaw.cos() - ray[..., 0] * yaw.sin()
    depth, up = ahead * pitch.cos() + ray[..., 2] * pitch.sin(), ray[..., 2] * pitch.cos() - ahead * pitch.sin()
    return torch.stack([LENS * left / depth.clamp_min(0.1), LENS * up / depth.clamp_min(0.1), depth], -1)


def in_frame(batch: fp.RewardBatch) -> torch.Tensor:
    """Return the share of the subject's corners that the preview shows ``[B]``."""
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
    """Return scenes, and a path of each ``[count, T, 5]``: position in metres, yaw and pitch in radians."""
    draw = torch.Generator().manual_seed(seed)
    subject = torch.randn(count, 3, generator=draw) * torch.tensor([0.5, 0.5, 0.2])
    turn, radius = 0.5 + torch.rand(count, 1, generator=draw), 2.5 + 0.5 * torch.randn(count, 1, generator=draw)
    angle = turn * (torch.linspace(0, 1, FRAMES) - 0.5) - 0.75
    position = subject[:, None] + torch.stack([radius * angle.cos(), radius * angle.sin(), 0.4 + 0 * angle], -1)
    obstacle = position[:, FRAMES // 2, :2] + 0.6 * torch.randn(count, 2, generator=draw)
    aim = torch.stack([angle + torch.pi, torch.atan2(0 * angle - 0.4, radius)], -1)
    path = torch.cat([position, aim + 0.5 * torch.randn(count, 1, 2, generator=draw)], -1)
    texts = [" ".join(f"{number:.3f}" for number in row) for row in torch.cat([subject, obstacle], 1).tolist()]
    return [Item(f"{seed}-{index}", text) for index, text in enumerate(texts)], path


def main(output: Path, iterations: int = 40) -> ControlledResult:
    """Post-train on 48 scenes, and score 32 others."""
    model = SmallFlow((FRAMES, 5), 5, scenes)
    fit_generator(model, *make_scenes(4096, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "flow-dpo", groups=48, group_size=6, iterations=iterations, learning_rate=3e-4,
        checkpoint_every=iterations, **{"objective.beta": 300.0},
    )  # fmt: skip
    train, held_out = make_scenes(48, 1)[0], make_scenes(32, 2)[0]
    return train_with_control(model, {in_frame: 0.4, no_collision: 0.3, smooth: 0.3}, config, train, held_out, output)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

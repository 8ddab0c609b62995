"""Synthetic cell images, after the abstract of CellFluxRL: an illustration of the kind, not a reproduction.

CellFluxRL (2603.21743) uses seven rewards on function, structure and morphology. Here images of 12 × 12 pixels follow a
dose that makes cells larger and darker. Number, size, brightness and shape, often wrong, are each measured by a rule.

    python -m examples.cell_images OUTPUT
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

import flowportrait as fp
from flowportrait.adapters.policy import Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.adapters.small_flow import SmallFlow
from flowportrait.rl.controlled_training import ControlledResult, train_with_control

SIDE, PLACES = 12, torch.tensor([[3.0, 3.0], [3.0, 8.0], [8.0, 3.0], [8.0, 8.0]])


def asked(texts: Sequence[str]) -> torch.Tensor:
    """Return the number of cells, area in pixels and brightness ``[3, B]`` of texts like ``3 cells at dose 0.25``."""
    number, dose = (torch.tensor([float(text.split()[place]) for text in texts]) for place in (0, -1))
    return torch.stack([number, 6 + 8 * dose, 1 - 0.4 * dose])


def conditions(texts: Sequence[str]) -> torch.Tensor:
    """Return the number of cells as one of four, and the brightness ``[B, 5]``."""
    return torch.cat([torch.eye(4)[asked(texts)[0].long() - 1], asked(texts)[2:].T], 1)


def measure_cells(images: torch.Tensor) -> torch.Tensor:
    """Return ``[4, B]`` of images ``[B, S, S]``: number of regions above 0.3, means of area, brightness, axis ratio."""
    pixels = np.pad(images.numpy(), ((0, 0), (0, 1), (0, 0)))  # an empty row, so that no cell goes on in the next image
    labels, count = ndimage.label(pixels.reshape(-1, SIDE) > 0.3)
    total = partial(ndimage.sum_labels, labels=labels.reshape(pixels.shape), index=np.arange(1, count + 1))
    image, y, x = np.indices(pixels.shape).astype(float)
    area = total(np.ones_like(y))
    yy, xx, xy = (total(a * b) / area - total(a) * total(b) / area**2 for a, b in ((y, y), (x, x), (x, y)))
    half, root = (yy + xx) / 2 + 1 / 12, np.hypot((yy - xx) / 2, xy)
    owner, ratio = (total(image) / area).round().astype(int), np.sqrt((half - root) / (half + root))
    number, *sums = (np.bincount(owner, row, len(pixels)) for row in (area / area, area, total(pixels) / area, ratio))
    return torch.from_numpy(np.stack([number, *(row / number.clip(1) for row in sums)])).float()


def number(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the difference between the number of cells and the one that is asked for ``[B]``."""
    return -(measure_cells(batch.data[:, 0])[0] - asked(batch.transcript)[0]).abs()


def size(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the relative error of the mean area ``[B]``."""
    return -(measure_cells(batch.data[:, 0])[1] / asked(batch.transcript)[1] - 1).abs()


def intensity(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the error of the mean brightness ``[B]``."""
    return -(measure_cells(batch.data[:, 0])[2] - asked(batch.transcript)[2]).abs()


def shape(batch: fp.RewardBatch) -> torch.Tensor:
    """Return the mean ratio of the axes, 1 for round cells ``[B]``."""
    return measure_cells(batch.data[:, 0])[3]


def make_cells(count: int, seed: int) -> tuple[list[Item], torch.Tensor]:
    """Return prompts, and a flawed image of each ``[count, 1, S, S]``."""
    draw = torch.Generator().manual_seed(seed)
    wanted, other = torch.randint(1, 5, (2, count), generator=draw)
    dose, unit, error = *torch.rand(2, count, generator=draw), torch.randn(count, 4, 4, generator=draw)
    texts = [f"{n} cells at dose {d:.3f}" for n, d in zip(wanted.tolist(), dose.tolist(), strict=True)]
    shown = torch.rand(count, 4, generator=draw).argsort(1) < torch.where(unit < 0.5, other, wanted)[:, None]
    radius = (asked(texts)[1][:, None] * (1 + 0.3 * error[..., 0]).clamp(0.5, 1.5) / torch.pi).sqrt()
    offset = torch.cartesian_prod(*[torch.arange(float(SIDE))] * 2)[:, None] - (PLACES + 0.4 * error[..., 1:3])[:, None]
    stretch = (0.3 * error[..., 3]).exp()[:, None, :, None] ** torch.tensor([1.0, -1.0])
    cells = torch.sigmoid(3 * (radius[:, None] - (offset * stretch).norm(dim=-1))) * shown[:, None]
    images = (asked(texts)[2] + 0.2 * error[:, 0, 0])[:, None] * cells.amax(-1)
    return [Item(f"{seed}-{index}", text) for index, text in enumerate(texts)], images.unflatten(1, (1, SIDE, SIDE))


def main(output: Path, iterations: int = 30) -> ControlledResult:
    """Post-train on 48 prompts, and score 32 others."""
    model = SmallFlow((1, SIDE, SIDE), 5, conditions, width=256)
    fit_generator(model, *make_cells(4096, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "nft", groups=16, group_size=12, updates=4, iterations=iterations, learning_rate=1e-3
    )
    rewards = {number: 0.4, size: 0.2, intensity: 0.2, shape: 0.2}
    return train_with_control(model, rewards, config, make_cells(48, 1)[0], make_cells(32, 2)[0], output)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

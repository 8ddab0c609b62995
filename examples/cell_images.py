"""Synthetic cell images with four rule-based rewards, after the abstract of CellFluxRL; an illustration of the kind, not a reproduction.

CellFluxRL (2603.21743) post-trains a flow model of cell images with seven rewards on function, structure and morphology.
Here a flow model makes images of 12 × 12 pixels for a number of cells and a dose that makes them larger and darker. It has
learned from images with the wrong number, size, brightness and shape. Each of the four is measured by a rule.

    python -m examples.cell_images OUTPUT
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import nn

import flowportrait as fp
from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.rl.control import ControlledResult, train_with_control

SIDE, PLACES = 12, torch.tensor([[3.0, 3.0], [3.0, 8.0], [8.0, 3.0], [8.0, 8.0]])


def read_prompts(texts: Sequence[str]) -> torch.Tensor:
    """Return ``[B, 2]``: the number of cells and the dose from 0 to 1, of texts such as ``3 cells at dose 0.250``."""
    return torch.tensor([[float(text.split()[0]), float(text.split()[-1])] for text in texts])


class CellModel(nn.Module):
    """Velocity of images ``[B, S, S]``, about 0 where there is nothing and 1 in a bright cell."""

    shape = (SIDE, SIDE)

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(SIDE**2 + 6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, SIDE**2))  # fmt: skip

    def encode(self, items: Sequence[Item]) -> tuple[torch.Tensor]:
        number, dose = read_prompts([item.text for item in items]).split(1, 1)
        return (torch.cat([nn.functional.one_hot(number[:, 0].long() - 1, 4).float(), dose], 1),)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: tuple[torch.Tensor]) -> torch.Tensor:
        clean = self.net(torch.cat([x.flatten(1), sigma[:, None], known[0]], 1)).reshape(x.shape)
        return (x - clean) / sigma.clamp_min(0.1)[:, None, None]

    def decode(self, x: torch.Tensor, known: tuple[torch.Tensor]) -> DecodedSamples:
        return DecodedSamples(data=x[:, None])


def measure_cells(batch: fp.RewardBatch) -> torch.Tensor:
    """Return ``[B, 4]``: number, mean area in pixels, mean brightness, and mean share of the bounding box of the cells."""
    rows = []
    for image in batch.data[:, 0].numpy():
        labels, number = ndimage.label(image > 0.3)
        areas = np.bincount(labels.ravel(), minlength=number + 1)[1:]
        boxes = [np.ptp(rows_and_columns, 1) + 1 for rows_and_columns in map(np.nonzero, [labels == 1])]
        rows.append([number, areas.mean() if number else 0, image[labels > 0].mean() if number else 0, 0 * len(boxes)])
    return torch.tensor(rows)

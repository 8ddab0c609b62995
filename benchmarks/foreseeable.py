"""How much of what the warp misplaces could a network know? ``python benchmarks/foreseeable.py PAIRS``.

PAIRS is what ``retouch_pairs`` writes. The flow from each drawing to its truth (``gap.py``), on a grid of 24 x 18, is
predicted from what a retouching network is given (lips, jaw and head as shapes; drawing and source, coarse) by a small
network trained on it directly, with the least squares that favour a mean. Printed: the share of the flow's energy
that its best affine part holds (mostly registration: where the tracker put the eyes), the share foreseen on speakers
held out, and the mouth error (``reenact.py``) of their drawings moved as foreseen, and as they should be.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import tyro
from gap import affine, flow, moved
from reenact import distance, features
from tools.train_retouch import load_pairs
from torch import Tensor, nn

from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH

_GRID, _COARSE = (24, 18), (12, 9)
_PARTS = 40
_STEPS = 500


@dataclass(frozen=True)
class Options:
    """What is measured."""

    pairs: tyro.conf.Positional[Path]
    train: int = 2400
    # pairs to learn from


def coarse(picture: Tensor) -> np.ndarray:
    """A share or picture, small, flat."""
    return cv2.resize(picture.numpy().astype(np.float32) / 255, _COARSE, interpolation=cv2.INTER_AREA).ravel()


def known(data: dict[str, Tensor], row: int) -> np.ndarray:
    """What a network is told of a pair's first frame ``[N]``."""
    skin = (data["skin"][row].numpy() / 255).clip(0.06)
    pictures = [coarse(data["base"][row, 0]), coarse(data["source"][row])]
    shares = [coarse(data["inner"][row, 0]), coarse(data["outer"][row, 0]), coarse(data["source_inner"][row])]
    relative = [(picture.reshape(-1, 3) / skin - 1).ravel() for picture in pictures]
    return np.concatenate([*relative, *shares, data["place"][row, 0].numpy().ravel(), data["drop"][row, 0].numpy()])


def chosen(data: dict[str, Tensor], count: int) -> np.ndarray:
    """Rows that are looked at."""
    return np.random.default_rng(0).permutation(len(data["base"]))[:count]


def read(data: dict[str, Tensor], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Inputs ``[N, K]``, flows ``[N, 864]`` and the affine share of the flows' energy."""
    inputs, flows, left, whole = [], [], 0.0, 0.0
    for row in rows:
        field = flow(data["truth"][row, 0].numpy(), data["base"][row, 0].numpy())
        left += float(((field - affine(field)) ** 2).sum())
        whole += float((field**2).sum())
        flows.append(cv2.resize(field, _GRID, interpolation=cv2.INTER_AREA).ravel())
        inputs.append(known(data, int(row)))
    return np.array(inputs), np.array(flows), 1 - left / whole


def error(data: dict[str, Tensor], rows: np.ndarray, flows: np.ndarray) -> float:
    """Mouth error of drawings moved by flows ``[N, 864]``."""
    fields = [cv2.resize(f.reshape(*_GRID[::-1], 2).astype(np.float32), (WINDOW_WIDTH, WINDOW_HEIGHT)) for f in flows]
    drawn = [moved(data["base"][row, 0].numpy(), field) for row, field in zip(rows, fields, strict=True)]
    return distance(features(drawn), features([data["truth"][row, 0].numpy() for row in rows]))


def main(options: Options) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data, dev = load_pairs(options.pairs, "pairs-*"), load_pairs(options.pairs, "dev-*")
    inputs, flows, _ = read(data, chosen(data, options.train))
    rows = chosen(dev, options.train)
    held, true, share = read(dev, rows)
    middle, scale = inputs.mean(0), inputs.std(0) + 1e-3
    mean = flows.mean(0)
    _, sizes, parts = np.linalg.svd(flows - mean, full_matrices=False)
    parts = parts[:_PARTS]
    spread = torch.tensor(sizes[:_PARTS] / np.sqrt(len(flows)), dtype=torch.float32)
    goal = torch.tensor((flows - mean) @ parts.T, dtype=torch.float32)
    told, asked = (torch.tensor((x - middle) / scale, dtype=torch.float32).clamp(-5, 5) for x in (inputs, held))
    network = nn.Sequential(
        nn.Linear(told.shape[1], 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.3),
        nn.Linear(256, _PARTS),
    )  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    for _ in range(_STEPS):
        batch = torch.randint(len(told), (256,))
        loss = (network(told[batch]) * spread - goal[batch]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        foreseen = (network.eval()(asked) * spread).numpy() @ parts + mean
    rms = np.sqrt((true.reshape(len(true), -1, 2) ** 2).sum(-1).mean())
    print(f"{len(true)} held-out pairs, flow of {rms:.1f} window pixels (rms)")
    print(f"  affine            {share:.0%} of its energy")
    print(f"  mean of the flows {1 - ((true - mean) ** 2).sum() / (true**2).sum():.0%}")
    print(f"  foreseen          {1 - ((true - foreseen) ** 2).sum() / (true**2).sum():.0%}")
    still = error(dev, rows, 0 * true)
    for name, flow_used in (("moved as foreseen", foreseen), ("moved as it should be, by so coarse a flow", true)):
        print(f"  mouth error {name}: {error(dev, rows, flow_used) / still:.2f} of the drawing's")


if __name__ == "__main__":
    main(tyro.cli(Options))

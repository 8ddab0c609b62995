"""What retouching networks are worth when nothing holds them back: ``python benchmarks/retouched.py PAIRS NETWORK …``.

PAIRS is what ``retouch_pairs`` writes, NETWORK what ``train_retouch`` does. The mouth error (``reenact.py``) of the
held-out speakers' drawings after the whole network, and after its flow alone, as shares of the drawings' own; and how
sharp they are: the mean step between neighbouring pixels inside the mouth and on the lips, over the true one's. In use
a network has less say (``rendering/retouch.py``), and earns less.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from reenact import features
from safetensors.torch import load_file
from tools.train_retouch import draw, load_pairs
from torch import Tensor

from flowportrait.evaluation.statistics import bootstrap_ratio
from flowportrait.rendering.retouch import MouthWindows, RetouchNet


@dataclass(frozen=True)
class Options:
    """What is measured."""

    pairs: tyro.conf.Positional[Path]
    networks: tyro.conf.Positional[tuple[Path, ...]]
    every: int = 4
    # of the held-out pairs


def error(drawn: Tensor, goal: list[Tensor]) -> Tensor:
    """Mouth error of each window ``[N]``."""
    pictures = (drawn.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().byte().numpy()
    gaps = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(features(list(pictures)), goal, strict=True)]
    return torch.stack(gaps).mean(0)


def sharpness(drawn: Tensor, windows: MouthWindows) -> float:
    """Mean step between neighbours within the lips' outline."""
    step = drawn.diff(dim=-1).abs().mean(1)[:, :-1] + drawn.diff(dim=-2).abs().mean(1)[..., :-1]
    weight = windows.outer[:, 0, :-1, :-1]
    return float((step * weight).sum() / weight.sum())


def main(options: Options) -> None:
    """Measure and print means with bootstrap 95 % intervals over pairs."""
    torch.set_num_threads(1)
    dev = load_pairs(options.pairs, "dev-*")
    windows, truth = draw(dev, torch.arange(0, len(dev["base"]), options.every), recolour=False)
    goal = features(list((truth.permute(0, 2, 3, 1) * 255).round().byte().numpy()))
    base, true_step = error(windows.base, goal), sharpness(truth, windows)
    drawing_step = sharpness(windows.base, windows) / true_step
    print(f"{len(base)} held-out drawings: mouth error {base.mean():.4f}, sharpness {drawing_step:.2f}")
    for path in options.networks:
        network = RetouchNet()
        network.load_state_dict({name: value.float() for name, value in load_file(str(path)).items()})
        with torch.inference_mode():
            whole, _ = network.eval().retouched(windows)
            residual = network(windows)[1]
        skin = windows.skin.clamp_min(0.06)[..., None, None]
        for name, drawn in (("flow alone", whole - skin * residual), ("flow and residual", whole)):
            mine = error(drawn, goal)
            ratio = bootstrap_ratio(mine, base, 1000)
            step = sharpness(drawn, windows) / true_step
            share = f"{ratio.mean:.3f} ({ratio.low:.3f}–{ratio.high:.3f})"
            print(f"{path.stem}, {name}: {share} of it, sharpness {step:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Options))

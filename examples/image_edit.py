"""Edits of small pictures with three rewards, after the abstract of VEFX-Bench; an illustration of the kind, not a reproduction.

VEFX-Bench (2604.16272) judges an edited video by three separate qualities: whether the instruction was followed, how well
the result is rendered, and whether the rest was left alone. Here a flow model recolours a rectangle in a picture of
8 × 8 pixels. It has learned from edits that stop half-way, tint the background and leave noise. The right edit is
known, so that each quality is a rule; ``copy`` and ``repaint`` show that no single one is enough.

    python -m examples.image_edit OUTPUT
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import flowportrait as fp
from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.rl.control import ControlledResult, train_with_control

SIDE = 8
COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "white": (1.0, 1.0, 1.0)}


class Edits(NamedTuple):
    """Pictures ``[B, 3, S, S]`` from −1 to 1 and the mask of the rectangle ``[B, 1, S, S]``."""

    source: torch.Tensor
    target: torch.Tensor
    mask: torch.Tensor


@lru_cache(maxsize=None)
def draw_edit(text: str) -> Edits:
    """Draw the source and the right edit of the instruction ``red to blue at LEFT TOP WIDTH HEIGHT on GREY``."""
    before, _, after, _, left, top, width, height, _, grey = text.split()
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, int(top) : int(top) + int(height), int(left) : int(left) + int(width)] = 1
    ramp = float(grey) + torch.linspace(-0.3, 0.3, SIDE).expand(3, SIDE, SIDE)
    source, target = (ramp * (1 - mask) + torch.tensor(COLOURS[name])[:, None, None] * mask for name in (before, after))
    return Edits(source, target, mask)


def edits(texts: Sequence[str]) -> Edits:
    """Return the edits of instructions as one batch."""
    return Edits(*(torch.stack(part) for part in zip(*map(draw_edit, texts), strict=True)))


class EditModel(nn.Module):
    """Velocity of the edited picture ``[B, 3, S, S]``, from the source and the colour that is asked for."""

    shape = (3, SIDE, SIDE)

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        size = 3 * SIDE**2
        self.net = nn.Sequential(nn.Linear(2 * size + 4, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, size))  # fmt: skip

    def encode(self, items: Sequence[Item]) -> tuple[torch.Tensor, torch.Tensor]:
        colour = torch.tensor([COLOURS[item.text.split()[2]] for item in items])
        return edits([item.text for item in items]).source, colour

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        source, colour = known
        change = self.net(torch.cat([x.flatten(1), source.flatten(1), colour, sigma[:, None]], 1)).reshape(x.shape)
        return (x - source - change) / sigma.clamp_min(0.1)[:, None, None, None]

    def decode(self, x: torch.Tensor, known: tuple[torch.Tensor, torch.Tensor]) -> DecodedSamples:
        return DecodedSamples(data=x[:, None])


def masked_error(picture: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean absolute difference of two pictures within a mask ``[B]``."""
    return ((picture - wanted).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)))


def instruction(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the error of the rectangle's mean colour ``[B]``."""
    edit = edits(batch.transcript)
    colour = (batch.data[:, 0] * edit.mask).sum((2, 3), keepdim=True) / edit.mask.sum((2, 3), keepdim=True)
    return -masked_error(colour.expand_as(edit.target), edit.target, edit.mask)


def preservation(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the error outside the rectangle ``[B]``."""
    edit = edits(batch.transcript)
    return -masked_error(batch.data[:, 0], edit.source, 1 - edit.mask)


def quality(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the mean size of what a median of 3 × 3 pixels removes ``[B]``: noise, and ragged edges."""
    windows = nn.functional.unfold(batch.data[:, 0].flatten(0, 1)[:, None], 3)
    return -(windows[:, 4] - windows.median(1).values).abs().mean(1).unflatten(0, (-1, 3)).mean(1)


REWARDS = {instruction: 0.4, preservation: 0.3, quality: 0.3}


def make_edits(count: int, seed: int) -> tuple[list[Item], torch.Tensor]:
    """Return instructions, and a flawed edit ``[count, 3, S, S]`` of each."""
    draw = torch.Generator().manual_seed(seed)
    names, texts = list(COLOURS), []
    for _ in range(count):
        before, after = torch.randperm(4, generator=draw)[:2].tolist()
        left, top = torch.randint(1, 3, (2,), generator=draw).tolist()
        width, height = torch.randint(3, 6, (2,), generator=draw).tolist()
        grey = torch.rand((), generator=draw) - 0.5
        texts.append(f"{names[before]} to {names[after]} at {left} {top} {width} {height} on {grey:.3f}")
    edit = edits(texts)
    share = torch.rand(count, 1, 1, 1, generator=draw)
    flawed = edit.source + (edit.target - edit.source) * share
    tint = 0.3 * torch.randn(count, 3, 1, 1, generator=draw) * (1 - edit.mask)
    noise = 0.1 * torch.randn(flawed.shape, generator=draw)
    return [Item(f"{seed}-{index}", text) for index, text in enumerate(texts)], flawed + tint + noise


def main(output: Path, iterations: int = 25) -> ControlledResult:
    """Post-train on 48 instructions, and score 32 others."""
    torch.manual_seed(0)
    model = EditModel()
    fit_generator(model, *make_edits(2048, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "nft", groups=16, group_size=12, updates=4, iterations=iterations, learning_rate=1e-3,
        checkpoint_every=iterations
    )
    train, held_out = make_edits(48, 1)[0], make_edits(32, 2)[0]
    return train_with_control(model, REWARDS, config, train, held_out, output)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

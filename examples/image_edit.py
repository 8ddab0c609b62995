"""Edits of small pictures, after the abstract of VEFX-Bench: an illustration of the kind, not a reproduction.

VEFX-Bench (2604.16272) grades an edited video by instruction following, rendering quality and edit exclusivity. Here a
flow model recolours a rectangle in a picture of 8 × 8 pixels. It has learned from edits that stop half-way, tint the
background and leave noise. The right edit is known, so that each of the three is a rule.

    python -m examples.image_edit OUTPUT
"""

import sys
from collections import namedtuple
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch.nn.functional import unfold

import flowportrait as fp
from flowportrait.adapters.policy import Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.adapters.small_flow import SmallFlow
from flowportrait.rl.controlled_training import ControlledResult, train_with_control

SIDE = 8
COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0), "white": (1.0, 1.0, 1.0)}


Edits = namedtuple("Edits", ["source", "target", "mask", "colour"])
"""Source, right edit and mask of the rectangle ``[B, 3, S, S]``, from −1 to 1, and its new colour ``[B, 3]``."""


@cache
def draw_edit(text: str) -> Edits:
    """Draw the source and the right edit of the instruction ``red to blue at LEFT TOP WIDTH HEIGHT on GREY``."""
    before, _, after, _, left, top, width, height, _, grey = text.split()
    mask = torch.zeros(3, SIDE, SIDE)
    mask[:, int(top) : int(top) + int(height), int(left) : int(left) + int(width)] = 1
    ramp = float(grey) + torch.linspace(-0.3, 0.3, SIDE).expand(3, SIDE, SIDE)
    old, new = torch.tensor(COLOURS[before]), torch.tensor(COLOURS[after])
    return Edits(*(ramp * (1 - mask) + colour[:, None, None] * mask for colour in (old, new)), mask, new)


def edits(texts: Sequence[str]) -> Edits:
    """Return the edits of instructions as one batch."""
    return Edits(*(torch.stack(part) for part in zip(*map(draw_edit, texts), strict=True)))


def conditions(texts: Sequence[str]) -> torch.Tensor:
    """Return the source and the colour that is asked for ``[B, 3·S·S + 3]``."""
    return torch.cat([edits(texts).source.flatten(1), edits(texts).colour], 1)


def instruction(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the error of the rectangle's mean colour ``[B]``."""
    edit = edits(batch.transcript)
    return -((batch.data[:, 0] * edit.mask).sum((2, 3)) / edit.mask.sum((2, 3)) - edit.colour).abs().mean(1)


def preservation(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the mean error outside the rectangle ``[B]``."""
    edit = edits(batch.transcript)
    error, rest = (batch.data[:, 0] - edit.source).abs(), 1 - edit.mask
    return -(error * rest).sum((1, 2, 3)) / rest.sum((1, 2, 3))


def quality(batch: fp.RewardBatch) -> torch.Tensor:
    """Return minus the mean size of what a median of 3 × 3 pixels removes ``[B]``: noise and ragged edges."""
    windows = unfold(batch.data[:, 0].flatten(0, 1)[:, None], 3)
    return -(windows[:, 4] - windows.median(1).values).abs().mean(1).unflatten(0, (-1, 3)).mean(1)


def make_edits(count: int, seed: int) -> tuple[list[Item], torch.Tensor]:
    """Return instructions, and a flawed edit of each ``[count, 1, 3, S, S]``."""
    draw, texts = torch.Generator().manual_seed(seed), []
    for _ in range(count):
        before, after = (list(COLOURS)[index] for index in torch.randperm(4, generator=draw)[:2].tolist())
        left, top, width, height = (torch.rand(4, generator=draw) * 3 + torch.tensor([0, 0, 3, 3])).int().tolist()
        grey = float(torch.rand((), generator=draw)) - 0.5
        texts.append(f"{before} to {after} at {left} {top} {width} {height} on {grey:.3f}")
    edit, share = edits(texts), torch.rand(count, 1, 1, 1, generator=draw)
    tint = 0.3 * torch.randn(count, 3, 1, 1, generator=draw) * (1 - edit.mask)
    flawed = edit.source + (edit.target - edit.source) * share + tint + 0.1 * torch.randn(tint.shape, generator=draw)
    return [Item(f"{seed}-{index}", text) for index, text in enumerate(texts)], flawed[:, None]


def main(output: Path, iterations: int = 25) -> ControlledResult:
    """Post-train on 48 instructions, and score 32 others."""
    model = SmallFlow((1, 3, SIDE, SIDE), 3 * SIDE**2 + 3, conditions, width=256)
    fit_generator(model, *make_edits(2048, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "nft", groups=16, group_size=12, updates=4, iterations=iterations, learning_rate=1e-3
    )
    rewards = {instruction: 0.4, preservation: 0.3, quality: 0.3}
    return train_with_control(model, rewards, config, make_edits(48, 1)[0], make_edits(32, 2)[0], output)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

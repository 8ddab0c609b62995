"""Four conditions at once and a reward for each, after the abstract of OmniShow; an illustration of the kind, not a reproduction.

OmniShow (2604.11804) generates video from text, a reference image, sound and pose together. Here they are a word, two
numbers, a loudness for each frame and a pose to end in, and a flow model makes the tracks of a figure. It has learned from
films that follow word and image, follow the pose loosely and ignore the sound. The table shows which condition is
ignored: for it, ``matched`` (own condition) is no better than ``swapped`` (the condition of another prompt).

    python -m examples.four_conditions OUTPUT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import flowportrait as fp
from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.rl.control import ControlledResult, train_with_control

FRAMES = 12
WORDS = {"still": 0.0, "left": -1.0, "right": 1.0, "far right": 2.0}


class Conditions(NamedTuple):
    """Speed of the word ``[B, 1]``, look of the image ``[B, 2]``, loudness ``[B, T]`` and final pose ``[B, 2]``."""

    text: torch.Tensor
    image: torch.Tensor
    sound: torch.Tensor
    pose: torch.Tensor


def read_conditions(texts: Sequence[str]) -> Conditions:
    """Return the conditions that are written in JSON as the texts of prompts."""
    rows = [json.loads(text) for text in texts]
    columns = {name: torch.tensor([row[name] for row in rows]) for name in ("image", "sound", "pose")}
    return Conditions(torch.tensor([[WORDS[row["text"]]] for row in rows]), **columns)


class FigureModel(nn.Module):
    """Velocity of tracks ``[B, T, 6]``: place, look (2), mouth, pose (2)."""

    shape = (FRAMES, 6)

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        size = FRAMES * 6
        self.net = nn.Sequential(nn.Linear(size + FRAMES + 6, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
                                 nn.Linear(width, size))  # fmt: skip

    def encode(self, items: Sequence[Item]) -> Conditions:
        return read_conditions([item.text for item in items])

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: Conditions) -> torch.Tensor:
        clean = self.net(torch.cat([x.flatten(1), sigma[:, None], *known], 1)).reshape(x.shape)
        return (x - clean) / sigma.clamp_min(0.1)[:, None, None]

    def decode(self, x: torch.Tensor, known: Conditions) -> DecodedSamples:
        return DecodedSamples(data=x)


def text_error(tracks: torch.Tensor, known: Conditions) -> torch.Tensor:
    """Return the error of the way that the figure goes ``[B]``."""
    return (tracks[:, -1, 0] - tracks[:, 0, 0] - known.text[:, 0]).abs()


def image_error(tracks: torch.Tensor, known: Conditions) -> torch.Tensor:
    """Return the mean error of the look ``[B]``."""
    return (tracks[..., 1:3] - known.image[:, None]).abs().mean((1, 2))


def sound_error(tracks: torch.Tensor, known: Conditions) -> torch.Tensor:
    """Return the mean error of the mouth, which should be as open as the sound is loud ``[B]``."""
    return (tracks[..., 3] - known.sound).abs().mean(1)


def pose_error(tracks: torch.Tensor, known: Conditions) -> torch.Tensor:
    """Return the mean error of the last pose ``[B]``."""
    return (tracks[:, -1, 4:] - known.pose).abs().mean(1)


ERRORS = {"text": text_error, "image": image_error, "sound": sound_error, "pose": pose_error}


def reward(name: str, swapped: bool = False) -> Callable[[fp.RewardBatch], torch.Tensor]:
    """Return minus the error of one condition, of the own prompt or of the next one of the batch."""

    def score(batch: fp.RewardBatch) -> torch.Tensor:
        known = read_conditions(batch.transcript)
        if swapped:
            groups, rows = batch.group.unique(return_inverse=True)
            first = torch.stack([(batch.group == group).nonzero()[0, 0] for group in groups])
            known = Conditions(*(part[first.roll(-1)[rows]] for part in known))
        return -ERRORS[name](batch.data, known)

    score.__name__ = f"{name} swapped" if swapped else name
    return score


def make_prompts(count: int, seed: int) -> tuple[list[Item], torch.Tensor]:
    """Return prompts with four conditions, and a film ``[count, T, 6]`` of each that follows some of them."""
    draw = torch.Generator().manual_seed(seed)
    word = torch.randint(len(WORDS), (count,), generator=draw).tolist()
    image, pose = torch.randn(count, 2, generator=draw), torch.randn(count, 2, generator=draw)
    sound, mouth = torch.rand(2, count, FRAMES, generator=draw).unbind()
    rows = [{"text": list(WORDS)[word[i]], "image": image[i].tolist(), "sound": sound[i].tolist(), "pose": pose[i].tolist()} for i in range(count)]
    items = [Item(f"{seed}-{index}", json.dumps(row)) for index, row in enumerate(rows)]
    known, time = read_conditions([item.text for item in items]), torch.linspace(0, 1, FRAMES)
    way = (known.text + 0.2 * torch.randn(count, 1, generator=draw)) * time
    look = (image + 0.2 * torch.randn(count, 2, generator=draw))[:, None].expand(-1, FRAMES, -1)
    end = 0.5 * pose + 0.7 * torch.randn(count, 2, generator=draw)
    return items, torch.cat([way[..., None], look, mouth[..., None], end[:, None] * time[:, None]], -1)


def main(output: Path, iterations: int = 40) -> ControlledResult:
    """Post-train on 64 prompts, and score 32 others with their own conditions and with swapped ones."""
    torch.manual_seed(0)
    model = FigureModel()
    fit_generator(model, *make_prompts(4096, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "nft", groups=16, group_size=12, updates=4, iterations=iterations, learning_rate=1e-3,
        checkpoint_every=iterations,
    )  # fmt: skip
    train, held_out = make_prompts(64, 1)[0], make_prompts(32, 2)[0]
    measures = [reward(name, swapped) for name in ERRORS for swapped in (False, True)]
    return train_with_control(model, [reward(name) for name in ERRORS], config, train, held_out, output, measures=measures)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

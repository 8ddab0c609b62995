"""An audio-driven generator of one's own, post-trained with the lip-sync reward.

Three methods make it a policy; nothing here is known to the package. It makes two seconds of face motion, in the 30
numbers of ``flowportrait.rendering.motion_basis``, from the sound of an item.

    flowportrait posttrain policies check examples.own_generator:Murmur --prompts PROMPTS
    flowportrait posttrain --policy examples.own_generator:Murmur --prompts PROMPTS --output RUN --recipe flow-grpo
    python -m examples.own_generator PROMPTS RUN         the same, with the sync reward alone
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.errors import BadInput
from flowportrait.media.audio import read_audio
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS, log_mel, normalize_loudness
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.post_trainer import PostTrainer
from flowportrait.rl.recipes import find_recipe

FRAMES, NUMBERS = 50, 30


class Murmur(nn.Module):
    """Convolutions over time, from noisy motion, sound and noise level to the velocity."""

    shape = (FRAMES, NUMBERS)

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.sound = nn.Conv1d(MELS_PER_FRAME * N_MELS, width, 5, padding=2)
            self.state = nn.Conv1d(NUMBERS + 1, width, 5, padding=2)
            self.out = nn.Sequential(nn.SiLU(), nn.Conv1d(width, width, 5, padding=2), nn.SiLU(),
                                     nn.Conv1d(width, NUMBERS, 1))  # fmt: skip

    def encode(self, items: Sequence[Item]) -> tuple[torch.Tensor]:
        """Log-mel ``[B, 4·80, T]`` of each item's sound."""
        return (torch.stack([self.hear(item) for item in items]),)

    def hear(self, item: Item) -> torch.Tensor:
        """One item's, four columns a frame, cut or filled up with its quietest."""
        if item.audio is None:
            raise BadInput(f"Murmur needs an audio: prompt {item.id!r} has none.")
        mel = log_mel(normalize_loudness(read_audio(item.audio)))[: FRAMES * MELS_PER_FRAME]
        quiet = mel.amin().expand(FRAMES * MELS_PER_FRAME - len(mel), N_MELS)
        return torch.cat([mel, quiet]).reshape(FRAMES, -1).T

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: tuple[torch.Tensor]) -> torch.Tensor:
        """v ``[B, T, 30]``."""
        level = sigma[:, None, None].expand(-1, 1, FRAMES)
        hidden = self.sound(known[0]) + self.state(torch.cat([x.transpose(1, 2), level], 1))
        return self.out(hidden).transpose(1, 2)

    def decode(self, x: torch.Tensor, known: tuple[torch.Tensor]) -> DecodedSamples:
        """The latents are the motion."""
        return DecodedSamples(motion=x)


def main(prompts: Path, output: Path, iterations: int = 12) -> Path:
    """Post-train with the sync reward alone."""
    recipe = replace(
        find_recipe("flow-grpo"), groups=4, group_size=16, plan=AllSteps(steps=4), learning_rate=1e-3, eta=1.0,
        iterations=iterations,
    )  # fmt: skip
    name = "examples.own_generator:Murmur"
    return PostTrainer(name, rewards=["sync"], config=recipe, train_prompts=prompts, output_dir=output).train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Noisy speech made to sound clear to the generator: babble and echo are taken off the log-mel before anything listens.

    mel [4T, 80] ─► GRU over frames ─► what noise added to each column,  how far below the speech it lies (dB)
    heard = mel − w · added            w = 0 above 13.5 dB, 1 below 12.5 dB, of the estimate so far

Where the estimate says clean, w is 0 and the generator hears the very bits it heard before, as with all 230 clips of
people nobody trained on. A frame takes the four columns that end one column before its own last one, which is what live
sound can tell at the frame's end; nothing is looked ahead to, so the generator's look-ahead stays what it was. The
estimate begins at "clean" and is a mean over the last four seconds; noise at 10 dB is believed after one and a half.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from flowportrait.generator.speech_encoder import SILENCE
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.written import write_weights

IN_WIDTH, WIDTH = 192, 256
CLEANEST = 30.0
"""Decibels by which speech exceeds noise that count as clean."""
OPEN, FULL = 13.5, 12.5
"""Estimates in decibels below which noise begins to be taken off, and is taken off wholly."""
MEMORY, PRIOR = 100, 6
"""Frames that the estimate remembers, and of clean speech that it begins with."""
_LN_PER_UNIT = 4.0


class Enhancer(nn.Module):
    """The network; ``Hearing`` is one stream through it."""

    def __init__(self) -> None:
        super().__init__()
        self.frame_in = nn.Linear(MELS_PER_FRAME * N_MELS, IN_WIDTH)
        self.memory = nn.GRU(IN_WIDTH, WIDTH, batch_first=True)
        self.added_out = nn.Linear(WIDTH, MELS_PER_FRAME * N_MELS)
        self.level_out = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.added_out.weight)
        nn.init.zeros_(self.added_out.bias)
        nn.init.constant_(self.level_out.bias, 1.5)

    def forward(
        self, groups: torch.Tensor, memory: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What noise added to frames of columns ``[B, T, 320]``, of like shape; the level of speech over noise in
        decibels ``[B, T]``; and the memory ``[1, B, 256]`` to go on from."""
        states, memory = self.memory(F.silu(self.frame_in(groups)), memory)
        return self.added_out(states), 10 * self.level_out(states)[..., 0], memory

    def save(self, folder: Path) -> None:
        """Write float16 ``model.safetensors`` under a temporary name first."""
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / "model.safetensors", self.state_dict())

    @classmethod
    def load(cls, folder: Path) -> Enhancer:
        """What ``save`` wrote, in float32 and frozen."""
        weights = load_file(str(folder / "model.safetensors"))
        model = cls()
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        return model.requires_grad_(False).eval()


@lru_cache(maxsize=1)
def shipped() -> Enhancer:
    """The one in the package."""
    return Enhancer.load(Path(str(files("flowportrait") / "weights" / "enhancer")))


@dataclass
class Hearing:
    """One stream of log-mel made clearer; its fields are its state."""

    before: torch.Tensor = field(default_factory=lambda: torch.full((1, N_MELS), SILENCE))
    """The column before the first."""
    memory: torch.Tensor | None = None
    estimate: float = CLEANEST
    frames: int = PRIOR

    @torch.no_grad()
    def __call__(self, enhancer: Enhancer, columns: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
        """Columns ``[C, 80]`` with the noise taken off, and by which factor each frame's sound became softer.

        C is 4 F − 1 at first and 4 F after that, as ``LiveSound`` gives them, for F frames."""
        first = len(columns) % MELS_PER_FRAME
        heard = torch.cat([self.before, columns]) if first else columns
        if not len(heard):
            return columns, []
        groups = heard.reshape(1, -1, MELS_PER_FRAME * N_MELS)
        added, levels, self.memory = enhancer(groups, self.memory)
        weights = torch.tensor([self._weight(level) for level in levels[0].clamp(-10, CLEANEST).tolist()])
        clearer = groups - weights[:, None] * added
        softer = (_power(clearer) / _power(groups)).sqrt()[0].tolist()
        return clearer.reshape(-1, N_MELS)[1 if first else 0 :], softer

    def _weight(self, level: float) -> float:
        """The share w of the noise that is taken off after one more frame's level."""
        self.frames = min(self.frames + 1, MEMORY)
        self.estimate += (level - self.estimate) / self.frames
        return min(1.0, max(0.0, (OPEN - self.estimate) / (OPEN - FULL)))


def enhanced(enhancer: Enhancer, mel: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """A whole recording's log-mel ``[4T, 80]`` as a stream would hear it; the very last column as it is."""
    columns, softer = Hearing()(enhancer, mel[:-1])
    return torch.cat([columns, mel[-1:]]), softer


def _power(groups: torch.Tensor) -> torch.Tensor:
    return (groups * _LN_PER_UNIT).exp().sum(-1)

"""Noisy speech made to sound clear to the generator: babble and echo are taken off the log-mel before anything listens.

    mel [4T, 80] ─► GRU over frames ─► what noise added to each column,  how far below the speech it lies (dB)
    sound        ─► isolator        ─► what noise added to each column
    heard = mel − w · mean of both     w = 0 above 13.5 dB, 1 below 12.5 dB, of the estimate so far

The GRU knows what the generator listens to, from few voices; the isolator knows many voices (``isolator``). It starts
when noise is first believed, with the second before: clean speech costs nothing more.

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

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from flowportrait.generator.isolator import Isolator, State
from flowportrait.generator.speech_encoder import SILENCE
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS, SAMPLES_PER_FRAME
from flowportrait.written import write_weights

IN_WIDTH, WIDTH = 192, 256
CLEANEST = 30.0
"""Decibels by which speech exceeds noise that count as clean."""
OPEN, FULL = 13.5, 12.5
"""Estimates in decibels below which noise begins to be taken off, and is taken off wholly."""
MEMORY, PRIOR = 100, 6
"""Frames that the estimate remembers, and of clean speech that it begins with."""
WARM_UP = 25
"""Frames before noise is believed that the isolator hears first."""
_LN_PER_UNIT = 4.0


class Enhancer(nn.Module):
    """The GRU, and the isolator beside it if there is one; ``Hearing`` is one stream through them."""

    def __init__(self, isolator: Isolator | None = None) -> None:
        super().__init__()
        self.frame_in = nn.Linear(MELS_PER_FRAME * N_MELS, IN_WIDTH)
        self.memory = nn.GRU(IN_WIDTH, WIDTH, batch_first=True)
        self.added_out = nn.Linear(WIDTH, MELS_PER_FRAME * N_MELS)
        self.level_out = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.added_out.weight)
        nn.init.zeros_(self.added_out.bias)
        nn.init.constant_(self.level_out.bias, 1.5)
        self.isolator = isolator

    def forward(
        self, groups: torch.Tensor, memory: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What noise added to frames of columns ``[B, T, 320]``, of like shape; the level of speech over noise in
        decibels ``[B, T]``; and the memory ``[1, B, 256]`` to go on from."""
        states, memory = self.memory(F.silu(self.frame_in(groups)), memory)
        return self.added_out(states), 10 * self.level_out(states)[..., 0], memory

    def save(self, folder: Path) -> None:
        """Write float16 ``model.safetensors`` and, if there is one, ``isolator.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("isolator.")}
        write_weights(folder / "model.safetensors", own)
        if self.isolator is not None:
            self.isolator.save(folder / "isolator.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Enhancer:
        """What ``save`` wrote, in float32 and frozen."""
        weights = load_file(str(folder / "model.safetensors"))
        model = cls()
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        isolator = folder / "isolator.safetensors"
        model.isolator = Isolator.load(isolator) if isolator.is_file() else None
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
    past: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """The last second's samples, until noise is believed."""
    isolated: State | None = None
    """The isolator's, from then on."""

    @torch.no_grad()
    def __call__(
        self, enhancer: Enhancer, columns: torch.Tensor, sound: np.ndarray
    ) -> tuple[torch.Tensor, list[float]]:
        """Columns ``[C, 80]`` with the noise taken off, and by which factor each frame's sound became softer.

        C is 4 F − 1 at first and 4 F after that, for F frames of sound ``[640 F]``, as ``LiveSound`` gives them."""
        first = len(columns) % MELS_PER_FRAME
        heard = torch.cat([self.before, columns]) if first else columns
        if not len(heard):
            return columns, []
        groups = heard.reshape(1, -1, MELS_PER_FRAME * N_MELS)
        added, levels, self.memory = enhancer(groups, self.memory)
        weights = torch.tensor([self._weight(level) for level in levels[0].clamp(-10, CLEANEST).tolist()])
        if enhancer.isolator is not None:
            added = (added + self._beside(enhancer.isolator, torch.from_numpy(sound), weights)) / 2
        clearer = groups - weights[:, None] * added
        softer = (_power(clearer) / _power(groups)).sqrt()[0].tolist()
        return clearer.reshape(-1, N_MELS)[1 if first else 0 :], softer

    def settle(self) -> None:
        """Round what is remembered to single precision, as it is kept between pushes of a session."""
        if self.isolated is not None:
            self.isolated = {name: value.to(value.dtype if value.is_complex() else torch.float32)
                             for name, value in self.isolated.items()}  # fmt: skip

    def _beside(self, isolator: Isolator, sound: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the isolator finds that noise added ``[F, 320]``; nothing in frames before noise is first believed."""
        first = 0
        if self.isolated is None:
            sound = torch.cat([self.past, sound])
            believed = weights.nonzero()
            if not len(believed):
                self.past = sound[-WARM_UP * SAMPLES_PER_FRAME :].clone()
                return torch.zeros(1)
            first = int(believed[0])
            before = len(sound) // SAMPLES_PER_FRAME - len(weights) + first
            sound = sound[max(0, before - WARM_UP) * SAMPLES_PER_FRAME :]
            self.past, self.isolated = torch.zeros(0), isolator.begin()
        return F.pad(isolator(sound, self.isolated)[first - len(weights) :], (0, 0, first, 0))

    def _weight(self, level: float) -> float:
        """The share w of the noise that is taken off after one more frame's level."""
        self.frames = min(self.frames + 1, MEMORY)
        self.estimate += (level - self.estimate) / self.frames
        return min(1.0, max(0.0, (OPEN - self.estimate) / (OPEN - FULL)))


def enhanced(enhancer: Enhancer, mel: torch.Tensor, sound: np.ndarray) -> tuple[torch.Tensor, list[float]]:
    """The log-mel ``[4T, 80]`` of a whole levelled recording ``[N]`` as a stream would hear it; the very last column as
    it is."""
    whole = np.pad(sound, (0, len(mel) // MELS_PER_FRAME * SAMPLES_PER_FRAME - len(sound)))
    columns, softer = Hearing()(enhancer, mel[:-1], whole)
    return torch.cat([columns, mel[-1:]]), softer


def _power(groups: torch.Tensor) -> torch.Tensor:
    return (groups * _LN_PER_UNIT).exp().sum(-1)

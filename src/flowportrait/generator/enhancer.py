"""Removes noise and echo from the log-mel that the generator is given.

    mel [4T, 80] ─► GRU over frames ─► what noise added to each column,  how far below the speech it lies (dB)
    sound        ─► isolator        ─► what noise added to each column
    output = mel − w · mean of both    w = 0 above 13.5 dB, 1 below 12.5 dB, of the estimate so far

The GRU was trained for this generator on few voices; the isolator knows many voices (``isolator``). The isolator starts
when noise is first detected, with the second before, so that clean speech costs nothing more.

Where the estimate is "clean", w is 0 and the log-mel is unchanged to the bit, as for all 230 clips of unseen speakers.
A frame takes the four columns that end one column before its own last one: nothing is looked ahead to, so the
generator's look-ahead stays the same. The estimate begins at "clean" and is a mean over the last four seconds; noise at
10 dB is detected after one and a half seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import Device, device_of, once_per_device, place, read_weights
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
"""Frames before noise is detected that the isolator is given first."""
_LN_PER_UNIT = 4.0


class Enhancer(nn.Module):
    """The GRU, and the isolator if there is one; ``NoiseRemoval`` is one stream through them."""

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
    def load(cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> Enhancer:
        """Load what ``save`` wrote, frozen."""
        model = cls()
        model.load_state_dict(read_weights(folder / "model.safetensors"))
        isolator = folder / "isolator.safetensors"
        model.isolator = Isolator.load(isolator, device, dtype) if isolator.is_file() else None
        return place(model.requires_grad_(False).eval(), device, dtype)


@once_per_device
def load_enhancer() -> Enhancer:
    """Load the enhancer that comes with the package."""
    return Enhancer.load(Path(str(files("flowportrait") / "weights" / "enhancer")))


@dataclass
class NoiseRemoval:
    """One stream of log-mel whose noise is removed; the fields are its state."""

    before: torch.Tensor = field(default_factory=lambda: torch.full((1, N_MELS), SILENCE))
    """The column before the first."""
    memory: torch.Tensor | None = None
    estimate: float = CLEANEST
    frames: int = PRIOR
    past: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """The last second's samples, until noise is detected."""
    isolated: State | None = None
    """The isolator's state, from then on."""

    @torch.no_grad()
    def __call__(
        self, enhancer: Enhancer, columns: torch.Tensor, sound: np.ndarray
    ) -> tuple[torch.Tensor, list[float]]:
        """Remove the noise from columns ``[C, 80]``; also returns the factor by which each frame's sound became softer.

        C is 4 F − 1 at first and 4 F after that, for F frames of sound ``[640 F]``, as ``LevelledSound`` gives them."""
        first = len(columns) % MELS_PER_FRAME
        whole = torch.cat([self.before, columns]) if first else columns
        if not len(whole):
            return columns, []
        groups = whole.reshape(1, -1, MELS_PER_FRAME * N_MELS)
        device = device_of(enhancer)
        memory = None if self.memory is None else self.memory.to(device)
        added, levels, self.memory = enhancer(groups.to(device), memory)
        added = added.cpu()
        weights = torch.tensor([self._weight(level) for level in levels[0].clamp(-10, CLEANEST).tolist()])
        if enhancer.isolator is not None:
            added = (added + self._isolated(enhancer.isolator, torch.from_numpy(sound), weights)) / 2
        clear = groups - weights[:, None] * added
        factors = (_power(clear) / _power(groups)).sqrt()[0].tolist()
        return clear.reshape(-1, N_MELS)[1 if first else 0 :], factors

    def settle(self) -> None:
        """Round the state to single precision, as it is kept between pushes of a stream."""
        if self.isolated is not None:
            self.isolated = {name: value.to(value.dtype if value.is_complex() else torch.float32)
                             for name, value in self.isolated.items()}  # fmt: skip

    def _isolated(self, isolator: Isolator, sound: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What noise added ``[F, 320]`` by the isolator's account; zero in frames before noise is first detected."""
        first = 0
        if self.isolated is None:
            sound = torch.cat([self.past, sound])
            noisy = weights.nonzero()
            if not len(noisy):
                self.past = sound[-WARM_UP * SAMPLES_PER_FRAME :].clone()
                return torch.zeros(1)
            first = int(noisy[0])
            before = len(sound) // SAMPLES_PER_FRAME - len(weights) + first
            sound = sound[max(0, before - WARM_UP) * SAMPLES_PER_FRAME :]
            self.past, self.isolated = torch.zeros(0), isolator.begin()
        return F.pad(isolator(sound, self.isolated)[first - len(weights) :].cpu(), (0, 0, first, 0))

    def _weight(self, level: float) -> float:
        """The share w of the noise that is removed after one more frame's level."""
        self.frames = min(self.frames + 1, MEMORY)
        self.estimate += (level - self.estimate) / self.frames
        return min(1.0, max(0.0, (OPEN - self.estimate) / (OPEN - FULL)))


def denoise_mel(enhancer: Enhancer, mel: torch.Tensor, sound: np.ndarray) -> tuple[torch.Tensor, list[float]]:
    """Remove the noise from the log-mel ``[4T, 80]`` of a whole levelled recording ``[N]`` as a stream would; the very
    last column stays as it is. Returns the factors of ``NoiseRemoval`` too."""
    whole = np.pad(sound, (0, len(mel) // MELS_PER_FRAME * SAMPLES_PER_FRAME - len(sound)))
    columns, factors = NoiseRemoval()(enhancer, mel[:-1], whole)
    return torch.cat([columns, mel[-1:]]), factors


def _power(groups: torch.Tensor) -> torch.Tensor:
    return (groups * _LN_PER_UNIT).exp().sum(-1)

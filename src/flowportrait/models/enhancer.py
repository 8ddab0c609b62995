"""Noise removed from speech before the generator hears it.

Separates the nearest talker's voice from other voices and noise, as a stream.

    X [K, 161] ─► powers of 32 ERB bands, 64 phasors ─► convolutions over bands, GRUs over time ─► gains m, filters c
    kept = Σ_i c_i X_{k−4+i}  below 3.2 kHz,  m X  above                       windows of 20 ms every 10, none ahead

The network is Hush (Weya AI, 2026; Apache-2.0), a DeepFilterNet3 (Schröter et al. 2023) for 16 kHz, by its makers'
account trained on ten thousand hours of which most have other people talking too. ``import_isolator`` reads its graphs.

Removes noise and echo from the log-mel that the generator is given.

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
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import Device, device_of, once_per_device, place, read_weights
from flowportrait.files import write_weights
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import HOP, MELS_PER_FRAME, N_MELS, SAMPLES_PER_FRAME, filters
from flowportrait.models.speech_encoder import SILENCE

State = dict[str, torch.Tensor]
WINDOW = 2 * HOP
BINS, BANDS, FILTERED, TAPS = WINDOW // 2 + 1, 32, 64, 5
CHANNELS, SEEN, ISOLATOR_WIDTH = 16, 128, 256
FORGET = 0.99
"""Of running means, a hop: a second."""
_LOUDEST, _FLOOR = 127, 1e-6
_LN_PER_UNIT = 4.0


class Isolator(nn.Module):
    """The network; a dictionary from ``begin`` is the state of one stream through it."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.ModuleList([
            nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=(0, 1)), nn.ReLU()),
            downsampling(2), downsampling(2), downsampling(1),
        ])  # fmt: skip
        self.fine = nn.Sequential(
            nn.Conv2d(2, CHANNELS, 3, padding=(0, 1), groups=2, bias=False), nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()
        )
        self.finer = downsampling(2)
        self.fine_in = Groups(16, 32, 8)
        self.seen_in, self.seen = Groups(1, SEEN, ISOLATOR_WIDTH), nn.GRU(ISOLATOR_WIDTH, ISOLATOR_WIDTH)
        self.seen_out = Groups(1, ISOLATOR_WIDTH, SEEN)
        self.gain_in, self.gain = Groups(1, SEEN, ISOLATOR_WIDTH), nn.GRU(ISOLATOR_WIDTH, ISOLATOR_WIDTH)
        self.gain_out = Groups(1, ISOLATOR_WIDTH, SEEN)
        self.paths = nn.ModuleList(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()) for _ in range(4))
        self.wider = nn.ModuleList([upsampling(), upsampling(), downsampling(1)])
        self.gains = nn.Conv2d(CHANNELS, 1, (1, 3), padding=(0, 1))
        self.filter_in, self.filter = Groups(8, 16, 32), nn.GRU(ISOLATOR_WIDTH, ISOLATOR_WIDTH, 3)
        self.filter_out = nn.Linear(ISOLATOR_WIDTH, FILTERED * 2 * TAPS, bias=False)
        self.filter_path = nn.Sequential(nn.Conv2d(CHANNELS, 2 * TAPS, 1), nn.ReLU())

    def begin(self) -> State:
        """State of a stream before its first sample."""
        state = {
            name: torch.zeros(layers, 1, ISOLATOR_WIDTH) for name, layers in (("seen", 1), ("gain", 1), ("filter", 3))
        }
        state |= {
            "sound": torch.zeros(HOP), "spectra": torch.zeros(TAPS - 1, FILTERED, dtype=torch.complex64),
            "powers": torch.zeros(1, 1, 2, BANDS), "phasors": torch.zeros(1, 2, 2, FILTERED),
            "decibels": torch.linspace(-60, -90, BANDS), "sizes": torch.linspace(1e-3, 1e-4, FILTERED),
            "mel": torch.zeros(2, 1, filters().shape[1]),
        }  # fmt: skip
        return {name: value.to(device_of(self)) for name, value in state.items()}

    def forward(self, sound: torch.Tensor, state: State) -> torch.Tensor:
        """What to take off the log-mel of each frame of samples ``[640 F]``: ``[F, 320]`` for the four columns that end
        one before the frame's last. ``state`` is moved on."""
        for name, value in state.items():
            state[name] = value.to(device_of(self))
        sound = torch.cat([state["sound"], sound.to(device_of(self))])
        state["sound"] = sound[-HOP:].clone()
        spectra = torch.fft.rfft(sound.unfold(0, WINDOW, HOP) * window().to(sound)) / WINDOW
        mel = torch.stack([self.mel(spectra), self.mel(self.separate(spectra, state))])
        mel = torch.cat([state["mel"], mel], 1)
        state["mel"] = mel[:, -1:].clone()
        # A column is the sum of two windows: the one that ends at its middle and the one that begins there.
        mixture, voice = torch.log(mel[:, :-1] + mel[:, 1:] + _FLOOR)
        return ((mixture - voice) / _LN_PER_UNIT).reshape(-1, MELS_PER_FRAME * mixture.shape[1])

    @staticmethod
    def mel(spectra: torch.Tensor) -> torch.Tensor:
        """Mel energies ``[K, 80]`` of what spectra ``[K, 161]`` sound like, on the grid of ``log_mel``."""
        sound = torch.fft.irfft(spectra * WINDOW, WINDOW)
        return torch.fft.rfft(sound * window().to(sound), n=512).abs().square() @ filters().to(sound)

    def separate(self, spectra: torch.Tensor, state: State) -> torch.Tensor:
        """The nearest voice's part of spectra ``[K, 161]``."""
        low = spectra[:, :FILTERED]
        decibels = 10 * torch.log10(spectra.abs().square() @ bands().to(spectra.device) + 1e-10)
        powers = (decibels - running_mean(decibels, state, "decibels")) / 40
        phasors = torch.view_as_real(low / running_mean(low.abs(), state, "sizes").sqrt()).permute(2, 0, 1)
        levels = [self.coarse[0](with_past(powers[None, None], state, "powers"))]
        for layer in self.coarse[1:]:
            levels.append(layer(levels[-1]))
        fine = self.fine(with_past(phasors[None], state, "phasors"))
        seen = by_column(levels[-1]) + self.fine_in(by_column(self.finer(fine)))
        seen, state["seen"] = self.seen(self.seen_in(seen), state["seen"])
        seen = self.seen_out(seen)
        made, state["gain"] = self.gain(self.gain_in(seen), state["gain"])
        up = self.gain_out(made).reshape(len(low), 1, -1, CHANNELS).permute(1, 3, 0, 2)
        for layer, path, level in zip(reversed(self.wider), reversed(self.paths[1:]), levels[:0:-1], strict=True):
            up = layer(path(level) + up)
        gains = torch.sigmoid(self.gains(self.paths[0](levels[0]) + up))[0, 0]
        made, state["filter"] = self.filter(self.filter_in(seen), state["filter"])
        taps = torch.tanh(self.filter_out(made)).reshape(-1, FILTERED, 2 * TAPS)
        taps = torch.view_as_complex((taps + self.filter_path(fine)[0].permute(1, 2, 0)).reshape(-1, FILTERED, TAPS, 2))
        past = torch.cat([state["spectra"], low])
        state["spectra"] = past[1 - TAPS :].clone()
        kept = (past.unfold(0, TAPS, 1) * taps).sum(-1)
        return torch.cat([kept, (spectra * (gains @ (bands().T > 0).float().to(gains)))[:, FILTERED:]], 1)

    def save(self, path: Path) -> None:
        """Write matrices as whole numbers with a scale for each row, the rest as float16."""
        tensors: State = {}
        for name, value in self.state_dict().items():
            if value.numel() < 4096:
                tensors[name] = value
                continue
            scale = (value.abs().amax(-1, keepdim=True) / _LOUDEST).clamp_min(1e-12)
            tensors |= {name: (value / scale).round().to(torch.int8), f"{name}.scale": scale}
        write_weights(path, tensors)

    @classmethod
    def load(cls, path: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> Isolator:
        """Load what ``save`` wrote, frozen."""
        tensors = read_weights(path)
        model = cls()
        model.load_state_dict({name: tensors[name] * tensors.get(f"{name}.scale", 1) for name in model.state_dict()})
        return place(model.requires_grad_(False).eval(), device, dtype)


class Groups(nn.Module):
    """``g`` matrices side by side, and a rectifier: ``[..., g·i]`` to ``[..., g·h]``."""

    def __init__(self, groups: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, width, out).normal_(0, width**-0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.reshape(*x.shape[:-1], len(self.weight), -1)
        return F.relu(torch.einsum("...gi,gih->...gh", parts, self.weight).flatten(-2))


def downsampling(stride: int) -> nn.Sequential:
    """Three neighbouring bands a channel, then all channels."""
    own = nn.Conv2d(CHANNELS, CHANNELS, (1, 3), (1, stride), (0, 1), groups=CHANNELS, bias=False)
    return nn.Sequential(own, nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU())


def upsampling() -> nn.Sequential:
    """Twice as many bands."""
    own = nn.ConvTranspose2d(CHANNELS, CHANNELS, (1, 3), (1, 2), (0, 1), (0, 1), groups=CHANNELS, bias=False)
    return nn.Sequential(own, nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU())


def with_past(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """Prepend the two columns before it to ``x [1, C, K, B]``."""
    whole = torch.cat([state[name], x], 2)
    state[name] = whole[:, :, -2:].clone()
    return whole


def running_mean(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """Mean so far of rows ``[K, B]``: s ← 0.99 s + 0.01 x."""
    mean, carried = np.empty(x.shape), FORGET * state[name].double().cpu().numpy()
    for row, new in enumerate((1 - FORGET) * x.double().cpu().numpy()):
        mean[row] = new + carried
        carried = FORGET * mean[row]
    # In double: sound that is processed in portions gives the bits of sound that is not.
    state[name] = torch.from_numpy(mean[-1].copy()).to(x.device)
    return torch.from_numpy(mean).to(x)


def by_column(x: torch.Tensor) -> torch.Tensor:
    """``[1, C, K, B]`` to ``[K, 1, B·C]``."""
    return x.permute(2, 0, 3, 1).flatten(2)


@lru_cache(maxsize=1)
def window() -> torch.Tensor:
    """Vorbis's: its square and that of its neighbour make 1."""
    place = torch.pi * (torch.arange(WINDOW) + 0.5) / WINDOW
    return torch.sin(torch.pi / 2 * torch.sin(place).square())


@lru_cache(maxsize=1)
def bands() -> torch.Tensor:
    """Means over bins ``[161, 32]`` of bands evenly apart on the ERB scale, e = 9.265 ln(1 + f / 228.8), two bins wide
    at least."""
    scale, nyquist = 24.7 * 9.265, SAMPLE_RATE / 2
    places = np.arange(1, BANDS + 1) / BANDS * np.log1p(nyquist / scale)
    ends, owed, last = np.round(scale * np.expm1(places) / (SAMPLE_RATE / WINDOW)).astype(int), 0, 0
    result, first = torch.zeros(BINS, BANDS), 0
    for band, end in enumerate(ends):
        wanted = int(end) - last - owed
        width, last = max(2, wanted), int(end)
        owed = width - wanted
        end_bin = first + width if band < BANDS - 1 else BINS
        result[first:end_bin, band] = 1 / (end_bin - first)
        first = end_bin
    return result


IN_WIDTH, WIDTH = 192, 256
CLEANEST = 30.0
"""Decibels by which speech exceeds noise that count as clean."""
OPEN, FULL = 13.5, 12.5
"""Estimates in decibels below which noise begins to be taken off, and is taken off wholly."""
MEMORY, PRIOR = 100, 6
"""Frames that the estimate remembers, and of clean speech that it begins with."""
WARM_UP = 25
"""Frames before noise is detected that the isolator is given first."""


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

"""Separates the nearest talker's voice from other voices and noise, as a stream.

    X [K, 161] ─► powers of 32 ERB bands, 64 phasors ─► convolutions over bands, GRUs over time ─► gains m, filters c
    kept = Σ_i c_i X_{k−4+i}  below 3.2 kHz,  m X  above                       windows of 20 ms every 10, none ahead

The network is Hush (Weya AI, 2026; Apache-2.0), a DeepFilterNet3 (Schröter et al. 2023) for 16 kHz, by its makers'
account trained on ten thousand hours of which most have other people talking too. ``import_isolator`` reads its graphs.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import Device, device_of, place, read_weights
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import HOP, MELS_PER_FRAME, filters
from flowportrait.written import write_weights

State = dict[str, torch.Tensor]
WINDOW = 2 * HOP
BINS, BANDS, FILTERED, TAPS = WINDOW // 2 + 1, 32, 64, 5
CHANNELS, SEEN, WIDTH = 16, 128, 256
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
        self.seen_in, self.seen = Groups(1, SEEN, WIDTH), nn.GRU(WIDTH, WIDTH)
        self.seen_out = Groups(1, WIDTH, SEEN)
        self.gain_in, self.gain = Groups(1, SEEN, WIDTH), nn.GRU(WIDTH, WIDTH)
        self.gain_out = Groups(1, WIDTH, SEEN)
        self.paths = nn.ModuleList(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()) for _ in range(4))
        self.wider = nn.ModuleList([upsampling(), upsampling(), downsampling(1)])
        self.gains = nn.Conv2d(CHANNELS, 1, (1, 3), padding=(0, 1))
        self.filter_in, self.filter = Groups(8, 16, 32), nn.GRU(WIDTH, WIDTH, 3)
        self.filter_out = nn.Linear(WIDTH, FILTERED * 2 * TAPS, bias=False)
        self.filter_path = nn.Sequential(nn.Conv2d(CHANNELS, 2 * TAPS, 1), nn.ReLU())

    def begin(self) -> State:
        """State of a stream before its first sample."""
        state = {name: torch.zeros(layers, 1, WIDTH) for name, layers in (("seen", 1), ("gain", 1), ("filter", 3))}
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

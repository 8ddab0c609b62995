"""Removal of noise and echo from the log-mel that the generator is given, as a stream.

    mel [4T, 80] ─► GRU over frames ─► what noise added to each column,  and the speech-to-noise ratio (dB)
    sound        ─► isolator        ─► what noise added to each column
    output = mel − w · mean of both    w = 0 above 13.5 dB, 1 below 12.5 dB, of the estimated ratio

The GRU (``Enhancer``) was trained for this generator on few voices; the isolator (``Isolator``) was trained on many.
The isolator starts when noise is first detected, with the second before it, so that clean speech costs no more.

Where the estimate is "clean", w is 0 and the log-mel is unchanged to the bit, as for all 230 clips of unseen speakers.
A frame takes the four columns that end one column before its own last one, so that there is no look-ahead here and the
generator's look-ahead stays the same. The estimate starts at "clean" and is a mean over the last four seconds; noise at
10 dB is detected after one and a half seconds.

The parts in order: ``Isolator`` with its layers and features; ``Enhancer``; ``NoiseRemoval``, one stream through both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import Device, cached_per_device, device_of, place_network, read_weights
from flowportrait.files import shipped_weights, write_weights
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.mel import HOP_LENGTH, MELS_PER_FRAME, N_MELS, mel_filterbank
from flowportrait.models.speech_encoder import SILENT_MEL

# --- The isolator ------------------------------------------------------------------------------------------------

IsolatorState = dict[str, torch.Tensor]
"""The state of one stream through the isolator, by name."""
WINDOW = 2 * HOP_LENGTH
BINS, BANDS, FILTERED, TAPS = WINDOW // 2 + 1, 32, 64, 5
CHANNELS, ENCODER_WIDTH, ISOLATOR_WIDTH = 16, 128, 256
MEAN_DECAY = 0.99
"""Decay of running means per hop of 10 ms, which gives a time constant of one second."""
_INT8_MAX, _FLOOR = 127, 1e-6
_LN_PER_UNIT = 4.0


class Isolator(nn.Module):
    """A network that separates the nearest speaker's voice from other voices and noise, as a stream.

        X [K, 161] ─► powers of 32 ERB bands, 64 phasors ─► convolutions over bands, GRUs in time ─► gains m, filters c
        voice = Σ_i c_i X_{k−4+i}  below 3.2 kHz,  m X  above                  windows of 20 ms every 10, no look-ahead

    The network is Hush (Weya AI, 2026; Apache-2.0), a DeepFilterNet3 (Schröter et al. 2023) for 16 kHz. According to
    its authors it was trained on ten thousand hours, most of them with other people talking too. ``import_isolator``
    reads its graphs. A dictionary from ``initial_state`` is the state of one stream.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.ModuleList([
            nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=(0, 1)), nn.ReLU()),
            downsampling_block(2), downsampling_block(2), downsampling_block(1),
        ])  # fmt: skip
        self.fine = nn.Sequential(
            nn.Conv2d(2, CHANNELS, 3, padding=(0, 1), groups=2, bias=False), nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()
        )
        self.finer = downsampling_block(2)
        self.fine_in = GroupedLinear(16, 32, 8)
        self.seen_in, self.seen = (
            GroupedLinear(1, ENCODER_WIDTH, ISOLATOR_WIDTH),
            nn.GRU(ISOLATOR_WIDTH, ISOLATOR_WIDTH),
        )
        self.seen_out = GroupedLinear(1, ISOLATOR_WIDTH, ENCODER_WIDTH)
        self.gain_in, self.gain = (
            GroupedLinear(1, ENCODER_WIDTH, ISOLATOR_WIDTH),
            nn.GRU(ISOLATOR_WIDTH, ISOLATOR_WIDTH),
        )
        self.gain_out = GroupedLinear(1, ISOLATOR_WIDTH, ENCODER_WIDTH)
        self.paths = nn.ModuleList(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU()) for _ in range(4))
        self.wider = nn.ModuleList([upsampling_block(), upsampling_block(), downsampling_block(1)])
        self.gains = nn.Conv2d(CHANNELS, 1, (1, 3), padding=(0, 1))
        self.filter_in, self.filter = GroupedLinear(8, 16, 32), nn.GRU(ISOLATOR_WIDTH, ISOLATOR_WIDTH, 3)
        self.filter_out = nn.Linear(ISOLATOR_WIDTH, FILTERED * 2 * TAPS, bias=False)
        self.filter_path = nn.Sequential(nn.Conv2d(CHANNELS, 2 * TAPS, 1), nn.ReLU())

    def initial_state(self) -> IsolatorState:
        """Return the state of a stream before its first sample."""
        state = {
            name: torch.zeros(layers, 1, ISOLATOR_WIDTH) for name, layers in (("seen", 1), ("gain", 1), ("filter", 3))
        }
        state |= {
            "sound": torch.zeros(HOP_LENGTH), "spectra": torch.zeros(TAPS - 1, FILTERED, dtype=torch.complex64),
            "powers": torch.zeros(1, 1, 2, BANDS), "phasors": torch.zeros(1, 2, 2, FILTERED),
            "decibels": torch.linspace(-60, -90, BANDS), "sizes": torch.linspace(1e-3, 1e-4, FILTERED),
            "mel": torch.zeros(2, 1, mel_filterbank().shape[1]),
        }  # fmt: skip
        return {name: value.to(device_of(self)) for name, value in state.items()}

    def forward(self, sound: torch.Tensor, state: IsolatorState) -> torch.Tensor:
        """Return what noise added to the log-mel of F frames.

        Args:
            sound: samples ``[640 F]``.
            state: of the stream; it is updated.

        Returns:
            ``[F, 320]``, for the four columns that end one before the last of each frame.
        """
        for name, value in state.items():
            state[name] = value.to(device_of(self))
        sound = torch.cat([state["sound"], sound.to(device_of(self))])
        state["sound"] = sound[-HOP_LENGTH:].clone()
        spectra = torch.fft.rfft(sound.unfold(0, WINDOW, HOP_LENGTH) * vorbis_window().to(sound)) / WINDOW
        mel = torch.stack([self.mel(spectra), self.mel(self.separate(spectra, state))])
        mel = torch.cat([state["mel"], mel], 1)
        state["mel"] = mel[:, -1:].clone()
        # A column is the sum of two windows: the one that ends at its middle and the one that begins there.
        mixture, voice = torch.log(mel[:, :-1] + mel[:, 1:] + _FLOOR)
        return ((mixture - voice) / _LN_PER_UNIT).reshape(-1, MELS_PER_FRAME * mixture.shape[1])

    @staticmethod
    def mel(spectra: torch.Tensor) -> torch.Tensor:
        """Return the mel energies ``[K, 80]`` of spectra ``[K, 161]``, in the bands of ``log_mel``."""
        sound = torch.fft.irfft(spectra * WINDOW, WINDOW)
        return torch.fft.rfft(sound * vorbis_window().to(sound), n=512).abs().square() @ mel_filterbank().to(sound)

    def separate(self, spectra: torch.Tensor, state: IsolatorState) -> torch.Tensor:
        """Return the part of spectra ``[K, 161]`` that is the nearest speaker's voice."""
        low = spectra[:, :FILTERED]
        decibels = 10 * torch.log10(spectra.abs().square() @ erb_bands().to(spectra.device) + 1e-10)
        powers = (decibels - running_mean(decibels, state, "decibels")) / 40
        phasors = torch.view_as_real(low / running_mean(low.abs(), state, "sizes").sqrt()).permute(2, 0, 1)
        levels = [self.coarse[0](prepend_past(powers[None, None], state, "powers"))]
        for layer in self.coarse[1:]:
            levels.append(layer(levels[-1]))
        fine = self.fine(prepend_past(phasors[None], state, "phasors"))
        encoded = columns_to_rows(levels[-1]) + self.fine_in(columns_to_rows(self.finer(fine)))
        encoded, state["seen"] = self.seen(self.seen_in(encoded), state["seen"])
        encoded = self.seen_out(encoded)
        hidden, state["gain"] = self.gain(self.gain_in(encoded), state["gain"])
        up = self.gain_out(hidden).reshape(len(low), 1, -1, CHANNELS).permute(1, 3, 0, 2)
        for layer, path, level in zip(reversed(self.wider), reversed(self.paths[1:]), levels[:0:-1], strict=True):
            up = layer(path(level) + up)
        gains = torch.sigmoid(self.gains(self.paths[0](levels[0]) + up))[0, 0]
        hidden, state["filter"] = self.filter(self.filter_in(encoded), state["filter"])
        taps = torch.tanh(self.filter_out(hidden)).reshape(-1, FILTERED, 2 * TAPS)
        taps = torch.view_as_complex((taps + self.filter_path(fine)[0].permute(1, 2, 0)).reshape(-1, FILTERED, TAPS, 2))
        past = torch.cat([state["spectra"], low])
        state["spectra"] = past[1 - TAPS :].clone()
        filtered = (past.unfold(0, TAPS, 1) * taps).sum(-1)
        return torch.cat([filtered, (spectra * (gains @ (erb_bands().T > 0).float().to(gains)))[:, FILTERED:]], 1)

    def save(self, path: Path) -> None:
        """Write matrices as int8 with a scale for each row, everything else as float16."""
        tensors: IsolatorState = {}
        for name, value in self.state_dict().items():
            if value.numel() < 4096:
                tensors[name] = value
                continue
            scale = (value.abs().amax(-1, keepdim=True) / _INT8_MAX).clamp_min(1e-12)
            tensors |= {name: (value / scale).round().to(torch.int8), f"{name}.scale": scale}
        write_weights(path, tensors)

    @classmethod
    def load(cls, path: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> Isolator:
        """Load what ``save`` wrote, in evaluation mode and with frozen weights."""
        tensors = read_weights(path)
        model = cls()
        model.load_state_dict({name: tensors[name] * tensors.get(f"{name}.scale", 1) for name in model.state_dict()})
        return place_network(model.requires_grad_(False).eval(), device, dtype)


class GroupedLinear(nn.Module):
    """A grouped linear layer with a rectifier: g matrices map ``[..., g·i]`` to ``[..., g·h]``."""

    def __init__(self, groups: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, width, out).normal_(0, width**-0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.reshape(*x.shape[:-1], len(self.weight), -1)
        return F.relu(torch.einsum("...gi,gih->...gh", parts, self.weight).flatten(-2))


def downsampling_block(stride: int) -> nn.Sequential:
    """Return a separable convolution over three neighbouring bands with a rectifier, which keeps one band in
    ``stride``."""
    depthwise = nn.Conv2d(CHANNELS, CHANNELS, (1, 3), (1, stride), (0, 1), groups=CHANNELS, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU())


def upsampling_block() -> nn.Sequential:
    """Return a separable transposed convolution with a rectifier, which doubles the number of bands."""
    depthwise = nn.ConvTranspose2d(CHANNELS, CHANNELS, (1, 3), (1, 2), (0, 1), (0, 1), groups=CHANNELS, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(CHANNELS, CHANNELS, 1), nn.ReLU())


def prepend_past(x: torch.Tensor, state: IsolatorState, name: str) -> torch.Tensor:
    """Prepend the two columns before ``x [1, C, K, B]``, which ``state`` holds under ``name``, and update them."""
    whole = torch.cat([state[name], x], 2)
    state[name] = whole[:, :, -2:].clone()
    return whole


def running_mean(x: torch.Tensor, state: IsolatorState, name: str) -> torch.Tensor:
    """Return the exponential running mean at each row of ``[K, B]``: s ← 0.99 s + 0.01 x."""
    mean, carried = np.empty(x.shape), MEAN_DECAY * state[name].double().cpu().numpy()
    for row, new in enumerate((1 - MEAN_DECAY) * x.double().cpu().numpy()):
        mean[row] = new + carried
        carried = MEAN_DECAY * mean[row]
    # In double precision, so that processing sound in portions gives the same bits as processing it at once.
    state[name] = torch.from_numpy(mean[-1].copy()).to(x.device)
    return torch.from_numpy(mean).to(x)


def columns_to_rows(x: torch.Tensor) -> torch.Tensor:
    """Rearrange ``[1, C, K, B]`` to ``[K, 1, B·C]``, one row for each column of the spectrogram."""
    return x.permute(2, 0, 3, 1).flatten(2)


@lru_cache(maxsize=1)
def vorbis_window() -> torch.Tensor:
    """Return the Vorbis window ``[WINDOW]``; the squares of overlapping windows sum to 1."""
    place = torch.pi * (torch.arange(WINDOW) + 0.5) / WINDOW
    return torch.sin(torch.pi / 2 * torch.sin(place).square())


@lru_cache(maxsize=1)
def erb_bands() -> torch.Tensor:
    """Return the matrix ``[161, 32]`` that averages bins over bands.

    Bands are evenly spaced on the ERB scale, e = 9.265 ln(1 + f / 228.8), and at least two bins wide.
    """
    scale, nyquist = 24.7 * 9.265, SAMPLE_RATE / 2
    places = np.arange(1, BANDS + 1) / BANDS * np.log1p(nyquist / scale)
    ends, excess, last = np.round(scale * np.expm1(places) / (SAMPLE_RATE / WINDOW)).astype(int), 0, 0
    result, first = torch.zeros(BINS, BANDS), 0
    for band, end in enumerate(ends):
        target = int(end) - last - excess
        width, last = max(2, target), int(end)
        excess = width - target
        end_bin = first + width if band < BANDS - 1 else BINS
        result[first:end_bin, band] = 1 / (end_bin - first)
        first = end_bin
    return result


# --- The enhancer ------------------------------------------------------------------------------------------------

IN_WIDTH, WIDTH = 192, 256
CLEAN_DB = 30.0
"""Speech-to-noise ratio in decibels that counts as clean; larger ones are clipped to it."""
REMOVAL_START_DB, REMOVAL_FULL_DB = 13.5, 12.5
"""Estimated ratios in decibels below which noise removal starts, and below which it is complete."""
ESTIMATE_FRAMES, PRIOR_FRAMES = 100, 6
"""Frames that the estimate is a mean of, and the number of clean frames that it starts from."""
WARM_UP_FRAMES = 25
"""Frames before the first detected noise that the isolator processes first."""


class Enhancer(nn.Module):
    """A GRU that estimates the noise in log-mel, with an isolator if there is one; ``NoiseRemoval`` is one stream."""

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
        """Estimate the noise in frames of log-mel.

        Args:
            groups: columns of frames ``[B, T, 320]``.
            memory: what the last call on the stream returned; None at its start.

        Returns:
            What noise added to the columns ``[B, T, 320]``, the speech-to-noise ratio in decibels ``[B, T]``, and the
            memory ``[1, B, 256]`` for the next call.
        """
        states, memory = self.memory(F.silu(self.frame_in(groups)), memory)
        return self.added_out(states), 10 * self.level_out(states)[..., 0], memory

    def save(self, folder: Path) -> None:
        """Write float16 ``model.safetensors`` and, if there is one, ``isolator.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value for name, value in self.state_dict().items() if not name.startswith("isolator.")}
        write_weights(folder / "model.safetensors", weights)
        if self.isolator is not None:
            self.isolator.save(folder / "isolator.safetensors")

    @classmethod
    def load(cls, folder: Path, device: Device | None = None, dtype: torch.dtype | None = None) -> Enhancer:
        """Load what ``save`` wrote, in evaluation mode and with frozen weights."""
        model = cls()
        model.load_state_dict(read_weights(folder / "model.safetensors"))
        isolator = folder / "isolator.safetensors"
        model.isolator = Isolator.load(isolator, device, dtype) if isolator.is_file() else None
        return place_network(model.requires_grad_(False).eval(), device, dtype)


@cached_per_device
def load_enhancer() -> Enhancer:
    """Load the enhancer that comes with the package."""
    return Enhancer.load(shipped_weights("enhancer"))


# --- One stream of noise removal ---------------------------------------------------------------------------------


@dataclass
class NoiseRemoval:
    """Removes noise from one stream of log-mel; the fields are its state."""

    before: torch.Tensor = field(default_factory=lambda: torch.full((1, N_MELS), SILENT_MEL))
    """The column before the first."""
    memory: torch.Tensor | None = None
    """The memory of the GRU."""
    estimate: float = CLEAN_DB
    """Mean speech-to-noise ratio in decibels."""
    frames: int = PRIOR_FRAMES
    """Number of frames in that mean."""
    past: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    """Samples of the last second, until noise is detected."""
    isolated: IsolatorState | None = None
    """The isolator's state, once noise was detected."""

    @torch.no_grad()
    def __call__(
        self, enhancer: Enhancer, columns: torch.Tensor, sound: np.ndarray
    ) -> tuple[torch.Tensor, list[float]]:
        """Remove the noise from the next columns of a stream.

        Args:
            enhancer: the networks.
            columns: log-mel ``[C, 80]`` as ``LevelledSound`` gives it: C is 4 F − 1 at first and 4 F after that.
            sound: samples ``[640 F]`` of the same F frames.

        Returns:
            Clean columns ``[C, 80]``, and for each frame the factor by which its loudness decreased.
        """
        first = len(columns) % MELS_PER_FRAME
        whole = torch.cat([self.before, columns]) if first else columns
        if not len(whole):
            return columns, []
        groups = whole.reshape(1, -1, MELS_PER_FRAME * N_MELS)
        device = device_of(enhancer)
        memory = None if self.memory is None else self.memory.to(device)
        added, levels, self.memory = enhancer(groups.to(device), memory)
        added = added.cpu()
        weights = torch.tensor([self._weight(level) for level in levels[0].clamp(-10, CLEAN_DB).tolist()])
        if enhancer.isolator is not None:
            added = (added + self._isolator_estimate(enhancer.isolator, torch.from_numpy(sound), weights)) / 2
        clean = groups - weights[:, None] * added
        factors = (_power(clean) / _power(groups)).sqrt()[0].tolist()
        return clean.reshape(-1, N_MELS)[1 if first else 0 :], factors

    def settle(self) -> None:
        """Round the state to single precision, as it is kept between pushes of a stream."""
        if self.isolated is not None:
            self.isolated = {name: value.to(value.dtype if value.is_complex() else torch.float32)
                             for name, value in self.isolated.items()}  # fmt: skip

    def _isolator_estimate(self, isolator: Isolator, sound: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return what noise added ``[F, 320]`` according to the isolator; zero before noise is first detected."""
        first = 0
        if self.isolated is None:
            sound = torch.cat([self.past, sound])
            noisy = weights.nonzero()
            if not len(noisy):
                self.past = sound[-WARM_UP_FRAMES * SAMPLES_PER_FRAME :].clone()
                return torch.zeros(1)
            first = int(noisy[0])
            before = len(sound) // SAMPLES_PER_FRAME - len(weights) + first
            sound = sound[max(0, before - WARM_UP_FRAMES) * SAMPLES_PER_FRAME :]
            self.past, self.isolated = torch.zeros(0), isolator.initial_state()
        return F.pad(isolator(sound, self.isolated)[first - len(weights) :].cpu(), (0, 0, first, 0))

    def _weight(self, level: float) -> float:
        """Update the estimate with a frame's level, and return the share w of the noise to remove."""
        self.frames = min(self.frames + 1, ESTIMATE_FRAMES)
        self.estimate += (level - self.estimate) / self.frames
        return min(1.0, max(0.0, (REMOVAL_START_DB - self.estimate) / (REMOVAL_START_DB - REMOVAL_FULL_DB)))


def denoise_mel(enhancer: Enhancer, mel: torch.Tensor, sound: np.ndarray) -> tuple[torch.Tensor, list[float]]:
    """Remove the noise from a whole recording, as a stream would.

    Args:
        enhancer: the networks.
        mel: log-mel ``[4T, 80]`` of the levelled recording.
        sound: the levelled recording ``[N]``.

    Returns:
        Clean log-mel ``[4T, 80]``, whose last column is unchanged, and the factors of ``NoiseRemoval``.
    """
    whole = np.pad(sound, (0, len(mel) // MELS_PER_FRAME * SAMPLES_PER_FRAME - len(sound)))
    columns, factors = NoiseRemoval()(enhancer, mel[:-1], whole)
    return torch.cat([columns, mel[-1:]]), factors


def _power(groups: torch.Tensor) -> torch.Tensor:
    """Return the power of each frame ``[..., T]`` of log-mel ``[..., T, 320]``."""
    return (groups * _LN_PER_UNIT).exp().sum(-1)

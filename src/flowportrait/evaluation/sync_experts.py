"""The networks of the further sync instruments: mouth pixels by a pretrained trunk, and lip landmarks.

    LightASDSyncExpert    grey mouth patches against cepstra of the sound; the trunk of Light-ASD (Liao et al. 2023)
    LandmarkSyncExpert    lip and chin points of OpenSeeFace against log-mel; dilated convolutions over time

Both are joint embeddings of lips and sound (``training.joint_embedding``). Nothing is padded in time.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import device_of
from flowportrait.evaluation.lip_sync import MOUTH_CROP
from flowportrait.media.mel import N_MELS, hertz_to_mel, mel_to_hertz
from flowportrait.training.joint_embedding import JointEmbedding

# --- Cepstra from log-mel ---

CEPSTRA = 13
_BANDS, _TRANSFORM, _LIFTER, _PREEMPHASIS = 26, 512, 22, 0.97
_RATE = 16_000
_SCALE = 32768.0**2 / _TRANSFORM * 400 / 150
"""Power of 16-bit samples under a rectangular window of 400 samples, from that of samples in [-1, 1] under Hann's."""


@lru_cache(maxsize=1)
def _cepstrum_matrices() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weights of our 80 bands in 26 broad ones ``[80, 26]``, in the energy ``[80]``, and the cosine
    transform with its lifter ``[26, 13]``."""
    import numpy as np

    low, high = hertz_to_mel(np.array([50.0, 7600.0]))
    edges = mel_to_hertz(np.linspace(low, high, N_MELS + 2))
    centres = edges[1:-1]
    # Our filters have unit area; times half their width they have unit height and add up to the whole spectrum.
    weight = (edges[2:] - edges[:-2]) / 2 / (_RATE / _TRANSFORM)
    angle = 2 * np.pi * centres / _RATE
    weight = weight * (1 - 2 * _PREEMPHASIS * np.cos(angle) + _PREEMPHASIS**2)
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + _RATE / 2 / 700), _BANDS + 2) / 2595) - 1)
    width = np.diff(corners)
    slopes = corners[None] - centres[:, None]
    broad = np.maximum(0.0, np.minimum(-slopes[:, :-2] / width[:-1], slopes[:, 2:] / width[1:]))
    broad[:, 0] += 1e-4
    place = (np.arange(_BANDS) + 0.5) / _BANDS
    number = np.arange(CEPSTRA)
    cosine = np.cos(np.pi * place[:, None] * number) * np.sqrt(2 / _BANDS)
    cosine[:, 0] /= np.sqrt(2)
    cosine *= 1 + _LIFTER / 2 * np.sin(np.pi * number / _LIFTER)
    return tuple(torch.from_numpy(part).float() for part in (weight[:, None] * broad, weight, cosine))  # type: ignore[return-value]


def cepstra_of_mel(mel: torch.Tensor) -> torch.Tensor:
    """Return 13 mel-frequency cepstral coefficients ``[..., N, 13]`` of a log-mel ``[..., N, 80]``.

    They approximate those of the package python_speech_features with its defaults (26 bands, pre-emphasis 0.97, lifter
    22, the first replaced by the log energy of 16-bit samples), which Light-ASD was trained on.
    """
    bands, energy, cosine = (part.to(mel.device) for part in _cepstrum_matrices())
    with torch.autocast(mel.device.type, enabled=False):
        power = torch.exp(4 * mel.float() - 9.5) * _SCALE
        coefficients = torch.log(power @ bands + 1e-3) @ cosine
        return torch.cat([torch.log(power @ energy + 1e-3)[..., None], coefficients[..., 1:]], -1)


# --- Pixels ---


class _Block(nn.Module):
    """Two branches of a convolution over one axis and one over time (3 and 5 taps), added and mixed.

    It is Light-ASD's block without padding in time: T frames give T − 4.
    """

    def __init__(self, before: int, after: int, kind: str, stride: int = 1) -> None:
        super().__init__()
        is_face = kind == "s"
        self._kind = kind
        conv, norm = (nn.Conv3d, nn.BatchNorm3d) if is_face else (nn.Conv2d, nn.BatchNorm2d)
        for taps in (3, 5):
            half = taps // 2
            if is_face:
                first = conv(before, after, (1, taps, taps), (1, stride, stride), (0, half, half), bias=False)  # type: ignore[arg-type]
                over_time = conv(after, after, (taps, 1, 1), bias=False)  # type: ignore[arg-type]
            else:
                first = conv(before, after, (taps, 1), padding=(half, 0), bias=False)  # type: ignore[arg-type]
                over_time = conv(after, after, (1, taps), bias=False)  # type: ignore[arg-type]
            self.add_module(f"{kind}_{taps}", first)
            self.add_module(f"bn_{kind}_{taps}", norm(after, eps=1e-3))
            self.add_module(f"t_{taps}", over_time)
            self.add_module(f"bn_t_{taps}", norm(after, eps=1e-3))
        self.last = conv(after, after, 1, bias=False)
        self.bn_last = norm(after, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branches = []
        for taps in (3, 5):
            y = x
            for layer in (f"{self._kind}_{taps}", f"t_{taps}"):
                y = F.relu(self.get_submodule(f"bn_{layer}")(self.get_submodule(layer)(y)))
            branches.append(y)
        short, long = branches
        axis = 2 if self._kind == "s" else 3
        result: torch.Tensor = F.relu(self.bn_last(self.last(short.narrow(axis, 1, long.shape[axis]) + long)))
        return result


class _Trunk(nn.Module):
    """The three blocks of one side of Light-ASD, under the names of its published weights."""

    def __init__(self, kind: str, channels: tuple[int, int, int]) -> None:
        super().__init__()
        for place, (before, after) in enumerate(pairwise((1, *channels)), 1):
            self.add_module(f"block{place}", _Block(before, after, kind, 2 if kind == "s" and place == 1 else 1))
        self._is_face = kind == "s"

    def low(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the first two blocks and their pooling."""
        for name in ("block1", "block2"):
            x = self.get_submodule(name)(x)
            x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1)) if self._is_face else F.max_pool2d(x, (1, 3), (1, 2))
        return x

    def high(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the third block for that of ``low``."""
        result: torch.Tensor = self.get_submodule("block3")(x)
        return result


class LightASDSyncExpert(JointEmbedding):
    """A joint embedding of mouth patches and sound on the two trunks of Light-ASD, an active-speaker network.

    The published network says who speaks and cannot tell late lips from lips in time; its last layers are left out, and
    the rest was trained on by contrast (``tools.train_sync_instruments``). A window has 13 frames.

    Args:
        channels: channels of the three blocks; Light-ASD's by default.
        spots: channels that keep their place in the picture.
    """

    WINDOW = 13
    DIM = 128
    FIXED = ("block1", "block2")

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 128), spots: int = 24) -> None:
        super().__init__()
        self.face, self.voice = _Trunk("s", channels), _Trunk("m", channels)
        places = math.ceil(MOUTH_CROP[0] / 8) * math.ceil(MOUTH_CROP[1] / 8)
        self.spots = nn.Conv1d(channels[2], spots, 1)
        self.face_out = nn.Sequential(
            nn.Dropout(0.2),
            nn.Linear(channels[2] + spots * places, self.DIM),
        )
        self.voice_out = nn.Sequential(nn.Dropout(0.2), nn.Conv1d(channels[2], self.DIM, 3))
        self.log_scale = nn.Parameter(torch.tensor(2.3))
        for name in self.FIXED:
            self.face.get_submodule(name).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LightASDSyncExpert:
        """Set the mode of training; the first two blocks of the picture stay as they were published."""
        super().train(mode)
        for name in self.FIXED:
            self.face.get_submodule(name).eval()
        return self

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed grey patches ``[B, T, 40, 56]`` or ``[B, T, 48, 64]`` of any value range as ``[B, T - 12, DIM]``."""
        return self.embed_face_features(self.face_features(lips))

    def face_features(self, lips: torch.Tensor) -> torch.Tensor:
        """Return what the first two blocks make of patches, ``[B, C, T - 8, 5, 7]``."""
        top, left = ((size - crop) // 2 for size, crop in zip(lips.shape[-2:], MOUTH_CROP, strict=True))
        mouth = lips[..., top : top + MOUTH_CROP[0], left : left + MOUTH_CROP[1]].to(device_of(self)).float()
        centre, spread = mouth.mean((1, 2, 3), keepdim=True), mouth.std((1, 2, 3), keepdim=True)
        return self.face.low(((mouth - centre) / (spread + 1.0))[:, None])

    def embed_face_features(self, features: torch.Tensor) -> torch.Tensor:
        """Embed what ``face_features`` returns as ``[B, T - 12, DIM]``."""
        high = self.face.high(features)
        batch, channels, frames = high.shape[:3]
        flat = high.transpose(1, 2).reshape(batch * frames, channels, -1)
        joined = torch.cat([flat.amax(-1), F.relu(self.spots(flat)).flatten(1)], -1)
        return F.normalize(self.face_out(joined).float(), dim=-1).view(batch, frames, -1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel ``[B, 4T, 80]`` as ``[B, T - 12, DIM]``; a window uses 43 of its 52 columns."""
        cepstra = cepstra_of_mel(mel.to(device_of(self)))[:, 3 : mel.shape[1] - 6]
        high = self.voice.high(self.voice.low(cepstra.mT[:, None]))
        return F.normalize(self.voice_out(high.mean(2)).mT.float(), dim=-1)


# --- Landmarks ---

LIP_POINTS = tuple(range(48, 66))
"""The points of the lips among the 66 of OpenSeeFace."""
CHIN_POINTS = (6, 7, 8, 9, 10)
"""Points of the chin."""


class LandmarkSyncExpert(JointEmbedding):
    """A joint embedding of lip and chin points and log-mel; a window has 11 frames.

    Args:
        width: channels of the layers.
    """

    WINDOW = 11
    DIM = 96

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        points = 2 * (len(LIP_POINTS) + len(CHIN_POINTS))
        self.face_in = nn.Conv1d(2 * points, width, 1)
        self.face = nn.ModuleList(_DilatedLayer(width, 3, dilation) for dilation in (1, 1, 2))
        self.face_last = nn.Conv1d(width, width, 2)
        self.voice_in = nn.Conv1d(80, width, 4, stride=2)
        self.voice_half = nn.Conv1d(width, width, 4, stride=2)
        self.voice = nn.ModuleList(_DilatedLayer(width, 3, dilation) for dilation in (1, 1, 2))
        self.face_out = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Conv1d(width, self.DIM, 1))
        self.voice_out = nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1), nn.Conv1d(width, self.DIM, 1))
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed points ``[B, T, 66, 2]``, in outer-eye-corner distances of a steady head, as ``[B, T - 10, DIM]``.

        The mean shape of the clip is subtracted, since the neutral shape of a mouth tells nothing about sync.
        """
        points = lips.to(device_of(self)).float()[:, :, LIP_POINTS + CHIN_POINTS].flatten(2)
        points = 20 * (points - points.mean(1, keepdim=True))
        x = self.face_in(torch.cat([points[:, 1:], 2 * (points[:, 1:] - points[:, :-1])], -1).mT)
        for layer in self.face:
            x = layer(x)
        return F.normalize(self.face_out(self.face_last(x)).mT, dim=-1)

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel ``[B, 4T, 80]`` as ``[B, T - 10, DIM]``."""
        x = self.voice_half(F.relu(self.voice_in((mel.to(device_of(self)) - 1.0).mT)))
        for layer in self.voice:
            x = layer(x)
        return F.normalize(self.voice_out(x).mT, dim=-1)


class _DilatedLayer(nn.Module):
    """A residual layer of a dilated convolution over time without padding."""

    def __init__(self, width: int, taps: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.conv = nn.Conv1d(width, width, taps, dilation=dilation)
        self.mix = nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mix(F.relu(self.conv(F.relu(self.norm(x)))))
        cut = (x.shape[-1] - y.shape[-1]) // 2
        return x.narrow(-1, cut, y.shape[-1]) + y

"""Slots for the networks with which the field measures: SyncNet, and the picture quality networks of THEval.

| slot              | file in the folder       | environment variable      | measures                              |
| SyncNet           | syncnet_v2.model         | FLOWPORTRAIT_SYNCNET      | LSE-C and LSE-D as papers give them   |
| Inception         | inception-2015-12-05.pt  | FLOWPORTRAIT_INCEPTION    | FID                                   |
| I3D               | i3d_torchscript.pt       | FLOWPORTRAIT_I3D          | FVD                                   |
| ArcFace           | arcface.onnx             | FLOWPORTRAIT_ARCFACE      | CSIM                                  |
| TOPIQ-IAA         | topiq_iaa.pt             | FLOWPORTRAIT_TOPIQ_IAA    | global aesthetics of THEval           |
| MUSIQ             | musiq.pt                 | FLOWPORTRAIT_MUSIQ        | mouth quality of THEval               |
| TOPIQ-face        | topiq_face.pt            | FLOWPORTRAIT_TOPIQ_FACE   | face quality of THEval                |

None of them may be shipped. ``--networks FOLDER`` uses all seven files of a folder; an environment variable names a
single one. The three quality networks are TorchScript: a picture ``[1, 3, H, W]`` in 0 … 1 to one score.

SyncNet (Chung & Zisserman 2016) embeds five frames of a face and 0.2 s of sound. The layers are those of the published
weights. Faces are cut out by the tracker's landmarks and not by S3FD, and sound is not padded beyond its ends, so
figures compare with those of the same run and only roughly with published ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy.fft import dct
from torch import nn

from flowportrait.devices import default_device, device_of, place_network
from flowportrait.errors import BadInput
from flowportrait.evaluation.joins import scored_frames
from flowportrait.evaluation.lip_sync import (
    LONG_FRAMES,
    LONG_MAX_OFFSET,
    MIN_WINDOWS,
    SHORT_MAX_OFFSET,
    scored_windows,
    sync_from_embeddings,
)
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.motion_metrics import longest_run
from flowportrait.evaluation.tracking import VideoTracks
from flowportrait.evaluation.true_lips import LIP_POINTS
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.media.video import iter_frames


class NetworkSlot(NamedTuple):
    """A network of the field: its name, its file in a folder, its environment variable, and what it measures."""

    name: str
    file: str
    variable: str
    measures: str


SLOTS = {
    slot.variable.removeprefix("FLOWPORTRAIT_").lower(): slot
    for slot in (
        NetworkSlot("SyncNet", "syncnet_v2.model", "FLOWPORTRAIT_SYNCNET", "LSE-C and LSE-D of SyncNet"),
        NetworkSlot("Inception", "inception-2015-12-05.pt", "FLOWPORTRAIT_INCEPTION", "FID"),
        NetworkSlot("I3D", "i3d_torchscript.pt", "FLOWPORTRAIT_I3D", "FVD"),
        NetworkSlot("ArcFace", "arcface.onnx", "FLOWPORTRAIT_ARCFACE", "CSIM"),
        NetworkSlot("TOPIQ-IAA", "topiq_iaa.pt", "FLOWPORTRAIT_TOPIQ_IAA", "global aesthetics of THEval"),
        NetworkSlot("MUSIQ", "musiq.pt", "FLOWPORTRAIT_MUSIQ", "mouth quality of THEval"),
        NetworkSlot("TOPIQ-face", "topiq_face.pt", "FLOWPORTRAIT_TOPIQ_FACE", "face quality of THEval"),
    )
}
QUALITY_SLOTS = {"topiq_iaa": "global_aesthetics", "musiq": "mouth_quality", "topiq_face": "face_quality"}
"""The measures of THEval that quality networks give."""


def find_network_files(folder: Path | None = None) -> dict[str, Path]:
    """Return the files of the slots that are filled, by slot.

    Args:
        folder: folder with the files of all slots; by default those that environment variables name.

    Raises:
        BadInput: a file is missing.
    """
    if folder is not None:
        for slot in SLOTS.values():
            if not (folder / slot.file).is_file():
                raise BadInput(
                    f"There is no {slot.file} in {folder} ({slot.name}, for {slot.measures}): put it there, or name "
                    f"the networks that you have in environment variables such as {slot.variable}."
                )
        return {key: folder / slot.file for key, slot in SLOTS.items()}
    found = {key: Path(value) for key, slot in SLOTS.items() if (value := os.environ.get(slot.variable))}
    for key, path in found.items():
        if not path.is_file():
            raise BadInput(
                f"{SLOTS[key].variable} names {path}, which does not exist: give the file or unset the variable."
            )
    return found


# --- SyncNet ---

SYNCNET_WINDOW, SYNCNET_SIDE, SYNCNET_DIM = 5, 224, 1024
SYNCNET_BATCH = 16
CROP_PADDING = 0.4
"""Padding of the face box as a share of half its side, as in the published code."""
CEPSTRA = 13


class SyncNet(nn.Module):
    """The two networks of SyncNet; widths other than the published ones make small ones.

    Args:
        audio: channels of the six convolutions of sound.
        face: channels of the six convolutions of the face.
        dim: width of the embedding.
    """

    def __init__(
        self,
        audio: Sequence[int] = (64, 192, 384, 256, 256, 512),
        face: Sequence[int] = (96, 256, 256, 256, 256, 512),
        dim: int = SYNCNET_DIM,
    ) -> None:
        super().__init__()
        one, same = (1, 1), (1, 1)
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, audio[0], (3, 3), same), nn.MaxPool2d(one, one),
            *_conv2d(audio[0], audio[1], (3, 3), same), nn.MaxPool2d((3, 3), (1, 2)),
            *_conv2d(audio[1], audio[2], (3, 3), same),
            *_conv2d(audio[2], audio[3], (3, 3), same),
            *_conv2d(audio[3], audio[4], (3, 3), same), nn.MaxPool2d((3, 3), (2, 2)),
            *_conv2d(audio[4], audio[5], (5, 4), (0, 0)),
        )  # fmt: skip
        half = (1, 2, 2)
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, face[0], (5, 7, 7), (0, 0, 0), half), nn.MaxPool3d((1, 3, 3), half),
            *_conv3d(face[0], face[1], (1, 5, 5), (0, 1, 1), half), nn.MaxPool3d((1, 3, 3), half, (0, 1, 1)),
            *_conv3d(face[1], face[2], (1, 3, 3), (0, 1, 1)),
            *_conv3d(face[2], face[3], (1, 3, 3), (0, 1, 1)),
            *_conv3d(face[3], face[4], (1, 3, 3), (0, 1, 1)), nn.MaxPool3d((1, 3, 3), half),
            *_conv3d(face[4], face[5], (1, 6, 6), (0, 0, 0)),
        )  # fmt: skip
        self.netfcaud, self.netfclip = (
            nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, dim))
            for width in (audio[5], face[5])
        )

    @classmethod
    def read(cls, path: Path) -> SyncNet:
        """Load published weights, or those of a small network, for evaluation.

        Raises:
            BadInput: the file holds no weights of SyncNet.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            audio, face = (
                [len(state[f"{part}.{place}.weight"]) for place in (0, 4, 8, 11, 14, 18)]
                for part in ("netcnnaud", "netcnnlip")
            )
            network = cls(audio, face, dim=len(state["netfclip.3.weight"]))
            network.load_state_dict(state)
        except Exception as error:  # torch.load and load_state_dict raise whatever they meet
            raise BadInput(f"{path} holds no weights of SyncNet: give syncnet_v2.model.") from error
        return place_network(network.eval().requires_grad_(False))

    @torch.no_grad()
    def embed(self, faces: np.ndarray, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embed faces and sound.

        Args:
            faces: ``[T, 224, 224, 3]`` uint8 RGB.
            audio: samples ``[640 T]`` at 16 kHz.

        Returns:
            Embeddings ``[T - 5, D]`` of the windows of five frames, and of the sound of each.
        """
        count, device = len(faces) - SYNCNET_WINDOW, device_of(self)
        pictures = torch.from_numpy(np.ascontiguousarray(faces[..., ::-1])).permute(3, 0, 1, 2)
        cepstra = torch.from_numpy(mfcc(audio).T.copy()).float()
        found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for start in range(0, count, SYNCNET_BATCH):
            places = range(start, min(count, start + SYNCNET_BATCH))
            face = torch.stack([pictures[:, place : place + SYNCNET_WINDOW] for place in places]).to(device).float()
            first, length = MELS_PER_FRAME, MELS_PER_FRAME * SYNCNET_WINDOW
            sound = torch.stack([cepstra[None, :, first * place : first * place + length] for place in places])
            found[0].append(self.netfclip(self.netcnnlip(face).flatten(1)).cpu())
            found[1].append(self.netfcaud(self.netcnnaud(sound.to(device)).flatten(1)).cpu())
        return torch.cat(found[0]).numpy(), torch.cat(found[1]).numpy()


def _conv2d(inputs: int, outputs: int, kernel: tuple[int, int], padding: tuple[int, int]) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, padding=padding), nn.BatchNorm2d(outputs), nn.ReLU()]


def _conv3d(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int, int],
    padding: tuple[int, int, int],
    stride: tuple[int, int, int] = (1, 1, 1),
) -> list[nn.Module]:
    return [nn.Conv3d(inputs, outputs, kernel, stride, padding), nn.BatchNorm3d(outputs), nn.ReLU()]


FILTERS, FFT, FRAME, STEP, EMPHASIS, LIFTER = 26, 512, 400, 160, 0.97, 22
"""Of the cepstra: mel filters, length of the Fourier transform, samples of a frame and between two, pre-emphasis, and
lifter: the defaults of python_speech_features, with which SyncNet was trained."""


def mfcc(audio: np.ndarray) -> np.ndarray:
    """Return mel cepstra ``[N / 160, 13]`` of samples ``[N]`` at 16 kHz in −1 … 1; the first is the log energy."""
    wave = np.asarray(audio, np.float64) * 32768
    wave = np.append(wave[0], wave[1:] - EMPHASIS * wave[:-1])
    count = 1 + max(0, -(-(len(wave) - FRAME) // STEP))
    wave = np.append(wave, np.zeros(max(0, (count - 1) * STEP + FRAME - len(wave))))
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME)[::STEP][:count]
    power = np.abs(np.fft.rfft(frames, FFT)) ** 2 / FFT
    tiny = np.finfo(float).eps
    cepstra = dct(np.log(np.maximum(power @ _mel_filters().T, tiny)), type=2, axis=1, norm="ortho")[:, :CEPSTRA]
    cepstra = cepstra * (1 + LIFTER / 2 * np.sin(np.pi * np.arange(CEPSTRA) / LIFTER))
    cepstra[:, 0] = np.log(np.maximum(power.sum(1), tiny))
    return np.asarray(cepstra)


def _mel_filters() -> np.ndarray:
    """Return triangular filters ``[26, 257]``, evenly spaced in mel from 0 to 8 kHz."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = np.floor((FFT + 1) * 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1) / SAMPLE_RATE)
    bins = np.arange(FFT // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.where((bins >= low) & (bins < middle), rising, np.where((bins >= middle) & (bins < high), falling, 0.0))


def syncnet_crops(path: Path, tracked: VideoTracks, run: slice) -> np.ndarray:
    """Cut the faces ``[T, 224, 224, 3]`` of a run of frames out of a video, placed as SyncNet's are."""
    points = tracked.landmarks[run][..., :2]
    low, high = points.min(1), points.max(1)
    centre, half = (low + high) / 2, (high - low).max(1) / 2
    width = min(13, len(half) - 1 + len(half) % 2)
    steady = [np.convolve(np.pad(v, width // 2, mode="edge"), np.ones(width) / width, "valid") for v in
              (centre[:, 0], centre[:, 1], half)]  # fmt: skip
    crops = []
    for place, frame in enumerate(iter_frames(path)):
        if run.start <= place < run.stop:
            x, y, size = (float(values[place - run.start]) for values in steady)
            side = 2 * size * (1 + CROP_PADDING)
            left, top = x - size * (1 + CROP_PADDING), y - size
            scale = SYNCNET_SIDE / side
            matrix = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
            crops.append(cv2.warpAffine(frame, matrix, (SYNCNET_SIDE, SYNCNET_SIDE), flags=cv2.INTER_AREA,
                                        borderValue=(110, 110, 110)))  # fmt: skip
    return np.array(crops)


# --- Measures ---


class QualityNetwork:
    """A TorchScript network from a picture ``[1, 3, H, W]`` in 0 … 1 to one score.

    Raises:
        BadInput: the file is no TorchScript network.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._device, _ = default_device()
            self._net = torch.jit.load(str(path), map_location=self._device).eval()
        except (RuntimeError, OSError, ValueError) as error:
            raise BadInput(f"{path} is not a TorchScript network: export it with torch.jit first.") from error

    @torch.no_grad()
    def __call__(self, picture: np.ndarray) -> float:
        """Return the score of a picture ``[H, W, 3]`` uint8 RGB."""
        batch = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
        return float(self._net(batch.to(self._device)).flatten()[0])


@dataclass(frozen=True)
class FieldNetworks:
    """The networks of the field beyond features of crops: SyncNet or None, and quality networks by slot."""

    syncnet: SyncNet | None
    quality: Mapping[str, QualityNetwork]

    @classmethod
    def load(cls, files: Mapping[str, Path]) -> FieldNetworks:
        """Load those whose files are there."""
        syncnet = SyncNet.read(files["syncnet"]) if "syncnet" in files else None
        return cls(syncnet, {key: QualityNetwork(files[key]) for key in QUALITY_SLOTS if key in files})

    def names(self) -> dict[str, str]:
        """Return the names of the networks by what they measure."""
        keys = [*(["syncnet"] if self.syncnet else []), *self.quality]
        return {SLOTS[key].measures: SLOTS[key].name for key in keys}

    def measure(self, path: Path, tracked: VideoTracks, joins: Sequence[int] = ()) -> MetricRow:
        """Measure a video with the networks that are there."""
        row = self._sync(path, tracked, joins) if self.syncnet else {}
        return row | (self._quality(path, tracked, scored_frames(len(tracked), joins)) if self.quality else {})

    def _sync(self, path: Path, tracked: VideoTracks, joins: Sequence[int]) -> MetricRow:
        run = longest_run(tracked.valid)
        frames = run.stop - run.start
        reach = LONG_MAX_OFFSET if frames >= LONG_FRAMES else SHORT_MAX_OFFSET
        if not len(tracked.audio) or frames - SYNCNET_WINDOW - 2 * reach < MIN_WINDOWS:
            return {}
        assert self.syncnet is not None, "the caller has checked"
        audio = tracked.audio[640 * run.start : 640 * run.stop]
        face, voice = self.syncnet.embed(syncnet_crops(path, tracked, run), audio)
        counted = scored_windows(scored_frames(len(tracked), joins)[run], SYNCNET_WINDOW + 1, reach)
        if counted.sum() < MIN_WINDOWS:
            return {}
        found = sync_from_embeddings(face, voice, reach, counted)
        kind = "" if reach == LONG_MAX_OFFSET else "_short"
        return {
            f"syncnet_lse_c{kind}": found.lse_c,
            f"syncnet_lse_d{kind}": found.lse_d,
            f"syncnet_in_time{kind}": found.lse_c_at_zero,
            f"syncnet_offset_error{kind}": abs(found.offset),
        }

    def _quality(self, path: Path, tracked: VideoTracks, scored: np.ndarray) -> MetricRow:
        scores: dict[str, list[float]] = {key: [] for key in self.quality}
        for place, frame in enumerate(iter_frames(path)):
            if place % QUALITY_STEP or place >= len(tracked) or not (scored[place] and tracked.valid[place]):
                continue
            for key, network in self.quality.items():
                picture = mouth_region(frame, tracked.landmarks[place]) if key == "musiq" else frame
                scores[key].append(network(picture))
        return {f"theval_{QUALITY_SLOTS[key]}": float(np.mean(found)) for key, found in scores.items() if found}


QUALITY_STEP = 5
"""Every so many frames are scored by the quality networks."""
MOUTH_PADDING = 10
"""Pixels around the lips."""


def mouth_region(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the part of a frame around the lips, with ten pixels of padding."""
    points = landmarks[LIP_POINTS, :2]
    left, top = np.maximum(points.min(0).astype(int) - MOUTH_PADDING, 0)
    right, bottom = points.max(0).astype(int) + MOUTH_PADDING
    return frame[top:bottom, left:right]

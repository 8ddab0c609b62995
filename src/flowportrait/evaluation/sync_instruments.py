"""Several instruments of lip sync side by side, by name.

    score(lips, audio) ─► SyncMeasurement: distance by offset, LSE-C at 0, best offset, LER, chance

| name         | reads                       | network             | learned from                                     |
| pixels       | grey mouth patches          | PixelSyncExpert     | evaluation speakers                              |
| pixels-a     | grey mouth patches          | LightASDSyncExpert  | first half of the evaluation speakers            |
| pixels-b     | grey mouth patches          | LightASDSyncExpert  | second half of the evaluation speakers           |
| pixels-ab    | grey mouth patches          | the last two        | both halves                                      |
| pixels-all   | grey mouth patches          | all three           | evaluation speakers                              |
| landmarks    | lip points of OpenSeeFace   | LandmarkSyncExpert  | second half of the evaluation speakers           |

None of them is used in a reward. What was chosen with ``pixels-a`` (the best of n samples, say) is scored with
``pixels-b`` or ``landmarks``, which learned from other speakers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from flowportrait.devices import cached_per_device
from flowportrait.evaluation.joins import scored_frames
from flowportrait.evaluation.lip_sync import (
    LONG_FRAMES,
    LONG_MAX_OFFSET,
    MIN_WINDOWS,
    SHORT_MAX_OFFSET,
    PixelSyncExpert,
    SyncMeasurement,
    scored_windows,
    sync_from_embeddings,
)
from flowportrait.evaluation.motion_metrics import longest_run
from flowportrait.evaluation.openseeface import OpenSeeFace
from flowportrait.evaluation.sync_experts import LandmarkSyncExpert, LightASDSyncExpert
from flowportrait.evaluation.tracking import VideoTracks, content_hash, track_file
from flowportrait.files import atomic_write, shipped_weights
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.media.video import iter_frames
from flowportrait.training.joint_embedding import JointEmbedding

OPENSEEFACE_VARIABLE = "FLOWPORTRAIT_OPENSEEFACE"
"""Environment variable that names ``lm_model0_opt.onnx`` of OpenSeeFace."""


@dataclass(frozen=True)
class SyncInstrument:
    """A way to measure lip sync.

    Attributes:
        name: its name in tables.
        reads: ``mouth`` for grey patches ``[T, 48, 64]``, ``points`` for those of OpenSeeFace ``[T, 66, 2]``,
            ``motion`` for motion ``[T, 30]`` (the reward's expert, which is compared with these in a measurement).
        networks: joint embeddings that read the same frames; similarities of several are averaged.
        learned_from: whose clips it learned from.
    """

    name: str
    reads: Literal["mouth", "points", "motion"]
    networks: tuple[JointEmbedding, ...]
    learned_from: str

    @property
    def window(self) -> int:
        """Number of frames that one comparison of lips and sound spans, that of the widest network."""
        return max(network.WINDOW for network in self.networks)

    @torch.no_grad()
    def embed(self, lips: np.ndarray, audio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return unit embeddings ``[T - window + 1, D]`` of lips and of sound, whose products are similarities.

        Args:
            lips: what the instrument reads, of T consecutive frames with a face.
            audio: samples ``[640 T]`` at 16 kHz.
        """
        face, mel = torch.from_numpy(np.ascontiguousarray(lips)), log_mel(normalize_loudness(audio))
        return self.embed_mel(face, mel[: MELS_PER_FRAME * len(lips)])

    @torch.no_grad()
    def embed_mel(self, face: torch.Tensor, mel: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return what ``embed`` does, for a log-mel ``[4T, 80]``."""
        share, count = len(self.networks) ** -0.5, len(face) - self.window + 1
        faces, voices = [], []
        for network in self.networks:
            edge = (self.window - network.WINDOW) // 2
            inner = slice(edge, edge + count)
            faces.append(network.embed_face(face[None])[0, inner].cpu() * share)
            voices.append(network.embed_audio(mel[None])[0, inner].cpu() * share)
        return torch.cat(faces, -1).numpy(), torch.cat(voices, -1).numpy()

    def score(self, lips: np.ndarray, audio: np.ndarray, scored: np.ndarray | None = None) -> SyncMeasurement | None:
        """Measure lip sync.

        Args:
            lips: what the instrument reads, of T consecutive frames with a face.
            audio: samples ``[640 T]`` at 16 kHz.
            scored: which frames count ``[T]``; all by default.

        Returns:
            The measurement with offsets up to ±15 frames for three seconds and more, up to ±5 for less; None if there
            is no sound or there are too few frames.
        """
        reach = LONG_MAX_OFFSET if len(lips) >= LONG_FRAMES else SHORT_MAX_OFFSET
        if not len(audio) or len(lips) - self.window + 1 - 2 * reach < MIN_WINDOWS:
            return None
        face, voice = self.embed(lips, audio)
        counted = None if scored is None else scored_windows(scored, self.window, reach)
        if counted is not None and counted.sum() < MIN_WINDOWS:
            return None
        return sync_from_embeddings(face, voice, reach, counted)


def sync_instruments(points: bool | None = None) -> dict[str, SyncInstrument]:
    """Return the instruments by name.

    Args:
        points: whether to include those that read points of OpenSeeFace; by default where its network is named by
            ``FLOWPORTRAIT_OPENSEEFACE``.
    """
    present, first, second = PixelSyncExpert.load(), _load_light_asd("a"), _load_light_asd("b")
    both, everybody = "evaluation speakers, without GRID's", "evaluation speakers, with GRID's"
    found = [
        SyncInstrument("pixels", "mouth", (present,), everybody),
        SyncInstrument("pixels-a", "mouth", (first,), f"first half of the {both}"),
        SyncInstrument("pixels-b", "mouth", (second,), f"second half of the {both}"),
        SyncInstrument("pixels-ab", "mouth", (first, second), both),
        SyncInstrument(
            "pixels-all", "mouth", (PixelSyncExpert.load(), first, second), "evaluation speakers, with GRID's"
        ),
    ]
    if points if points is not None else bool(os.environ.get(OPENSEEFACE_VARIABLE)):
        found.append(SyncInstrument("landmarks", "points", (_load_landmarks(),), f"second half of the {both}"))
    return {instrument.name: instrument for instrument in found}


def measure_sync_of_file(
    path: Path,
    instruments: Mapping[str, SyncInstrument] | None = None,
    cache: Path | None = None,
    joins: Sequence[int] = (),
) -> dict[str, SyncMeasurement | None]:
    """Measure a finished video with every instrument, over its longest run of frames with a face.

    Args:
        path: the video.
        instruments: by name; by default those of ``sync_instruments``.
        cache: folder of tracks.
        joins: where the clip is joined; frames around joins do not count.

    Returns:
        A measurement by instrument; None where the video has no sound or is too short.

    Raises:
        BadInput: the file cannot be decoded, or an instrument needs OpenSeeFace and its network is not there.
    """
    instruments = sync_instruments() if instruments is None else instruments
    tracked = track_file(path, cache)
    run = longest_run(tracked.valid)
    lips = {"mouth": tracked.mouth[run]}
    if any(instrument.reads == "points" for instrument in instruments.values()):
        lips["points"] = _steady_points(path, tracked, cache)[run]
    audio = tracked.audio[SAMPLES_PER_FRAME * run.start : SAMPLES_PER_FRAME * run.stop]
    scored = scored_frames(len(tracked), joins)[run] if joins else None
    return {name: instrument.score(lips[instrument.reads], audio, scored) for name, instrument in instruments.items()}


def _steady_points(path: Path, tracked: VideoTracks, cache: Path | None) -> np.ndarray:
    file = None if cache is None else cache / f"{content_hash(path)}-openseeface.npy"
    if file is not None and file.is_file():
        return np.asarray(np.load(file))
    points = load_openseeface().steady_points(iter_frames(path), tracked.landmarks)
    if file is not None:
        with atomic_write(file) as partial, partial.open("wb") as stream:
            np.save(stream, points)
    return points


def load_openseeface() -> OpenSeeFace:
    """Return the landmark network of OpenSeeFace that ``FLOWPORTRAIT_OPENSEEFACE`` names.

    Raises:
        BadInput: the variable is not set, or its file is missing.
    """
    return OpenSeeFace(Path(os.environ.get(OPENSEEFACE_VARIABLE) or "lm_model0_opt.onnx"))


@cached_per_device
def _load_light_asd(half: str) -> LightASDSyncExpert:
    return LightASDSyncExpert.read(shipped_weights("sync_light_asd") / f"{half}.safetensors")


@cached_per_device
def _load_landmarks() -> LandmarkSyncExpert:
    return LandmarkSyncExpert.read(shipped_weights("sync_landmarks/model.safetensors"))

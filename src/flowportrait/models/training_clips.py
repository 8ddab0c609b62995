"""Training clips of supervised training: augmentation, audio features, lip targets; and the drift of long sequences.

    clip ─► augment_wave ─► augment ─► frozen front end ─► features, with motion at the speed of the sound

The parts in order: augmentation of speech; clips with features and targets; ``measure_drift``, which measures whether
motion drifts over minutes.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from scipy.signal import butter, fftconvolve, sosfilt

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips, resample_track
from flowportrait.devices import device_of
from flowportrait.errors import BadInput
from flowportrait.files import atomic_write
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.media.video import FPS
from flowportrait.models.arflow import ARFlow
from flowportrait.models.conditioning import add_portraits
from flowportrait.models.flow_matching import PretrainConfig
from flowportrait.rendering import motion_basis as lips
from flowportrait.rendering.motion_basis import BLINK, BROWS, GAZE, HEAD, LOWER_FACE, MOTION_DIM, MotionBasis

# --- Augmentation ------------------------------------------------------------------------------------------------
#
# Other voices, rooms, microphones and transmission lines from the same speech, for which lips and timing stay valid:
#
#     augment_wave   on samples:                                tempo and pitch together, room, noise, line
#     augment        on log-mel ``(ln power + 9.5) / 4``:       vocal-tract length, microphone, noise, missing bands

_LN_PER_UNIT = 4.0
SPEED_RANGE = (0.92, 1.1)
"""Range of the factor by which a recording is played faster, sound and lips alike."""
REVERB_DB = NOISE_DB = (0.0, 20.0)
"""Range of direct sound over reverberation, and of speech over noise."""


def augment_wave(audio: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return speech in another room and over another line. Room, noise and line are each applied at random.

    Args:
        audio: 16 kHz samples ``[N]``.
        others: recordings to make babble noise from.
        rng: of random numbers.

    Returns:
        The samples at another speed, and that speed.
    """
    speed = float(rng.uniform(*SPEED_RANGE))
    place = np.arange(0, len(audio) - 1, speed)
    wave = np.interp(place, np.arange(len(audio)), audio)
    if rng.random() < 0.4:
        wave = add_reverberation(wave, rng)
    if rng.random() < 0.6:
        voices = len(others) > 0 and rng.random() < 0.5
        noise = babble_noise(others, len(wave), rng) if voices else coloured_noise(len(wave), rng)
        below = 10 ** (-rng.uniform(*NOISE_DB) / 20)
        wave = wave + noise * (rms_level(wave) / max(rms_level(noise), 1e-9)) * below
    if rng.random() < 0.3:
        wave = _line(wave, rng)
    return (wave * 10 ** (rng.uniform(-6, 6) / 20)).clip(-1, 1).astype(np.float32), speed


def rms_level(wave: np.ndarray) -> float:
    """Return the root mean square of samples."""
    return float(np.sqrt(np.mean(np.square(wave))))


def add_reverberation(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the sound in a room: with exponentially decaying noise after the direct sound (RT60 0.15–0.7 s)."""
    decay = rng.uniform(0.15, 0.7)
    length = int(decay * SAMPLE_RATE)
    tail = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail[: int(0.002 * SAMPLE_RATE)] = 0
    tail *= 10 ** (-rng.uniform(*REVERB_DB) / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return fftconvolve(wave, tail)[: len(wave)]


def coloured_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return noise whose power falls with frequency as f^−a, a from 0 (white) to 2 (brown)."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    frequency = np.maximum(np.fft.rfftfreq(length, 1 / SAMPLE_RATE), 20.0)
    return np.fft.irfft(spectrum * frequency ** (-rng.uniform(0, 2) / 2), length)


def babble_noise(others: Sequence[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Return babble noise: three to six other recordings at once."""
    total = np.zeros(length)
    for index in rng.integers(len(others), size=int(rng.integers(3, 7))):
        other = others[index]
        total += np.roll(np.resize(other, length), int(rng.integers(length)))
    return total


def _line(wave: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the sound over a telephone (300–3400 Hz, 8-bit μ-law) or a codec that cuts off high frequencies."""
    if rng.random() < 0.5:
        wave = sosfilt(butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE, output="sos"), wave)
        peak = max(np.abs(wave).max(), 1e-9)
        coded = np.sign(wave) * np.log1p(255 * np.abs(wave) / peak) / np.log(256)
        coded = np.round(coded * 127) / 127
        return np.sign(coded) * (np.expm1(np.abs(coded) * np.log(256)) / 255) * peak
    return sosfilt(butter(6, rng.uniform(3500, 7000), fs=SAMPLE_RATE, output="sos"), wave)


def augment_mel(mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return log-mel ``[B, 4T, 80]`` with a new voice and room for each item; lips and timing stay valid."""
    batch, _, bands = mel.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    # Vocal-tract length: read the spectrum at stretched band positions.
    position = torch.arange(bands) * uniform(0.85, 1.18, 1)
    lower = position.floor().clamp(0, bands - 1).long()
    upper = (lower + 1).clamp_max(bands - 1)
    fraction = (position - lower).clamp(0, 1)[:, None]
    steps = mel.shape[1]
    low_values = mel.gather(2, lower[:, None].expand(-1, steps, -1))
    high_values = mel.gather(2, upper[:, None].expand(-1, steps, -1))
    warped = low_values + fraction * (high_values - low_values)

    # Microphone colour: a smooth tilt and level.
    tilt = uniform(-0.35, 0.35, 1, 1) * torch.linspace(-1, 1, bands) + uniform(-0.25, 0.25, 1, 1)
    voiced = warped + tilt

    # Coloured noise at 0–20 dB below the clip's mean power, in half of the items.
    power = (voiced * _LN_PER_UNIT).exp()
    below = 10 ** (-uniform(0.0, 2.0, 1, 1)) * (torch.rand(batch, 1, 1, generator=generator) < 0.5)
    colour = (uniform(-2.0, 0.5, 1, 1) * torch.linspace(0, 1, bands)).exp()
    ripple = torch.empty_like(mel).exponential_(generator=generator)
    noise = colour * ripple * power.mean((1, 2), keepdim=True) * below
    noisy = (power + noise).log() / _LN_PER_UNIT

    # A missing band of up to ten mels, in half of the items.
    start = (uniform(0, bands) // 1).long()[:, None]
    width = (uniform(0, 10) * (torch.rand(batch, generator=generator) < 0.5)).long()[:, None]
    band = torch.arange(bands)[None]
    missing = (band >= start) & (band < start + width)
    return torch.where(missing[:, None], noisy.mean((1, 2), keepdim=True), noisy)


# --- Clips with features and targets -----------------------------------------------------------------------------
#
# The front end is frozen, so that its features of a clip never change. Augmentation comes before it, in a fixed number
# of variants per clip; every variant is a clip of its own, with motion at the speed of its sound.

_BABBLE = 40
"""Recordings that babble noise is made from."""


def extract_features(
    model: ARFlow, corpus: Path, splits: Collection[str], variants: int, seed: int
) -> list[MotionClip]:
    """Load the clips of some splits, with their log-mel replaced by audio features ``[T, features]`` in float16.

    For a model with vision, clips get a portrait too.

    Args:
        model: the generator whose ``audio_features`` are computed.
        corpus: folder of prepared videos.
        splits: names of the splits.
        variants: augmented copies of each clip.
        seed: of the augmentation.

    Returns:
        All clips as they are, followed by the augmented ones.

    Raises:
        BadInput: see ``load_motion_clips`` and ``add_portraits``.
    """
    clips = load_motion_clips(corpus, splits)
    if model.vision is not None:
        clips = add_portraits(model, corpus, clips)
    result = [replace(clip, mel=_features(model, clip.mel)) for clip in clips]
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    if not variants:
        return result
    sounds = [normalize_loudness(FaceClip.load(corpus / "clips" / f"{clip.name}.safetensors").audio) for clip in clips]
    babble_sources = [sounds[int(i)] for i in rng.integers(len(sounds), size=_BABBLE)]
    total = track(range(variants * len(clips)), description="audio features", console=Console(stderr=True))
    for turn in total:
        clip, sound = clips[turn % len(clips)], sounds[turn % len(clips)]
        wave, speed = augment_wave(sound, babble_sources, rng)
        mel = augment_mel(log_mel(normalize_loudness(wave))[None], generator)[0]
        frames = min(len(mel) // MELS_PER_FRAME, round(len(clip.motion) / speed))
        motion = resample_track(clip.motion, frames)
        result.append(replace(clip, motion=motion, mel=_features(model, mel[: frames * MELS_PER_FRAME])))
    return result


def save_clips(path: Path, clips: list[MotionClip]) -> None:
    """Write clips to a file, so that a resumed run need not compute their features again."""
    with atomic_write(path) as partial:
        torch.save([asdict(clip) for clip in clips], partial)


def load_clips(path: Path) -> list[MotionClip]:
    """Read what ``save_clips`` wrote."""
    return [MotionClip(**clip) for clip in torch.load(path, weights_only=True)]


@torch.no_grad()
def _features(model: ARFlow, mel: torch.Tensor) -> torch.Tensor:
    return model.audio_features(mel[None])[0].half().cpu()


def with_lip_targets(model: ARFlow, clips: list[MotionClip], share: float) -> list[MotionClip]:
    """Return the clips with their lip motion replaced by the training target of ``LipRegression`` at τ = ``share``."""
    reader = model.lip_reader
    if reader is None or share == 1.0:
        return clips

    def target(clip: MotionClip) -> torch.Tensor:
        features = clip.mel[None, : len(clip.motion)].float()
        motion, features, style = (
            part.to(device_of(reader)) for part in (clip.motion[None], features, clip.style[None])
        )
        return reader.training_target(motion, features, style, share)[0].cpu()

    return [replace(clip, motion=target(clip)) for clip in clips]


def load_held_out(model: ARFlow, corpus: Path, config: PretrainConfig) -> list[MotionClip]:
    """Load the clips for the held-out loss; none, with a warning, if the corpus has no such split."""
    try:
        clips = extract_features(model, corpus, config.held_out, 0, config.seed)
    except BadInput:
        warnings.warn(
            f"{corpus} has no clips in the split {', '.join(config.held_out)}: overfitting will not be seen.",
            stacklevel=3,
        )
        return []
    return [clip for clip in clips if len(clip.motion) > config.windows[0]]


def median_style(clips: list[MotionClip]) -> torch.Tensor:
    """Return the median style over speakers ``[19]``."""
    return torch.stack(list({clip.speaker: clip.style for clip in clips}.values())).median(0).values


# --- Drift of long motion sequences ------------------------------------------------------------------------------
#
#     place of a group g in segment m      p[m] = mean over its frames of motion[g]
#     shift                                ‖p[m] − p[1]‖ / √dim g            grows with m where motion drifts
#     head reach                           99 % quantile of ‖head‖ / √6      grows where the head drifts
#     still                                share of seconds with less than a fifth of the usual motion
#
# All in standard deviations of real footage, as motion is.

FACE_GROUPS = {"lower face": LOWER_FACE, "brows": BROWS, "lids": BLINK, "gaze": GAZE, "head": HEAD}
STILL_SHARE = 0.2
"""Share of the usual liveliness below which a second counts as still."""


@lru_cache(maxsize=1)
def lip_opening_per_number() -> torch.Tensor:
    """Return how far each motion number opens the lips ``[30]``, in outer-eye-corner distances, mean over the lip."""
    opening = lips.lip_pair_gaps(MotionBasis.load().directions).mean(-1)
    return torch.cat([opening, torch.zeros(MOTION_DIM - len(opening))])


def liveliness(motion: torch.Tensor) -> torch.Tensor:
    """Return the mean standard deviation of the 30 numbers within each second ``[B, S]`` of motion ``[B, T, 30]``."""
    seconds = motion[:, : motion.shape[1] // FPS * FPS].unflatten(1, (-1, FPS))
    return seconds.std(2).mean(-1)


def measure_drift(motion: torch.Tensor, stretch: int, normal_liveliness: float) -> dict[str, torch.Tensor]:
    """Measure drift over M segments of a long motion sequence.

    Args:
        motion: ``[B, T, 30]``.
        stretch: frames per segment.
        normal_liveliness: liveliness of usual motion, with which ``still`` is compared.

    Returns:
        Figures ``[B, M]`` by name.
    """
    parts = motion[:, : motion.shape[1] // stretch * stretch].unflatten(1, (-1, stretch))
    place = parts.mean(2)
    shift = place - place[:, :1]
    figures = {f"shift of {name}": _root_mean_square(shift[..., group]) for name, group in FACE_GROUPS.items()}
    head = _root_mean_square(parts[..., HEAD])
    quiet = liveliness(parts.flatten(0, 1)).unflatten(0, parts.shape[:2]) < STILL_SHARE * normal_liveliness
    return figures | {
        "head reach": head.quantile(0.99, 2),
        "head spread": parts[..., HEAD].std(2).mean(-1),
        "lip spread": (parts @ lip_opening_per_number()).std(2),
        "still": quiet.float().mean(2),
    }


def _root_mean_square(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean(-1).sqrt()

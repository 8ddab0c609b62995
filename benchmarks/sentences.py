"""Sentences of unseen speakers, damage to their sound, and the generators that hear it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.signal import fftconvolve

from benchmarks.material import load_clip, speech_paths
from flowportrait.commands.options import Flag, OptionalPath
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, read_audio
from flowportrait.media.mel import normalize_loudness
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.enhancer import Enhancer, load_enhancer

LANGUAGES = {"anchors": ("Arabic", 28), "grid": ("English", 72)}
"""Sources of dev clips: their language, and the frames that are compared."""
Sound = Literal["clean", "babble20", "babble10", "babble5", "babble0", "room"]


@dataclass(frozen=True)
class Sentences:
    """Clips of ``dev`` speakers, and their levelled sound by name.

    English is GRID's one man, whose other sentences were trained on; Arabic are four speakers of whom nothing was.
    """

    clips: list[MotionClip]
    audio: dict[str, np.ndarray]

    @classmethod
    def load(cls, corpus: Path) -> Sentences:
        """Read a corpus.

        Raises:
            BadInput: it has no clips of dev speakers from either source.
        """
        clips = [clip for clip in load_motion_clips(corpus, ("dev",)) if clip.name.startswith(tuple(LANGUAGES))]
        if not clips:
            raise BadInput(f"{corpus} has no dev clips of {' or '.join(LANGUAGES)}: check its clips.jsonl.")
        return cls(clips, {clip.name: normalize_loudness(load_clip(corpus, clip.name).audio) for clip in clips})

    def of(self, source: str, frames: int = 0) -> list[MotionClip]:
        """Return the clips of a source that are long enough."""
        return [clip for clip in self.clips if clip.name.startswith(source) and len(clip.motion) >= frames]

    def by_language(self, most: int | None = None) -> Iterator[tuple[str, int, list[MotionClip], np.ndarray]]:
        """Yield language, frames, clips and their sound ``[B, samples]``, cut to so many frames."""
        for source, (language, frames) in LANGUAGES.items():
            if clips := self.of(source, frames)[:most]:
                sounds = np.stack([self.audio[clip.name][: frames * SAMPLES_PER_FRAME] for clip in clips])
                yield language, frames, clips, sounds


@dataclass(frozen=True, kw_only=True)
class SystemOptions:
    """The generators that are measured, and what they hear."""

    corpus: Path
    """Prepared corpus."""
    checkpoints: tuple[str, ...] = ("sft", "rl")
    """Generators: names of shipped ones, or folders."""
    steps: tuple[int, ...] = ()
    """Numbers of denoising steps; the checkpoint's own by default."""
    guidance: tuple[float, ...] = ()
    """Guidance on the audio; the checkpoint's own by default."""
    sounds: tuple[Sound, ...] = ("clean",)
    """What is heard: babble of four other people so many decibels below the speech, or a room at 5 dB."""
    no_denoise: Flag = False
    """Add each system without the enhancer."""
    enhancer: OptionalPath = None
    """Folder of another enhancer than the shipped one."""
    lead: Flag = False
    """Another sentence is heard first, damaged likewise; it is not measured."""


@dataclass(frozen=True)
class System:
    """A generator, and what is done to the sound before it hears it."""

    model: ARFlow
    damage: Callable[[np.ndarray], np.ndarray]
    enhancer: Enhancer | None


def load_systems(options: SystemOptions, sentences: Sentences) -> dict[str, System]:
    """Return every combination of checkpoint, steps, guidance and sound by name; clean sound comes first."""
    others = list(sentences.audio.values())[::7]
    enhancer = Enhancer.load(options.enhancer) if options.enhancer else load_enhancer()
    systems: dict[str, System] = {}
    for checkpoint in options.checkpoints:
        config = load_generator(checkpoint).config
        for steps, guidance in product(options.steps or [config.steps], options.guidance or [config.guidance]):
            model = load_generator(checkpoint).requires_grad_(False)
            model.config = replace(config, steps=steps, guidance=guidance)
            label = f"{Path(checkpoint).name} {steps} steps"
            label += f" guidance {guidance:g}" if options.guidance else ""
            for sound in options.sounds:
                name, damage = label if sound == "clean" else f"{label} {sound}", damage_by_name(sound, others)
                systems[name] = System(model, damage, enhancer)
                if options.no_denoise:
                    systems[f"{name} not denoised"] = System(model, damage, None)
    return systems


def damage_by_name(sound: str, others: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from clean sound to what is heard."""
    if sound.startswith("babble"):
        return partial(babble, others=others, level=float(sound.removeprefix("babble")))
    return room if sound == "room" else lambda wave: wave


def babble(wave: np.ndarray, others: list[np.ndarray], level: float) -> np.ndarray:
    """Return the speech among four other people who talk, together ``level`` decibels below it."""
    rng = np.random.default_rng(zlib.crc32(wave.tobytes()))
    chosen = [others[i] for i in rng.integers(len(others), size=4)]
    noise = np.sum([np.resize(np.roll(other, int(rng.integers(SAMPLE_RATE))), len(wave)) for other in chosen], 0)
    return (wave + noise * np.std(wave) / np.std(noise) * 10 ** (-level / 20)).astype(np.float32)


def room(wave: np.ndarray, level: float = 5) -> np.ndarray:
    """Return the speech in a room with a reverberation of 0.6 s, ``level`` decibels below the direct sound."""
    length = int(0.6 * SAMPLE_RATE)
    tail = np.random.default_rng(0).standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail *= 10 ** (-level / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return fftconvolve(wave, tail)[: len(wave)].astype(np.float32)


def gate_noise(wave: np.ndarray) -> np.ndarray:
    """Return the sound after spectral gating, which knows nothing of the noise (Sainburg et al. 2020).

    Raises:
        BadInput: noisereduce is not installed.
    """
    try:
        from noisereduce import reduce_noise
    except ImportError as error:
        raise BadInput("Spectral gating needs noisereduce: run pip install noisereduce.") from error
    return reduce_noise(y=wave, sr=SAMPLE_RATE).astype(np.float32)


def recorded_voices(footage: Path, pieces: int, seconds: int = 3) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield language, name and sound of pieces of recordings that there is no video of; Chinese is one sentence."""
    piece = seconds * SAMPLE_RATE
    for index, path in product(range(pieces), speech_paths(footage) if pieces else ()):
        chinese, wave = "chinese" in path.name, normalize_loudness(read_audio(path))
        first = 0 if chinese else index * piece
        if first + piece <= len(wave):
            language = "Chinese, sound only" if chinese else "English, other voices, sound only"
            yield language, f"{path.stem}_{index}", wave[first : first + piece]

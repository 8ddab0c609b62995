"""Generators on speakers nobody trained on, in motion: steps, guidance, noise, rooms, seeds.

    python benchmarks/generator.py --corpus CORPUS [--checkpoints sft rl] [--steps 2 4 6] [--guidance 1.5]
                                   [--sounds clean babble20 babble babble5 babble0 room] [--as-heard]
                                   [--lead] [--enhancer FOLDER] [--seeds 6]

Every clip of ``dev`` speakers by language: correlation of the lip gap and of the lower face with the real motion of
that sentence, amplitude over real amplitude, reward-side sync, and what generating costs.
English is GRID's one man, whose other sentences were trained on; Arabic are four speakers of whom nothing was.
``babble`` hears four other people 10 dB below the speech (or as many as it says), ``room`` an RT60 of 0.6 s at 5 dB;
what is measured is always against the clean sound. ``--as-heard`` adds each system without the enhancer (with it,
``untouched`` counts the clips whose sound it left as it was, to the bit). Of systems after a checkpoint's first the
share of that one's sync is printed. ``--seeds`` adds how far performances of one sentence lie apart. 95 % intervals:
bootstrap over clips. ``--lead`` lets another sentence be heard first, damaged likewise: what is measured is then speech
under way. ``generator_videos.py`` takes the same options and judges finished videos.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.signal import fftconvolve

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.evaluation.statistics import bootstrap_mean, bootstrap_ratio
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import SAMPLES_PER_FRAME, log_mel, normalize_loudness
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.enhancer import Enhancer, denoise_mel, load_enhancer
from flowportrait.models.sampler import sample_motion
from flowportrait.models.training_clips import lip_opening_per_number
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE
from flowportrait.rewards.sync import MotionSyncExpert

LANGUAGES = {"anchors": ("Arabic", 28), "grid": ("English", 72)}
"""Sources of dev clips: their language and the frames that are compared."""
SOUNDS = ("clean", "babble20", "babble", "babble5", "babble0", "room")


class Heard(NamedTuple):
    """A generator and what becomes of the sound before it hears it."""

    model: ARFlow
    sound: Callable[[np.ndarray], np.ndarray]
    enhancer: Enhancer | None


class Material(NamedTuple):
    """Clips of ``dev`` speakers, and their levelled sound by name."""

    clips: list[MotionClip]
    audio: dict[str, np.ndarray]

    def of(self, source: str, frames: int = 0) -> list[MotionClip]:
        """Clips of a source that are long enough."""
        return [clip for clip in self.clips if clip.name.startswith(source) and len(clip.motion) >= frames]


def options(description: str | None) -> argparse.ArgumentParser:
    """What both benchmarks are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--checkpoints", nargs="+", default=["sft", "rl"])
    parser.add_argument("--steps", nargs="+", type=int)
    parser.add_argument("--guidance", nargs="+", type=float)
    parser.add_argument("--sounds", nargs="+", default=["clean"], choices=SOUNDS)
    parser.add_argument("--as-heard", action="store_true", help="add each system without the enhancer")
    parser.add_argument("--enhancer", type=Path, help="folder of another than the load_enhancer one")
    parser.add_argument("--lead", action="store_true", help="another sentence is heard first, damaged likewise")
    return parser


def prepared(given: argparse.Namespace) -> tuple[Material, dict[str, Heard]]:
    """What to measure on, and the systems by name."""
    clips = load_motion_clips(given.corpus, ("dev",))
    audio = {
        clip.name: normalize_loudness(FaceClip.load(given.corpus / "clips" / f"{clip.name}.safetensors").audio)
        for clip in clips
    }
    others = list(audio.values())[::7]
    hear: dict[str, Callable[[np.ndarray], np.ndarray]] = {"clean": lambda wave: wave, "room": room}
    hear |= {name: partial(babble, others=others, level=float(name[6:] or 10)) for name in SOUNDS if "babble" in name}
    enhancer = Enhancer.load(given.enhancer) if given.enhancer else load_enhancer()
    systems: dict[str, Heard] = {}
    for checkpoint in given.checkpoints:
        config = load_generator(checkpoint).config
        for steps in given.steps or [config.steps]:
            for guidance in given.guidance or [config.guidance]:
                model = load_generator(checkpoint).requires_grad_(False)
                model.config = replace(config, steps=steps, guidance=guidance)
                label = f"{Path(checkpoint).name} {steps} steps"
                label += f" guidance {guidance:g}" if given.guidance else ""
                for sound in given.sounds:
                    name = label if sound == "clean" else f"{label} {sound}"
                    systems[name] = Heard(model, hear[sound], enhancer)
                    if given.as_heard:
                        systems[f"{name} as heard"] = Heard(model, hear[sound], None)
    return Material(clips, audio), systems


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    material, systems = prepared(given)
    clean: dict[tuple[ARFlow, str], np.ndarray] = {}
    for name, system in systems.items():
        for source in LANGUAGES:
            sync = in_motion(name, system, source, material, given.lead)
            whole = clean.setdefault((system.model, source), sync)
            if sync is not whole:
                print(f"    sync of the first sound's {share(sync, whole)}")
            if given.seeds:
                diversity(system.model, source, material, given.seeds)


def babble(wave: np.ndarray, others: list[np.ndarray], level: float) -> np.ndarray:
    """Four other people talking, together so many decibels below the speech."""
    rng = np.random.default_rng(zlib.crc32(wave.tobytes()))
    chosen = [others[i] for i in rng.integers(len(others), size=4)]
    noise = np.sum([np.resize(np.roll(other, int(rng.integers(SAMPLE_RATE))), len(wave)) for other in chosen], 0)
    return (wave + noise * np.std(wave) / np.std(noise) * 10 ** (-level / 20)).astype(np.float32)


def room(wave: np.ndarray) -> np.ndarray:
    """Reverberation of 0.6 s, 5 dB below the direct sound."""
    length = int(0.6 * SAMPLE_RATE)
    tail = np.random.default_rng(0).standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    tail *= 10 ** (-5 / 20) / np.linalg.norm(tail)
    tail[0] = 1.0
    return fftconvolve(wave, tail)[: len(wave)].astype(np.float32)


def in_motion(name: str, system: Heard, source: str, material: Material, lead: bool) -> np.ndarray:
    """Print the figures of one generator on one language; returns its sync clip by clip. ``lead``: every sentence comes
    after another one, which is not measured."""
    expert, (language, frames) = MotionSyncExpert.load(), LANGUAGES[source]
    chosen = material.of(source, frames)
    clean = np.stack([material.audio[clip.name][: frames * SAMPLES_PER_FRAME] for clip in chosen])
    sounds = np.concatenate([np.roll(clean, 1, 0), clean], 1) if lead else clean
    heard = np.stack([system.sound(wave) for wave in sounds])
    mel = torch.stack([log_mel(wave) for wave in clean])
    real = torch.stack([clip.motion[:frames] for clip in chosen])
    started = time.process_time()
    made = sample_motion(system.model, heard, list(range(len(chosen))), enhancer=system.enhancer)
    spent = 1e3 * (time.process_time() - started) / made[..., 0].numel()
    made = made[:, -frames:]
    gaps = [motion @ lip_opening_per_number() for motion in (made, real)]
    spreads = [motion[..., LOWER_FACE].std(1).mean(-1) for motion in (made, real)]
    values = {
        "lip gap": correlation(*gaps), "lower face": correlation(made[..., :8].mT, real[..., :8].mT).mean(-1),
        "amplitude": spreads[0] / spreads[1].mean(),
        "sync": expert.score(made, mel)[1], "of real": expert.score(real, mel)[1],
    }  # fmt: skip
    line = "  ".join(f"{key} {estimate(value.numpy())}" for key, value in values.items())
    if system.enhancer:
        waves = [normalize_loudness(wave) for wave in heard]
        known = [(log_mel(wave), wave) for wave in waves]
        same = sum(torch.equal(denoise_mel(system.enhancer, mel, wave)[0], mel) for mel, wave in known)
        line += f"  untouched {same}"
    print(f"{name:22s} {language:8s} {len(chosen)} clips  {line}  {spent:.2f} ms a frame", flush=True)
    return values["sync"].numpy()


def diversity(model: ARFlow, source: str, material: Material, seeds: int) -> None:
    """Print how far performances of the same sentence lie apart, over sentences."""
    _, frames = LANGUAGES[source]
    chosen = material.of(source, frames)[:24]
    sounds = np.stack([material.audio[clip.name][: frames * SAMPLES_PER_FRAME] for clip in chosen])
    rows = range(len(chosen))
    takes = torch.stack([sample_motion(model, sounds, [1000 * seed + row for row in rows]) for seed in range(seeds)])
    head, lips, pairs = takes[..., HEAD], takes @ lip_opening_per_number(), list(combinations(range(seeds), 2))
    apart = torch.stack([(head[a] - head[b]).square().mean((-1, -2)).sqrt() for a, b in pairs]).mean(0)
    same = torch.stack([correlation(lips[a], lips[b]) for a, b in pairs]).mean(0)
    across = torch.stack([correlation(take, take.roll(1, 0)) for take in lips]).mean(0)
    spread = head.square().mean((2, 3)).sqrt().mean(0)
    print(f"    heads of two seeds apart {estimate(apart.numpy())}, size of one {estimate(spread.numpy())}; "
          f"lip gap of two seeds correlates {estimate(same.numpy())}, of two sentences {estimate(across.numpy())}",
          flush=True)  # fmt: skip


def share(values: np.ndarray, whole: np.ndarray) -> str:
    """Mean over mean, and interval over clips."""
    ratio = bootstrap_ratio(values, whole)
    return f"{ratio.mean:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's over the last axis."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-6)


def estimate(values: np.ndarray) -> str:
    """Mean and interval."""
    found = bootstrap_mean(values)
    return f"{found.mean:.3f} ({found.low:.3f}–{found.high:.3f})" if found.low is not None else f"{found.mean:.3f}"


if __name__ == "__main__":
    main()

"""Noisy and reverberant speech: performed to what is heard, judged with the clean track.

    python benchmarks/noisy.py --corpus CORPUS --data FOOTAGE --output DIR [--checkpoints sft rl] [--clips 12]

    clean ─┬─► babble at 0 dB, or a room (RT60 0.6 s, direct sound as loud as its echo) ─┬─► performance ─► mp4 with the
           └─► (nothing)                                                   denoiser or not ┘   clean track ─► figures

The denoiser is spectral gating (``pip install noisereduce``; Sainburg et al. 2020). It is told nothing of the noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from arena import SIZE
from figures import ECS, LER, SYNC
from material import choice_clips as test_clips
from noisereduce import reduce_noise
from over_runs import number
from results import write
from rich.console import Console
from rich.progress import track
from scipy.signal import fftconvolve

from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.renderer import MotionCodec

DECAY = 0.6
"""Seconds in which the room's echo falls by 60 dB."""
TALKERS = 4
Damage = Callable[[np.ndarray, list[np.ndarray], np.random.Generator], np.ndarray]


def babble(speech: np.ndarray, others: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """As loud as the speech, other people talking at once."""
    chosen = rng.choice(len(others), TALKERS, replace=False)
    crowd = sum(np.roll(np.resize(others[index], len(speech)), int(rng.integers(len(speech)))) for index in chosen)
    return (speech + crowd * (speech.std() / np.std(crowd))).astype(np.float32)


def room(speech: np.ndarray, others: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Direct sound and an echo of the same energy that decays exponentially."""
    length = int(DECAY * SAMPLE_RATE)
    echo = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    echo[0] = 0
    echo /= np.linalg.norm(echo)
    echo[0] = 1
    return fftconvolve(speech, echo)[: len(speech)].astype(np.float32)


def denoised(heard: np.ndarray) -> np.ndarray:
    return reduce_noise(y=heard, sr=SAMPLE_RATE).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoints", nargs="+", default=["sft", "rl"])
    parser.add_argument("--clips", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = sorted(p for p in (given.data / "portraits").iterdir() if p.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), SIZE, path.name)) for path in images]
    clips = test_clips(given.corpus, given.clips)
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in given.checkpoints:
        animator, own = Animator.from_pretrained(name), found.setdefault(Path(name).name, {})
        told = track(list(clips.items()), f"{name}", console=Console(stderr=True))
        for index, (stem, clip) in enumerate(told):
            others = [other.audio for key, other in clips.items() if key != stem]
            for kind, heard in heard_as(clip.audio, others, index).items():
                path = given.output / "videos" / Path(name).name / kind.replace(" ", "_") / f"{stem}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                motion = torch.cat(list(animator.motion(heard, seed=index)))
                write_video(path, codecs[index % len(codecs)].decode(motion), clip.audio)
                row = measure_video(path).row
                for key in (SYNC, LER, ECS):
                    if (value := number(row, key)) is not None:
                        own.setdefault(kind, {}).setdefault(key, []).append(value)
    summary = {
        system: {kind: {key: vars(bootstrap_mean(np.array(values))) for key, values in figures.items()}
                 for kind, figures in kinds.items()}
        for system, kinds in found.items()
    }  # fmt: skip
    write(given.output / "noisy.json", json.dumps(summary, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


def heard_as(speech: np.ndarray, others: list[np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """What reaches the generator, by name."""
    sounds = {"clean": speech}
    damages: dict[str, Damage] = {"babble": babble, "room": room}
    for name, damage in damages.items():
        heard = damage(speech, others, np.random.default_rng(seed))
        sounds |= {name: heard, f"{name}, denoised": denoised(heard)}
    return sounds


if __name__ == "__main__":
    main()

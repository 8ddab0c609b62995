"""What the golden outputs are made from: photos, recordings and a video, from an installed package and arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

from tests import ROOT, TESTS

RATE = 16_000

SOURCES = os.pathsep.join(str(ROOT / folder) for folder in ("src", "weights"))
"""``PYTHONPATH`` with the packages of this checkout."""

SMALL = ("--crop", "--size", "256")
PLAIN = ("--style", "plain")
"""Motion of the generator alone, as in version 0.1."""

CASES: dict[str, tuple[str, ...]] = {
    "photo": ("--image", "photo.png", "--audio", "first.wav", *SMALL, *PLAIN, "--seed", "3",
              "--motion-out", "photo.json"),
    "whole": ("--image", "photo.png", "--audio", "first.wav", *PLAIN, "--checkpoint", "sft",
              "--motion-out", "whole.csv"),
    "controls": (
        "--image", "photo.png", "--audio", "second.wav", *SMALL, "--seed", "5", "--intensity", "1.3", "--blink", "0.5",
        "--head-motion", "1.5", "--expression-scale", "0.8", "--gaze", "10,-5", "--as-heard", *PLAIN,
        "--motion-out", "controls.json",
    ),
    "guided": (
        "--image", "photo.png", "--audio", "first.wav", *SMALL, "--guide", "sync=2,motion=0.5", *PLAIN,
        "--motion-out", "guided.json",
    ),
    "pruned": (
        "--image", "photo.png", "--audio", "first.wav", *SMALL, "--best-of", "3", "--prune", *PLAIN,
        "--motion-out", "pruned.json",
    ),
    "best": (
        "--image", "photo.png", "--audio", "first.wav", *SMALL, "--best-of", "2", "--by", "sync", *PLAIN,
        "--motion-out", "best.json",
    ),
    "from-json": ("--image", "photo.png", "--audio", "first.wav", *SMALL, "--motion-in", "kept.json"),
    "from-csv": ("--image", "photo.png", "--audio", "first.wav", *SMALL, "--motion-in", "kept.csv"),
    "dubbed": ("--video", "video.mp4", "--audio", "first.wav", "--loop"),
    "side-by-side": (
        "--speaker", "1=photo.png,first.wav", "--speaker", "2=mirrored.png,second.wav", "--turns", "--size", "128",
        *PLAIN,
    ),
    "one-photo": ("--speaker", "1=both.png,first.wav", "--speaker", "2=both.png,second.wav", *PLAIN),
    "stream": ("--image", "photo.png", "--stream", *SMALL, *PLAIN, "--seed", "3"),
    "steered-stream": ("--image", "photo.png", "--stream", *SMALL, *PLAIN, "--best-of", "2", "--prune",
                       "--by", "sync"),
}  # fmt: skip
"""Options of ``flowportrait animate`` by case; ``kept.json`` and ``kept.csv`` are performances written before."""

DATA = TESTS / "data" / "v0.1-end"
"""Where runs are started: with prompts and a tiny generator."""

FEW = ("groups=2", "group_size=4", "frames=16", "render_size=64", "seed=3", "learning_rate=0.002", "checkpoint_every=2")
_PAST = ("frames=28", "explore.keep=1", "explore.chunks=6", "learning_rate=0.0002")
AS_IN_VERSION_0_1: dict[str, tuple[str, ...]] = {
    "awm": ("objective.average_weight=0", "objective.span=1", "objective.kl_weight=0.02", "old=none"),
    "exemplar-awm": (
        "objective.average_weight=0",
        "objective.span=1",
        "objective.kl_weight=0.02",
        "old=none",
        "exemplars.inversion=straight",
    ),
    "kvpo": ("exploration.anchor=false", "objective.energy=velocity", "objective.kl=from_reference"),
    "pref-grpo": ("rewards.judge_by=measured", "credit.win_rate=all"),
    "longcat-grpo": ("objective.step_weight=rectified",),
    "branch-grpo": ("allocation.node_std=leaves",),
    "tempflow": ("plan.per_group=false",),
    "mix-grpo": ("plan.second_order=false", "same_start=false"),
    **dict.fromkeys(("exemplar-ratio", "exemplar-dpo"), ("exemplars.inversion=straight",)),
}
"""Settings with which recipes are what they were in version 0.1."""
RECIPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "flow-grpo": ("generator", FEW),
    "nft": ("generator", FEW),
    "flow-dpo": ("generator", FEW),
    "awm": ("generator", (*FEW, *AS_IN_VERSION_0_1["awm"])),
    "kvpo": (
        "sft",
        (*FEW, *_PAST, *AS_IN_VERSION_0_1["kvpo"]),
    ),  # a tiny generator hardly looks at its past, in which this recipe explores
}
"""Unlike recipes, and the checkpoint and settings that one update of each is made with."""


def training_words(recipe: str, output: Path, iterations: int = 1) -> list[str]:
    """The command of a run in ``DATA``."""
    start, settings = RECIPES[recipe]
    words = ["posttrain", "--recipe", recipe, "--start", start, "--prompts", "prompts", "--output", str(output)]
    return [*words, "--iterations", str(iterations), "--set", *settings]


def speech(seconds: float = 2.0) -> np.ndarray:
    """A voice without anybody's rights in it: a glottal buzz through three moving formants, in syllables."""
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 2 * np.pi * np.cumsum(120 + 15 * np.sin(2 * np.pi * 0.7 * time)) / RATE
    wave = np.zeros(len(time))
    for harmonic in range(1, 30):
        hertz = 120.0 * harmonic
        gain = sum(
            level * np.exp(-(((hertz - centre - swing * np.sin(2 * np.pi * 1.7 * time)) / 160) ** 2))
            for level, centre, swing in ((1.0, 550, 250), (0.6, 1500, 500), (0.3, 2500, 200))
        )
        wave += gain * np.sin(harmonic * pitch) / harmonic**0.5
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * time) + 0.3, 0, 1)
    return (0.12 * wave * syllables).astype(np.float32)


def write_speech(path: Path, seconds: float, first: float = 0.0) -> None:
    """``seconds`` of the voice from ``first`` on, as a wav file."""
    wave = speech(first + seconds)[round(first * RATE) :]
    wavfile.write(path, RATE, (32767 * wave).astype(np.int16))


def write_inputs(folder: Path, seconds: float = 1.2) -> None:
    """``photo.png``, ``mirrored.png`` and ``both.png`` (two faces), ``first.wav`` and ``second.wav``, ``video.mp4`` (a
    face that sways)."""
    from flowportrait.media.write_video import write_video

    photo = astronaut()
    face = np.ascontiguousarray(photo[:320, 60:380])
    pictures = {"photo": photo, "mirrored": photo[:, ::-1], "both": np.concatenate([face, face[:, ::-1]], 1)}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(folder / f"{name}.png")
    write_speech(folder / "first.wav", seconds)
    write_speech(folder / "second.wav", seconds, 0.5)
    write_video(folder / "video.mp4", [np.roll(face, abs(n % 16 - 8), axis=1) for n in range(20)], None, crf=10)


def run_command(
    folder: Path, *words: str, stdin: bytes | None = None, source: str = SOURCES
) -> subprocess.CompletedProcess[bytes]:
    """``flowportrait WORDS`` with ``source`` as ``PYTHONPATH``, as a process of its own in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "flowportrait", *words], cwd=folder, env=environment, input=stdin, capture_output=True,
        check=False,
    )  # fmt: skip

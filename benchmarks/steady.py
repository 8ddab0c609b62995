"""Ten minutes of talking: does the head wander, the face freeze, the colour change, the memory grow?

    python benchmarks/steady.py --corpus CORPUS --data FOOTAGE [--checkpoints sft rl] [--minutes 10] [--streams 6]
                                [--horizons 18 0] [--intensity 1.4] [--portrait IMAGE] [--live]

Half of the streams talk English (recordings one after another), half Arabic (clips of speakers nobody trained on),
each in an order and with a seed of its own. A row is a minute: mean over streams, then the change from the second
minute to the last with its 95 % interval (bootstrap over streams); see ``generator.course`` for the figures. A horizon
of 0 never starts the backbone afresh: what the restart is for. ``sync`` is the reward side's expert. With
``--portrait`` a frame a second is drawn at 128 px: ``colour`` is how far its mean colour lies from the first minute's,
in levels of 255, and ``sharpness`` the mean size of its gradients. ``--live`` sends one stream through
``GenerationSession`` instead, for the memory.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.evaluation.motion_metrics import count_blinks
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.sampler import GenerationSession, sample_motion
from flowportrait.models.training_clips import liveliness, measure_drift
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.sync import MotionSyncExpert

MINUTE = 60 * FPS
DRAWN = 128
"""Side in pixels of what is drawn for its colour."""
PAUSE = np.zeros(SAMPLE_RATE // 5, np.float32)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True, help="footage folder with speech/")
    options.add_argument("--checkpoints", nargs="+", default=["sft", "rl"])
    options.add_argument("--horizons", nargs="+", type=int, default=[18])
    options.add_argument("--minutes", type=int, default=10)
    options.add_argument("--streams", type=int, default=6)
    options.add_argument("--intensity", type=float, default=1.0)
    options.add_argument("--live", action="store_true")
    options.add_argument("--portrait", type=Path)
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.live:
        memory(load_generator(given.checkpoints[0]), stream(given, 0))
        return
    face = given.portrait
    codec = MotionCodec(Portrait.from_image(read_image(face), DRAWN, face.name)) if face else None
    sounds = np.stack([stream(given, number) for number in range(given.streams)])
    real = [clip.motion for clip in load_motion_clips(given.corpus, ("dev",)) if len(clip.motion) >= FPS]
    usual = float(torch.cat([liveliness(motion[None])[0] for motion in real]).median())
    still = float(torch.cat([liveliness(motion[None])[0] for motion in real]).lt(0.2 * usual).float().mean())
    print(f"real clips of unseen speakers: still {still:.3f}")
    for name in given.checkpoints:
        for horizon in given.horizons:
            model = load_generator(name)
            model.config = replace(model.config, horizon=horizon or given.minutes * MINUTE)
            print(f"\n{name}, {'afresh every ' + str(horizon) + ' chunks' if horizon else 'never afresh'}", flush=True)
            table(
                sample_motion(model, sounds, list(range(len(sounds))), intensity=given.intensity), sounds, usual, codec
            )


def stream(given: argparse.Namespace, number: int) -> np.ndarray:
    """Minutes of one language in an order of its own."""
    rng = np.random.default_rng(number)
    records = [json.loads(line) for line in (given.corpus / "clips.jsonl").read_text().splitlines()]
    dev = [record["name"] for record in records if record["split"] == "dev"]
    folder = given.corpus / "clips"
    if number % 2:
        pieces = [FaceClip.load(folder / f"{name}.safetensors").audio for name in dev if name.startswith("anchors")]
    else:
        pieces = [read_audio(path) for path in (given.data / "speech").glob("*.wav") if "chinese" not in path.name]
    wanted, sound = given.minutes * 60 * SAMPLE_RATE, np.zeros(0, np.float32)
    for piece in cycle([pieces[i] for i in rng.permutation(len(pieces))]):
        sound = np.concatenate([sound, normalize_loudness(piece), PAUSE])
        if len(sound) >= wanted:
            return sound[:wanted]
    raise AssertionError("a cycle has no end")


def table(motion: torch.Tensor, sounds: np.ndarray, usual: float, codec: MotionCodec | None) -> None:
    """Minute by minute, over streams ``[B, T, 30]``."""
    figures = measure_drift(motion, MINUTE, usual)
    expert = MotionSyncExpert.load()
    heard = torch.stack([log_mel(sound) for sound in sounds])
    parts = zip(motion.split(MINUTE, 1), heard.split(4 * MINUTE, 1), strict=True)
    figures["sync"] = torch.stack([expert.score(made, mel)[1] for made, mel in parts], 1)
    basis = MotionBasis.load()
    figures["blinks a minute"] = torch.tensor([
        [60 * FPS / MINUTE * count_blinks(basis.shape(part, basis.canonical).numpy()) for part in own.split(MINUTE)]
        for own in motion
    ])  # fmt: skip
    if codec is not None:
        figures |= looks(motion, codec)
    minutes = range(1, figures["still"].shape[1] + 1)
    print(f"{'minute':20s}" + "".join(f"{minute:7d}" for minute in minutes) + "   last − 2nd")
    for name, values in figures.items():
        change = bootstrap_mean((values[:, -1] - values[:, min(1, values.shape[1] - 1)]).numpy())
        spread = "" if change.low is None else f" ({change.low:+.3f} … {change.high:+.3f})"
        row = "".join(f"{value:7.3f}" for value in values.mean(0).tolist())
        print(f"{name:20s}{row}   {change.mean:+.3f}{spread}", flush=True)


def looks(motion: torch.Tensor, codec: MotionCodec) -> dict[str, torch.Tensor]:
    """Colour and sharpness of the picture ``[B, M]``, from a frame a second."""
    colour, sharp = [], []
    for own in motion:
        frames = np.stack(list(codec.decode(own[FPS - 1 :: FPS]))).astype(np.float32)
        means = torch.from_numpy(frames.mean((1, 2))).unflatten(0, (-1, 60)).mean(1)
        colour.append((means - means[0]).abs().amax(-1))
        across, down = np.abs(np.diff(frames, axis=2)).mean((1, 2, 3)), np.abs(np.diff(frames, axis=1)).mean((1, 2, 3))
        sharp.append(torch.from_numpy(across + down).unflatten(0, (-1, 60)).mean(1))
    return {"colour": torch.stack(colour), "sharpness": torch.stack(sharp)}


def memory(model: ARFlow, sound: np.ndarray) -> None:
    """One live stream, second by second."""
    session, resident = GenerationSession(model.requires_grad_(False)), []
    for second in range(len(sound) // SAMPLE_RATE):
        for _ in session.push(sound[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]):
            pass
        if second % 60 == 59:
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    print("live session, resident MB at each minute's end: " + " ".join(f"{value:.0f}" for value in resident))


if __name__ == "__main__":
    main()

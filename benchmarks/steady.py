"""Ten minutes of talking: does the head wander, the face freeze, the colour change, the memory grow?

    python benchmarks/steady.py --corpus CORPUS --data FOOTAGE [--checkpoints sft rl] [--minutes 10] [--streams 6]
                                [--horizons 18 0] [--live [--portrait IMAGE]]

Half of the streams talk English (recordings one after another), half Arabic (clips of speakers nobody trained on),
each in an order and with a seed of its own. A row is a minute: mean over streams, then the change from the second
minute to the last with its 95 % interval (bootstrap over streams); see ``generator.course`` for the figures. A horizon
of 0 never starts the backbone afresh: what the restart is for. ``sync`` is the reward side's expert. ``--live`` sends
one stream through ``GenerationSession`` instead, for the memory, and with ``--portrait`` the colour of the picture.
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

from flowportrait.checkpoints import load_generator
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.corpus.clip import Clip
from flowportrait.corpus.motion_set import load_motion
from flowportrait.evaluate.compare import bootstrap
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.course import course, liveliness
from flowportrait.generator.live import GenerationSession
from flowportrait.generator.perform import perform
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.mel import level, log_mel
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.reward.sync import SyncExpert

MINUTE = 60 * FPS
PAUSE = np.zeros(SAMPLE_RATE // 5, np.float32)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True, help="footage folder with speech/")
    options.add_argument("--checkpoints", nargs="+", default=["sft", "rl"])
    options.add_argument("--horizons", nargs="+", type=int, default=[18])
    options.add_argument("--minutes", type=int, default=10)
    options.add_argument("--streams", type=int, default=6)
    options.add_argument("--live", action="store_true")
    options.add_argument("--portrait", type=Path)
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.live:
        memory(load_generator(given.checkpoints[0]), stream(given, 0), given.portrait)
        return
    sounds = np.stack([stream(given, number) for number in range(given.streams)])
    real = [clip.motion for clip in load_motion(given.corpus, ("dev",)) if len(clip.motion) >= FPS]
    usual = float(torch.cat([liveliness(motion[None])[0] for motion in real]).median())
    still = float(torch.cat([liveliness(motion[None])[0] for motion in real]).lt(0.2 * usual).float().mean())
    print(f"real clips of unseen speakers: still {still:.3f}")
    for name in given.checkpoints:
        for horizon in given.horizons:
            model = load_generator(name)
            model.config = replace(model.config, horizon=horizon or given.minutes * MINUTE)
            print(f"\n{name}, {'afresh every ' + str(horizon) + ' chunks' if horizon else 'never afresh'}", flush=True)
            table(model, sounds, usual)


def stream(given: argparse.Namespace, number: int) -> np.ndarray:
    """Minutes of one language in an order of its own."""
    rng = np.random.default_rng(number)
    records = [json.loads(line) for line in (given.corpus / "clips.jsonl").read_text().splitlines()]
    dev = [record["name"] for record in records if record["split"] == "dev"]
    folder = given.corpus / "clips"
    if number % 2:
        pieces = [Clip.load(folder / f"{name}.safetensors").audio for name in dev if name.startswith("anchors")]
    else:
        pieces = [read_audio(path) for path in (given.data / "speech").glob("*.wav") if "chinese" not in path.name]
    wanted, sound = given.minutes * 60 * SAMPLE_RATE, np.zeros(0, np.float32)
    for piece in cycle([pieces[i] for i in rng.permutation(len(pieces))]):
        sound = np.concatenate([sound, level(piece), PAUSE])
        if len(sound) >= wanted:
            return sound[:wanted]
    raise AssertionError("a cycle has no end")


def table(model: ARFlow, sounds: np.ndarray, usual: float) -> None:
    """Minute by minute, over streams."""
    motion = perform(model, sounds, list(range(len(sounds))))
    figures = course(motion, MINUTE, usual)
    expert = SyncExpert.load()
    heard = torch.stack([log_mel(sound) for sound in sounds])
    parts = zip(motion.split(MINUTE, 1), heard.split(4 * MINUTE, 1), strict=True)
    figures["sync"] = torch.stack([expert.score(made, mel)[1] for made, mel in parts], 1)
    minutes = range(1, figures["still"].shape[1] + 1)
    print(f"{'minute':20s}" + "".join(f"{minute:7d}" for minute in minutes) + "   last − 2nd")
    for name, values in figures.items():
        change = bootstrap((values[:, -1] - values[:, min(1, values.shape[1] - 1)]).numpy())
        spread = "" if change.low is None else f" ({change.low:+.3f} … {change.high:+.3f})"
        row = "".join(f"{value:7.3f}" for value in values.mean(0).tolist())
        print(f"{name:20s}{row}   {change.mean:+.3f}{spread}", flush=True)


def memory(model: ARFlow, sound: np.ndarray, portrait: Path | None) -> None:
    """One live stream, second by second."""
    session = GenerationSession(model.requires_grad_(False))
    codec = MotionCodec(Portrait.from_image(read_image(portrait), 256, portrait.name)) if portrait else None
    resident, colours = [], []
    for second in range(len(sound) // SAMPLE_RATE):
        made = list(session.push(sound[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]))
        if codec is not None and made:
            colours.append(next(iter(codec.decode(made[-1][-1:]))).mean((0, 1)))
        if second % 60 == 59:
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    print("live session, resident MB at each minute's end: " + " ".join(f"{value:.0f}" for value in resident))
    if colours:
        whole = np.array(colours)
        means = np.stack([part.mean(0) for part in np.array_split(whole, len(resident))])
        farthest = np.abs(means - means[0]).max()
        print(f"picture's mean colour, farthest of a minute from the first: {farthest:.2f} levels of 255")


if __name__ == "__main__":
    main()

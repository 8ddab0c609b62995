"""Generators on speakers nobody trained on: in motion, and as the evaluation side sees finished videos.

    python benchmarks/generator.py --corpus CORPUS [--checkpoints sft rl] [--steps 6] [--guidance 1.5]
                                   [--portraits FOLDER --clips 24 --output DIR]

Motion (every clip of ``dev`` speakers, by source): correlation of the lip gap and of the lower face with the real
motion of that sentence, amplitude over real amplitude, reward-side sync. With ``--portraits``, videos of 256 px
are rendered and judged by the evaluation side's expert (LSE-C at zero offset, LER), beside the real motion redrawn,
a jaw driven by loudness, and the motion of another sentence. Bootstrap 95 % intervals over clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flowportrait.animator import Animator
from flowportrait.checkpoints import load_generator
from flowportrait.codec import lips
from flowportrait.codec.basis import LOWER, MotionBasis
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.corpus.clip import Clip
from flowportrait.corpus.motion_set import MotionClip, load_motion
from flowportrait.evaluate.baselines import loudness_jaw
from flowportrait.evaluate.offsets import measure_sync
from flowportrait.evaluate.tracked import track_file
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.sample import generate_motion
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import write_video
from flowportrait.reward.sync import SyncExpert

FRAMES = {"anchors": 28, "grid": 72}
"""Sources of dev clips and the length that is compared."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    options.add_argument("--checkpoints", nargs="+", default=["sft", "rl"])
    options.add_argument("--steps", nargs="+", type=int)
    options.add_argument("--guidance", nargs="+", type=float)
    options.add_argument("--portraits", type=Path)
    options.add_argument("--clips", type=int, default=24)
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    torch.set_num_threads(1)
    clips = load_motion(given.corpus, ("dev",))
    systems: dict[str, ARFlow] = {}
    for name in given.checkpoints:
        loaded = load_generator(name)
        for steps in given.steps or [loaded.config.steps]:
            for guidance in given.guidance or [loaded.config.guidance]:
                model = load_generator(name)
                model.config = replace(model.config, steps=steps, guidance=guidance)
                systems[f"{Path(name).name} steps {steps} guidance {guidance:g}"] = model
    for system, model in systems.items():
        print(system, json.dumps(in_motion(model, clips)), flush=True)
    if given.portraits:
        finished(given, systems)


def in_motion(model: ARFlow, clips: list[MotionClip]) -> dict[str, dict[str, float]]:
    """The figures of one generator by source."""
    opening, expert, table = lip_gap(), SyncExpert.load(), {}
    for source, frames in FRAMES.items():
        chosen = [clip for clip in clips if clip.name.startswith(source) and len(clip.motion) >= frames]
        if not chosen:
            continue
        mel = torch.stack([clip.mel[: 4 * frames] for clip in chosen])
        real = torch.stack([clip.motion[:frames] for clip in chosen])
        made = generate_motion(model, mel, list(range(len(chosen))))
        lower = correlation(made[..., :8].mT, real[..., :8].mT).mean(-1)
        amplitude = made[..., LOWER].std(1).mean() / real[..., LOWER].std(1).mean()
        values = {
            "lip gap": correlation(made @ opening, real @ opening).mean(), "lower face": lower.mean(),
            "amplitude": amplitude, "sync": expert.score(made, mel)[1].mean(),
            "sync of real": expert.score(real, mel)[1].mean(),
        }  # fmt: skip
        table[source] = {name: round(float(value), 3) for name, value in values.items()} | {"clips": len(chosen)}
    return table


def lip_gap() -> torch.Tensor:
    """How far each motion number opens the lips ``[30]``; the gap is linear in them."""
    basis = MotionBasis.load()
    flat = torch.zeros(1, *basis.canonical.shape)
    at_rest = lips.gap(basis.shape(torch.zeros(1, 30), flat)).mean()
    return torch.stack([lips.gap(basis.shape(row[None], flat)).mean() - at_rest for row in torch.eye(30)])


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson's over the last axis."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-6)


def finished(given: argparse.Namespace, systems: dict[str, ARFlow]) -> None:
    """Render and judge."""
    found: dict[str, list[tuple[float, float]]] = {}
    for system, stem, codec, motion, sound in takes(given, systems):
        path = given.output / system.replace(" ", "_") / f"{stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_video(path, codec.decode(motion), sound)
        sync = measure_sync(track_file(path))
        if sync is not None:
            found.setdefault(system, []).append((sync.in_time, sync.errors / max(1, sync.ler_windows)))
    rng = np.random.default_rng(0)
    for system, rows in found.items():
        values = np.array(rows)
        means = values[rng.integers(len(values), size=(2000, len(values)))].mean(1)
        low, high = np.quantile(means, (0.025, 0.975), axis=0)
        print(f"{system:36s} clips {len(values)}  LSE-C at 0 {values[:, 0].mean():.3f} ({low[0]:.3f}–{high[0]:.3f})"
              f"  LER {values[:, 1].mean():.2f} ({low[1]:.2f}–{high[1]:.2f})")  # fmt: skip


def takes(
    given: argparse.Namespace, systems: dict[str, ARFlow]
) -> Iterator[tuple[str, str, MotionCodec, torch.Tensor, np.ndarray]]:
    """System, clip, whom to draw, motion, sound; the same clip has the same seed in every system."""
    basis = MotionBasis.load()
    records = [json.loads(line) for line in (given.corpus / "clips.jsonl").read_text().splitlines()]
    names = [r["name"] for r in records if r["split"] == "dev" and r["frames"] < 60]
    names = [names[i] for i in np.linspace(0, len(names) - 1, given.clips).astype(int)]
    paths = sorted(path for path in given.portraits.iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), 256, path.name)) for path in paths]
    before = None
    for index, name in enumerate(names):
        clip = Clip.load(given.corpus / "clips" / f"{name}.safetensors")
        real = basis.encode(clip.landmarks, clip.blendshapes)[0]
        codec, stem = codecs[index % len(codecs)], Path(name).stem
        yield "real motion", stem, codec, real, clip.audio
        yield "loudness jaw", stem, codec, loudness_jaw(real, clip.audio), clip.audio
        if before is not None:
            other = before[torch.arange(len(real)) % len(before)]
            yield "another sentence", stem, codec, other, clip.audio
        before = real
        for system, model in systems.items():
            motion = torch.cat(list(Animator(model).motion(clip.audio, seed=index)))
            yield system, stem, codec, motion, clip.audio


if __name__ == "__main__":
    main()

"""Do eyes and head live as real ones do, in speech and in silence?

    python benchmarks/alive.py --corpus CORPUS [--checkpoints sft rl] [--steps 4 6]

Blinks a minute and frames a blink lasts (lids less than half open), spread of gaze (% of the eye's width), range of
the head (5–95 %, degrees), its speed (degrees a second, median), share of its motion faster than 1 Hz. Real: clips
of ``dev`` speakers, and the long recordings that were trained on. Made: the same sentences, and 48 s of silence eight
times. Real motion is tracked, made motion calmed; both are drawn from the same 30 numbers. 95 % intervals: bootstrap
over clips.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from generator import LANGUAGES, Material, estimate

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.evaluation.motion_metrics import count_blinks, eye_aperture, gaze_std, head_range
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import SAMPLES_PER_FRAME, normalize_loudness
from flowportrait.media.video import FPS
from flowportrait.models.arflow import load_generator
from flowportrait.models.sampler import sample_motion
from flowportrait.rendering.motion_basis import HEAD, MotionBasis

SILENCES, SILENT_SECONDS = 8, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--checkpoints", nargs="+", default=["sft", "rl"])
    parser.add_argument("--steps", nargs="+", type=int, default=[0], help="sampling steps, 0: the checkpoint's own")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clips = load_motion_clips(given.corpus, ("dev",))
    audio = {
        clip.name: normalize_loudness(FaceClip.load(given.corpus / "clips" / f"{clip.name}.safetensors").audio)
        for clip in clips
    }
    long = [clip.motion for clip in load_motion_clips(given.corpus, ("reward", "evaluation")) if len(clip.motion) > 400]
    line("real, long recordings", [part for motion in long for part in motion.split(10 * FPS) if len(part) == 10 * FPS])
    chosen = {source: Material(clips, audio).of(source, frames) for source, (_, frames) in LANGUAGES.items()}
    for source, (language, frames) in LANGUAGES.items():
        line(f"real, {language}", [clip.motion[:frames] for clip in chosen[source]])
    for checkpoint, steps in product(given.checkpoints, given.steps):
        model = load_generator(checkpoint).requires_grad_(False)
        model.config = replace(model.config, steps=steps or model.config.steps)
        name = f"{checkpoint} {steps} steps" if steps else checkpoint
        for source, (language, frames) in LANGUAGES.items():
            sounds = np.stack([audio[clip.name][: frames * SAMPLES_PER_FRAME] for clip in chosen[source]])
            line(f"{name}, {language}", list(sample_motion(model, sounds, list(range(len(sounds))))))
        silence = np.zeros((SILENCES, SILENT_SECONDS * SAMPLE_RATE), np.float32)
        line(f"{name}, silence", list(sample_motion(model, silence, list(range(SILENCES)))))


def line(name: str, motions: list[torch.Tensor]) -> None:
    """One row, over clips ``[T, 30]``."""
    rows = np.array([figures(motion) for motion in motions])
    names = ("blinks", "blink lasts", "gaze", "head range", "head speed", "over 1 Hz")
    found = [values[np.isfinite(values)] for values in rows.T]
    cells = [f"{label} {estimate(values)}" for label, values in zip(names, found, strict=True) if len(values)]
    print(f"{name:22s} {len(rows):3d} clips  " + "  ".join(cells), flush=True)


def figures(motion: torch.Tensor) -> list[float]:
    """The six of one clip; NaN where there is nothing to measure."""
    basis = MotionBasis.load()
    shape = basis.shape(motion, basis.canonical).numpy()
    turn = np.degrees((motion[:, HEAD] * basis.head_std)[:, :3].numpy())
    count, aperture = count_blinks(shape), eye_aperture(shape)
    shut = (aperture < 0.5 * np.quantile(aperture, 0.9)).sum() / count if count else np.nan
    power = (np.abs(np.fft.rfft(turn - turn.mean(0), axis=0)) ** 2).sum(1)
    fast = power[np.fft.rfftfreq(len(turn), 1 / FPS) > 1].sum() / max(float(power.sum()), 1e-9)
    speed = FPS * np.median(np.linalg.norm(np.diff(turn, axis=0), axis=1))
    return [60 * FPS * count / len(motion), shut, gaze_std(shape), head_range(turn), speed, fast]


if __name__ == "__main__":
    main()

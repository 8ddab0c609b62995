"""Does a performance follow when more or less of it is asked for, and do its lips stay in time?

    python benchmarks/intensity.py --corpus CORPUS [--checkpoint sft] [--clips 24]

Spread of lips (gap), brows and head over that at intensity 1, and reward-side sync, on sentences of ``dev`` speakers.
``intensity``: as ``models.conditioning`` asks; ``style``: the factor's logarithm is added to the style's log
amplitudes; ``scaled``: the neutral performance times the factor. 95 % intervals: bootstrap over clips.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from generator import LANGUAGES, Material, estimate

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.media.mel import SAMPLES_PER_FRAME, log_mel, normalize_loudness
from flowportrait.models.arflow import load_generator
from flowportrait.models.sampler import sample_motion
from flowportrait.models.speech_encoder import STYLE_LIPS
from flowportrait.models.training_clips import lip_opening_per_number
from flowportrait.rendering.motion_basis import BROWS, HEAD
from flowportrait.rewards.sync import MotionSyncExpert

INTENSITIES = (0.6, 0.8, 1.25, 1.6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--checkpoint", default="sft")
    parser.add_argument("--clips", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, clips = load_generator(given.checkpoint).requires_grad_(False), load_motion_clips(given.corpus, ("dev",))
    audio = {
        clip.name: normalize_loudness(FaceClip.load(given.corpus / "clips" / f"{clip.name}.safetensors").audio)
        for clip in clips
    }
    for source, (language, frames) in LANGUAGES.items():
        chosen = Material(clips, audio).of(source, frames)[: given.clips]
        sounds = np.stack([audio[clip.name][: frames * SAMPLES_PER_FRAME] for clip in chosen])
        mel, seeds = torch.stack([log_mel(sound) for sound in sounds]), list(range(len(chosen)))
        neutral = sample_motion(model, sounds, seeds)
        print(f"\n{language}: {len(chosen)} clips, {given.checkpoint}")
        line("neutral", neutral, neutral, mel)
        for intensity in INTENSITIES:
            style = model.rest_style.clone()
            style[STYLE_LIPS:] += math.log(intensity)
            line(f"intensity {intensity:g}", sample_motion(model, sounds, seeds, intensity=intensity), neutral, mel)
            line(f"style {intensity:g}", sample_motion(model, sounds, seeds, style=style), neutral, mel)
            line(f"scaled {intensity:g}", intensity * neutral, neutral, mel)


def line(name: str, made: torch.Tensor, neutral: torch.Tensor, mel: torch.Tensor) -> None:
    """One row."""
    ratios = {part: (spread(made, part) / spread(neutral, part).mean()).numpy() for part in ("lips", "brows", "head")}
    sync = MotionSyncExpert.load().score(made, mel)[1].numpy()
    print(f"  {name:14s} " + "  ".join(f"{part} {estimate(values)}" for part, values in ratios.items())
          + f"  sync {estimate(sync)}", flush=True)  # fmt: skip


def spread(motion: torch.Tensor, part: str) -> torch.Tensor:
    """Standard deviation over time ``[B]``."""
    if part == "lips":
        return (motion @ lip_opening_per_number()).std(1)
    return motion[..., BROWS if part == "brows" else HEAD].std(1).mean(-1)


if __name__ == "__main__":
    main()

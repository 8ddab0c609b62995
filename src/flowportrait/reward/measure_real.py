"""Measure what real motion looks like to the rewards, on training speakers, and store it beside the basis.

    python -m flowportrait.reward.measure_real CORPUS OUTPUT.json

It also keeps what ``reward.crowd`` compares with, and prints how often these speakers blink
(``habits.BLINKS_PER_SECOND``).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from flowportrait.codec.basis import BLINK
from flowportrait.corpus.motion_set import load_motion
from flowportrait.media.video import FPS
from flowportrait.reward import crowd
from flowportrait.reward.habits import blinks
from flowportrait.reward.liveliness import RealMotion

FRAMES = crowd.FRAMES
PER_SPEAKER = 12


def real_windows(corpus: Path) -> torch.Tensor:
    """Windows ``[N, 28, 30]`` of every training speaker, the same number from each."""
    tracks: dict[str, list[torch.Tensor]] = {}
    count, seconds = 0, 0.0
    for clip in load_motion(corpus, ("reward", "evaluation")):
        if len(clip.motion) >= FRAMES:
            tracks.setdefault(clip.speaker, []).append(clip.motion.unfold(0, FRAMES, FRAMES).mT)
            count += blinks(clip.motion[:, BLINK].mean(-1).numpy())
            seconds += len(clip.motion) / FPS
    print(f"{count / seconds:.2f} blinks a second")
    windows = [torch.cat(own) for own in tracks.values()]
    return torch.cat([own[torch.linspace(0, len(own) - 1, PER_SPEAKER).long()] for own in windows])


if __name__ == "__main__":
    real = real_windows(Path(sys.argv[1]))
    Path(sys.argv[2]).write_text(RealMotion.measure(real).to_json() + "\n", encoding="utf-8")
    crowd.keep(real)

"""Measure what real motion looks like to the rewards, on training speakers, and store it beside the basis.

    python -m flowportrait.reward.measure_real CORPUS OUTPUT.json

The pixel rewards are measured on real motion drawn by the same small rendering that post-training uses, on one
public portrait.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from skimage.data import astronaut

from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.corpus.motion_set import load_motion
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS
from flowportrait.media.portrait import Portrait
from flowportrait.posttrain.drawing import Drawing
from flowportrait.reward.interface import RewardBatch
from flowportrait.reward.liveliness import RealMotion
from flowportrait.reward.pixels import Perceptual, Temporal

FRAMES = 28
DRAWN_SIZE = 128
PER_SPEAKER = 12


def measure(corpus: Path) -> RealMotion:
    """Statistics of every training speaker's windows, the same number from each."""
    tracks: dict[str, list[torch.Tensor]] = {}
    for clip in load_motion(corpus, ("reward", "evaluation")):
        if len(clip.motion) >= FRAMES:
            tracks.setdefault(clip.speaker, []).append(clip.motion.unfold(0, FRAMES, FRAMES).mT)
    windows = [torch.cat(own) for own in tracks.values()]
    chosen = torch.cat([own[torch.linspace(0, len(own) - 1, PER_SPEAKER).long()] for own in windows])
    draw = Drawing([MotionCodec(Portrait.from_image(astronaut()), DRAWN_SIZE)], [0] * len(chosen), DRAWN_SIZE)
    batch = RewardBatch(chosen, torch.zeros(len(chosen), FRAMES * MELS_PER_FRAME, N_MELS), draw)
    return RealMotion.measure(chosen, Perceptual.measure(batch), Temporal.measure(batch))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(measure(Path(sys.argv[1])).to_json() + "\n")

"""Babble around voices that nothing was trained on: what is left of a performance, by what takes the noise off.

    python benchmarks/fronts_in_noise.py --corpus CORPUS --data FOOTAGE [--checkpoint rl] [--levels 10 5] [--pieces 28]

    clean ─► ears ─► lips [T, 16], tokens [T, width]   ┐
    noisy ─► front ─► ears ─► lips, tokens             ┘ mean square apart, in variances of the clean ones; 0 at best

Pieces of 3 s of English voices, of each recording in turn, each after another piece under the same babble of four
voices of ``dev``. Fronts: none, spectral gating (``pip install noisereduce``), the enhancer's GRU alone, and the
enhancer as it ships, isolator and all. Sync is the reward side's, in motion, with the clean sound. The intervals are
over pieces; ``generator_videos.py`` judges finished videos of the same voices.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from generator import babble, estimate, share
from generator_videos import unseen_voices
from noisereduce import reduce_noise
from tools.train_enhancer import generator_features

from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import SAMPLES_PER_FRAME, log_mel, normalize_loudness
from flowportrait.models.arflow import load_generator
from flowportrait.models.enhancer import Enhancer, denoise_mel, load_enhancer
from flowportrait.models.sampler import sample_motion
from flowportrait.rewards.sync import MotionSyncExpert

FRAMES = 72
"""Of a piece that are measured: whole chunks."""
LIPS = 16
"""Numbers of the lip reader, which come first among the features."""
MOST_PIECES = 20
"""Of one recording."""


def fronts() -> dict[str, Enhancer | None]:
    """By name; what is gated is the sound."""
    alone = copy.deepcopy(load_enhancer())
    alone.isolator = None
    return {"as heard": None, "gated": None, "GRU alone": alone, "shipped": load_enhancer()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", default="rl")
    parser.add_argument("--levels", type=float, nargs="+", default=[10, 5], help="decibels of speech over babble")
    parser.add_argument("--pieces", type=int, default=28)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, expert = load_generator(given.checkpoint).requires_grad_(False), MotionSyncExpert.load()
    names = [clip.name for clip in load_motion_clips(given.corpus, ("dev",))][::7]
    others = [normalize_loudness(FaceClip.load(given.corpus / "clips" / f"{name}.safetensors").audio) for name in names]
    found = unseen_voices(given.data / "speech", MOST_PIECES)
    voices = np.stack([wave[: FRAMES * SAMPLES_PER_FRAME] for language, _, wave in found if "English" in language])
    sounds = np.concatenate([np.roll(voices, 1, 0), voices], 1)[: given.pieces]
    spoken = torch.stack([log_mel(wave) for wave in voices[: given.pieces]])

    def sync(heard: np.ndarray, front: Enhancer | None) -> np.ndarray:
        made = sample_motion(model, heard, list(range(len(heard))), enhancer=front)[:, -FRAMES:]
        return expert.score(made, spoken)[1].numpy()

    def hears(heard: np.ndarray, front: Enhancer | None) -> torch.Tensor:
        waves = [normalize_loudness(wave) for wave in heard]
        mels = [log_mel(wave) for wave in waves]
        if front is not None:
            mels = [denoise_mel(front, mel, wave)[0] for mel, wave in zip(mels, waves, strict=True)]
        return torch.cat([generator_features(model, mel[None])[:, -FRAMES:] for mel in mels])

    clean, whole = hears(sounds, None), sync(sounds, None)
    spread = clean.flatten(0, 1).std(0)
    for decibels in given.levels:
        noisy = np.stack([babble(sound, others, decibels) for sound in sounds])
        for name, front in fronts().items():
            heard = np.stack([gated(wave) for wave in noisy]) if name == "gated" else noisy
            apart = ((hears(heard, front) - clean) / spread).square()
            parts = {"lips": apart[..., :LIPS], "tokens": apart[..., LIPS:]}
            line = "  ".join(f"{key} {estimate(value.mean((1, 2)).numpy())}" for key, value in parts.items())
            kept = share(sync(heard, front), whole)
            print(f"{decibels:g} dB  {name:10s} {len(sounds)} pieces  sync left {kept}  {line}", flush=True)


def gated(wave: np.ndarray) -> np.ndarray:
    return reduce_noise(y=wave, sr=SAMPLE_RATE).astype(np.float32)


if __name__ == "__main__":
    main()

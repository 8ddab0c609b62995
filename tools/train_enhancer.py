"""Train the enhancer.

    python -m tools.train_enhancer CORPUS OUTPUT [--minutes 12] [--checkpoint sft]

    noisy = speech + babble, coloured noise or music at 0–20 dB, in a room or not       target: the speech alone
    L = |log-mel − log-mel of the speech| + ‖level − level of the speech over the noise‖²
      + ‖features of the generator − those of the speech alone‖²                      in the last part of the time

The last term goes through the frozen audio side of the checkpoint: Whisper's layer, the lip reader and the audio
encoder. A state is written every minute, which the same command goes on from; it goes when the weights are there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.data.corpus import read_clips
from flowportrait.data.motion_dataset import TRAINING_SPLITS
from flowportrait.files import complete
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import HOP, N_MELS, SAMPLES_PER_FRAME, gain, level, log_mel
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.enhancer import CLEANEST, Enhancer
from flowportrait.models.speech_encoder import SILENCE
from flowportrait.models.training_clips import NOISE_DB, babble, coloured, loudness, reverberate
from flowportrait.training.descend import GuardedStep

FRAMES, BATCH = 76, 12
SPEED = (0.85, 1.2)
"""Voices made deeper and higher; no lips need to follow."""
LEARNING_RATE = 1.5e-3
STATE = "state.pt"
TOLD_FROM = 0.4
"""Share of the time after which the generator's features count too."""


def mixture(sounds: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Speech of ``FRAMES`` with noise, without it, and by how many decibels it exceeds the noise."""
    length = FRAMES * SAMPLES_PER_FRAME
    sound = sounds[int(rng.integers(len(sounds)))]
    most = int(SPEED[1] * length) + 2
    sound = sound[int(rng.integers(max(1, len(sound) - most))) :][:most]
    place = np.arange(0, len(sound) - 1, rng.uniform(*SPEED))
    speech = np.interp(place, np.arange(len(sound)), sound)
    while len(speech) < length:
        other = sounds[int(rng.integers(len(sounds)))]
        speech = np.concatenate([speech, other * (loudness(speech) / max(loudness(other), 1e-9))])
    speech = speech[:length]
    if rng.random() < 0.15:
        speech[: int(rng.uniform(0, 1) * SAMPLE_RATE)] *= 10 ** -rng.uniform(1, 3)
    added = np.zeros(length)
    if rng.random() < 0.2:
        added += reverberate(speech, rng) - speech
    if rng.random() < 0.75:
        noise = some_noise(sounds, length, rng)
        below = 10 ** (-rng.uniform(*NOISE_DB) / 20)
        added += noise * (loudness(speech) / max(loudness(noise), 1e-9)) * below
    ratio = 20 * np.log10(max(loudness(speech), 1e-9) / max(loudness(added), 1e-9))
    noisy = speech + added
    factor = gain((noisy.reshape(-1, HOP) ** 2).mean(1)) * 10 ** (rng.uniform(-3, 3) / 20)
    return noisy * factor, speech * factor, min(ratio, CLEANEST)


def some_noise(sounds: list[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Two thirds voices, a fifth coloured noise, else music."""
    kind = rng.random()
    if kind < 0.67:
        return babble(sounds, length, rng)
    return coloured(length, rng) if kind < 0.87 else music(length, rng)


def music(length: int, rng: np.random.Generator) -> np.ndarray:
    """Chords of struck strings: harmonics that decay, a new chord every quarter to whole second."""
    total, at = np.zeros(length), 0
    while at < length:
        clock = np.arange(min(SAMPLE_RATE, length - at)) / SAMPLE_RATE
        for pitch in 110.0 * 2 ** (rng.integers(0, 36, 4) / 12):
            for harmonic in range(1, 7):
                tone = np.sin(2 * np.pi * harmonic * pitch * clock) * np.exp(-4 * clock)
                total[at : at + len(clock)] += tone / harmonic
        at += int(rng.uniform(0.25, 1.0) * SAMPLE_RATE)
    return total


def batch(sounds: list[np.ndarray], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-mel of noisy and of clean speech ``[B, 4 FRAMES, 80]`` and levels ``[B]`` in decibels."""
    noisy, clean, levels = zip(*(mixture(sounds, rng) for _ in range(BATCH)), strict=True)
    both = log_mel(np.stack([*noisy, *clean]).clip(-1, 1).astype(np.float32))
    return both[:BATCH], both[BATCH:], torch.tensor(levels, dtype=torch.float32)


def generator_features(model: ARFlow, mel: torch.Tensor) -> torch.Tensor:
    """Features that the generator is given ``[B, T, 16 + width]``: where the lips are, and those of its tokens."""
    assert model.lip_reader is not None
    features = model.audio_features(mel)
    lips, encoded = model.lip_reader(features), model.audio_encoder(features)
    return torch.cat([lips, encoded], -1)


def learn(enhancer: Enhancer, model: ARFlow, sounds: list[np.ndarray], minutes: float, state: Path) -> None:
    """Train in place for so many minutes of processor time in all, going on from ``state``."""
    optimizer = torch.optim.AdamW(enhancer.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    guarded_step = GuardedStep(enhancer.parameters(), optimizer)
    spent, step = 0.0, 0
    if state.is_file():
        kept = torch.load(state, weights_only=True)
        enhancer.load_state_dict(kept["enhancer"])
        optimizer.load_state_dict(kept["optimizer"])
        spent, step = kept["spent"], kept["step"]
    rng, running, reported_at = np.random.default_rng(step), np.zeros(3), time.process_time()
    _, clean, _ = batch(sounds, np.random.default_rng(0))
    spread = generator_features(model, clean).flatten(0, 1).std(0)
    while spent < 60 * minutes:
        began, share = time.process_time(), spent / (60 * minutes)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * max(0.02, 1 - share)
        losses = losses_of(enhancer, model if share > TOLD_FROM else None, spread, *batch(sounds, rng))
        optimizer.zero_grad()
        losses.sum().backward()
        guarded_step(step + 1)
        running += 0.02 * (losses.detach().numpy() - running)
        step, spent = step + 1, spent + time.process_time() - began
        if time.process_time() - reported_at > 60:
            reported_at = time.process_time()
            print(f"{spent / 60:.1f} min, step {step}: mel {running[0]:.4f} level {running[1]:.4f} "
                  f"features {running[2]:.4f}", flush=True)  # fmt: skip
            kept = {"enhancer": enhancer.state_dict(), "optimizer": optimizer.state_dict()}
            with complete(state) as partial:
                torch.save(kept | {"spent": spent, "step": step}, partial)


def losses_of(
    enhancer: Enhancer,
    model: ARFlow | None,
    spread: torch.Tensor,
    noisy: torch.Tensor,
    clean: torch.Tensor,
    levels: torch.Tensor,
) -> torch.Tensor:
    """Log-mel, level and features ``[3]``; the last 0 without a model."""
    lead = noisy.new_full((len(noisy), 1, N_MELS), SILENCE)
    groups = torch.cat([lead, noisy[:, :-1]], 1).reshape(len(noisy), FRAMES, -1)
    added, found, _ = enhancer(groups)
    enhanced = (groups - added).reshape(len(noisy), -1, N_MELS)[:, 1:]
    mel = F.l1_loss(enhanced, clean[:, :-1])
    # The level is a matter of the whole sentence: what its first frames cannot know is not asked of them.
    level = 0.1 * F.smooth_l1_loss(found[:, 6:] / 10, (levels[:, None] / 10).expand(-1, FRAMES - 6))
    if model is None:
        return torch.stack([mel, level, mel.new_zeros(())])
    with torch.no_grad():
        wanted = generator_features(model, clean)
    apart = (generator_features(model, torch.cat([enhanced, clean[:, -1:]], 1)) - wanted) / spread
    # Sixteen lip numbers count as much as all that the tokens hear.
    return torch.stack([mel, level, 0.25 * (apart[..., :16].square().mean() + apart[..., 16:].square().mean())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path, help="folder to write model.safetensors into")
    parser.add_argument("--minutes", type=float, default=12, help="of processor time")
    parser.add_argument("--checkpoint", default="sft")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    given.output.mkdir(parents=True, exist_ok=True)
    sounds = [level(clip.audio) for _, clip in read_clips(given.corpus, TRAINING_SPLITS)]
    enhancer = Enhancer()
    model = load_generator(given.checkpoint).requires_grad_(False)
    learn(enhancer, model, sounds, given.minutes, given.output / STATE)
    enhancer.save(given.output)
    (given.output / STATE).unlink(missing_ok=True)


if __name__ == "__main__":
    main()

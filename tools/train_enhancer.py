"""Train the speech enhancer.

    python -m tools.train_enhancer CORPUS OUTPUT [--minutes 12] [--checkpoint sft]

    noisy = speech + babble, coloured noise or music at 0–20 dB, with or without a room       target: the speech alone
    L = |log-mel − log-mel of the speech| + ‖level − level of the speech over the noise‖²
      + ‖features of the generator − those of the speech alone‖²                      in the last part of the training

The last term goes through the frozen audio side of the checkpoint: the Whisper layer, the lip reader and the audio
encoder. A state is written every minute, from which the same command continues; it is deleted when the weights are
written.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.data.corpus import read_corpus_clips
from flowportrait.data.motion_dataset import TRAINING_SPLITS
from flowportrait.files import atomic_write
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.mel import HOP_LENGTH, N_MELS, log_mel, loudness_gain_from_power, normalize_loudness
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.enhancer import CLEAN_DB, Enhancer
from flowportrait.models.speech_encoder import SILENT_MEL
from flowportrait.models.training_clips import NOISE_DB, add_reverberation, babble_noise, coloured_noise, rms_level
from flowportrait.training.optimize import GuardedStep

FRAMES, BATCH = 76, 12
SPEED = (0.85, 1.2)
"""Range of playback speeds, which make voices deeper or higher; no video has to match."""
LEARNING_RATE = 1.5e-3
STATE = "state.pt"
FEATURES_FROM = 0.4
"""Share of the training after which the generator's features are part of the loss."""


def mixture(sounds: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Return speech of ``FRAMES`` frames with noise and without it, and its level over the noise in decibels."""
    length = FRAMES * SAMPLES_PER_FRAME
    sound = sounds[int(rng.integers(len(sounds)))]
    longest = int(SPEED[1] * length) + 2
    sound = sound[int(rng.integers(max(1, len(sound) - longest))) :][:longest]
    place = np.arange(0, len(sound) - 1, rng.uniform(*SPEED))
    speech = np.interp(place, np.arange(len(sound)), sound)
    while len(speech) < length:
        other = sounds[int(rng.integers(len(sounds)))]
        speech = np.concatenate([speech, other * (rms_level(speech) / max(rms_level(other), 1e-9))])
    speech = speech[:length]
    if rng.random() < 0.15:
        speech[: int(rng.uniform(0, 1) * SAMPLE_RATE)] *= 10 ** -rng.uniform(1, 3)
    added = np.zeros(length)
    if rng.random() < 0.2:
        added += add_reverberation(speech, rng) - speech
    if rng.random() < 0.75:
        noise = some_noise(sounds, length, rng)
        below = 10 ** (-rng.uniform(*NOISE_DB) / 20)
        added += noise * (rms_level(speech) / max(rms_level(noise), 1e-9)) * below
    ratio = 20 * np.log10(max(rms_level(speech), 1e-9) / max(rms_level(added), 1e-9))
    noisy = speech + added
    factor = loudness_gain_from_power((noisy.reshape(-1, HOP_LENGTH) ** 2).mean(1)) * 10 ** (rng.uniform(-3, 3) / 20)
    return noisy * factor, speech * factor, min(ratio, CLEAN_DB)


def some_noise(sounds: list[np.ndarray], length: int, rng: np.random.Generator) -> np.ndarray:
    """Return random noise ``[length]``: two thirds voices, a fifth coloured noise, else music."""
    kind = rng.random()
    if kind < 0.67:
        return babble_noise(sounds, length, rng)
    return coloured_noise(length, rng) if kind < 0.87 else music(length, rng)


def music(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return synthetic chords ``[length]``: decaying harmonics, with a new chord every 0.25 to 1 s."""
    total, start = np.zeros(length), 0
    while start < length:
        clock = np.arange(min(SAMPLE_RATE, length - start)) / SAMPLE_RATE
        for pitch in 110.0 * 2 ** (rng.integers(0, 36, 4) / 12):
            for harmonic in range(1, 7):
                tone = np.sin(2 * np.pi * harmonic * pitch * clock) * np.exp(-4 * clock)
                total[start : start + len(clock)] += tone / harmonic
        start += int(rng.uniform(0.25, 1.0) * SAMPLE_RATE)
    return total


def batch(sounds: list[np.ndarray], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-mels of noisy and of clean speech ``[B, 4 FRAMES, 80]``, and levels ``[B]`` in decibels."""
    noisy, clean, levels = zip(*(mixture(sounds, rng) for _ in range(BATCH)), strict=True)
    both = log_mel(np.stack([*noisy, *clean]).clip(-1, 1).astype(np.float32))
    return both[:BATCH], both[BATCH:], torch.tensor(levels, dtype=torch.float32)


def generator_features(model: ARFlow, mel: torch.Tensor) -> torch.Tensor:
    """Return the generator's audio features ``[B, T, 16 + width]``: predicted lip motion, and those of its tokens."""
    assert model.lip_reader is not None
    features = model.audio_features(mel)
    lips, encoded = model.lip_reader(features), model.audio_encoder(features)
    return torch.cat([lips, encoded], -1)


def learn(enhancer: Enhancer, model: ARFlow, sounds: list[np.ndarray], minutes: float, state: Path) -> None:
    """Train in place until ``minutes`` of CPU time are used in all, continuing from ``state`` if it exists."""
    optimizer = torch.optim.AdamW(enhancer.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    guarded_step = GuardedStep(enhancer.parameters(), optimizer)
    spent, step = 0.0, 0
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        enhancer.load_state_dict(saved["enhancer"])
        optimizer.load_state_dict(saved["optimizer"])
        spent, step = saved["spent"], saved["step"]
    rng, running, reported_at = np.random.default_rng(step), np.zeros(3), time.process_time()
    _, clean, _ = batch(sounds, np.random.default_rng(0))
    spread = generator_features(model, clean).flatten(0, 1).std(0)
    while spent < 60 * minutes:
        began, share = time.process_time(), spent / (60 * minutes)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * max(0.02, 1 - share)
        losses = losses_of(enhancer, model if share > FEATURES_FROM else None, spread, *batch(sounds, rng))
        optimizer.zero_grad()
        losses.sum().backward()
        guarded_step(step + 1)
        running += 0.02 * (losses.detach().numpy() - running)
        step, spent = step + 1, spent + time.process_time() - began
        if time.process_time() - reported_at > 60:
            reported_at = time.process_time()
            print(f"{spent / 60:.1f} min, step {step}: mel {running[0]:.4f} level {running[1]:.4f} "
                  f"features {running[2]:.4f}", flush=True)  # fmt: skip
            saved = {"enhancer": enhancer.state_dict(), "optimizer": optimizer.state_dict()}
            with atomic_write(state) as partial:
                torch.save(saved | {"spent": spent, "step": step}, partial)


def losses_of(
    enhancer: Enhancer,
    model: ARFlow | None,
    spread: torch.Tensor,
    noisy: torch.Tensor,
    clean: torch.Tensor,
    levels: torch.Tensor,
) -> torch.Tensor:
    """Return the losses of log-mel, level and features ``[3]``; the last one is 0 without a model."""
    lead = noisy.new_full((len(noisy), 1, N_MELS), SILENT_MEL)
    groups = torch.cat([lead, noisy[:, :-1]], 1).reshape(len(noisy), FRAMES, -1)
    added, predicted_level, _ = enhancer(groups)
    enhanced = (groups - added).reshape(len(noisy), -1, N_MELS)[:, 1:]
    mel = F.l1_loss(enhanced, clean[:, :-1])
    # The level is that of the whole sentence, which the first frames cannot know; they are left out of the loss.
    level = 0.1 * F.smooth_l1_loss(predicted_level[:, 6:] / 10, (levels[:, None] / 10).expand(-1, FRAMES - 6))
    if model is None:
        return torch.stack([mel, level, mel.new_zeros(())])
    with torch.no_grad():
        target = generator_features(model, clean)
    error = (generator_features(model, torch.cat([enhanced, clean[:, -1:]], 1)) - target) / spread
    # Sixteen lip coefficients count as much as all token features.
    return torch.stack([mel, level, 0.25 * (error[..., :16].square().mean() + error[..., 16:].square().mean())])


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path, help="folder to write model.safetensors into")
    parser.add_argument("--minutes", type=float, default=12, help="minutes of CPU time")
    parser.add_argument("--checkpoint", default="sft")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    options.output.mkdir(parents=True, exist_ok=True)
    sounds = [normalize_loudness(clip.audio) for _, clip in read_corpus_clips(options.corpus, TRAINING_SPLITS)]
    enhancer = Enhancer()
    model = load_generator(options.checkpoint).requires_grad_(False)
    learn(enhancer, model, sounds, options.minutes, options.output / STATE)
    enhancer.save(options.output)
    (options.output / STATE).unlink(missing_ok=True)


if __name__ == "__main__":
    main()

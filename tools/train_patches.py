"""Train the generator that draws pictures in the latents of an autoencoder.

    python -m tools.train_patches CORPUS FOOTAGE ENCODER DECODER OUTPUT
                                                   [--minutes 12] [--clips 10] [--side 96]

    L = E ‖ v(x_σ, σ | h) − (ε − z) ‖²,    x_σ = (1−σ) z + σ ε

ENCODER and DECODER are the two halves of a tiny autoencoder (``rendering.vae_codec``). ``--clips`` clips of every
training speaker are converted to latents once (``OUTPUT/films.pt``; they show people and must stay with the footage).
Training uses teacher forcing, with noise of up to ``HISTORY`` on the preceding frame; without it, the generator's own
first frame would already be unlike its training data. The portrait of a window is the first frame of its clip. When
interrupted, the same command continues from ``OUTPUT/state.pt``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.files import atomic_write
from flowportrait.flow.schedules import interpolate, target_velocity
from flowportrait.models.arflow import load_generator
from flowportrait.models.patch_flow import PATCH_SIDE, LatentClip, PatchFlow, PatchFlowConfig, encode_clip
from flowportrait.rendering.vae_codec import TinyAutoencoder, VaeCodec
from flowportrait.terminal import StopRequest
from flowportrait.training.optimize import GuardedStep

FRAMES = 72
"""Number of frames of a clip that are used."""
WINDOW, BATCH = 12, 8
LEARNING_RATE = 6e-4
HISTORY = 0.3
"""Largest standard deviation of the noise on the history, in standard deviations of latents."""
AVERAGE = 0.995
SPLITS = ("reward", "evaluation")


def films(
    corpus: Path, footage: Path, codec: VaeCodec, side: int, most: int, splits: tuple[str, ...]
) -> list[LatentClip]:
    """Return the latents of up to ``most`` clips of every speaker, evenly spread over those in the corpus.

    Raises:
        BadInput: if the corpus has no clips in these splits.
    """
    names_of_speaker: dict[str, list[str]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["split"] in splits and record["frames"] > WINDOW:
            names_of_speaker[record["speaker"]].append(record["name"])
    if not names_of_speaker:
        raise BadInput(f"{corpus} has no clips in the splits {', '.join(splits)}: check its clips.jsonl.")
    chosen = [
        (names[i * len(names) // min(most, len(names))], speaker)
        for speaker, names in sorted(names_of_speaker.items())
        for i in range(min(most, len(names)))
    ]
    model = load_generator("sft")
    result = []
    for name, speaker in track(chosen, "pictures to latents", console=Console(stderr=True)):
        clip = FaceClip.load(corpus / "clips" / f"{name}.safetensors")
        result.append(encode_clip(footage / f"{name}.mp4", clip, speaker, codec, model, side, FRAMES))
    return result


def draw(clips: list[LatentClip], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a random batch.

    Returns:
        windows with their preceding frame ``[B, 1 + T, D]``, audio features ``[B, T, 144]`` and portraits ``[B, D]``.
    """
    rows = []
    for pick in torch.randint(len(clips), (BATCH,), generator=generator).tolist():
        clip = clips[pick]
        first = int(torch.randint(1, len(clip.latents) - WINDOW + 1, (), generator=generator))
        rows.append((clip.latents[first - 1 : first + WINDOW], clip.features[first : first + WINDOW], clip.latents[0]))
    windows, features, portraits = (torch.stack(part).float() for part in zip(*rows, strict=True))
    return windows, features, portraits


def loss(model: PatchFlow, clips: list[LatentClip], generator: torch.Generator) -> torch.Tensor:
    """Return the flow-matching loss of one random batch."""
    latents, features, portrait = draw(clips, generator)
    spread = HISTORY * torch.rand(len(latents), 1, 1, generator=generator)
    history = latents + spread * torch.randn(latents.shape, generator=generator)
    condition = model.condition(features, portrait)
    context = model.contexts_from_motion(condition, history[:, :-1])
    clean = latents[:, 1:]
    sigma = torch.sigmoid(torch.randn(clean.shape[:2], generator=generator))
    noise = torch.randn(clean.shape, generator=generator)
    velocity = model.velocity(interpolate(clean, noise, sigma[..., None]), sigma, context)
    return (velocity - target_velocity(clean, noise)).square().mean()


def train(clips: list[LatentClip], output: Path, minutes: float, side: int, spatial: int) -> None:
    """Train for ``minutes`` of CPU time and write the averaged weights to ``output``."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    grid = side // spatial // PATCH_SIDE
    model = PatchFlow(PatchFlowConfig(grid=grid, depth=clips[0].latents.shape[1] // grid**2))
    average = PatchFlow(model.config).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    guarded_step = GuardedStep(model.parameters(), optimizer)
    state_path, step, spent, running = output / "state.pt", 0, 0.0, math.nan
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        step, spent, running = state["step"], state["spent"], state["running"]
    usable = [clip for clip in clips if len(clip.latents) > WINDOW]
    with StopRequest() as stop:
        while spent < 60 * minutes and not stop.requested:
            began = time.process_time()
            for group in optimizer.param_groups:
                cosine = 0.5 * (1 + math.cos(math.pi * spent / (60 * minutes)))
                group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * (0.05 + 0.95 * cosine)
            value = loss(model, usable, generator)
            optimizer.zero_grad()
            value.backward()
            guarded_step(step + 1)
            decay = min(AVERAGE, (step + 1) / (step + 10))
            with torch.no_grad():
                for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(now, 1 - decay)
            running = value.item() if math.isnan(running) else 0.98 * running + 0.02 * value.item()
            step, spent = step + 1, spent + time.process_time() - began
            if step % 100 == 0 or spent >= 60 * minutes or stop.requested:
                print(f"step {step}  loss {running:.4f}  {spent / 60:.1f} of {minutes:g} min", flush=True)
                average.save_pretrained(output / "checkpoint")
                state = {
                    "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(), "step": step, "spent": spent, "running": running,
                }  # fmt: skip
                with atomic_write(state_path) as partial:
                    torch.save(state, partial)
    stop.raise_pending_signal()


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "footage", "encoder", "decoder", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--side", type=int, default=96)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    codec, latents_path = VaeCodec(TinyAutoencoder.read(options.encoder, options.decoder)), options.output / "films.pt"
    if not latents_path.is_file():
        encoded = films(options.corpus, options.footage, codec, options.side, options.clips, SPLITS)
        with atomic_write(latents_path) as partial:
            torch.save([(clip.latents.half(), clip.features.half(), clip.speaker) for clip in encoded], partial)
    clips = [LatentClip(*parts) for parts in torch.load(latents_path, weights_only=True)]
    train(clips, options.output, options.minutes, options.side, codec.spatial)


if __name__ == "__main__":
    main()

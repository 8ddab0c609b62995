"""Train the generator that draws pictures.

    python -m tools.train_patches CORPUS FOOTAGE ENCODER DECODER OUTPUT
                                                   [--minutes 12] [--clips 10] [--side 96]

    L = E ‖ v(x_σ, σ | h) − (ε − z) ‖²,    x_σ = (1−σ) z + σ ε

ENCODER and DECODER are the two halves of a tiny autoencoder (``rendering.vae_codec``). ``--clips`` of every
training speaker become latents once (``OUTPUT/films.pt``; pictures of people: it stays where the footage stays).
Teacher forcing, with noise of ``HISTORY`` on the frame before, or the first own frame already is unlike anything seen.
Each window's portrait is the clip's first frame. Interrupted, it goes on from ``OUTPUT/state.pt`` when started again.
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

from flowportrait.data.corpus import Clip
from flowportrait.errors import BadInput
from flowportrait.files import complete
from flowportrait.flow.paths import interpolate, target_velocity
from flowportrait.models.arflow import load_generator
from flowportrait.models.patch_flow import PATCH, Film, PatchFlow, PatchFlowConfig, film
from flowportrait.rendering.vae_codec import TinyAutoencoder, VaeCodec
from flowportrait.terminal import StopRequest
from flowportrait.training.descend import GuardedStep

FRAMES = 72
"""Frames of a clip that are used."""
WINDOW, BATCH = 12, 8
LEARNING_RATE = 6e-4
HISTORY = 0.3
"""Largest spread of the noise on what the generator has drawn so far, in standard deviations of latents."""
AVERAGE = 0.995
SPLITS = ("reward", "evaluation")


def films(corpus: Path, footage: Path, codec: VaeCodec, side: int, most: int, splits: tuple[str, ...]) -> list[Film]:
    """Up to ``most`` clips of every speaker, spread over what there is.

    Raises:
        BadInput: the corpus has no such clips.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["split"] in splits and record["frames"] > WINDOW:
            found[record["speaker"]].append(record["name"])
    if not found:
        raise BadInput(f"{corpus} has no clips in the splits {', '.join(splits)}: check its clips.jsonl.")
    chosen = [
        (names[i * len(names) // min(most, len(names))], speaker)
        for speaker, names in sorted(found.items())
        for i in range(min(most, len(names)))
    ]
    model = load_generator("sft")
    made = []
    for name, speaker in track(chosen, "pictures to latents", console=Console(stderr=True)):
        clip = Clip.load(corpus / "clips" / f"{name}.safetensors")
        made.append(film(footage / f"{name}.mp4", clip, speaker, codec, model, side, FRAMES))
    return made


def draw(clips: list[Film], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch: the frame before and the window ``[B, 1 + T, D]``, audio features ``[B, T, 144]``, portraits
    ``[B, D]``."""
    rows = []
    for pick in torch.randint(len(clips), (BATCH,), generator=generator).tolist():
        clip = clips[pick]
        first = int(torch.randint(1, len(clip.latents) - WINDOW + 1, (), generator=generator))
        rows.append((clip.latents[first - 1 : first + WINDOW], clip.features[first : first + WINDOW], clip.latents[0]))
    windows, features, portraits = (torch.stack(part).float() for part in zip(*rows, strict=True))
    return windows, features, portraits


def loss(model: PatchFlow, clips: list[Film], generator: torch.Generator) -> torch.Tensor:
    """Flow matching on one batch."""
    latents, features, portrait = draw(clips, generator)
    spread = HISTORY * torch.rand(len(latents), 1, 1, generator=generator)
    history = latents + spread * torch.randn(latents.shape, generator=generator)
    condition = model.condition(features, portrait)
    context = model.contexts_after(condition, history[:, :-1])
    clean = latents[:, 1:]
    sigma = torch.sigmoid(torch.randn(clean.shape[:2], generator=generator))
    noise = torch.randn(clean.shape, generator=generator)
    velocity = model.velocity(interpolate(clean, noise, sigma[..., None]), sigma, context)
    return (velocity - target_velocity(clean, noise)).square().mean()


def train(clips: list[Film], output: Path, minutes: float, side: int, spatial: int) -> None:
    """Train for so many minutes of processor time; ``output`` gets the averaged weights."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    grid = side // spatial // PATCH
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
        while spent < 60 * minutes and not stop.asked:
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
            if step % 100 == 0 or spent >= 60 * minutes or stop.asked:
                print(f"step {step}  loss {running:.4f}  {spent / 60:.1f} of {minutes:g} min", flush=True)
                average.save_pretrained(output / "checkpoint")
                state = {
                    "model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(), "step": step, "spent": spent, "running": running,
                }  # fmt: skip
                with complete(state_path) as partial:
                    torch.save(state, partial)
    stop.obey()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "footage", "encoder", "decoder", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--side", type=int, default=96)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    codec, kept = VaeCodec(TinyAutoencoder.read(given.encoder, given.decoder)), given.output / "films.pt"
    if not kept.is_file():
        made = films(given.corpus, given.footage, codec, given.side, given.clips, SPLITS)
        with complete(kept) as partial:
            torch.save([(clip.latents.half(), clip.features.half(), clip.speaker) for clip in made], partial)
    clips = [Film(*parts) for parts in torch.load(kept, weights_only=True)]
    train(clips, given.output, given.minutes, given.side, codec.spatial)


if __name__ == "__main__":
    main()

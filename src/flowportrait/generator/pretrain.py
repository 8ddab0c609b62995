"""Supervised training: conditional flow matching on real motion.

    L = E ‖ w ⊙ ( v(x_σ, σ | h) − (ε − z) ) ‖²,   x_σ = (1−σ) z + σ ε,   h from noised history

The history the backbone sees, and the frame each chunk continues from, are displaced by a random amount, so that
at sampling time its own small errors look familiar and are undone (against exposure bias). The speech is dropped
in a tenth of the items, for guidance.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowportrait.codec.basis import MOTION_DIM
from flowportrait.config import at_least
from flowportrait.corpus.motion_set import MotionClip, WindowSampler, load_motion
from flowportrait.errors import BadInput
from flowportrait.flow.path import interpolate, target_velocity
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.augment import augment
from flowportrait.generator.chunk_space import ChunkSpace
from flowportrait.generator.config import GeneratorConfig
from flowportrait.interrupt import StopRequest


@dataclass(frozen=True)
class PretrainConfig:
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    steps: int = 6000
    batch: int = 32
    windows: tuple[int, ...] = (28, 72)
    """Window lengths in frames, taken in turn."""
    learning_rate: float = 4e-4
    warmup: int = 200
    weight_decay: float = 0.05
    ema: float = 0.999
    history_noise: float = 0.7
    """Largest displacement of the history, in typical changes over a chunk."""
    drop_audio: float = 0.1
    drop_style: float = 0.2
    seed: int = 0
    splits: tuple[str, ...] = ("reward", "evaluation", "train")
    held_out: tuple[str, ...] = ("dev",)
    check_every: int = 250

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch=1, learning_rate=0, warmup=0, weight_decay=0, ema=0, check_every=1)
        at_least(self, history_noise=0, drop_audio=0, drop_style=0)


MOTION_WEIGHT = (
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6,
    0.5, 0.5, 0.5, 0.5, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
)  # fmt: skip
"""Weight of each motion number in the loss: what carries the lips counts most."""


def flow_matching_loss(
    model: ARFlow,
    motion: torch.Tensor,
    mel: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean loss over a batch: motion ``[B, 1 + T, 30]`` (the frame before comes first), mel ``[B, 4T, 80]``,
    style ``[B, 19]``."""
    batch = len(motion)

    def chance(share: float) -> torch.Tensor:
        return torch.rand(batch, generator=generator) < share

    start, motion = motion[:, 0], motion[:, 1:].unflatten(1, (-1, model.config.chunk))
    level = config.history_noise * torch.rand(batch, 1, 1, 1, generator=generator)
    displacement = torch.randn(*motion.shape[:2], 1, MOTION_DIM, generator=generator)
    jitter = 0.3 * torch.randn(motion.shape, generator=generator)
    history = motion + level * model.space.step_size * (displacement + jitter)
    base = torch.cat([start[:, None], history[:, :-1, -1]], 1)
    latents = model.space.encode(motion, base)
    style = torch.where(chance(config.drop_style)[:, None], model.rest_style, style)
    condition = model.condition(mel, style, start, drop_audio=chance(config.drop_audio))
    context = model.contexts_after(condition, history[:, :-1].flatten(1, 2))
    # Logit-normal σ: the middle of the path is the hard part.
    sigma = torch.sigmoid(torch.randn(latents.shape[:2], generator=generator))
    noise = torch.randn(latents.shape, generator=generator)
    error = model.head(interpolate(latents, noise, sigma[..., None]), sigma, context)
    error = error - target_velocity(latents, noise)
    return (latent_weight(model.space) * error.square()).mean()


def latent_weight(space: ChunkSpace) -> torch.Tensor:
    """Weight of each latent ``[chunk·30]``: that of its motion number, times the root of its mode's share."""
    share = (space.scale / space.scale[:, :1]).sqrt().clamp_min(0.2)
    return (torch.tensor(MOTION_WEIGHT)[:, None] * share).flatten()


def pretrain(config: PretrainConfig, corpus: Path, output: Path, resume: bool = False) -> Path:
    """Train and leave the averaged weights in ``output/checkpoint``; continue from ``output/state.pt`` if asked."""
    output.mkdir(parents=True, exist_ok=True)
    # Without this a convolution's gradient depends on where memory happens to lie, in the last bit.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.mkldnn.set_flags(_deterministic=True)
    torch.manual_seed(config.seed)
    clips = load_motion(corpus, config.splits)
    held_out = load_held_out(corpus, config)
    generator = torch.Generator().manual_seed(config.seed)
    samplers = [WindowSampler(clips, frames, generator) for frames in config.windows]
    model = ARFlow(config.generator)
    model.rest_style.copy_(typical_style(clips))
    model.space.fit(clip.motion for clip in clips)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    state_path, first, running = output / "state.pt", 0, None
    if resume and state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first, running = state["step"], state["running"]
    (output / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    history = (output / "history.jsonl").open("a" if first else "w")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with StopRequest() as stop, history, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("pretrain", total=config.steps, completed=first)
        started = time.monotonic()
        for step in range(first, config.steps):
            motion, mel, style = samplers[step % len(samplers)].draw(config.batch)
            loss = flow_matching_loss(model, motion, augment(mel, generator), style, config, generator)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, config)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            decay = min(config.ema, (step + 1) / (step + 10))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            progress.update(bar, advance=1, description=f"pretrain  loss {running:.3f}")
            if (step + 1) % config.check_every == 0 or step + 1 == config.steps or stop.asked:
                record = {
                    "step": step + 1,
                    "loss": running,
                    "held_out": held_out_loss(average, held_out, config) if held_out else None,
                    "seconds": time.monotonic() - started,
                }
                history.write(json.dumps(record) + "\n")
                history.flush()
                average.save_pretrained(output / "checkpoint")
                _save_state(state_path, {
                    "model": model.state_dict(), "average": average.state_dict(), "step": step + 1, "running": running,
                    "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
                })  # fmt: skip
            if stop.asked:
                break
    stop.obey()
    return output / "checkpoint"


def load_held_out(corpus: Path, config: PretrainConfig) -> list[MotionClip]:
    """Clips to watch the loss on; none, with a warning, if the corpus sets none apart."""
    try:
        clips = load_motion(corpus, config.held_out)
    except BadInput:
        warnings.warn(
            f"{corpus} has no clips in the split {', '.join(config.held_out)}: overfitting will not be seen.",
            stacklevel=3,
        )
        return []
    return [clip for clip in clips if len(clip.motion) > config.windows[0]]


def typical_style(clips: list[MotionClip]) -> torch.Tensor:
    """Median style over speakers ``[19]``."""
    return torch.stack(list({clip.speaker: clip.style for clip in clips}.values())).median(0).values


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def held_out_loss(model: ARFlow, clips: list[MotionClip], config: PretrainConfig) -> float:
    """Flow-matching loss on unseen speakers, same draws every time."""
    generator = torch.Generator().manual_seed(1)
    sampler = WindowSampler(clips, config.windows[0], generator)
    losses = []
    for _ in range(4):
        motion, mel, style = sampler.draw(64)
        losses.append(flow_matching_loss(model, motion, mel, style, config, generator).item())
    return sum(losses) / len(losses)


def _save_state(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)

"""Supervised training: what the lips do given the sound (``train_lips``), then conditional flow matching on motion.

    L = E ‖ w ⊙ ( v(x_σ, σ | h) − (ε − z) ) ‖²,   x_σ = (1−σ) z + σ ε,   h from noised history

The history the backbone sees, and the frame each chunk continues from, are displaced by a random amount, so that
at sampling time its own small errors look familiar and are undone (against exposure bias; ``own_history`` is the
stronger remedy, for the end of a training). The speech is dropped
in a tenth of the items, for guidance. What the front end hears is computed once (``hearing``), in several voices and
rooms. A run may start from another checkpoint (``start_from``): whatever fits is taken over.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowportrait.checkpoints import load_generator
from flowportrait.codec.basis import MOTION_DIM
from flowportrait.config import at_least
from flowportrait.corpus.motion_set import MotionClip, WindowSampler
from flowportrait.errors import BadInput
from flowportrait.flow.path import interpolate, target_velocity
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.chunk_space import ChunkSpace
from flowportrait.generator.config import GeneratorConfig
from flowportrait.generator.hearing import hear, recall, remember
from flowportrait.generator.own_history import OwnHistory
from flowportrait.generator.speech_encoder import SpeechEncoder
from flowportrait.generator.train_lips import train_lips
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
    variants: int = 4
    """Other voices and rooms that each clip is heard in, besides its own."""
    lip_steps: int = 500
    """Steps of the first stage; few, since it must predict speakers it has not seen. 0 hears as ``start_from`` does."""
    lip_residual: float = 0.5
    """τ, the share that training targets keep of lip motion that sound does not tell; 1 is real motion."""
    start_from: str = ""
    """Checkpoint to inherit weights from."""
    history_noise: float = 0.7
    """Largest displacement of the history, in typical changes over a chunk."""
    long_window: int = 0
    """Frames of windows strung together from clips, in the place of ``windows`` (see ``own_history``); 0 is off."""
    own_history: bool = True
    """In long windows, go on from the generator's own motion and not from the real one."""
    drop_audio: float = 0.1
    drop_style: float = 0.2
    seed: int = 0
    splits: tuple[str, ...] = ("reward", "evaluation", "train")
    held_out: tuple[str, ...] = ("dev",)
    check_every: int = 250

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch=1, learning_rate=0, warmup=0, weight_decay=0, ema=0, check_every=1)
        at_least(self, variants=0, lip_steps=0, lip_residual=0, history_noise=0, drop_audio=0, drop_style=0)
        at_least(self, long_window=0)


MOTION_WEIGHT = (
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6,
    0.5, 0.5, 0.5, 0.5, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
)  # fmt: skip
"""Weight of each motion number in the loss: what carries the lips counts most."""


_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip


def flow_matching_loss(
    model: ARFlow,
    motion: torch.Tensor,
    heard: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean loss over a batch: motion ``[B, 1 + T, 30]`` (the frame before comes first), what ``ARFlow.listen`` made of
    the sound ``[B, T, features]``, style ``[B, 19]``."""
    batch = len(motion)
    start, motion = motion[:, 0], motion[:, 1:].unflatten(1, (-1, model.config.chunk))
    level = config.history_noise * torch.rand(batch, 1, 1, 1, generator=generator)
    displacement = torch.randn(*motion.shape[:2], 1, MOTION_DIM, generator=generator)
    jitter = 0.3 * torch.randn(motion.shape, generator=generator)
    history = motion + level * model.space.step_size * (displacement + jitter)
    return chunk_loss(model, start, history, motion, heard, style, config, generator)


def chunk_loss(
    model: ARFlow,
    start: torch.Tensor,
    history: torch.Tensor,
    goal: torch.Tensor,
    heard: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean loss of drawing the chunks ``goal`` ``[B, N, chunk, 30]``, each after those of ``history`` before it."""

    def chance(share: float) -> torch.Tensor:
        return torch.rand(len(start), generator=generator) < share

    base = torch.cat([start[:, None], history[:, :-1, -1]], 1)
    latents = model.space.encode(goal, base)
    style = torch.where(chance(config.drop_style)[:, None], model.rest_style, style)
    condition = model.condition_on(heard, style, start, drop_audio=chance(config.drop_audio))
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
    generator = torch.Generator().manual_seed(config.seed)
    model = new_model(config)
    state_path, memory, first, running = output / "state.pt", output / "heard.pt", 0, None
    state = torch.load(state_path, weights_only=True) if resume and state_path.is_file() else None
    if not (resume and memory.is_file()):
        remember(memory, hear(model, corpus, config.splits, config.variants, config.seed))
    clips = recall(memory)
    held_out = load_held_out(model, corpus, config)
    model.rest_style.copy_(typical_style(clips))
    if state is None and not config.start_from:
        model.space.fit(clip.motion for clip in clips)
    if state is not None:
        model.load_state_dict(state["model"])
    elif model.lip_reader is not None and config.lip_steps:
        with Progress(*_COLUMNS, console=Console(stderr=True)) as progress:
            bar = progress.add_task("lips from sound", total=config.lip_steps)
            tick = partial(progress.update, bar, advance=1)
            train_lips(model.lip_reader, clips, config.lip_steps, config.lip_residual, config.seed, lambda _: tick())
        model.audio_encoder.load_state_dict(model.lip_reader.encoder.state_dict())
    clips, held_out = (clearer(model, part, config.lip_residual) for part in (clips, held_out))
    samplers = [WindowSampler(clips, frames, generator) for frames in config.windows]
    lessons = None
    if config.long_window:
        lessons = OwnHistory(clips, config.long_window, config.batch, config.own_history, generator)
    average = copy.deepcopy(model).requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
    )
    if state is not None:
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        first, running = state["step"], state["running"]

    def save(step: int) -> None:
        _save_state(state_path, {
            "model": model.state_dict(), "average": average.state_dict(), "step": step, "running": running,
            "optimizer": optimizer.state_dict(), "generator": generator.get_state(),
        })  # fmt: skip

    if state is None:
        save(0)
    (output / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    history = (output / "history.jsonl").open("a" if first else "w")
    with StopRequest() as stop, history, Progress(*_COLUMNS, console=Console(stderr=True)) as progress:
        bar = progress.add_task("pretrain", total=config.steps, completed=first)
        started = time.monotonic()
        for step in range(first, config.steps):
            if lessons is None:
                motion, heard, style = samplers[step % len(samplers)].draw(config.batch)
                loss = flow_matching_loss(model, motion, heard, style, config, generator)
            else:
                loss = chunk_loss(model, *lessons(model), config, generator)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, config)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
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
                save(step + 1)
            if stop.asked:
                break
    stop.obey()
    return output / "checkpoint"


def new_model(config: PretrainConfig) -> ARFlow:
    """A generator to train: the front end's own weights, and what ``start_from`` has to give."""
    model = ARFlow(config.generator)
    if isinstance(model.speech, SpeechEncoder):
        model.speech.load_weights().eval()
    if config.start_from:
        inherit(model, load_generator(config.start_from), hearing=not config.lip_steps)
    return model


_HEARING = ("speech.", "lip_reader.", "audio_", "silence")


@torch.no_grad()
def inherit(model: ARFlow, other: ARFlow, hearing: bool = False) -> None:
    """Take over parameters and buffers of the same name, those that hear only with ``hearing``; where shapes differ,
    the common corner, with zeros around it in the flow head (inputs it did not have must not disturb it)."""
    theirs = other.state_dict()
    for name, own in model.state_dict().items():
        if name not in theirs or (name.startswith(_HEARING) and not hearing):
            continue
        if name.startswith("head.") and own.shape != theirs[name].shape:
            own.zero_()
        corner = tuple(slice(min(a, b)) for a, b in zip(own.shape, theirs[name].shape, strict=True))
        own[corner] = theirs[name][corner]


def clearer(model: ARFlow, clips: list[MotionClip], share: float) -> list[MotionClip]:
    """Clips with the lip motion that the generator is to learn (see ``lip_reader``)."""
    reader = model.lip_reader
    if reader is None or share == 1.0:
        return clips

    def target(clip: MotionClip) -> torch.Tensor:
        heard = clip.mel[None, : len(clip.motion)].float()
        return reader.clearer(clip.motion[None], heard, clip.style[None], share)[0]

    return [replace(clip, motion=target(clip)) for clip in clips]


def load_held_out(model: ARFlow, corpus: Path, config: PretrainConfig) -> list[MotionClip]:
    """Clips to watch the loss on; none, with a warning, if the corpus sets none apart."""
    try:
        clips = hear(model, corpus, config.held_out, 0, config.seed)
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
        motion, heard, style = sampler.draw(64)
        losses.append(flow_matching_loss(model, motion, heard, style, config, generator).item())
    return sum(losses) / len(losses)


def _save_state(path: Path, state: dict[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)

"""Supervised training of a generator on a corpus, from the first weights to the model card.

Initial weights of a generator to train: the front end's own, and those of another checkpoint.

First stage of supervised training: regress the lower face on sound, before anything is drawn.

L = E w ⊙ ( μ(sound) − standardised lips )²

Supervised training: what the lips do given the sound (``train_lips``), then flow matching on motion (``matching``).

    heard.pt  ─► windows ─► learner ─► state/, checkpoint/ (averaged weights and a card), history.jsonl, samples/

Front-end features are computed once (``training_clips``), in several voices and rooms. A run may start from another
checkpoint (``start_from``): whatever fits is taken over. Several processes (``accelerate launch``) each draw windows
of their own and average their gradients. Held-out clips give a loss; held-out prompts, drawn and judged by the
evaluation side, say what people would see.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowportrait.config import save as save_config
from flowportrait.config import to_dict
from flowportrait.data.motion_dataset import MotionClip, WindowSampler
from flowportrait.data.prompts import Prompt
from flowportrait.devices import device_of
from flowportrait.files import write_text
from flowportrait.models.arflow import CARD, ARFlow, load_generator
from flowportrait.models.flow_matching import (
    Draw,
    FlowMatchingLearner,
    PretrainConfig,
    RolloutHistory,
    SavedTraining,
    chunk_loss,
    flow_matching_loss,
    held_out_loss,
)
from flowportrait.models.model_card import card
from flowportrait.models.speech_encoder import N_LIPS, LipReader, SpeechEncoder
from flowportrait.models.training_clips import (
    extract_features,
    load_clips,
    load_held_out,
    save_clips,
    typical_style,
    with_lip_targets,
)
from flowportrait.terminal import StopRequest
from flowportrait.training.descend import GuardedStep
from flowportrait.training.distributed import on_main, repeatable, roll_call, tracking
from flowportrait.training.held_out import draw_and_measure
from flowportrait.training.state import remove_states, write_state


def initial_model(config: PretrainConfig) -> ARFlow:
    """Build a generator to train, with the front end's own weights and those of ``start_from``."""
    model = ARFlow(config.generator)
    if isinstance(model.speech, SpeechEncoder):
        model.speech.load_weights().eval()
    if config.start_from:
        copy_weights(model, load_generator(config.start_from), audio=not config.lip_steps)
    return model


_AUDIO = ("speech.", "lip_reader.", "audio_", "silence")


@torch.no_grad()
def copy_weights(model: ARFlow, other: ARFlow, audio: bool = False) -> None:
    """Copy parameters and buffers of the same name, those of the audio side only with ``audio``; where shapes differ,
    the common corner, with zeros around it in the flow head (inputs it did not have must not disturb it)."""
    theirs = other.state_dict()
    for name, own in model.state_dict().items():
        if name not in theirs or (name.startswith(_AUDIO) and not audio):
            continue
        if name.startswith("head.") and own.shape != theirs[name].shape:
            own.zero_()
        corner = tuple(slice(min(a, b)) for a, b in zip(own.shape, theirs[name].shape, strict=True))
        own[corner] = theirs[name][corner]


WINDOW = 28
BATCH = 48
LEARNING_RATE = 2e-3
WARMUP = 50
WEIGHT = torch.tensor([1.0] * 8 + [0.8] * 4 + [0.6] * (N_LIPS - 12))


def train_lips(
    reader: LipReader, clips: list[MotionClip], steps: int, share: float, seed: int, tick: Callable[[float], None]
) -> None:
    """Fit ``reader`` in place, with its scale and gain, and freeze it; ``tick`` gets every step's loss."""
    device = device_of(reader)
    everything = [reader.standardise(clip.motion.to(device), clip.style.to(device)) for clip in clips]
    reader.fit_scale(torch.cat(everything))
    generator = torch.Generator().manual_seed(seed)
    sampler = WindowSampler(clips, WINDOW, generator)
    reader.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(reader.parameters(), LEARNING_RATE, weight_decay=0.05)
    guarded_step = GuardedStep(reader.parameters(), optimizer, math.inf)
    for step in range(steps):
        progress = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP) * progress
        motion, features, style, *_ = (part.to(device) for part in sampler.draw(BATCH))
        error = reader(features) - reader.standardise(motion[:, 1:], style)
        loss = (error.square() * WEIGHT.to(device)).mean()
        optimizer.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        tick(loss.item())
    reader.requires_grad_(False).eval()
    with torch.no_grad():
        predicted = torch.cat([reader(c.mel[None].float().to(device))[0, : len(c.motion)] for c in clips])
        real = [reader.standardise(c.motion.to(device), c.style.to(device)) for c in clips]
        reader.fit_gain(torch.cat(real), predicted, share)


__all__ = ["PretrainConfig", "chunk_loss", "flow_matching_loss", "pretrain", "with_lip_targets"]

_COLUMNS = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip


def pretrain(
    config: PretrainConfig,
    corpus: Path,
    output: Path,
    resume: bool = False,
    prompts: Sequence[Prompt] = (),
    track: str | None = None,
) -> Path:
    """Train and leave the averaged weights in ``output/checkpoint``; continue from ``output/state`` if asked.

    prompts: portraits and speech of people nobody trained on, to draw and judge every ``look_every`` steps. track:
    ``tensorboard`` or ``wandb``.

    Raises:
        BadInput: see ``load_motion``; an unknown tracker.
    """
    output.mkdir(parents=True, exist_ok=True)
    accelerator = tracking(track, output)
    hidden = not accelerator.is_main_process
    repeatable()
    torch.manual_seed(config.seed)
    model = initial_model(config)
    states, memory = output / "state", output / "heard.pt"
    saved = SavedTraining(output) if resume else None

    def prepare_features() -> None:
        if not (resume and memory.is_file()):
            save_clips(memory, extract_features(model, corpus, config.splits, config.variants, config.seed))

    on_main(accelerator, prepare_features)
    clips, held_out = load_clips(memory), load_held_out(model, corpus, config)
    if saved:
        model.load_state_dict(saved.model_weights())
    else:
        _fit_before_training(model, clips, config, hidden)
    data = _describe_data(clips)
    clips, held_out = (with_lip_targets(model, part, config.lip_residual) for part in (clips, held_out))
    learner = FlowMatchingLearner(model, config, accelerator)
    draw = _batches(clips, config, learner)
    if saved:
        saved.resume(learner)
    else:
        on_main(accelerator, lambda: remove_states(states))
        write_state(learner, states)
    if track:
        accelerator.init_trackers("flowportrait", {"config": json.dumps(to_dict(config))})
    if accelerator.is_main_process:
        save_config(config, output / "config.json")
        if learner.iteration == 0:
            (output / "history.jsonl").write_text("", encoding="utf-8")
    with StopRequest() as stop, Progress(*_COLUMNS, console=Console(stderr=True), disable=hidden) as progress:
        bar = progress.add_task("pretrain", total=config.steps, completed=learner.iteration)
        started, asked = time.monotonic(), False
        while learner.iteration < config.steps and not asked:
            learner.learn(draw)
            progress.update(bar, advance=1, description=f"pretrain  loss {learner.running or math.nan:.3f}")
            asked = any(roll_call(accelerator, stop.asked))
            last = asked or learner.iteration == config.steps
            if learner.iteration % config.check_every and not last:
                continue

            average = learner.averaged()

            def check(average: ARFlow | None = average, last: bool = last) -> None:
                assert average is not None
                found: dict[str, float] = {}
                if held_out:
                    found["held_out"] = held_out_loss(average, held_out, config)
                if prompts and (learner.iteration % config.look_every == 0 or last):
                    samples = output / "samples" / f"{learner.iteration:05d}"
                    found |= draw_and_measure(average.eval(), prompts, samples)
                record = {"step": learner.iteration, "loss": learner.running, "held_out": None, **found,
                          "seconds": time.monotonic() - started}  # fmt: skip
                with (output / "history.jsonl").open("a", encoding="utf-8") as history:
                    history.write(json.dumps(record) + "\n")
                if track:
                    shown = {key: value for key, value in record.items() if isinstance(value, float)}
                    accelerator.log(shown, step=learner.iteration)
                _write_checkpoint(average, output / "checkpoint", data, found)

            on_main(accelerator, check)
            write_state(learner, states)
    if track:
        accelerator.end_training()
    stop.obey()
    return output / "checkpoint"


def _fit_before_training(model: ARFlow, clips: list[MotionClip], config: PretrainConfig, hidden: bool) -> None:
    """What is fitted before anything is drawn: the typical speaker, the chunk's space, the lips from sound."""
    model.rest_style.copy_(typical_style(clips))
    if not config.start_from:
        model.space.fit(clip.motion for clip in clips)
    if model.lip_reader is None or not config.lip_steps:
        return
    with Progress(*_COLUMNS, console=Console(stderr=True), disable=hidden) as progress:
        bar = progress.add_task("lips from sound", total=config.lip_steps)
        tick = partial(progress.update, bar, advance=1)
        train_lips(model.lip_reader, clips, config.lip_steps, config.lip_residual, config.seed, lambda _: tick())
    model.audio_encoder.load_state_dict(model.lip_reader.encoder.state_dict())


def _batches(clips: list[MotionClip], config: PretrainConfig, learner: FlowMatchingLearner) -> Draw:
    """Where batches come from."""
    if config.long_window:
        batch = config.batch // config.accumulate
        lessons = RolloutHistory(clips, config.long_window, batch, config.own_history, learner.generator)
        return lambda _: lessons(learner.model)
    samplers = [WindowSampler(clips, frames, learner.generator) for frames in config.windows]
    return lambda batch: samplers[learner.iteration % len(samplers)].draw(batch)


def _describe_data(clips: list[MotionClip]) -> str:
    """What a card says of the training data."""
    seconds = sum(len(clip.motion) for clip in clips) / 25
    speakers = {clip.speaker for clip in clips}
    return f"{len(clips)} clips of {len(speakers)} speakers, {seconds / 60:.1f} minutes, variants in sound included."


def _write_checkpoint(model: ARFlow, folder: Path, data: str, found: dict[str, float]) -> None:
    """The checkpoint, with a card of now."""
    model.save_pretrained(folder)
    figures = "\n".join(f"* {name.removeprefix('evaluation/')}: {value:.4g}" for name, value in found.items())
    write_text(folder / CARD, card(model, data, figures))

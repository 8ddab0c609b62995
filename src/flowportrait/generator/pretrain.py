"""Supervised training: what the lips do given the sound (``train_lips``), then flow matching on motion (``matching``).

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
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowportrait.config import save as save_config
from flowportrait.config import to_dict
from flowportrait.corpus.motion_set import MotionClip, WindowSampler
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.checkpoint import CARD
from flowportrait.generator.initial_weights import initial_model
from flowportrait.generator.learner import Draw, FlowMatchingLearner, SavedTraining
from flowportrait.generator.matching import chunk_loss, flow_matching_loss, held_out_loss
from flowportrait.generator.model_card import card
from flowportrait.generator.pretrain_config import PretrainConfig
from flowportrait.generator.rollout_history import RolloutHistory
from flowportrait.generator.train_lips import train_lips
from flowportrait.generator.training_clips import (
    extract_features,
    load_clips,
    load_held_out,
    save_clips,
    typical_style,
    with_lip_targets,
)
from flowportrait.interrupt import StopRequest
from flowportrait.prompts import Prompt
from flowportrait.training.held_out import draw_and_measure
from flowportrait.training.processes import on_main, roll_call, tracking
from flowportrait.training.repeatable import repeatable
from flowportrait.training.state import remove_states, write_state
from flowportrait.written import write_text

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

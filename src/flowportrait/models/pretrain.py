"""Supervised training of a generator on a corpus, from the initial weights to the model card.

    heard.pt  ─► windows ─► learner ─► state/, checkpoint/ (averaged weights and a card), history.jsonl, samples/

Two stages: first a regression of the lips on the sound (``train_lips``), then flow matching on motion
(``models.flow_matching``). Front-end features are computed once (``models.training_clips``), in several voices and
rooms. A run may start from another checkpoint (``start_from``), from which all fitting weights are taken. Several
processes (``accelerate launch``) each draw their own windows and average their gradients. A loss is measured on
held-out clips, and held-out prompts are drawn and measured by the evaluation.
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
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.flow_matching import (
    DrawBatch,
    FlowMatchingLearner,
    PretrainConfig,
    RolloutHistory,
    SavedTraining,
    chunk_loss,
    flow_matching_loss,
    held_out_loss,
)
from flowportrait.models.model_card import CARD_FILE, model_card_markdown
from flowportrait.models.speech_encoder import N_LIPS, LipRegression, SpeechEncoder
from flowportrait.models.training_clips import (
    extract_features,
    load_clips,
    load_held_out,
    median_style,
    save_clips,
    with_lip_targets,
)
from flowportrait.terminal import StopRequest
from flowportrait.training.distributed import (
    all_gather_object,
    create_tracking_accelerator,
    finish_trackers,
    run_on_main,
    use_deterministic_algorithms,
)
from flowportrait.training.held_out import measure_portrait_samples
from flowportrait.training.json_lines import JsonLinesLog, read_until
from flowportrait.training.optimize import GuardedStep
from flowportrait.training.state import remove_states, write_state

# --- Initial weights ---------------------------------------------------------------------------------------------


def initial_model(config: PretrainConfig) -> ARFlow:
    """Build a generator to train, with the pretrained weights of the front end and those of ``start_from``."""
    model = ARFlow(config.generator)
    if isinstance(model.speech, SpeechEncoder):
        model.speech.load_weights().eval()
    if config.start_from:
        start = load_generator(config.start_from)
        model.origin = start.origin
        copy_weights(model, start, audio=not config.lip_steps)
    return model


_AUDIO = ("speech.", "lip_reader.", "audio_", "silence")


@torch.no_grad()
def copy_weights(model: ARFlow, other: ARFlow, audio: bool = False) -> None:
    """Copy parameters and buffers of the same name from ``other`` into ``model``.

    Where shapes differ, the common corner is copied; in the flow head the rest is set to zero, so that inputs which
    ``other`` does not have cannot disturb it.

    Args:
        model: the generator to fill.
        other: the generator to copy from.
        audio: whether to copy the audio networks too.
    """
    source = other.state_dict()
    for name, target in model.state_dict().items():
        if name not in source or (name.startswith(_AUDIO) and not audio):
            continue
        if name.startswith("head.") and target.shape != source[name].shape:
            target.zero_()
        corner = tuple(slice(min(a, b)) for a, b in zip(target.shape, source[name].shape, strict=True))
        target[corner] = source[name][corner]


# --- First stage: lips from sound --------------------------------------------------------------------------------
#
#     L = E w ⊙ ( μ(sound) − standardised lips )²

LIP_WINDOW = 28
LIP_BATCH = 48
LIP_LEARNING_RATE = 2e-3
LIP_WARMUP = 50
LIP_WEIGHT = torch.tensor([1.0] * 8 + [0.8] * 4 + [0.6] * (N_LIPS - 12))


def train_lips(
    reader: LipRegression, clips: list[MotionClip], steps: int, share: float, seed: int, tick: Callable[[float], None]
) -> None:
    """Fit a lip regression in place, with its scale and gain, and freeze it.

    Args:
        reader: the regression.
        clips: training clips with features.
        steps: gradient steps.
        share: τ, see ``LipRegression.training_target``.
        seed: of the windows.
        tick: called with the loss of every step.
    """
    device = device_of(reader)
    standardised = [reader.standardise(clip.motion.to(device), clip.style.to(device)) for clip in clips]
    reader.fit_scale(torch.cat(standardised))
    generator = torch.Generator().manual_seed(seed)
    sampler = WindowSampler(clips, LIP_WINDOW, generator)
    reader.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(reader.parameters(), LIP_LEARNING_RATE, weight_decay=0.05)
    guarded_step = GuardedStep(reader.parameters(), optimizer, math.inf)
    for step in range(steps):
        progress = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LIP_LEARNING_RATE * min(1.0, (step + 1) / LIP_WARMUP) * progress
        motion, features, style, *_ = (part.to(device) for part in sampler.draw(LIP_BATCH))
        error = reader(features) - reader.standardise(motion[:, 1:], style)
        loss = (error.square() * LIP_WEIGHT.to(device)).mean()
        optimizer.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        tick(loss.item())
    reader.requires_grad_(False).eval()
    with torch.no_grad():
        predicted = torch.cat([reader(c.mel[None].float().to(device))[0, : len(c.motion)] for c in clips])
        real = [reader.standardise(c.motion.to(device), c.style.to(device)) for c in clips]
        reader.fit_gain(torch.cat(real), predicted, share)


# --- The whole training ------------------------------------------------------------------------------------------

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
    """Train a generator and write its averaged weights to ``output/checkpoint``.

    Args:
        config: the settings.
        corpus: folder of prepared videos.
        output: folder of the run.
        resume: whether to continue from ``output/state``.
        prompts: portraits and speech of unseen speakers, drawn and measured every ``look_every`` steps.
        track: ``tensorboard`` or ``wandb``.

    Returns:
        The folder of the checkpoint.

    Raises:
        BadInput: the corpus cannot be used (see ``load_motion_clips``), or the tracker is unknown.
    """
    output.mkdir(parents=True, exist_ok=True)
    accelerator = create_tracking_accelerator(track, output)
    hidden = not accelerator.is_main_process
    use_deterministic_algorithms()
    torch.manual_seed(config.seed)
    model = initial_model(config)
    states, features_file = output / "state", output / "heard.pt"
    history = JsonLinesLog(output / "history.jsonl")
    saved = SavedTraining(output) if resume else None

    def prepare_features() -> None:
        if not (resume and features_file.is_file()):
            save_clips(features_file, extract_features(model, corpus, config.splits, config.variants, config.seed))

    run_on_main(accelerator, prepare_features)
    clips, held_out = load_clips(features_file), load_held_out(model, corpus, config)
    if saved:
        model.load_state_dict(saved.model_weights())
    else:
        _fit_before_training(model, clips, config, hidden)
    data = _describe_data(clips)
    clips, held_out = (with_lip_targets(model, part, config.lip_residual) for part in (clips, held_out))
    learner = FlowMatchingLearner(model, config, accelerator)
    draw = _draw_function(clips, config, learner)
    if saved:
        saved.resume(learner)
    else:
        run_on_main(accelerator, lambda: remove_states(states))
        write_state(learner, states)
    if track:
        accelerator.init_trackers("flowportrait", {"config": json.dumps(to_dict(config))})
    if accelerator.is_main_process:
        save_config(config, output / "config.json")
        read_until(history.path, "step", learner.iteration)
    with StopRequest() as stop, Progress(*_COLUMNS, console=Console(stderr=True), disable=hidden) as progress:
        bar = progress.add_task("pretrain", total=config.steps, completed=learner.iteration)
        started, stopping = time.monotonic(), False
        while learner.iteration < config.steps and not stopping:
            learner.learn(draw)
            progress.update(bar, advance=1, description=f"pretrain  loss {learner.running or math.nan:.3f}")
            stopping = any(all_gather_object(accelerator, stop.requested))
            last = stopping or learner.iteration == config.steps
            if learner.iteration % config.check_every and not last:
                continue

            average = learner.averaged()

            def check(average: ARFlow | None = average, last: bool = last) -> None:
                assert average is not None
                figures: dict[str, float] = {}
                if held_out:
                    figures["held_out"] = held_out_loss(average, held_out, config)
                if prompts and (learner.iteration % config.look_every == 0 or last):
                    samples = output / "samples" / f"{learner.iteration:05d}"
                    figures |= measure_portrait_samples(average.eval(), prompts, samples)
                record = {"step": learner.iteration, "loss": learner.running, "held_out": None, **figures,
                          "seconds": time.monotonic() - started}  # fmt: skip
                history.add(record)
                if track:
                    values = {key: value for key, value in record.items() if isinstance(value, float)}
                    accelerator.log(values, step=learner.iteration)
                _write_checkpoint(average, output / "checkpoint", data, figures)

            run_on_main(accelerator, check)
            write_state(learner, states)
    if track:
        finish_trackers(accelerator)
    stop.raise_pending_signal()
    return output / "checkpoint"


def _fit_before_training(model: ARFlow, clips: list[MotionClip], config: PretrainConfig, hidden: bool) -> None:
    """Fit what flow matching builds on: the typical style, the space of chunks, and the lips from sound."""
    model.rest_style.copy_(median_style(clips))
    if not config.start_from:
        model.space.fit(clip.motion for clip in clips)
    if model.lip_reader is None or not config.lip_steps:
        return
    with Progress(*_COLUMNS, console=Console(stderr=True), disable=hidden) as progress:
        bar = progress.add_task("lips from sound", total=config.lip_steps)
        tick = partial(progress.update, bar, advance=1)
        train_lips(model.lip_reader, clips, config.lip_steps, config.lip_residual, config.seed, lambda _: tick())
    model.audio_encoder.load_state_dict(model.lip_reader.encoder.state_dict())


def _draw_function(clips: list[MotionClip], config: PretrainConfig, learner: FlowMatchingLearner) -> DrawBatch:
    """Return the function that draws training batches."""
    if config.long_window:
        batch = config.batch // config.accumulate
        history = RolloutHistory(clips, config.long_window, batch, config.own_history, learner.generator)
        return lambda _: history(learner.model)
    samplers = [WindowSampler(clips, frames, learner.generator) for frames in config.windows]
    return lambda batch: samplers[learner.iteration % len(samplers)].draw(batch)


def _describe_data(clips: list[MotionClip]) -> str:
    """Return the sentence about the training data in the model card."""
    seconds = sum(len(clip.motion) for clip in clips) / 25
    speakers = {clip.speaker for clip in clips}
    return f"{len(clips)} clips of {len(speakers)} speakers, {seconds / 60:.1f} minutes, with augmented sound included."


def _write_checkpoint(model: ARFlow, folder: Path, data: str, figures: dict[str, float]) -> None:
    """Write the checkpoint with a new model card."""
    model.save_pretrained(folder)
    lines = "\n".join(f"* {name.removeprefix('evaluation/')}: {value:.4g}" for name, value in figures.items())
    write_text(folder / CARD_FILE, model_card_markdown(model, data, lines))

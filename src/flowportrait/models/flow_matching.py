"""Supervised training of the generator by conditional flow matching on motion.

    L = E ‖ w ⊙ ( v(x_σ, σ | h) − (ε − z) ) ‖²,   x_σ = (1−σ) z + σ ε,   h from noised history
    gradient = mean over processes and parts of a batch        average ← average + (1 − d)(weights − average)

The parts in order: ``PretrainConfig``, the settings; the loss; ``RolloutHistory``, batches after a history that the
generator sampled itself; ``FlowMatchingLearner``, which takes the steps; ``SavedTraining``, which resumes them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from flowportrait.config import at_least
from flowportrait.data.motion_dataset import MotionClip, WindowSampler
from flowportrait.errors import BadInput
from flowportrait.flow.schedules import interpolate, noise_schedule, solve_ode, target_velocity
from flowportrait.models.arflow import ARFlow, SpeechCondition
from flowportrait.models.backbone import ChunkSpace, GeneratorConfig
from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER_FACE, MOTION_DIM
from flowportrait.training.distributed import full_weights, gradient_sync
from flowportrait.training.learner import Learner, Weights
from flowportrait.training.optimize import GuardedStep
from flowportrait.training.state import latest_state, load_into_learner, read_full_weights, read_state

# --- Settings ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PretrainConfig:
    """The settings of supervised training."""

    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The network."""
    steps: int = 6000
    """Optimiser steps."""
    batch: int = 32
    """Windows per step."""
    windows: tuple[int, ...] = (28, 72)
    """Window lengths in frames, used in turn."""
    accumulate: int = 1
    """Parts into which a batch is divided, whose gradients are accumulated; memory is needed for one part."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the networks in training; ``auto`` is bf16 on a GPU that supports it."""
    learning_rate: float = 4e-4
    """Largest learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Learning rate after the warm-up: half a cosine to the end (``cosine``), or constant, then a linear decay."""
    decay_share: float = 0.2
    """Share of the steps over which ``wsd`` decays."""
    warmup: int = 200
    """Steps over which the learning rate rises."""
    weight_decay: float = 0.05
    """Weight decay of AdamW."""
    ema: float = 0.999
    """Decay of the averaged weights, which are saved."""
    variants: int = 4
    """Augmented copies of each clip with other voices and rooms."""
    lip_steps: int = 500
    """Steps of the lip regression; few, for unseen speakers. 0 takes the audio networks of ``start_from``."""
    lip_residual: float = 0.5
    """τ, the share of the lip motion not predicted from sound that training targets keep; 1 is real motion."""
    start_from: str = ""
    """Checkpoint whose weights to start from."""
    history_noise: float = 0.7
    """Largest displacement of the history, in typical changes over a chunk."""
    long_window: int = 0
    """Frames of windows joined from several clips that replace ``windows`` (see ``RolloutHistory``); 0 is off."""
    own_history: bool = True
    """In long windows, continue from motion that the generator sampled instead of real motion."""
    drop_audio: float = 0.1
    """Share of windows without sound, for classifier-free guidance."""
    drop_style: float = 0.2
    """Share of windows with the typical style; a portrait is dropped from as large a share of batches."""
    seed: int = 0
    """Random seed."""
    splits: tuple[str, ...] = ("reward", "evaluation", "train")
    """Splits of the corpus to train on."""
    held_out: tuple[str, ...] = ("dev",)
    """Splits of the corpus for the held-out loss."""
    check_every: int = 250
    """Steps between checkpoints, each with the held-out loss and a state to resume from."""
    look_every: int = 2000
    """Steps between samples of the held-out prompts, if any are given."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch=1, learning_rate=0, warmup=0, weight_decay=0, ema=0, check_every=1)
        at_least(self, variants=0, lip_steps=0, lip_residual=0, history_noise=0, drop_audio=0, drop_style=0)
        at_least(self, long_window=0, accumulate=1, decay_share=0, look_every=1)
        if self.batch % self.accumulate:
            raise BadInput(f"batch={self.batch} does not divide into accumulate={self.accumulate} equal parts.")


# --- The loss ----------------------------------------------------------------------------------------------------

MOTION_WEIGHT = (
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6,
    0.5, 0.5, 0.5, 0.5, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
)  # fmt: skip
"""Weight of each motion number in the loss; those that move the lips count most."""


def flow_matching_loss(
    model: ARFlow,
    motion: torch.Tensor,
    features: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
    portrait: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean flow-matching loss over a batch of windows.

    The history that the backbone is given, and the frame that each chunk continues from, are displaced by a random
    amount, so that at sampling time the generator corrects its own small errors (against exposure bias;
    ``RolloutHistory`` is the stronger remedy, for the end of a training). The speech is dropped in a tenth of the
    windows, for guidance.

    Args:
        motion: ``[B, 1 + T, 30]``, starting with the frame before the window.
        features: audio features ``[B, T, features]``, see ``ARFlow.audio_features``.
        style: ``[B, 19]``.
        portrait: for a model with vision ``[B, P, hidden]``, see ``ARFlow.encode_portrait``.
    """
    batch = len(motion)
    start, motion = motion[:, 0], motion[:, 1:].unflatten(1, (-1, model.config.chunk))
    level = config.history_noise * torch.rand(batch, 1, 1, 1, generator=generator).to(motion.device)
    displacement = torch.randn(*motion.shape[:2], 1, MOTION_DIM, generator=generator).to(motion.device)
    jitter = 0.3 * torch.randn(motion.shape, generator=generator).to(motion.device)
    history = motion + level * model.space.step_size * (displacement + jitter)
    return chunk_loss(model, start, history, motion, features, style, config, generator, portrait)


def chunk_loss(
    model: ARFlow,
    start: torch.Tensor,
    history: torch.Tensor,
    goal: torch.Tensor,
    features: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
    portrait: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean flow-matching loss of target chunks after a given history.

    Portraits are dropped from whole batches as often as styles, so that the model also works without one.

    Args:
        start: the frame before the window ``[B, 30]``.
        history: motion ``[B, N, chunk, 30]``; each target follows the chunks before it.
        goal: target chunks ``[B, N, chunk, 30]``.
        features: audio features ``[B, T, features]``.
        style: ``[B, 19]``.
        portrait: for a model with vision ``[B, P, hidden]``.
    """

    def random_mask(share: float) -> torch.Tensor:
        return (torch.rand(len(start), generator=generator) < share).to(start.device)

    base = torch.cat([start[:, None], history[:, :-1, -1]], 1)
    latents = model.space.encode(goal, base)
    style = torch.where(random_mask(config.drop_style)[:, None], model.rest_style, style)
    if portrait is not None and torch.rand((), generator=generator) < config.drop_style:
        portrait = None
    condition = model.condition_from_features(features, style, start, random_mask(config.drop_audio), portrait)
    context = model.contexts_from_motion(condition, history[:, :-1].flatten(1, 2))
    # Logit-normal σ, because the middle of the path is the hardest.
    sigma = torch.sigmoid(torch.randn(latents.shape[:2], generator=generator)).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    error = model.head(interpolate(latents, noise, sigma[..., None]), sigma, context)
    error = error - target_velocity(latents, noise)
    return (latent_loss_weight(model.space) * error.float().square()).mean()


def latent_loss_weight(space: ChunkSpace) -> torch.Tensor:
    """Return the weight of each latent ``[chunk·30]``: that of its motion number, times the root of its mode's scale
    relative to the largest."""
    share = (space.scale / space.scale[:, :1]).sqrt().clamp_min(0.2)
    return (share.new_tensor(MOTION_WEIGHT)[:, None] * share).flatten()


class FlowMatchingLoss(nn.Module):
    """The loss as a network, which DDP and FSDP can wrap."""

    def __init__(self, model: ARFlow, config: PretrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, drawn: tuple[torch.Tensor, ...], generator: torch.Generator) -> torch.Tensor:
        """Return the mean loss of a batch.

        Args:
            drawn: motion, features and style of windows (see ``flow_matching_loss``) or a ``HistoryBatch`` (see
                ``chunk_loss``), followed by portraits if there are any.
            generator: of random numbers.
        """
        if len(drawn) < 5:
            motion, features, style, *portrait = drawn
            return flow_matching_loss(self.model, motion, features, style, self.config, generator, *portrait)
        start, history, goal, features, style, *portrait = drawn
        return chunk_loss(self.model, start, history, goal, features, style, self.config, generator, *portrait)

    def fsdp_root_forward(self) -> None:
        """Do nothing; called as a forward pass so that FSDP finds its root before any part is called by itself."""


@torch.no_grad()
def held_out_loss(model: ARFlow, clips: list[MotionClip], config: PretrainConfig) -> float:
    """Return the flow-matching loss on held-out clips, with the same windows and noise every time."""
    generator = torch.Generator().manual_seed(1)
    sampler = WindowSampler(clips, config.windows[0], generator)
    losses, device = [], model.rest_style.device
    for _ in range(4):
        motion, features, style, *portrait = (part.to(device) for part in sampler.draw(64))
        losses.append(flow_matching_loss(model, motion, features, style, config, generator, *portrait).item())
    return sum(losses) / len(losses)


# --- Histories that the generator samples ------------------------------------------------------------------------

RETURN_RATE = torch.full((MOTION_DIM,), 0.7)
"""ρ, the share of the distance to real motion that is left after a frame."""
RETURN_RATE[LOWER_FACE], RETURN_RATE[BROWS], RETURN_RATE[HEAD] = 0.6, 0.9, 0.97
HISTORY_STEPS = 4
"""Sampling steps per chunk of the history."""
HISTORY_REUSE = 6
"""Gradient steps on one history, each with new noise."""

HistoryBatch = tuple[torch.Tensor, ...]
"""start ``[B, 30]``, history and goal ``[B, N, chunk, 30]``, audio features, style, and for vision portraits."""


def approach_real_motion(real: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Return motion ``[..., K, 30]`` that approaches real motion exponentially.

        g[k] = r[k] + ρ^k · offset,   k = 1 … K

    Args:
        real: real motion r ``[..., K, 30]``.
        offset: distance from real motion at the frame before ``[..., 30]``.
    """
    frames = torch.arange(1, real.shape[-2] + 1)
    return real + offset[..., None, :] * RETURN_RATE ** frames[:, None]


def join_speaker_clips(clips: list[MotionClip], frames: int, seed: int) -> list[MotionClip]:
    """Join the clips of each speaker in random order, without jumps, to clips of more than ``frames`` frames."""
    speakers: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    generator = torch.Generator().manual_seed(seed)
    joined = []
    for speaker_clips in speakers.values():
        parts: list[MotionClip] = []
        for index in torch.randperm(len(speaker_clips), generator=generator).tolist():
            clip = speaker_clips[index]
            if parts:
                clip = replace(clip, motion=approach_real_motion(clip.motion, parts[-1].motion[-1] - clip.motion[0]))
            parts.append(clip)
            if sum(len(part.motion) for part in parts) > 1.25 * frames:
                motion = torch.cat([part.motion for part in parts])
                features = torch.cat([part.mel[: len(part.motion)] for part in parts])
                joined.append(replace(clip, motion=motion, mel=features))
                parts = []
    return joined


class RolloutHistory:
    """Training batches of long windows after a history that the generator sampled, or after the real one.

    The remedy for a generator that only ever continued real motion:

        y      the generator's motion over a long window, sampled as in use         r   real motion of those sentences
        goal   g[t+k] = r[t+k] + ρ^k (y[t] − r[t]),   k = 1 … chunk                real motion, approached from y

    A chunk follows what the generator sampled, and learns to return from there to real motion: the lips within frames,
    the head within seconds (ρ). With ρ = 1 the head would never return, with ρ = 0 it would learn to jump. No gradient
    runs through the history (Self Forcing, 2506.08009, also trains on its own rollouts, but against a critic). Clips
    are short, so that windows are joined from clips of a speaker by the same formula; they are longer than the window
    of attention, and the cache need not be emptied.
    """

    def __init__(
        self, clips: list[MotionClip], frames: int, batch: int, sampled: bool, generator: torch.Generator
    ) -> None:
        """Prepare windows.

        Args:
            clips: training clips.
            frames: length of a window.
            batch: windows per batch.
            sampled: whether the generator samples the history; otherwise it is the real one (teacher forcing).
            generator: of random numbers.
        """
        self.sampler = WindowSampler(join_speaker_clips(clips, frames, 0), frames, generator)
        self.batch, self.sampled, self.generator = batch, sampled, generator
        self.current: HistoryBatch | None = None
        self.uses_left = 0

    def __call__(self, model: ARFlow) -> HistoryBatch:
        """Return the next batch; each is returned ``HISTORY_REUSE`` times."""
        if self.current is None or not self.uses_left:
            self.current, self.uses_left = self._draw(model), HISTORY_REUSE
        self.uses_left -= 1
        return self.current

    @torch.no_grad()
    def _draw(self, model: ARFlow) -> HistoryBatch:
        motion, features, style, *portrait = self.sampler.draw(self.batch)
        start, real = motion[:, 0], motion[:, 1:].unflatten(1, (-1, model.config.chunk))
        history = real
        if self.sampled:
            device = model.rest_style.device
            tokens = [part.to(device) for part in portrait]
            history = self._rollout(model, model.condition_from_features(features, style, start, None, *tokens)).cpu()
        sampled_before = torch.cat([start[:, None], history[:, :-1, -1]], 1)
        real_before = torch.cat([start[:, None], real[:, :-1, -1]], 1)
        return start, history, approach_real_motion(real, sampled_before - real_before), features, style, *portrait

    def _rollout(self, model: ARFlow, condition: SpeechCondition) -> torch.Tensor:
        """Sample the generator's motion ``[B, N, chunk, 30]``, with a cache that is never emptied."""
        horizon = model.config.horizon
        model.config = replace(model.config, horizon=condition.chunks + 1)
        session, chunks = model.session(condition), []
        sigmas = noise_schedule(HISTORY_STEPS, model.config.shift)
        for _ in range(condition.chunks):
            noise = torch.randn(self.batch, model.latent_dim, generator=self.generator).to(condition.start)
            velocity = partial(model.velocity, context=session.context())
            chunks.append(session.append(solve_ode(velocity, model.initial_state(noise), sigmas)))
        model.config = replace(model.config, horizon=horizon)
        return torch.stack(chunks, 1)


# --- The learner -------------------------------------------------------------------------------------------------

DrawBatch = Callable[[int], tuple[torch.Tensor, ...]]
"""A function that draws a batch of the given number of windows, or returns a ``HistoryBatch``."""


class FlowMatchingLearner(Learner):
    """One process of a supervised training; the others do the same with windows of their own.

    A state is written at every check. On a CPU a resumed run gives the same bits as one without interruption, on any
    number of processes.
    """

    def __init__(self, model: ARFlow, config: PretrainConfig, accelerator: Accelerator) -> None:
        self.config, self.model = config, model.to(accelerator.device)
        super().__init__(self.model, FlowMatchingLoss(self.model, config), accelerator, config.ema, reference=False)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed + 1_000_003 * accelerator.process_index)
        self.running: float | None = None
        self.guarded_step = GuardedStep(self.trained, self.optimizer)

    @property
    def bf16(self) -> bool:
        """Whether the networks compute in bf16."""
        supported = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.config.precision == "bf16" or (self.config.precision == "auto" and supported)

    def learn(self, draw: DrawBatch) -> float:
        """Take one step and return its loss; a gradient that is not finite changes nothing.

        Raises:
            BadInput: the gradient was not finite ``MAX_SKIPPED_STEPS`` times in a row.
        """
        config, device, parts, total = self.config, self.device, self.config.accumulate, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.iteration, config)
        self.optimizer.zero_grad()
        for part in range(parts):
            with full_weights(self.network):
                drawn = tuple(tensor.to(device) for tensor in draw(config.batch // parts))
            with gradient_sync(self.network, now=part == parts - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    loss = self.network(drawn, self.generator)
                (loss / parts).backward()
            total += loss.item() / parts
        self.iteration += 1
        if not self.guarded_step(self.iteration):
            return total
        self.roles.after_update(self.iteration - 1)
        self.running = total if self.running is None else 0.98 * self.running + 0.02 * total
        return total

    def averaged(self) -> ARFlow | None:
        """Return a copy with the averaged weights on the main process, None on the others; all call it together."""
        with self.roles.use("ema"):
            model = self.whole()
        assert model is None or isinstance(model, ARFlow)
        return model

    def progress(self) -> dict[str, Any]:
        """Return the running mean of the loss."""
        return {"running": self.running}

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Load what ``progress`` returned."""
        self.running = progress["running"]

    def fixed_tensors(self) -> Weights:
        """Return the frozen weights and the buffers."""
        trained = self.roles.trained()
        return {name: value for name, value in self.model.state_dict().items() if name not in trained}

    def process_state(self) -> Weights:
        """Return the state of this process's random numbers."""
        return {"generator": self.generator.get_state()}

    def load_process_states(self, states: Sequence[Weights]) -> None:
        """Load the random numbers; with another number of processes than before, seed them from the seed and step."""
        process = self.accelerator.process_index
        if len(states) == self.accelerator.num_processes:
            self.generator.set_state(states[process]["generator"])
        else:
            self.generator.manual_seed(hash((self.config.seed, process, self.iteration)) & 0x7FFF_FFFF)


class SavedTraining:
    """The state that a supervised training left in its folder, or the ``state.pt`` that version 0.1 wrote.

    It is false if the folder has neither.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        self.state, self.file = latest_state(self.folder), folder / "state.pt"
        self._version_1: dict[str, Any] | None = None
        if self.state is None and self.file.is_file():
            self._version_1 = torch.load(self.file, weights_only=True)

    def __bool__(self) -> bool:
        return self.state is not None or self._version_1 is not None

    def model_weights(self) -> Weights:
        """Return the unsharded weights and buffers of the model, by name."""
        if self._version_1 is not None:
            return self._version_1["model"]
        assert self.state is not None, "there is a saved state"
        return read_full_weights(self.state, ("live", "fixed"))

    def resume(self, learner: FlowMatchingLearner) -> None:
        """Load the state into a learner; all processes call it together.

        Raises:
            BadInput: the state was written before version 0.1, or belongs to another model.
        """
        if self._version_1 is not None:
            _resume_version_1(learner, self._version_1)
        else:
            read_state(learner, self.folder)


def _resume_version_1(learner: FlowMatchingLearner, saved: Mapping[str, Any]) -> None:
    if "draws" not in saved:
        raise BadInput("The state to resume from was written by an earlier version: begin the training anew.")
    parameters = learner.roles.trained()
    state = {f"fixed/{name}": _like(saved["model"][name], value) for name, value in learner.fixed_tensors().items()}
    for index, (name, like) in enumerate(parameters.items()):
        state[f"live/{name}"] = _like(saved["model"][name], like)
        state[f"ema/{name}"] = _like(saved["average"][name], like)
        for moment, value in saved["optimizer"]["state"].get(index, {}).items():
            state[f"optimizer.{moment}/{name}"] = _like(value, like) if value.shape else value
    progress = {"iteration": saved["step"], "running": saved["running"]}
    load_into_learner(learner, state, progress, [{"generator": draws} for draws in saved["draws"]])


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Return the factor of the learning rate at a step: a linear warm-up, then a decay to a twentieth.

    The decay is half a cosine, or linear after a constant stage (WSD, Hu et al. 2404.06395).
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "wsd":
        left = (config.steps - step) / max(1.0, config.decay_share * config.steps)
        return 0.05 + 0.95 * min(1.0, left)
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a tensor on the device of ``like``, sharded if ``like`` is; all processes call it together."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

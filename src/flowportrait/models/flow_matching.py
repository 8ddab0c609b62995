"""Supervised learning of the generator: settings, loss, rollout history, and the learner.

Settings of supervised training.

Conditional flow matching on motion.

    L = E ‖ w ⊙ ( v(x_σ, σ | h) − (ε − z) ) ‖²,   x_σ = (1−σ) z + σ ε,   h from noised history

The history the backbone sees, and the frame each chunk continues from, are displaced by a random amount, so that
at sampling time its own small errors look familiar and are undone (against exposure bias; ``rollout_history`` is
the stronger remedy, for the end of a training). The speech is dropped in a tenth of the items, for guidance.

Training on a history that the generator sampled itself: the remedy for a generator that only ever saw real motion.

    y      the generator's motion over a long window, sampled as in use         r   real motion of those sentences
    goal   g[t+k] = r[t+k] + ρ^k (y[t] − r[t]),   k = 1 … chunk                real motion, approached from where it is

A chunk follows what the generator itself sampled (no gradient runs through it; Self Forcing, 2506.08009, trains on own
rollouts too, but against a critic), and learns to come back from there to what a person does: lips within frames, the
head within seconds (ρ). With ρ = 1 the head would never be called back, with ρ = 0 it would learn to jump. Clips are
short, so that windows are joined from a speaker's clips by the same formula; they reach past the attention's window,
and the cache need not be emptied.

Supervised training of our generator, step by step: flow matching with a learning rate that rises and falls.

    gradient = mean over processes and parts of a batch        average ← average + (1 − d)(weights − average)

A state goes to disk at every check; from it a run goes on to the same bits on a CPU, on any number of processes.
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
from flowportrait.flow.paths import interpolate, shifted, solve, target_velocity
from flowportrait.models.arflow import ARFlow, Condition
from flowportrait.models.backbone import ChunkSpace, GeneratorConfig
from flowportrait.rendering.motion_basis import BROWS, HEAD, LOWER, MOTION_DIM
from flowportrait.training.descend import GuardedStep
from flowportrait.training.distributed import exchanging, gathered
from flowportrait.training.learner import Learner, Weights
from flowportrait.training.state import latest_state, read_state, read_whole_weights, restore


@dataclass(frozen=True)
class PretrainConfig:
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    steps: int = 6000
    batch: int = 32
    windows: tuple[int, ...] = (28, 72)
    """Window lengths in frames, taken in turn."""
    accumulate: int = 1
    """Parts that a batch is drawn and learned from in, for the memory of one part."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What the networks compute in while training; ``auto`` is bf16 on a GPU that has it."""
    learning_rate: float = 4e-4
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: half a cosine to the end, or level (warm-up, stable, decay) with a straight line down."""
    decay_share: float = 0.2
    """Share of the steps that ``wsd`` decays over."""
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
    """Frames of windows strung together from clips, in the place of ``windows`` (see ``rollout_history``); 0 is off."""
    own_history: bool = True
    """In long windows, go on from the generator's own motion and not from the real one."""
    drop_audio: float = 0.1
    drop_style: float = 0.2
    seed: int = 0
    splits: tuple[str, ...] = ("reward", "evaluation", "train")
    held_out: tuple[str, ...] = ("dev",)
    check_every: int = 250
    look_every: int = 2000
    """Steps between looks at the held-out prompts, if any are given."""

    def __post_init__(self) -> None:
        at_least(self, steps=1, batch=1, learning_rate=0, warmup=0, weight_decay=0, ema=0, check_every=1)
        at_least(self, variants=0, lip_steps=0, lip_residual=0, history_noise=0, drop_audio=0, drop_style=0)
        at_least(self, long_window=0, accumulate=1, decay_share=0, look_every=1)
        if self.batch % self.accumulate:
            raise BadInput(f"batch={self.batch} does not divide into accumulate={self.accumulate} equal parts.")


MOTION_WEIGHT = (
    1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.8, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6,
    0.5, 0.5, 0.5, 0.5, 0.7, 0.7, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
)  # fmt: skip
"""Weight of each motion number in the loss: what carries the lips counts most."""


def flow_matching_loss(
    model: ARFlow,
    motion: torch.Tensor,
    features: torch.Tensor,
    style: torch.Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
    portrait: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean loss over a batch.

    Args:
        motion: ``[B, 1 + T, 30]``, the frame before first.
        features: of the sound ``[B, T, features]``, see ``ARFlow.audio_features``.
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
    """Mean loss of drawing the chunks ``goal`` ``[B, N, chunk, 30]``, each after those of ``history`` before it.
    Portraits are left out of whole batches as often as styles: without one it has to speak too."""

    def chance(share: float) -> torch.Tensor:
        return (torch.rand(len(start), generator=generator) < share).to(start.device)

    base = torch.cat([start[:, None], history[:, :-1, -1]], 1)
    latents = model.space.encode(goal, base)
    style = torch.where(chance(config.drop_style)[:, None], model.rest_style, style)
    if portrait is not None and torch.rand((), generator=generator) < config.drop_style:
        portrait = None
    condition = model.condition_from_features(features, style, start, chance(config.drop_audio), portrait)
    context = model.contexts_after(condition, history[:, :-1].flatten(1, 2))
    # Logit-normal σ: the middle of the path is the hard part.
    sigma = torch.sigmoid(torch.randn(latents.shape[:2], generator=generator)).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    error = model.head(interpolate(latents, noise, sigma[..., None]), sigma, context)
    error = error - target_velocity(latents, noise)
    return (latent_weight(model.space) * error.float().square()).mean()


def latent_weight(space: ChunkSpace) -> torch.Tensor:
    """Weight of each latent ``[chunk·30]``: that of its motion number, times the root of its mode's share."""
    share = (space.scale / space.scale[:, :1]).sqrt().clamp_min(0.2)
    return (share.new_tensor(MOTION_WEIGHT)[:, None] * share).flatten()


class Matching(nn.Module):
    """The loss as a network, for what wraps networks: three tensors of a window, or the five of a ``HistoryBatch``;
    portraits follow them where there are any."""

    def __init__(self, model: ARFlow, config: PretrainConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, drawn: tuple[torch.Tensor, ...], generator: torch.Generator) -> torch.Tensor:
        """Mean loss; see ``flow_matching_loss`` and ``chunk_loss``."""
        if len(drawn) < 5:
            motion, features, style, *portrait = drawn
            return flow_matching_loss(self.model, motion, features, style, self.config, generator, *portrait)
        start, history, goal, features, style, *portrait = drawn
        return chunk_loss(self.model, start, history, goal, features, style, self.config, generator, *portrait)

    def wake(self) -> None:
        """Nothing; a forward pass by name, with which FSDP learns who is outermost before any part is called."""


@torch.no_grad()
def held_out_loss(model: ARFlow, clips: list[MotionClip], config: PretrainConfig) -> float:
    """Flow-matching loss on unseen speakers, same draws every time."""
    generator = torch.Generator().manual_seed(1)
    sampler = WindowSampler(clips, config.windows[0], generator)
    losses, device = [], model.rest_style.device
    for _ in range(4):
        motion, features, style, *portrait = (part.to(device) for part in sampler.draw(64))
        losses.append(flow_matching_loss(model, motion, features, style, config, generator, *portrait).item())
    return sum(losses) / len(losses)


RETURN = torch.full((MOTION_DIM,), 0.7)
"""ρ, what is left after a frame of the distance to real motion."""
RETURN[LOWER], RETURN[BROWS], RETURN[HEAD] = 0.6, 0.9, 0.97
STEPS = 4
"""Sampling steps of the history."""
REUSE = 6
"""Gradient steps taken on one history, each with noise of its own."""

HistoryBatch = tuple[torch.Tensor, ...]
"""start ``[B, 30]``, history and goal ``[B, N, chunk, 30]``, audio features, style, and portraits for vision."""


def approach_real(real: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Approach real motion ``[..., K, 30]`` from ``offset`` ``[..., 30]`` beside the frame before it."""
    frames = torch.arange(1, real.shape[-2] + 1)
    return real + offset[..., None, :] * RETURN ** frames[:, None]


def concatenate_clips(clips: list[MotionClip], frames: int, seed: int) -> list[MotionClip]:
    """Join clips of each speaker in a random order, without a jump, to clips of more than ``frames`` frames."""
    speakers: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        speakers[clip.speaker].append(clip)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for own in speakers.values():
        parts: list[MotionClip] = []
        for place in torch.randperm(len(own), generator=generator).tolist():
            clip = own[place]
            if parts:
                clip = replace(clip, motion=approach_real(clip.motion, parts[-1].motion[-1] - clip.motion[0]))
            parts.append(clip)
            if sum(len(part.motion) for part in parts) > 1.25 * frames:
                motion = torch.cat([part.motion for part in parts])
                features = torch.cat([part.mel[: len(part.motion)] for part in parts])
                found.append(replace(clip, motion=motion, mel=features))
                parts = []
    return found


class RolloutHistory:
    """Training batches of long windows after a history that the generator drew itself, or after the real one."""

    def __init__(
        self, clips: list[MotionClip], frames: int, batch: int, sampled: bool, generator: torch.Generator
    ) -> None:
        """sampled: the history is the generator's own motion; otherwise it is the real one (teacher forcing)."""
        self.sampler = WindowSampler(concatenate_clips(clips, frames, 0), frames, generator)
        self.batch, self.sampled, self.generator = batch, sampled, generator
        self.current: HistoryBatch | None = None
        self.left = 0

    def __call__(self, model: ARFlow) -> HistoryBatch:
        """The next batch; each is returned ``REUSE`` times."""
        if self.current is None or not self.left:
            self.current, self.left = self._draw(model), REUSE
        self.left -= 1
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
        return start, history, approach_real(real, sampled_before - real_before), features, style, *portrait

    def _rollout(self, model: ARFlow, condition: Condition) -> torch.Tensor:
        """The generator's motion ``[B, N, chunk, 30]``, with a cache that is never emptied."""
        horizon = model.config.horizon
        model.config = replace(model.config, horizon=condition.chunks + 1)
        session, chunks = model.session(condition), []
        sigmas = shifted(STEPS, model.config.shift)
        for _ in range(condition.chunks):
            noise = torch.randn(self.batch, model.latent_dim, generator=self.generator).to(condition.start)
            velocity = partial(model.velocity, context=session.context())
            chunks.append(session.append(solve(velocity, model.begin(noise), sigmas)))
        model.config = replace(model.config, horizon=horizon)
        return torch.stack(chunks, 1)


Draw = Callable[[int], tuple[torch.Tensor, ...]]
"""A batch of so many windows, or a lesson."""


class FlowMatchingLearner(Learner):
    """One process of a supervised training; the others do the same with windows of their own."""

    def __init__(self, model: ARFlow, config: PretrainConfig, accelerator: Accelerator) -> None:
        self.config, self.model = config, model.to(accelerator.device)
        super().__init__(self.model, Matching(self.model, config), accelerator, config.ema, reference=False)
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed + 1_000_003 * accelerator.process_index)
        self.running: float | None = None
        self.guarded_step = GuardedStep(self.trained, self.optimizer)

    @property
    def bf16(self) -> bool:
        """Whether the networks compute in bf16."""
        able = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.config.precision == "bf16" or (self.config.precision == "auto" and able)

    def learn(self, draw: Draw) -> float:
        """Take one step; a gradient that is not finite changes nothing. Returns the loss.

        Raises:
            BadInput: the gradient was not finite ``GIVE_UP`` times in a row.
        """
        config, device, parts, total = self.config, self.device, self.config.accumulate, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.iteration, config)
        self.optimizer.zero_grad()
        for part in range(parts):
            with gathered(self.network):
                drawn = tuple(tensor.to(device) for tensor in draw(config.batch // parts))
            with exchanging(self.network, now=part == parts - 1):
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
        """A copy with the averaged weights, on the main process; all processes together."""
        with self.roles.use("ema"):
            found = self.whole()
        assert found is None or isinstance(found, ARFlow)
        return found

    def progress(self) -> dict[str, Any]:
        return {"running": self.running}

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        self.running = progress["running"]

    def fixed_tensors(self) -> Weights:
        trained = self.roles.trained()
        return {name: value for name, value in self.model.state_dict().items() if name not in trained}

    def process_state(self) -> Weights:
        return {"generator": self.generator.get_state()}

    def load_process_states(self, states: Sequence[Weights]) -> None:
        """With another number of processes than before, all draw from the seed and the step."""
        own = self.accelerator.process_index
        if len(states) == self.accelerator.num_processes:
            self.generator.set_state(states[own]["generator"])
        else:
            self.generator.manual_seed(hash((self.config.seed, own, self.iteration)) & 0x7FFF_FFFF)


class SavedTraining:
    """What a supervised training left in its folder: a state of today, or the ``state.pt`` of version 0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "state"
        self.state, self.file = latest_state(self.folder), folder / "state.pt"
        self._version_1: dict[str, Any] | None = None
        if self.state is None and self.file.is_file():
            self._version_1 = torch.load(self.file, weights_only=True)

    def __bool__(self) -> bool:
        return self.state is not None or self._version_1 is not None

    def model_weights(self) -> Weights:
        """Whole weights and buffers of the model, by name."""
        if self._version_1 is not None:
            return self._version_1["model"]
        assert self.state is not None, "asked of a training that left something"
        return read_whole_weights(self.state, ("live", "fixed"))

    def resume(self, learner: FlowMatchingLearner) -> None:
        """Go on from it; all processes together.

        Raises:
            BadInput: it is of an earlier version than 0.1, or of another model.
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
    for place, (name, like) in enumerate(parameters.items()):
        state[f"live/{name}"] = _like(saved["model"][name], like)
        state[f"ema/{name}"] = _like(saved["average"][name], like)
        for moment, value in saved["optimizer"]["state"].get(place, {}).items():
            state[f"optimizer.{moment}/{name}"] = _like(value, like) if value.shape else value
    progress = {"iteration": saved["step"], "running": saved["running"]}
    restore(learner, state, progress, [{"generator": draws} for draws in saved["draws"]])


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then down to a twentieth: by half a cosine, or level first (Hu et al. 2404.06395, WSD)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "wsd":
        left = (config.steps - step) / max(1.0, config.decay_share * config.steps)
        return 0.05 + 0.95 * min(1.0, left)
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor on the device of ``like``, in shards where ``like`` is; all processes together."""
    if not isinstance(like, DTensor):
        return value.to(like.device)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

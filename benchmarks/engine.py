"""What post-training costs: an update, memory, and saving a complete state."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import nn

from benchmarks.material import use_one_thread
from benchmarks.record import Record
from benchmarks.timing import median_in_turns, stopwatch
from flowportrait.adapters.memory import GIB, PUBLISHED_MODELS, count_memory, meta_tensors, peak_bytes
from flowportrait.commands.options import Flag
from flowportrait.errors import BadInput
from flowportrait.models.arflow import load_generator
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.objectives.interface import Advantage, LossInputs
from flowportrait.rl.objectives.ratio import ClippedRatio
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import EvaluationPoints, Trajectory
from flowportrait.rl.task import SpeechItem, TalkingTask
from flowportrait.rl.trainer import Trainer
from flowportrait.training.lora import LoraSettings
from flowportrait.training.state import read_state, write_state

MIB = 2**20


class MeanMotion:
    """A reward that costs nothing, or as many seconds a sample as a judge elsewhere would take."""

    name = "mean_motion"
    needs = frozenset({"motion"})

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def __call__(self, batch: RewardBatch) -> Score:
        time.sleep(self.seconds * len(batch))
        return all_valid(batch.motion.mean((1, 2)))


def _make_trainer(recipe: Recipe, seconds: float = 0.0) -> Trainer:
    """Return a trainer of the shipped ``sft`` under a reward that takes ``seconds`` a sample."""
    policy = load_generator("sft")
    speech = [SpeechItem(torch.randn(1200, 80, generator=torch.Generator().manual_seed(i)), 0) for i in range(4)]
    task = TalkingTask(speech, recipe.frames, None, policy.config.chunk)
    return Trainer(policy, task, recipe, CompositeReward((MeanMotion(seconds),), {"mean_motion": 1.0}))


# --- An update --------------------------------------------------------------------------


@dataclass(frozen=True)
class UpdateCostOptions:
    """Measure what one update costs, against the loop over denoising steps that published scripts use.

    Same generator (the shipped ``sft``), same rollout, one process, one thread; variants take turns, medians of
    processor time are compared, and every variant's gradient must equal the engine's but for float32 rounding:

    "step loop, cache": for every recorded step, the backbone chunk by chunk through its KV cache, then the head;
    "step loop, parallel": for every recorded step, the backbone once over all chunks, then the head;
    "shared backbone": the backbone once, the head step by step;
    "engine": the backbone once, the head on all steps together.

    The other parts: scaling, the cost of rollouts and updates against clip length, group size and steps; overlap, the
    share of a slow reward's time (as slow as the rollout) that the next chunk of the rollout hides.
    """

    part: tuple[Literal["update", "scaling", "overlap"], ...] = ("update", "scaling", "overlap")
    """Parts to measure."""
    repeats: int = 5
    """Rounds, in which all variants take turns."""
    steps: tuple[int, ...] = (6, 11)
    """Denoising steps of the update; all but one are trained on."""


def update_cost(options: UpdateCostOptions, record: Record) -> None:
    use_one_thread()
    if "update" in options.part:
        for steps in options.steps:
            _compare_variants(options.repeats, steps, record)
    if "scaling" in options.part:
        _measure_scaling(options.repeats, record)
    if "overlap" in options.part:
        _measure_overlap(record)


def _step_loop_cache(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    for step in range(trajectory.x.shape[2]):
        session = run.policy.session(trajectory.condition)
        states = []
        for chunk in range(trajectory.latents.shape[1]):
            states.append(session.context())
            session.append(trajectory.latents[:, chunk])
        learn(torch.stack(states, 1), slice(step, step + 1))


def _step_loop_parallel(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    for step in range(trajectory.x.shape[2]):
        learn(run.policy.contexts(trajectory.condition, trajectory.latents), slice(step, step + 1))


def _shared_backbone(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    context = run.policy.contexts(trajectory.condition, trajectory.latents)
    steps = trajectory.x.shape[2]
    for step in range(steps):
        learn(context, slice(step, step + 1), step < steps - 1)


def _engine(run: Trainer, trajectory: Trajectory, learn: Callable[..., None]) -> None:
    learn(run.policy.contexts(trajectory.condition, trajectory.latents), slice(None))


VARIANTS = {
    "step loop, cache": _step_loop_cache, "step loop, parallel": _step_loop_parallel,
    "shared backbone": _shared_backbone, "engine": _engine,
}  # fmt: skip
OBJECTIVE = ClippedRatio(kl_weight=0.0)
LARGEST_DIFFERENCE = 1e-5
"""Largest norm of the difference of two gradients over the norm of the engine's.

Sums in another order give about 1e-6 in float32. Ten times as much is allowed.
"""


def _gradient(run: Trainer, trajectory: Trajectory, variant: str) -> torch.Tensor:
    """Return the gradient of a first update by a variant.

    In a first update the old velocity is the live one, and the likelihood ratio is 1. An old velocity that was computed
    in another way differs by 1e-6 from rounding, which the log ratio and the gradient multiply by ten.
    """
    advantage = torch.randn(len(trajectory), generator=torch.Generator().manual_seed(1))[:, None, None, None]
    steps = trajectory.x.shape[2]
    run.policy.zero_grad()

    def learn(context: torch.Tensor, part: slice, more: bool = False) -> None:
        x, sigma = trajectory.x[:, :, part], trajectory.sigma[..., part]
        steps_of_part = replace(
            trajectory, x=x, sigma=sigma, noise=trajectory.noise[:, :, part], step=trajectory.step[:, part],
            trainable=trajectory.trainable[:, :, part],
            coefficients=type(trajectory.coefficients)(*(c[:, :, part] for c in trajectory.coefficients)),
        )  # fmt: skip
        live = run.policy.velocity(x, sigma, context[:, :, None])
        inputs = LossInputs(
            steps_of_part, Advantage(advantage), EvaluationPoints(x, sigma), live, {"old": live.detach()}
        )
        (OBJECTIVE(inputs).total * x.shape[2] / steps).backward(retain_graph=more)

    VARIANTS[variant](run, trajectory, learn)
    return torch.cat([p.grad.flatten() for p in run.policy.parameters() if p.grad is not None])


def _compare_variants(repeats: int, steps: int, record: Record) -> None:
    recipe = replace(find_recipe("flow-grpo"), groups=2, group_size=8, plan=AllSteps(steps=steps))
    run = _make_trainer(recipe)
    trajectory = run.collect().trajectory
    variants = {name: partial(_gradient, run, trajectory, name) for name in VARIANTS}
    gradients = {name: gradient() for name, gradient in variants.items()}
    times, group = median_in_turns(variants, repeats), f"one update, {steps} steps"
    for name, seconds in times.items():
        record.add(name, "processor", seconds, unit="s", group=group, n=repeats)
        record.add(name, "times the engine's", seconds / times["engine"], group=group)
        difference = float((gradients[name] - gradients["engine"]).norm() / gradients["engine"].norm())
        record.add(name, "difference of gradients", difference, group=group)
        if difference >= LARGEST_DIFFERENCE:
            raise RuntimeError(f"The gradient of {name!r} is not the engine's: it differs by {difference:.1e}.")


def _measure_scaling(repeats: int, record: Record) -> None:
    base = replace(find_recipe("flow-grpo"), groups=1, group_size=8, updates=1)
    sweeps: dict[str, dict[int, Recipe]] = {
        "frames": {n: replace(base, frames=n) for n in (36, 72, 144)},
        "samples in a group": {n: replace(base, group_size=n) for n in (4, 8, 16)},
        "steps": {n: replace(base, plan=AllSteps(steps=n)) for n in (3, 6, 12)},
    }
    for what, recipes in sweeps.items():
        costs: dict[int, list[tuple[float, float]]] = {size: [] for size in recipes}
        runs = {size: _make_trainer(recipe) for size, recipe in recipes.items()}
        for _ in range(repeats):
            for size, run in runs.items():
                with stopwatch() as rollout:
                    batch = run.collect()
                with stopwatch() as update:
                    run.update(batch.trajectory, run.credit(batch)[0])
                costs[size].append((rollout.processor, update.processor))
        for number, phase in enumerate(("rollout", "update")):
            times = {size: median(row[number] for row in rows) for size, rows in costs.items()}
            first = next(iter(times))
            for size, seconds in times.items():
                record.add(f"{size} {what}", phase, seconds, unit="s", group=f"cost by {what}", n=repeats)
                record.add(f"{size} {what}", f"{phase}, times that of {first}", seconds / times[first],
                           group=f"cost by {what}")  # fmt: skip


def _measure_overlap(record: Record) -> None:
    for chunks in (1, 2, 4):
        recipe = replace(find_recipe("flow-grpo"), groups=4, group_size=8, rollout_chunks=chunks)
        rollout = _make_trainer(recipe).collect().seconds["seconds/rollout"]
        seconds = _make_trainer(recipe, rollout / 32).collect().seconds
        hidden = 1 - seconds["seconds/waiting"] / seconds["seconds/reward"]
        record.add(f"{chunks} rollout chunks", "hidden share of the reward", 100 * hidden, unit="%",
                   group="overlap with a slow reward")  # fmt: skip


# --- Memory -----------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryOptions:
    """Measure how much memory post-training needs: counted, and compared with what small networks really take.

    "small" counts small networks of the real classes, and measures by how much the resident memory of a process grows
    (Linux) over one pass forward and backward in float32. "published" counts published models with LoRA, in GiB.
    """

    part: tuple[Literal["small", "published"], ...] = ("small",)
    """Parts to measure."""
    models: tuple[str, ...] = ()
    """Published models; all by default."""


TOKENS, TEXT_TOKENS = 3072, 64


def memory(options: MemoryOptions, record: Record) -> None:
    if unknown := [name for name in options.models if name not in PUBLISHED_MODELS]:
        raise BadInput(f"There is no model {unknown[0]!r}: choose from {', '.join(PUBLISHED_MODELS)}.")
    if "small" in options.part:
        for name in SMALL_NETWORKS:
            for checkpointing in (False, True):
                counted, measured = _count(name, checkpointing), _measure(name, checkpointing)
                system = f"{name}, activations {'recomputed' if checkpointing else 'kept'}"
                record.add(system, "counted", counted / MIB, unit="MiB", group="small networks")
                record.add(system, "measured", measured / MIB, unit="MiB", group="small networks")
                record.add(system, "counted / measured", counted / measured, group="small networks")
    if "published" in options.part:
        for name in options.models or PUBLISHED_MODELS:
            count = count_memory(PUBLISHED_MODELS[name])
            system = f"{count.model}: {count.size}"
            record.add(system, "parameters", count.parameters / 1e9, unit="10⁹", group="published models")
            for part in ("weights", "adapter_states", "activations", "decoding", "rollout", "update"):
                size = getattr(count, part) / GIB
                record.add(system, part.replace("_", " "), size, unit="GiB", group="published models")


def _flux(tokens: int = TOKENS) -> tuple[nn.Module, dict[str, Any]]:
    """Return a small FLUX.1 and a call of it."""
    import diffusers

    network = diffusers.FluxTransformer2DModel(
        num_layers=2, num_single_layers=3, attention_head_dim=64, num_attention_heads=4, joint_attention_dim=128,
        axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    return network, {
        "hidden_states": torch.zeros(1, tokens, 64), "encoder_hidden_states": torch.zeros(1, TEXT_TOKENS, 128),
        "pooled_projections": torch.zeros(1, 768), "timestep": torch.zeros(1), "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }  # fmt: skip


def _wan(tokens: int = TOKENS) -> tuple[nn.Module, dict[str, Any]]:
    """Return a small Wan and a call of it."""
    import diffusers

    network = diffusers.WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, text_dim=128, ffn_dim=1024, num_layers=4
    )
    return network, {"hidden_states": torch.zeros(1, 16, tokens // 256, 32, 32), "timestep": torch.zeros(1),
                     "encoder_hidden_states": torch.zeros(1, TEXT_TOKENS, 128)}  # fmt: skip


SMALL_NETWORKS = {"flux": _flux, "wan": _wan}


def _count(name: str, checkpointing: bool) -> int:
    """Return the peak in bytes, counted on tensors without numbers."""
    with meta_tensors(torch.float32):
        network, call = SMALL_NETWORKS[name]()
        _prepare(network, call, checkpointing)
        return peak_bytes(network, call, gradient=True)


def _measure(name: str, checkpointing: bool) -> int:
    """Return the bytes by which a process of its own grows."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_growth, (name, checkpointing))


def _growth(name: str, checkpointing: bool) -> int:
    use_one_thread()
    # Every block of more than 64 KiB is given back when it is freed: what is resident is what is alive.
    ctypes.CDLL(None).mallopt(-3, 65536)
    network, call = SMALL_NETWORKS[name]()
    _prepare(network, call, checkpointing)
    # What a first pass loads and never gives back is no activation.
    short = SMALL_NETWORKS[name](256)[1]
    short["hidden_states"].requires_grad_(True)
    network(**short, return_dict=False)[0].square().mean().backward()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    out = network(**call, return_dict=False)[0]
    out.square().mean().backward()
    return _resident("VmHWM") - before


def _prepare(network: Any, call: dict[str, Any], checkpointing: bool) -> None:
    """Freeze the weights, as under LoRA, while everything after the input keeps what its gradient needs."""
    network.requires_grad_(False)
    call["hidden_states"].requires_grad_(True)
    if checkpointing:
        network.enable_gradient_checkpointing()


def _resident(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


# --- Checkpoints ------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckpointCostOptions:
    """Measure what saving a complete state costs, against a ``torch.save`` of the same weights to the same disk."""

    folder: Path = Path(".")
    """Folder on the disk that is measured."""
    lora: Flag = False
    """Train LoRA adapters alone."""
    repeats: int = 5
    """Times that a state is saved in each way."""


def checkpoint_cost(options: CheckpointCostOptions, record: Record) -> None:
    if not options.folder.is_dir():
        raise BadInput(f"--folder {options.folder} is no folder: give one that exists.")
    recipe = replace(find_recipe("flow-grpo"), groups=1, group_size=2, frames=32, updates=1)
    run = _make_trainer(replace(recipe, lora=LoraSettings()) if options.lora else recipe)
    run.step()  # afterwards there are moments of the optimiser to save
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)

        def save_plainly() -> None:
            with (folder / "plain.pt").open("wb") as file:
                torch.save(run.state_dict(), file)
                file.flush()
                os.fsync(file.fileno())

        def save_state() -> None:
            run.iteration += 1
            write_state(run, folder / "state")

        work = {"torch.save and fsync": save_plainly, "complete state": save_state}
        times = median_in_turns(work, options.repeats, clock=True)
        times |= median_in_turns({"reading it": lambda: read_state(run, folder / "state")}, options.repeats, clock=True)
        size = sum(path.stat().st_size for path in (folder / "state").rglob("*") if path.is_file())
    for system, seconds in times.items():
        record.add(system, "clock", seconds, unit="s", n=options.repeats)
    record.add("complete state", "times torch.save", times["complete state"] / times["torch.save and fsync"])
    record.add("complete state", "size", size / MIB, unit="MiB")

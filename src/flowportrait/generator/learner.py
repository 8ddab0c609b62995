"""Supervised training of our generator, step by step: flow matching with a learning rate that rises and falls.

    gradient = mean over processes and parts of a batch        average ← average + (1 − d)(weights − average)

A state goes to disk at every check; from it a run goes on to the same bits on a CPU, on any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor, distribute_tensor

from flowportrait.errors import BadInput
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.matching import Matching
from flowportrait.generator.pretrain_config import PretrainConfig
from flowportrait.training.descend import GuardedStep
from flowportrait.training.learner import Learner
from flowportrait.training.roles import Weights
from flowportrait.training.shards import exchanging, gathered
from flowportrait.training.state import latest_state, read_state, read_whole_weights, restore

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

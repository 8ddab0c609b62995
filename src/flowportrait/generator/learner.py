"""A generator that learns: its weights, their running average, the optimiser and the random numbers, as one state.

    gradient = mean over processes and parts of a batch        average ← average + (1 − d)(weights − average)

A state goes to disk at every check; from it a run goes on to the same bits on a CPU. Where the launcher asks for shards
(FSDP2), weights, average and moments are in shards; a state on disk is whole, so that any number of processes goes on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
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
from flowportrait.training.processes import roll_call
from flowportrait.training.shards import distribute, exchanging, gathered, outline, shards, whole
from flowportrait.written import complete

Draw = Callable[[int], tuple[torch.Tensor, ...]]
"""A batch of so many windows, or a lesson."""


class Learner:
    """One process of a training; the others do the same with windows of their own."""

    def __init__(self, model: ARFlow, config: PretrainConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.model, self.outline = model.to(accelerator.device), outline(model)
        self.average = copy.deepcopy(self.model)
        self.network = distribute(accelerator, Matching(self.model, config))
        if shards(self.network):
            distribute(accelerator, Matching(self.average, config))
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.generator = torch.Generator().manual_seed(config.seed + 1_000_003 * accelerator.process_index)
        self.step = 0
        self.running: float | None = None
        self.guarded_step = GuardedStep(self.trained, self.optimizer)

    @property
    def bf16(self) -> bool:
        """Whether the networks compute in bf16."""
        able = self.accelerator.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.config.precision == "bf16" or (self.config.precision == "auto" and able)

    def learn(self, draw: Draw) -> float:
        """Take one step; a gradient that is not finite changes nothing. Returns the loss.

        Raises:
            BadInput: the gradient was not finite ``GIVE_UP`` times in a row.
        """
        config, device, parts, total = self.config, self.accelerator.device, self.config.accumulate, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(self.step, config)
        self.optimizer.zero_grad()
        for part in range(parts):
            with gathered(self.network):
                drawn = tuple(tensor.to(device) for tensor in draw(config.batch // parts))
            with exchanging(self.network, now=part == parts - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                    loss = self.network(drawn, self.generator)
                (loss / parts).backward()
            total += loss.item() / parts
        self.step += 1
        if not self.guarded_step(self.step):
            return total
        decay = min(config.ema, self.step / (self.step + 9))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        self.running = total if self.running is None else 0.98 * self.running + 0.02 * total
        return total

    def averaged(self) -> ARFlow | None:
        """A copy with the averaged weights, on the main process; all processes together."""
        found = whole(self.accelerator, self.average, self.outline)
        assert found is None or isinstance(found, ARFlow)
        return found

    def save(self, path: Path) -> None:
        """Write the state, whole or not at all; all processes together."""
        draws = roll_call(self.accelerator, self.generator.get_state())
        state = _joined({
            "model": self.model.state_dict(), "average": self.average.state_dict(), "step": self.step,
            "running": self.running, "optimizer": self.optimizer.state_dict(), "draws": draws,
        })  # fmt: skip
        if self.accelerator.is_main_process:
            with complete(path) as partial:
                torch.save(state, partial)

    def go_on(self, state: dict[str, Any]) -> None:
        """Continue from what ``save`` wrote; the model's own weights are there already.

        With another number of processes than before, all draw from the seed and the step.

        Raises:
            BadInput: it is the state of an earlier version.
        """
        if "draws" not in state:
            raise BadInput("The state to resume from was written by an earlier version: begin the training anew.")
        with torch.no_grad():
            for name, tensor in self.average.state_dict().items():
                tensor.copy_(_divided(state["average"][name], tensor))
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, moments in self.optimizer.state.items():
            moments |= {name: _divided(value, parameter) for name, value in moments.items() if value.shape}
        self.step, self.running = state["step"], state["running"]
        own = self.accelerator.process_index
        if len(state["draws"]) == self.accelerator.num_processes:
            self.generator.set_state(state["draws"][own])
        else:
            self.generator.manual_seed(hash((self.config.seed, own, self.step)) & 0x7FFF_FFFF)


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Linear warm-up, then down to a twentieth: by half a cosine, or level first (Hu et al. 2404.06395, WSD)."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "wsd":
        left = (config.steps - step) / max(1.0, config.decay_share * config.steps)
        return 0.05 + 0.95 * min(1.0, left)
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done))


def _joined(tree: Any) -> Any:
    """The same with every tensor whole; all processes together."""
    if isinstance(tree, dict):
        return {key: _joined(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_joined(value) for value in tree]
    return tree.full_tensor() if isinstance(tree, DTensor) else tree


def _divided(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, in shards where ``like`` is; all processes together."""
    if not isinstance(like.data, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.data.device_mesh, like.data.placements)

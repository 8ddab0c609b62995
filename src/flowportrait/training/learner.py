"""What every long training has in common, and its weights in their roles.

The weights a run keeps beside the live ones, as copies of what is trained.

    live  is trained     ref  never moves     ema  follows and is delivered     old  follows slowly, makes rollouts

Of sharded weights every process keeps its shard of each role. Only trainable tensors are kept: of a model that trains
adapters (LoRA), a role is the adapters, and ``ref`` is theirs before the first update, which change nothing.

What every long training has in common: weights in their roles, an optimiser, and a state that survives anything.

    network ─► distribute (whole, replicated or in shards) ─► roles: live, ema, … ─► state_dict ─► training/state.py

Supervised training (``models/flow_matching.py``) and post-training (``rl/learner.py``) add what they learn from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from flowportrait.config import at_least
from flowportrait.training.distributed import distribute, outline, shards, whole

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SlowCopy:
    """``old`` after iteration i:  old ← d·old + (1−d)·live,  d = min(rate·i, max_decay)  (DiffusionNFT, 2509.16117)."""

    rate: float = 1e-3
    max_decay: float = 0.5

    earlier_keys = (("most", "max_decay"),)

    def __post_init__(self) -> None:
        at_least(self, rate=0, max_decay=0)


class Roles:
    """Roles of one policy. ``with roles.use("ema"):`` puts that role's weights in the policy for a while."""

    def __init__(
        self,
        policy: nn.Module,
        ema: float,
        old: SlowCopy | None = None,
        network: nn.Module | None = None,
        reference: bool = True,
    ) -> None:
        """network: holds the policy, where that is what was sharded. reference: whether to keep ``ref``."""
        self.policy = policy
        self.network = network or policy
        self.decay = ema
        self.slow = old
        names = [*(["ref"] if reference else []), "ema", *(["old"] if old else [])]
        self.copies: dict[str, Weights] = {name: self._copy() for name in names}

    @property
    def actor(self) -> str:
        """The role that makes rollouts."""
        return "old" if self.slow else "live"

    def trained(self) -> Weights:
        """The live trainable tensors by name; what was gathered of them is forgotten, lest it outlive a change."""
        return {name: parameter.data for name, parameter in self.parameters().items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, as the optimiser knows it."""
        for unit in shards(self.network):
            unit.reshard()
        return {name: parameter for name, parameter in self.policy.named_parameters() if parameter.requires_grad}

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Act as ``role`` inside the block; the live weights are back afterwards, whatever happens."""
        if role not in self.copies:
            yield
            return
        live = self._copy()
        self._write(self.copies[role])
        try:
            yield
        finally:
            self._write(live)

    @torch.no_grad()
    def after_update(self, updates: int) -> None:
        """Move ``ema`` towards ``live``; early on it follows faster, so that it forgets the start."""
        self._follow("ema", min(self.decay, (1 + updates) / (10 + updates)))

    @torch.no_grad()
    def after_iteration(self, iteration: int) -> None:
        """Move ``old`` towards ``live``, if there is one."""
        if self.slow:
            self._follow("old", min(self.slow.rate * iteration, self.slow.max_decay))

    def state_dict(self) -> dict[str, Any]:
        """Weights of all roles."""
        return {"live": self._copy(), **self.copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of ``state_dict``."""
        self._write(state["live"])
        for role, copies in self.copies.items():
            self.copies[role] = {name: state[role][name] for name in copies}

    def _copy(self) -> Weights:
        return {name: value.clone() for name, value in self.trained().items()}

    @torch.no_grad()
    def _write(self, weights: Weights) -> None:
        live = self.trained()
        torch._foreach_copy_(
            [local_shard(value) for value in live.values()], [local_shard(weights[name]) for name in live]
        )

    def _follow(self, role: str, decay: float) -> None:
        live, copy = self.trained(), self.copies[role]
        torch._foreach_lerp_(
            [local_shard(copy[name]) for name in live], [local_shard(value) for value in live.values()], 1 - decay
        )


def local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds; all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Learner(ABC):
    """One process of a training.

    Attributes:
        network: the network as this process trains it; its forward pass is that of training.
        roles: the trained weights and their copies by role.
        optimizer: set by the subclass.
        iteration: how many steps or iterations were taken.
    """

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        model: nn.Module,
        network: nn.Module,
        accelerator: Accelerator,
        ema: float,
        old: SlowCopy | None = None,
        reference: bool = True,
    ) -> None:
        """model: what is trained, on its device. network: holds the model, and its forward pass is that of training.
        ema, old, reference: see ``Roles``."""
        self.accelerator = accelerator
        self.device = accelerator.device
        self.outline = outline(model)
        self.network = distribute(accelerator, network)
        self.roles = Roles(model, ema, old, self.network, reference)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.iteration = 0

    def whole(self) -> nn.Module | None:
        """A copy of the model as it is now, on the main process; all processes together."""
        return whole(self.accelerator, self.roles.policy, self.outline)

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """Plain values that a state holds besides tensors."""

    @abstractmethod
    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Inverse of ``progress``."""

    def check_progress(self, progress: Mapping[str, Any], run: Path) -> None:
        """See that a state of the run in this folder can be resumed with these settings.

        Raises:
            BadInput: it cannot.
        """
        return

    def process_state(self) -> Weights:
        """Tensors that this process alone has."""
        return {}

    def load_process_states(self, states: Sequence[Weights]) -> None:
        """Inverse of ``process_state``, from the states of all processes; there may be another number of them now."""
        return

    def fixed_tensors(self) -> Weights:
        """Tensors by name that are not trained and belong to a state all the same."""
        return {}

    def state_dict(self) -> Weights:
        """Weights of all roles, the optimiser's moments, and what is fixed, as ``kind/name``. Noise, prompts and plans
        are functions of the iteration and need no state."""
        roles = self.roles.state_dict()
        state = {f"{role}/{name}": value for role, weights in roles.items() for name, value in weights.items()}
        for name, parameter in self.roles.parameters().items():
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"optimizer.{moment}/{name}": value for moment, value in moments.items()}
        return state | {f"fixed/{name}": value for name, value in self.fixed_tensors().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Inverse of ``state_dict``."""
        kinds: dict[str, Weights] = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            kinds.setdefault(kind, {})[name] = value
        for name, tensor in self.fixed_tensors().items():
            tensor.copy_(kinds["fixed"][name])
        self.roles.load_state_dict(kinds)
        moments = {kind.removeprefix("optimizer."): kinds[kind] for kind in kinds if kind.startswith("optimizer.")}
        for name, parameter in self.roles.parameters().items():
            self.optimizer.state[parameter] = {kind: own[name] for kind, own in moments.items() if name in own}

"""The base class of long trainings: weights in several roles, an optimiser, and a state that can be resumed.

    network ─► distribute (whole, replicated or sharded) ─► roles: live, ema, … ─► state_dict ─► training/state.py

``WeightRoles`` keeps copies of the trained weights; ``Learner`` is one process of a training. Supervised training
(``models/flow_matching.py``) and post-training (``rl/learner.py``) subclass it and add their loss.
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
from flowportrait.training.distributed import distribute, empty_copy, fsdp_units, full_copy

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SlowCopy:
    """How the role ``old`` follows the live weights (DiffusionNFT, 2509.16117).

    After iteration i:  old ← d·old + (1−d)·live,  d = min(rate·i, max_decay)
    """

    rate: float = 1e-3
    """Increase of the decay d per iteration."""
    max_decay: float = 0.5
    """Largest decay d."""

    earlier_keys = (("most", "max_decay"),)

    def __post_init__(self) -> None:
        at_least(self, rate=0, max_decay=0)


class WeightRoles:
    """Copies of a policy's trained weights, one for each role.

        live  is trained     ref  never moves     ema  follows and is saved     old  follows slowly, makes rollouts

    Further copies, such as that of a critic, begin as the live weights and are trained by themselves (``train``).

    ``with roles.use("ema"):`` puts the weights of that role into the policy for a while. Of sharded weights every
    process keeps its shard of each role. Only trainable tensors are kept: for a model that trains adapters (LoRA), a
    role holds the adapters, and ``ref`` the adapters before the first update, which change nothing.
    """

    def __init__(
        self,
        policy: nn.Module,
        ema: float,
        old: SlowCopy | None = None,
        network: nn.Module | None = None,
        reference: bool = True,
        further: Sequence[str] = (),
    ) -> None:
        """Copy the trained weights of ``policy`` into every role.

        Args:
            policy: the model in which the live weights are.
            ema: decay of the role ``ema``.
            old: how the role ``old`` follows; None for no such role.
            network: what was distributed, if that is a network around the policy.
            reference: whether to keep the role ``ref``.
            further: names of further roles, which are trained by themselves.
        """
        self.policy = policy
        self.network = network or policy
        self.decay = ema
        self.slow = old
        names = [*(["ref"] if reference else []), "ema", *(["old"] if old else []), *further]
        self.copies: dict[str, Weights] = {name: self._copy() for name in names}

    @property
    def rollout_role(self) -> str:
        """The role that makes rollouts."""
        return "old" if self.slow else "live"

    def trained(self) -> Weights:
        """Return the live trainable tensors by name.

        Gathered weights are released first, since they would be outdated after a change.
        """
        return {name: parameter.data for name, parameter in self.parameters().items()}

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters by name, as the optimiser knows them; gathered weights are released."""
        for unit in fsdp_units(self.network):
            unit.reshard()
        return {name: parameter for name, parameter in self.policy.named_parameters() if parameter.requires_grad}

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Put the weights of ``role`` into the policy inside the block; afterwards the live ones are restored."""
        if role not in self.copies:
            yield
            return
        live = self._copy()
        self._write(self.copies[role])
        try:
            yield
        finally:
            self._write(live)

    @contextmanager
    def train(self, role: str) -> Iterator[None]:
        """Put the weights of ``role`` into the policy to be trained inside the block; what they become is its copy."""
        live = self._copy()
        self._write(self.copies[role])
        try:
            yield
            self.copies[role] = self._copy()
        finally:
            self._write(live)

    @torch.no_grad()
    def after_update(self, updates: int) -> None:
        """Move ``ema`` towards ``live`` after an update; at first it follows faster, so that the start is forgotten."""
        self._follow("ema", min(self.decay, (1 + updates) / (10 + updates)))

    @torch.no_grad()
    def after_iteration(self, iteration: int) -> None:
        """Move ``old`` towards ``live`` after an iteration, if the role exists."""
        if self.slow:
            self._follow("old", min(self.slow.rate * iteration, self.slow.max_decay))

    def state_dict(self) -> dict[str, Any]:
        """Return the weights of all roles as ``{role: {name: tensor}}``."""
        return {"live": self._copy(), **self.copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what ``state_dict`` returned."""
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
    """Return the part of a tensor that this process holds; all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Learner(ABC):
    """One process of a training.

    Attributes:
        network: the network as this process trains it; its forward pass is the one that is trained.
        roles: the trained weights and their copies by role.
        optimizer: set by the subclass.
        role_optimizers: role → optimiser of a copy of the weights that is trained by itself, set by the subclass.
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
        further: Sequence[str] = (),
    ) -> None:
        """Distribute the network and copy its weights into their roles.

        Args:
            model: the model to train, on its device.
            network: a network around the model; its forward pass is the one that is trained.
            accelerator: the processes.
            ema: see ``WeightRoles``, like ``old``, ``reference`` and ``further``.
        """
        self.accelerator = accelerator
        self.device = accelerator.device
        self.template = empty_copy(model)
        self.network = distribute(accelerator, network)
        self.roles = WeightRoles(model, ema, old, self.network, reference, further)
        self.role_optimizers: dict[str, torch.optim.Optimizer] = {}
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.iteration = 0

    def whole(self) -> nn.Module | None:
        """Return an unsharded copy of the model on the main process, None on the others; all call it together."""
        return full_copy(self.accelerator, self.roles.policy, self.template)

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """Return the plain values (JSON) that a state holds besides tensors."""

    @abstractmethod
    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Load what ``progress`` returned."""

    def check_progress(self, progress: Mapping[str, Any], run: Path) -> None:
        """Check that a state of the run in this folder can be resumed with these settings.

        Raises:
            BadInput: the state cannot be resumed.
        """
        return

    def process_state(self) -> Weights:
        """Return the tensors that this process alone has."""
        return {}

    def load_process_states(self, states: Sequence[Weights]) -> None:
        """Load what ``process_state`` returned on all processes; the number of processes may have changed since."""
        return

    def fixed_tensors(self) -> Weights:
        """Return tensors by name that are not trained but belong to a state."""
        return {}

    def state_dict(self) -> Weights:
        """Return the weights of all roles, the moments of the optimisers and the fixed tensors, as ``kind/name``.

        Noise, prompts and plans are functions of the iteration and need no state.
        """
        roles = self.roles.state_dict()
        state = {f"{role}/{name}": value for role, weights in roles.items() for name, value in weights.items()}
        for start, optimizer in self._optimizers().items():
            for name, parameter in self.roles.parameters().items():
                moments = optimizer.state.get(parameter, {})
                state |= {f"{start}{moment}/{name}": value for moment, value in moments.items()}
        return state | {f"fixed/{name}": value for name, value in self.fixed_tensors().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load what ``state_dict`` returned."""
        kinds: dict[str, Weights] = {}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            kinds.setdefault(kind, {})[name] = value
        for name, tensor in self.fixed_tensors().items():
            tensor.copy_(kinds["fixed"][name])
        self.roles.load_state_dict(kinds)
        for start, optimizer in self._optimizers().items():
            moments = {kind.removeprefix(start): kinds[kind] for kind in kinds if kind.startswith(start)}
            for name, parameter in self.roles.parameters().items():
                optimizer.state[parameter] = {
                    kind: tensors[name] for kind, tensors in moments.items() if name in tensors
                }

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return the optimisers by the beginning of the names of their moments in a state."""
        return {"optimizer.": self.optimizer} | {
            f"{role}.optimizer.": optimizer for role, optimizer in self.role_optimizers.items()
        }

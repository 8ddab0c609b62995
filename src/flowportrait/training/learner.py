"""What every long training has in common: weights in their roles, an optimiser, and a state that survives anything.

    network ─► distribute (whole, replicated or in shards) ─► roles: live, ema, … ─► state_dict ─► training/state.py

Supervised training (``generator/learner.py``) and post-training (``posttrain/learner.py``) add what they learn from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from flowportrait.training.roles import Roles, SlowCopy, Weights
from flowportrait.training.shards import distribute, outline, whole


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

"""A generator of three methods as a policy: all of a sample is one chunk.

x [..., D]  ⇄  [B, *shape],    a context is what is known, with the leading sizes of x
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn

from flowportrait.errors import BadInput
from flowportrait.policies.interface import DecodedSamples, Generator, Item
from flowportrait.posttrain.rollout import map_tensors
from flowportrait.written import complete


class Condition(NamedTuple):
    """What is known of each sample."""

    known: Any

    @property
    def chunks(self) -> int:
        """One: everything at once."""
        return 1

    def select(self, rows: torch.Tensor) -> Condition:
        """The samples at ``rows``."""
        return Condition(map_tensors(lambda part: part[rows.to(part.device)], self.known))

    def repeat(self, times: int) -> Condition:
        """Each sample ``times`` times in a row."""
        return Condition(map_tensors(lambda part: part.repeat_interleave(times, 0), self.known))


class SingleChunkSession:
    """A session of one chunk."""

    def __init__(self, condition: Condition) -> None:
        self.known = condition.known

    def context(self) -> Any:
        """What is known."""
        return self.known

    def append(self, latents: torch.Tensor) -> None:
        """Nothing comes after it."""


class GeneratorPolicy(nn.Module):
    """See the module. ``networks`` are what is trained: the generator itself, or what it names."""

    generator: Generator

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        named = getattr(generator, "networks", None)
        if named is None and not isinstance(generator, nn.Module):
            raise BadInput(f"{type(generator).__name__} has nothing to train: make it a torch.nn.Module.")
        self.generator = generator
        self.networks = nn.ModuleDict(named or {})
        self.keeps_adapters = named is not None
        """Whether adapters are saved by themselves instead of merged into the weights."""
        # One piece of a rollout is decoded in a thread of its own while the next is encoded, and autoencoders of video
        # (Wan's) keep what they work on in themselves.
        self.lock = Lock()
        blocks = [getattr(part, "_no_split_modules", None) or getattr(part, "_repeated_blocks", None) or ()
                  for part in self.networks.values()]  # fmt: skip
        self._no_split_modules = [name for names in blocks for name in names]

    def __deepcopy__(self, memo: dict[int, Any]) -> GeneratorPolicy:
        # Encoders and autoencoders of a pipeline are frozen: copies share them.
        memo[id(self.lock)] = self.lock
        if self.networks:
            memo[id(self.generator)] = self.generator
        result = self.__class__.__new__(self.__class__)
        memo[id(self)] = result
        result.__dict__ = {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()}
        return result

    @property
    def latent_dim(self) -> int:
        """D, numbers per sample."""
        return int(torch.Size(self.generator.shape).numel())

    @property
    def device(self) -> torch.device:
        """Where the trained network is."""
        return next(self.parameters()).device

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> Any:
        """``known`` of items, detached.

        Raises:
            BadInput: it is no tuple.
        """
        with self.lock:
            known = self.generator.encode(items)
        if not isinstance(known, tuple):
            raise BadInput(f"encode returns a {type(known).__name__}: return a tuple of tensors.")
        return map_tensors(lambda part: part.detach(), known)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, condition: Condition) -> DecodedSamples:
        """Latents ``[B, 1, D]`` as rewards see them."""
        with self.lock:
            return self.generator.decode(latents.reshape(-1, *self.generator.shape), condition.known)

    def session(self, condition: Condition) -> SingleChunkSession:
        """Start generating."""
        return SingleChunkSession(condition)

    def contexts(self, condition: Condition, latents: torch.Tensor) -> Any:
        """What is known, for the one chunk ``[B, 1, …]``."""
        return map_tensors(lambda part: part[:, None], condition.known)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: Any) -> torch.Tensor:
        """v ``[..., D]`` at x ``[..., D]``; sigma and context broadcast to its leading sizes."""
        lead = x.shape[:-1]
        count = int(torch.Size(lead).numel())
        known = map_tensors(
            lambda part: part.expand(*lead, *part.shape[len(lead) :]).flatten(0, len(lead) - 1), context
        )
        level = sigma.expand(lead).reshape(count)
        return self.generator.velocity(x.reshape(count, *self.generator.shape), level, known).reshape(x.shape)

    def levels(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The generator's own schedule for levels ``[K + 1]`` from 1 to 0."""
        own = getattr(self.generator, "levels", None)
        return own(sigmas) if own else sigmas

    def recompute_activations(self) -> None:
        """Trade activations for a second forward pass.

        Raises:
            BadInput: the generator cannot.
        """
        for network in self.networks.values():
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        if not self.networks:
            own = getattr(self.generator, "recompute_activations", None)
            if own is None:
                name = type(self.generator).__name__
                raise BadInput(f"checkpointing=true needs a method recompute_activations of {name}: leave it false.")
            own()

    def save_pretrained(self, folder: Path) -> None:
        """What was trained, in the way of the generator, else as ``model.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.networks:
            pipeline: Any = self.generator
            pipeline.save(folder, dict(self.networks))
        elif hasattr(self.generator, "save_pretrained"):
            self.generator.save_pretrained(folder)
        else:
            assert isinstance(self.generator, nn.Module), "what names no networks is one"
            weights = {name: value.contiguous() for name, value in self.generator.state_dict().items()}
            with complete(folder / "model.safetensors") as partial:
                save_file(weights, partial)

"""A diffusers pipeline as a generator that can be post-trained.

    encode     record the pipeline's first step ─► the transformer's arguments, without x        (once per item)
    velocity   call the transformer at any x and σ, for both branches of guidance
    decode     decode whole samples with the pipeline's autoencoder
    save       write adapters as ``pipeline.load_lora_weights(folder)`` reads them

``PipelineGenerator`` does this with the family of the pipeline (``adapters.families``); the functions after it write
adapters. Their files include rank and alpha: without alpha, loaders assume that it equals the rank, and the adapter
would have another strength than in training.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from flowportrait.adapters.families import family_of
from flowportrait.adapters.pipeline_family import Call
from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.adapters.recorded_calls import (
    RecordedStep,
    is_per_item,
    record_first_step,
    same_arguments,
    split_branches,
    with_euler_steps,
)
from flowportrait.errors import BadInput
from flowportrait.flow.noise import keyed_noise
from flowportrait.flow.schedules import noise_schedule, schedule_shift, shift_levels, solve_ode
from flowportrait.media.image import read_image
from flowportrait.rendering.vae_codec import VaeCodec, VideoLatents
from flowportrait.rl.rollout import map_tensors

VELOCITY_TOLERANCE, VELOCITY_TOLERANCE_HALF = 1e-3, 0.1
"""Largest relative gap between the velocity that the pipeline used and ours, in float32 and half precision."""

CHANGING_ARGUMENTS = frozenset({"guidance_scale_2", "skip_guidance_layers", "cfg_truncation"})
"""Arguments with which later steps are guided differently from the first, which is the one that is recorded."""

ADAPTER, PREFIX = "default", "transformer"
ADAPTER_FILES = {
    "transformer": "pytorch_lora_weights.safetensors",
    "transformer_2": "pytorch_lora_weights_2.safetensors",
}
"""File names of the adapters of a pipeline's networks."""


class EncodedItems(NamedTuple):
    """The transformer's arguments that have a row per item, in the order of their names.

    Attributes:
        prompted: those with the prompt.
        unprompted: those without it, empty where the pipeline does not guide.
    """

    prompted: tuple[torch.Tensor | None, ...]
    unprompted: tuple[torch.Tensor | None, ...]


class PipelineGenerator:
    """A generator from a diffusers pipeline, for which the networks of the pipeline are trained.

    For example:

        generator = PipelineGenerator(WanImageToVideoPipeline.from_pretrained(…), {"num_frames": 49})
        policy = GeneratorPolicy(generator)
    """

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any] | None = None, fps: float | None = None) -> None:
        """Freeze everything but the networks of the pipeline.

        Args:
            pipeline: a diffusers pipeline of a supported family.
            arguments: of every call of the pipeline: ``height``, ``num_frames``, ``guidance_scale``, …
            fps: frame rate of videos, by default that of the arguments or the family.

        Raises:
            BadInput: no family supports the pipeline, its parts do not fit together, or it lacks an argument.
        """
        self.pipeline = pipeline
        self.family = family_of(pipeline)
        self.arguments = {**self.family.neutral_arguments, **(arguments or {})}
        self.fps = fps or float(self.arguments.get("frame_rate", self.family.fps))
        _check(pipeline, self.family.latent_channels, self.arguments)
        self.codec = VaeCodec(pipeline.vae)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        names = [name for name in ("transformer", "transformer_2") if getattr(pipeline, name, None) is not None]
        self.networks: dict[str, nn.Module] = {name: getattr(pipeline, name).requires_grad_(True) for name in names}
        self.recorded: RecordedStep | None = None
        self.shared: Call = {}
        self.names: tuple[str, ...] = ()
        self._shape: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the latents that the scheduler integrates; known once an item was encoded."""
        assert self._shape, "encode an item first"
        return self._shape

    def encode(self, items: Sequence[Item]) -> EncodedItems:
        """Return the arguments that the pipeline passes to its transformer for each item."""
        rows = [self._encode(item) for item in items]
        return map_tensors(lambda *parts: torch.cat(parts), *rows)

    def call_arguments(self, item: Item) -> dict[str, Any]:
        """Return the arguments of the pipeline for an item.

        Raises:
            BadInput: the item has an input that the pipeline does not take, or lacks one that it needs.
        """
        name, family = type(self.pipeline).__name__, self.family
        provided = {key for key in ("text", "image", "audio") if getattr(item, key)}
        if "prompt_embeds" in self.arguments:
            provided.add("text")
        for key in sorted(provided - family.takes - {"audio"}):
            raise BadInput(f"{name} takes no {key}, which prompt {item.id!r} has: leave it out or use one that does.")
        for key in sorted(family.needs - provided):
            raise BadInput(f"{name} needs {'an' if key[0] in 'ai' else 'a'} {key}: prompt {item.id!r} has none.")
        arguments = dict(self.arguments)
        if item.text and "prompt_embeds" not in arguments:
            arguments["prompt"] = item.text
        if item.image is not None:
            from PIL import Image

            arguments["image"] = Image.fromarray(read_image(item.image))
        return arguments

    def _encode(self, item: Item) -> EncodedItems:
        arguments, device = self.call_arguments(item), next(self.networks["transformer"].parameters()).device
        if self.pipeline.vae.device != device:
            self.pipeline.to(device)
        recorded = record_first_step(self.pipeline, arguments)
        self.weight = self.family.guidance(arguments)
        x = self.family.generated_part(recorded.sample).float()
        branches = [
            self.family.recorded_inputs(call, x) for call in split_branches(recorded.calls, self.family.prompted_first)
        ]
        names = tuple(sorted(name for name, value in branches[0].items() if is_per_item(value)))
        shared = {name: value for name, value in branches[0].items() if name not in names}
        if self.recorded is None:
            self.recorded = recorded._replace(calls=[])
            self.names, self.shared, self._shape = names, shared, tuple(x.shape[1:])
        elif tuple(x.shape[1:]) != self._shape or not same_arguments(shared, self.shared):
            raise BadInput(f"Prompt {item.id!r} makes another size than those before it: give all the same size.")
        self.names = names
        self._check_velocity(recorded, branches, x)
        driven = [self.family.add_inputs({**shared, **branch}, item) for branch in branches]
        self.names = tuple(sorted(name for name, value in driven[0].items() if is_per_item(value)))
        return self._per_item(driven)

    def _per_item(self, branches: Sequence[Call]) -> EncodedItems:
        """Select the arguments that have a row per item."""
        rows = [tuple(branch.get(name) for name in self.names) for branch in branches]
        return EncodedItems(rows[0], rows[1] if len(rows) > 1 else ())

    @torch.no_grad()
    def _check_velocity(self, recorded: RecordedStep, branches: Sequence[Call], x: torch.Tensor) -> None:
        """Raise ``BadInput`` if the velocity differs from the one that the pipeline used at its first step."""
        gap = float("inf")
        if len(branches) <= 2:
            replayed = self.velocity(x, recorded.time.reshape(1).to(x) / 1000, self._per_item(branches))
            used = self.family.generated_part(recorded.velocity).float()
            gap = float((replayed - used).norm() / used.norm().clamp_min(1e-9))
        half = self.pipeline.transformer.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
        if not gap <= (VELOCITY_TOLERANCE_HALF if half else VELOCITY_TOLERANCE):
            raise BadInput(
                f"{type(self.pipeline).__name__} guides in a way that cannot be replayed (its velocity differs by "
                f"{gap:.2g}): leave rescaling, skipped layers and other additions to guidance off."
            )

    def call(self, x: torch.Tensor, sigma: torch.Tensor, rows: Sequence[torch.Tensor | None]) -> tuple[Call, Call]:
        """Return the transformer's arguments for one branch of guidance.

        Args:
            x: latents ``[B, *shape]``.
            sigma: noise levels ``[B]``.
            rows: the arguments with a row per item, ``known.prompted`` or ``known.unprompted``.

        Returns:
            The recorded arguments without x, and those with it.
        """
        assert self.recorded is not None, "encode an item first"
        arguments = {**self.shared, **dict(zip(self.names, rows, strict=True))}
        time = float(self.recorded.time)
        arguments |= {
            name: self.family.timesteps(sigma, arguments[name], time)
            for name in self.family.timestep_arguments
            if arguments.get(name) is not None
        }
        return arguments, self.family.call(x, arguments)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: EncodedItems) -> torch.Tensor:
        """Return the velocity ``[B, *shape]`` in float32, with the guidance of the pipeline."""
        results = []
        for rows in known[:2]:
            if rows:
                arguments, call = self.call(x, sigma, rows)
                results.append(self.family.read_velocity(self.family.network(call, sigma), x, arguments).float())
        return results[0] if len(results) == 1 else self.family.guide(results[0], results[1], self.weight)

    def decode(self, x: torch.Tensor, known: EncodedItems) -> DecodedSamples:
        """Decode the frames of every sample, one sample at a time and without tiles."""
        clips = []
        for row in range(len(x)):
            one = x[row : row + 1]
            arguments, _ = self.call(
                one, x.new_ones(1), map_tensors(lambda part, at=row: part[at : at + 1], known.prompted)
            )
            latents = self.family.latents(one, arguments)[0].float().cpu()
            values = latents.transpose(0, 1) if latents.ndim == 4 else latents[None]
            count, cell = (len(values) - 1) * self.codec.temporal + 1, self.codec.spatial
            size = VideoLatents(values, count, values.shape[2] * cell, values.shape[3] * cell)
            clips.append(np.stack(list(self.codec.decode(size))))
        return DecodedSamples(clips, self.fps)

    def levels(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Return the noise levels of the pipeline for as many steps as ``sigmas`` has, with the shift of ``sigmas``
        added."""
        assert self.recorded is not None, "encode an item first"
        scheduler, steps = copy.deepcopy(self.pipeline.scheduler), len(sigmas) - 1
        arguments: dict[str, Any] = {"num_inference_steps": steps}
        if self.recorded.evenly:
            arguments["sigmas"] = noise_schedule(steps)[:-1].tolist()
        if self.recorded.mu is not None:
            arguments["mu"] = self.family.shift(self.recorded, steps)
        scheduler.set_timesteps(**arguments)
        return shift_levels(scheduler.sigmas.float().cpu(), schedule_shift(sigmas))

    @torch.no_grad()
    def delivery_gap(self, item: Item, steps: int = 3) -> int | None:
        """Return the largest difference between the frames that rewards see and those of the pipeline, of 255.

        Both start from the same noise; solvers of higher order are replaced by Euler's.

        Returns:
            The difference, or None where the pipeline cannot be called with the same inputs.
        """
        known, noise = self.encode([item]), keyed_noise(self.shape, 0)[None].to(self.pipeline.transformer.device)
        arguments, _ = self.call(noise, noise.new_ones(1), known.prompted)
        start = self.family.start(noise, arguments)
        if start is None:
            return None
        levels = self.levels(noise_schedule(steps))
        x = solve_ode(lambda x, sigma: self.velocity(x, sigma.to(x).expand(1), known), noise, levels)
        (clip,) = self.decode(x, known).frames or ()
        with with_euler_steps(self.pipeline, levels):
            arguments = {"latents": start, "num_inference_steps": steps, "output_type": "np"}
            results = self.pipeline(**self.call_arguments(item), **arguments)[0]
        expected = (np.asarray(results[0], np.float32) * 255).round().astype(int)
        return int(np.abs(expected.reshape(clip.shape) - clip).max()) if expected.size == clip.size else 255

    def save(self, folder: Path, networks: Mapping[str, Any]) -> None:
        """Write the adapters of the trained networks as diffusers loads them, or networks that were trained in full."""
        adapters = {name: adapter_weights(network) for name, network in networks.items()}
        if any(adapters.values()):
            write_adapters(adapters, networks, folder)
        else:
            for name, network in networks.items():
                network.save_pretrained(folder / name)


def _check(pipeline: Any, channels: int, arguments: Mapping[str, Any]) -> None:
    name = type(pipeline).__name__
    config = pipeline.vae.config
    vae_channels = config.get("z_dim") or config.get("latent_channels")
    if vae_channels != channels:
        raise BadInput(
            f"{name}: the autoencoder makes {vae_channels} latent channels where the transformer works in {channels}: "
            "load the one that belongs to it."
        )
    if getattr(pipeline.vae, "use_tiling", False):
        raise BadInput(f"{name} decodes in tiles, whose seams rewards would learn from: call vae.disable_tiling().")
    known = inspect.signature(pipeline.__call__).parameters
    if changing := sorted(CHANGING_ARGUMENTS & arguments.keys()):
        raise BadInput(f"{name}: {changing[0]} changes guidance on the way, which is not replayed: leave it out.")
    for argument in arguments:
        if argument not in known:
            raise BadInput(f"{name} has no argument {argument!r}: it has {', '.join(known)}.")


def adapter_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network's adapters by their names in diffusers; none without adapters."""
    return {
        name.replace(f".{ADAPTER}", ""): value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if ".lora_" in name
    }


def adapter_config(network: nn.Module) -> dict[str, Any]:
    """Return rank, alpha and layers of a network's adapters, as ``peft`` writes them."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    layers = {name: part for name, part in network.named_modules() if isinstance(part, LoraLayer)}
    first = next(iter(layers.values()))
    config = LoraConfig(r=first.r[ADAPTER], lora_alpha=first.lora_alpha[ADAPTER], target_modules=sorted(layers))
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def write_adapters(
    adapters: Mapping[str, Mapping[str, torch.Tensor]], networks: Mapping[str, nn.Module], folder: Path
) -> None:
    """Write adapters, one file per network.

    ``load_lora_weights`` finds the first file by itself; the second is loaded with
    ``weight_name=ADAPTER_FILES["transformer_2"], load_into_transformer_2=True``.
    """
    from diffusers.loaders.lora_base import LoraBaseMixin

    for name, weights in adapters.items():
        LoraBaseMixin._save_lora_weights(
            folder, {PREFIX: dict(weights)}, {PREFIX: adapter_config(networks[name])}, weight_name=ADAPTER_FILES[name]
        )

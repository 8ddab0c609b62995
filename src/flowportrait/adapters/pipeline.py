"""A diffusers pipeline as a generator.

encode     hear the pipeline's first step ─► the transformer's arguments, without x        (once per item)
velocity   the transformer again, at any x and σ, both branches where it guides
decode     its autoencoder, whole, as the pipeline would
save       adapters as ``pipeline.load_lora_weights(folder)`` reads them

Files of adapters also say rank and alpha: without alpha, loaders take it to be the rank, and the adapter would act with
another strength than it was trained with.
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
from flowportrait.adapters.pipeline_family import (
    Call,
    RecordedStep,
    is_per_item,
    record_first_step,
    same_arguments,
    split_branches,
    with_euler_steps,
)
from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.errors import BadInput
from flowportrait.flow.noise import unit_noise
from flowportrait.flow.paths import shift_levels, shift_of, shifted, solve
from flowportrait.media.image import read_image
from flowportrait.rendering.vae_codec import VaeCodec, VideoLatents
from flowportrait.rl.rollout import map_tensors

AGREES, AGREES_HALF = 1e-3, 0.1
"""Largest relative gap between the velocity that the pipeline used and ours, in float32 and half precision."""

CHANGING = frozenset({"guidance_scale_2", "skip_guidance_layers", "cfg_truncation"})
"""Arguments under which later steps are guided otherwise than the first, which is the one that is recorded."""

ADAPTER, PREFIX = "default", "transformer"
ADAPTER_FILES = {
    "transformer": "pytorch_lora_weights.safetensors",
    "transformer_2": "pytorch_lora_weights_2.safetensors",
}
"""Where the adapters of a pipeline's networks are."""


class Known(NamedTuple):
    """The transformer's arguments that have a row per item, in the order of their names: with the prompt, and where
    the pipeline guides, without."""

    prompted: tuple[torch.Tensor | None, ...]
    unprompted: tuple[torch.Tensor | None, ...]


class PipelineGenerator:
    """See the module. ``arguments`` go to every call of the pipeline: ``height``, ``num_frames``, ``guidance_scale``, …

    ::

        generator = PipelineGenerator(WanImageToVideoPipeline.from_pretrained(…), {"num_frames": 49})
        policy = GeneratorPolicy(generator)

    Raises:
        BadInput: no family for this pipeline, parts that do not fit together, or an argument it does not have.
    """

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any] | None = None, fps: float | None = None) -> None:
        self.pipeline = pipeline
        self.family = family_of(pipeline)
        self.arguments = {**self.family.plain, **(arguments or {})}
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
        """Of the latents that the scheduler integrates, known from the first item on."""
        assert self._shape, "encode an item first"
        return self._shape

    def encode(self, items: Sequence[Item]) -> Known:
        """What the pipeline tells its transformer about each item."""
        rows = [self._encode(item) for item in items]
        return map_tensors(lambda *parts: torch.cat(parts), *rows)

    def call_arguments(self, item: Item) -> dict[str, Any]:
        """What the pipeline is called with for an item.

        Raises:
            BadInput: the item has what this pipeline does not take, or lacks what it needs.
        """
        name, family = type(self.pipeline).__name__, self.family
        given = {key for key in ("text", "image", "audio") if getattr(item, key)}
        if "prompt_embeds" in self.arguments:
            given.add("text")
        for key in sorted(given - family.takes - {"audio"}):
            raise BadInput(f"{name} takes no {key}, which prompt {item.id!r} has: leave it out or use one that does.")
        for key in sorted(family.needs - given):
            raise BadInput(f"{name} needs {'an' if key[0] in 'ai' else 'a'} {key}: prompt {item.id!r} has none.")
        arguments = dict(self.arguments)
        if item.text and "prompt_embeds" not in arguments:
            arguments["prompt"] = item.text
        if item.image is not None:
            from PIL import Image

            arguments["image"] = Image.fromarray(read_image(item.image))
        return arguments

    def _encode(self, item: Item) -> Known:
        arguments, device = self.call_arguments(item), next(self.networks["transformer"].parameters()).device
        if self.pipeline.vae.device != device:
            self.pipeline.to(device)
        recorded = record_first_step(self.pipeline, arguments)
        self.weight = self.family.guidance(arguments)
        x = self.family.sampled(recorded.sample).float()
        branches = [self.family.rows(call, x) for call in split_branches(recorded.calls, self.family.prompted_first)]
        names = tuple(sorted(name for name, value in branches[0].items() if is_per_item(value)))
        shared = {name: value for name, value in branches[0].items() if name not in names}
        if self.recorded is None:
            self.recorded = recorded._replace(calls=[])
            self.names, self.shared, self._shape = names, shared, tuple(x.shape[1:])
        elif tuple(x.shape[1:]) != self._shape or not same_arguments(shared, self.shared):
            raise BadInput(f"Prompt {item.id!r} makes another size than those before it: give all the same size.")
        self.names = names
        self._agrees(recorded, branches, x)
        driven = [self.family.drive({**shared, **branch}, item) for branch in branches]
        self.names = tuple(sorted(name for name, value in driven[0].items() if is_per_item(value)))
        return self._known(driven)

    def _known(self, branches: Sequence[Call]) -> Known:
        taken = [tuple(branch.get(name) for name in self.names) for branch in branches]
        return Known(taken[0], taken[1] if len(taken) > 1 else ())

    @torch.no_grad()
    def _agrees(self, recorded: RecordedStep, branches: Sequence[Call], x: torch.Tensor) -> None:
        """Raises ``BadInput`` if the velocity is not what the pipeline itself used at its first step."""
        gap = float("inf")
        if len(branches) <= 2:
            own = self.velocity(x, recorded.time.reshape(1).to(x) / 1000, self._known(branches))
            wanted = self.family.sampled(recorded.velocity).float()
            gap = float((own - wanted).norm() / wanted.norm().clamp_min(1e-9))
        half = self.pipeline.transformer.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
        if not gap <= (AGREES_HALF if half else AGREES):
            raise BadInput(
                f"{type(self.pipeline).__name__} guides in a way that cannot be replayed (its velocity differs by "
                f"{gap:.2g}): leave rescaling, skipped layers and other additions to guidance off."
            )

    def call(self, x: torch.Tensor, sigma: torch.Tensor, rows: Sequence[torch.Tensor | None]) -> tuple[Call, Call]:
        """What is kept of a branch, and the transformer's arguments for it."""
        assert self.recorded is not None, "encode an item first"
        kept = {**self.shared, **dict(zip(self.names, rows, strict=True))}
        time = float(self.recorded.time)
        kept |= {
            name: self.family.times(sigma, kept[name], time) for name in self.family.timed if kept.get(name) is not None
        }
        return kept, self.family.call(x, kept)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: Known) -> torch.Tensor:
        """v ``[B, *shape]`` in float32, guided as the pipeline does."""
        results = []
        for rows in known[:2]:
            if rows:
                kept, call = self.call(x, sigma, rows)
                results.append(self.family.read(self.family.network(call, sigma), x, kept).float())
        return results[0] if len(results) == 1 else self.family.guide(results[0], results[1], self.weight)

    def decode(self, x: torch.Tensor, known: Known) -> DecodedSamples:
        """Frames of every sample, decoded whole and one by one."""
        clips = []
        for row in range(len(x)):
            one = x[row : row + 1]
            kept, _ = self.call(one, x.new_ones(1), map_tensors(lambda part, at=row: part[at : at + 1], known.prompted))
            latents = self.family.latents(one, kept)[0].float().cpu()
            values = latents.transpose(0, 1) if latents.ndim == 4 else latents[None]
            count, cell = (len(values) - 1) * self.codec.temporal + 1, self.codec.spatial
            size = VideoLatents(values, count, values.shape[2] * cell, values.shape[3] * cell)
            clips.append(np.stack(list(self.codec.decode(size))))
        return DecodedSamples(clips, self.fps)

    def levels(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The levels at which the pipeline would stop in as many steps, shifted once more by what ``sigmas`` are."""
        assert self.recorded is not None, "encode an item first"
        scheduler, steps = copy.deepcopy(self.pipeline.scheduler), len(sigmas) - 1
        wanted: dict[str, Any] = {"num_inference_steps": steps}
        if self.recorded.evenly:
            wanted["sigmas"] = shifted(steps)[:-1].tolist()
        if self.recorded.mu is not None:
            wanted["mu"] = self.family.shift(self.recorded, steps)
        scheduler.set_timesteps(**wanted)
        return shift_levels(scheduler.sigmas.float().cpu(), shift_of(sigmas))

    @torch.no_grad()
    def delivery_gap(self, item: Item, steps: int = 3) -> int | None:
        """How far what rewards see is from what the pipeline itself makes of the same noise, in levels of 255; none
        where the pipeline cannot be asked for the same. Solvers of higher order are replaced by Euler's for it."""
        known, noise = self.encode([item]), unit_noise(self.shape, 0)[None].to(self.pipeline.transformer.device)
        kept, _ = self.call(noise, noise.new_ones(1), known.prompted)
        start = self.family.start(noise, kept)
        if start is None:
            return None
        levels = self.levels(shifted(steps))
        x = solve(lambda x, sigma: self.velocity(x, sigma.to(x).expand(1), known), noise, levels)
        (clip,) = self.decode(x, known).frames or ()
        with with_euler_steps(self.pipeline, levels):
            arguments = {"latents": start, "num_inference_steps": steps, "output_type": "np"}
            results = self.pipeline(**self.call_arguments(item), **arguments)[0]
        theirs = (np.asarray(results[0], np.float32) * 255).round().astype(int)
        return int(np.abs(theirs.reshape(clip.shape) - clip).max()) if theirs.size == clip.size else 255

    def save(self, folder: Path, networks: Mapping[str, Any]) -> None:
        """Adapters of the trained networks as diffusers loads them, or networks trained in full."""
        found = {name: adapter_weights(network) for name, network in networks.items()}
        if any(found.values()):
            write_adapters(found, networks, folder)
        else:
            for name, network in networks.items():
                network.save_pretrained(folder / name)


def _check(pipeline: Any, channels: int, arguments: Mapping[str, Any]) -> None:
    name = type(pipeline).__name__
    config = pipeline.vae.config
    own = config.get("z_dim") or config.get("latent_channels")
    if own != channels:
        raise BadInput(
            f"{name}: the autoencoder makes {own} latent channels where the transformer works in {channels}: load the "
            "one that belongs to it."
        )
    if getattr(pipeline.vae, "use_tiling", False):
        raise BadInput(f"{name} decodes in tiles, whose seams rewards would learn from: call vae.disable_tiling().")
    known = inspect.signature(pipeline.__call__).parameters
    if changing := sorted(CHANGING & arguments.keys()):
        raise BadInput(f"{name}: {changing[0]} changes guidance on the way, which is not replayed: leave it out.")
    for argument in arguments:
        if argument not in known:
            raise BadInput(f"{name} has no argument {argument!r}: it has {', '.join(known)}.")


def adapter_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Its adapters' weights by their names in diffusers; none without adapters."""
    return {
        name.replace(f".{ADAPTER}", ""): value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
        if ".lora_" in name
    }


def adapter_config(network: nn.Module) -> dict[str, Any]:
    """Rank, alpha and layers of its adapters, as ``peft`` writes them."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    layers = {name: part for name, part in network.named_modules() if isinstance(part, LoraLayer)}
    first = next(iter(layers.values()))
    config = LoraConfig(r=first.r[ADAPTER], lora_alpha=first.lora_alpha[ADAPTER], target_modules=sorted(layers))
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def write_adapters(
    adapters: Mapping[str, Mapping[str, torch.Tensor]], networks: Mapping[str, nn.Module], folder: Path
) -> None:
    """One file per network; ``load_lora_weights`` finds the first by itself, the second one's network is said with
    ``weight_name=ADAPTER_FILES["transformer_2"], load_into_transformer_2=True``."""
    from diffusers.loaders.lora_base import LoraBaseMixin

    for name, weights in adapters.items():
        LoraBaseMixin._save_lora_weights(
            folder, {PREFIX: dict(weights)}, {PREFIX: adapter_config(networks[name])}, weight_name=ADAPTER_FILES[name]
        )

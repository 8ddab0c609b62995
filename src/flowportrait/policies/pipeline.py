"""A pipeline of diffusers as a generator: its own code encodes and decodes, its family says how to call its network.

encode     hear the pipeline's first step ─► the transformer's arguments, without x        (once per item)
velocity   the transformer again, at any x and σ, both branches where it guides
decode     its autoencoder, whole, as the pipeline would
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

from flowportrait.codec.vae_codec import VaeCodec, VideoLatents
from flowportrait.errors import BadInput
from flowportrait.flow.noise import unit_noise
from flowportrait.flow.schedule import shift_levels, shift_of, shifted
from flowportrait.flow.solver import solve
from flowportrait.media.image import read_image
from flowportrait.policies.calls import alike, is_row, taken_apart
from flowportrait.policies.families import family_of
from flowportrait.policies.families.family import Call
from flowportrait.policies.hearing import Heard, eulerian, hear
from flowportrait.policies.interface import Item, Shown
from flowportrait.posttrain.rows import each

AGREES, AGREES_HALF = 1e-3, 0.1
"""Largest relative gap between the velocity that the pipeline used and ours, in float32 and half precision."""

CHANGING = frozenset({"guidance_scale_2", "skip_guidance_layers", "cfg_truncation"})
"""Arguments under which later steps are guided otherwise than the first, which is the one that is heard."""


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
        self.heard: Heard | None = None
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
        return each(lambda *parts: torch.cat(parts), *rows)

    def asked(self, item: Item) -> dict[str, Any]:
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
        asked = dict(self.arguments)
        if item.text and "prompt_embeds" not in asked:
            asked["prompt"] = item.text
        if item.image is not None:
            from PIL import Image

            asked["image"] = Image.fromarray(read_image(item.image))
        return asked

    def _encode(self, item: Item) -> Known:
        asked, device = self.asked(item), next(self.networks["transformer"].parameters()).device
        if self.pipeline.vae.device != device:
            self.pipeline.to(device)
        heard = hear(self.pipeline, asked)
        self.weight = self.family.guidance(asked)
        x = self.family.sampled(heard.sample).float()
        branches = [self.family.rows(call, x) for call in taken_apart(heard.calls, self.family.prompted_first)]
        names = tuple(sorted(name for name, value in branches[0].items() if is_row(value)))
        shared = {name: value for name, value in branches[0].items() if name not in names}
        if self.heard is None:
            self.heard = heard._replace(calls=[])
            self.names, self.shared, self._shape = names, shared, tuple(x.shape[1:])
        elif tuple(x.shape[1:]) != self._shape or not alike(shared, self.shared):
            raise BadInput(f"Prompt {item.id!r} makes another size than those before it: give all the same size.")
        self.names = names
        self._agrees(heard, branches, x)
        driven = [self.family.drive({**shared, **branch}, item) for branch in branches]
        self.names = tuple(sorted(name for name, value in driven[0].items() if is_row(value)))
        return self._known(driven)

    def _known(self, branches: Sequence[Call]) -> Known:
        taken = [tuple(branch.get(name) for name in self.names) for branch in branches]
        return Known(taken[0], taken[1] if len(taken) > 1 else ())

    @torch.no_grad()
    def _agrees(self, heard: Heard, branches: Sequence[Call], x: torch.Tensor) -> None:
        """Raises ``BadInput`` if the velocity is not what the pipeline itself used at its first step."""
        gap = float("inf")
        if len(branches) <= 2:
            own = self.velocity(x, heard.time.reshape(1).to(x) / 1000, self._known(branches))
            wanted = self.family.sampled(heard.velocity).float()
            gap = float((own - wanted).norm() / wanted.norm().clamp_min(1e-9))
        half = self.pipeline.transformer.dtype != torch.float32 or torch.is_autocast_enabled(x.device.type)
        if not gap <= (AGREES_HALF if half else AGREES):
            raise BadInput(
                f"{type(self.pipeline).__name__} guides in a way that cannot be replayed (its velocity differs by "
                f"{gap:.2g}): leave rescaling, skipped layers and other additions to guidance off."
            )

    def call(self, x: torch.Tensor, sigma: torch.Tensor, rows: Sequence[torch.Tensor | None]) -> tuple[Call, Call]:
        """What is kept of a branch, and the transformer's arguments for it."""
        assert self.heard is not None, "encode an item first"
        kept = {**self.shared, **dict(zip(self.names, rows, strict=True))}
        time = float(self.heard.time)
        kept |= {
            name: self.family.times(sigma, kept[name], time) for name in self.family.timed if kept.get(name) is not None
        }
        return kept, self.family.call(x, kept)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: Known) -> torch.Tensor:
        """v ``[B, *shape]`` in float32, guided as the pipeline does."""
        made = []
        for rows in known[:2]:
            if rows:
                kept, call = self.call(x, sigma, rows)
                made.append(self.family.read(self.family.network(call, sigma), x, kept).float())
        return made[0] if len(made) == 1 else self.family.guide(made[0], made[1], self.weight)

    def decode(self, x: torch.Tensor, known: Known) -> Shown:
        """Frames of every sample, decoded whole and one by one."""
        clips = []
        for row in range(len(x)):
            one = x[row : row + 1]
            kept, _ = self.call(one, x.new_ones(1), each(lambda part, at=row: part[at : at + 1], known.prompted))
            latents = self.family.latents(one, kept)[0].float().cpu()
            values = latents.transpose(0, 1) if latents.ndim == 4 else latents[None]
            count, cell = (len(values) - 1) * self.codec.temporal + 1, self.codec.spatial
            size = VideoLatents(values, count, values.shape[2] * cell, values.shape[3] * cell)
            clips.append(np.stack(list(self.codec.decode(size))))
        return Shown(clips, self.fps)

    def levels(self, sigmas: torch.Tensor) -> torch.Tensor:
        """The levels at which the pipeline would stop in as many steps, shifted once more by what ``sigmas`` are."""
        assert self.heard is not None, "encode an item first"
        scheduler, steps = copy.deepcopy(self.pipeline.scheduler), len(sigmas) - 1
        wanted: dict[str, Any] = {"num_inference_steps": steps}
        if self.heard.evenly:
            wanted["sigmas"] = shifted(steps)[:-1].tolist()
        if self.heard.mu is not None:
            wanted["mu"] = self.family.shift(self.heard, steps)
        scheduler.set_timesteps(**wanted)
        return shift_levels(scheduler.sigmas.float().cpu(), shift_of(sigmas))

    @torch.no_grad()
    def delivered(self, item: Item, steps: int = 3) -> int | None:
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
        with eulerian(self.pipeline, levels):
            made = self.pipeline(**self.asked(item), latents=start, num_inference_steps=steps, output_type="np")[0]
        theirs = (np.asarray(made[0], np.float32) * 255).round().astype(int)
        return int(np.abs(theirs.reshape(clip.shape) - clip).max()) if theirs.size == clip.size else 255

    def save(self, folder: Path, networks: Mapping[str, Any]) -> None:
        """Adapters of the trained networks as diffusers loads them, or networks trained in full."""
        from flowportrait.policies.lora import adapters_of, write_adapters

        found = {name: adapters_of(network) for name, network in networks.items()}
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

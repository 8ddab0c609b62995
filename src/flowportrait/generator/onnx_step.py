"""One streaming step of a generator as an ONNX graph, for runtimes without Python.

    step(audio of the chunk, style, motion before it, noise, position, keys, values) ─► motion, keys', values'

The KV cache goes in and comes out: ``[layers, G, heads, past, d]``, G the branches of guidance, ``past`` 0 at a fresh
start (``position`` 0, every ``horizon`` chunks) and never more than the window reaches. The Euler steps are unrolled
inside, so a call draws a whole chunk from unit noise. Folder: ``step.onnx`` and ``step.json``, which says the sizes.
"""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flowportrait.codec.basis import MOTION_DIM
from flowportrait.devices import Device, onnx_providers
from flowportrait.errors import BadInput
from flowportrait.flow.schedule import shifted
from flowportrait.flow.solver import solve
from flowportrait.generator.arflow import ARFlow, Condition
from flowportrait.generator.backbone import CachedLayer, KeyValueCache
from flowportrait.written import complete, write_json

INPUTS = ("audio", "style", "previous", "noise", "position", "keys", "values")
OUTPUTS = ("motion", "new_keys", "new_values")


class Step(nn.Module):
    """The graph: one voice, one chunk."""

    def __init__(self, model: ARFlow) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        audio: torch.Tensor,
        style: torch.Tensor,
        previous: torch.Tensor,
        noise: torch.Tensor,
        position: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """audio ``[1, 1, ·]``, style ``[1, hidden]`` (both of ``ARFlow.condition``), previous ``[1, chunk, 30]``, noise
        ``[1, chunk·30]``, position ``[1]`` int64, keys and values ``[layers, G, heads, past, d]``."""
        model, last = self.model, previous[:, -1]
        branches = model.branches(Condition(audio, style, last))
        embedded = model.embed_motion(previous)
        tokens = torch.cat([model.tokens(branch, embedded) for branch in branches])
        past = KeyValueCache(model.config.layers, model.config.window)
        past.layers = [CachedLayer(*pair) for pair in zip(keys, values, strict=True)]
        state = model.backbone.decoder(tokens, past, position)
        contexts = [
            model.context_features(state[i : i + 1], branch, last[:, None])[:, 0] for i, branch in enumerate(branches)
        ]
        velocity = partial(model.velocity, context=torch.stack(contexts, -2))
        latents = solve(velocity, model.begin(noise), shifted(model.config.steps, model.config.shift))
        grown = [layer for layer in past.layers if layer is not None]
        grown_keys = torch.stack([layer.keys for layer in grown])
        grown_values = torch.stack([layer.values for layer in grown])
        return model.space.decode(latents, last), grown_keys, grown_values


def empty_cache(model: ARFlow, past: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a fresh start."""
    config, branches = model.config, 1 if model.config.guidance == 1.0 else 2
    shape = (config.layers, branches, config.heads, past, config.hidden // config.heads)
    return torch.zeros(shape), torch.zeros(shape)


def export_step(model: ARFlow, path: Path) -> None:
    """Write ``path`` (.onnx) and beside it a .json with the sizes; each appears only when complete.

    Raises:
        BadInput: a generator over a pretrained backbone, or ``onnx`` is not installed.
    """
    if model.config.backbone:
        raise BadInput("Only generators with a decoder of their own can be exported, not those over a pretrained one.")
    chunk, latent = model.config.chunk, model.latent_dim
    with torch.no_grad():
        condition = model.eval().condition(torch.zeros(1, 4 * chunk, 80))
    example = (condition.audio, condition.style, torch.zeros(1, chunk, MOTION_DIM), torch.zeros(1, latent),
               torch.tensor([3]), *empty_cache(model, past=3))  # fmt: skip
    sizes: dict[str, list[Any]] = {name: list(tensor.shape) for name, tensor in zip(INPUTS, example, strict=True)}
    sizes["keys"][3] = sizes["values"][3] = "past"
    about = {"inputs": sizes, "horizon": model.config.horizon, "window": model.config.window, "chunk": chunk,
             "rest_style": condition.style[0].tolist()}  # fmt: skip
    try:
        with complete(path) as partial, warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Step(model), example, str(partial), input_names=list(INPUTS), output_names=list(OUTPUTS),
                dynamic_axes={"keys": {3: "past"}, "values": {3: "past"}, "new_keys": {3: "kept"},
                              "new_values": {3: "kept"}},
                opset_version=17, dynamo=False,
            )  # fmt: skip
    except ImportError as error:
        raise BadInput("Exporting needs onnx and onnxscript: pip install 'flowportrait[onnx]'.") from error
    write_json(path.with_suffix(".json"), about)


class OnnxStep:
    """An exported step as a ``Sampler`` uses it in place of the model's networks, for one stream."""

    def __init__(self, path: Path, threads: int = 1, device: Device | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.run = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device)).run
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.cache_shape = [0 if size == "past" else size for size in about["inputs"]["keys"]]

    def __call__(
        self, audio: torch.Tensor, style: torch.Tensor, previous: torch.Tensor, noise: torch.Tensor, place: int,
        cache: Any,
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        """Draw a chunk.

        Args:
            audio: encoded sound of the chunk ``[1, 1, ·]``.
            style: encoded style ``[1, hidden]``.
            previous: the motion before it ``[1, chunk, 30]``.
            noise: unit noise ``[1, chunk·30]``.
            place: chunks since the cache was emptied.
            cache: what the last call returned.

        Returns:
            Motion ``[1, chunk, 30]``, and the cache for the next call.
        """
        if place == 0:
            cache = (np.zeros(self.cache_shape, np.float32),) * 2
        tensors = [part.float().cpu().numpy() for part in (audio, style, previous, noise)]
        motion, *cache = self.run(None, dict(zip(INPUTS, (*tensors, np.array([place]), *cache), strict=True)))
        return torch.from_numpy(motion), cache

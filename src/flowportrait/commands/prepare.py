"""``flowportrait prepare``: videos to a training corpus."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.outputs import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("prepare", help="turn videos into a training corpus")
    add.add_argument("inputs", type=Path, nargs="+", metavar="VIDEO_OR_DIR")
    add.add_argument("--output", type=Path, required=True)
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Videos to a corpus."""
    check_output_folder(options.output)
    from flowportrait.corpus.prepare import prepare

    return {"output": str(options.output), **prepare(options.inputs, options.output)}

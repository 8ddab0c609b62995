"""``flowportrait pretrain``: supervised training on a corpus."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.outputs import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("pretrain", help="supervised training on a corpus")
    add.add_argument("--corpus", type=Path, required=True)
    add.add_argument("--output", type=Path, required=True)
    add.add_argument("--resume", action="store_true")
    add.add_argument("--set", nargs="+", action="extend", default=[], metavar="a.b=c", dest="changes")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Supervised training."""
    check_output_folder(options.output)
    from flowportrait.config import override
    from flowportrait.generator.pretrain import PretrainConfig, pretrain

    config = override(PretrainConfig(), options.changes)
    return {"checkpoint": str(pretrain(config, options.corpus, options.output, options.resume))}

"""``flowportrait pretrain``: supervised training on a corpus."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.files import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("pretrain", help="supervised training on a corpus")
    add.add_argument("--corpus", type=Path, required=True, help="folder that prepare wrote")
    add.add_argument("--output", type=Path, required=True, help="folder of the run")
    add.add_argument("--resume", action="store_true", help="go on with the run in --output")
    add.add_argument("--held-out", type=Path, help="prompts to draw and judge now and then and never train on")
    add.add_argument("--track", metavar="TRACKER", help="also write curves for tensorboard or wandb")
    add.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="a.b=c",
        dest="changes",
        help="settings, such as steps=500 generator.guidance=2 (docs/generator.md)",
    )
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Supervised training."""
    check_output_folder(options.output)
    from flowportrait.config import override
    from flowportrait.data.prompts import read_prompts
    from flowportrait.models.pretrain import PretrainConfig, pretrain

    config = override(PretrainConfig(), options.changes)
    prompts = read_prompts(options.held_out) if options.held_out else ()
    folder = pretrain(config, options.corpus, options.output, options.resume, prompts, options.track)
    return {"checkpoint": str(folder)}

"""``flowportrait verify``: what a video says about itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("verify", help="say whether a video was made with FlowPortrait, and who signed it")
    add.add_argument("video", type=Path, metavar="FILE", help="an mp4")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Tags, signature and watermark of one file."""
    from flowportrait.provenance.inspection import inspect

    found = inspect(options.video)
    return found.to_dict() if options.json else found.sentences()

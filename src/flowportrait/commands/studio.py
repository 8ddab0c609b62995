"""``flowportrait studio``: speak, compare, train and ask people in a browser on this machine."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.files import check_output_folder
from flowportrait.terminal import say, waiting


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("studio", help="all of it in a browser, on this machine alone")
    add.add_argument("--folder", type=Path, default=Path("studio"), help="where its files stay (default: ./studio)")
    add.add_argument("--port", type=int, default=7860, help="0 picks a free one")
    add.add_argument("--set", nargs="+", action="extend", default=[], metavar="a=b", dest="changes",
                     help="limits: seconds, letters, megabytes, minutes, waiting, hours, kept_megabytes")  # fmt: skip
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Serve until Ctrl-C."""
    check_output_folder(options.folder)
    with ExitStack() as shown:
        shown.enter_context(waiting("starting the studio"))
        from flowportrait.config import override
        from flowportrait.studio.render_queue import Limits
        from flowportrait.studio.server import Studio, serve

        def ready(address: str) -> None:
            shown.close()
            say(f"The studio is at {address} (Ctrl-C ends it).")

        serve(Studio(options.folder, override(Limits(), options.changes)), options.port, ready)
    return {}

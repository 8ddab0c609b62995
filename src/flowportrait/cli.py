"""The command line: ``flowportrait COMMAND …``; every command is a file in ``commands/``.

Exit code 0 on success, 2 on bad input (one sentence on standard error), 130 on Ctrl-C. With ``--json`` standard
output carries one JSON object and nothing else.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import NoReturn

from flowportrait.commands import (
    animate,
    bench,
    demo,
    doctor,
    evaluate,
    export,
    judge,
    policies,
    portraitbench,
    posttrain,
    preferences,
    prepare,
    pretrain,
    recipes,
    reward,
    score,
    studio,
    study,
    verify,
)  # fmt: skip
from flowportrait.errors import BadInput
from flowportrait.terminal import say, speaks

COMMANDS = (
    animate, prepare, pretrain, posttrain, recipes, policies, doctor, evaluate, score, judge, bench, study, studio,
    preferences, reward, demo, verify, portraitbench, export,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence instead of a usage block when something is wrong."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}; see '{self.prog} --help'.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        # Terminated like interrupted: half-written files are removed on the way out.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.showwarning = lambda message, *_, **__: say(f"Warning: {message}")
    try:
        options = parser().parse_args(arguments)
        result = options.run(options)
    except BadInput as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("Interrupted; nothing half-written was left behind.")
        return 130
    if not speaks():
        return 0
    if getattr(options, "json", False):
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    return 0


def parser() -> Parser:
    """Every command and its options."""
    root = Parser(prog="flowportrait", description="A portrait photo and speech in, a talking video out.")
    commands = root.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return root


if __name__ == "__main__":
    sys.exit(main())

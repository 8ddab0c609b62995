"""The command line: ``flowportrait COMMAND …``; every command is a file in ``commands/``.

Exit code 0 on success, 2 on bad input (one sentence on standard error) or where some of several inputs failed, 130 on
Ctrl-C. With ``--json`` standard output carries one JSON object and nothing else. A reader of standard output that
leaves early (``| head``) ends it quietly.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from flowportrait import __version__
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
from flowportrait.errors import BadInput, PartialFailure
from flowportrait.extras import missing_extra
from flowportrait.files import check_inputs_kept, complete_environment
from flowportrait.terminal import discard_broken_output, exit_on_signals, say, speaks, standard_streams

COMMANDS = (
    animate, prepare, pretrain, posttrain, recipes, policies, doctor, evaluate, score, judge, bench, study, studio,
    preferences, reward, demo, verify, portraitbench, export,
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence instead of a usage block when something is wrong."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        # A value, not an option, though it begins with a minus: -10,0 and -1e-3 as well as -10.
        self._negative_number_matcher = re.compile(r"-(\d|\.\d|inf)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        sys.stdout.flush()
        super().exit(status, message)

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}; see '{self.prog} --help'.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the command line; returns the exit code.

    For programs of one's own there are ``AnimatePipeline`` and the functions that the commands call. Signal handlers
    and the display of warnings belong to the command while it runs, and are the caller's again afterwards.
    """
    show = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: say(f"Warning: {message}")
    try:
        with standard_streams(), exit_on_signals():
            return _main(arguments)
    finally:
        warnings.showwarning = show


def _main(arguments: Sequence[str] | None) -> int:
    complete_environment()
    try:
        return _run(arguments)
    except BrokenPipeError:
        if not discard_broken_output():
            raise
        return 0
    except BadInput as error:
        say(str(error))
        return 2
    except ModuleNotFoundError as error:
        sentence = missing_extra(error)
        if sentence is None:
            raise
        say(sentence)
        return 2
    except KeyboardInterrupt:
        say("Interrupted; nothing half-written was left behind.")
        return 130


def _run(arguments: Sequence[str] | None) -> int:
    options = parser().parse_args(arguments)
    check_inputs_kept(options)
    code = 0
    try:
        result = options.run(options)
    except PartialFailure as error:
        say(str(error))
        result, code = error.result, 2
    if not speaks():
        return code
    if getattr(options, "json", False):
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    sys.stdout.flush()
    return code


def parser() -> Parser:
    """Every command and its options."""
    root = Parser(prog="flowportrait", description="A portrait photo and speech in, a talking video out.")
    root.add_argument("--version", action="version", version=f"flowportrait {__version__}")
    commands = root.add_subparsers(dest="command", required=True, parser_class=Parser, metavar="COMMAND")
    for command in COMMANDS:
        command.register(commands)
    return root


if __name__ == "__main__":
    sys.exit(main())

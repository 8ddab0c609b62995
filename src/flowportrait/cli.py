"""The command line: ``flowportrait COMMAND …``; every command is a function in ``commands/``.

Exit code 0 on success, 2 on bad input (one sentence on standard error) or where some of several inputs failed, 130 on
Ctrl-C. With ``--json`` the only output is one JSON object. The program ends without a message if the reader of its
output stops early (``| head``).
"""

from __future__ import annotations

import importlib
import json
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flowportrait import __version__
from flowportrait.errors import BadInput, PartialFailure
from flowportrait.extras import missing_extra_message
from flowportrait.files import check_outputs_are_not_inputs, set_missing_environment
from flowportrait.terminal import (
    discard_broken_output,
    exit_on_signals,
    is_main_process,
    log,
    no_garbage_collection,
    repair_standard_streams,
)


class Command(NamedTuple):
    """A command, or a name for several (without a function)."""

    function: str
    """``module:function`` in ``flowportrait.commands``."""
    sentence: str


GROUPS: dict[str, tuple[str, ...]] = {
    "make videos": ("animate", "studio", "serve", "demo", "verify"),
    "data and training": ("prepare", "pretrain", "posttrain", "pipeline", "doctor", "preferences"),
    "judge and measure": ("evaluate", "judge"),
    "other": ("export",),
}
"""The list of commands in ``flowportrait --help``."""

COMMANDS: dict[str, Command] = {
    "animate": Command("animate:run", "make a talking video from a photo, or dub a video"),
    "studio": Command("studio:run", "make, compare and train talking portraits in a browser"),
    "serve": Command("serve:run", "serve a live avatar that idles, listens and speaks"),
    "demo": Command("demo:run", "animate, post-train and evaluate in ten minutes, with a report"),
    "verify": Command("verify:run", "say whether videos were made with FlowPortrait, and who signed them"),
    "prepare": Command("prepare:run", "prepare a training corpus from videos, or report on one"),
    "pretrain": Command("pretrain:run", "supervised training on a corpus"),
    "posttrain": Command("posttrain:run", "reinforcement learning on portraits and speech"),
    "posttrain recipes": Command("posttrain:run_recipes", "list the recipes of post-training, or show one"),
    "posttrain policies": Command("posttrain:run_policies", "list or check other generators that can be post-trained"),
    "pipeline": Command("pipeline:run", "run all stages of a training from one file, resumable"),
    "doctor": Command("doctor:run", "say what is wrong with a post-training run"),
    "preferences": Command("", "make and examine preference pairs, ask people, train reward models"),
    "preferences inspect": Command("preferences:run_inspect", "report ties, agreement, contradictions and leaks"),
    "preferences make": Command("preferences:run_make", "make pairs of intact and damaged videos"),
    "preferences from-judge": Command("preferences:run_judged", "make pairs from a judge's scores of two systems"),
    "preferences study": Command("", "ask people which system they prefer"),
    "preferences study make": Command("preferences:run_study_make", "make a study from videos with the same name"),
    "preferences study power": Command("preferences:run_study_power", "compute what a study of some size can tell"),
    "preferences study serve": Command("preferences:run_study_serve", "serve the page of a study"),
    "preferences study analyse": Command(
        "preferences:run_study_analyse", "report which system is preferred, with intervals"
    ),
    "preferences train": Command("preferences:run_train", "train the reward model: sync, expression and motion"),
    "preferences train-latent": Command("preferences:run_train_latent", "train a reward model of noisy latents"),
    "evaluate": Command("evaluate:run", "measure finished videos, or checkpoints on prompts"),
    "evaluate score": Command("evaluate:run_score", "score finished videos with the rewards of post-training"),
    "evaluate bench": Command("evaluate:run_bench", "run the benchmark with controls and a ceiling"),
    "evaluate portraits": Command("evaluate:run_portraits", "count artefacts of generated portraits and score them"),
    "judge": Command("", "grade videos from 1 to 5; test, calibrate or serve a judge"),
    "judge score": Command("judge:run_score", "grade finished videos"),
    "judge check": Command("judge:run_check", "test a judge: known damage, preferences, repetition, cost"),
    "judge calibrate": Command("judge:run_calibrate", "compare a judge with human scores, and fit a map to them"),
    "judge agree": Command("judge:run_agree", "measure how often a judge prefers what people prefer"),
    "judge learn": Command("judge:run_learn", "improve the rubric of a judge with preferences of people"),
    "judge serve": Command("judge:run_serve", "serve a judge and rewards over HTTP"),
    "export": Command("export:run", "write a generator's streaming step as ONNX"),
}

OLD_COMMANDS = {
    "recipes": "posttrain recipes",
    "policies": "posttrain policies",
    "policy": "posttrain policies",
    "score": "evaluate score",
    "bench": "evaluate bench",
    "portraitbench": "evaluate portraits",
    "study": "preferences study",
    "reward": "preferences",
}
"""Commands of version 0.1 that have another name now; they print a warning."""

HELP = ("-h", "--help")
PROGRAM = "flowportrait"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the command line and return the exit code.

    Programs should use ``AnimatePipeline`` and the functions that the commands call. Signal handlers and the display of
    warnings are replaced while the command runs, and restored afterwards.
    """
    show = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: log(f"Warning: {message}")
    try:
        with repair_standard_streams(), exit_on_signals():
            return _main(sys.argv[1:] if arguments is None else arguments)
    finally:
        warnings.showwarning = show


def _main(arguments: Sequence[str]) -> int:
    set_missing_environment()
    try:
        return _run(arguments)
    except BrokenPipeError:
        if not discard_broken_output():
            raise
        return 0
    except BadInput as error:
        log(str(error))
        return 2
    except ModuleNotFoundError as error:
        sentence = missing_extra_message(error)
        if sentence is None:
            raise
        log(sentence)
        return 2
    except KeyboardInterrupt:
        # Where Ctrl-C comes while a string is executed (dataclasses do so on import), ``python -m`` would remember it
        # as unhandled and end by the signal instead of the exit code; executing another string clears that.
        exec("")
        log("Interrupted; nothing half-written was left behind.")
        return 130


def _run(arguments: Sequence[str]) -> int:
    with no_garbage_collection():
        function, options = read_command(arguments)
    check_outputs_are_not_inputs(options)
    code = 0
    try:
        result = function(options)
    except PartialFailure as error:
        log(str(error))
        result, code = error.result, 2
    if not is_main_process():
        return code
    if getattr(options, "json", False):
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key}: {value}")
    sys.stdout.flush()
    return code


def read_command(arguments: Sequence[str]) -> tuple[Callable[[Any], dict[str, Any]], Any]:
    """Return the function of a command line and its options, without running it.

    Raises:
        BadInput: no such command, or a word that is not understood.
        SystemExit: help or the version was asked for and is printed.
    """
    name, words = _split(arguments)
    if not name or not COMMANDS[name].function:
        _answer_without_command(name, words)
    from flowportrait.commands.options import parse_options

    module, _, function_name = COMMANDS[name].function.partition(":")
    function = getattr(importlib.import_module(f"flowportrait.commands.{module}"), function_name)
    try:
        options = parse_options(typing.get_type_hints(function)["options"], words, f"{PROGRAM} {name}")
    except SystemExit:
        if further := _list_commands(_subcommands(name)):
            _print(f"subcommands:\n{further}\n")
        raise
    return function, options


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the longest name of a command that the words begin with, and the other words."""
    words = list(arguments)
    if words and words[0] in OLD_COMMANDS:
        new = OLD_COMMANDS[words[0]]
        log(f"Warning: '{PROGRAM} {words[0]}' is now '{PROGRAM} {new}'; the next version removes the old name.")
        words = [*new.split(), *words[1:]]
    for length in range(min(3, len(words)), 0, -1):
        if (name := " ".join(words[:length])) in COMMANDS:
            return name, words[length:]
    return "", words


def _answer_without_command(name: str, words: Sequence[str]) -> None:
    """Print the help or the version, or report the missing command.

    Raises:
        SystemExit: after help or the version.
        BadInput: there is no command, or none of this name.
    """
    program = f"{PROGRAM} {name}".strip()
    first = words[0] if words else ""
    if first in HELP or (len(first) > 2 and "--help".startswith(first)):
        _print(_help_page(name, program))
        raise SystemExit(0)
    if not name and len(first) > 2 and "--version".startswith(first):
        _print(f"{PROGRAM} {__version__}")
        raise SystemExit(0)
    choices = ", ".join(one.removeprefix(f"{name} ") for one in _subcommands(name))
    wrong = f"there is no command {first!r}" if first else "a command is required"
    raise BadInput(f"{program}: {wrong}, choose from {choices}; see '{program} --help'.")


def _help_page(name: str, program: str) -> str:
    if name:
        return f"usage: {program} COMMAND …\n\n{COMMANDS[name].sentence}\n\n{_list_commands(_subcommands(name))}"
    page = [
        f"usage: {PROGRAM} [--help] [--version] COMMAND …\n",
        "A portrait photo and speech in, a talking video out.",
    ]
    page += [f"\n{title}:\n{_list_commands(names)}" for title, names in GROUPS.items()]
    return "\n".join([*page, f"\n'{PROGRAM} COMMAND --help' explains a command."])


def _subcommands(name: str) -> list[str]:
    """Return the commands under a name that are one word longer."""
    length = len(name.split())
    return [one for one in COMMANDS if one.split()[:length] == name.split() and len(one.split()) == length + 1]


def _list_commands(names: Sequence[str]) -> str:
    width = max((len(name) for name in names), default=0)
    return "\n".join(f"  {name:{width}}  {COMMANDS[name].sentence}" for name in names)


def _print(text: str) -> None:
    print(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

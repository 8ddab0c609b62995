"""Parse the words of a command line into the frozen dataclass of a command's options, with ``tyro``.

    parse_options(AnimateOptions, ["--image", "me.png", "--text", "Hello"], "flowportrait animate")

Fields are options, their docstrings are the help. Before tyro sees the words, they are brought into its form:
abbreviated options are completed, an option of several values that is given twice is joined, and settings of a
configuration become ``--set``:

    --objective.kl-weight 0.1    ─►    --set objective.kl_weight=0.1

Options with settings have a field ``set``. Their class variable ``configuration`` names the function that makes the
configuration (``MODULE:NAME``), which gets the value of ``--recipe`` if there is that option. ``--help-settings`` lists
the settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

import tyro
from tyro import conf

from flowportrait.errors import BadInput
from flowportrait.terminal import log

Options = TypeVar("Options")

OptionalPath = Annotated[Path | None, conf.arg(metavar="PATH", help_behavior_hint="")]
OptionalText = Annotated[str | None, conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalInt = Annotated[int | None, conf.arg(metavar="N", help_behavior_hint="")]
OptionalPair = Annotated[tuple[Path, Path] | None, conf.arg(metavar="A B", help_behavior_hint="")]
Files = Annotated[tuple[Path, ...], conf.arg(metavar="FILE …", help_behavior_hint="")]
"""One file or more, or none."""
Inputs = conf.Positional[Annotated[tuple[Path, ...], conf.arg(metavar="FILE …")]]
"""Files that the command is about, without an option's name."""
Repeated = conf.UseAppendAction[Annotated[tuple[str, ...], conf.arg(metavar="NAME=VALUE")]]
"""An option of one value that may be given several times."""
Settings = Annotated[tuple[str, ...], conf.arg(metavar="KEY=VALUE …", help_behavior_hint="")]
"""Changed settings of a configuration."""
Pairs = conf.Positional[Annotated[Path, conf.arg(metavar="PAIRS.JSONL")]]
"""One file of preference pairs."""
RayAddress = Annotated[str | None, conf.arg(metavar="ADDRESS", help_behavior_hint="")]
"""A Ray cluster that takes a part of the work."""
Flag = Annotated[bool, conf.arg(help_behavior_hint="")]
Json = Annotated[bool, conf.arg(help="Print one JSON object.", help_behavior_hint="")]

HELP = ("-h", "--help")
HELP_SETTINGS = "--help-settings"
RENAMED = {"--source-image": "--image", "--driven-audio": "--audio"}
"""Further names of options."""
REPLACED = {"--as-heard": "--no-denoise"}
"""Options of version 0.1 that have another name now; they print a warning."""
LIKELY_MISTYPED = 0.85
"""Similarity with an option above which a word is no setting; the settings of this package are less similar."""
_VALUE = re.compile(r"-(\d|\.\d|inf)|-$|[^-]|$")
"""The beginning of a word that is a value, though it may begin with a minus: -10,0 and -1e-3, and - alone."""


def parse_options(kind: type[Options], words: Sequence[str], program: str) -> Options:
    """Read the options of a command, or print its help.

    Raises:
        BadInput: a word is not understood, or an option is missing; in one sentence.
        SystemExit: help was asked for and is printed.
    """
    help_wanted = any(word in HELP for word in words)
    if HELP_SETTINGS in words or (help_wanted and _value_of("--recipe", words)):
        if help_wanted:
            _print_help(kind, program)
        _print_settings(kind, words, program)
        raise SystemExit(0)
    if help_wanted:
        _print_help(kind, program)
        raise SystemExit(0)
    normal = _Words(kind, program).normalise(words)
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output), _wide_terminal():
            return tyro.cli(kind, args=normal, prog=program, config=(conf.FlagCreatePairsOff,))
    except SystemExit as error:
        _refuse(program, _first_sentence(output.getvalue()), error)


def _refuse(program: str, sentence: str, cause: BaseException | None = None) -> NoReturn:
    raise BadInput(f"{program}: {sentence}; see '{program} --help'.") from cause


def _print_help(kind: type[Any], program: str) -> None:
    with contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=program, config=(conf.FlagCreatePairsOff,))
    sys.stdout.flush()


def _print_settings(kind: type[Any], words: Sequence[str], program: str) -> None:
    """Print every setting of the command's configuration with its meaning and default."""
    if not hasattr(kind, "configuration"):
        _refuse(program, f"there are no settings: {HELP_SETTINGS} is for commands with --set")
    from flowportrait.plugins import load_reference

    make = load_reference(kind.configuration)
    recipe = _value_of("--recipe", words) or getattr(kind, "recipe", None)
    config = _narrowed(make(recipe) if recipe else make())
    with contextlib.suppress(SystemExit):
        tyro.cli(
            type(config), default=config, args=["--help"], prog=f"{program} (settings, also as --set KEY=VALUE)",
            config=(conf.AvoidSubcommands, conf.FlagConversionOff),
        )  # fmt: skip
    sys.stdout.flush()


def _narrowed(config: Any) -> Any:
    """Return a configuration of a class in which the type of every part is fixed to the class that it has now."""
    annotations, values = {}, {}
    hints = typing.get_type_hints(type(config))
    for part in dataclasses.fields(config):
        value, hint = getattr(config, part.name), hints[part.name]
        kinds = [one for one in typing.get_args(hint) if isinstance(one, type) and dataclasses.is_dataclass(one)]
        if value is None and isinstance(hint, types.UnionType) and kinds:
            value = kinds[0]()
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = _narrowed(value)
            annotations[part.name] = type(value)
        values[part.name] = value
    if not annotations:
        return config
    kind = dataclasses.make_dataclass(
        type(config).__name__,
        [(name, hint, dataclasses.field(default=values[name])) for name, hint in annotations.items()],
        bases=(type(config),), namespace={"__post_init__": lambda self: None, "__doc__": type(config).__doc__},
        frozen=True,
    )  # fmt: skip
    return kind(**values)


def _value_of(option: str, words: Sequence[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option:
            return following or None
    return None


class _Words:
    """The words of a command line in the form that tyro reads."""

    def __init__(self, kind: type[Any], program: str) -> None:
        self.program = program
        self.names: set[str] = set()
        self.several: set[str] = set()
        self.configurable = hasattr(kind, "configuration")
        for name, hint in typing.get_type_hints(kind, include_extras=True).items():
            marks = getattr(hint, "__metadata__", ())
            plain = typing.get_args(hint)[0] if marks else hint
            if typing.get_origin(plain) is ClassVar or conf.Positional in marks:
                continue
            option = f"--{name.replace('_', '-')}"
            if plain is bool and getattr(kind, name, False):
                self.names.add(f"--no-{name.replace('_', '-')}")
            self.names.add(option)
            open_ended = typing.get_origin(plain) is tuple and Ellipsis in typing.get_args(plain)
            if open_ended and conf.UseAppendAction not in marks:
                self.several.add(option)
        self.switched_off = {name.replace("--no-", "--") for name in self.names if name.startswith("--no-")}

    def normalise(self, words: Sequence[str]) -> list[str]:
        """Complete names, join repeated options, and turn settings into ``--set``."""
        rest, several = list(words), dict[str, list[str]]()
        normal: list[str] = []
        while rest:
            word = rest.pop(0)
            if word == "--":
                normal += [word, *rest]
                break
            if not word.startswith("--"):
                normal.append(word)
                continue
            written, equals, value = word.partition("=")
            option = self._complete(written)
            if option is None and not self.configurable:
                near = difflib.get_close_matches(written, self.names, 1)
                _refuse(self.program, f"Unrecognized options: {written}{f'; did you mean {near[0]}?' if near else ''}")
            if option is None:
                if near := difflib.get_close_matches(written, self.names, 1, LIKELY_MISTYPED):
                    _refuse(self.program, f"Unrecognized option {written}; did you mean {near[0]}?")
                text = value if equals else rest.pop(0) if rest and _VALUE.match(rest[0]) else "true"
                several.setdefault("--set", []).append(f"{written[2:].replace('-', '_')}={text}")
            elif option in self.several:
                values = [value] if equals else list(_leading_values(rest))
                if not values:
                    _refuse(self.program, f"argument {option}: expected at least one value")
                several.setdefault(option, []).extend(values)
            elif option in self.switched_off and f"--no-{option[2:]}" in self.names:
                continue
            else:
                normal.append((option or written) + (f"={value}" if equals else ""))
        joined = [part for option, values in several.items() for part in (option, *values)]
        end = normal.index("--") if "--" in normal else len(normal)
        return normal[:end] + joined + normal[end:]

    def _complete(self, written: str) -> str | None:
        """Return the option that a written name stands for, or None."""
        name = written.replace("_", "-")
        name = RENAMED.get(name, name)
        if name in REPLACED and REPLACED[name] in self.names:
            log(f"Warning: {name} is called {REPLACED[name]} now; the next version removes the old name.")
            return REPLACED[name]
        if name in self.names:
            return name
        near = sorted(known for known in self.names if known.startswith(name))
        near = [known for known in near if not (known.startswith("--no-") and f"--{known[5:]}" in near)]
        if len(near) > 1:
            _refuse(self.program, f"{written} is ambiguous: it could be {', '.join(near)}")
        return near[0] if near else None


def _leading_values(rest: list[str]) -> Iterator[str]:
    """Take the words from the front that are values."""
    while rest and _VALUE.match(rest[0]):
        yield rest.pop(0)


_PLAINER = (
    (r" Perhaps you meant: (--\S+).*", r"; did you mean \1?"),
    (r"no type matching \{None\}\|(.+) could be instantiated from \[(.*)\]", r"\2 is not \1"),
    (r" is not INT\b", " is not a whole number"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not a whole number"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
    (r"Error parsing (--\S+)", r"argument \1"),
    (r"Arguments (\S+) and (\S+) are not allowed together", r"argument \2: not allowed with argument \1"),
    (r"\s*[.!]\s*$", ""),
)
"""Parts of tyro's messages, and the same in the words of a user."""


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Let nothing be wrapped."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _first_sentence(page: str) -> str:
    """Return the error message in tyro's box: ``title ─ body ─ where to find help``."""
    lines = [re.sub(r"[│╭╮╰╯─]|^\s*-{3,}\s*$", " ", line).strip() for line in page.splitlines()]
    title, *body = [line for line in lines if line] or ["the options are not understood"]
    sentences = []
    for line in body:
        if line.startswith(("For full helptext", "Argument helptext", "Got errors")):
            break
        sentences.append(line)
    if title == "Required options":
        names = [re.split(r"\s", line)[0] for line in sentences if line.startswith("--")]
        names = names or sentences[1:2]
        return f"the following arguments are required: {', '.join(names)}"
    if title == "Required mutex group":
        return f"one of {', '.join(line.lstrip('• ') for line in sentences[1:])} is required"
    sentence = " ".join(sentences) or title
    for pattern, plain in _PLAINER:
        sentence = re.sub(pattern, plain, sentence)
    return sentence

"""A run file: the stages of a pipeline with the options of their commands, in YAML.

    output: runs/anna                 # every stage gets a folder in it
    launch: accelerate launch --num_processes 4
    prepare:
      inputs: footage
    posttrain:
      recipe: nft
      prompts: mine
      set:
        groups: 4
    evaluate:
      prompts: other
      checkpoint: ${posttrain.output}

Options have the names that they have on the command line, settings may be nested, and ``${STAGE.OPTION}`` is the value
of an earlier stage's option. Paths are relative to the working directory, as on the command line. Mistakes are reported
with the line of the file, before anything runs.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
import shutil
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

from tyro import conf

from flowportrait.commands.options import parse_options
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra
from flowportrait.workflow.stages import STAGES, OptionText, StageKind

CHOSEN_BY_PIPELINE = frozenset({"json", "resume", "inspect"})
"""Options of commands that a run file cannot set."""
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


class _Entry(NamedTuple):
    """The value of an option, and the line that it is in."""

    value: OptionText
    line: int


@dataclass(frozen=True)
class PipelineStage:
    """A stage of a run file with all options.

    Attributes:
        kind: what the stage does.
        words: its command line after ``flowportrait``, without ``--resume``.
        options: the parsed options of its command.
        output: its folder.
        lines: line of each option in the file, with the line of the stage for those that were filled in.
    """

    kind: StageKind
    words: tuple[str, ...]
    options: Any
    output: Path
    lines: Mapping[str, int]

    @property
    def name(self) -> str:
        """Return the name of the stage."""
        return self.kind.name


@dataclass(frozen=True)
class RunFile:
    """A run file that was read and checked.

    Attributes:
        path: the file.
        output: folder of the run.
        stages: its stages in their order.
        launch: words before the command of a training stage, such as ``accelerate launch``; empty for one process.
    """

    path: Path
    output: Path
    stages: tuple[PipelineStage, ...]
    launch: tuple[str, ...] = ()

    def refuse(self, line: int, problem: str) -> NoReturn:
        """Raise BadInput with the place in the file."""
        raise BadInput(f"{self.path}, line {line}: {problem}")


def read_run_file(path: Path, ray: str | None = None) -> RunFile:
    """Read a run file, fill in what its stages take from each other, and check every option and setting.

    Args:
        path: the file.
        ray: address of a Ray cluster for the stages that can use one and name none.

    Raises:
        BadInput: the file cannot be read, or something in it is wrong; the sentence names the line.
    """
    return _Reader(path, ray).read()


class _Reader:
    def __init__(self, path: Path, ray: str | None) -> None:
        self.path = path
        self.ray = ray
        self.file = RunFile(path, Path(), ())
        self.options: dict[str, dict[str, OptionText]] = {}

    def read(self) -> RunFile:
        top = self._mapping(self._parse(), "the file")
        kinds = {kind.name: kind for kind in STAGES}
        output: str | None = None
        launch: tuple[str, ...] = ()
        found: dict[str, tuple[int, Any]] = {}
        for key, (line, node) in top.items():
            if key == "output":
                output = self._scalar(node, "output")
            elif key == "launch":
                launch = self._launcher(line, self._scalar(node, "launch"))
            elif key in kinds:
                later = [name for name in found if list(kinds).index(name) > list(kinds).index(key)]
                if later:
                    self._refuse(line, f"{key} stands after {later[0]}: the order is {', '.join(kinds)}.")
                found[key] = (line, node)
            else:
                self._refuse(line, f"there is no stage {key!r}{_nearest(key, kinds)}; the stages are "
                                   f"{', '.join(kinds)}, beside them there are output and launch.")  # fmt: skip
        if output is None:
            self._refuse(1, "'output' is missing: give the folder of the run, as in output: runs/first.")
        if not found:
            self._refuse(1, f"there is no stage: give at least one of {', '.join(kinds)}.")
        self.folder = Path(output)
        self.file = RunFile(self.path, self.folder, (), launch)
        stages = [self._stage(kinds[name], line, node) for name, (line, node) in found.items()]
        self._check_folders(stages)
        for stage in stages:
            self._check_settings(stage)
        return dataclasses.replace(self.file, stages=tuple(stages))

    # --- YAML with line numbers ---

    def _parse(self) -> Any:
        yaml = require_extra("train", "yaml")
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise BadInput(f"{self.path} cannot be read ({reason}): give a run file in YAML.") from error
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or "it cannot be understood"
            self._refuse(mark.line + 1 if mark else 1, f"this is no YAML: {problem}.")
        if node is None:
            self._refuse(1, "the file is empty: give output and at least one stage.")
        return node

    def _mapping(self, node: Any, what: str) -> dict[str, tuple[int, Any]]:
        """Return line and node of every key of a mapping."""
        if node.id != "mapping":
            self._refuse(_line(node), f"{what} must have keys, as in 'prompts: mine'.")
        found: dict[str, tuple[int, Any]] = {}
        for key, value in node.value:
            name = self._scalar(key, "a key")
            if name in found:
                self._refuse(_line(key), f"{name!r} is given a second time: the first is in line {found[name][0]}.")
            found[name] = (_line(key), value)
        return found

    def _scalar(self, node: Any, what: str) -> str:
        if node.id != "scalar":
            self._refuse(_line(node), f"{what} takes one value.")
        if node.tag.endswith(":null"):
            self._refuse(_line(node), f"{what} has no value: give one or remove it.")
        return str(node.value)

    def _refuse(self, line: int, problem: str) -> NoReturn:
        self.file.refuse(line, problem)

    # --- Stages ---

    def _stage(self, kind: StageKind, line: int, node: Any) -> PipelineStage:
        shape = kind.load_options_class()
        hints = _option_types(shape)
        empty = node.id == "scalar" and node.tag.endswith(":null")
        entries: dict[str, _Entry] = {}
        for key, (key_line, value) in ({} if empty else self._mapping(node, kind.name)).items():
            name = key.replace("-", "_")
            if name in CHOSEN_BY_PIPELINE:
                self._refuse(key_line, f"{kind.name} cannot set {key}: the pipeline does.")
            if name not in hints:
                others = hints.keys() - CHOSEN_BY_PIPELINE
                self._refuse(key_line, f"{kind.name} has no option {key!r}{_nearest(name, others)}; see "
                                       f"'flowportrait {kind.command} --help'.")  # fmt: skip
            text = self._settings(value) if name in ("set", "policy_set") else self._value(value, key)
            entries[name] = _Entry(self._resolve(text, key_line), key_line)
        filled = kind.fill_in(self.options, {name: entry.value for name, entry in entries.items()})
        filled.setdefault("output", str(self.folder / kind.name))
        if self.ray is not None and "ray" in hints:
            filled["ray"] = self.ray
        for name, filled_value in filled.items():
            entries.setdefault(name, _Entry(filled_value, line))
        self.options[kind.name] = {name: entry.value for name, entry in entries.items()}
        words = self._words(entries, hints, shape)
        lines = {name: entry.line for name, entry in entries.items()} | {"": line}
        try:
            options = parse_options(shape, words, f"flowportrait {kind.command}")
        except BadInput as error:
            self._refuse(*_place(str(error), f"flowportrait {kind.command}: ", kind.name, lines))
        return PipelineStage(kind, (kind.command, *words), options, Path(options.output), lines)

    def _value(self, node: Any, what: str) -> OptionText:
        if node.id == "mapping":
            self._refuse(_line(node), f"{what} takes no keys: only settings do, below 'set'.")
        if node.id == "scalar":
            return self._scalar(node, what)
        return [self._word(part, what) for part in node.value]

    def _word(self, node: Any, what: str) -> str:
        text = self._scalar(node, f"an entry of {what}")
        if text.startswith("--"):
            self._refuse(_line(node), f"{text!r} is no value of {what}: write options as keys.")
        return text

    def _settings(self, node: Any, prefix: str = "") -> OptionText:
        """Return settings as ``a.b=value``, from nested keys or from a list of them."""
        if node.id != "mapping":
            value = self._value(node, "set")
            return [value] if isinstance(value, str) else value
        found: list[str] = []
        for key, (_, value) in self._mapping(node, "set").items():
            name = prefix + key.replace("-", "_")
            if value.id == "mapping":
                found += self._settings(value, f"{name}.")
            elif value.id == "sequence":
                found.append(f"{name}={','.join(self._word(part, name) for part in value.value)}")
            else:
                # Without a value it is YAML's null, which is how a setting is switched off.
                empty = value.tag.endswith(":null")
                found.append(f"{name}={'none' if empty else self._scalar(value, name)}")
        return found

    def _resolve(self, value: OptionText, line: int) -> OptionText:
        """Replace ``${STAGE.OPTION}`` by the values of earlier stages."""

        def replacement(match: re.Match[str]) -> str:
            name = match[1].strip()
            stage, _, option = name.partition(".")
            if name == "output":
                return str(self.folder)
            if stage not in self.options:
                known = (
                    ", ".join(f"${{{known}.output}}" for known in self.options) or "none, as this stage is the first"
                )
                self._refuse(line, f"${{{name}}} names no earlier stage; what can be named is {known}.")
            found = self.options[stage].get(option.replace("-", "_"))
            if not isinstance(found, str):
                given = ", ".join(key for key, text in self.options[stage].items() if isinstance(text, str))
                self._refuse(line, f"${{{name}}} has no single value: {stage} has {given}.")
            return found

        if isinstance(value, str):
            return _REFERENCE.sub(replacement, value)
        return [_REFERENCE.sub(replacement, part) for part in value]

    def _words(self, entries: Mapping[str, _Entry], hints: Mapping[str, Any], shape: type[Any]) -> list[str]:
        """Return the command line of options."""
        words: list[str] = []
        positional: list[str] = []
        for name, (value, line) in entries.items():
            option, hint = f"--{name.replace('_', '-')}", hints[name]
            values = [value] if isinstance(value, str) else value
            if hint.plain is bool:
                text = value.lower() if isinstance(value, str) else ""
                if text not in (*_TRUE, *_FALSE):
                    self._refuse(line, f"{name} takes true or false, not {value}.")
                default = bool(getattr(shape, name, False))
                if (text in _TRUE) != default:
                    words.append(option if text in _TRUE else f"--no-{option[2:]}")
            elif hint.positional:
                positional += values
            elif hint.appended:
                words += [f"{option}={one}" for one in values]
            elif hint.several:
                words += [option, *values]
            elif len(values) == 1:
                words.append(f"{option}={values[0]}")
            else:
                self._refuse(line, f"{name} takes one value, not {len(values)}.")
        return [*words, *(["--", *positional] if positional else [])]

    # --- Checks that need more than one option ---

    def _launcher(self, line: int, text: str) -> tuple[str, ...]:
        words = shlex.split(text)
        beside = Path(sys.executable).parent / words[0] if words else None
        program = (str(beside) if beside and beside.is_file() else shutil.which(words[0])) if words else None
        if program is None:
            self._refuse(line, f"the launcher {text!r} is not installed: give accelerate launch or torchrun.")
        return (program, *words[1:])

    def _check_folders(self, stages: Iterable[PipelineStage]) -> None:
        """Check that no stage writes into the folder of another or around it."""
        seen: dict[Path, str] = {self.folder.resolve(): "the run"}
        for stage in stages:
            folder = stage.output.resolve()
            for other, name in seen.items():
                inside = folder.is_relative_to(other) if name != "the run" else folder == other
                if inside or other.is_relative_to(folder):
                    line = stage.lines["output"]
                    self._refuse(line, f"{stage.name} would write into the folder of {name}: give another output.")
            seen[folder] = stage.name

    def _check_settings(self, stage: PipelineStage) -> None:
        """Check the recipe and the settings, which the command itself would read only when its turn comes."""
        configuration = getattr(type(stage.options), "configuration", None)
        recipe, settings = getattr(stage.options, "recipe", None), getattr(stage.options, "set", ())
        if configuration is None or (recipe is None and not settings):
            return
        if recipe is not None and not Path(recipe).exists() and Path(recipe).is_relative_to(self.folder):
            return  # the recipe of a run that an earlier stage will make
        from flowportrait.config import override
        from flowportrait.plugins import load_reference

        make = load_reference(configuration)
        option = "recipe"
        try:
            config = make(recipe) if recipe is not None else make()
            option = "set"
            override(config, settings)
        except BadInput as error:
            self._refuse(stage.lines.get(option, stage.lines[""]), f"{stage.name}: {error}")


@dataclass(frozen=True)
class _OptionType:
    """How an option is written on the command line."""

    plain: Any
    positional: bool
    appended: bool
    several: bool


def _option_types(shape: type[Any]) -> dict[str, _OptionType]:
    found = {}
    for name, hint in typing.get_type_hints(shape, include_extras=True).items():
        marks = getattr(hint, "__metadata__", ())
        plain = typing.get_args(hint)[0] if marks else hint
        if typing.get_origin(plain) is ClassVar:
            continue
        several = typing.get_origin(plain) is tuple and Ellipsis in typing.get_args(plain)
        found[name] = _OptionType(plain, conf.Positional in marks, conf.UseAppendAction in marks, several)
    return found


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _place(sentence: str, prefix: str, stage: str, lines: Mapping[str, int]) -> tuple[int, str]:
    """Return the line that an error of a command line is about, and the error without the name of the command."""
    named = [match[1].replace("-", "_") for match in re.finditer(r"--([a-z][\w-]*)", sentence)]
    line = next((lines[name] for name in named if name in lines), lines[""])
    return line, f"{stage}: {sentence.removeprefix(prefix)}"

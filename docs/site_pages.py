"""This module adds the generated pages to the site while mkdocs builds it.

    flowportrait.cli.COMMANDS, option dataclasses ─► reference/command-line.md
    cards of the recipes, tests/rl                ─► reference/recipes.md, reference/recipes/NAME.md
    CHANGELOG.md, CONTRIBUTING.md                 ─► reference/changelog.md, contributing.md
    reports/                                      ─► reports/

Links between pages and reports work on the site as they do in the repository. Links to other files of the repository
become plain text.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os.path
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import docstring_parser
from tyro import conf

from flowportrait.cli import COMMANDS, GROUPS
from flowportrait.plugins import load_reference
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.recipes import CARDS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
REPORTS = ROOT / "reports"
ARCHITECTURE = ("`docs/architecture.md`", "[Architecture](architecture.md)")
"""How ``CONTRIBUTING.md`` names a page, and a link to it on the site."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the reports (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    for path in sorted(REPORTS.rglob("*")):
        if path.is_file():
            files.append(File.generated(config, f"reports/{path.relative_to(REPORTS)}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of a page point to what is on the site (a hook of mkdocs)."""
    name = page.file.src_uri
    folder = (ROOT / name if name.startswith("reports/") else DOCS / name).parent

    def on_site(link: re.Match[str]) -> str:
        mark, text, address = link.groups()
        if re.match(r"[a-z]+:|#", address):
            return link[0]
        path, hash_sign, anchor = address.partition("#")
        target = Path(os.path.normpath(folder / path))
        if target.is_relative_to(DOCS):
            place = str(target.relative_to(DOCS))
        elif target.is_relative_to(REPORTS):
            place = str(target.relative_to(ROOT))
        else:
            return text
        return f"{mark}[{text}]({os.path.relpath(place, Path(name).parent)}{hash_sign}{anchor})"

    return _LINK.sub(on_site, markdown)


def pages() -> dict[str, str]:
    """Return the text of every generated page by its place on the site."""
    claims = claims_by_recipe()
    recipes = {f"reference/recipes/{name}.md": recipe_page(name, claims[name]) for name in CARDS}
    return {
        "reference/command-line.md": command_line_page(),
        "reference/recipes.md": recipes_page(),
        "reference/changelog.md": (ROOT / "CHANGELOG.md").read_text("utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text("utf-8").replace(*ARCHITECTURE),
        **recipes,
    }


# The command line


def command_line_page() -> str:
    """Return the page with every command and its options, from the dataclasses that parse them."""
    lines = [
        "# Command line", "",
        "This page lists every command of `flowportrait` with its options, defaults and meanings. It is made "
        "from the parser. `flowportrait COMMAND --help` prints the same.", "",
        "An option may be abbreviated as long as it is unambiguous. Exit codes: 0 on success, 2 on bad input (one "
        "sentence on standard error) or where some of several inputs failed, 130 after Ctrl-C. With `--json` standard "
        "output holds one JSON object.", "",
    ]  # fmt: skip
    for title, names in GROUPS.items():
        lines += [f"**{title[0].upper()}{title[1:]}**", ""]
        every = [one for one in COMMANDS if one.split()[0] in names and COMMANDS[one].function]
        lines += [f"* [`{name}`](#{_anchor(name)}): {COMMANDS[name].sentence}" for name in every] + [""]
    for name, command in COMMANDS.items():
        if command.function:
            lines += _command_section(name)
    return "\n".join(lines)


def _note(default: str) -> str:
    """Return what follows the meaning of an option."""
    return " **Required.**" if default == "required" else f" Default: {default}." if default else ""


def option_class(name: str) -> type[Any]:
    """Return the dataclass with the options of a command."""
    module, _, function = COMMANDS[name].function.partition(":")
    run = getattr(importlib.import_module(f"flowportrait.commands.{module}"), function)
    kind: type[Any] = typing.get_type_hints(run)["options"]
    return kind


def _anchor(name: str) -> str:
    return f"flowportrait-{name.replace(' ', '-')}"


def _command_section(name: str) -> list[str]:
    kind = option_class(name)
    rows = [f"| {option} {value} | {help_}{_note(default)} |" for option, value, default, help_ in option_rows(kind)]
    lines = [f"## flowportrait {name}", "", (kind.__doc__ or "").strip().replace("\n    ", "\n"), ""]
    lines += ["| option | meaning |", "|---|---|", *rows, ""]
    if name == "posttrain":
        lines += ["The settings of each recipe, for `--set` or as options, are in [recipes](recipes.md).", ""]
    elif hasattr(kind, "configuration"):
        lines += [f"### Settings of {name}", "", "For `--set KEY=VALUE`, or as `--KEY VALUE`.", ""]
        lines += _settings_table(load_reference(kind.configuration)())
    return lines


def option_rows(kind: type[Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, value, default and meaning of every option of a command."""
    meanings, hints = field_docstrings(kind), typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        marks = getattr(hint, "__metadata__", ())
        plain = typing.get_args(hint)[0] if marks else hint
        default = _default_of(field)
        option = f"--{field.name.replace('_', '-')}"
        if plain is bool and default is True:
            option = f"--no-{field.name.replace('_', '-')}"
        value = "" if plain is bool else _cell(_last(marks, "metavar") or _type_name(plain))
        name = value if conf.Positional in marks else option
        shown = "required" if default is dataclasses.MISSING else "" if plain is bool else _shown(default)
        meaning = _last(marks, "help") or meanings.get(field.name, "")
        yield f"`{name}`", f"`{value}`" if value not in ("", name) else "", shown, _cell(meaning)


def field_docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the docstring under every field of a dataclass, with those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base) and base.__module__ != "types":
            try:
                parsed = docstring_parser.parse_from_object(base)
            except (OSError, TypeError):
                continue
            found |= {one.arg_name: " ".join((one.description or "").split()) for one in parsed.params}
    return found


def _last(marks: tuple[Any, ...], attribute: str) -> str | None:
    return next((value for mark in reversed(marks) if (value := getattr(mark, attribute, None))), None)


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _type_name(hint: Any) -> str:
    """Return what stands for a value of a type: FILE, N, a list of choices."""
    names = {Path: "PATH", str: "TEXT", int: "N", float: "NUMBER"}
    if hint in names:
        return names[hint]
    origin, inner = typing.get_origin(hint), [one for one in typing.get_args(hint) if one is not type(None)]
    if origin is typing.Literal:
        return "|".join(map(str, inner))
    if origin in (typing.Union, types.UnionType):
        return _type_name(inner[0])
    if origin is tuple:
        return _type_name(inner[0]) + " …" if Ellipsis in inner else " ".join(map(_type_name, inner))
    return getattr(hint, "__name__", str(hint))


def _shown(value: Any) -> str:
    if value is None or value in ((), "", {}):
        return ""
    text = ", ".join(map(str, value)) if isinstance(value, (tuple, frozenset)) else str(value)
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# Recipes


def recipes_page() -> str:
    """Return the page that lists the recipes and the settings that all have."""
    rows = [f"| [{name}](recipes/{name}.md) | {_cell(card.source)} |" for name, card in CARDS.items()]
    return "\n".join([
        "# Recipes and settings", "",
        "This page lists the methods of post-training and all settings of a run. A recipe is a configuration of one "
        "trainer; its page says where the method comes from, what it optimises, and the reasons for its settings. "
        "The pages are made from the code.", "",
        "| recipe | source (arXiv number) |", "|---|---|", *rows, "",
        "Tests that every recipe passes: " + "; ".join(claims_of_all()) + ".", "",
        "## Settings of a run", "",
        "Change a setting with `--set KEY=VALUE`, with `--KEY VALUE`, or in Python with "
        "`PostTrainConfig.from_recipe(NAME, **{KEY: VALUE})`. The settings of a part have its name before them, as in "
        "`objective.kl_weight`. Plan and objective differ from recipe to recipe; their settings are on its page. "
        "`none` stands for a part that is off; setting one of its keys turns it on.", "",
        *_settings_table(PostTrainConfig("NAME"), without=("name", "plan", "objective")),
        *_parts_that_are_off(),
    ])  # fmt: skip


def recipe_page(name: str, claims: list[str]) -> str:
    """Return the page of one recipe."""
    card = CARDS[name]
    tested = [f"* {claim}" for claim in claims] or ["No test is about this recipe alone."]
    why = [f"| `{key}` | {_shown(card.settings.get(key, ''))} | {_cell(reason)} |" for key, reason in card.why.items()]
    return "\n".join([
        f"# {name}", "", card.source, "", "```bash",
        f"flowportrait posttrain --recipe {name} --prompts DIR --output RUN", "```", "",
        "```", card.equation.strip(), "```", "",
        "## From the paper", "", card.paper, "", f"Verified with: {card.verified}", "",
        "## What differs here", "", card.reading, "",
        "## Reasons for its settings", "", "| setting | value | reason |", "|---|---|---|", *why, "",
        "## Settings", "",
        "Those that it changes, and all of its plan and its objective. "
        "[All other settings](../recipes.md#settings-of-a-run) keep their defaults.", "",
        *_settings_table(card.recipe, only={*card.chosen, "plan", "objective"}),
        "## Tests", "", *tested, "", "Also [those that every recipe passes](../recipes.md).", "",
    ])  # fmt: skip


def setting_rows(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield the dotted key, the value and the meaning of every setting of a configuration."""
    meanings = field_docstrings(type(config))
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), prefix + field.name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from setting_rows(value, f"{key}.")
        elif isinstance(value, dict) and value:
            yield from ((f"{key}.{one}", own, meanings.get(field.name, "")) for one, own in value.items())
        else:
            yield key, "none" if value is None else value, meanings.get(field.name, "")


def _settings_table(
    config: Any, only: set[str] | None = None, without: tuple[str, ...] = (), prefix: str = ""
) -> list[str]:
    lines = ["| setting | value | meaning |", "|---|---|---|"]
    for key, value, meaning in setting_rows(config, prefix):
        if key.split(".")[0] in without or not (only is None or key in only or key.split(".")[0] in only):
            continue
        lines.append(f"| `{key}` | {_shown(value)} | {_cell(meaning)} |")
    return [*lines, ""]


def _parts_that_are_off() -> list[str]:
    """Return the settings of the parts that the default configuration does not have."""
    lines: list[str] = []
    for name, hint in typing.get_type_hints(PostTrainConfig).items():
        kinds = [one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)]
        if typing.get_origin(hint) is ClassVar or not kinds or getattr(PostTrainConfig("NAME"), name) is not None:
            continue
        first = ((kinds[0].__doc__ or "").strip().split("\n\n")[0]).replace("\n    ", " ")
        lines += [f"### {name}", "", first, "", *_settings_table(kinds[0](), prefix=f"{name}.")]
    return lines


def claims_by_recipe() -> dict[str, list[str]]:
    """Return, for every recipe, the names of the tests that mention it, as sentences."""
    tests = list(_tests())
    return {name: [_sentence(function) for function, words in tests if name in words] for name in CARDS}


def claims_of_all() -> list[str]:
    """Return the names of the tests that go through all recipes, as sentences."""
    return [_sentence(function) for function, words in _tests() if "CARDS" in words]


def _tests() -> Iterator[tuple[str, set[str]]]:
    """Yield test functions with the strings and names that occur in them and in their decorators."""
    for path in sorted((ROOT / "tests" / "rl").glob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                strings = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                yield node.name, strings | names


def _sentence(function: str) -> str:
    return function.removeprefix("test_").replace("_", " ")

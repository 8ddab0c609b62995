"""Claims about the documentation: every command in it is one that the program takes, and the reference is complete."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

import flowportrait
from flowportrait.cli import COMMANDS, main, read_command
from flowportrait.commands.options import _Words
from flowportrait.rl.recipes import CARDS
from tests.doc_commands import PAGES, ROOT, Block, blocks, commands, fenced, page_name, words

sys.path.insert(0, str(ROOT / "docs"))
import site_pages

QUICK = (
    "posttrain recipes", "posttrain recipes show longcat-grpo", "posttrain policies", "evaluate portraits --list",
)  # fmt: skip
"""Commands that need no input and a moment."""
MANUAL = [page for page in PAGES if page.parent != ROOT / "docs"]
"""Pages of the manual: everything but the front page and the page for contributors."""
REPORTS = sorted((ROOT / "reports").glob("*.md"))
CODE = [path for folder in ("src", "tools", "benchmarks", "tests", "weights") for path in (ROOT / folder).rglob("*")]


@pytest.mark.parametrize(("page", "line"), commands("flowportrait "))
def test_the_program_takes_what_the_pages_say(page: str, line: str) -> None:
    if "--help" in line:
        with pytest.raises(SystemExit, match="0"):
            read_command(words(line))
    else:
        assert callable(read_command(words(line))[0])


class Parsed(Exception):
    """A program's own parser took the words."""


@pytest.mark.parametrize(("page", "line"), [*commands("python -m "), *commands("python -m ", REPORTS)])
def test_modules_take_what_the_pages_say(page: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, name, *given = words(line)
    found = importlib.util.find_spec(name)
    assert found is not None
    if name == "pytest":
        return
    entry = importlib.util.find_spec(f"{name}.__main__") if found.submodule_search_locations else found
    assert entry is not None
    assert entry.origin is not None
    source = Path(entry.origin).read_text(encoding="utf-8")
    if not re.search("parse_options|tyro|parse_args", source):
        assert len(given) in argument_counts(source)
        return
    parse_args, cli = argparse.ArgumentParser.parse_args, tyro.cli

    def parsed(own: argparse.ArgumentParser) -> None:
        raise Parsed(parse_args(own))

    def parsed_by_type(shape: Callable[..., object], **more: Any) -> None:
        quiet = shape if isinstance(shape, type) else functools.wraps(shape)(lambda *_, **__: None)
        raise Parsed(cli(quiet, **more))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    monkeypatch.setattr(tyro, "cli", parsed_by_type)
    monkeypatch.setattr(sys, "argv", [name, *given])
    with pytest.raises(Parsed):
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def argument_counts(source: str) -> set[int]:
    """How many words a script without a parser reads: as many as it names, or as it asks ``len(sys.argv)`` for."""
    single = [int(index) for index in re.findall(r"sys\.argv\[(\d+)\]", source)]
    most = max([*single, *(int(end) - 1 for end in re.findall(r"sys\.argv\[\d:(\d)\]", source))], default=0)
    asked = {int(count) - 1 for count in re.findall(r"len\(sys\.argv\) == (\d)", source)}
    return {most} if not asked else {*asked, most} if most not in asked else {*asked, most - 1}


def test_the_pages_have_commands_and_code() -> None:
    everything = [block for page in PAGES for block in blocks(page)]
    assert len(commands("flowportrait ")) > 60
    assert sum(block.language == "python" for block in everything) > 10


@pytest.mark.parametrize("line", QUICK)
def test_the_quick_ones_run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 0
    assert len(capsys.readouterr().out) > 100


NOT_RUN = [block for page in PAGES for block in blocks(page) if block.not_run]


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: f"{block.page}:{block.line} {block.not_run}")
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert len(block.not_run.split()) >= 3


def test_most_blocks_are_run() -> None:
    runnable = [block for page in PAGES for block in blocks(page) if block.language in ("bash", "sh", "python")]
    assert len(NOT_RUN) < len(runnable) / 3


@pytest.mark.parametrize("page", MANUAL, ids=page_name)
def test_a_page_begins_with_what_the_reader_will_have(page: Path) -> None:
    if page.name == "README.md" or page.parent.name == "reference":
        return
    text = page.read_text(encoding="utf-8")
    assert re.match(r"# .+\n\nAt the end of this page you will ", text), "the first sentence says what one will have"


def test_the_readme_is_short() -> None:
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(text.split()) <= 450


def test_modules_targets_and_extras_exist() -> None:
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert "python benchmarks/" not in everything
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert {line.split()[1] for page in PAGES for line in fenced(page) if line.startswith("make ")} <= targets
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )
    asked = re.findall(r"pip install [^\n]*?'?(?:\.|flowportrait)\[([\w,]+)\]", everything)
    assert asked
    assert {extra for group in asked for extra in group.split(",")} <= extras


def test_every_page_and_report_that_the_code_names_exists() -> None:
    named: dict[str, str] = {}
    for path in CODE:
        if path.suffix in (".py", ".md", ".toml") and "golden" not in path.parts and path != Path(__file__):
            for name in re.findall(
                r"(?<![\w/])((?:docs|reports)/[\w./-]+\.(?:md|json|png|svg|jpg))", path.read_text("utf-8")
            ):
                named[name] = path.name
    generated = set(site_pages.pages())
    assert named
    missing = {name: by for name, by in named.items() if not (ROOT / name).is_file() and name[5:] not in generated}
    assert missing == {}


def test_the_api_page_documents_every_public_name() -> None:
    text = (ROOT / "docs" / "reference" / "python-api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: flowportrait\.(\w+)$", text, re.M))
    assert documented == set(flowportrait.__all__) - {"__version__"}


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.function])
def test_the_command_page_lists_every_option_with_its_meaning(name: str) -> None:
    kind = site_pages.option_class(name)
    rows = list(site_pages.option_rows(kind))
    listed = {row[0].strip("`") for row in rows}
    reader = _Words(kind, name)
    assert (
        reader.names - {option.replace("--no-", "--") for option in reader.names if option.startswith("--no-")}
        <= listed
    )
    assert [row[0] for row in rows if not row[3]] == []


def settings_without_meaning() -> Iterator[str]:
    for page, text in site_pages.pages().items():
        yield from (f"{page}: {line}" for line in text.splitlines() if re.match(r"\| `[\w.]+` \|.*\|  \|$", line))


def test_every_setting_has_a_meaning() -> None:
    assert list(settings_without_meaning()) == []


def test_every_recipe_has_a_page_with_its_settings() -> None:
    for name, card in CARDS.items():
        text = site_pages.pages()[f"reference/recipes/{name}.md"] if name == "nft" else site_pages.recipe_page(name, [])
        assert card.source in text
        assert all(f"`{key}`" in text for key in card.chosen if not key.startswith("name"))


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reference = tmp_path / "site" / "reference"
    assert "What differs here" in (reference / "recipes" / "nft.html").read_text(encoding="utf-8")
    assert "AnimatePipeline" in (reference / "python-api.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "reports" / "2026-11-30-post-training.html").is_file()

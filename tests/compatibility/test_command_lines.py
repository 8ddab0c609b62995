"""Command lines of version 0.1 do what they did: each line of ``tests/golden/command_lines.jsonl``, of every command
and option, right and wrong.

    {"argv": …, "how": "run", "exit": 0, "keys": [keys of what is printed], "json": whether it is one JSON object}
    {"argv": …, "how": "run", "exit": 2, "sentence": what it said, "says": [words of argv that a sentence must name]}
    {"argv": …, "how": "parse"}         too slow, or never ending: it is only read

``{out}`` is a fresh folder; paths are those of ``tests/data/v0.1-end``. A sentence may be worded anew, but
must stay one sentence that names the same words.

    python -m tests.compatibility.test_command_lines        writes what the lines do now
"""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from flowportrait.cli import main
from tests import TESTS

DATA = TESTS / "data" / "v0.1-end"
TABLE = TESTS / "golden" / "command_lines.jsonl"
LINES: list[dict[str, Any]] = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
OPTIONS: dict[str, list[str]] = json.loads((TABLE.parent / "options.json").read_text())
COMMANDS = {word for command in OPTIONS for word in command.split()}
SECONDS = 3.0
"""A line that takes longer is marked slow."""


def parses(argv: list[str]) -> bool:
    """Whether the program understands a command line; nothing is run."""
    from flowportrait.cli import read_command
    from flowportrait.errors import BadInput

    try:
        return callable(read_command(argv)[0])
    except BadInput:
        return False


def run(argv: list[str], out: Path) -> dict[str, Any]:
    """What a line does, as in the table."""
    words = [word.replace("{out}", str(out)) for word in argv]
    out_text, error_text = io.StringIO(), io.StringIO()
    with chdir(DATA), redirect_stdout(out_text), redirect_stderr(error_text):
        try:
            code = main(words)
        except SystemExit as ended:
            code = int(ended.code or 0)
    printed, said = out_text.getvalue().strip(), error_text.getvalue().strip()
    found: dict[str, Any] = {"exit": code}
    if code == 0:
        found["json"] = printed.startswith("{")
        keys = json.loads(printed) if found["json"] else re.findall(r"^([^\s:][^:\n]*): ", printed, re.M)
        # Neither paths nor rows of tables.
        found["keys"] = sorted({key for key in keys if "/" not in key and "  " not in key})
    else:
        sentence = " ".join(said.splitlines()[-1:]).replace(str(out), "{out}")
        found["sentence"] = sentence
        found["says"] = [word for word in argv if word not in COMMANDS and _named(word, sentence)]
    return found


def _named(word: str, sentence: str) -> bool:
    return len(word) > 1 and re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", sentence) is not None


def _marked(line: dict[str, Any]) -> Any:
    name = " ".join(line["argv"]) or "nothing"
    return pytest.param(line, id=re.sub(r"[^\w.=,-]+", " ", name)[:80], marks=pytest.mark.slow if line["slow"] else ())


RUN = [line for line in LINES if line["how"] == "run"]


def _unlike(lines: list[dict[str, Any]]) -> list[Any]:
    """Parameters with names that differ."""
    seen: dict[str, int] = {}
    found = []
    for line in lines:
        one = _marked(line)
        seen[one.id] = seen.get(one.id, 0) + 1
        found.append(one if seen[one.id] == 1 else pytest.param(line, id=f"{one.id} {seen[one.id]}", marks=one.marks))
    return found


@pytest.mark.parametrize("line", _unlike(RUN))
def test_a_command_line_does_what_it_did(line: dict[str, Any], tmp_path: Path) -> None:
    found = run(line["argv"], tmp_path)
    assert found["exit"] == line["exit"], found
    if line["exit"] == 0:
        assert found["json"] == line["json"]
        assert set(found["keys"]) >= set(line["keys"])
    else:
        assert all(_named(word, found["sentence"]) for word in line["says"]), found["sentence"]
        assert found["sentence"].endswith((".", "'"))


@pytest.mark.parametrize("line", _unlike(LINES))
def test_a_command_line_is_understood_if_it_was(line: dict[str, Any]) -> None:
    if line["argv"] and not {"--help", "--version"} & set(line["argv"]):
        assert parses([word.replace("{out}", "out") for word in line["argv"]]) == line["parses"]


def test_every_command_and_option_is_in_the_table() -> None:
    used: dict[str, set[str]] = {}
    for line in LINES:
        argv = line["argv"]
        for command in (" ".join(argv[:2]), " ".join(argv[:1])):
            used.setdefault(command, set()).update(word for word in argv if word.startswith("--"))
    for command, options in OPTIONS.items():
        assert command in used, command
        assert set(options) <= used[command], (command, set(options) - used[command])
    assert len(LINES) > 60


def write_table(lines: list[dict[str, Any]]) -> None:
    """Keep what the lines (``argv`` and ``how``) do now."""
    text = ""
    for line in lines:
        kept = {"argv": line["argv"], "how": line["how"]}
        kept["parses"] = parses([word.replace("{out}", "out") for word in line["argv"]]) if _plain(line) else None
        began = time.monotonic()
        if line["how"] == "run":
            with tempfile.TemporaryDirectory() as out:
                kept |= run(line["argv"], Path(out))
        kept["slow"] = line["how"] == "run" and time.monotonic() - began > SECONDS
        text += json.dumps(kept, ensure_ascii=False) + "\n"
        print(" ".join(line["argv"])[:100], "→", kept.get("exit"), kept.get("sentence", kept.get("keys", "")))
    TABLE.write_text(text, encoding="utf-8")


def _plain(line: dict[str, Any]) -> bool:
    return bool(line["argv"]) and not {"--help", "--version"} & set(line["argv"])


if __name__ == "__main__":
    write_table(LINES)
    sys.exit(0)

"""Claims about ``python -m benchmarks``: every measurement of its table is there, and every result has one schema."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from benchmarks import __main__ as runner
from benchmarks.__main__ import MEASUREMENTS, list_measurements, main
from benchmarks.record import Record, Row
from benchmarks.timing import add_comparison, find_source, median_in_turns, run_python, stopwatch

from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate
from tests import ROOT

FOLDER = ROOT / "benchmarks"
MODULES = list(MEASUREMENTS)
NAMES = [name for module in MODULES for name in MEASUREMENTS[module]]
LONGEST = 500
NOT_FOR_HELP = {"diffusers", "transformers", "mediapipe", "pandas", "openai", "fastapi", "torch._inductor"}
"""Packages that take long to import; no help page needs them."""
SCHEMA = {"measurement", "command", "date", "seconds", "version", "commit", "machine", "rows", "notes"}


def options_of(name: str) -> type:
    module = next(module for module, names in MEASUREMENTS.items() if name in names)
    function = getattr(importlib.import_module(f"benchmarks.{module}"), name.replace("-", "_"))
    hints = typing.get_type_hints(function)
    assert hints["record"] is Record
    return typing.cast(type, hints["options"])


@pytest.mark.parametrize("name", NAMES)
def test_a_measurement_is_a_function_of_documented_options(name: str) -> None:
    options = options_of(name)
    assert dataclasses.is_dataclass(options)
    assert options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    documentation = options.__doc__ or ""
    assert not documentation.startswith(f"{options.__name__}(")  # what dataclass writes where there is nothing
    assert documentation.splitlines()[0].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_help_text(name: str) -> None:
    kinds = [kind for kind in options_of(name).__mro__ if dataclasses.is_dataclass(kind)]
    for kind in kinds:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(definition, ast.ClassDef)
        body = definition.body
        for field, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                text = following.value if isinstance(following, ast.Expr) else None
                assert isinstance(text, ast.Constant), f"{kind.__name__}.{field.target.id} has no help text"
                assert str(text.value).endswith("."), f"{kind.__name__}.{field.target.id} ends without a full stop"


@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_is_measured(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert not ended.value.code
    page = capsys.readouterr().out
    assert (options_of(name).__doc__ or "").splitlines()[0] in " ".join(page.split())
    assert f"python -m benchmarks {name}" in page


def test_no_help_page_imports_what_it_does_not_need() -> None:
    code = (
        "import json, sys\nfrom benchmarks.__main__ import main\n"
        f"for name in {NAMES!r}:\n    try: main([name, '--help'])\n    except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not NOT_FOR_HELP & set(json.loads(done.stderr.splitlines()[-1]))


def test_every_measurement_is_listed_once() -> None:
    names = [name for names in MEASUREMENTS.values() for name in names]
    assert len(set(names)) == len(names)
    assert all(f"  {name} " in list_measurements() for name in names)


def test_every_file_has_measurements_or_is_shared_by_them() -> None:
    texts = {path.stem: path.read_text("utf-8") for path in FOLDER.glob("*.py")}
    reached, found = {"__init__", "__main__"}, {*MODULES}
    while found:
        reached |= found
        pattern = r"^from benchmarks(?:\.(\w+))? import \(?\s*(\w+)"
        imports = [re.findall(pattern, texts[module], re.M) for module in found]
        found = {module or name for pairs in imports for module, name in pairs}
        found -= reached
    assert {name for name in reached if len(texts[name].splitlines()) > LONGEST} == set()
    assert set(texts) == reached


# --- A tiny measurement -----------------------------------------------------------------


@dataclass(frozen=True)
class TinyOptions:
    """How long a word is."""

    word: str = "flow"
    """A word."""


Measure = Callable[[typing.Callable[[TinyOptions, Record], None]], None]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Put a function into the table as the measurement ``tiny``."""

    def put(function: Callable[[TinyOptions, Record], None]) -> None:
        module = types.ModuleType("benchmarks.tiny")
        module.tiny = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "benchmarks.tiny", module)
        monkeypatch.setitem(runner.MEASUREMENTS, "tiny", {"tiny": "how long a word is"})

    return put


def tiny(options: TinyOptions, record: Record) -> None:
    record.add(options.word, "letters", len(options.word), unit="s", group="length")
    record.add(options.word, "vowels", Estimate(1.0, 0.5, 1.5, 4), group="length")
    record.add(options.word, "consonants", None, group="length")


def test_a_record_has_figures_and_all_that_repeats_them(
    measure: Measure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tiny)
    target = tmp_path / "tiny.json"
    assert main(["tiny", "--word", "a word", "--record", str(target)]) == 0
    result = json.loads(target.read_text())
    assert set(result) == SCHEMA
    assert result["command"] == "python -m benchmarks tiny --word 'a word'"
    rows = [Row(**row) for row in result["rows"]]
    assert [(row.metric, row.value, row.low, row.high, row.n) for row in rows] == [
        ("letters", 6, None, None, None), ("vowels", 1, 0.5, 1.5, 4), ("consonants", None, None, None, None),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "letters [s]" in printed
    assert "1 (0.5…1.5)" in printed


@pytest.mark.parametrize(("count", "first_line"), [(8, "flow"), (9, "metric 0 [s]")])
def test_a_table_with_many_metrics_has_a_line_for_each(
    measure: Measure, capsys: pytest.CaptureFixture[str], count: int, first_line: str
) -> None:
    def wide(options: TinyOptions, record: Record) -> None:
        for number in range(count):
            record.add(options.word, f"metric {number}", 10 + number, unit="s")

    measure(wide)
    assert main(["tiny"]) == 0
    table = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    assert next(cells for cells in table if "10" in cells)[1] == first_line


def test_an_interrupted_measurement_keeps_its_figures(measure: Measure, tmp_path: Path) -> None:
    def stop(options: TinyOptions, record: Record) -> None:
        tiny(options, record)
        raise KeyboardInterrupt

    measure(stop)
    assert main(["tiny", "--record", str(tmp_path / "tiny.json")]) == 130
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert len(result["rows"]) == 3
    assert "Interrupted" in result["notes"][0]


@pytest.mark.parametrize("error", [BadInput("The clip broke.tiny: give another."), RuntimeError("broke.tiny")])
def test_a_measurement_that_fails_keeps_its_figures(measure: Measure, tmp_path: Path, error: Exception) -> None:
    def fail(options: TinyOptions, record: Record) -> None:
        tiny(options, record)
        raise error

    measure(fail)
    words = ["tiny", "--record", str(tmp_path / "tiny.json")]
    if isinstance(error, BadInput):
        assert main(words) == 2
    else:
        with pytest.raises(RuntimeError):
            main(words)
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert len(result["rows"]) == 3
    assert "broke.tiny" in result["notes"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tinny"], "tinny"),
        (["tiny", "--length", "3"], "--length"),
        (["tiny", "--record"], "--record needs"),
        (["tiny", "--record", "nowhere/tiny.json"], "nowhere"),
        (["tiny", "--record", "tiny.txt"], ".json"),
    ],
)
def test_bad_input_is_one_sentence(
    measure: Measure, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(tiny)
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["speed", "--against", "nowhere"], "--against nowhere"),
        (["memory", "--models", "flax"], "flax"),
        (["checkpoint-cost", "--folder", "nowhere"], "nowhere"),
        (["corruptions", "--output", "nowhere/deep"], "videos"),
        (["throughput", "nowhere.mp4"], "nowhere.mp4"),
        (["watermark", "--data", "nowhere"], "nowhere"),
        (["prepare"], "--data"),
        (["prepare", "--part", "gate"], "--corpus"),
        (["newcomer", "no.jpg", "no.wav"], "no.jpg"),
    ],
)
def test_every_measurement_refuses_in_one_sentence(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert said in captured.err
    assert list(tmp_path.iterdir()) == []


# --- Clocks, and two versions of the package --------------------------------------------


def test_processor_time_is_not_that_of_the_clock() -> None:
    import time

    with stopwatch() as asleep:
        time.sleep(0.2)
    assert asleep.clock > 0.19
    assert asleep.processor < 0.1
    with stopwatch(children=True) as child:
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    assert 0 < child.processor < child.clock + 0.5


def test_variants_take_turns() -> None:
    calls: list[str] = []
    median_in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)  # type: ignore[misc]
    assert calls == list("ababab")


def test_a_comparison_has_both_times_and_their_ratio() -> None:
    record = Record("speed", "")
    add_comparison(record, "drawing", "ms", now=[1.0, 1.1, 1.0], before=[2.0, 2.2, 2.0])
    now, before, ratio = record.rows
    assert (now.value, before.value, ratio.value) == (1.0, 2.0, pytest.approx(0.5))
    assert ratio.low == ratio.high == pytest.approx(0.5)
    add_comparison(record, "alone", "ms", now=[1.0])
    assert len(record.rows) == 4


def test_a_version_is_a_checkout_or_its_source(tmp_path: Path) -> None:
    assert find_source(ROOT) == find_source(ROOT / "src") == (ROOT / "src").resolve()
    with pytest.raises(BadInput, match="has no package flowportrait"):
        find_source(tmp_path)
    with pytest.raises(BadInput, match="No module named 'nowhere'"):
        run_python(["-c", "import nowhere"])


# --- Measurements that are quick --------------------------------------------------------


def measured(words: list[str], target: Path) -> dict[tuple[str, str], float]:
    """Run a measurement and return its figures by system and metric."""
    assert main([*words, "--record", str(target)]) == 0
    return {(row["system"], row["metric"]): row["value"] for row in json.loads(target.read_text())["rows"]}


def test_drawing_costs_more_with_the_retouching_network(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    figures = measured(["render", "--size", "128", "--frames", "5"], tmp_path / "render.json")
    assert 0 < figures["128 px", "warp"] < figures["128 px", "with retouching"]


def test_a_newcomer_runs_the_commands_of_the_page_in_order(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "docs" / "tutorials").mkdir(parents=True)
    (repository / "docs" / "tutorials" / "first-video.md").write_text(
        "Text.\n```bash\nmake install    # first\n```\n```python\nflowportrait never\n```\n"
        "```bash\nflowportrait photo.jpg talking.mp4\nls never\nflowportrait other.jpg third.mp4\n"
        "flowportrait talking.mp4 second.mp4  # then\n```\n"
    )
    (repository / "Makefile").write_text(
        "install:\n\tmkdir -p .venv/bin\n\techo 'PATH=$$PWD/.venv/bin:$$PATH' > .venv/bin/activate\n"
        "\tprintf '#!/bin/sh\\ncp $$1 $$2\\n' > .venv/bin/flowportrait\n\tchmod +x .venv/bin/flowportrait\n"
    )
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "A page"]):
        subprocess.run(["git", *words], cwd=repository, check=True)
    for name in ("me.jpg", "me.wav"):
        (tmp_path / name).write_bytes(bytes(2048))
    words = ["newcomer", str(tmp_path / "me.jpg"), str(tmp_path / "me.wav"), "--repository", str(repository)]
    target = tmp_path / "newcomer.json"
    figures = measured(words, target)
    assert "other.jpg" in json.loads(target.read_text())["notes"][0]
    assert [system for system, metric in figures if metric == "clock"] == [
        "git clone", "make install", "flowportrait photo.jpg talking.mp4", "flowportrait talking.mp4 second.mp4",
        "all commands",
    ]  # fmt: skip
    assert figures["second.mp4", "size"] == 2

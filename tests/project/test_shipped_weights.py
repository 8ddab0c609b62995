"""Shipped files are found by name in the package of weights, and a missing or unfitting package is one sentence."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from flowportrait import __version__, files
from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.files import current_path, shipped_weights
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.rl.post_trainer import resolve_recipe
from tests import ROOT

WEIGHTS = ROOT / "weights" / "flowportrait_weights"


@pytest.fixture
def forget_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the weights is looked for anew, as in a fresh process."""
    monkeypatch.setattr(files, "_weights_folder", files._weights_folder.__wrapped__)


def test_a_shipped_file_is_found_by_its_name_in_the_package() -> None:
    path = shipped_weights("sync_eval/model.safetensors")
    assert path.is_file()
    assert path.parents[1] == shipped_weights()
    assert shipped_weights().name == "flowportrait_weights"


def test_every_name_that_the_code_asks_for_exists() -> None:
    asked = set()
    for folder in ("src", "tools", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Call) and ast.unparse(node.func) == "shipped_weights" and node.args
                if named and isinstance(node.args[0], ast.Constant):
                    asked.add(node.args[0].value)
    assert len(asked) > 20
    assert [name for name in asked if not (WEIGHTS / name).exists()] == []


@pytest.mark.usefixtures("forget_folder")
def test_without_the_package_one_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "flowportrait_weights", None)
    with pytest.raises(BadInput, match=rf"run pip install flowportrait-weights=={__version__}\.$"):
        shipped_weights("rl")
    assert main(["export", "--checkpoint", "rl", "--output", str(tmp_path / "step.onnx")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("forget_folder")
def test_weights_of_another_version_are_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("flowportrait_weights")
    other.__spec__ = importlib.import_module("flowportrait_weights").__spec__
    other.__version__ = "0.1.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flowportrait_weights", other)
    with pytest.raises(BadInput, match=rf"flowportrait-weights 0\.1\.9 does not fit flowportrait {__version__}"):
        shipped_weights("rl")


@pytest.mark.parametrize("head", ["src", "/opt/site-packages", "C:/Python/Lib/site-packages"])
def test_paths_into_the_folder_of_version_0_1_still_name_the_weights(head: str) -> None:
    assert checkpoint_folder(f"{head}/flowportrait/weights/sft") == shipped_weights("sft")
    recipe = f"{head}/flowportrait/weights/rl/recipe.json"
    assert resolve_recipe(recipe) == resolve_recipe(shipped_weights("rl/recipe.json"))


def test_an_existing_folder_of_that_name_is_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "flowportrait" / "weights" / "sft"
    own.mkdir(parents=True)
    assert current_path(own) == own
    assert current_path(Path("myflowportrait/weights/sft")) == Path("myflowportrait/weights/sft")

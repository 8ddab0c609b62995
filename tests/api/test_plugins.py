"""Parts of other packages are found by entry point, and parts of scripts by ``MODULE:NAME``."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowportrait.errors import BadInput
from flowportrait.plugins import is_reference, load_plugin, load_reference, plugin_names


def test_an_installed_package_adds_names(plugin_package: Path) -> None:
    assert "quiet_motion" in plugin_names("rewards")
    assert load_plugin("rewards", "quiet_motion").__module__ == "flowportrait_plugin_example"


def test_without_the_package_there_are_no_such_names() -> None:
    assert "quiet_motion" not in plugin_names("rewards")


def test_a_reference_is_imported_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text("class Outer:\n    value = 3\n")
    monkeypatch.chdir(tmp_path)
    assert load_reference("own_parts:Outer.value") == 3
    assert load_plugin("recipes", "own_parts:Outer").value == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [("no_such_module_here:Name", "cannot be imported"), ("json:no_such_name", "does not exist")],
)
def test_a_wrong_reference_is_told_in_one_sentence(name: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason) as caught:
        load_reference(name)
    assert str(caught.value).count("\n") == 0


def test_an_unknown_name_lists_what_there_is(plugin_package: Path) -> None:
    choices = "sync, loud_speech, quiet_motion, or give MODULE:NAME"
    with pytest.raises(BadInput, match=rf"No reward named 'sinc': choose from {choices}"):
        load_plugin("rewards", "sinc", ["sync"])


def test_what_looks_like_a_reference() -> None:
    assert is_reference("package.module:Class.method")
    assert not any(map(is_reference, ("sync", "espeak:pt-br+f2", "C:\\models", "a b:c", ":x")))

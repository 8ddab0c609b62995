"""Claims about options: settings, abbreviations, repeated and old options are understood, and explained by help."""

from __future__ import annotations

import importlib
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import get_type_hints

import pytest

from flowportrait.cli import COMMANDS, OLD_COMMANDS, main, read_command
from flowportrait.commands.animate import request_of
from flowportrait.commands.options import LIKELY_MISTYPED
from flowportrait.config import parse_setting
from flowportrait.errors import BadInput
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.plugins import load_reference

POSTTRAIN = ["posttrain", "--prompts", "p", "--output", "o"]
ANIMATE = ["animate", "--image", "a.png", "--audio", "a.wav", "--output", "o.mp4"]


@pytest.mark.parametrize(
    "words",
    [
        ["--objective.kl-weight", "0.1", "--groups", "4"],
        ["--objective.kl_weight=0.1", "--groups=4"],
        ["--set", "objective.kl_weight=0.1", "groups=4"],
        ["--set", "objective.kl_weight=0.1", "--groups", "4"],
        ["--set", "objective.kl_weight=0.1", "--set", "groups=4"],
    ],
)
def test_a_setting_is_an_option_or_a_word_of_set(words: list[str]) -> None:
    assert read_command([*POSTTRAIN, *words])[1].set == ("objective.kl_weight=0.1", "groups=4")


def test_a_setting_as_an_option_may_be_negative_and_a_switch_needs_no_value() -> None:
    options = read_command([*POSTTRAIN, "--credit.floors.sync", "-0.5", "--checkpointing", "--resume"])[1]
    assert options.set == ("credit.floors.sync=-0.5", "checkpointing=true")
    assert options.resume


def test_a_setting_that_the_recipe_does_not_have_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["posttrain", "--prompts", "p", "--output", str(tmp_path / "o"), "--objective.kl-wieght", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean 'kl_weight'" in error


def test_a_mistyped_option_is_not_taken_for_a_setting() -> None:
    with pytest.raises(BadInput, match="Unrecognized option --resme; did you mean --resume"):
        read_command([*POSTTRAIN, "--resme"])


def test_a_mistyped_option_of_a_command_without_settings_is_not_called_required() -> None:
    with pytest.raises(BadInput, match="Unrecognized options: --outptu; did you mean --output"):
        read_command(["animate", "--image", "a.png", "--audio", "a.wav", "--outptu", "o.mp4"])


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.function])
def test_no_setting_is_taken_for_an_option(name: str) -> None:
    module, _, function = COMMANDS[name].function.partition(":")
    kind = get_type_hints(getattr(importlib.import_module(f"flowportrait.commands.{module}"), function))["options"]
    if not hasattr(kind, "configuration"):
        return
    make = load_reference(kind.configuration)
    settings = {one.name for one in fields(make("nft") if name == "posttrain" else make())}
    options = {one.name for one in fields(kind)}
    for setting in settings - options:
        assert not get_close_matches(f"--{setting}", [f"--{one}" for one in options], 1, LIKELY_MISTYPED), setting
        assert not [one for one in options if one.startswith(setting)], setting


def test_help_with_a_recipe_shows_its_settings_with_their_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["posttrain", "--recipe", "nft", "--help"])
    page = " ".join(capsys.readouterr().out.split())
    assert "--objective.beta FLOAT" in page
    assert "--objective.clip-low" not in page
    assert "Prompts per iteration over all processes" in page


@pytest.mark.parametrize(
    ("command", "option"),
    [("studio", "--seconds"), ("pretrain", "--generator.guidance"), ("judge score", "--endpoint.model")],
)
def test_the_settings_of_a_command_are_listed(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help-settings"])
    assert option in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--exp", "0.5"], ["--expression_scale", "0.5"], ["--expression-scale=0.5"]])
def test_options_may_be_abbreviated_and_written_with_underscores(words: list[str]) -> None:
    assert read_command([*ANIMATE, *words])[1].expression_scale == 0.5


def test_an_abbreviation_of_two_options_is_refused_with_both() -> None:
    with pytest.raises(BadInput, match=r"--mo is ambiguous: it could be --motion-in, --motion-out; see"):
        read_command([*ANIMATE, "--mo", "x.csv"])


def test_an_option_of_several_values_may_be_given_several_times() -> None:
    options = read_command(["animate", "--image", "a", "b", "--text", "x", "--image", "c", "--output", "-"])[1]
    assert options.image == (Path("a"), Path("b"), Path("c"))
    assert options.output == Path("-")
    assert read_command(["animate", "--source_image", "a", "--driven_audio=b", "--out", "c"])[1].audio == (Path("b"),)


def test_the_last_of_a_value_that_is_given_twice_counts() -> None:
    assert read_command([*ANIMATE, "--seed", "1", "--seed", "2"])[1].seed == 2


@pytest.mark.parametrize(("words", "denoise"), [([], True), (["--denoise"], True), (["--no-denoise"], False)])
def test_noise_is_removed_unless_it_is_to_stay(words: list[str], denoise: bool) -> None:
    assert read_command([*ANIMATE, *words])[1].denoise is denoise


def test_an_old_option_works_and_names_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_command([*ANIMATE, "--as-heard"])[1].denoise is False
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--no-denoise" in error


@pytest.mark.parametrize("old", OLD_COMMANDS)
def test_an_old_command_works_and_names_the_new_one(old: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"score": ["a.mp4"], "study": ["serve", "s"], "reward": ["train", "--output", "o"]}.get(old, [])
    options = read_command([old, *words])
    warned = capsys.readouterr().err
    assert f"'flowportrait {old}' is now 'flowportrait {OLD_COMMANDS[old]}'" in warned
    assert options == read_command([*OLD_COMMANDS[old].split(), *words])
    assert capsys.readouterr().err == ""


def test_the_list_of_commands_is_a_dozen_and_names_no_old_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_help(capsys, "--help").count("\n  ") == len([name for name in COMMANDS if " " not in name]) == 14
    assert not set(OLD_COMMANDS) & set(COMMANDS)
    assert "preferences study make" in main_help(capsys, "preferences", "study", "--help")
    assert "posttrain recipes" in main_help(capsys, "posttrain", "--help")


def main_help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(words)
    return capsys.readouterr().out


def test_the_options_of_animate_begin_as_its_request_does() -> None:
    options = read_command(["animate", "--image", "a.png", "--audio", "a.wav", "--output", "o.mp4"])[1]
    assert request_of(options) == AnimateRequest(image=Path("a.png"), audio=Path("a.wav"))


def test_arguments_of_a_policy_are_read_as_settings_are() -> None:
    words = ("a=1", "b=-0.5", "c=true", "d=None", "e=x=y", "f=")
    assert dict(map(parse_setting, words)) == {"a": 1, "b": -0.5, "c": True, "d": None, "e": "x=y", "f": ""}
    with pytest.raises(BadInput, match="needs key=value"):
        parse_setting("width")

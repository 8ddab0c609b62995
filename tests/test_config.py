"""Claims about configurations and prompts: strict keys, typed values, clear sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.config import load, merge, override, save, to_dict
from flowportrait.errors import BadInput
from flowportrait.posttrain.credit import CreditConfig
from flowportrait.posttrain.recipes import named, read_recipe
from flowportrait.prompts import read_prompts


@given(
    rate=st.floats(1e-8, 1.0), groups=st.integers(1, 99), steps=st.none() | st.integers(1, 9), start=st.booleans(),
    space=st.sampled_from(["v", "exact"]),
)  # fmt: skip
def test_what_is_set_on_the_command_line_survives_the_disk(
    rate: float, groups: int, steps: int | None, start: bool, space: str
) -> None:
    changes = [f"learning_rate={rate!r}", f"groups={groups}", f"plan.trained={steps}", f"same_start={start}",
               f"objective.kl_space={space}"]  # fmt: skip
    recipe = override(named("flow-grpo"), changes)
    assert (recipe.learning_rate, recipe.groups, recipe.plan.trained) == (rate, groups, steps)
    assert (recipe.same_start, recipe.objective.kl_space) == (start, space)
    assert merge(named("flow-grpo"), json.loads(json.dumps(to_dict(recipe)))) == recipe


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("objective.kl_wieght=1", "did you mean 'kl_weight'"),
        ("nonsense=1", "Unknown key 'nonsense'"),
        ("groups=many", "type int"),
        ("groups=2.5", "type int"),
        ("groups=0", "at least 1"),
        ("group_size=1", "at least 2"),
        ("learning_rate=nan", "type float"),
        ("learning_rate=-1", "at least 0"),
        ("objective.kl_space=w", "choose one of v, x, exact"),
        ("objective=1", "needs one of its parts"),
        ("groups.size=1", "has no parts"),
        ("groups", "needs key=value"),
    ],
)
def test_a_bad_setting_is_named_with_what_would_be_right(change: str, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        override(named("flow-grpo"), [change])


def test_a_saved_configuration_loads_as_it_was_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    save(named("flow-grpo"), path)
    assert read_recipe(path) == named("flow-grpo")
    for damaged in (b"{", b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"recipe\.json"):
            load(CreditConfig, path)
    path.write_text("[1]")
    with pytest.raises(BadInput, match="an object with keys, not list"):
        load(CreditConfig, path)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")


def test_images_and_recordings_are_crossed_unless_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.jpg", "s.wav", "t.mp3", "notes.txt")
    assert [p.id for p in read_prompts(tmp_path)] == ["a-s", "a-t", "b-s", "b-t"]
    (tmp_path / "prompts.jsonl").write_text('{"image": "b.jpg", "audio": "s.wav", "id": "only"}\n')
    assert [(p.id, p.image.name) for p in read_prompts(tmp_path)] == [("only", "b.jpg")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 1 is not JSON"),
        ('{"image": "a.png"}', "needs the keys"),
        ('{"image": "a.png", "audio": "s.wav", "speed": 2}', "no others"),
        ('{"image": "a.png", "audio": "gone.wav"}', "does not exist"),
        ('{"image": 3, "audio": "s.wav"}', "not a text"),
        ('{"image": "a.png", "audio": "s.wav", "id": "../../x"}', "cannot be a file name"),
        ('{"image": "a.png", "audio": "s.wav"}\n{"image": "a.png", "audio": "s.wav"}', "two prompts with the id 'a-s'"),
        ("", "lists no prompts"),
    ],
)
def test_a_bad_prompt_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    touch(tmp_path, "a.png", "s.wav")
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(BadInput, match=sentence):
        read_prompts(tmp_path)


def test_a_listing_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b"\xff\xfe{")
    with pytest.raises(BadInput, match=r"prompts\.jsonl cannot be read as text"):
        read_prompts(tmp_path)


def test_pictures_of_one_name_are_told_apart_by_the_user(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "a.jpg", "s.wav")
    with pytest.raises(BadInput, match="two prompts with the id 'a-s'"):
        read_prompts(tmp_path)


def test_a_folder_without_recordings_says_so(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(BadInput, match="holds no audio files"):
        read_prompts(tmp_path)

"""Claims about configurations and prompts: strict keys, typed values, clear sentences."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowportrait.config import load, merge, override, save, to_dict
from flowportrait.data.prompts import read_prompts
from flowportrait.errors import BadInput
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.credit import CreditConfig
from flowportrait.rl.recipes import CARDS, find_recipe
from flowportrait.training.learner import SlowCopy
from flowportrait.training.lora import LoraSettings


@given(
    rate=st.floats(1e-8, 1.0), groups=st.integers(1, 99), steps=st.none() | st.integers(1, 9), start=st.booleans(),
    space=st.sampled_from(["v", "exact"]),
)  # fmt: skip
def test_what_is_set_on_the_command_line_survives_the_disk(
    rate: float, groups: int, steps: int | None, start: bool, space: str
) -> None:
    changes = [f"learning_rate={rate!r}", f"groups={groups}", f"plan.trained={steps}", f"same_start={start}",
               f"objective.kl_space={space}"]  # fmt: skip
    recipe = override(find_recipe("flow-grpo"), changes)
    assert (recipe.learning_rate, recipe.groups, recipe.plan.trained) == (rate, groups, steps)
    assert (recipe.same_start, recipe.objective.kl_space) == (start, space)
    assert merge(find_recipe("flow-grpo"), json.loads(json.dumps(to_dict(recipe)))) == recipe


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
        override(find_recipe("flow-grpo"), [change])


def test_a_recipe_is_made_with_settings_under_strict_keys() -> None:
    recipe = PostTrainConfig.from_recipe(
        "flow-grpo",
        groups=4,
        lora=LoraSettings(rank=2),
        **{"objective.kl_weight": 0.1, "credit.caps.sync": 1, "old.rate": 0.5},
    )
    assert (recipe.name, recipe.groups, recipe.lora, recipe.objective.kl_weight) == (
        "flow-grpo",
        4,
        LoraSettings(rank=2),
        0.1,
    )
    assert (recipe.credit.caps, recipe.old) == ({"sync": 1.0}, SlowCopy(rate=0.5))
    for settings, sentence in (
        ({"objective.kl_wieght": 0.1}, "did you mean 'kl_weight'"), ({"groups": 2.5}, "type int"),
        ({"groups": "4"}, "type int"), ({"groups.size": 1}, "groups has no parts"), ({"groups": 0}, "at least 1"),
        ({"kernel": "ode"}, "kernel=ode is not possible"), ({"nonsense": LoraSettings()}, "Unknown key 'nonsense'"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=sentence):
            PostTrainConfig.from_recipe("flow-grpo", **settings)


@pytest.mark.parametrize(
    ("recipe", "before", "now"),
    [
        ("flow-grpo", "pieces=3", "rollout_chunks=3"),
        ("flow-grpo", "stale=2", "staleness=2"),
        ("kvpo", "explore.keep=2", "exploration.keep=2"),
        ("sync-dpo", "given.curriculum=5", "offline_data.curriculum=5"),
        ("flow-grpo", "credit.when=summed", "credit.aggregation=sum_then_normalize"),
        ("flow-grpo", "credit.among=batch", "credit.baseline_scope=batch"),
        ("flash-grpo", "plan.among=2", "plan.first_steps=2"),
        ("tempflow", "plan.among=2", "plan.first_steps=2"),
        ("nft", "objective.reference=0.5", "objective.kl_weight=0.5"),
        ("flow-rwr", "objective.most=5", "objective.max_weight=5"),
        ("distil", "objective.most=4", "objective.max_weight=4"),
        ("nft", "old.most=0.1", "old.max_decay=0.1"),
        ("distil", "teacher.witnesses=1", "teacher.samples=1"),
        ("exemplar-awm", "exemplars.push=0", "exemplars.negative_limit=0"),
    ],
)
def test_a_key_of_version_0_1_is_todays(recipe: str, before: str, now: str, tmp_path: Path) -> None:
    changed = override(find_recipe(recipe), [before])
    assert changed == override(find_recipe(recipe), [now]) != find_recipe(recipe)
    today = to_dict(changed)
    *parts, key = before.partition("=")[0].split(".")
    *_, new = now.partition("=")[0].split(".")
    part = today
    for name in now.partition("=")[0].split(".")[:-1]:
        part = part[name]
    value = part.pop(new)
    part[key] = {"sum_then_normalize": "summed"}.get(value, value) if isinstance(value, str) else value
    if parts and parts[0] not in today:
        today[parts[0]] = today.pop(now.partition(".")[0])
    (tmp_path / "recipe.json").write_text(json.dumps(today))
    assert PostTrainConfig.from_json(tmp_path / "recipe.json") == changed


@pytest.mark.parametrize("name", CARDS)
def test_the_recipe_of_a_run_is_read_back_whatever_its_method(name: str, tmp_path: Path) -> None:
    save(find_recipe(name), tmp_path / "recipe.json")
    assert PostTrainConfig.from_json(tmp_path / "recipe.json") == find_recipe(name)


def test_every_field_of_a_recipe_says_what_it_is() -> None:
    tree = ast.parse(inspect.getsource(PostTrainConfig))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    said = {
        node.target.id for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr)
    }  # fmt: skip
    assert said == {part.name for part in fields(PostTrainConfig)}


def test_a_saved_configuration_loads_as_it_was_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    save(find_recipe("flow-grpo"), path)
    assert PostTrainConfig.from_json(path) == find_recipe("flow-grpo")
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

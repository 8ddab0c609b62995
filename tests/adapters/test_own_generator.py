"""Claims about a generator of one's own: the example learns to be in sync, and every fault is named."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.own_generator import Murmur, main
from PIL import Image
from safetensors.torch import load_file
from scipy.io import wavfile
from skimage.data import astronaut
from torch import nn

from flowportrait.adapters.check import check_generator
from flowportrait.adapters.loading import missing_ability
from flowportrait.adapters.policy import DecodedSamples, GeneratorPolicy, GeneratorTask, Item, ItemCondition
from flowportrait.cli import main as command
from flowportrait.errors import BadInput
from flowportrait.rewards.face import IdentityReward
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.post_trainer import PostTrainer
from flowportrait.rl.recipes import CARDS, find_recipe
from flowportrait.training.lora import LoraSettings


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four recordings of noise in syllables, each with its own rhythm."""
    folder, draw = tmp_path_factory.mktemp("prompts"), np.random.default_rng(0)
    lines = []
    for rhythm in range(4):
        time = np.arange(2 * 16000) / 16000
        beat = np.clip(np.sin(2 * np.pi * (1.5 + 0.7 * rhythm) * time), 0, 1)
        wave = 0.2 * beat * draw.standard_normal(len(time))
        wavfile.write(folder / f"{rhythm}.wav", 16000, wave.astype(np.float32))
        lines.append(json.dumps({"audio": f"{rhythm}.wav"}))
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def test_the_example_gets_into_sync_and_its_weights_are_delivered(prompts: Path, tmp_path: Path) -> None:
    main(prompts, tmp_path / "run", iterations=8)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    earned = [record["reward/sync"] for record in records]
    assert np.mean(earned[-2:]) > earned[0] + 0.01
    assert max(record["ratio/first_error"] for record in records) == 0.0
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    learned = Murmur()
    learned.load_state_dict({name.removeprefix("generator."): value for name, value in weights.items()})
    assert not torch.equal(learned.out[1].weight, Murmur().out[1].weight)


def test_the_example_passes_the_check_on_the_command_line(prompts: Path, capsys: Any) -> None:
    name = "examples.own_generator:Murmur"
    assert command(["posttrain", "policies", "check", name, "--prompts", str(prompts), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["encode", "velocity", "condition", "replay", "gradient", "decode", "delivery"]
    assert command(["posttrain", "policies", "check", name]) == 2
    said = capsys.readouterr().err
    assert "needs an audio" in said
    assert "it was tried on two texts alone" in said
    assert command(["posttrain", "--policy", name, "--output", str(prompts / "run")]) == 2
    assert "--policy needs --prompts" in capsys.readouterr().err
    wanted = ["--prompts", str(prompts), "--output", str(prompts / "run"), "--recipe", "kvpo"]
    assert command(["posttrain", "--policy", "no.such:Generator", *wanted]) == 2, "refused before it is looked for"
    assert "kvpo needs a history of chunks" in capsys.readouterr().err


def test_a_run_of_another_generator_is_evaluated_on_held_out_prompts(prompts: Path, tmp_path: Path) -> None:
    """Before the first iteration and after the last; its motion is drawn with the portrait of each held-out prompt."""
    Image.fromarray(astronaut()).save(tmp_path / "me.png")
    kept = [Item("0", image=tmp_path / "me.png", audio=prompts / "0.wav")]
    recipe = replace(find_recipe("flow-grpo"), iterations=1, evaluate_every=1, groups=1, group_size=2, plan=AllSteps(2))
    trainer = PostTrainer(Murmur, ["sync"], recipe, prompts, kept, output_dir=tmp_path / "run")
    trainer.train()
    assert [record["iteration"] for record in trainer.history if "evaluation/sync" in record] == [0, 1]
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["00000", "00001"]
    assert (tmp_path / "run" / "latest" / "model.safetensors").is_file()


def test_held_out_motion_without_a_portrait_is_refused_in_a_sentence(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["posttrain", "--policy", "examples.own_generator:Murmur", "--prompts", str(prompts), "--held-out",
             str(prompts), "--output", str(tmp_path / "run"), "--set", "groups=1", "rewards.perceptual=0",
             "rewards.temporal=0"]  # fmt: skip
    assert command(asked) == 2
    assert "held-out prompt '00001' has no image" in capsys.readouterr().err


class Sound(nn.Module):
    """A generator with nothing wrong, for others to break."""

    shape = (4, 3)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        torch.nn.init.eye_(self.layer.weight)

    def encode(self, items: Any) -> Any:
        return (torch.tensor([[float(len(item.text))] * 3 for item in items]),)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: Any) -> torch.Tensor:
        return self.layer(x + known[0][:, None])

    def decode(self, x: torch.Tensor, known: Any) -> DecodedSamples:
        return DecodedSamples([(row.sigmoid() * 255).byte().numpy()[:, None, None] for row in x])


def broken(**methods: Callable[..., Any]) -> Sound:
    made = Sound()
    for name, method in methods.items():
        setattr(made, name, method.__get__(made))
    return made


def _late_dropout(self: Any, x: Any, sigma: Any, known: Any) -> Any:
    return nn.functional.dropout(self.layer(x + known[0][:, None]), 0.5, self.training and x.ndim == 3 and len(x) > 2)


FAULTS: dict[str, tuple[Sound, str]] = {
    "list": (broken(encode=lambda self, items: [torch.zeros(len(items), 1)]), "encode returns a list"),
    "one row": (broken(encode=lambda self, items: (torch.zeros(1, 3),)), "give a row each"),
    "random": (broken(encode=lambda self, items: (torch.rand(len(items), 3),)), "something else the second time"),
    "shape": (broken(velocity=lambda self, x, s, k: self.layer(x)[:, :2]), "velocity returns (2, 2, 3) for x of"),
    "batch": (broken(velocity=lambda self, x, s, k: self.layer(x - x.mean(0)) + k[0][:, None]), "others in its batch"),
    "infinite": (broken(velocity=lambda self, x, s, k: self.layer(x) / 0), "not finite"),
    "deaf": (broken(velocity=lambda self, x, s, k: self.layer(x)), "does not reach it"),
    "dropout": (broken(velocity=_late_dropout), "in training mode it is another function"),
    "detached": (broken(velocity=lambda self, x, s, k: self.layer(x + k[0][:, None]).detach()), "has no gradient"),
    "raises": (broken(velocity=lambda self, x, s, k: x @ torch.zeros(7, 7)), "velocity raises RuntimeError"),
    "floats": (broken(decode=lambda self, x, k: DecodedSamples([row.numpy() for row in x])), "frames are RGB uint8"),
    "nothing": (broken(decode=lambda self, x, k: DecodedSamples()), "decode returns neither"),
    "flicker": (
        broken(decode=lambda self, x, k: DecodedSamples(
            [np.random.default_rng().integers(0, 255, (1, 4, 4, 3)).astype("uint8") for _ in x]
        )), "something else the second time",
    ),
    "blend": (
        broken(decode=lambda self, x, k: Sound.decode(self, x.mean(0).expand(x.shape) * len(x), k)),
        "another picture alone than among others",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_said_in_a_sentence(fault: str) -> None:
    made, sentence = FAULTS[fault]
    last = check_generator(made, [Item("a", "one"), Item("b", "three")])[-1]
    assert not last.passed
    assert sentence in last.message
    assert last.message.endswith(".")


def test_recipes_that_need_more_than_three_methods_say_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"kvpo needs a history of chunks to explore, .* choose one of flow-grpo, "):
        PostTrainer(
            Sound(), CompositeReward((), {}), find_recipe("kvpo"), [Item("a", "one")], output_dir=tmp_path / "run"
        )
    own = {name for name, card in CARDS.items() if missing_ability(card.recipe)}
    real = {"exemplar-ratio", "exemplar-awm", "exemplar-dpo", "portraitgen", "sync-dpo"}
    students = {"distil", "dmd", "dmd-reward", "dmd-tilted", "dmd-trust"}
    assert own == real | students | {"nft-regions", "kvpo", "region-credit", "corrective-reflow"}


@pytest.mark.parametrize("lora", [None, LoraSettings(2, 2, ("layer",))])
def test_a_run_goes_on_with_the_weights_that_it_left_as_they_were_and_no_others(
    lora: LoraSettings | None, tmp_path: Path
) -> None:
    recipe = replace(find_recipe("flow-grpo"), iterations=1, groups=1, group_size=2, lora=lora)

    def train(bias: float) -> None:
        generator = Sound()
        torch.nn.init.constant_(generator.layer.bias, bias)
        trainer = PostTrainer(generator, CompositeReward((), {}), recipe, [Item("a", "one")], output_dir=tmp_path)
        trainer.train(resume=True)

    train(0.1)
    train(0.1)
    if lora:
        with pytest.raises(BadInput, match="begun with another starting checkpoint: resume with it, or choose"):
            train(0.1001)
    else:
        train(0.1001)


def test_the_image_of_an_item_is_the_portrait_where_a_reward_compares_with_it(tmp_path: Path) -> None:
    Image.fromarray(astronaut()).save(tmp_path / "face.png")
    items = [Item("a", image=tmp_path / "face.png"), Item("b", image=tmp_path / "face.png")]
    faces = GeneratorTask(items, IdentityReward().needs).portraits(items)
    assert faces is not None
    assert faces[0] is faces[1]
    assert GeneratorTask(items, frozenset({"frames", "places"})).portraits(items) is None
    assert GeneratorTask(items, IdentityReward().needs).portraits([Item("c", "no image")]) is None


def test_one_piece_is_not_encoded_while_another_is_decoded() -> None:
    busy, together = [0], []

    def slowly(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, *given: Any) -> Any:
            busy[0] += 1
            together.append(busy[0])
            time.sleep(0.02)
            busy[0] -= 1
            return method(self, *given)

        return run

    policy = GeneratorPolicy(broken(encode=slowly(Sound.encode), decode=slowly(Sound.decode)))
    items = [Item("a", "one")]
    condition, latents = ItemCondition(policy.encode(items)), torch.zeros(1, 1, 12)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(policy.encode, items), pool.submit(policy.decode, latents, condition)] * 3
        asked += [pool.submit(policy.decode, latents, condition), pool.submit(policy.encode, items)]
        for answer in asked:
            answer.result()
    assert together == [1] * 5
    assert copy.deepcopy(policy).encode(items)[0].shape == (1, 3)


def test_nothing_is_wrong_with_what_is_not_broken() -> None:
    assert all(finding.passed for finding in check_generator(Sound(), [Item("a", "one"), Item("b", "three")]))


def test_a_generator_may_have_its_own_noise_levels() -> None:
    policy = GeneratorPolicy(broken(levels=lambda self, sigmas: sigmas.square()))
    plan = AllSteps(steps=4)(0, 0, 1, 1)
    assert torch.equal(policy.levels(plan.sigmas), plan.sigmas.square())
    assert replace(find_recipe("flow-grpo")).plan(0, 0, 1, 1).sigmas[0] == 1

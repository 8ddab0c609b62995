"""Claims about pipelines of diffusers as policies, on each family's own classes in miniature."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile

from flowportrait.adapters.check import check_generator
from flowportrait.adapters.loading import load_policy_generator, read_items
from flowportrait.adapters.pipeline import ADAPTER_FILES, PipelineGenerator
from flowportrait.adapters.policy import GeneratorPolicy, GeneratorTask, Item
from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.flow.schedules import noise_schedule, shift_levels
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import check_replayed_noise, replay_velocity
from flowportrait.rl.trainer import Trainer
from flowportrait.training.lora import LoraSettings
from flowportrait.training.state import read_state, write_checkpoint, write_state
from tests.small_pipelines import SMALL, VIDEO, reading_wan, small

diffusers = pytest.importorskip("diffusers")

RECIPE = replace(
    find_recipe("flow-grpo"), groups=2, group_size=6, plan=AllSteps(steps=3), learning_rate=0.02, eta=0.7, updates=1,
    rollout_chunks=1, lora=LoraSettings(4, 8.0, ("to_q", "to_k", "to_v", "to_out.0")),
)  # fmt: skip


LEARNS = {"wan2.1": (20, 0.03), "hunyuan-video-1.5": (15, 0.02), "ltx-video": (30, 0.03)}
"""Iterations and learning rate of small networks that need more than five at 0.02 to be seen to learn."""


@dataclass(frozen=True)
class Bright:
    """Pays for light pictures."""

    name: str = "bright"
    needs: frozenset[str] = frozenset({"frames"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(batch.frames(tuple(range(batch.motion.shape[1]))).flatten(1).mean(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two portraits and two recordings."""
    made, draw = tmp_path_factory.mktemp("prompts"), np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(draw.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(made / f"{name}.png")
        wavfile.write(made / f"{name}.wav", 16000, (0.1 * draw.standard_normal(16000)).astype(np.float32))
    return made


def items(name: str, folder: Path) -> list[Item]:
    image, audio = (folder if name in VIDEO else None), (folder if name == "ltx-2" else None)
    return [Item(one, "", image and image / f"{one}.png", audio and audio / f"{one}.wav") for one in "ab"]


def trainer(name: str, folder: Path, half: bool = False, **changes: Any) -> Trainer:
    pipeline, told = small(name)
    if half:
        pipeline.to(torch.bfloat16)
        told = {key: value.bfloat16() if isinstance(value, torch.Tensor) else value for key, value in told.items()}
    policy = GeneratorPolicy(PipelineGenerator(pipeline, told))
    task = GeneratorTask(items(name, folder), Bright().needs)
    return Trainer(policy, task, replace(RECIPE, **changes), CompositeReward((Bright(),), {"bright": 1.0}))


@pytest.mark.parametrize("name", [name for name in SMALL if name != "ltx-2"])
def test_what_is_post_trained_is_what_the_pipeline_delivers(name: str, folder: Path) -> None:
    """From the same noise: the same frames, by its own loop, schedule, guidance and decoding."""
    generator = PipelineGenerator(*small(name))
    gap = generator.delivery_gap(items(name, folder)[0])
    assert gap is not None
    assert gap <= 1


@pytest.mark.parametrize("name", SMALL)
def test_rollout_replay_update_save_and_diffusers_loads_it(name: str, folder: Path, tmp_path: Path) -> None:
    steps, rate = LEARNS.get(name, (5, 0.02))
    run = trainer(name, folder, learning_rate=rate)
    batch = run.collect()
    first = batch.trajectory
    with torch.no_grad():
        velocity = run.velocity(first)
        assert check_replayed_noise(first, velocity) < 1e-3
        if name in VIDEO:
            others = first.condition.select(torch.arange(len(first)).roll(6))
            assert not torch.allclose(run.velocity(replace(first, condition=others)), velocity, atol=1e-6)
    records = [run.step() for _ in range(steps)]
    assert max(record["ratio/first_error"] for record in records) == 0.0
    assert max(record["noise_gap"] for record in records) < 1e-3
    run.iteration = 0
    assert run.collect().scores["bright"].value.mean() > batch.scores["bright"].value.mean()
    write_state(run, tmp_path / "state")
    write_checkpoint(run, tmp_path / "made", role="live")

    again = trainer(name, folder, learning_rate=rate)
    again.any_condition()
    read_state(again, tmp_path / "state")
    with torch.no_grad():
        live = run.velocity(first)
        assert torch.equal(again.velocity(first), live)
    assert not torch.allclose(velocity, live, atol=1e-3)
    pipeline, told = small(name)
    if hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(tmp_path / "made")
        if name == "wan2.2":
            pipeline.load_lora_weights(
                tmp_path / "made", weight_name=ADAPTER_FILES["transformer_2"], load_into_transformer_2=True
            )
    else:
        pipeline.transformer.load_lora_adapter(
            tmp_path / "made", prefix="transformer", weight_name=ADAPTER_FILES["transformer"]
        )
    loaded = GeneratorPolicy(PipelineGenerator(pipeline, told))
    loaded.encode(items(name, folder)[:1])
    with torch.no_grad():
        assert torch.allclose(replay_velocity(loaded, first), live, atol=1e-4)


def test_each_item_is_encoded_once(folder: Path) -> None:
    run = trainer("sd3.5", folder)
    asked, generator = [], run.policy.generator
    encode = generator.encode
    generator.encode = lambda items: (asked.extend(items), encode(items))[1]
    for _ in range(2):
        run.collect()
    assert sorted(item.id for item in asked) == ["a", "b"]


def test_sound_given_to_ltx2_is_heard(folder: Path) -> None:
    """Two recordings under one portrait: another velocity for each, and none of its own noise in the sound."""
    generator = PipelineGenerator(*small("ltx-2"))
    known = generator.encode([Item(one, "", folder / "a.png", folder / f"{one}.wav") for one in "ab"])
    x = torch.zeros(2, *generator.shape)
    with torch.no_grad():
        v = generator.velocity(x, torch.full((2,), 0.5), known)
    assert (v[0] - v[1]).abs().max() > 1e-5
    assert dict(zip(generator.names, known.prompted, strict=True))["audio_timestep"].abs().max() == 0


def test_a_shift_asked_for_comes_on_top_of_the_models_own(folder: Path) -> None:
    generator = PipelineGenerator(*small("sd3.5"))
    generator.encode(items("sd3.5", folder)[:1])
    own = generator.levels(noise_schedule(4))
    assert own[0] == 1
    assert own[-1] == 0
    assert torch.allclose(generator.levels(noise_schedule(4, 2.0)), shift_levels(own, 2.0))


def test_bad_input_is_one_clear_sentence(folder: Path, tmp_path: Path) -> None:
    pipeline, told = small("sd3.5")
    picture = Item("one", "a face", folder / "a.png")
    refused: list[tuple[str, Any]] = [
        ("StableDiffusion3Pipeline takes no image", lambda: PipelineGenerator(pipeline, told).encode([picture])),
        ("needs an image", lambda: PipelineGenerator(*small("wan2.2")).encode([Item("one", "a face")])),
        ("changes guidance on the way", lambda: PipelineGenerator(pipeline, {"skip_guidance_layers": 3})),
        ("has no argument 'hight'", lambda: PipelineGenerator(pipeline, {"hight": 3})),
        ("refuses what it is given", lambda: PipelineGenerator(pipeline, told | {"height": 30}).encode([Item("x")])),
        ("No pipeline could be loaded from", lambda: load_policy_generator(str(tmp_path))),
        ("cannot be imported", lambda: load_policy_generator("nowhere.to_be:Found")),
        ("no method encode", lambda: load_policy_generator("pathlib:Path")),
    ]
    for sentence, act in refused:
        with pytest.raises(BadInput, match=sentence):
            act()
    other, told = small("flux.1")
    other.vae = small("qwen-image")[0].vae
    other.vae.register_to_config(z_dim=7)
    with pytest.raises(BadInput, match="makes 7 latent channels where the transformer works in 4"):
        PipelineGenerator(other, told)
    tiled, told = small("sd3.5")
    tiled.vae.enable_tiling()
    with pytest.raises(BadInput, match="decodes in tiles"):
        PipelineGenerator(tiled, told)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"text": "a"', "line 2 is not JSON"),
        ('{"text": "a", "picture": "b.png"}', "line 2 may have the keys"),
        ('{"text": 3}', "line 2 has a value that is not a text"),
        ('{"image": "none.png"}', "line 2 names .*none.png, which does not exist"),
        ('{"text": "b", "id": "one"}', "two prompts with the id 'one'"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, sentence: str) -> None:
    listing = tmp_path / "prompts.jsonl"
    listing.write_text('{"text": "a", "id": "one"}\n' + line + "\n")
    with pytest.raises(BadInput, match=sentence):
        read_items(listing)


def test_guidance_that_cannot_be_replayed_is_refused(folder: Path) -> None:
    pipeline, told = small("ltx-video")
    with pytest.raises(BadInput, match="guides in a way that cannot be replayed"):
        PipelineGenerator(pipeline, told | {"guidance_rescale": 0.9}).encode(items("ltx-video", folder)[:1])


def test_a_saved_pipeline_is_loaded_by_its_folder_and_checked(folder: Path, tmp_path: Path, capsys: Any) -> None:
    """Texts, pictures and weights from files, through the command line; and a sentence where a file is missing."""
    reading_wan().save_pretrained(tmp_path / "wan")
    listing = folder / "prompts.jsonl"
    listing.write_text('{"text": "she speaks", "image": "a.png"}\n{"text": "she sings", "image": "b.png"}\n')
    ask = ["posttrain", "policies", "check", str(tmp_path / "wan"), "--prompts", str(listing), "--json", "--policy-set"]
    settings = ["height=32", "width=32", "num_frames=5", "guidance_scale=2"]
    assert main([*ask, *settings]) == 0
    assert json.loads(capsys.readouterr().out)["delivery"] == "its own pipeline delivers the same pictures"
    (tmp_path / "wan" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert main([*ask, *settings]) == 2
    said = capsys.readouterr().err
    assert "No pipeline could be loaded from" in said
    assert said.count("\n") == 1


def test_the_check_holds_for_a_pipeline_and_sees_other_pictures_than_are_delivered(folder: Path) -> None:
    generator = PipelineGenerator(*small("ltx-video"))
    found = check_generator(generator, items("ltx-video", folder))
    assert [finding.name for finding in found if finding.passed][-1] == "delivery"
    assert all(finding.passed for finding in found)
    generator.codec.scale = replace(generator.codec.scale, std=generator.codec.scale.std * 1.1)
    last = check_generator(generator, items("ltx-video", folder))[-1]
    assert not last.passed
    assert "rewards see other pictures than its own pipeline delivers" in last.message

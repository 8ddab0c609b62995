"""Claims about generators over pretrained models, on small configs of the real classes with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import Qwen3Config, Qwen3Model

from flowportrait.config import from_dict, override
from flowportrait.data.motion_dataset import MotionClip, WindowSampler
from flowportrait.errors import BadInput
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.conditioning import add_portraits, encode_portraits
from flowportrait.models.flow_matching import FlowMatchingLearner, PretrainConfig, SavedTraining
from flowportrait.models.pretrain import pretrain
from flowportrait.models.sampler import GenerationSession
from flowportrait.models.training_clips import save_clips
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.rl.task import SpeechItem, TalkingTask
from flowportrait.training.distributed import create_accelerator
from flowportrait.training.lora import merge_adapters
from tests.judges.test_judge_omni import thinker, tokenizer

SMALL = GeneratorConfig(horizon=3, audio_width=16, head_width=32, head_depth=1, steps=2, lora_rank=2, portrait_side=56)
OMNI = replace(SMALL, front_end="tower", use_vision=True)
KINDS = {"qwen3": replace(SMALL, front_end="mel"), "qwen2_5_omni": OMNI, "qwen3_omni_moe": OMNI}
CROP = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pretrained models on disk, as from a hub."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    torch.manual_seed(0)
    Qwen3Model(
        Qwen3Config(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8,
        )
    ).save_pretrained(made["qwen3"])  # fmt: skip
    for kind in ("qwen2_5_omni", "qwen3_omni_moe"):
        thinker(kind, tokenizer()).save_pretrained(made[kind])
    return made


def build(folders: dict[str, Path], kind: str, adapt: str = "lora") -> ARFlow:
    torch.manual_seed(1)
    model = ARFlow(replace(KINDS[kind], backbone=str(folders[kind]), adapt=adapt)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def told(model: ARFlow, frames: int = 20, crop: np.ndarray = CROP) -> dict[str, torch.Tensor]:
    mel = torch.randn(2, 4 * frames, 80, generator=torch.Generator().manual_seed(2))
    portrait = {"portrait": model.encode_portrait([crop, CROP])} if model.vision is not None else {}
    return {"mel": mel, **portrait}


@pytest.mark.parametrize("kind", KINDS)
def test_cached_and_teacher_forced_contexts_agree_and_hear_and_see(folders: dict[str, Path], kind: str) -> None:
    model = build(folders, kind)
    latents = torch.randn(2, 5, model.latent_dim, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        condition = model.condition(**told(model))
        whole, session = model.contexts(condition, latents), model.session(condition)
        for chunk in range(5):
            assert torch.allclose(session.context(), whole[:, chunk], atol=1e-4)
            session.append(latents[:, chunk])
        louder = told(model) | {"mel": told(model)["mel"] + 1}
        assert not torch.allclose(model.contexts(model.condition(**louder), latents), whole, atol=1e-3)
        if model.vision is not None:
            other = model.contexts(model.condition(**told(model, crop=255 - CROP)), latents)
            assert not torch.allclose(other[0], whole[0], atol=1e-3)
            assert torch.allclose(other[1], whole[1], atol=1e-4)


@pytest.mark.parametrize("adapt", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_changes_what_it_should_and_the_disk_keeps_that_alone(
    folders: dict[str, Path], tmp_path: Path, kind: str, adapt: str
) -> None:
    model = build(folders, kind, adapt).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    condition = model.condition(**told(model, 12))
    loss = model.velocity(torch.ones(2, 3, model.latent_dim), torch.tensor(0.5),
                          model.contexts(condition, torch.ones(2, 3, model.latent_dim))).square().mean()  # fmt: skip
    loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    inside = {name for name in changed if name.startswith("backbone.")}
    assert "motion_in.weight" in changed
    assert not any(name.startswith(("speech.", "vision.")) for name in changed)
    assert bool(inside) == (adapt != "frozen")
    assert all("lora_" in name for name in inside) or adapt == "full"
    model.eval().save_pretrained(tmp_path)
    with safe_open(str(tmp_path / "model.safetensors"), "pt") as file:
        names = set(file.keys())
    assert not any(name.startswith("vision.") for name in names)
    assert {name for name in names if name.startswith("backbone.")} >= inside
    assert adapt == "full" or all("lora_" in name for name in names if name.startswith("backbone."))
    again = ARFlow.from_pretrained(tmp_path)
    latents = torch.randn(2, 3, model.latent_dim)
    with torch.no_grad():
        ours, theirs = (m.contexts(m.condition(**told(m, 12)), latents) for m in (model, again))
    assert torch.allclose(ours, theirs, atol=0.05)


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_what_a_training_delivers_holds_what_it_trained(folders: dict[str, Path], tmp_path: Path, adapt: str) -> None:
    learner = FlowMatchingLearner(build(folders, "qwen3", adapt), PretrainConfig(), create_accelerator())
    averaged = learner.averaged()
    assert averaged is not None
    averaged.save_pretrained(tmp_path)
    again = dict(ARFlow.from_pretrained(tmp_path).backbone.named_parameters())
    trained = {name: value for name, value in learner.model.backbone.named_parameters() if value.requires_grad}
    assert trained
    assert all(torch.allclose(value, again[name], atol=1e-2) for name, value in trained.items())


def test_adapters_merged_into_the_backbone_are_written_with_it(folders: dict[str, Path], tmp_path: Path) -> None:
    model = build(folders, "qwen3")
    merge_adapters(model).save_pretrained(tmp_path)
    again = ARFlow.from_pretrained(tmp_path)
    assert again.config.adapt == "full"
    latents = torch.randn(2, 3, model.latent_dim)
    with torch.no_grad():
        ours, theirs = (m.contexts(m.condition(**told(m, 12)), latents) for m in (model, again))
    assert torch.allclose(ours, theirs, atol=0.05)


@pytest.mark.parametrize("kind", ["qwen2_5_omni", "qwen3_omni_moe"])
def test_the_audio_tower_can_be_streamed_with_120_ms_of_look_ahead(folders: dict[str, Path], kind: str) -> None:
    model = build(folders, kind)
    speech = np.random.default_rng(1).normal(size=640 * 61).astype(np.float32) * 0.05
    whole, pieces = GenerationSession(model, seed=3), GenerationSession(model, seed=3)
    together = torch.cat([*whole.push(speech), *whole.finish()])
    parts = [motion for piece in np.array_split(speech, 7) for motion in pieces.push(piece)]
    assert torch.allclose(together, torch.cat([*parts, *pieces.finish()]), atol=0.02)
    mel = torch.randn(1, 160, 80)
    changed = mel.clone()
    changed[:, 4 * 24 + 3 :] += 1.0  # past the end of frame 23 and its 30 ms
    ours, theirs = model.audio_features(mel), model.audio_features(changed)
    assert torch.allclose(ours[:, :24], theirs[:, :24], atol=1e-4)
    assert not torch.allclose(ours[:, 24], theirs[:, 24], atol=1e-3)


def face(seed: int) -> Portrait:
    """Somebody, as far as a vision tower of random weights can tell."""
    rng = np.random.default_rng(seed)
    crop = cv2.resize(rng.integers(0, 255, (8, 8, 3), np.uint8), (128, 128))
    points = rng.uniform(40, 90, (478, 3)).astype(np.float32)
    return Portrait(crop, crop, points, np.zeros(52, np.float32), np.eye(2, 3))


def test_a_generator_that_sees_speaks_for_whom_it_sees_and_goes_on_with_it(folders: dict[str, Path]) -> None:
    speech = np.random.default_rng(1).normal(size=640 * 21).astype(np.float32) * 0.05
    model, deaf = build(folders, "qwen2_5_omni"), build(folders, "qwen3")

    def spoken(model: ARFlow, portrait: Portrait | None) -> torch.Tensor:
        return torch.cat(list(AnimatePipeline(model).motion(speech, portrait=portrait, style="plain")))

    ours, theirs, nobodys = (spoken(model, portrait) for portrait in (face(0), face(1), None))
    assert torch.equal(ours, spoken(model, face(0)))
    assert not torch.allclose(ours, theirs, atol=1e-3)
    assert not torch.allclose(ours, nobodys, atol=1e-3)
    assert torch.equal(spoken(deaf, face(0)), spoken(deaf, None))
    session = GenerationSession(model, portrait=encode_portraits(model, [face(0)]))
    before = list(session.push(speech[: 640 * 13]))
    resumed = GenerationSession(model, state=session.state())
    after = [*resumed.push(speech[640 * 13 :]), *resumed.finish()]
    assert torch.allclose(torch.cat(before + after), ours, atol=0.02)


def test_a_clip_comes_with_its_speaker_at_another_moment(folders: dict[str, Path], tmp_path: Path) -> None:
    model = build(folders, "qwen2_5_omni")
    nothing = torch.zeros(30, 30), torch.zeros(30, 8), torch.zeros(19)
    clips = [MotionClip(name, "a", *nothing) for name in ("a1", "a2")]
    with pytest.raises(BadInput, match="no picture of a"):
        add_portraits(model, tmp_path, clips)
    (tmp_path / "pictures").mkdir()
    for seed, clip in enumerate(clips):
        cv2.imwrite(str(tmp_path / "pictures" / f"{clip.name}.jpg"), face(seed).crop)
    first, second = add_portraits(model, tmp_path, clips)
    assert first.portrait is not None
    own = model.encode_portrait([cv2.imread(str(tmp_path / "pictures" / "a2.jpg"))[..., ::-1]])[0]
    assert torch.allclose(first.portrait[0].float(), own, atol=1e-2)
    assert not torch.allclose(first.portrait[1].float(), own, atol=1e-2)
    assert second.portrait is not None
    assert not torch.allclose(second.portrait[0].float(), own, atol=1e-2)
    *_, shown = WindowSampler([first], 8, torch.Generator().manual_seed(0)).draw(20)
    sides = [any(torch.equal(row, side.float()) for row in shown) for side in first.portrait]
    assert sides == [True, True]


@pytest.mark.parametrize("long_window", [0, 24])
def test_portraits_are_learned_from_and_reach_the_decoder(
    folders: dict[str, Path], tmp_path: Path, long_window: int
) -> None:
    generator = replace(KINDS["qwen2_5_omni"], backbone=str(folders["qwen2_5_omni"]))
    draws = torch.Generator().manual_seed(0)

    def clip(number: int, portrait: float) -> MotionClip:
        motion = 0.2 * torch.randn(40, 30, generator=draws).cumsum(0)
        heard = torch.randn(40, 32, generator=draws).half()
        return MotionClip(f"c{number}", "s", motion, heard, torch.zeros(19), torch.full((2, 4, 32), portrait).half())

    def trained(portrait: float) -> dict[str, torch.Tensor]:
        draws.manual_seed(0)
        output = tmp_path / str(portrait)
        output.mkdir()
        save_clips(output / "heard.pt", [clip(number, portrait) for number in range(3)])
        config = PretrainConfig(
            generator, steps=4, batch=4, windows=(12,), lip_steps=2, warmup=0, drop_style=0.0, long_window=long_window
        )
        with pytest.warns(UserWarning, match="overfitting"):
            pretrain(config, output / "no corpus", output, resume=True)
        return SavedTraining(output).model_weights()

    one, other = trained(0.5), trained(-0.5)
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert "motion_in.weight" in differing
    assert any("lora_" in name for name in differing)


def test_a_policy_that_sees_is_post_trained_on_the_face_that_it_speaks_for(folders: dict[str, Path]) -> None:
    policy = build(folders, "qwen2_5_omni")
    looks = encode_portraits(policy, [face(0), face(1)])
    assert looks is not None
    items = [SpeechItem(torch.zeros(80, 80), number % 2) for number in range(3)]
    task = TalkingTask(items, 12, None, policy.config.chunk, looks)
    prompts = task.draw(3, seed=0, iteration=0)
    shown = task.condition(policy, prompts).portrait
    assert sorted(prompts.portraits) == [0, 0, 1]
    assert torch.equal(shown, looks[prompts.portraits])


def test_what_cannot_be_had_is_said_in_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    for changes, reason in (
        ({"backbone": str(tmp_path)}, "cannot be loaded"),
        ({"backbone": str(folders["qwen3"]), "front_end": "tower"}, "no audio tower"),
        ({"backbone": str(folders["qwen3"]), "use_vision": True}, "no vision tower"),
        ({"front_end": "tower"}, "needs a backbone"),
    ):
        with pytest.raises(BadInput, match=reason):
            ARFlow(replace(SMALL, **changes))
    with pytest.raises(BadInput, match="does not see"):
        build(folders, "qwen3").encode_portrait([CROP])


def test_a_checkpoint_and_settings_of_version_0_1_still_say_that_a_generator_has_vision(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = build(folders, "qwen2_5_omni")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["sees"] = config.pop("use_vision")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ARFlow.from_pretrained(tmp_path).vision is not None
    assert override(PretrainConfig(), ["generator.sees=true"]).generator.use_vision
    assert from_dict(GeneratorConfig, {"sees": True}).use_vision

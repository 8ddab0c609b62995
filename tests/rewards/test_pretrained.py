"""Rewards by published networks, on small configurations of the real classes that the test saves as they are published.

Scores are compared with the same network computed by transformers and peft themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from flowportrait.errors import BadInput
from flowportrait.media.portrait import Portrait
from flowportrait.rewards import qwen2_vl
from flowportrait.rewards.batch import RecordedFrames, RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import PRETRAINED_REWARDS, RewardOptions, RewardWeights, build_reward
from flowportrait.rl.config import PostTrainConfig

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEXTS = ["a woman talks", "a man talks", "a woman talks"]
FRAMES, SIDE = 25, 56


def byte_tokenizer(*special: str) -> Any:
    """Every byte a token, and the special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>")
    made.add_tokens([transformers.AddedToken(token, special=True) for token in special], True)
    return made


def batch(texts: list[str] | None = TEXTS, portraits: list[Portrait] | None = None) -> RewardBatch:
    """Three clips of smooth noise."""
    draw = np.random.default_rng(0)
    small = draw.integers(0, 255, (3 * FRAMES, 7, 7, 3), np.uint8)
    clips = np.stack([cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) for picture in small])
    pictures = RecordedFrames(clips.reshape(3, FRAMES, SIDE, SIDE, 3), np.zeros((3, FRAMES, 478, 2), np.float32))
    return RewardBatch(
        torch.zeros(3, FRAMES, 30), torch.zeros(3, 4 * FRAMES, 80), pictures, transcript=texts, portraits=portraits
    )


def portrait(pixels: np.ndarray) -> Portrait:
    return Portrait(
        image=pixels, crop=pixels, landmarks=np.zeros((478, 3), np.float32), blendshapes=np.zeros(52, np.float32),
        to_crop=np.eye(2, 3, dtype=np.float32),
    )  # fmt: skip


# --- CLIP and PickScore ---


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    words = byte_tokenizer()
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", words.eos_token_id)]
    )  # the text's embedding is read at its end
    torch.manual_seed(0)
    part = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=part | {"vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": words.eos_token_id,
                            "bos_token_id": None, "pad_token_id": words.pad_token_id},
        vision_config=part | {"image_size": 28, "patch_size": 14}, projection_dim=16, logit_scale_init_value=1.5,
        initializer_factor=5.0,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def clip_cosines(folder: Path, given: RewardBatch, texts: list[str]) -> torch.Tensor:
    """Return the cosines [B, F] as CLIPModel's own forward computes them, at the frames that the rewards see."""
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28)
    cosines = []
    for row, text in enumerate(texts):
        frames = given.frames((0, 8, 16, 24))[row]
        images = [(frame.permute(1, 2, 0) * 255).round().byte().numpy() for frame in frames]
        pixels = torch.as_tensor(np.stack(processor(images)["pixel_values"]))
        tokens = words([text], return_tensors="pt", truncation=True, max_length=16)
        with torch.no_grad():
            found = network(pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        cosines.append(found.logits_per_text[0] / network.logit_scale.exp())
    return torch.stack(cosines).detach()


def test_clip_and_pickscore_are_what_the_model_of_transformers_computes(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = batch()
    expected = clip_cosines(clip_folder, given, TEXTS).mean(1)
    options = RewardOptions(pretrained={"clip": str(clip_folder)})
    clip = build_reward("clip_text", options)
    assert clip.needs == {"frames", "transcript"}
    assert torch.allclose(score_batch(clip, given).value, expected, atol=5e-4)
    assert expected.std() > 5e-3  # ten times the tolerance
    monkeypatch.setenv("FLOWPORTRAIT_PICKSCORE", str(clip_folder))
    score = score_batch(build_reward("pickscore"), given).value
    assert torch.allclose(score, expected * np.exp(1.5), atol=2e-3)


def test_one_text_for_all_samples_needs_none_of_their_own(clip_folder: Path) -> None:
    options = RewardOptions(pretrained={"clip": str(clip_folder)}, text=TEXTS[0])
    reward = build_reward("clip_text", options)
    assert reward.needs == {"frames"}
    found = score_batch(reward, batch(None)).value
    own = score_batch(build_reward("clip_text", RewardOptions(pretrained={"clip": str(clip_folder)})), batch()).value
    assert torch.allclose(found[[0, 2]], own[[0, 2]])
    assert abs(float(found[1] - own[1])) > 1e-3
    with pytest.raises(BadInput, match=r"needs transcript.* set rewards\.options\.text"):
        score_batch(build_reward("clip_text", RewardOptions(pretrained={"clip": str(clip_folder)})), batch(None))


def test_a_clip_of_the_portrait_itself_has_the_highest_cosine(clip_folder: Path) -> None:
    still = (batch().frames((0,))[0, 0].permute(1, 2, 0) * 255).round().byte().numpy()
    other = np.ascontiguousarray(255 - still)
    clips = np.stack([np.stack([picture] * FRAMES) for picture in (still, other, still)])
    given = RewardBatch(
        torch.zeros(3, FRAMES, 30), torch.zeros(3, 4 * FRAMES, 80),
        RecordedFrames(clips, np.zeros((3, FRAMES, 478, 2), np.float32)), portraits=[portrait(still)] * 3,
    )  # fmt: skip
    found = score_batch(build_reward("clip_portrait", RewardOptions(pretrained={"clip": str(clip_folder)})), given)
    assert torch.allclose(found.value[[0, 2]], torch.ones(2), atol=1e-3)
    assert found.value[1] < 0.99


# --- HPSv3 and VideoAlign ---


def tiny_qwen(base: Path, reward_tokens: tuple[str, ...]) -> tuple[Any, Any]:
    """Save configuration and tokenizer of a small Qwen2-VL into ``base``; return the model with rows for the tokens."""
    words = byte_tokenizer(*SPECIAL)
    ids = {token: words.convert_tokens_to_ids(token) for token in SPECIAL}
    torch.manual_seed(0)
    config = transformers.Qwen2VLConfig(
        text_config={"vocab_size": len(words) + 7, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "initializer_range": 0.2},
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    network = transformers.Qwen2VLForConditionalGeneration(config).eval()
    config.save_pretrained(base)
    words.save_pretrained(base)
    network.resize_token_embeddings(len(words) + len(reward_tokens))
    return network, words


def earlier_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights under the names of transformers 4, which the published files have."""
    return {
        name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value.contiguous().clone()
        for name, value in tensors.items()
    }


def hidden_states(network: Any, words: Any, text: str, pixels: torch.Tensor, grid: list[int], kind: str) -> Any:
    """Return token ids [L] and the last hidden states [L, D] by the whole model, with the positions of plain text."""
    count = int(np.prod(grid)) // 4
    chat = [
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>",
        f"<|{kind}_pad|>" * count, f"<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n",
    ]  # fmt: skip
    ids = words("".join(chat), return_tensors="pt", add_special_tokens=False)["input_ids"]
    name = "pixel_values" if kind == "image" else "pixel_values_videos"
    positions = torch.arange(ids.shape[1]).view(1, 1, -1).expand(3, 1, -1)
    with torch.no_grad():
        found = network.model(
            input_ids=ids, position_ids=positions, **{name: pixels, f"{kind}_grid_thw": torch.tensor([grid])}
        )
    return ids[0], found.last_hidden_state[0]


INSTRUCTION = "Rate this picture.\nTextual prompt - {text_prompt}\n"


@pytest.fixture(scope="module")
def hpsv3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any, nn.Module]:
    folder = tmp_path_factory.mktemp("hpsv3")
    network, words = tiny_qwen(folder / "Qwen2-VL-7B-Instruct", qwen2_vl.HPSV3_TOKENS)
    head = nn.Sequential(
        nn.Linear(32, 24), nn.ReLU(), nn.Dropout(0.05), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)
    ).eval()
    tensors = network.state_dict() | {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    save_file(earlier_names(tensors), folder / "HPSv3.safetensors")
    (folder / "data_collator_qwen.py").write_text(
        f"raise SystemExit('this file is not run')\nINSTRUCTION = '''{INSTRUCTION}'''\n"
        "prompt_with_special_token = '''\nThe rating: <|Reward|>\n\nEND\n'''\n"
    )
    words.add_tokens([transformers.AddedToken(qwen2_vl.HPSV3_TOKENS[0], special=True)], True)
    return folder, network, words, head


def test_hpsv3_is_the_mean_at_the_reward_token_over_frames(
    hpsv3: tuple[Path, Any, Any, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, network, words, head = hpsv3
    monkeypatch.setattr(qwen2_vl, "HPSV3_PIXELS", 56 * 56)
    given = batch()
    reward = build_reward("hpsv3", RewardOptions(pretrained={"hpsv3": str(folder)}))
    found = score_batch(reward, given).value
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 56 * 56})
    expected = []
    for row, text in enumerate(TEXTS):
        scores = []
        for frame in given.frames((0, 8, 16, 24))[row]:
            pixels = processor((frame.permute(1, 2, 0) * 255).round().byte().numpy(), return_tensors="pt")
            question = INSTRUCTION.format(text_prompt=text) + "\nThe rating: <|Reward|>\n\nEND\n"
            ids, hidden = hidden_states(network, words, question, pixels["pixel_values"], [1, 4, 4], "image")
            scores.append(head(hidden[ids == words.convert_tokens_to_ids("<|Reward|>")])[0, 0].item())
        expected.append(np.mean(scores))
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert np.std(expected) > 5e-3


def norm(**values: float) -> dict[str, float]:
    return {f"{part}_{what}": value for what, value in values.items() for part in ("VQ", "MQ", "TA")}


TEMPLATE = "\n".join(f"Rate {token}" for token in qwen2_vl.VIDEOALIGN_TOKENS) + "\nTextual prompt - {text_prompt}\n"
SETTINGS = {
    "data_config": {"fps": 8.0, "num_frames": None, "max_frame_pixels": 56 * 56, "sample_type": "uniform",
                    "prompt_template_type": "detailed_special"},
    "peft_lora_config": {"lora_r": 4, "lora_alpha": 8, "use_rslora": False},
    "inference_config": norm(mean=0.5, std=2.0) | {"MQ_mean": -1.0, "TA_std": 0.5},
}  # fmt: skip


class WithHead(nn.Module):
    """A model with its head under the names of the published one."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.model, self.lm_head = network.model, network.lm_head
        self.rm_head = nn.Linear(32, 3, bias=False)


@pytest.fixture(scope="module")
def videoalign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Any]:
    """The folder with adapters, the folder with the whole model, the model itself, and its tokenizer."""
    folders = [tmp_path_factory.mktemp(kind) for kind in ("adapters", "whole")]
    for folder in folders:
        base, words = tiny_qwen(folder / "Qwen2-VL-2B-Instruct", qwen2_vl.VIDEOALIGN_TOKENS)
        save_file(earlier_names(base.state_dict()), folder / "Qwen2-VL-2B-Instruct" / "model.safetensors")
        (folder / "prompt_template.py").write_text(f"DETAILED_PROMPT_WITH_SPECIAL_TOKEN = '''{TEMPLATE}'''\n")
        (folder / "model_config.json").write_text(json.dumps(SETTINGS))
        (folder / "checkpoint-20").mkdir()
        (folder / "checkpoint-3").mkdir()  # an older one without files
    torch.manual_seed(1)
    adapted = peft.get_peft_model(
        WithHead(base),  # type: ignore[arg-type]
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=r".*language_model.*(q_proj|v_proj|down_proj)"),
    ).eval()
    for name, value in adapted.named_parameters():
        if "lora_" in name or "visual" in name or "rm_head" in name:
            value.data += 0.2 * torch.randn_like(value)
    tensors = earlier_names(adapted.state_dict())
    torch.save(tensors, folders[1] / "checkpoint-20" / "model.pth")
    lora = {name.replace(".default", ""): value for name, value in tensors.items() if "lora_" in name}
    rest = {name: value for name, value in tensors.items() if "visual" in name or "rm_head" in name}
    save_file(lora, folders[0] / "checkpoint-20" / "adapter_model.safetensors")
    torch.save(rest, folders[0] / "checkpoint-20" / "non_lora_state_dict.pth")
    words.add_tokens([transformers.AddedToken(token, special=True) for token in qwen2_vl.VIDEOALIGN_TOKENS], True)
    return folders[0], folders[1], adapted.base_model.model, words


@pytest.mark.parametrize("layout", [0, 1], ids=["adapters", "whole"])
def test_videoalign_is_the_standardised_head_at_its_three_tokens(
    videoalign: tuple[Path, Path, Any, Any], layout: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, words = videoalign[2:]
    monkeypatch.setattr(qwen2_vl, "VIDEOALIGN_LEAST_PIXELS", 28 * 28)
    given, options = batch(), RewardOptions(pretrained={"videoalign": str(videoalign[layout])})
    found = {name: score_batch(build_reward(name, options), given).value for name in qwen2_vl.VIDEOALIGN_REWARDS}
    seen = given.frames(tuple(round(24 * step / 7) for step in range(8)))  # 25 frames at 8 of 25 a second
    patches, grid = qwen2_vl.patchify(seen, 28 * 28, 56 * 56)
    assert grid == (4, 4, 4)
    for row, text in enumerate(TEXTS):
        question = TEMPLATE.format(text_prompt=text)
        ids, hidden = hidden_states(network, words, question, patches[row], [4, 4, 4], "video")
        raw = [network.rm_head(hidden[ids == words.convert_tokens_to_ids(token)])[0, part].item()
               for part, token in enumerate(qwen2_vl.VIDEOALIGN_TOKENS)]  # fmt: skip
        parts = [(raw[0] - 0.5) / 2, (raw[1] + 1) / 2, (raw[2] - 0.5) / 0.5]
        scores = [float(found[f"videoalign_{part}"][row]) for part in ("vq", "mq", "ta")]
        assert scores == pytest.approx(parts, abs=1e-3)
        assert float(found["videoalign"][row]) == pytest.approx(sum(parts), abs=1e-3)


def test_the_adapters_change_the_scores(videoalign: tuple[Path, Path, Any, Any], tmp_path: Path) -> None:
    halves = {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(1, 2)}
    weights = halves | {"model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2)}
    with pytest.raises(BadInput, match="are incomplete"):
        qwen2_vl.merge_lora(weights, 1.0)
    weights["model.layers.0.mlp.up_proj.lora_B.default.weight"] = torch.tensor([[1.0], [2.0]])
    merged = qwen2_vl.merge_lora(weights, 0.5)
    assert merged.keys() == {"language_model.layers.0.mlp.up_proj.weight"}
    assert torch.equal(merged["language_model.layers.0.mlp.up_proj.weight"], torch.tensor([[0.5, 0.5], [1.0, 1.0]]))


# --- Pictures as patches ---


def test_patches_of_a_video_are_blocks_of_pixels_in_the_order_of_qwen2_vl() -> None:
    frames = torch.rand(2, 4, 3, 56, 84)
    patches, grid = qwen2_vl.patchify(frames, 28 * 28, 10**6)
    assert grid == (2, 4, 6)
    normal = ((frames * 255).round() / 255 - qwen2_vl._MEAN) / qwen2_vl._STD
    # The second patch of the second block of 2 × 2 in the first row: rows 0 to 13, columns 42 to 55.
    expected = normal[1, 2:4, :, 0:14, 42:56].permute(1, 0, 2, 3).flatten()
    assert torch.allclose(patches[1, 24 + 5], expected, atol=1e-5)
    odd, grid = qwen2_vl.patchify(frames[:, :3], 28 * 28, 10**6)
    assert grid == (2, 4, 6)
    assert torch.allclose(odd[:, 24:], qwen2_vl.patchify(frames[:, [2, 2]], 28 * 28, 10**6)[0])


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [((128, 128), (200704, 200704), (448, 448)), ((128, 128), (100352, 200704), (336, 336)),
     ((720, 1280), (100352, 200704), (336, 588)), ((300, 300), (100, 10**6), (308, 308))],
)  # fmt: skip
def test_pictures_are_resized_to_multiples_within_the_limits(
    size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert qwen2_vl.resized_side(*size, *limits) == expected


@pytest.mark.parametrize(
    ("frames", "rate", "count", "expected"),
    [(72, 2.0, None, 6), (25, 2.0, None, 4), (3, 2.0, None, 2), (100, 2.0, None, 8), (100, 2.0, 12, 12)],
)
def test_videoalign_sees_an_even_number_of_frames(frames: int, rate: float, count: int | None, expected: int) -> None:
    found = qwen2_vl.videoalign_indices(frames, 25, rate, count)
    assert len(found) == expected
    assert (found[0], found[-1]) == (0, frames - 1)


# --- What is missing ---


@pytest.mark.parametrize("name", PRETRAINED_REWARDS)
def test_a_reward_without_its_network_says_what_to_put_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family in ("CLIP", "PICKSCORE", "HPSV3", "VIDEOALIGN"):
        monkeypatch.delenv(f"FLOWPORTRAIT_{family}", raising=False)
    family = name.partition("_")[0]
    with pytest.raises(BadInput, match=rf"pretrained\.{family}=FOLDER or in FLOWPORTRAIT_{family.upper()}"):
        build_reward(name)
    with pytest.raises(BadInput, match=r"has no .*, which the reward needs"):
        build_reward(name, RewardOptions(pretrained={family: str(tmp_path)}))


def test_damaged_and_foreign_files_are_named(
    hpsv3: tuple[Path, Any, Any, nn.Module], clip_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="cannot be read as weights"):
        qwen2_vl.read_tensors(tmp_path / "weights.safetensors")
    (tmp_path / "prompt.py").write_text("A = 1\n")
    with pytest.raises(BadInput, match="has no text A"):
        qwen2_vl.read_text_constant(tmp_path / "prompt.py", "A")
    tensors = qwen2_vl.read_tensors(hpsv3[0] / "HPSv3.safetensors")
    base = hpsv3[0] / "Qwen2-VL-7B-Instruct"
    with pytest.raises(BadInput, match="they need rm_head"):
        qwen2_vl.Qwen2VlScorer({k: v for k, v in tensors.items() if "rm_head" not in k}, base, qwen2_vl.HPSV3_TOKENS)
    with pytest.raises(BadInput, match=r"missing keys, such as visual\.patch_embed"):
        qwen2_vl.Qwen2VlScorer({k: v for k, v in tensors.items() if "patch" not in k}, base, qwen2_vl.HPSV3_TOKENS)
    with pytest.raises(BadInput, match="holds a clip"):
        qwen2_vl.Qwen2VlScorer(tensors, clip_folder, qwen2_vl.HPSV3_TOKENS)


def test_a_recipe_takes_them_like_other_rewards(clip_folder: Path) -> None:
    settings = {"rewards.other.clip_portrait": 0.2, "rewards.options.pretrained.clip": str(clip_folder)}
    config = PostTrainConfig.from_recipe("flow-grpo", **settings)
    assert config.rewards.by_name()["clip_portrait"] == 0.2
    assert build_reward("clip_portrait", config.rewards.options).needs == {"frames", "portrait"}
    assert RewardWeights.only({"hpsv3": 1.0}).by_name() == {"hpsv3": 1.0}

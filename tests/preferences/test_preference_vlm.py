"""Claims about the multimodal reward model: small configs of the real families see, hear and learn from pairs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.media.write_video import write_video
from flowportrait.preferences.clips import FramesAudioClip
from flowportrait.preferences.dataset import DIMENSIONS, Label, PreferenceDataset, PreferencePair
from flowportrait.preferences.preference_rewards import SCORE_CAP
from flowportrait.preferences.vlm_reward import (
    VL_FAMILIES,
    VlmReward,
    VlmSettings,
    VlmTrainingConfig,
    build_vlm_inputs,
    train_vlm_reward,
)
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import RewardOptions, build_reward
from tests.judges.test_judge_omni import PIXELS, thinker, tokenizer

SIDE = 56
SYNC = DIMENSIONS.index("sync")
FAMILIES = [*VL_FAMILIES, "qwen2_5_omni", "qwen3_omni_moe"]


def model_of(family: str, words: Any) -> Any:
    """A model of the family's own class, two layers deep, with random weights."""
    import transformers

    if family not in VL_FAMILIES:
        return thinker(family, words)
    text = {"vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}  # fmt: skip
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "initializer_range": 0.2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32}
    if family == "qwen2_5_vl":
        vision["fullatt_block_indexes"] = [1]
    if family == "qwen3_vl":
        text["head_dim"] = 8
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    ids = {name: words.convert_tokens_to_ids(token) for name, token in {
        "image_token_id": "<|IMAGE|>", "video_token_id": "<|VIDEO|>",
        "vision_start_token_id": "<|vision_bos|>", "vision_end_token_id": "<|vision_eos|>"}.items()}  # fmt: skip
    name = VL_FAMILIES[family]
    config = getattr(transformers, name.replace("ForConditionalGeneration", "Config"))
    torch.manual_seed(0)
    return getattr(transformers, name)(config(text_config=text, vision_config=vision, **ids))


def reward_of(family: str, rank: int = 4) -> VlmReward:
    from transformers import WhisperFeatureExtractor

    words = tokenizer()
    model = model_of(family, words)
    features = WhisperFeatureExtractor(feature_size=16)
    reader = build_vlm_inputs(family, model.config, words, features, PIXELS, SIDE)
    return VlmReward(model, reader, VlmSettings(model=family, rank=rank, alpha=8, frames=4, side=SIDE))


def clip(seed: int = 0) -> FramesAudioClip:
    rng = np.random.default_rng(seed)
    audio = (0.2 * np.sin(np.arange(16_000) * 0.05 * (1 + seed)) * rng.uniform(0.2, 1, 16_000)).astype(np.float32)
    return FramesAudioClip(rng.integers(0, 255, (4, 64, 64, 3), dtype=np.uint8), 4.0, audio)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_sync_score_hears_and_all_three_see(family: str) -> None:
    reward = reward_of(family).eval()
    with torch.no_grad():
        plain = reward([clip()])
        heard = reward([clip()._replace(audio=clip(1).audio)])
        seen = reward([clip()._replace(frames=255 - clip().frames)])
    told = (plain - heard).abs()[0]
    assert told[SYNC] > 1e-4
    assert told[[n for n in range(3) if n != SYNC]].max() < 1e-6
    assert ((plain - seen).abs() > 1e-4).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_what_one_by_one_says(family: str) -> None:
    reward = reward_of(family).eval()
    longer = clip(1)._replace(frames=np.concatenate([clip(1).frames] * 2), audio=np.tile(clip(1).audio, 2))
    with torch.no_grad():
        together = reward([clip(), longer])
        alone = torch.cat([reward([clip()]), reward([longer])])
    assert torch.allclose(together, alone, atol=2e-4)


def test_it_learns_a_preference_and_only_what_it_learned_is_saved(tmp_path: Path) -> None:
    sound = clip().audio
    for name, level in (("bright.mp4", 220), ("dark.mp4", 30)):
        write_video(tmp_path / name, iter(np.full((6, 64, 64, 3), level, np.uint8)), sound[: 6 * 640])
    labels = {"motion": Label.FIRST, "sync": Label.TIE}
    pair = PreferencePair("p", "bright.mp4", "dark.mp4", labels, "study")
    pairs = PreferenceDataset((pair, pair.swapped(), replace(pair, first="gone.mp4")), tmp_path)
    reward = reward_of("qwen2_vl")
    frozen = {name: value.clone() for name, value in reward.named_parameters() if not value.requires_grad}
    plan = VlmTrainingConfig(settings=reward.settings, epochs=12, batch=2, learning_rate=3e-2)
    losses: list[float] = []
    unread = train_vlm_reward(plan, reward, pairs, lambda step, loss, left: losses.append(loss))
    assert list(unread) == ["gone.mp4"]
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(value, frozen[name]) for name, value in reward.named_parameters() if name in frozen)
    reward.save(tmp_path / "trained")
    again = reward_of("qwen2_vl").eval()
    again.restore(tmp_path / "trained")
    with torch.no_grad():
        assert torch.allclose(again([clip()]), reward([clip()]), atol=1e-5)
    with pytest.raises(BadInput, match="does not fit"):
        reward_of("qwen2_vl", rank=2).restore(tmp_path / "trained")


def test_a_trained_llm_is_a_reward_by_the_folder_it_was_written_to(tmp_path: Path) -> None:
    words = tokenizer()
    model_of("qwen2_vl", words).save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    settings = VlmSettings(model=str(tmp_path / "base"), rank=4, alpha=8, frames=4, side=SIDE, device="cpu")
    trained = VlmReward.from_name(settings).eval()
    trained.standardise(torch.randn(9, 3))
    trained.save(tmp_path / "reward")
    own = clip()
    pictures = torch.from_numpy(own.frames).permute(0, 3, 1, 2)[None].float() / 255
    batch = RewardBatch(
        torch.zeros(1, 25, 30), torch.zeros(1, 100, 80), lambda _, places: pictures[:, : len(places)],
        audio=torch.from_numpy(own.audio)[None],
    )  # fmt: skip
    reward = build_reward("preference_motion", RewardOptions(preference=tmp_path / "reward"))
    with torch.no_grad():
        expected = trained([own])[:, DIMENSIONS.index("motion")].clamp_max(SCORE_CAP)
    assert torch.allclose(reward(batch).value, expected, atol=1e-4)


def test_another_model_or_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be loaded as a reward model"):
        VlmReward.from_name(VlmSettings(model=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match="is a bert"):
        VlmReward.from_name(VlmSettings(model=str(tmp_path)))

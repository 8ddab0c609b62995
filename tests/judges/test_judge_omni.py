"""Claims about the judge in this process: small configs of the real Omni thinkers hear the sound and see the frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from flowportrait.errors import BadInput
from flowportrait.judges.clips import clip_input
from flowportrait.judges.local_model import (
    ANSWER_OPENING,
    NO_REASONS_TEXT,
    OmniBackend,
    OmniSettings,
    build_omni_inputs,
)
from flowportrait.judges.panel import CLIP_SUBJECT, Panel, PanelSettings
from flowportrait.judges.questions import Question
from tests.judges.test_judge_client import clip

SPECIAL = {
    "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
}  # fmt: skip
PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
FAMILIES = ["qwen2_5_omni", "qwen3_omni_moe"]


def tokenizer() -> Any:
    """Every byte a token, and the models' special ones."""
    from transformers import PreTrainedTokenizerFast

    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({byte: index for index, byte in enumerate(bytes_)}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", extra_special_tokens=SPECIAL)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return made


def thinker(family: str, words: Any) -> Any:
    """A thinker of the family's own class, one or two layers deep, with random weights."""
    import transformers

    vocabulary = len(words)
    ids = {name: words.convert_tokens_to_ids(text) for name, text in SPECIAL.items()}
    text = {"vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}  # fmt: skip
    audio = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
             "d_model": 32, "output_dim": 32, "n_window": 50, "initializer_range": 0.2}  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
              "initializer_range": 0.2}  # fmt: skip
    torch.manual_seed(0)
    if family == "qwen2_5_omni":
        config = transformers.Qwen2_5OmniThinkerConfig(
            text_config=text, audio_config=audio, vision_config=vision | {"fullatt_block_indexes": [1]},
            audio_token_index=ids["audio_token"], image_token_index=ids["image_token"],
            video_token_index=ids["video_token"], audio_start_token_id=ids["audio_bos_token"],
            audio_end_token_id=ids["audio_eos_token"], vision_start_token_id=ids["vision_bos_token"],
            vision_end_token_id=ids["vision_eos_token"], pad_token_id=words.pad_token_id,
        )  # fmt: skip
        return transformers.Qwen2_5OmniThinkerForConditionalGeneration(config)
    config = transformers.Qwen3OmniMoeThinkerConfig(
        text_config=text | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
        audio_config=audio | {"downsample_hidden_size": 8, "n_window_infer": 200},
        vision_config=vision | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        audio_token_id=ids["audio_token"], image_token_id=ids["image_token"], video_token_id=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"], audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"], vision_end_token_id=ids["vision_eos_token"],
    )  # fmt: skip
    return transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config)


def omni(family: str, **settings: Any) -> OmniBackend:
    from transformers import WhisperFeatureExtractor

    words = tokenizer()
    model = thinker(family, words)
    features = WhisperFeatureExtractor(feature_size=16)
    chosen = OmniSettings(model=family, side=56, max_tokens=16, **settings)
    return OmniBackend(model, build_omni_inputs(family, model.config, words, features, PIXELS, 56), chosen)


def asked(backend: OmniBackend, aspect: Any = "lip_sync", **changes: Any) -> Question[Any]:
    from dataclasses import replace

    shown = replace(clip(), **changes)
    text = CLIP_SUBJECT.question(shown, aspect, CLIP_SUBJECT.rubric(aspect), CLIP_SUBJECT.instruction(aspect))
    answer = CLIP_SUBJECT.answer(shown, aspect)
    return Question(CLIP_SUBJECT.system, text, aspect, shown.digest, 0, answer, lambda: clip_input(shown, aspect))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_sound_and_other_pictures_change_the_grades(family: str) -> None:
    backend = omni(family)
    plain = backend.grade_logits([asked(backend)])
    again = backend.grade_logits([asked(backend)])
    heard = backend.grade_logits([asked(backend, audio=clip(1).audio)])
    frames = clip().frames.copy()
    frames[-4:] = 255 - frames[-4:]
    seen = backend.grade_logits([asked(backend, frames=frames)])
    assert torch.equal(plain, again)
    assert (plain - heard).abs().max() > 1e-3
    assert (plain - seen).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_what_one_by_one_says(family: str) -> None:
    backend = omni(family)
    questions = [asked(backend), asked(backend, "motion"), asked(backend, audio=clip(1).audio)]
    together = backend.grade_logits(questions)
    alone = torch.cat([backend.grade_logits([question]) for question in questions])
    assert torch.allclose(together, alone, atol=2e-4)


@pytest.mark.parametrize("ask_for", ["scores", "reasons"])
def test_a_model_that_knows_nothing_gives_no_score(ask_for: Any) -> None:
    backend = omni("qwen2_5_omni", ask_for=ask_for)
    [verdict] = Panel(backend, PanelSettings(samples=1)).judge([clip()])
    assert verdict.overall is None
    assert {finding.failure.kind for finding in verdict.aspects.values() if finding.failure} == {"malformed"}


def test_a_score_is_the_expectation_over_the_grades() -> None:
    backend = omni("qwen2_5_omni", ask_for="scores")
    weights = torch.tensor([0.05, 0.05, 0.2, 0.4, 0.3])
    ids = [backend.make_inputs.tokenizer(str(grade))["input_ids"][-1] for grade in range(1, 6)]
    head = backend.model.lm_head
    # Logits that do not depend on the state: p is exactly the grades' share.
    head.bias = torch.nn.Parameter(torch.full((head.out_features,), -30.0), requires_grad=False)
    head.weight.zero_()
    head.bias[ids] = weights.log()
    [verdict] = Panel(backend, PanelSettings(samples=1)).judge([clip()])
    expected = float((weights * torch.arange(1, 6)).sum())
    for finding in verdict.aspects.values():
        assert finding.score == pytest.approx(expected, abs=1e-4)
        assert finding.rationale == NO_REASONS_TEXT
    assert ANSWER_OPENING.endswith(": ")


def test_what_was_saved_is_loaded_by_name(tmp_path: Path) -> None:
    backend = omni("qwen2_5_omni")
    backend.model.save_pretrained(tmp_path)
    backend.make_inputs.tokenizer.save_pretrained(tmp_path)
    backend.make_inputs.features.save_pretrained(tmp_path)
    settings = tmp_path / "preprocessor_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | PIXELS))
    loaded = OmniBackend.from_pretrained(OmniSettings(model=str(tmp_path), side=56, device="cpu"))
    assert torch.allclose(loaded.grade_logits([asked(loaded)]), backend.grade_logits([asked(backend)]), atol=1e-5)


def test_another_kind_of_model_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BadInput, match="is a gpt2"):
        OmniBackend.from_pretrained(OmniSettings(model=str(tmp_path)))

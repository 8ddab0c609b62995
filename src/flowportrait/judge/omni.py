"""The specialists in this process: the thinkers of Qwen2.5-Omni and Qwen3-Omni through transformers, in batches.

    reasons    a whole answer is sampled, with the alternatives of every token: as from a server
    scores     one forward pass:  p(k) ∝ exp logit(k),  k = 1 … 5  right after  {"score":       (no rationale)

``scores`` costs a hundredth and is for post-training; it says so in place of a rationale. Where less than half of the
probability falls on 1 … 5 the model has not understood the question, and there is no score.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.judge.kind import Kind
from flowportrait.judge.omni_inputs import Layout
from flowportrait.judge.opinion import LEAST_MASS, Reply, Token, Unusable
from flowportrait.judge.question import Keep, Question
from flowportrait.judge.rubric import HIGHEST, LOWEST
from flowportrait.reward.batch import Failure

FAMILIES = {
    "qwen2_5_omni": ("qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen2_5_omni_thinker": ("qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen3_omni_moe": ("qwen3_omni_moe", "Qwen3OmniMoeThinkerForConditionalGeneration"),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe", "Qwen3OmniMoeThinkerForConditionalGeneration"),
}
"""Model type of a checkpoint's config to its module and class in transformers."""
OPENING = '{"score": '
NO_REASONS = "Score only: no reasons were asked for."
_TOP = 10


@dataclass(frozen=True)
class OmniSettings:
    model: str = "Qwen/Qwen2.5-Omni-3B"
    """Folder or hub name."""
    ask_for: Literal["reasons", "scores"] = "reasons"
    device: str = "auto"
    """``auto``: a GPU if there is one."""
    dtype: str = "auto"
    """``auto``: as the checkpoint has it."""
    batch: int = 4
    side: int = 224
    """Pixels of a video frame."""
    temperature: float = 0.7
    max_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, batch=1, side=28, temperature=0, max_tokens=16)


class Omni:
    """A ``Backend`` in this process."""

    kind: Kind = "multimodal LLM panel"

    def __init__(self, model: Any, layout: Layout, settings: OmniSettings) -> None:
        self.model = model.eval().requires_grad_(False)
        self.layout = layout
        self.settings = settings

    @classmethod
    def from_pretrained(cls, settings: OmniSettings) -> Omni:
        """The thinker of a checkpoint with its tokenizer and features.

        Raises:
            BadInput: it cannot be loaded, or is of another family.
        """
        import transformers

        name = settings.model
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            if config.model_type not in FAMILIES:
                raise BadInput(
                    f"{name} is a {config.model_type}: the judge in this process is a Qwen2.5- or Qwen3-Omni."
                )
            module, kind = FAMILIES[config.model_type]
            model = getattr(transformers, kind).from_pretrained(name, dtype=settings.dtype)
            pixels, _ = transformers.Qwen2VLImageProcessorPil.get_image_processor_dict(name)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            features = transformers.WhisperFeatureExtractor.from_pretrained(name)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise BadInput(f"{name} cannot be loaded as a judge ({first}): give a folder or hub name.") from error
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        layout = layout_for(module, model.config, tokenizer, features, pixels, settings.side)
        return cls(model.to(device), layout, settings)

    @property
    def who(self) -> str:
        s = self.settings
        return f"{s.model} {s.ask_for} {s.dtype} {s.side} {s.temperature:g} {s.max_tokens} {s.seed}"

    def ask(self, questions: Sequence[Question], keep: Keep) -> dict[int, Failure]:
        """See ``Backend``."""
        failures: dict[int, Failure] = {}
        # Alike in length together, so that little is padding.
        order = sorted(range(len(questions)), key=lambda place: (questions[place].aspect, place))
        for first in range(0, len(order), self.settings.batch):
            places = order[first : first + self.settings.batch]
            lot = [questions[place] for place in places]
            scoring = self.settings.ask_for == "scores" and all(question.aspect != "review" for question in lot)
            for place, found in zip(places, self._scored(lot) if scoring else self._told(lot), strict=True):
                try:
                    if isinstance(found, Failure):
                        raise Unusable(found)
                    questions[place].check(found)
                except Unusable as error:
                    failures[place] = error.failure
                else:
                    keep(place, found)
        return failures

    @torch.inference_mode()
    def grade_logits(self, questions: Sequence[Question]) -> torch.Tensor:
        """Log-probabilities ``[B, V]`` of the token after ``OPENING``."""
        inputs = self._inputs(questions, OPENING)
        return self.model(**inputs).logits[:, -1].float().log_softmax(-1).cpu()

    def _scored(self, questions: Sequence[Question]) -> list[Reply | Failure]:
        log = self.grade_logits(questions)
        grades = range(LOWEST, HIGHEST + 1)
        ids = [self.layout.tokenizer(str(grade), add_special_tokens=False)["input_ids"][-1] for grade in grades]
        found: list[Reply | Failure] = []
        for row in log[:, ids]:
            mass = float(row.exp().sum())
            if mass < LEAST_MASS:
                found.append(Failure("malformed", f"only {mass:.1%} of the probability is on 1 to 5"))
                continue
            likeliest = LOWEST + int(row.argmax())
            alternatives = tuple((str(grade), float(p)) for grade, p in zip(grades, row, strict=True))
            tokens = (Token(OPENING), Token(str(likeliest), alternatives))
            text = f'{OPENING}{likeliest}, "rationale": "{NO_REASONS}", "errors": []}}'
            found.append(Reply(text, tokens))
        return found

    @torch.inference_mode()
    def _told(self, questions: Sequence[Question]) -> list[Reply | Failure]:
        s, tokenizer = self.settings, self.layout.tokenizer
        inputs = self._inputs(questions, "")
        torch.manual_seed(s.seed + sum(question.sample for question in questions))
        sampling: dict[str, Any] = {"do_sample": True, "temperature": s.temperature} if s.temperature else {
            "do_sample": False
        }  # fmt: skip
        made = self.model.generate(
            **inputs, **sampling, max_new_tokens=s.max_tokens, output_logits=True, return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        )  # fmt: skip
        ids = made.sequences[:, inputs["input_ids"].shape[1] :].cpu()
        log = torch.stack(made.logits, 1).float().log_softmax(-1).cpu()
        return [self._reply(row, logs) for row, logs in zip(ids, log, strict=True)]

    def _reply(self, ids: torch.Tensor, log: torch.Tensor) -> Reply:
        tokenizer = self.layout.tokenizer
        end = (ids == tokenizer.convert_tokens_to_ids("<|im_end|>")).nonzero()[:, 0].tolist()
        whole, length = bool(end), end[0] if end else len(ids)
        best = log[:length].topk(min(_TOP, log.shape[-1]), -1)
        tokens = tuple(
            Token(tokenizer.decode([token]), tuple((tokenizer.decode([w]), p) for w, p in zip(words, ps, strict=True)))
            for token, words, ps in zip(
                ids[:length].tolist(), best.indices.tolist(), best.values.tolist(), strict=True
            )
        )  # fmt: skip
        return Reply(tokenizer.decode(ids[:length]), tokens, None, whole)

    def _inputs(self, questions: Sequence[Question], opening: str) -> dict[str, Any]:
        inputs = self.layout(questions, opening)
        dtype = self.model.dtype
        return {
            name: value.to(self.model.device, dtype if name in ("pixel_values_videos", "input_features") else None)
            for name, value in inputs.items()
        }


def layout_for(module: str, config: Any, tokenizer: Any, features: Any, pixels: dict[str, Any], side: int) -> Layout:
    """The layout of a family's thinker with this config."""
    processing = importlib.import_module(f"transformers.models.{module}.processing_{module}")
    audio_tokens = processing._get_feat_extract_output_lengths
    vision = config.vision_config
    if module == "qwen3_omni_moe":
        window = config.audio_config.n_window

        def counted(columns: torch.Tensor) -> torch.Tensor:
            return audio_tokens(columns, window)
    else:
        counted = audio_tokens
    return Layout(
        tokenizer, features, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size,
        tuple(pixels["image_mean"]), tuple(pixels["image_std"]), counted, side,
    )  # fmt: skip

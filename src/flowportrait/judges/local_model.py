"""This module runs a multimodal language model (Qwen2.5-Omni or Qwen3-Omni) as a judge in this process.

    reasons    a whole answer is sampled, with the alternatives of every token, as from a server
    scores     one forward pass:  p(k) ∝ exp logit(k),  k = 1 … 5  right after  {"score":       (no rationale)

``scores`` takes about a hundredth of the time and is meant for post-training; a fixed sentence replaces the rationale.
If less than half of the probability falls on 1 … 5, the model has not understood the question, and there is no score.
``OmniBackend`` is the backend, ``OmniInputs`` makes the tensors that the model reads.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.judges.questions import AcceptReply, JudgeKind, Question
from flowportrait.judges.replies import MIN_GRADE_MASS, Reply, Token, UnusableReply
from flowportrait.judges.rubric import HIGHEST_GRADE, LOWEST_GRADE
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.rewards.batch import Failure

OMNI_MODEL_CLASSES = {
    "qwen2_5_omni": ("qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen2_5_omni_thinker": ("qwen2_5_omni", "Qwen2_5OmniThinkerForConditionalGeneration"),
    "qwen3_omni_moe": ("qwen3_omni_moe", "Qwen3OmniMoeThinkerForConditionalGeneration"),
    "qwen3_omni_moe_thinker": ("qwen3_omni_moe", "Qwen3OmniMoeThinkerForConditionalGeneration"),
}
"""The module and the class in transformers for the model type in a checkpoint's config."""
ANSWER_OPENING = '{"score": '
NO_REASONS_TEXT = "Score only: no reasons were asked for."
_TOP = 10


@dataclass(frozen=True)
class OmniSettings:
    """The settings of a model that judges in this process."""

    model: str = "Qwen/Qwen2.5-Omni-3B"
    """A folder or a name on the hub."""
    ask_for: Literal["reasons", "scores"] = "reasons"
    """``reasons``: a whole answer; ``scores``: one forward pass that gives a score without reasons."""
    device: str = "auto"
    """A device of torch; ``auto`` is a GPU if there is one, else the CPU."""
    dtype: str = "auto"
    """A floating-point type of torch; ``auto`` is the type of the checkpoint."""
    batch: int = 4
    """Questions in one forward pass."""
    side: int = 224
    """Pixels of the side of a video frame."""
    temperature: float = 0.7
    """Temperature of the sampling."""
    max_tokens: int = 512
    """Maximum length of an answer in tokens."""
    seed: int = 0
    """Seed of the sampling."""

    def __post_init__(self) -> None:
        at_least(self, batch=1, side=28, temperature=0, max_tokens=16)


class OmniBackend:
    """A ``Backend`` that runs the model in this process.

    Args:
        model: the thinker, a model of transformers.
        make_inputs: makes the tensors that it reads.
        settings: how it is asked.
    """

    kind: JudgeKind = "multimodal LLM panel"

    def __init__(self, model: Any, make_inputs: OmniInputs, settings: OmniSettings) -> None:
        self.model = model.eval().requires_grad_(False)
        self.make_inputs = make_inputs
        self.settings = settings

    @classmethod
    def from_pretrained(cls, settings: OmniSettings) -> OmniBackend:
        """Load the thinker of a checkpoint with its tokenizer and feature extractor.

        Raises:
            BadInput: the checkpoint cannot be loaded, or is of another family.
        """
        import transformers

        name = settings.model
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            if config.model_type not in OMNI_MODEL_CLASSES:
                raise BadInput(
                    f"{name} is a {config.model_type}: the judge in this process is a Qwen2.5- or Qwen3-Omni."
                )
            module, kind = OMNI_MODEL_CLASSES[config.model_type]
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
        make_inputs = build_omni_inputs(module, model.config, tokenizer, features, pixels, settings.side)
        return cls(model.to(device), make_inputs, settings)

    @property
    def model_id(self) -> str:
        """See ``Backend``."""
        s = self.settings
        return f"{s.model} {s.ask_for} {s.dtype} {s.side} {s.temperature:g} {s.max_tokens} {s.seed}"

    def ask(self, questions: Sequence[Question[Any]], accept: AcceptReply) -> dict[int, Failure]:
        """See ``Backend``."""
        failures: dict[int, Failure] = {}
        # Questions of similar length share a batch, so that there is little padding.
        order = sorted(range(len(questions)), key=lambda place: (questions[place].aspect, place))
        for first in range(0, len(order), self.settings.batch):
            places = order[first : first + self.settings.batch]
            batch = [questions[place] for place in places]
            scoring = self.settings.ask_for == "scores" and all(question.aspect != "review" for question in batch)
            for place, found in zip(places, self._score(batch) if scoring else self._generate(batch), strict=True):
                try:
                    if isinstance(found, Failure):
                        raise UnusableReply(found)
                    accept(place, found)
                except UnusableReply as error:
                    failures[place] = error.failure
        return failures

    @torch.inference_mode()
    def grade_logits(self, questions: Sequence[Question[Any]]) -> torch.Tensor:
        """Return the log-probabilities ``[B, V]`` of the token after ``ANSWER_OPENING``."""
        inputs = self._inputs(questions, ANSWER_OPENING)
        return self.model(**inputs).logits[:, -1].float().log_softmax(-1).cpu()

    def _score(self, questions: Sequence[Question[Any]]) -> list[Reply | Failure]:
        log = self.grade_logits(questions)
        grades = range(LOWEST_GRADE, HIGHEST_GRADE + 1)
        ids = [self.make_inputs.tokenizer(str(grade), add_special_tokens=False)["input_ids"][-1] for grade in grades]
        found: list[Reply | Failure] = []
        for row in log[:, ids]:
            mass = float(row.exp().sum())
            if mass < MIN_GRADE_MASS:
                found.append(Failure("malformed", f"only {mass:.1%} of the probability is on 1 to 5"))
                continue
            likeliest = LOWEST_GRADE + int(row.argmax())
            alternatives = tuple((str(grade), float(p)) for grade, p in zip(grades, row, strict=True))
            tokens = (Token(ANSWER_OPENING), Token(str(likeliest), alternatives))
            text = f'{ANSWER_OPENING}{likeliest}, "rationale": "{NO_REASONS_TEXT}", "errors": []}}'
            found.append(Reply(text, tokens))
        return found

    @torch.inference_mode()
    def _generate(self, questions: Sequence[Question[Any]]) -> list[Reply | Failure]:
        s, tokenizer = self.settings, self.make_inputs.tokenizer
        inputs = self._inputs(questions, "")
        torch.manual_seed(s.seed + sum(question.sample for question in questions))
        sampling: dict[str, Any] = {"do_sample": True, "temperature": s.temperature} if s.temperature else {
            "do_sample": False
        }  # fmt: skip
        output = self.model.generate(
            **inputs, **sampling, max_new_tokens=s.max_tokens, output_logits=True, return_dict_in_generate=True,
            pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        )  # fmt: skip
        ids = output.sequences[:, inputs["input_ids"].shape[1] :].cpu()
        log = torch.stack(output.logits, 1).float().log_softmax(-1).cpu()
        return [self._reply(row, logs) for row, logs in zip(ids, log, strict=True)]

    def _reply(self, ids: torch.Tensor, log: torch.Tensor) -> Reply:
        tokenizer = self.make_inputs.tokenizer
        end = (ids == tokenizer.convert_tokens_to_ids("<|im_end|>")).nonzero()[:, 0].tolist()
        complete, length = bool(end), end[0] if end else len(ids)
        best = log[:length].topk(min(_TOP, log.shape[-1]), -1)
        tokens = tuple(
            Token(tokenizer.decode([token]), tuple((tokenizer.decode([w]), p) for w, p in zip(words, ps, strict=True)))
            for token, words, ps in zip(
                ids[:length].tolist(), best.indices.tolist(), best.values.tolist(), strict=True
            )
        )  # fmt: skip
        return Reply(tokenizer.decode(ids[:length]), tokens, None, complete)

    def _inputs(self, questions: Sequence[Question[Any]], opening: str) -> dict[str, Any]:
        inputs = self.make_inputs(questions, opening)
        dtype = self.model.dtype
        return {
            name: value.to(self.model.device, dtype if name in ("pixel_values_videos", "input_features") else None)
            for name, value in inputs.items()
        }


def build_omni_inputs(
    module: str, config: Any, tokenizer: Any, features: Any, pixels: dict[str, Any], side: int
) -> OmniInputs:
    """Return the ``OmniInputs`` of a thinker.

    Args:
        module: the family's module in transformers.
        config: the thinker's config.
        tokenizer: the model's tokenizer.
        features: the model's audio feature extractor.
        pixels: the model's image processor settings.
        side: pixels of the side of a video frame.
    """
    processing = importlib.import_module(f"transformers.models.{module}.processing_{module}")
    audio_tokens = processing._get_feat_extract_output_lengths
    vision = config.vision_config
    if module == "qwen3_omni_moe":
        window = config.audio_config.n_window

        def token_count(columns: torch.Tensor) -> torch.Tensor:
            return audio_tokens(columns, window)
    else:
        token_count = audio_tokens
    return OmniInputs(
        tokenizer, features, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size,
        tuple(pixels["image_mean"]), tuple(pixels["image_std"]), token_count, side,
    )  # fmt: skip


# --- The model's inputs


@dataclass(frozen=True)
class OmniInputs:
    """A function that makes the tensors that a thinker reads: video patches, log-mel of the sound, and token ids.

        <|im_start|>user  V…V  A…A  text <|im_end|> <|im_start|>assistant …    V: one id per merged patch of two frames
                                                                             A: one id per audio token

    Patches have the order of the models' own processor, [grid t, h / m, w / m, m, m] × [colour, time, p, p]. They are
    made here because the library's video processor needs torchvision, which this package does not depend on. Rows are
    padded on the left, so that every answer begins at the last column.

    Args:
        tokenizer: the model's tokenizer.
        features: the model's audio feature extractor (log-mel).
        patch: pixels of the side of a video patch.
        merge: number of patches, along a side, that become one token.
        temporal: frames in a patch.
        mean: means ``[3]`` of the pixels that the model was trained with.
        std: standard deviations ``[3]`` likewise.
        audio_tokens: function from numbers of mel columns ``[N]`` to numbers of tokens ``[N]``.
        side: pixels of the side of a video frame; it is rounded to whole patches.
    """

    tokenizer: Any
    features: Any
    patch: int
    merge: int
    temporal: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    audio_tokens: Callable[[torch.Tensor], torch.Tensor]
    side: int = 224

    def __call__(self, questions: Sequence[Question[Any]], opening: str = "") -> dict[str, torch.Tensor]:
        """Return the input tensors of one batch; ``opening`` is the beginning of the assistant's answer."""
        inputs = [question.make_input() for question in questions]
        videos = [self.patches(evidence.video) for evidence in inputs]
        sounds = [evidence.audio for evidence in inputs if len(evidence.audio)]
        tensors: dict[str, torch.Tensor] = {
            "pixel_values_videos": torch.cat([patches for patches, _ in videos]),
            "video_grid_thw": torch.tensor([grid for _, grid in videos]),
            "video_second_per_grid": torch.tensor([self.temporal / evidence.fps for evidence in inputs]),
        }
        counts: list[int] = []
        if sounds:
            mel = self.features(
                sounds, sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt", truncation=False,
                padding="longest",
            )  # fmt: skip
            tensors["input_features"], mask = mel["input_features"], mel["attention_mask"]
            tensors["feature_attention_mask"] = mask.long()
            counts = self.audio_tokens(mask.sum(-1)).tolist()
        audio_counts = iter(counts)
        rows = []
        for question, evidence, (_, grid) in zip(questions, inputs, videos, strict=True):
            video_tokens = int(np.prod(grid)) // self.merge**2
            rows.append(self._ids(question, video_tokens, next(audio_counts) if len(evidence.audio) else 0, opening))
        return tensors | self._padded(rows)

    def patches(self, video: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Return a video ``[K, H, W, 3]`` uint8 as patches ``[N, 3 · temporal · p · p]``, and their grid (t, h, w)."""
        step = self.patch * self.merge
        side = max(step, round(self.side / step) * step)
        frames = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in video])
        frames = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % self.temporal, 0)])
        pixels = (torch.from_numpy(frames).float() / 255 - torch.tensor(self.mean)) / torch.tensor(self.std)
        grid = (len(frames) // self.temporal, side // self.patch, side // self.patch)
        cut = pixels.permute(0, 3, 1, 2).reshape(
            grid[0], self.temporal, 3, grid[1] // self.merge, self.merge, self.patch,
            grid[2] // self.merge, self.merge, self.patch,
        )  # fmt: skip
        return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], -1), grid

    def _ids(self, question: Question[Any], video_tokens: int, audio_tokens: int, opening: str) -> list[int]:
        t = self.tokenizer
        media = f"{t.vision_bos_token}{t.video_token * video_tokens}{t.vision_eos_token}"
        if audio_tokens:
            media += f"{t.audio_bos_token}{t.audio_token * audio_tokens}{t.audio_eos_token}"
        text = (
            f"<|im_start|>system\n{question.system}<|im_end|>\n<|im_start|>user\n{media}{question.text}<|im_end|>\n"
            f"<|im_start|>assistant\n{opening}"
        )
        return list(t(text, add_special_tokens=False)["input_ids"])

    def _padded(self, rows: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask}

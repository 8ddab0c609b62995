"""A multimodal language model as a reward model: its inputs, the model and its training.

    user:  V…V  text  <motion> <expression>   A…A  <sync>
           frames                             speech: heard (Omni), or its log-mel as a picture (VL)

    h = decoder( frames, text, <motion> <expression>, speech, <sync> )        s_d = w_d · h at the token of d

One special token per dimension gives its score. A decoder reads from left to right, so the first two tokens cannot know
the sound, and the third knows both (VideoReward, arXiv 2501.13918, places its text-free tokens before the prompt in the
same way). Qwen2-VL, Qwen2.5-VL and Qwen3-VL get the speech as a picture of its log-mel; the thinkers of Qwen2.5- and
Qwen3-Omni hear it. LoRA adapters of the decoder, the embeddings of the tokens and w are trained; only they are saved.

    pair ─► evenly spaced frames and the sound of both clips ─► scores ─► pair_loss ─► AdamW on the adapters
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flowportrait.config import at_least, load, save
from flowportrait.errors import BadInput
from flowportrait.files import atomic_write
from flowportrait.judges.local_model import OMNI_MODEL_CLASSES as OMNI_FAMILIES
from flowportrait.judges.local_model import OmniInputs, build_omni_inputs
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.preferences.clips import FramesAudioClip, PairObjective, pair_loss, read_frames_and_audio
from flowportrait.preferences.dataset import DIMENSIONS, Aspect, PreferenceDataset, PreferencePair
from flowportrait.terminal import StopRequest
from flowportrait.training.lora import LoraSettings, insert_adapters
from flowportrait.training.optimize import GuardedStep

# --- Inputs ---

VLM_PROMPT = "A person talks. Judge the motion, then the expression; then hear the speech and judge the lips."
SCORE_TOKEN_ORDER: tuple[Aspect, ...] = ("motion", "expression", "sync")
"""Order of the score tokens; the sound comes before the last one."""
_TEXT, _IMAGE, _VIDEO = 0, 1, 2


@dataclass(frozen=True)
class VlmInputs:
    """Turns clips into the input tensors of one model family.

    Attributes:
        family: model type of the checkpoint's config.
        layout: patch sizes and tokenizer.
        ids: the config with the ids of the model's special tokens.
        first_score: id of the first of three score tokens, after the model's own vocabulary.
    """

    family: str
    layout: OmniInputs
    ids: Any
    first_score: int

    @property
    def hears(self) -> bool:
        """Whether the family takes sound as audio, not as a picture."""
        return "omni" in self.family

    def __call__(self, clips: Sequence[FramesAudioClip]) -> dict[str, torch.Tensor]:
        """Return the model's input tensors by name; rows are padded on the left."""
        videos = [self.layout.patches(clip.frames) for clip in clips]
        tensors: dict[str, torch.Tensor] = {
            "pixel_values_videos": torch.cat([patches for patches, _ in videos]),
            "video_grid_thw": torch.tensor([grid for _, grid in videos]),
        }
        if self.hears or self.family == "qwen2_5_vl":
            seconds = torch.tensor([self.layout.temporal / clip.fps for clip in clips])
            tensors["video_second_per_grid" if self.hears else "second_per_grid_ts"] = seconds
        if self.hears:
            sounds, counts = self._audio_inputs(clips)
        else:
            sounds, counts = self._spectrogram_inputs(clips)
        rows = []
        for clip, (_, grid), count in zip(clips, videos, counts, strict=True):
            rows.append(self._token_row(grid, self.layout.temporal / clip.fps, count))
        return tensors | sounds | self._pad_left(rows)

    def _audio_inputs(self, clips: Sequence[FramesAudioClip]) -> tuple[dict[str, torch.Tensor], list[int]]:
        mel = self.layout.features(
            [clip.audio for clip in clips], sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt",
            truncation=False, padding="longest",
        )  # fmt: skip
        mask = mel["attention_mask"]
        counts = self.layout.audio_tokens(mask.sum(-1)).tolist()
        return {"input_features": mel["input_features"], "feature_attention_mask": mask.long()}, counts

    def _spectrogram_inputs(self, clips: Sequence[FramesAudioClip]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """Draw log-mel as pictures: time to the right, pitch upwards, loud is bright."""
        pictures = []
        for clip in clips:
            mel = ((log_mel(normalize_loudness(clip.audio)).T.flip(0) + 1) / 4 * 255).clamp(0, 255).byte().numpy()
            pictures.append(self.layout.patches(np.repeat(mel[None, ..., None], 3, -1)))
        counts = [int(np.prod(grid)) // self.layout.merge**2 for _, grid in pictures]
        grids = torch.tensor([grid for _, grid in pictures])
        return {"pixel_values": torch.cat([patches for patches, _ in pictures]), "image_grid_thw": grids}, counts

    def _token_row(self, grid: tuple[int, int, int], seconds: float, sound: int) -> list[tuple[int, int]]:
        """Return id and kind of every token of a clip."""
        ids, per_picture = self.ids, grid[1] * grid[2] // self.layout.merge**2
        video = [(ids.video_token_id, _VIDEO)]
        if self.family == "qwen3_vl":
            frames: list[tuple[int, int]] = []
            for number in range(grid[0]):
                frames += self._text_tokens(f"<{seconds * (number + 0.5):.1f} seconds>")
                frames += self._vision_tokens(video * per_picture)
        else:
            frames = self._vision_tokens(video * (grid[0] * per_picture))
        if self.hears:
            tokens = self._text_tokens(self.layout.tokenizer.audio_bos_token)
            tokens += [(ids.audio_token_id, _TEXT)] * sound + self._text_tokens(self.layout.tokenizer.audio_eos_token)
        else:
            tokens = self._vision_tokens([(ids.image_token_id, _IMAGE)] * sound)
        motion, expression, sync = ((self.first_score + offset, _TEXT) for offset in range(len(SCORE_TOKEN_ORDER)))
        return [
            *self._text_tokens("<|im_start|>user\n"), *frames, *self._text_tokens(VLM_PROMPT), motion, expression,
            *tokens,
            sync,
        ]  # fmt: skip

    def _text_tokens(self, text: str) -> list[tuple[int, int]]:
        return [(token, _TEXT) for token in self.layout.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _vision_tokens(self, tokens: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(self.ids.vision_start_token_id, _TEXT), *tokens, (self.ids.vision_end_token_id, _TEXT)]

    def _pad_left(self, rows: Sequence[list[tuple[int, int]]]) -> dict[str, torch.Tensor]:
        longest, pad = max(map(len, rows)), (self.layout.tokenizer.pad_token_id, _TEXT)
        padded = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        tensors = {"input_ids": padded[..., 0], "attention_mask": mask}
        return tensors if self.hears else tensors | {"mm_token_type_ids": padded[..., 1].int()}


# --- Model ---

VL_FAMILIES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
"""Class in transformers by the model type of a checkpoint's config."""


@dataclass(frozen=True)
class VlmSettings:
    """The base model of the reward and its adapters, as vlm.json holds them."""

    model: str = "Qwen/Qwen2-VL-2B-Instruct"
    """Folder or hub name of the base model."""
    rank: int = 64
    """Rank of the LoRA adapters."""
    alpha: float = 128.0
    """Scale of the LoRA adapters."""
    frames: int = 16
    """Number of evenly spaced frames per clip."""
    side: int = 224
    """Side of a frame in pixels."""
    device: str = "auto"
    """Device; ``auto`` is a GPU if there is one."""
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, rank=1, alpha=0, frames=2, side=28, seed=0)


class VlmReward(nn.Module):
    """Scores clips as ``[B, 3]`` in the order of ``DIMENSIONS`` with a multimodal language model."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Any, reader: VlmInputs, settings: VlmSettings) -> None:
        super().__init__()
        self.settings, self.reader = settings, reader
        insert_adapters(model.model.language_model, _adapters(model.model.language_model, settings), settings.seed)
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        generator = torch.Generator().manual_seed(settings.seed)
        words = model.get_input_embeddings()
        self.tokens = ScoreTokens(words, reader.first_score, generator)
        model.set_input_embeddings(self.tokens)
        self.read_out = nn.Linear(self.tokens.width, len(SCORE_TOKEN_ORDER), bias=False)
        nn.init.normal_(self.read_out.weight, std=self.tokens.width**-0.5, generator=generator)
        self.register_buffer("mean", torch.zeros(len(DIMENSIONS)))
        self.register_buffer("std", torch.ones(len(DIMENSIONS)))
        self.model = model

    @classmethod
    def from_name(cls, settings: VlmSettings) -> VlmReward:
        """Create an untrained reward around the base model of ``settings``.

        Raises:
            BadInput: the base model cannot be loaded, or belongs to another family.
        """
        import transformers

        name = settings.model
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            kind = config.model_type
            if kind not in VL_FAMILIES and kind not in OMNI_FAMILIES:
                raise BadInput(f"{name} is a {kind}: the reward model is a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or an Omni.")
            class_name = VL_FAMILIES[kind] if kind in VL_FAMILIES else OMNI_FAMILIES[kind][1]
            model = getattr(transformers, class_name).from_pretrained(name, dtype="auto")
            pixels, _ = transformers.Qwen2VLImageProcessorPil.get_image_processor_dict(name)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            features = transformers.WhisperFeatureExtractor.from_pretrained(name) if kind in OMNI_FAMILIES else None
        except (OSError, ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise BadInput(
                f"{name} cannot be loaded as a reward model ({first}): give a folder or hub name."
            ) from error
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        reader = build_vlm_inputs(kind, model.config, tokenizer, features, pixels, settings.side)
        return cls(model, reader, settings).to(device)

    def raw_scores(self, clips: Sequence[FramesAudioClip]) -> torch.Tensor:
        """Return scores ``[B, 3]`` before standardisation, which the pair loss trains."""
        device, dtype = self.read_out.weight.device, self.model.dtype
        inputs = {
            name: value.to(device, dtype if value.is_floating_point() and name != "second_per_grid_ts" else None)
            for name, value in self.reader(clips).items()
        }
        state = self.model.model(**inputs).last_hidden_state
        is_score_token = inputs["input_ids"][..., None] == self.reader.first_score + torch.arange(
            len(SCORE_TOKEN_ORDER), device=device
        )
        at_tokens = torch.einsum("bth,btd->bdh", state.float(), is_score_token.float())
        scores = torch.einsum("bdh,dh->bd", at_tokens, self.read_out.weight)
        return scores[:, [SCORE_TOKEN_ORDER.index(dimension) for dimension in DIMENSIONS]]

    def forward(self, clips: Sequence[FramesAudioClip]) -> torch.Tensor:
        """Return standardised scores ``[B, 3]``."""
        return (self.raw_scores(clips) - self.mean) / self.std

    def standardise(self, scores: torch.Tensor) -> None:
        """Set mean and spread of the standardisation from raw ``scores`` ``[N, 3]``."""
        self.mean.copy_(scores.mean(0))
        self.std.copy_(scores.std(0).clamp_min(1e-3))

    def save(self, folder: Path) -> None:
        """Write the trained parameters and the settings, each file atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "vlm.safetensors") as partial:
            save_file(self._trained_tensors(), str(partial))
        save(self.settings, folder / "vlm.json")

    @classmethod
    def read(cls, folder: Path) -> VlmReward:
        """Load a reward that ``save`` wrote, with its base model.

        Raises:
            BadInput: the folder holds no reward, or one of another base model.
        """
        reward = cls.from_name(load(VlmSettings, folder / "vlm.json"))
        reward.restore(folder)
        return reward.eval().requires_grad_(False)

    def restore(self, folder: Path) -> None:
        """Load the trained parameters that ``save`` wrote.

        Raises:
            BadInput: the file cannot be read, or belongs to another base model.
        """
        try:
            stored = load_file(str(folder / "vlm.safetensors"))
        except OSError as error:
            raise BadInput(f"No trained reward in {folder}: it needs vlm.json and vlm.safetensors.") from error
        current = self._trained_tensors()
        if {name: value.shape for name, value in stored.items()} != {
            name: value.shape for name, value in current.items()
        }:
            raise BadInput(
                f"The reward in {folder} does not fit {self.settings.model}: was it trained on another model?"
            )
        with torch.no_grad():
            for name, value in current.items():
                value.copy_(stored[name])

    def _trained_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {**dict(self.named_buffers(recurse=False)), **dict(self.named_parameters())}
        patterns = ("lora_", "tokens.own", "read_out.")
        return {
            name: value.data
            for name, value in tensors.items()
            if name in ("mean", "std") or _contains_any(patterns, name)
        }


class ScoreTokens(nn.Module):
    """The embedding of a vocabulary, extended by three ids from ``first`` on with learned vectors."""

    def __init__(self, words: nn.Embedding, first: int, generator: torch.Generator) -> None:
        super().__init__()
        self.words, self.first, self.width = words, first, words.embedding_dim
        scale = float(words.weight.detach().float().std())
        self.own = nn.Parameter(scale * torch.randn(len(SCORE_TOKEN_ORDER), self.width, generator=generator))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the vectors ``[…, width]`` of ids ``[…]``."""
        extra = ids >= self.first
        vectors = self.words(ids.masked_fill(extra, 0))
        score_vectors = self.own[(ids - self.first).clamp(0, len(SCORE_TOKEN_ORDER) - 1)].to(vectors.dtype)
        return torch.where(extra[..., None], score_vectors, vectors)


def build_vlm_inputs(
    family: str, config: Any, tokenizer: Any, features: Any, pixels: dict[str, Any], side: int
) -> VlmInputs:
    """Build the reader of a model family.

    Args:
        family: model type.
        config: config of the checkpoint.
        tokenizer: its tokenizer.
        features: its audio feature extractor; None for families without audio.
        pixels: settings of its image processor.
        side: side of a frame in pixels.
    """
    first = (config.text_config if hasattr(config, "text_config") else config).vocab_size
    if family in OMNI_FAMILIES:
        layout = build_omni_inputs(OMNI_FAMILIES[family][0], config, tokenizer, features, pixels, side)
    else:
        vision, mean, std = config.vision_config, tuple(pixels["image_mean"]), tuple(pixels["image_std"])
        layout = OmniInputs(
            tokenizer, None, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size, mean, std,
            lambda columns: columns, side,
        )  # fmt: skip
    return VlmInputs(family, layout, config, first)


def _adapters(decoder: nn.Module, settings: VlmSettings) -> LoraSettings:
    """Choose the usual LoRA targets that exist; experts of a mixture are no linear layers and stay unchanged."""
    lora = LoraSettings(settings.rank, settings.alpha)
    layer_names = {name.rpartition(".")[2] for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
    return replace(lora, targets=tuple(target for target in lora.targets if target in layer_names))


def _contains_any(parts: Sequence[str], name: str) -> bool:
    return any(part in name for part in parts)


# --- Training ---


@dataclass(frozen=True)
class VlmTrainingConfig:
    """Settings of the training: those of VideoReward, for one machine."""

    settings: VlmSettings = field(default_factory=VlmSettings)
    objective: PairObjective = "ties"
    epochs: int = 2
    batch: int = 8
    """Pairs per step."""
    at_once: int = 2
    """Pairs in memory at a time."""
    learning_rate: float = 2e-5
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    seed: int = 0


def train_vlm_reward(
    config: VlmTrainingConfig,
    reward: VlmReward,
    dataset: PreferenceDataset,
    report: Callable[[int, float, float], None] = lambda step, loss, left: None,
) -> dict[str, str]:
    """Train ``reward`` in place and standardise it on the clips of the pairs.

    Returns:
        The reason for each clip that cannot be read.

    Raises:
        BadInput: no pair can be read.
        KeyboardInterrupt: the user interrupted; raised after the current step.
    """
    # Two frames show that a clip is readable; it is decoded again when it is used, because memory is limited.
    readable, unreadable = dataset.read_clips(lambda path: bool(read_frames_and_audio(path, 2)))
    usable = dataset.filter_by_clips(readable)
    if not usable:
        raise BadInput(f"None of {len(dataset)} pairs can be read: {next(iter(unreadable.values()))}")
    parameters = [parameter for parameter in reward.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=0.0)
    guarded_step = GuardedStep(parameters, optimiser)
    rng = np.random.default_rng(config.seed)
    order = np.concatenate([rng.permutation(len(usable)) for _ in range(config.epochs)])
    steps = [order[at : at + config.batch] for at in range(0, len(order), config.batch)]
    start_time = time.monotonic()
    reward.train()
    with StopRequest() as stop:
        for step, rows in enumerate(steps):
            ramp = min(1.0, (step + 1) / max(1.0, config.warmup * len(steps)))
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * ramp
            optimiser.zero_grad()
            total = 0.0
            for part in np.array_split(rows, -(-len(rows) // config.at_once)):
                chosen = [usable[row] for row in part]
                loss = _pairs_loss(config, reward, chosen, dataset.folder) * len(chosen) / len(rows)
                loss.backward()
                total += float(loss.detach())
            guarded_step(step + 1)
            report(step + 1, total, (time.monotonic() - start_time) / (step + 1) * (len(steps) - step - 1))
            if stop.requested:
                break
    stop.raise_pending_signal()
    reward.eval()
    with torch.no_grad():
        clips = (read_frames_and_audio(dataset.folder / name, reward.settings.frames) for name in readable)
        reward.standardise(torch.cat([reward.raw_scores([clip]) for clip in clips]))
    return unreadable


def _pairs_loss(
    config: VlmTrainingConfig, reward: VlmReward, pairs: Sequence[PreferencePair[str]], folder: Path
) -> torch.Tensor:
    names = [pair.first for pair in pairs] + [pair.second for pair in pairs]
    first, second = reward.raw_scores(
        [read_frames_and_audio(folder / name, config.settings.frames) for name in names]
    ).chunk(2)
    labels, points = ([pair.label_values() for pair in pairs], [pair.point_values() for pair in pairs])
    device = first.device
    return pair_loss(config.objective, first, second, torch.tensor(labels).to(device), torch.tensor(points).to(device))

"""HPSv3 and VideoAlign: reward networks that are a Qwen2-VL with a head of a few numbers.

    picture or video ─► patches ─► vision tower ─┐
    text of the question, with reward tokens ────┴► language model ─► head at the reward tokens ─► scores

    hpsv3           the mean μ of (μ, σ) at one token, over frames             Ma et al. 2025, 2508.03789
    videoalign      VQ + MQ + TA at a token each: the quality of pictures      Liu et al. 2025, 2501.13918
    videoalign_vq   and of motion, and how well the text fits
    …_mq, …_ta

Their weights are laid out as their authors publish them (``HPSV3``, ``VIDEOALIGN``). Both were trained, and are scored
here, with the positions of plain text also for picture tokens: position ids were never passed to their language model.
The questions are read from the authors' source files, which are not run. The parts, in order: the files, the network,
pictures as patches, and the rewards.
"""

from __future__ import annotations

import ast
import json
import math
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import cached_per_device, default_device, device_of
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.pretrained import (
    PublishedNetwork,
    network_folder,
    picture_needs,
    sample_texts,
    spread_indices,
)

# --- Files ---

HPSV3 = PublishedNetwork(
    "hpsv3",
    "HPSv3.safetensors of MizzenAI/HPSv3, hpsv3/dataset/data_collator_qwen.py of github.com/MizzenAI/HPSv3, and as "
    "Qwen2-VL-7B-Instruct/ the configuration and tokenizer of Qwen/Qwen2-VL-7B-Instruct",
    ("HPSv3.safetensors", "data_collator_qwen.py", "Qwen2-VL-7B-Instruct/config.json",
     "Qwen2-VL-7B-Instruct/tokenizer.json"),
)  # fmt: skip
VIDEOALIGN = PublishedNetwork(
    "videoalign",
    "KwaiVGI/VideoReward, prompt_template.py of github.com/KwaiVGI/VideoAlign, and as Qwen2-VL-2B-Instruct/ the model "
    "Qwen/Qwen2-VL-2B-Instruct",
    ("model_config.json", "checkpoint-*", "prompt_template.py", "Qwen2-VL-2B-Instruct/config.json",
     "Qwen2-VL-2B-Instruct/tokenizer.json"),
)  # fmt: skip
HPSV3_TOKENS = ("<|Reward|>",)
VIDEOALIGN_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
"""Tokens at which the heads are read, in the order in which they were added to the vocabulary."""
HPSV3_PIXELS = 256 * 28 * 28
"""Pixels that a picture is resized to for HPSv3."""
VIDEOALIGN_LEAST_PIXELS = 128 * 28 * 28
"""Fewest pixels of a frame for VideoAlign. The most are in its ``model_config.json``."""


def read_text_constant(path: Path, name: str) -> str:
    """Return a string that a Python file assigns to a name, without running the file.

    Raises:
        BadInput: the file is no Python, or has no such string.
    """
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError, OSError) as error:
        raise BadInput(f"{path} cannot be read as Python ({error}): put the published file there.") from error
    for statement in statements:
        named = isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in statement.targets
        )
        if named and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):  # type: ignore[attr-defined]
            return statement.value.value  # type: ignore[attr-defined]
    raise BadInput(f"{path} has no text {name}: put the published file there.")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a .safetensors or .pth file, or of all .safetensors files in a folder.

    Raises:
        BadInput: there are none, or a file is damaged or holds something other than tensors.
    """
    from safetensors.torch import load_file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"{path} has no .safetensors files: put the published weights there.")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        try:
            found = (
                load_file(str(file))
                if file.suffix == ".safetensors"
                else torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            )
        except Exception as error:
            raise BadInput(f"{file} cannot be read as weights: {str(error).splitlines()[0]}") from error
        tensors |= found.get("model", found) if isinstance(found.get("model"), dict) else found
    return tensors


def plain_name(name: str) -> str:
    """Return the name of a weight in ``Qwen2VLModel``, or beginning with ``rm_head.`` or ``lm_head.``.

    Args:
        name: its name in peft (``base_model.model.``, ``base_layer``, ``modules_to_save.default``) or without, and in
            transformers 4 (``visual.``, ``model.``) or 5 (``model.visual.``, ``model.language_model.``).
    """
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    if name.startswith(("model.visual.", "model.language_model.")):
        return name.removeprefix("model.")
    return f"language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name


_ADAPTER = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")


def merge_lora(tensors: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Return plain weights from those of a model with LoRA adapters, as peft lays them out: W + scale · B A.

    Args:
        tensors: weights by name; see ``plain_name``.
        scale: factor of the adapters.

    Raises:
        BadInput: an adapter has no other half, or no weight that it belongs to.
    """
    plain: dict[str, torch.Tensor] = {}
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if ".original_module." in name:
            continue
        name = plain_name(name)
        if found := _ADAPTER.fullmatch(name):
            halves.setdefault(found[1], {})[found[2]] = value
        else:
            plain[name] = value
    for layer, pair in halves.items():
        weight = f"{layer}.weight"
        if pair.keys() != {"A", "B"} or weight not in plain:
            raise BadInput(f"The weights of {layer} are incomplete: put all published files there.")
        merged = plain[weight].float() + scale * pair["B"].float() @ pair["A"].float()
        plain[weight] = merged.to(plain[weight].dtype)
    return plain


# --- The network ---

_QUESTION = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "<|vision_start|>{pad}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
)
"""The chat format of Qwen2-VL: one picture or video, then the text, then the beginning of the reply."""
_IMAGE_PAD, _VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
ROWS_PER_PASS = 8
"""Samples that the language model reads at a time."""


class RewardHead(nn.Module):
    """Linear layers with ReLU between them, as many and as wide as those in the weights.

    Args:
        weights: ``weight`` alone for one layer without bias, or ``0.weight``, ``0.bias``, ``3.weight``, … as in a
            ``Sequential`` whose other parts have no weights.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        places = sorted({int(name.split(".")[0]) for name in weights if "." in name})
        self.layers = nn.ModuleList()
        for prefix in [f"{place}." for place in places] or [""]:
            weight, bias = weights[f"{prefix}weight"].float(), weights.get(f"{prefix}bias")
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias.float()}))
            self.layers.append(layer)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            values = layer(values).relu()
        return self.layers[-1](values)


class Qwen2VlScorer(nn.Module):
    """A Qwen2-VL that reads a picture or a video with a question, and gives numbers at the reward tokens.

    Args:
        tensors: weights as published, with the names of transformers 4 (``visual.``, ``model.``, ``rm_head.``) or 5.
        base: folder with the configuration and tokenizer of the Qwen2-VL.
        tokens: the reward tokens, which are added to the vocabulary in this order.

    Raises:
        BadInput: transformers is not installed, the folder is no Qwen2-VL, or the weights do not fit it.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], base: Path, tokens: Sequence[str]) -> None:
        super().__init__()
        transformers = require_extra("train", "transformers")
        try:
            config = transformers.AutoConfig.from_pretrained(str(base), local_files_only=True)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(base), local_files_only=True)
        except (OSError, ValueError) as error:
            raise BadInput(f"The Qwen2-VL in {base} cannot be loaded: {str(error).splitlines()[0]}") from error
        if config.model_type != "qwen2_vl":
            raise BadInput(f"{base} holds a {config.model_type}: put the configuration of a Qwen2-VL there.")
        self._tokenizer.add_tokens([transformers.AddedToken(token, special=True) for token in tokens], True)
        self._token_ids = torch.tensor(self._tokenizer.convert_tokens_to_ids(list(tokens)))
        plain = {plain_name(name): value for name, value in tensors.items()}
        head = {name.removeprefix("rm_head."): value for name, value in plain.items() if name.startswith("rm_head.")}
        body = {name: value for name, value in plain.items() if not name.startswith(("rm_head.", "lm_head."))}
        embedding = body.get("language_model.embed_tokens.weight")
        if not head or embedding is None or len(embedding) <= int(self._token_ids.max()):
            raise BadInput(
                f"The weights beside {base} are no reward network for it: they need rm_head, and embed_tokens with a "
                f"row for each of {', '.join(tokens)}."
            )
        config.text_config.vocab_size = len(embedding)
        self.head = RewardHead(head)
        place, _ = default_device()
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
        self.backbone: Any = _load_backbone(transformers, config, body, dtype, base)
        self.eval().requires_grad_(False).to(place)

    @torch.no_grad()
    def forward(self, patches: torch.Tensor, grid: tuple[int, int, int], texts: Sequence[str]) -> torch.Tensor:
        """Return the numbers of the head at every reward token.

        Args:
            patches: ``[B, N, P]`` as from ``patchify``.
            grid: numbers of patches in time, height and width of one sample; the first is 1 for a picture.
            texts: the question about each sample, with every reward token once.

        Returns:
            ``[B, tokens, outputs]`` float32 on the CPU.

        Raises:
            BadInput: a text does not have every reward token once.
        """
        rows: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            rows.setdefault(text, []).append(row)
        passes = [
            (text, chunk) for text, same in rows.items() for chunk in torch.tensor(same).split(ROWS_PER_PASS)
        ]  # rows of one text are equally long, so nothing is padded
        scores: dict[int, torch.Tensor] = {}
        for text, chunk in passes:
            scores |= dict(zip(chunk.tolist(), self._score_rows(patches[chunk], grid, text), strict=True))
        return torch.stack([scores[row] for row in range(len(texts))])

    def _score_rows(self, patches: torch.Tensor, grid: tuple[int, int, int], text: str) -> torch.Tensor:
        config, place = self.backbone.config, device_of(self)
        video = grid[0] > 1
        count = math.prod(grid) // config.vision_config.spatial_merge_size**2
        pad = (_VIDEO_PAD if video else _IMAGE_PAD) * count
        ids = self._tokenizer(_QUESTION.format(pad=pad, text=text), add_special_tokens=False, return_tensors="pt")
        row = ids["input_ids"][0]
        places = [(row == token).nonzero()[:, 0] for token in self._token_ids]
        if any(len(found) != 1 for found in places):
            raise BadInput("A question must have every reward token once: put the published file with it there.")
        grids = torch.tensor([grid] * len(patches), device=place)
        visual = self.backbone.visual(patches.flatten(0, 1).to(place, self.backbone.dtype), grid_thw=grids)
        embedded = self.backbone.get_input_embeddings()(row.to(place)).repeat(len(patches), 1, 1)
        pictured = (row == (config.video_token_id if video else config.image_token_id)).to(place)
        embedded[:, pictured] = visual.pooler_output.view(len(patches), count, -1).to(embedded.dtype)
        hidden = self.backbone.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return self.head(hidden[:, torch.cat(places).to(place)].float()).cpu()


def _load_backbone(transformers: Any, config: Any, body: dict[str, torch.Tensor], dtype: Any, base: Path) -> Any:
    network, info = transformers.Qwen2VLModel.from_pretrained(
        None, config=config, state_dict=body, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
    )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if wrong := sorted(map(str, info[key])):
            raise BadInput(
                f"The weights do not fit the Qwen2-VL in {base}: {len(wrong)} {key.replace('_', ' ')}, such as "
                f"{wrong[0]}; put the published files there."
            )
    return network


# --- Pictures as patches ---

_MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))[:, None, None]
_STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))[:, None, None]
"""Mean and deviation of the pictures that the vision tower was trained on, those of CLIP."""


def resized_side(height: int, width: int, least: int, most: int, factor: int = 28) -> tuple[int, int]:
    """Return height and width as multiples of ``factor`` with ``least`` to ``most`` pixels and nearly the same shape.

    Both are rounded; beyond the limits they are scaled by a common factor first, and rounded towards the limit.
    """
    new_height, new_width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > most:
        ratio = math.sqrt(height * width / most)
        return math.floor(height / ratio / factor) * factor, math.floor(width / ratio / factor) * factor
    if new_height * new_width < least:
        ratio = math.sqrt(least / (height * width))
        return math.ceil(height * ratio / factor) * factor, math.ceil(width * ratio / factor) * factor
    return new_height, new_width


def patchify(
    frames: torch.Tensor, least: int, most: int, patch: int = 14, merge: int = 2, step: int = 2
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Return videos, or pictures as videos of one frame, as the patches that Qwen2-VL reads.

    Args:
        frames: ``[B, T, 3, H, W]`` in [0, 1].
        least: fewest pixels that a frame is resized to.
        most: most pixels.
        patch: side of a patch in pixels.
        merge: patches along each side that become one token; they follow each other.
        step: frames in a patch. A last frame that is left over is repeated.

    Returns:
        Patches ``[B, N, 3 · step · patch²]`` and the numbers of patches in time, height and width.
    """
    batch, count = frames.shape[:2]
    height, width = resized_side(frames.shape[-2], frames.shape[-1], least, most, patch * merge)
    pictures = F.interpolate(frames.flatten(0, 1), size=(height, width), mode="bicubic", antialias=True).clamp(0, 1)
    pictures = (((pictures * 255).round() / 255 - _MEAN) / _STD).unflatten(0, (batch, count))
    missing = -count % step
    pictures = torch.cat([pictures, pictures[:, -1:].expand(-1, missing, -1, -1, -1)], 1)
    grid = (pictures.shape[1] // step, height // patch, width // patch)
    parts = pictures.view(
        batch, grid[0], step, 3, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch
    )  # time, frames in a patch, colour, then rows and columns: blocks of patches, patches, pixels
    order = parts.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return order.reshape(batch, math.prod(grid), 3 * step * patch * patch), grid


# --- The rewards ---


@dataclass(frozen=True)
class HpsV3Reward:
    """Rewards frames that people would prefer for a text (HPSv3), the mean over frames.

    Attributes:
        network: the network.
        question: the published question with ``{text_prompt}`` in it, and the reward token.
        text: text of all samples; None for each sample's own.
    """

    network: Qwen2VlScorer
    question: str
    text: str | None = None
    name: str = "hpsv3"
    needs: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def load(cls, folders: Mapping[str, str], text: str | None) -> HpsV3Reward:
        """Return the reward with the network of this machine."""
        folder = network_folder(HPSV3, folders)
        source = folder / "data_collator_qwen.py"
        question = "".join(read_text_constant(source, name) for name in ("INSTRUCTION", "prompt_with_special_token"))
        return cls(_load_hpsv3(folder), question, text, needs=picture_needs(text))

    def __call__(self, batch: RewardBatch) -> Score:
        frames = batch.frames(spread_indices(batch.motion.shape[1]))
        patches, grid = patchify(frames.flatten(0, 1)[:, None], HPSV3_PIXELS, HPSV3_PIXELS)
        texts = [self.question.format(text_prompt=text) for text in sample_texts(batch, self.text)]
        repeated = [text for text in texts for _ in range(frames.shape[1])]
        return all_valid(self.network(patches, grid, repeated)[:, 0, 0].view(len(batch), -1).mean(1))


@cached_per_device
def _load_hpsv3(folder: Path) -> Qwen2VlScorer:
    return Qwen2VlScorer(read_tensors(folder / "HPSv3.safetensors"), folder / "Qwen2-VL-7B-Instruct", HPSV3_TOKENS)


class VideoAlignNetwork:
    """VideoAlign with its settings: three scores of a video and a text, standardised as published.

    Args:
        folder: the published folder; see ``VIDEOALIGN``.

    Raises:
        BadInput: a file is missing or damaged, or it has settings that the published model does not have.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "model_config.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            data, adapter = settings["data_config"], settings["peft_lora_config"]
            self._frame_rate, self._count = float(data["fps"]), data.get("num_frames")
            self._most_pixels = int(data["max_frame_pixels"])
            rank = adapter["lora_r"]
            scale = adapter["lora_alpha"] / (math.sqrt(rank) if adapter.get("use_rslora") else rank)
            kind = (data.get("sample_type", "uniform"), data["prompt_template_type"])
            norm = settings.get("inference_config") or {}
            self._mean, self._std = (
                torch.tensor([float(norm.get(f"{part}_{what}", default)) for part in ("VQ", "MQ", "TA")])
                for what, default in (("mean", 0.0), ("std", 1.0))
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path} is damaged ({error!r}): put the published file there.") from error
        if kind != ("uniform", "detailed_special"):
            raise BadInput(f"{path} has sample_type and prompt_template_type {kind}: only the published ones work.")
        source = folder / "prompt_template.py"
        self._question = read_text_constant(source, "DETAILED_PROMPT_WITH_SPECIAL_TOKEN")
        base = folder / "Qwen2-VL-2B-Instruct"
        self.network = Qwen2VlScorer(merge_lora(_videoalign_tensors(folder, base), scale), base, VIDEOALIGN_TOKENS)
        self._last: tuple[weakref.ref[RewardBatch], str | None, torch.Tensor] | None = None

    def score(self, batch: RewardBatch, text: str | None) -> torch.Tensor:
        """Return VQ, MQ and TA ``[B, 3]``. The rewards of one batch share one computation."""
        if self._last is None or self._last[0]() is not batch or self._last[1] != text:
            self._last = weakref.ref(batch), text, self._score(batch, text)
        return self._last[2]

    def _score(self, batch: RewardBatch, text: str | None) -> torch.Tensor:
        indices = videoalign_indices(batch.motion.shape[1], batch.fps, self._frame_rate, self._count)
        patches, grid = patchify(batch.frames(indices), VIDEOALIGN_LEAST_PIXELS, self._most_pixels)
        texts = [self._question.format(text_prompt=one) for one in sample_texts(batch, text)]
        found = self.network(patches, grid, texts)
        # With three outputs, each token has its own; with one, it is shared.
        values = found.diagonal(dim1=1, dim2=2) if found.shape[2] == len(VIDEOALIGN_TOKENS) else found[..., 0]
        return (values - self._mean) / self._std


def videoalign_indices(frames: int, fps: float, rate: float, count: float | None = None) -> tuple[int, ...]:
    """Return the frames that VideoAlign sees: an even number, at least 4 where there are as many, evenly spread.

    Args:
        frames: length of the clip.
        fps: its frames per second.
        rate: frames per second that the network sees.
        count: number of frames instead of a rate.
    """
    most = max(1, frames // 2 * 2)
    wanted = count if count is not None else min(max(frames / fps * rate, 4), most)
    return tuple(np.linspace(0, frames - 1, min(frames, max(2, round(wanted / 2) * 2))).round().astype(int).tolist())


def _videoalign_tensors(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the latest checkpoint: whole, or adapters and what else was trained on top of the base."""
    checkpoint = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    if (checkpoint / "model.pth").is_file():
        return read_tensors(checkpoint / "model.pth")
    trained: dict[str, torch.Tensor] = {}
    for name in ("non_lora_state_dict.pth", "adapter_model.safetensors"):
        if not (checkpoint / name).is_file():
            raise BadInput(f"{checkpoint} has neither model.pth nor {name}: put {VIDEOALIGN.source} into {folder}.")
        trained |= read_tensors(checkpoint / name)
    plain = ({plain_name(name): value for name, value in tensors.items()} for tensors in (read_tensors(base), trained))
    return next(plain) | next(plain)


@cached_per_device
def _load_videoalign(folder: Path) -> VideoAlignNetwork:
    return VideoAlignNetwork(folder)


VIDEOALIGN_REWARDS = {
    "videoalign": (0, 1, 2), "videoalign_vq": (0,), "videoalign_mq": (1,), "videoalign_ta": (2,)
}  # fmt: skip
"""Rewards of VideoAlign, and which of VQ, MQ and TA each sums."""


@dataclass(frozen=True)
class VideoAlignReward:
    """Rewards the quality of pictures (VQ), of motion (MQ), how well a text fits (TA), or their sum.

    Attributes:
        network: the network.
        name: one of ``VIDEOALIGN_REWARDS``.
        text: text of all samples; None for each sample's own.
    """

    network: VideoAlignNetwork
    name: str
    text: str | None = None
    needs: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def load(cls, name: str, folders: Mapping[str, str], text: str | None) -> VideoAlignReward:
        """Return one of ``VIDEOALIGN_REWARDS`` with the network of this machine."""
        return cls(_load_videoalign(network_folder(VIDEOALIGN, folders)), name, text, picture_needs(text))

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(self.network.score(batch, self.text)[:, list(VIDEOALIGN_REWARDS[self.name])].sum(1))

"""Published reward networks, for people who have their weights: where they are, and those of the CLIP family.

Nothing is downloaded. A network is looked for in the folder that ``rewards.options.pretrained.NAME`` or the environment
variable ``FLOWPORTRAIT_NAME`` names; without it the reward says which files it needs. CLIP and PickScore are here,
HPSv3 and VideoAlign in ``rewards.qwen2_vl``.

    clip_text       cos( image(frame), text )                          Radford et al. 2021, 2103.00020
    clip_portrait   cos( image(frame), image(portrait) )
    pickscore       exp(logit scale) · cos( image(frame), text )       Kirstain et al. 2023, 2305.01569

All are means over ``FRAMES`` frames. The text is ``rewards.options.text``, or the text of each sample
(``RewardBatch.transcript``), which generators that draw from a text have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from flowportrait.devices import cached_per_device, device_of
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.consistency import EmbeddingSimilarity
from flowportrait.rewards.face import resize_portrait
from flowportrait.rewards.interface import Score, all_valid

# --- Where networks are ---


class PublishedNetwork(NamedTuple):
    """A published network: its name in settings, what to download, and the files that its folder must have."""

    name: str
    source: str
    files: tuple[str, ...]

    @property
    def variable(self) -> str:
        """Environment variable that may name the folder."""
        return f"FLOWPORTRAIT_{self.name.upper()}"


CLIP = PublishedNetwork(
    "clip", "a CLIP model such as openai/clip-vit-large-patch14", ("config.json", "model.safetensors", "tokenizer.json")
)
PICKSCORE = PublishedNetwork(
    "pickscore", "yuvalkirstain/PickScore_v1", ("config.json", "model.safetensors", "tokenizer.json")
)


def network_folder(network: PublishedNetwork, folders: Mapping[str, str], files: Sequence[str] | None = None) -> Path:
    """Return the folder of a published network.

    Args:
        network: the network.
        folders: folders by name of the network, as in ``rewards.options.pretrained``. A network that is not in it is
            looked for in its environment variable.
        files: files or patterns that must be there; by default those of the network.

    Raises:
        BadInput: no folder is named, or a file is not in it; the sentence says what to put where.
    """
    files = network.files if files is None else files
    named = folders.get(network.name) or os.environ.get(network.variable)
    setting = f"--set rewards.options.pretrained.{network.name}=FOLDER"
    if not named:
        raise BadInput(
            f"The network {network.name} is not on this machine: put {network.source} ({', '.join(files)}) into a "
            f"folder, and name it with {setting} or in {network.variable}."
        )
    folder = Path(named)
    for name in files:
        if not any(folder.glob(name)):
            raise BadInput(f"{folder} has no {name}, which the reward needs: put {network.source} there.")
    return folder


def sample_texts(batch: RewardBatch, text: str | None) -> list[str]:
    """Return the text of every sample: the given one, or its own."""
    return [text] * len(batch) if text is not None else list(batch.transcript or ())


def picture_needs(text: str | None) -> frozenset[str]:
    """Return what a reward of pictures and texts needs: the samples' own texts only if no text is given."""
    return frozenset({"frames"} if text is not None else {"frames", "transcript"})


FRAMES = 4
"""Frames of a clip that networks for single pictures see."""


def spread_indices(frames: int, count: int = FRAMES) -> tuple[int, ...]:
    """Return the indices of at most ``count`` frames, spread over a clip from its beginning to its end."""
    return tuple(np.unique(np.linspace(0, frames - 1, min(count, frames)).round().astype(int)).tolist())


# --- CLIP and PickScore ---


class TextImageNetwork:
    """A CLIP model with its tokenizer, which embeds pictures and texts as unit vectors.

    Args:
        folder: ``config.json``, ``model.safetensors`` and the files of the tokenizer, as ``save_pretrained`` of
            transformers writes them.

    Raises:
        BadInput: transformers is not installed, or the folder holds another kind of model.
    """

    def __init__(self, folder: Path) -> None:
        transformers = require_extra("train", "transformers")
        self._images = EmbeddingSimilarity("clip", str(folder))
        self.network: Any = self._images.network
        if not hasattr(self.network, "get_text_features"):
            raise BadInput(f"{folder} holds a {type(self.network).__name__}, which embeds no text: give a CLIP model.")
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise BadInput(f"The tokenizer in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error

    @property
    def scale(self) -> float:
        """The learned factor of cosines, exp(logit scale)."""
        return float(self.network.logit_scale.exp())

    @torch.no_grad()
    def embed_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the embeddings ``[B, F, D]`` of the central squares of frames ``[B, F, 3, H, W]`` in [0, 1]."""
        height, width = frames.shape[-2:]
        top, left, side = max(0, height - width) // 2, max(0, width - height) // 2, min(height, width)
        frames = frames[..., top : top + side, left : left + side]
        return F.normalize(self._images.embed(frames.flatten(0, 1)), dim=-1).cpu().unflatten(0, frames.shape[:2])

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the embeddings ``[B, D]`` of texts, which are cut at the length that the model was trained with."""
        different = list(dict.fromkeys(texts))
        length = self.network.config.text_config.max_position_embeddings
        tokens = self._tokenizer(different, padding=True, truncation=True, max_length=length, return_tensors="pt")
        output = self.network.get_text_features(
            **{name: tokens[name].to(device_of(self.network)) for name in ("input_ids", "attention_mask")}
        )
        vectors = output if isinstance(output, torch.Tensor) else output.pooler_output
        return F.normalize(vectors, dim=-1).cpu()[[different.index(text) for text in texts]]


@cached_per_device
def _load_text_image_network(folder: Path) -> TextImageNetwork:
    return TextImageNetwork(folder)


@dataclass(frozen=True)
class TextImageReward:
    """Rewards frames that fit a text, by the cosine of a CLIP model or by PickScore.

    Attributes:
        network: the model.
        scaled: multiply the cosine by the model's learned factor, as PickScore does.
        text: text of all samples; None for each sample's own.
    """

    network: TextImageNetwork
    name: str
    scaled: bool = False
    text: str | None = None
    needs: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def clip(cls, folders: Mapping[str, str], text: str | None) -> TextImageReward:
        """Return ``clip_text``."""
        network = _load_text_image_network(network_folder(CLIP, folders))
        return cls(network, "clip_text", text=text, needs=picture_needs(text))

    @classmethod
    def pickscore(cls, folders: Mapping[str, str], text: str | None) -> TextImageReward:
        """Return ``pickscore``."""
        network = _load_text_image_network(network_folder(PICKSCORE, folders))
        return cls(network, "pickscore", scaled=True, text=text, needs=picture_needs(text))

    def __call__(self, batch: RewardBatch) -> Score:
        frames = self.network.embed_frames(batch.frames(spread_indices(batch.motion.shape[1])))
        texts = self.network.embed_texts(sample_texts(batch, self.text))
        cosine = (frames * texts[:, None]).sum(-1).mean(1)
        return all_valid(cosine * self.network.scale if self.scaled else cosine)


@dataclass(frozen=True)
class PortraitImageReward:
    """Rewards frames that look like the portrait as a whole, by the cosine of CLIP's image embeddings.

    It sees clothes, hair, light and style, where ``identity`` sees the face.
    """

    network: TextImageNetwork
    name: str = "clip_portrait"
    needs: frozenset[str] = frozenset({"frames", "portrait"})
    range: tuple[float, float] = (-1.0, 1.0)

    @classmethod
    def load(cls, folders: Mapping[str, str]) -> PortraitImageReward:
        """Return the reward with the CLIP model of this machine."""
        return cls(_load_text_image_network(network_folder(CLIP, folders)))

    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.portraits is not None
        frames = batch.frames(spread_indices(batch.motion.shape[1]))
        people = {id(portrait): portrait for portrait in batch.portraits}
        pictures = torch.stack([resize_portrait(portrait, frames.shape[-1])[0] for portrait in people.values()])
        by_person = dict(zip(people, self.network.embed_frames(pictures[:, None])[:, 0], strict=True))
        references = torch.stack([by_person[id(portrait)] for portrait in batch.portraits])
        return all_valid((self.network.embed_frames(frames) * references[:, None]).sum(-1).mean(1))

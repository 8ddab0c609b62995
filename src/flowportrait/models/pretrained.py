"""A pretrained (multimodal) language model as the backbone of a generator.

    portrait ─vision─► P tokens ┐
    sound ─audio─► features ────┴─► decoder (frozen │ LoRA │ full) ─► states

Any ``transformers`` decoder that takes embeddings works, such as Qwen3. Of Qwen2.5-Omni and Qwen3-Omni the parts of the
thinker are used. Frozen weights are not written into checkpoints: they are loaded again by the name in the config.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.errors import BadInput
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.models.backbone import GeneratorConfig
from flowportrait.models.speech_encoder import BLOCK, SILENT_MEL, TOKENS_PER_FRAME, to_whisper_mel, whisper_band_matrix
from flowportrait.training.lora import LoraSettings, insert_adapters

THINKERS = {
    "qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration",
    "qwen3_omni_moe": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
"""The class of the thinker in ``transformers`` for each model type of an Omni checkpoint."""

_WINDOW = 24
"""Frames of sound that the audio tower is given for each frame, which is the last of them: almost a second."""
_AHEAD_COLUMNS = 2
"""Mel columns after the end of a frame that belong to its window: 20 ms."""


class Foundation(NamedTuple):
    """The parts of a pretrained model that a generator uses, which are networks of ``transformers``.

    The towers of a plain decoder are None.
    """

    decoder: Any
    audio: Any
    vision: Any


def load_foundation(config: GeneratorConfig) -> Foundation:
    """Load the parts of ``config.backbone``, with the weights trainable that ``config.adapt`` names.

    Towers are always frozen.

    Raises:
        BadInput: the backbone cannot be loaded, or lacks a tower that the config asks for.
    """
    import transformers

    name = config.backbone
    dtype: Any = "auto" if torch.cuda.is_available() else torch.float32
    try:
        kind = transformers.AutoConfig.from_pretrained(name).model_type.removesuffix("_thinker")
        if kind in THINKERS:
            model = getattr(transformers, THINKERS[kind]).from_pretrained(name, dtype=dtype).model
            foundation = Foundation(model.language_model, model.audio_tower, model.visual)
        else:
            foundation = Foundation(transformers.AutoModel.from_pretrained(name, dtype=dtype), None, None)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first = str(error).splitlines()[0]
        raise BadInput(f"The backbone {name} cannot be loaded ({first}): give a folder or a hub name.") from error
    if config.front_end == "tower" and foundation.audio is None:
        raise BadInput(f"front_end=tower is not possible: {name} has no audio tower; choose whisper or mel.")
    if config.use_vision and foundation.vision is None:
        raise BadInput(f"use_vision=true is not possible: {name} has no vision tower.")
    decoder = foundation.decoder.requires_grad_(config.adapt == "full")
    # Words are never embedded, and their embedding would be the largest part of a small decoder.
    decoder.set_input_embeddings(nn.Embedding(1, decoder.config.hidden_size).requires_grad_(False))
    if config.adapt == "lora":
        # Experts of a mixture are not separate linear layers: there only the attention is adapted.
        layers = {name.rpartition(".")[2] for name, part in decoder.named_modules() if isinstance(part, nn.Linear)}
        targets = tuple(target for target in LoraSettings().targets if target in layers)
        insert_adapters(decoder, LoraSettings(config.lora_rank, 2.0 * config.lora_rank, targets), seed=0)
    return foundation


class AudioTower(nn.Module):
    """Speech features of the pretrained model's audio tower: one vector per frame, with 32 ms of look-ahead at most.

    The tower attends in both directions, so every frame is encoded in a window of its own that ends just after it. That
    can be streamed, and costs a pass of the tower over 24 frames for each frame.
    """

    tower: Any
    bands: torch.Tensor

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.register_buffer("bands", whisper_band_matrix(tower.config.num_mel_bins), persistent=False)

    @property
    def features(self) -> int:
        """Number of features per frame."""
        return self.tower.config.output_dim

    @torch.no_grad()
    def forward(self, mel: torch.Tensor, skip: int = 0) -> torch.Tensor:
        """Encode log-mel ``[B, 4T, 80]`` as features ``[B, T, features]``; ``skip`` as in ``SpeechEncoder``."""
        first = skip * BLOCK // TOKENS_PER_FRAME
        before = (_WINDOW - 1) * MELS_PER_FRAME - _AHEAD_COLUMNS
        padded = F.pad(mel, (0, 0, before, _AHEAD_COLUMNS), value=SILENT_MEL)
        padded = padded[:, first * MELS_PER_FRAME :]
        columns = _WINDOW * MELS_PER_FRAME
        windows = to_whisper_mel(padded, self.bands).unfold(1, columns, MELS_PER_FRAME)
        batch, frames = windows.shape[:2]
        together = windows.permute(2, 0, 1, 3).flatten(1).to(self.tower.dtype)
        lengths = torch.full((batch * frames,), columns, device=mel.device)
        tokens = self.tower(together, feature_lens=lengths).last_hidden_state
        return tokens.view(batch, frames, -1, self.features)[:, :, -1].float()


class VisionTower(nn.Module):
    """The pretrained model's vision tower, which encodes a portrait as tokens of the decoder."""

    tower: Any

    def __init__(self, tower: Any, side: int) -> None:
        super().__init__()
        from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

        from flowportrait.judges.local_model import OmniInputs

        config = tower.config
        self.tower = tower.requires_grad_(False)
        self.layout = OmniInputs(
            None, None, config.patch_size, config.spatial_merge_size, config.temporal_patch_size,
            tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD), lambda columns: columns, side,
        )  # fmt: skip

    @torch.no_grad()
    def forward(self, crops: list[np.ndarray]) -> torch.Tensor:
        """Encode portrait crops ``[S, S, 3]`` uint8 as tokens ``[B, P, hidden]``."""
        inputs = [self.layout.patches(crop[None]) for crop in crops]
        weight = next(self.tower.parameters())
        patches = torch.cat([patches for patches, _ in inputs]).to(weight.device, weight.dtype)
        grid = torch.tensor([grid for _, grid in inputs], device=weight.device)
        return self.tower(patches, grid_thw=grid).pooler_output.float().unflatten(0, (len(crops), -1))

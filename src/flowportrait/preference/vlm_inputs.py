"""What a multimodal LLM reads of a clip, with one token per score at the place where it may know no more and no less.

    user:  V…V  text  <motion> <expression>   A…A  <sync>
           frames                             speech: heard (Omni), or its log-mel as a picture (VL)

A decoder looks back only, so the first two tokens cannot know the sound, and the third knows both (VideoReward, arXiv
2501.13918, puts its text-free tokens before the prompt likewise). Rows are padded on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flowportrait.judge.omni import OmniInputs
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import level, log_mel
from flowportrait.preference.clips import WatchedClip
from flowportrait.preference.dataset import Aspect

TEXT = "A person talks. Judge the motion, then the expression; then hear the speech and judge the lips."
ORDER: tuple[Aspect, ...] = ("motion", "expression", "sync")
"""Order of the tokens; the sound comes before the last."""
_TEXT, _IMAGE, _VIDEO = 0, 1, 2


@dataclass(frozen=True)
class Reader:
    """Clips to the tensors of one family. layout: sizes of patches and the tokenizer; ids: the config's own tokens;
    first_score: id of the first of three score tokens, after the model's own vocabulary."""

    family: str
    layout: OmniInputs
    ids: Any
    first_score: int

    @property
    def hears(self) -> bool:
        """Whether the family takes sound as sound."""
        return "omni" in self.family

    def __call__(self, clips: Sequence[WatchedClip]) -> dict[str, torch.Tensor]:
        videos = [self.layout.patches(clip.frames) for clip in clips]
        tensors: dict[str, torch.Tensor] = {
            "pixel_values_videos": torch.cat([patches for patches, _ in videos]),
            "video_grid_thw": torch.tensor([grid for _, grid in videos]),
        }
        if self.hears or self.family == "qwen2_5_vl":
            seconds = torch.tensor([self.layout.temporal / clip.fps for clip in clips])
            tensors["video_second_per_grid" if self.hears else "second_per_grid_ts"] = seconds
        if self.hears:
            sounds, counts = self._heard(clips)
        else:
            sounds, counts = self._drawn(clips)
        rows = []
        for clip, (_, grid), count in zip(clips, videos, counts, strict=True):
            rows.append(self._row(grid, self.layout.temporal / clip.fps, count))
        return tensors | sounds | self._padded(rows)

    def _heard(self, clips: Sequence[WatchedClip]) -> tuple[dict[str, torch.Tensor], list[int]]:
        mel = self.layout.features(
            [clip.audio for clip in clips], sampling_rate=SAMPLE_RATE, return_attention_mask=True, return_tensors="pt",
            truncation=False, padding="longest",
        )  # fmt: skip
        mask = mel["attention_mask"]
        counts = self.layout.audio_tokens(mask.sum(-1)).tolist()
        return {"input_features": mel["input_features"], "feature_attention_mask": mask.long()}, counts

    def _drawn(self, clips: Sequence[WatchedClip]) -> tuple[dict[str, torch.Tensor], list[int]]:
        """Time to the right, pitch upwards, loud is bright."""
        pictures = []
        for clip in clips:
            mel = ((log_mel(level(clip.audio)).T.flip(0) + 1) / 4 * 255).clamp(0, 255).byte().numpy()
            pictures.append(self.layout.patches(np.repeat(mel[None, ..., None], 3, -1)))
        counts = [int(np.prod(grid)) // self.layout.merge**2 for _, grid in pictures]
        grids = torch.tensor([grid for _, grid in pictures])
        return {"pixel_values": torch.cat([patches for patches, _ in pictures]), "image_grid_thw": grids}, counts

    def _row(self, grid: tuple[int, int, int], seconds: float, sound: int) -> list[tuple[int, int]]:
        """(id, kind) of every token."""
        ids, per_picture = self.ids, grid[1] * grid[2] // self.layout.merge**2
        video = [(ids.video_token_id, _VIDEO)]
        if self.family == "qwen3_vl":
            seen: list[tuple[int, int]] = []
            for number in range(grid[0]):
                seen += self._words(f"<{seconds * (number + 0.5):.1f} seconds>")
                seen += self._framed(video * per_picture)
        else:
            seen = self._framed(video * (grid[0] * per_picture))
        if self.hears:
            tokens = self._words(self.layout.tokenizer.audio_bos_token)
            tokens += [(ids.audio_token_id, _TEXT)] * sound + self._words(self.layout.tokenizer.audio_eos_token)
        else:
            tokens = self._framed([(ids.image_token_id, _IMAGE)] * sound)
        motion, expression, sync = ((self.first_score + place, _TEXT) for place in range(len(ORDER)))
        return [
            *self._words("<|im_start|>user\n"), *seen, *self._words(TEXT), motion, expression, *tokens, sync,
        ]  # fmt: skip

    def _words(self, text: str) -> list[tuple[int, int]]:
        return [(token, _TEXT) for token in self.layout.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def _framed(self, tokens: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return [(self.ids.vision_start_token_id, _TEXT), *tokens, (self.ids.vision_end_token_id, _TEXT)]

    def _padded(self, rows: Sequence[list[tuple[int, int]]]) -> dict[str, torch.Tensor]:
        longest, pad = max(map(len, rows)), (self.layout.tokenizer.pad_token_id, _TEXT)
        whole = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        found = {"input_ids": whole[..., 0], "attention_mask": mask}
        return found if self.hears else found | {"mm_token_type_ids": whole[..., 1].int()}

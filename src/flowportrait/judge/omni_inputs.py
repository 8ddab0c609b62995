"""Evidence as the tensors that Qwen's Omni thinkers read: patches of video, log-mel of sound, and ids that hold their
places.

    <|im_start|>user  V…V  A…A  text <|im_end|> <|im_start|>assistant …      V: one id per merged patch of two frames
                                                                           A: one id per audio token

Patches are laid out as in the models' own processor, [grid t, h / m, w / m, m, m] × [colour, time, p, p]; it is done
here because the library's video processor needs torchvision, which this package does without. Rows are padded on the
left, so that every answer begins at the last column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from flowportrait.judge.question import Question
from flowportrait.media.audio import SAMPLE_RATE


@dataclass(frozen=True)
class Layout:
    """tokenizer and features (log-mel) of the model; patch, merge and temporal: sizes of its video patches; mean and
    std ``[3]`` of its pixels; audio_tokens: mel columns ``[N]`` to tokens; side: pixels of a video frame, rounded to
    whole patches."""

    tokenizer: Any
    features: Any
    patch: int
    merge: int
    temporal: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    audio_tokens: Callable[[torch.Tensor], torch.Tensor]
    side: int = 224

    def __call__(self, questions: Sequence[Question], opening: str = "") -> dict[str, torch.Tensor]:
        """Inputs of one batch; ``opening`` is put into the assistant's mouth."""
        shown = [question.show() for question in questions]
        videos = [self.patches(evidence.video) for evidence in shown]
        sounds = [evidence.audio for evidence in shown if len(evidence.audio)]
        tensors: dict[str, torch.Tensor] = {
            "pixel_values_videos": torch.cat([patches for patches, _ in videos]),
            "video_grid_thw": torch.tensor([grid for _, grid in videos]),
            "video_second_per_grid": torch.tensor([self.temporal / evidence.fps for evidence in shown]),
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
        heard = iter(counts)
        rows = []
        for question, evidence, (_, grid) in zip(questions, shown, videos, strict=True):
            seen = int(np.prod(grid)) // self.merge**2
            rows.append(self._ids(question, seen, next(heard) if len(evidence.audio) else 0, opening))
        return tensors | self._padded(rows)

    def patches(self, video: np.ndarray) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """``[K, H, W, 3]`` uint8 to patches ``[N, 3 · temporal · p · p]`` and the grid (t, h, w)."""
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

    def _ids(self, question: Question, seen: int, heard: int, opening: str) -> list[int]:
        t = self.tokenizer
        media = f"{t.vision_bos_token}{t.video_token * seen}{t.vision_eos_token}"
        if heard:
            media += f"{t.audio_bos_token}{t.audio_token * heard}{t.audio_eos_token}"
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

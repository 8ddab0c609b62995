"""One prepared clip: what training and the experts read instead of video."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


@dataclass(frozen=True)
class Clip:
    """A face clip at 25 fps with its speech at 16 kHz.

    landmarks ``[T, 478, 3]`` float32 px; blendshapes ``[T, 52]``; mouth ``[T, 48, 64]`` uint8 stabilised patches;
    size ``[2]`` frame height and width; audio ``[640 T]`` float32 in [-1, 1].
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    mouth: np.ndarray
    size: np.ndarray
    audio: np.ndarray

    def __len__(self) -> int:
        return len(self.landmarks)

    def save(self, path: Path) -> None:
        """Write as safetensors (audio as int16), under a temporary name first."""
        partial = path.with_suffix(".partial")
        tensors = {
            "landmarks": self.landmarks.astype(np.float32),
            "blendshapes": self.blendshapes.astype(np.float16),
            "mouth": self.mouth,
            "size": self.size.astype(np.int32),
            "audio": np.round(self.audio * 32767).clip(-32768, 32767).astype(np.int16),
        }
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, str(partial))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read a clip written by ``save``."""
        data = load_file(str(path))
        return cls(
            data["landmarks"],
            data["blendshapes"].astype(np.float32),
            data["mouth"],
            data["size"],
            data["audio"].astype(np.float32) / 32767,
        )

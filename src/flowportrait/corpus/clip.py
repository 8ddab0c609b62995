"""One prepared clip: what training and the experts read instead of video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from flowportrait.written import complete


@dataclass(frozen=True)
class Clip:
    """A face clip at 25 fps with its speech at 16 kHz.

    landmarks ``[T, 478, 3]`` float32 px; blendshapes ``[T, 52]``; mouth ``[T, 48, 64]`` uint8 stabilised patches;
    size ``[2]`` frame height and width; audio ``[640 T]`` float32 in [-1, 1]; speech ``[T]`` bool, and crop
    ``[3]``, left, top and side in pixels of the square that holds the head throughout: None in older corpora.
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    mouth: np.ndarray
    size: np.ndarray
    audio: np.ndarray
    speech: np.ndarray | None = None
    crop: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.landmarks)

    def save(self, path: Path) -> None:
        """Write as safetensors (audio as int16), under a temporary name first."""
        tensors = {
            "landmarks": self.landmarks.astype(np.float32),
            "blendshapes": self.blendshapes.astype(np.float16),
            "mouth": self.mouth,
            "size": self.size.astype(np.int32),
            "audio": np.round(self.audio * 32767).clip(-32768, 32767).astype(np.int16),
        }
        if self.speech is not None:
            tensors["speech"] = self.speech.astype(np.uint8)
        if self.crop is not None:
            tensors["crop"] = self.crop.astype(np.int32)
        with complete(path) as partial:
            partial.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read a clip written by ``save``, of this version or an earlier one."""
        return cls.from_bytes(path.read_bytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> Clip:
        """The clip in the bytes of a file."""
        data = load(content)
        return cls(
            data["landmarks"],
            data["blendshapes"].astype(np.float32),
            data["mouth"],
            data["size"],
            data["audio"].astype(np.float32) / 32767,
            data["speech"].astype(bool) if "speech" in data else None,
            data.get("crop"),
        )

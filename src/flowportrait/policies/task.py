"""Items for a generator, and what rewards see of its samples.

motion it made itself                  ─► rewards as they are
frames, and rewards look at a face     ─► tracked face, crop and landmarks (``reward.batch``); the item's image
                                          is the portrait, where one compares with it
frames, and rewards look at pictures   ─► the whole frames
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from flowportrait.codec.basis import MOTION_DIM
from flowportrait.flow.noise import seed_of
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.mel import MELS_PER_FRAME, SAMPLES_PER_FRAME, level, log_mel
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.policies.interface import DecodedSamples, Item
from flowportrait.policies.policy import Condition, GeneratorPolicy
from flowportrait.posttrain.rollout import Trajectory, map_tensors
from flowportrait.reward.batch import RewardBatch

WITHOUT_FACE = frozenset({"frames", "fps", "audio", "transcript", "group", "policy"})
"""Needs that can be met without looking for a face."""


class ItemBatch(NamedTuple):
    """One item per row."""

    items: list[Item]

    def select(self, rows: torch.Tensor) -> ItemBatch:
        """The rows at these indices."""
        return ItemBatch([self.items[int(row)] for row in rows])


class GeneratorTask:
    """Items drawn in a keyed order, each encoded once in a run. ``needs``: those of all rewards together."""

    regions: Mapping[str, torch.Tensor] = {}

    def __init__(self, items: Sequence[Item], needs: frozenset[str]) -> None:
        self.items = list(items)
        self.tracked = not needs <= WITHOUT_FACE
        self.compared = "portrait" in needs
        self.known: dict[str, Any] = {}
        self.sounds: dict[str, np.ndarray] = {}
        self.faces: dict[Path, Portrait] = {}

    def draw(self, groups: int, seed: int, iteration: int) -> ItemBatch:
        """A function of its arguments alone."""
        generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
        order = torch.randperm(len(self.items), generator=generator).tolist()
        return ItemBatch([self.items[order[i % len(order)]] for i in range(groups)])

    def condition(self, policy: GeneratorPolicy, prompts: ItemBatch) -> Condition:
        """What is known of the items; encoders see each item once."""
        for item in prompts.items:
            if item.id not in self.known:
                self.known[item.id] = map_tensors(lambda part: part.cpu(), policy.encode([item]))
        rows = [self.known[item.id] for item in prompts.items]
        return Condition(map_tensors(lambda *parts: torch.cat(parts).to(policy.device), *rows))

    def real(self, policy: GeneratorPolicy, prompts: ItemBatch) -> torch.Tensor | None:
        """None: items come without real clips."""
        return None

    def batch(self, policy: GeneratorPolicy, trajectory: Trajectory, prompts: ItemBatch) -> RewardBatch:
        """Finished samples as rewards see them."""
        latents = trajectory.latents.to(policy.device)
        condition = Condition(map_tensors(lambda part: part.to(policy.device), trajectory.condition.known))
        made = self.reward_batch(policy.decode(latents, condition), prompts.items)
        made.group, made.policy = trajectory.group, policy
        made.condition, made.latents = condition, latents
        return made

    def reward_batch(self, decoded: DecodedSamples, items: Sequence[Item]) -> RewardBatch:
        """Decoded samples with what is known of their items."""
        texts = [item.text for item in items]
        if decoded.motion is not None:
            sound = self.sound(items, decoded.motion.shape[1])
            return RewardBatch(decoded.motion.detach().float().cpu(), _log_mels(sound), _frame_source(decoded, None),
                               audio=torch.from_numpy(sound), transcript=texts)  # fmt: skip
        assert decoded.frames is not None, "decode returns frames or motion"
        count = max(1, round(len(decoded.frames[0]) / decoded.fps * FPS))
        sound = self.sound(items, count)
        if self.tracked:
            return RewardBatch.from_frames(decoded.frames, list(sound), decoded.fps, self.portraits(items), texts)
        still = torch.zeros(len(items), count, MOTION_DIM)
        return RewardBatch(
            still, _log_mels(sound), _frame_source(decoded, count), audio=torch.from_numpy(sound), transcript=texts
        )

    def portraits(self, items: Sequence[Item]) -> list[Portrait] | None:
        """Whose face each item is to be, where a reward compares with it and every item has an image.

        Raises:
            BadInput: an image without a face.
        """
        images = [item.image for item in items if item.image is not None]
        if not self.compared or len(images) < len(items):
            return None
        for image in images:
            if image not in self.faces:
                self.faces[image] = Portrait.from_image(read_image(image), name=str(image))
        return [self.faces[image] for image in images]

    def sound(self, items: Sequence[Item], frames: int) -> np.ndarray:
        """The speech of each item ``[B, 640 T]``, cut or followed by silence; silence where there is none."""
        result = np.zeros((len(items), frames * SAMPLES_PER_FRAME), np.float32)
        for row, item in zip(result, items, strict=True):
            if item.audio is not None:
                if item.id not in self.sounds:
                    self.sounds[item.id] = read_audio(item.audio)
                wave = self.sounds[item.id][: len(row)]
                row[: len(wave)] = wave
        return result


class FrameSource:
    """Frames that exist ``[B, T, H, W, 3]`` uint8, as a drawing; landmarks are not known."""

    def __init__(self, frames: np.ndarray) -> None:
        self._frames = frames

    def __call__(self, _: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Frames ``[B, F, 3, H, W]`` in [0, 1]."""
        return torch.from_numpy(self._frames[:, list(indices)]).permute(0, 1, 4, 2, 3).float() / 255


def _frame_source(decoded: DecodedSamples, count: int | None) -> FrameSource | None:
    """Its frames at 25 fps, ``count`` of them."""
    if decoded.frames is None:
        return None
    clips = np.stack(list(decoded.frames))
    if count is not None:
        at = (np.arange(count) * decoded.fps / FPS + 1e-6).astype(int)
        clips = clips[:, np.minimum(at, clips.shape[1] - 1)]
    return FrameSource(clips)


def _log_mels(sound: np.ndarray) -> torch.Tensor:
    columns = sound.shape[1] // SAMPLES_PER_FRAME * MELS_PER_FRAME
    return torch.stack([log_mel(level(wave))[:columns] for wave in sound])

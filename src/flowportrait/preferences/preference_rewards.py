"""Trained reward models as rewards of post-training.

    preference           Σ_d w_d · score_d of the reward model (motion and log-mel, or an LLM that watches and listens)
    preference_sync …    one dimension alone
    latent_preference    Σ_d w_d · score_d of the latent reward at σ = 0, without decoding

Scores are standardised on real footage and capped at ``SCORE_CAP``: a larger advantage over real footage is not
credible, and a policy could only gain it by exploiting the reward model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from flowportrait.errors import BadInput
from flowportrait.hub import model_folder
from flowportrait.media.video import FPS
from flowportrait.preferences.clips import MIN_CLIP_FRAMES, FramesAudioClip
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.latent_reward import LatentReward
from flowportrait.preferences.reward_model import MotionReward
from flowportrait.preferences.vlm_reward import VlmReward
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import Reward, Score, all_valid, score_with_failures

SCORE_CAP = 2.0
"""Cap of standardised scores."""
EQUAL_WEIGHTS = (1.0, 1.0, 1.0)
"""Equal weights of all dimensions."""


@dataclass(frozen=True)
class MotionPreference:
    """The reward of the small reward model, with weights in the order of ``DIMENSIONS``."""

    model: MotionReward
    weights: tuple[float, ...] = EQUAL_WEIGHTS
    name: str = "preference"
    needs: frozenset[str] = frozenset({"motion", "mel"})

    def __call__(self, batch: RewardBatch) -> Score:
        frames = batch.motion.shape[1]
        if frames < MIN_CLIP_FRAMES:
            why = Failure("too_short", f"{frames} frames, {MIN_CLIP_FRAMES} are needed")
            return score_with_failures(torch.full((len(batch),), torch.nan), dict.fromkeys(range(len(batch)), why))
        weights = torch.tensor(self.weights)
        value = self.model(batch.motion, batch.mel).cpu().clamp_max(SCORE_CAP) @ weights
        return all_valid(value, self.model.frame_scores(batch.motion, batch.mel).cpu().clamp_max(SCORE_CAP) @ weights)


@dataclass(frozen=True)
class LatentPreference:
    """The latent reward on clean latents; works in post-training only."""

    model: LatentReward
    weights: tuple[float, ...] = EQUAL_WEIGHTS
    name: str = "latent_preference"
    needs: frozenset[str] = frozenset({"policy"})

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.latents is not None
        condition = batch.condition() if callable(batch.condition) else batch.condition
        scores = self.model(batch.latents.cpu(), 0.0, condition.audio.cpu(), condition.start.cpu())
        chunks = scores.mean.cpu().clamp_max(SCORE_CAP) @ torch.tensor(self.weights)
        frames = batch.motion.shape[1]
        dense = chunks.repeat_interleave(frames // chunks.shape[1], 1) if frames % chunks.shape[1] == 0 else None
        return all_valid(chunks.mean(1), dense)


@dataclass(frozen=True)
class VlmPreference:
    """The reward of a multimodal LLM trained by ``train_vlm_reward``, which reads frames and sound of one clip."""

    model: VlmReward
    weights: tuple[float, ...] = EQUAL_WEIGHTS
    name: str = "preference"
    needs: frozenset[str] = frozenset({"frames", "audio"})

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Score:
        assert batch.audio is not None
        total = batch.motion.shape[1]
        count = min(self.model.settings.frames, total)
        indices = tuple(torch.linspace(0, total - 1, count).round().int().tolist())
        frames = (batch.frames(indices).permute(0, 1, 3, 4, 2) * 255).round().byte().cpu().numpy()
        sounds = batch.audio.cpu().numpy()
        clips = [
            FramesAudioClip(clip_frames, FPS * count / total, sound)
            for clip_frames, sound in zip(frames, sounds, strict=True)
        ]
        scores = torch.cat([self.model([clip]).cpu() for clip in clips])
        return all_valid(scores.clamp_max(SCORE_CAP) @ torch.tensor(self.weights))


def load_preference_reward(name: str, folder: Path | None) -> Reward:
    """Load a preference reward.

    Args:
        name: ``preference``, or ``preference_`` and a dimension.
        folder: folder of a trained reward model, or ``org/name`` on the Hub; the shipped one by default.

    Raises:
        BadInput: ``folder`` holds no reward model.
    """
    folder = folder and model_folder(folder)
    weights = tuple(float(name in ("preference", f"preference_{dimension}")) for dimension in DIMENSIONS)
    if folder is None:
        return MotionPreference(MotionReward.load(), weights, name)
    if (folder / "vlm.json").is_file():
        return VlmPreference(VlmReward.read(folder), weights, name)
    if not (folder / "model.safetensors").is_file():
        raise BadInput(f"No reward model in {folder}: give the folder that `flowportrait preferences train` wrote.")
    return MotionPreference(MotionReward.read(folder / "model.safetensors"), weights, name)


def load_latent_preference(folder: Path | None) -> Reward:
    """Load the latent reward from ``folder`` or the Hub; the shipped one by default."""
    model = LatentReward.load() if folder is None else LatentReward.from_pretrained(model_folder(folder))
    return LatentPreference(model)

"""The evaluation's judge of pairs: which of two videos of the same speech is better, by a model that no reward uses.

    video ─► tracks ─► motion, log-mel ─► MotionReward of the evaluation's speakers ─► sync, expression, motion

    preferred[d] = share of pairs with score difference above the tie band, ties as halves

Its network is that of the rewards' preference model, its sync expert and its pairs are not: they come from the split
``evaluation`` without GRID's man. ``MotionReward.read`` refuses its file as a reward. It reads motion and sound, no
pictures. No person has judged the pairs that it learned from: the worse clip of each is damaged by rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from flowportrait.devices import cached_per_device
from flowportrait.evaluation.motion_metrics import longest_run
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.evaluation.tracking import VideoTracks
from flowportrait.files import shipped_weights
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.preferences.clips import MIN_CLIP_FRAMES
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.reward_model import MotionReward
from flowportrait.rendering.motion_basis import MotionBasis

FILE = "model.safetensors"


@dataclass(frozen=True)
class EvaluationPreference:
    """Scores clips so that two of the same speech can be compared. It cannot be called, so that it is no reward."""

    model: MotionReward

    @classmethod
    @cached_per_device
    def load(cls) -> EvaluationPreference:
        """Load the judge that ships with the package."""
        return cls(MotionReward.read(shipped_weights("pair_judge/model.safetensors"), side="evaluation"))

    @torch.no_grad()
    def score_motion(self, motion: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
        """Return the score of each of ``DIMENSIONS`` ``[B, 3]`` for motion ``[B, T, 30]`` and log-mel ``[B, 4T, 80]``.

        They are in standard deviations of real footage of the evaluation's speakers.
        """
        return self.model(motion, mel)

    def score_tracks(self, tracked: VideoTracks) -> dict[str, float]:
        """Return the scores of a finished video by dimension; nothing where it has no sound or too few faces."""
        run = longest_run(tracked.valid)
        frames = run.stop - run.start
        if not len(tracked.audio) or frames < MIN_CLIP_FRAMES:
            return {}
        motion = MotionBasis.load().encode(tracked.landmarks[run], tracked.blendshapes[run])[0]
        audio = tracked.audio[SAMPLES_PER_FRAME * run.start : SAMPLES_PER_FRAME * run.stop]
        mel = log_mel(normalize_loudness(audio))[: MELS_PER_FRAME * frames]
        return dict(zip(DIMENSIONS, self.score_motion(motion[None], mel[None])[0].tolist(), strict=True))


def preferred_share(after: Mapping[str, float], before: Mapping[str, float], tie: float = 0.0) -> Estimate | None:
    """Return in which share of pairs ``after`` is preferred, with its interval over pairs; ties are halves.

    Args:
        after: score by clip.
        before: of the system that it is compared with, by clip.
        tie: difference of scores up to which a pair is a tie.

    Returns:
        The share; None where no clip has both scores.
    """
    margins = np.array([after[name] - before[name] for name in after if name in before])
    if not len(margins):
        return None
    return bootstrap_mean(np.where(np.abs(margins) <= tie, 0.5, margins > 0).astype(float))

"""What another package adds to FlowPortrait: one part of every kind, each announced in ``pyproject.toml``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from flowportrait.adapters.policy import DecodedSamples, Item
from flowportrait.judges.build import JudgeSettings
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.questions import JudgeKind
from flowportrait.judges.rubric import CLIP_ASPECTS, Aspect
from flowportrait.judges.verdicts import AspectVerdict, Verdict
from flowportrait.media.audio import Sound
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid


class QuietMotion:
    """A reward: the less a face moves from frame to frame, the better."""

    name = "quiet_motion"
    needs = frozenset({"motion"})
    range = (-10.0, 0.0)

    def __call__(self, batch: RewardBatch) -> Score:
        """Return minus the mean speed of the motion coefficients."""
        return all_valid(-batch.motion.diff(dim=1).abs().mean((1, 2)).clamp_max(10.0))


def loud_speech(batch: RewardBatch) -> torch.Tensor:
    """Return the mean log-mel energy ``[B]``: a reward may be a plain function."""
    return batch.mel.mean((1, 2))


class BrightnessJudge:
    """A judge: the brighter a clip, the better in every aspect."""

    kind: JudgeKind = "measured panel"
    name = "brightness"
    fingerprint = "brightness 1"

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings

    def judge(self, clips: Sequence[JudgedClip], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """Return grades from 1 (black) to 5 (white)."""
        verdicts = []
        for clip in clips:
            grade = 1 + 4 * float(clip.frames.mean()) / 255
            found = {aspect: AspectVerdict(aspect, grade, grade, "measurement") for aspect in aspects or CLIP_ASPECTS}
            verdicts.append(Verdict(clip.name, clip.generator, self.name, self.kind, found))
        return verdicts


class Hum:
    """A voice: hums half a second for every sentence, at a pitch in Hz."""

    def __init__(self, pitch: str = "120") -> None:
        self.pitch = float(pitch)

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"hum:{self.pitch:g}"

    def supports(self, language: str) -> bool:
        """Return True: every language is hummed alike."""
        return True

    def synthesize(self, sentence: str) -> Sound:
        """Return half a second of hum."""
        time = np.arange(8000) / 16_000
        wave = sum(np.sin(2 * np.pi * self.pitch * k * time) / k for k in (1, 2, 3, 4))
        return Sound((0.2 * np.asarray(wave, np.float32))[None], 16_000, "mono")


class Drift(nn.Module):
    """A generator of motion that knows of its prompts only how long their texts are."""

    shape = (25, 30)

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Linear(30, 30)
        nn.init.constant_(self.layer.weight, 0.01 * scale)
        nn.init.zeros_(self.layer.bias)

    def encode(self, items: Sequence[Item]) -> tuple[torch.Tensor]:
        """One number for each item."""
        return (torch.tensor([[float(len(item.text))] for item in items]),)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, known: tuple[torch.Tensor]) -> torch.Tensor:
        """v ``[B, 25, 30]``."""
        return self.layer(x + 0.01 * known[0][:, None])

    def decode(self, x: torch.Tensor, known: tuple[torch.Tensor]) -> DecodedSamples:
        """The latents are the motion."""
        return DecodedSamples(motion=x)


def calm() -> Any:
    """A recipe of somebody else's method: flow-grpo with a stage that turns every score round."""
    from collections.abc import Mapping
    from dataclasses import dataclass

    from flowportrait.rl.config import PostTrainConfig
    from flowportrait.rl.recipes.card import Card
    from flowportrait.rl.rollout import Trajectory
    from flowportrait.rl.stages import Stage

    @dataclass(frozen=True)
    class Opposite(Stage):
        strength: float = 1.0

        def adjust_scores(self, scores: Mapping[str, Score], trajectory: Trajectory) -> Mapping[str, Score]:
            return {name: score._replace(value=-self.strength * score.value) for name, score in scores.items()}

    return Card(
        recipe=PostTrainConfig("calm", stages=(Opposite(),)),
        source="somebody's paper",
        equation="as flow-grpo, of the opposite of every score",
        paper="The worst is the best.",
        verified="Nowhere.",
        reading="All of it.",
        why={"stages": "the method"},
    )

"""Clips that are given to learn from, in the place of one's own.

    pairs     ● ○      what somebody preferred (``pairs.jsonl``): per aspect 1, 0, or ½ each for a tie
    rated     ●        single clips and their points, 1 to 5
    damaged   ● ○      real clips, and the same out of time: shifted, warped, swapped (SyncDPO, 2605.12179)

A given clip is a trajectory of which only the end is known, and its scores come with it. Credit, objective and roles
then treat it as any rollout; objectives that need the way to a sample (ratios of transitions) cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch

from flowportrait.config import at_least
from flowportrait.corpus.motion_set import MotionClip
from flowportrait.corruption import corruptions
from flowportrait.errors import BadInput
from flowportrait.flow.noise import seed_of
from flowportrait.generator.arflow import ARFlow, Condition
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.posttrain.collect import Batch
from flowportrait.posttrain.task import encode_after, latent_regions
from flowportrait.posttrain.trajectory import finished
from flowportrait.preference.made_pairs import DIMENSIONS, FRAMES, NOT_JUDGED, PairMaker
from flowportrait.preference.pairs import ASPECTS
from flowportrait.reward.interface import Score, all_valid

DAMAGES = corruptions("motion")


@dataclass(frozen=True)
class Given:
    clips: Literal["pairs", "rated", "damaged"] = "pairs"
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ASPECTS, 1.0))
    """Aspect → how much it counts."""
    damages: tuple[str, ...] = ("shift", "time-warp", "swapped segments")
    curriculum: int = 30
    """Iterations over which damage goes from coarse alone to all strengths."""

    def __post_init__(self) -> None:
        at_least(self, curriculum=1)
        for name, known in [(n, ASPECTS) for n in self.weights] + [(n, tuple(DAMAGES)) for n in self.damages]:
            if name not in known:
                raise BadInput(f"given: {name!r} is not known; choose from {', '.join(known)}.")

    @property
    def group_size(self) -> int:
        """Clips that are compared with each other."""
        return 1 if self.clips == "rated" else 2


class Family(NamedTuple):
    """S clips of one prompt, motion ``[T, 30]`` and log-mel ``[4T, 80]`` each, and their scores ``[S]`` by aspect, NaN
    where nobody judged."""

    clips: list[tuple[torch.Tensor, torch.Tensor]]
    scores: dict[str, torch.Tensor]

    @property
    def frames(self) -> int:
        """Of the shortest."""
        return min(len(motion) for motion, _ in self.clips)


class Shown(NamedTuple):
    """An iteration's G families of S clips: mel ``[G, S, 4T, 80]``; motion ``[G, S, 1 + T, 30]`` with the frame before;
    scores ``[G, S]`` by aspect."""

    mel: torch.Tensor
    motion: torch.Tensor
    scores: dict[str, torch.Tensor]

    def select(self, rows: torch.Tensor) -> Shown:
        """The families at these indices."""
        return Shown(self.mel[rows], self.motion[rows], {name: score[rows] for name, score in self.scores.items()})


Source = Callable[[int, int, int], Shown]
"""``(groups, seed, iteration) -> Shown``, a function of its arguments alone."""


def windows(families: Sequence[Family], frames: int, aspects: Sequence[str]) -> Source:
    """Windows of stated clips, the same moment of all members of a family.

    Raises:
        BadInput: none is longer than ``frames``.
    """
    usable = [family for family in families if family.frames > frames]
    if not usable:
        longest = max((family.frames for family in families), default=0)
        raise BadInput(f"No given clip has more than {frames} frames (the longest has {longest}): lower --set frames.")

    def draw(groups: int, seed: int, iteration: int) -> Shown:
        generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
        order = torch.randperm(len(usable), generator=generator).tolist()
        mels, motions, scores = [], [], []
        for place in range(groups):
            family = usable[order[place % len(usable)]]
            first = int(torch.randint(family.frames - frames, (), generator=generator))
            sound = slice((first + 1) * MELS_PER_FRAME, (first + 1 + frames) * MELS_PER_FRAME)
            motions.append(torch.stack([motion[first : first + 1 + frames] for motion, _ in family.clips]))
            mels.append(torch.stack([mel[sound] for _, mel in family.clips]))
            unknown = torch.full((len(family.clips),), torch.nan)
            scores.append([family.scores.get(aspect, unknown) for aspect in aspects])
        judged = [torch.stack(column) for column in zip(*scores, strict=True)]
        return Shown(torch.stack(mels).float(), torch.stack(motions), dict(zip(aspects, judged, strict=True)))

    return draw


def damaged(clips: Sequence[MotionClip], given: Given, frames: int) -> Source:
    """Real clips beside what damage makes of them.

    Raises:
        BadInput: ``frames`` is more than such a window has, or no clip is long enough.
    """
    if frames >= FRAMES:
        raise BadInput(f"frames={frames} is not possible with damaged clips: their windows have {FRAMES - 1} at most.")
    damages = {name: DAMAGES[name] for name in given.damages}
    PairMaker(clips, damages, 0)

    def draw(groups: int, seed: int, iteration: int) -> Shown:
        progress = min(1.0, iteration / given.curriculum)
        pairs = PairMaker(clips, damages, seed_of(seed, iteration)).draw(groups, progress)
        mel = pairs.mel[:, MELS_PER_FRAME : MELS_PER_FRAME * (1 + frames)]
        motion = torch.stack([pairs.a, pairs.b], 1)[:, :, : 1 + frames]
        scores: dict[str, torch.Tensor] = {
            dimension: score_pair(pairs.labels[:, column])
            for column, dimension in enumerate(DIMENSIONS)
            if dimension in given.weights
        }
        return Shown(mel[:, None].expand(-1, 2, -1, -1), motion, scores)

    return draw


def score_pair(labels: torch.Tensor) -> torch.Tensor:
    """Labels ``[...]`` (1 A, 0 tie, −1 B, 2 not judged) as scores of A and B ``[..., 2]``."""
    own = torch.where(labels == NOT_JUDGED, torch.nan, labels.float())
    return torch.stack([1 + own, 1 - own], -1) / 2


class GivenTask:
    """A task whose samples are there already."""

    def __init__(self, source: Source, chunk: int) -> None:
        self.source = source
        self.regions: Mapping[str, torch.Tensor] = latent_regions(chunk)

    def draw(self, groups: int, seed: int, iteration: int) -> Shown:
        return self.source(groups, seed, iteration)

    def condition(self, policy: ARFlow, shown: Shown) -> Condition:
        """One row per clip: each goes on from the frame that it really followed."""
        device = next(policy.parameters()).device
        mel, start = shown.mel.flatten(0, 1), shown.motion[:, :, 0].flatten(0, 1)
        return policy.condition(mel.to(device), start=start.to(device))

    def show(self, policy: ARFlow, shown: Shown, groups: torch.Tensor) -> Batch:
        """The clips of these groups with their scores."""
        began = time.monotonic()
        motion = shown.motion.flatten(0, 1).to(next(policy.parameters()).device)
        size = shown.motion.shape[1]
        group = groups.repeat_interleave(size)
        sample = group * size + torch.arange(size).repeat(len(groups))
        trajectory = finished(self.condition(policy, shown), encode_after(policy, motion), group, sample)
        scores: dict[str, Score] = {name: all_valid(score.flatten()) for name, score in shown.scores.items()}
        return Batch(trajectory, scores, {"seconds/rollout": time.monotonic() - began, "seconds/waiting": 0.0})

"""Clips that exist already, in place of rollouts.

    pairs     ● ○      what somebody preferred (``pairs.jsonl``): a label per aspect
    rated     ●        single clips and their points, 1 to 5
    damaged   ● ○      real clips, and the same out of time: shifted, warped, swapped (SyncDPO, 2605.12179)

An offline clip is a trajectory of which only the end is known, and its scores come with it. Credit, objective and roles
then treat it as any rollout; objectives that need the steps of a sample (ratios of transitions) cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from flowportrait.config import at_least
from flowportrait.corruption import corruptions
from flowportrait.data.motion_dataset import TRAINING_SPLITS, MotionClip, load_motion
from flowportrait.errors import BadInput
from flowportrait.flow.noise import seed_of
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.models.arflow import ARFlow, Condition
from flowportrait.preferences.clips import ClipFeatures, clip_features
from flowportrait.preferences.dataset import ASPECTS, DIMENSIONS, SIDES, Aspect, PreferenceDataset, PreferencePair
from flowportrait.preferences.inspection import Inspection, training_pairs
from flowportrait.preferences.synthetic_pairs import FRAMES, DamagedPairSampler
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rl.rollout import Batch, final_samples
from flowportrait.rl.stages import IterationRollouts, Stage
from flowportrait.rl.task import encode_after, latent_regions
from flowportrait.terminal import progress, say

DAMAGES = corruptions("motion")


@dataclass(frozen=True)
class OfflineDataConfig(Stage):
    """Learn from clips that exist already instead of from rollouts; their scores come with them."""

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
                raise BadInput(f"offline_data: {name!r} is not known; choose from {', '.join(known)}.")

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], Batch]) -> Batch:
        """Return the clips of this process's groups with their scores; nothing is rolled out, unless the task has none."""
        if not hasattr(rollouts.task, "show"):
            return collect()
        with rollouts.rollout_mode():
            prompts = rollouts.prompts.select(rollouts.groups)
            batch: Batch = rollouts.task.show(rollouts.policy, prompts, rollouts.groups)
            return batch

    @property
    def group_size(self) -> int:
        """Clips that are compared with each other."""
        return 1 if self.clips == "rated" else 2


class PreferenceGroup(NamedTuple):
    """Clips of one prompt with scores.

    Attributes:
        clips: motion ``[T, 30]`` and log-mel ``[4T, 80]`` of S clips.
        scores: ``[S]`` by aspect, NaN where nobody judged.
    """

    clips: list[ClipFeatures]
    scores: dict[str, torch.Tensor]

    @property
    def frames(self) -> int:
        """Length of the shortest clip."""
        return min(len(motion) for motion, _ in self.clips)

    @classmethod
    def from_pair(cls, pair: PreferencePair[ClipFeatures]) -> PreferenceGroup:
        """Both clips of a pair, with the labels as scores."""
        scores: dict[str, torch.Tensor] = {
            aspect: score_pair(torch.tensor(label.value)) for aspect, label in pair.labels.items()
        }
        return cls(list(pair.clips), scores)


class OfflineBatch(NamedTuple):
    """G groups of S clips for one iteration.

    Attributes:
        mel: ``[G, S, 4T, 80]``.
        motion: ``[G, S, 1 + T, 30]`` with the frame before.
        scores: ``[G, S]`` by aspect.
    """

    mel: torch.Tensor
    motion: torch.Tensor
    scores: dict[str, torch.Tensor]

    def select(self, rows: torch.Tensor) -> OfflineBatch:
        """The groups at these indices."""
        scores = {name: score[rows] for name, score in self.scores.items()}
        return OfflineBatch(self.mel[rows], self.motion[rows], scores)


OfflineSource = Callable[[int, int, int], OfflineBatch]
"""``(groups, seed, iteration) -> OfflineBatch``, a function of its arguments alone."""


def window_source(groups: Sequence[PreferenceGroup], frames: int, aspects: Sequence[str]) -> OfflineSource:
    """Windows of the clips of groups, the same moment of all clips of a group.

    Raises:
        BadInput: none is longer than ``frames``.
    """
    usable = [group for group in groups if group.frames > frames]
    if not usable:
        longest = max((group.frames for group in groups), default=0)
        raise BadInput(f"No given clip has more than {frames} frames (the longest has {longest}): lower --set frames.")

    def draw(count: int, seed: int, iteration: int) -> OfflineBatch:
        generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
        order = torch.randperm(len(usable), generator=generator).tolist()
        mels, motions, scores = [], [], []
        for place in range(count):
            group = usable[order[place % len(usable)]]
            first = int(torch.randint(group.frames - frames, (), generator=generator))
            sound = slice((first + 1) * MELS_PER_FRAME, (first + 1 + frames) * MELS_PER_FRAME)
            motions.append(torch.stack([motion[first : first + 1 + frames] for motion, _ in group.clips]))
            mels.append(torch.stack([mel[sound] for _, mel in group.clips]))
            unknown = torch.full((len(group.clips),), torch.nan)
            scores.append([group.scores.get(aspect, unknown) for aspect in aspects])
        judged = [torch.stack(column) for column in zip(*scores, strict=True)]
        return OfflineBatch(torch.stack(mels).float(), torch.stack(motions), dict(zip(aspects, judged, strict=True)))

    return draw


def damaged_source(clips: Sequence[MotionClip], config: OfflineDataConfig, frames: int) -> OfflineSource:
    """Real clips beside what damage makes of them.

    Raises:
        BadInput: ``frames`` is more than such a window has, or no clip is long enough.
    """
    if frames >= FRAMES:
        raise BadInput(f"frames={frames} is not possible with damaged clips: their windows have {FRAMES - 1} at most.")
    damages = {name: DAMAGES[name] for name in config.damages}
    DamagedPairSampler(clips, damages, 0)

    def draw(count: int, seed: int, iteration: int) -> OfflineBatch:
        ramp = min(1.0, iteration / config.curriculum)
        pairs = DamagedPairSampler(clips, damages, seed_of(seed, iteration)).draw(count, ramp)
        mel = pairs.mel[:, MELS_PER_FRAME : MELS_PER_FRAME * (1 + frames)]
        motion = torch.stack([pairs.first, pairs.second], 1)[:, :, : 1 + frames]
        scores: dict[str, torch.Tensor] = {
            dimension: score_pair(pairs.labels[:, column])
            for column, dimension in enumerate(DIMENSIONS)
            if dimension in config.weights
        }
        return OfflineBatch(mel[:, None].expand(-1, 2, -1, -1), motion, scores)

    return draw


def score_pair(labels: torch.Tensor) -> torch.Tensor:
    """Values of ``Label`` ``[...]``, NaN where nobody judged, as scores of both clips ``[..., 2]``."""
    return torch.stack([labels, 1 - labels], -1)


def load_offline_task(
    config: OfflineDataConfig, frames: int, pairs: Sequence[Path], corpus: Path | None, chunk: int
) -> tuple[OfflineTask, list[Path]]:
    """The task of a recipe with offline data, and the files that it was read from.

    Args:
        config: which clips.
        frames: length of a window.
        pairs: files of preference pairs, or folders with a ``pairs.jsonl``.
        corpus: prepared corpus of real clips, for damaged ones.
        chunk: frames in a chunk of the policy.

    Raises:
        BadInput: what ``config`` asks for is not there, or cannot be learned from.
    """
    if config.clips == "damaged":
        if corpus is None:
            raise BadInput("This recipe damages real clips: give a prepared corpus with --exemplars.")
        source = damaged_source(load_motion(corpus, TRAINING_SPLITS), config, frames)
        return OfflineTask(source, chunk), [corpus / "clips.jsonl"]
    if not pairs:
        raise BadInput("This run learns from stated clips: give their pairs.jsonl with --pairs.")
    groups, files = read_groups(pairs, config)
    judged = [aspect for aspect in config.weights if any(aspect in group.scores for group in groups)]
    return OfflineTask(window_source(groups, frames, judged), chunk), files


def read_groups(paths: Sequence[Path], config: OfflineDataConfig) -> tuple[list[PreferenceGroup], list[Path]]:
    """Groups of the pairs that can be learned from, and every file that they were read from.

    Raises:
        BadInput: unreadable pairs, or nothing to learn from them.
    """

    def contested(found: Inspection) -> list[Aspect]:
        """Aspects that the clips must differ in: those that somebody decided, or all where nobody did."""
        if config.clips == "rated":
            return []
        counts = {aspect: row for aspect, row in found.counts["aspects"].items() if config.weights.get(aspect)}
        return [aspect for aspect, row in counts.items() if row["first"] or row["second"]] or list(counts)

    dataset = training_pairs(PreferenceDataset.load(*paths), contested)
    names = dataset.clip_names
    clips, unreadable = dataset.read_clips(clip_features, progress(names, len(names), "reading clips"))
    for name, why in unreadable.items():
        say(f"Left out: {name}: {why}")
    if config.clips == "rated":
        groups = rated_groups(dataset, clips)
    else:
        groups = [PreferenceGroup.from_pair(pair.with_clips(clips)) for pair in dataset.with_clips_in(clips)]
    if not groups:
        wanted = "points of a clip" if config.clips == "rated" else "a pair of readable clips"
        raise BadInput(f"Nothing to learn from: no line of {dataset.files[0]} gives {wanted}.")
    return groups, [*dataset.files, *(dataset.folder / name for name in clips)]


def rated_groups(pairs: Iterable[PreferencePair[str]], clips: Mapping[str, ClipFeatures]) -> list[PreferenceGroup]:
    """A group per clip that was given points: their mean by aspect, from whomever."""
    points: dict[str, dict[str, list[float]]] = {}
    for pair in pairs:
        for side, name in zip(SIDES, pair.clips, strict=True):
            own = points.setdefault(name, {})
            for aspect, value in pair.points.get(side, {}).items():
                own.setdefault(aspect, []).append(value)
    return [
        PreferenceGroup([clips[name]], {aspect: torch.tensor([sum(v) / len(v)]) for aspect, v in own.items()})
        for name, own in points.items()
        if own and name in clips
    ]


class OfflineTask:
    """A task with samples that exist already."""

    def __init__(self, source: OfflineSource, chunk: int) -> None:
        self.source = source
        self.regions: Mapping[str, torch.Tensor] = latent_regions(chunk)

    def draw(self, groups: int, seed: int, iteration: int) -> OfflineBatch:
        return self.source(groups, seed, iteration)

    def condition(self, policy: ARFlow, batch: OfflineBatch) -> Condition:
        """One row per clip: each goes on from the frame that it really followed."""
        device = next(policy.parameters()).device
        mel, start = batch.mel.flatten(0, 1), batch.motion[:, :, 0].flatten(0, 1)
        return policy.condition(mel.to(device), start=start.to(device))

    def show(self, policy: ARFlow, batch: OfflineBatch, groups: torch.Tensor) -> Batch:
        """The clips of these groups with their scores."""
        began = time.monotonic()
        motion = batch.motion.flatten(0, 1).to(next(policy.parameters()).device)
        size = batch.motion.shape[1]
        group = groups.repeat_interleave(size)
        sample = group * size + torch.arange(size).repeat(len(groups))
        trajectory = final_samples(self.condition(policy, batch), encode_after(policy, motion), group, sample)
        scores: dict[str, Score] = {name: all_valid(score.flatten()) for name, score in batch.scores.items()}
        return Batch(trajectory, scores, {"seconds/rollout": time.monotonic() - began, "seconds/waiting": 0.0})

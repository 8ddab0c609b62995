"""This module trains on existing clips with known scores, in place of rollouts.

    pairs     ● ○      preference pairs (``pairs.jsonl``) with a label per aspect
    rated     ●        single clips with points from 1 to 5
    damaged   ● ○      real clips, and the same clips shifted, warped or swapped in time (SyncDPO, 2605.12179)

An offline clip becomes a trajectory with a final sample but no recorded steps. Credit, objective and roles treat it
like any rollout. Objectives that need the steps of a sample (ratios of transitions) cannot use it.

The parts, in order: the stage and its settings, sources of clips, the reader of preference files, and the task.
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
from flowportrait.data.motion_dataset import TRAINING_SPLITS, MotionClip, load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.flow.noise import mix_seed
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.models.arflow import ARFlow, SpeechCondition
from flowportrait.preferences.clips import MotionMelClip, read_motion_mel
from flowportrait.preferences.dataset import ASPECTS, DIMENSIONS, SIDES, Aspect, PreferenceDataset, PreferencePair
from flowportrait.preferences.inspection import PairInspection, select_training_pairs
from flowportrait.preferences.synthetic_pairs import WINDOW_FRAMES, DamagedPairSampler
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rl.collection import ScoredRollouts
from flowportrait.rl.rollout import trajectory_of_final_samples
from flowportrait.rl.stages import IterationRollouts, Stage
from flowportrait.rl.task import encode_following_motion, latent_regions
from flowportrait.terminal import log, progress

OFFLINE_CORRUPTIONS = corruptions("motion")
"""Corruptions of motion by name."""


@dataclass(frozen=True)
class OfflineDataConfig(Stage):
    """A stage that learns from existing clips with known scores instead of from rollouts."""

    clips: Literal["pairs", "rated", "damaged"] = "pairs"
    """Which clips: preference pairs, single rated clips, or real clips with damaged copies."""
    weights: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ASPECTS, 1.0))
    """Aspect → weight."""
    damages: tuple[str, ...] = ("shift", "time-warp", "swapped segments")
    """Names of the corruptions that make damaged clips."""
    curriculum: int = 30
    """Iterations over which damage goes from strong only to all strengths."""

    def __post_init__(self) -> None:
        at_least(self, curriculum=1)
        for name, choices in [(n, ASPECTS) for n in self.weights] + [
            (n, tuple(OFFLINE_CORRUPTIONS)) for n in self.damages
        ]:
            if name not in choices:
                raise BadInput(f"offline_data: {name!r} is not known; choose from {', '.join(choices)}.")

    def collect_batch(self, rollouts: IterationRollouts, collect: Callable[[], ScoredRollouts]) -> ScoredRollouts:
        """Return the clips of this process's groups with their scores, or rollouts if the task has no clips."""
        if not hasattr(rollouts.task, "build_rollouts"):
            return collect()
        with rollouts.rollout_mode():
            prompts = rollouts.prompts.select(rollouts.groups)
            batch: ScoredRollouts = rollouts.task.build_rollouts(rollouts.policy, prompts, rollouts.groups)
            return batch

    @property
    def group_size(self) -> int:
        """Return the number of clips that are compared with each other."""
        return 1 if self.clips == "rated" else 2


# --- Sources of clips ---


class PreferenceGroup(NamedTuple):
    """The clips of one prompt with their scores.

    Attributes:
        clips: motion ``[T, 30]`` and log-mel ``[4T, 80]`` of S clips.
        scores: aspect → ``[S]``, NaN where there is no label.
    """

    clips: list[MotionMelClip]
    scores: dict[str, torch.Tensor]

    @property
    def frames(self) -> int:
        """Return the length of the shortest clip in frames."""
        return min(len(motion) for motion, _ in self.clips)

    @classmethod
    def from_pair(cls, pair: PreferencePair[MotionMelClip]) -> PreferenceGroup:
        """Return both clips of a pair, with the labels as scores."""
        scores: dict[str, torch.Tensor] = {
            aspect: labels_to_scores(torch.tensor(label.value)) for aspect, label in pair.labels.items()
        }
        return cls(list(pair.clips), scores)


class OfflineBatch(NamedTuple):
    """The clips of one iteration: G groups of S clips.

    Attributes:
        mel: log-mel ``[G, S, 4T, 80]``.
        motion: ``[G, S, 1 + T, 30]``, beginning with the frame before the clip.
        scores: aspect → ``[G, S]``.
    """

    mel: torch.Tensor
    motion: torch.Tensor
    scores: dict[str, torch.Tensor]

    def select(self, rows: torch.Tensor) -> OfflineBatch:
        """Return the groups at these indices."""
        scores = {name: score[rows] for name, score in self.scores.items()}
        return OfflineBatch(self.mel[rows], self.motion[rows], scores)


OfflineSource = Callable[[int, int, int], OfflineBatch]
"""A pure function ``(groups, seed, iteration) -> OfflineBatch``."""


def clip_window_source(groups: Sequence[PreferenceGroup], frames: int, aspects: Sequence[str]) -> OfflineSource:
    """Return a source of windows of the groups' clips, at the same time in all clips of a group.

    Raises:
        BadInput: no clip is longer than ``frames``.
    """
    usable = [group for group in groups if group.frames > frames]
    if not usable:
        longest = max((group.frames for group in groups), default=0)
        raise BadInput(f"No given clip has more than {frames} frames (the longest has {longest}): lower --set frames.")

    def draw(count: int, seed: int, iteration: int) -> OfflineBatch:
        generator = torch.Generator().manual_seed(mix_seed(seed, iteration, 0))
        order = torch.randperm(len(usable), generator=generator).tolist()
        mels, motions, scores = [], [], []
        for position in range(count):
            group = usable[order[position % len(usable)]]
            first = int(torch.randint(group.frames - frames, (), generator=generator))
            mel_window = slice((first + 1) * MELS_PER_FRAME, (first + 1 + frames) * MELS_PER_FRAME)
            motions.append(torch.stack([motion[first : first + 1 + frames] for motion, _ in group.clips]))
            mels.append(torch.stack([mel[mel_window] for _, mel in group.clips]))
            missing = torch.full((len(group.clips),), torch.nan)
            scores.append([group.scores.get(aspect, missing) for aspect in aspects])
        by_aspect = [torch.stack(column) for column in zip(*scores, strict=True)]
        return OfflineBatch(torch.stack(mels).float(), torch.stack(motions), dict(zip(aspects, by_aspect, strict=True)))

    return draw


def damaged_clip_source(clips: Sequence[MotionClip], config: OfflineDataConfig, frames: int) -> OfflineSource:
    """Return a source of pairs of a real clip and a damaged copy of it.

    Raises:
        BadInput: ``frames`` is more than a window of damaged clips has, or no clip is long enough.
    """
    if frames >= WINDOW_FRAMES:
        raise BadInput(
            f"frames={frames} is not possible with damaged clips: their windows have {WINDOW_FRAMES - 1} at most."
        )
    damages = {name: OFFLINE_CORRUPTIONS[name] for name in config.damages}
    DamagedPairSampler(clips, damages, 0)

    def draw(count: int, seed: int, iteration: int) -> OfflineBatch:
        ramp = min(1.0, iteration / config.curriculum)
        pairs = DamagedPairSampler(clips, damages, mix_seed(seed, iteration)).draw(count, ramp)
        mel = pairs.mel[:, MELS_PER_FRAME : MELS_PER_FRAME * (1 + frames)]
        motion = torch.stack([pairs.first, pairs.second], 1)[:, :, : 1 + frames]
        scores: dict[str, torch.Tensor] = {
            dimension: labels_to_scores(pairs.labels[:, column])
            for column, dimension in enumerate(DIMENSIONS)
            if dimension in config.weights
        }
        return OfflineBatch(mel[:, None].expand(-1, 2, -1, -1), motion, scores)

    return draw


def labels_to_scores(labels: torch.Tensor) -> torch.Tensor:
    """Return the scores ``[..., 2]`` of both clips from values of ``Label`` ``[...]``, NaN where there is no label."""
    return torch.stack([labels, 1 - labels], -1)


# --- Reading preference files ---


def load_offline_task(
    config: OfflineDataConfig, frames: int, pairs: Sequence[Path], corpus: Path | None, chunk: int
) -> tuple[OfflineTask, list[Path]]:
    """Return the task of a recipe with offline data, and the files that it was read from.

    Args:
        config: which clips to use.
        frames: length of a window.
        pairs: files of preference pairs, or folders with a ``pairs.jsonl``.
        corpus: prepared corpus of real clips, for damaged ones.
        chunk: frames in a chunk of the policy.

    Raises:
        BadInput: the data that ``config`` needs are missing, or nothing can be learned from them.
    """
    if config.clips == "damaged":
        if corpus is None:
            raise BadInput("This recipe damages real clips: give a prepared corpus with --exemplars.")
        source = damaged_clip_source(load_motion_clips(corpus, TRAINING_SPLITS), config, frames)
        return OfflineTask(source, chunk), [corpus / "clips.jsonl"]
    if not pairs:
        raise BadInput("This run learns from stated clips: give their pairs.jsonl with --pairs.")
    groups, files = read_preference_groups(pairs, config)
    labelled = [aspect for aspect in config.weights if any(aspect in group.scores for group in groups)]
    return OfflineTask(clip_window_source(groups, frames, labelled), chunk), files


def read_preference_groups(
    paths: Sequence[Path], config: OfflineDataConfig
) -> tuple[list[PreferenceGroup], list[Path]]:
    """Return the groups of all pairs that can be learned from, and every file that they were read from.

    Raises:
        BadInput: the pairs cannot be read, or nothing can be learned from them.
    """

    def required_aspects(inspection: PairInspection) -> list[Aspect]:
        """Return the aspects in which clips must differ: those with a decided label, or all if there is none."""
        if config.clips == "rated":
            return []
        counts = {aspect: row for aspect, row in inspection.counts["aspects"].items() if config.weights.get(aspect)}
        return [aspect for aspect, row in counts.items() if row["first"] or row["second"]] or list(counts)

    dataset = select_training_pairs(PreferenceDataset.load(*paths), required_aspects)
    names = dataset.clip_names
    clips, unreadable = dataset.read_clips(read_motion_mel, progress(names, len(names), "reading clips"))
    for name, why in unreadable.items():
        log(f"Left out: {name}: {why}")
    if config.clips == "rated":
        groups = group_rated_clips(dataset, clips)
    else:
        groups = [PreferenceGroup.from_pair(pair.with_clips(clips)) for pair in dataset.filter_by_clips(clips)]
    if not groups:
        needed = "points of a clip" if config.clips == "rated" else "a pair of readable clips"
        raise BadInput(f"Nothing to learn from: no line of {dataset.files[0]} gives {needed}.")
    return groups, [*dataset.files, *(dataset.folder / name for name in clips)]


def group_rated_clips(
    pairs: Iterable[PreferencePair[str]], clips: Mapping[str, MotionMelClip]
) -> list[PreferenceGroup]:
    """Return one group per rated clip, with its mean points over all raters by aspect."""
    points: dict[str, dict[str, list[float]]] = {}
    for pair in pairs:
        for side, name in zip(SIDES, pair.clips, strict=True):
            ratings = points.setdefault(name, {})
            for aspect, value in pair.points.get(side, {}).items():
                ratings.setdefault(aspect, []).append(value)
    return [
        PreferenceGroup([clips[name]], {aspect: torch.tensor([sum(v) / len(v)]) for aspect, v in ratings.items()})
        for name, ratings in points.items()
        if ratings and name in clips
    ]


# --- The task ---


class OfflineTask:
    """A task that returns existing clips in place of rollouts."""

    def __init__(self, source: OfflineSource, chunk: int) -> None:
        self.source = source
        self.regions: Mapping[str, torch.Tensor] = latent_regions(chunk)

    def draw(self, groups: int, seed: int, iteration: int) -> OfflineBatch:
        return self.source(groups, seed, iteration)

    def condition(self, policy: ARFlow, batch: OfflineBatch) -> SpeechCondition:
        """Return the condition with one row per clip. Each clip starts from the frame that really preceded it."""
        device = next(policy.parameters()).device
        mel, start = batch.mel.flatten(0, 1), batch.motion[:, :, 0].flatten(0, 1)
        return policy.condition(mel.to(device), start=start.to(device))

    def build_rollouts(self, policy: ARFlow, batch: OfflineBatch, groups: torch.Tensor) -> ScoredRollouts:
        """Return the clips of these groups with their scores."""
        started = time.monotonic()
        motion = batch.motion.flatten(0, 1).to(next(policy.parameters()).device)
        size = batch.motion.shape[1]
        group = groups.repeat_interleave(size)
        sample = group * size + torch.arange(size).repeat(len(groups))
        trajectory = trajectory_of_final_samples(
            self.condition(policy, batch), encode_following_motion(policy, motion), group, sample
        )
        scores: dict[str, Score] = {name: all_valid(score.flatten()) for name, score in batch.scores.items()}
        return ScoredRollouts(
            trajectory, scores, {"seconds/rollout": time.monotonic() - started, "seconds/waiting": 0.0}
        )

"""How often the evaluation's judge of pairs names the better clip of an unseen speaker, by kind of damage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tools.sync_clips import SyncClip
from tools.train_pair_judge import motion_clips, speaker_clips

from benchmarks.drawing import generate_motion
from benchmarks.material import load_or_make, use_one_thread
from benchmarks.preferences import DAMAGES, signs, tie_thresholds
from benchmarks.record import Record
from benchmarks.room import mean_over_speakers
from flowportrait.commands.options import OptionalPath
from flowportrait.config import override
from flowportrait.corruption import MOTION_CORRUPTIONS
from flowportrait.data.motion_dataset import MotionClip
from flowportrait.evaluation.pair_judge import FILE, EvaluationPreference
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.pipelines.animator import Animator
from flowportrait.preferences.clips import PreferenceBatch
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.reward_model import MotionReward
from flowportrait.preferences.synthetic_pairs import DamagedPairSampler
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.terminal import progress

JUDGE, REWARD, COSINE, COIN = "judge of pairs", "reward model", "sync expert of rewards, cosine", "coin"
Scores = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Scores ``[B, 3]`` of motion ``[B, T, 30]`` and log-mel ``[B, 4T, 80]``."""


@dataclass(frozen=True, kw_only=True)
class PairJudgeOptions:
    """Measure how often the evaluation's judge of pairs names the better clip of an unseen speaker.

    Pairs of intact and damaged motion by kind of damage, real and generated motion damaged, and pairs in which the
    better one is not certain: real against generated, six denoising steps against one. Beside the judge stand the
    reward model of the same design, the reward's sync expert, and a coin, which must have half. Intervals are over
    speakers. Tie bands come from the judge's own training speakers.
    """

    data: Path
    """Footage with split.tsv."""
    work: Path
    """Folder of prepared clips and generated motion; what is there is kept."""
    judge: OptionalPath = None
    """Folder of a judge that tools.train_pair_judge wrote; the shipped one by default."""
    clips: int = 6
    """Most videos of an unseen speaker."""
    pairs: int = 840
    """Pairs of learned and of unseen damage."""
    few_steps: int = 1
    """Denoising steps of the worse clip of the last comparison."""


@torch.no_grad()
def pair_judge(options: PairJudgeOptions, record: Record) -> None:
    """Add accuracies on damage and the shares of the open comparisons."""
    use_one_thread()
    judge = EvaluationPreference.load() if options.judge is None else EvaluationPreference(
        MotionReward.read(options.judge / FILE, side="evaluation")
    )  # fmt: skip
    expert, coin = MotionSyncExpert.load(), torch.Generator().manual_seed(0)
    scorers: dict[str, Scores] = {
        JUDGE: judge.score_motion,
        REWARD: MotionReward.load(),
        COSINE: lambda motion, mel: expert.score(motion, mel)[1][:, None].expand(-1, 3),
        COIN: lambda motion, mel: torch.rand(len(motion), 3, generator=coin),
    }
    unseen = speaker_clips(options.data, options.work, "dev", options.clips)
    real, training = motion_clips(unseen), motion_clips(
        speaker_clips(options.data, options.work, "evaluation", 45)
    )  # fmt: skip
    record.note(f"{len(real)} clips of {len({clip.speaker for clip in real})} unseen speakers.")
    generated = load_or_make(options.work / "generated.pt", lambda: generate(unseen, None))
    calibration = DamagedPairSampler(training, MOTION_CORRUPTIONS, 77).draw(options.pairs)
    bands = {
        name: tie_thresholds(
            scores(calibration.first, calibration.mel) - scores(calibration.second, calibration.mel), calibration.labels
        )
        for name, scores in scorers.items()
    }
    for seed, (test, damages) in enumerate(DAMAGES.items(), 1):
        for clips, title in ((real, test), (with_motion(real, generated), f"{test} of generated motion")):
            pairs = DamagedPairSampler(clips, damages, seed).draw(options.pairs)
            speakers = [clips[place].speaker for place, _ in pairs.origins]
            add_damage(record, pairs, speakers, scorers, bands, title)
    add_open(record, "real above generated", real, with_motion(real, generated), scorers)
    few = load_or_make(options.work / f"generated-{options.few_steps}.pt", lambda: generate(unseen, options.few_steps))
    both = with_motion(real, generated), with_motion(real, few)
    add_open(record, f"six steps above {options.few_steps}", *both, scorers)


def generate(clips: Sequence[SyncClip], steps: int | None) -> list[torch.Tensor]:
    """Return motion ``[T, 30]`` by ``sft`` for the sound of every clip, with its own number of steps or another."""
    animator = Animator.from_pretrained("sft")
    if steps is not None:
        animator.generator.config = override(animator.generator.config, [f"steps={steps}"])
    found = [generate_motion(animator, clip.audio, seed) for seed, clip in enumerate(progress(clips, len(clips)))]
    return [motion[: len(clip)] for motion, clip in zip(found, clips, strict=True)]


def with_motion(clips: Sequence[MotionClip], motions: Sequence[torch.Tensor]) -> list[MotionClip]:
    """Return the clips with other motion for the same sound."""
    return [replace(clip, motion=motion) for clip, motion in zip(clips, motions, strict=True)]


def add_damage(
    record: Record, pairs: PreferenceBatch, speakers: Sequence[str], scorers: dict[str, Scores],
    bands: dict[str, torch.Tensor], test: str,
) -> None:  # fmt: skip
    """Add accuracies on damaged pairs: on the hurt dimension, with ties, and of the judge by kind of damage."""
    truth = signs(pairs.labels)
    for name, scores in scorers.items():
        gap = scores(pairs.first, pairs.mel) - scores(pairs.second, pairs.mel)
        stated = torch.where(gap.abs() <= bands[name], 0, gap.sign())
        right = (0.5 + gap.sign() * truth / 2).numpy()
        for column, dimension in enumerate(DIMENSIONS):
            decided = (truth[:, column] != 0).numpy()
            own = [speaker for speaker, used in zip(speakers, decided, strict=True) if used]
            accuracy = mean_over_speakers(right[decided, column], own)
            record.add(name, dimension, accuracy, group=f"{test}: accuracy where the dimension is hurt")
            with_ties = (stated[:, column] == truth[:, column]).float().numpy()
            record.add(name, dimension, mean_over_speakers(with_ties, speakers), group=f"{test}: accuracy with ties")
        if name in (JUDGE, REWARD):
            for kind in dict.fromkeys(pairs.kinds):
                rows = np.array([found == kind for found in pairs.kinds])
                hurt = (truth[rows][0] != 0).numpy()
                own = [speaker for speaker, used in zip(speakers, rows, strict=True) if used]
                share = mean_over_speakers(right[rows][:, hurt].mean(1), own)
                record.add(kind, name, share, group=f"{test}: accuracy by kind")


def add_open(
    record: Record, title: str, first: Sequence[MotionClip], second: Sequence[MotionClip], scorers: dict[str, Scores]
) -> None:
    """Add in which share of clips the first motion scores above the second, with the same sound."""
    for name, scores in scorers.items():
        rows, speakers = [], []
        for one, other in zip(first, second, strict=True):
            frames = min(len(one.motion), len(other.motion))
            mel = one.mel[None, : MELS_PER_FRAME * frames].float()
            gap = scores(one.motion[None, :frames], mel) - scores(other.motion[None, :frames], mel)
            rows.append((0.5 + gap[0].sign() / 2).numpy())
            speakers.append(one.speaker)
        for column, dimension in enumerate(DIMENSIONS):
            record.add(name, dimension, mean_over_speakers(np.array(rows)[:, column], speakers), group=title)

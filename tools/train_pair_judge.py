"""Train the evaluation's judge of pairs: a preference model of motion and sound that no reward may use.

    python -m tools.train_pair_judge --data FOOTAGE --work DIR --output weights/flowportrait_weights/pair_judge

The network is that of the reward model (``preferences.reward_model``), and so is the training: intact clips against
damaged ones, from coarse to subtle. Its sync expert and all else learn from speakers of the split ``evaluation`` alone,
without GRID's man, whom the rewards know. The file carries a mark by which ``MotionReward.read`` refuses it as a
reward. Both parts keep a checkpoint in the working folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from tools.sync_clips import EVALUATION_LEFT_OUT, ClipMaker, SyncClip, footage_videos
from tools.sync_expert_data import LONGEST, PIECE, ExpertClip
from tools.train_sync_expert import ExpertConfig, ExpertTraining, count_delays, expert_side, fit_expert

from flowportrait.data.motion_dataset import MotionClip, motion_style
from flowportrait.errors import BadInput
from flowportrait.evaluation.pair_judge import FILE
from flowportrait.files import write_json
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.preferences.reward_model import MotionRewardTrainingConfig, train_motion_reward
from flowportrait.rendering.motion_basis import LOWER_FACE
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.terminal import log

LISTENER = "listener.safetensors"
"""The sync expert, in the working folder."""


@dataclass(frozen=True)
class PairJudgeConfig:
    """How the judge of pairs is trained."""

    data: Path
    """Footage with split.tsv."""
    work: Path
    """Folder of prepared clips, of the sync expert and of checkpoints; what is there is kept."""
    output: Path
    """Folder of the weights and of a record of the training."""
    clips: int = 45
    """Most videos of a speaker."""
    listener_steps: int = 1500
    """Steps of the sync expert."""
    steps: int = MotionRewardTrainingConfig.steps
    """Steps of the judge."""
    seed: int = 0


def speaker_clips(data: Path, work: Path, split: str, limit: int) -> list[SyncClip]:
    """Return the clips of a split, without speakers whom the rewards know."""
    videos = [video for video in footage_videos(data, split, limit) if video.speaker not in EVALUATION_LEFT_OUT]
    return ClipMaker(work / ("clips-dev" if split == "dev" else "clips"), data).make(videos)


def motion_clips(clips: Sequence[SyncClip]) -> list[MotionClip]:
    """Return clips as material for preference pairs."""
    return [
        MotionClip(
            clip.name, clip.speaker, motion := torch.from_numpy(clip.motion),
            log_mel(normalize_loudness(clip.audio))[: MELS_PER_FRAME * len(clip)], motion_style(motion),
        )
        for clip in clips
    ]  # fmt: skip


def expert_items(clips: Sequence[SyncClip]) -> list[ExpertClip]:
    """Return clips as material for a sync expert of motion; a long one gives several items."""
    items = []
    for clip in clips:
        mel = log_mel(normalize_loudness(clip.audio))
        for start in range(0, max(1, len(clip) - PIECE + 1), LONGEST):
            part = slice(start, min(start + LONGEST, len(clip)))
            items.append(
                ExpertClip(
                    f"{clip.name}@{start}", clip.speaker, [torch.from_numpy(clip.motion[part, LOWER_FACE])],
                    mel[MELS_PER_FRAME * part.start : MELS_PER_FRAME * part.stop],
                    torch.from_numpy(clip.loudness_driven(part)),
                )
            )  # fmt: skip
    return items


def train_listener(config: PairJudgeConfig, clips: Sequence[SyncClip]) -> tuple[MotionSyncExpert, dict[str, int]]:
    """Return the sync expert, trained unless it is in the working folder, and the delays that it found."""
    path, record = config.work / LISTENER, config.work / "listener.json"
    if path.is_file() and record.is_file():
        return MotionSyncExpert.read(path), json.loads(record.read_text(encoding="utf-8"))
    settings = ExpertConfig(config.data, config.work, "reward", config.listener_steps, seed=config.seed)
    training = ExpertTraining(settings, replace(expert_side("reward"), split="evaluation"))
    fit_expert(training, expert_items(clips), config.work / "checkpoint-listener.pt", settings.realign_at)
    training.net.eval().save(path)
    delays = count_delays(training.delays)
    write_json(record, delays)
    return MotionSyncExpert.read(path), delays


def train_pair_judge(config: PairJudgeConfig) -> dict[str, object]:
    """Train the judge, write its weights and a record of the training, and return the record.

    Raises:
        BadInput: there is no footage of the evaluation's speakers.
    """
    torch.set_num_threads(1)
    clips = speaker_clips(config.data, config.work, "evaluation", config.clips)
    listener, delays = train_listener(config, clips)
    settings = MotionRewardTrainingConfig(steps=config.steps, seed=config.seed)
    model = train_motion_reward(settings, motion_clips(clips), report=_log_step, listener=listener)
    config.output.mkdir(parents=True, exist_ok=True)
    model.save(config.output / FILE, side="evaluation")
    record: dict[str, object] = {
        "sha256": hashlib.sha256((config.output / FILE).read_bytes()).hexdigest(),
        "steps": config.steps,
        "listener_steps": config.listener_steps,
        "seed": config.seed,
        "clips": len(clips),
        "minutes": round(sum(map(len, clips)) / 25 / 60, 1),
        "speakers": sorted({clip.speaker for clip in clips}),
        "delays": delays,
    }
    write_json(config.output / "training.json", record)
    return record


def _log_step(step: int, loss: float, left: float) -> None:
    log(f"step {step}: loss {loss:.3f}, {left:.0f} s left")


def main() -> None:
    """Train from the command line."""
    try:
        print(json.dumps(train_pair_judge(tyro.cli(PairJudgeConfig, description=__doc__)), indent=1))
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

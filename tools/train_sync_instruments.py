"""Train one of the further sync instruments of the evaluation, straight from footage.

    python -m tools.train_sync_instruments --data FOOTAGE --work DIR --part a --trunk finetuning_TalkSet.model
    python -m tools.train_sync_instruments --data FOOTAGE --work DIR --part b --trunk finetuning_TalkSet.model
    python -m tools.train_sync_instruments --data FOOTAGE --work DIR --part landmarks --tracker lm_model0_opt.onnx

Parts a and b are trained on from Light-ASD's trunks, on the mouths of the first and the second half of the speakers of
the split ``evaluation``; landmarks begins with random weights, on the second half. GRID's man, whose other sentences
the reward's expert knows, is left out, so that no speaker is on both sides. Part of the mouths is redrawn (two fifths
of the pixels, a third of the landmarks): the speaker's motion on a portrait of someone else. Loss, batches and
realignment are those of ``tools.train_sync_expert``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from tools.sync_clips import ClipMaker, FootageVideo, SyncClip, footage_videos, speaker_halves
from tools.sync_expert_data import LONGEST, PIECE, ExpertClip, jitter_patches
from tools.train_sync_expert import ExpertConfig, ExpertSide, ExpertTraining, count_delays, fit_expert

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.sync_experts import CHIN_POINTS, LIP_POINTS, LandmarkSyncExpert, LightASDSyncExpert
from flowportrait.files import write_json
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.terminal import progress
from flowportrait.training.joint_embedding import JointEmbedding

MIRRORED_LIPS = (52, 51, 50, 49, 48, 57, 56, 55, 54, 53, 62, 61, 60, 59, 58, 65, 64, 63)
"""For each of the points of the lips the one on the other side of the face."""


@dataclass(frozen=True)
class InstrumentConfig:
    """How one instrument is trained."""

    data: Path
    """Footage with split.tsv and london/."""
    work: Path
    """Folder of prepared clips and of the checkpoint; what is there is kept."""
    part: Literal["a", "b", "landmarks"]
    """Which instrument."""
    output: Path
    """The file of weights; a record of the training is written beside it."""
    trunk: Path | None = None
    """finetuning_TalkSet.model of Light-ASD, for a and b."""
    tracker: Path | None = None
    """lm_model0_opt.onnx of OpenSeeFace, for landmarks."""
    clips: int = 45
    """Most videos of a speaker."""
    steps: int | None = None
    """Optimiser steps; by default 500, or 1000 for landmarks."""
    seed: int = 0


def light_asd_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the trunks of Light-ASD under the names that ``LightASDSyncExpert`` has for them.

    Raises:
        BadInput: there is no such file.
    """
    if not path.is_file():
        raise BadInput(f"No network at {path}: give finetuning_TalkSet.model of Light-ASD with --trunk.")
    sides = {"model.visualEncoder.": "face.", "model.audioEncoder.": "voice."}
    return {
        new + name.removeprefix(old): value
        for name, value in torch.load(path, map_location="cpu", weights_only=True).items()
        for old, new in sides.items()
        if name.startswith(old)
    }


# --- Pixels: what the fixed blocks make of every clip is computed once -----------------------------------------------

VIEWS = (False, False, False, True, True)
"""Augmented views of each clip: whether each is the redrawn one."""


class FeatureClip(ExpertClip):
    """An item whose views hold features instead of patches: T rows of the clip's own, then T rows of a wrong mouth."""

    def __len__(self) -> int:
        return len(self.mel) // MELS_PER_FRAME


class UpperLayers(JointEmbedding):
    """The trained layers of ``LightASDSyncExpert``, which read rows of features ``[B, T, C · 35]``.

    Row t is what the fixed blocks make of frames t … t + 8; the last 8 rows are not used.
    """

    WINDOW, DIM = LightASDSyncExpert.WINDOW, LightASDSyncExpert.DIM

    def __init__(self) -> None:
        super().__init__()
        self.expert = LightASDSyncExpert()
        self.log_scale = self.expert.log_scale

    def embed_face(self, lips: torch.Tensor) -> torch.Tensor:
        """Embed rows of features."""
        rows = lips[:, : lips.shape[1] - FIXED_FRAMES].float()
        return self.expert.embed_face_features(rows.unflatten(-1, (-1, *FEATURE_SIZE)).transpose(1, 2))

    def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
        """Embed log-mel ``[B, 4T, 80]``."""
        return self.expert.embed_audio(mel)


FIXED_FRAMES = 8
"""Frames by which the fixed blocks shorten a clip."""
FEATURE_SIZE = (5, 7)
"""Height and width of their output."""


@torch.no_grad()
def feature_clip(net: LightASDSyncExpert, item: ExpertClip, rng: np.random.Generator) -> FeatureClip:
    """Return an item of features: for every view those of the augmented mouth, and of a wrong one for its sound.

    The wrong mouth follows loudness in one view and stands still in the next.
    """
    real, drawn = item.views[0], item.views[-1]
    faces, wrong = [], []
    for number, redrawn in enumerate(VIEWS):
        face = drawn if redrawn else real
        still = torch.full((len(face),), int(rng.integers(len(face))))
        faces.append(face)
        wrong.append(face[still if number % 2 else item.driven])
    with torch.autocast("cpu", torch.bfloat16):
        both = jitter_patches(torch.stack(faces + wrong), rng)
        rows = net.face_features(both).transpose(1, 2).flatten(2).half()
    rows = torch.cat([rows, rows[:, -1:].expand(-1, FIXED_FRAMES, -1)], 1)
    views = [torch.cat(pair) for pair in zip(rows[: len(VIEWS)], rows[len(VIEWS) :], strict=True)]
    frames = len(real)
    return FeatureClip(item.name, item.speaker, views, item.mel, torch.arange(frames) + frames)


def _unchanged(faces: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return faces


# --- Landmarks --------------------------------------------------------------------------------------------------------


def jitter_points(points: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return augmented points ``[B, T, 66, 2]``: mirrored, turned, scaled, and with noise of the tracker."""
    batch = len(points)
    swapped = points.clone()
    swapped[:, :, LIP_POINTS] = points[:, :, MIRRORED_LIPS]
    swapped[:, :, CHIN_POINTS] = points[:, :, CHIN_POINTS[::-1]]
    swapped[..., 0] *= -1
    points = torch.where(torch.from_numpy(rng.random((batch, 1, 1, 1)) < 0.5), swapped, points)

    def draw(std: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, std, shape)).float()

    angle = draw(0.05, batch, 1, 1)
    turn = torch.stack([torch.cat([angle.cos(), -angle.sin()], -1), torch.cat([angle.sin(), angle.cos()], -1)], -2)
    gain = torch.exp(draw(0.15, batch, 1, 1, 1) + draw(0.08, batch, 1, 1, 2))
    noise = draw(0.004, *points.shape) * torch.from_numpy(rng.uniform(0, 1.5, (batch, 1, 1, 1))).float()
    return points @ turn * gain + noise


# --- Training ---------------------------------------------------------------------------------------------------------


def _no_views(clip: FaceClip) -> list[torch.Tensor]:
    raise NotImplementedError("Clips come from footage here, not from a prepared corpus.")


PIXELS = ExpertSide("evaluation", _no_views, _unchanged, UpperLayers, steps=500, clips=16, bfloat16=True)
LANDMARKS = ExpertSide("evaluation", _no_views, jitter_points, LandmarkSyncExpert, steps=1000, clips=32)


def half_of_videos(config: InstrumentConfig) -> list[FootageVideo]:
    """Return the videos that a part learns from."""
    videos = footage_videos(config.data, "evaluation", config.clips)
    half = speaker_halves(video.speaker for video in videos)[config.part != "a"]
    return [video for video in videos if video.speaker in half]


def expert_clips(clip: SyncClip, reads_points: bool) -> list[ExpertClip]:
    """Return a clip as items of training: real views count twice, the redrawn one once."""
    real, drawn = (clip.points, clip.drawn_points) if reads_points else (clip.mouth, clip.drawn_mouth)
    views = [torch.from_numpy(view) for view in (real, real, drawn) if len(view)]
    mel = log_mel(normalize_loudness(clip.audio))
    items = []
    for start in range(0, max(1, len(clip) - PIECE + 1), LONGEST):
        part = slice(start, min(start + LONGEST, len(clip)))
        items.append(
            ExpertClip(
                f"{clip.name}@{start}", clip.speaker, [view[part] for view in views],
                mel[MELS_PER_FRAME * part.start : MELS_PER_FRAME * part.stop],
                torch.from_numpy(clip.loudness_driven(part)),
            )
        )  # fmt: skip
    return items


def train_instrument(config: InstrumentConfig) -> dict[str, object]:
    """Train an instrument, write its weights and a record of the training, and return the record.

    Raises:
        BadInput: a file that the part needs is missing.
    """
    torch.set_num_threads(1)
    is_landmarks = config.part == "landmarks"
    if is_landmarks and (config.tracker is None or not config.tracker.is_file()):
        raise BadInput("The part landmarks needs --tracker with lm_model0_opt.onnx of OpenSeeFace.")
    start = {} if is_landmarks else light_asd_weights(config.trunk or Path("finetuning_TalkSet.model"))
    maker = ClipMaker(config.work / "clips", config.data, config.tracker if is_landmarks else None, "renderer")
    clips = maker.make(half_of_videos(config))
    items = [item for clip in clips for item in expert_clips(clip, is_landmarks)]
    settings = ExpertConfig(
        config.data, config.work, config.part, config.steps, 1.5e-3 if is_landmarks else 8e-4, seed=config.seed
    )
    training = ExpertTraining(settings, LANDMARKS if is_landmarks else PIXELS)
    expert = training.net
    if isinstance(expert, UpperLayers):
        expert = expert.expert
        expert.load_state_dict(expert.state_dict() | start)
        rng = np.random.default_rng(config.seed)
        items = [feature_clip(expert, item, rng) for item in progress(items, len(items), "features")]
    checkpoint = config.work / f"checkpoint-{config.part}.pt"
    fit_expert(training, items, checkpoint, settings.realign_at)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    expert.eval().save(config.output)
    record: dict[str, object] = {
        "part": config.part,
        "sha256": hashlib.sha256(config.output.read_bytes()).hexdigest(),
        "steps": training.steps,
        "seed": config.seed,
        "clips": len(clips),
        "minutes": round(sum(map(len, clips)) / 25 / 60, 1),
        "speakers": sorted({clip.speaker for clip in clips}),
        "delays": count_delays(training.delays),
    }
    write_json(config.output.with_suffix(".json"), record)
    checkpoint.unlink(missing_ok=True)
    return record


def main() -> None:
    """Train from the command line."""
    try:
        print(json.dumps(train_instrument(tyro.cli(InstrumentConfig, description=__doc__)), indent=1))
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

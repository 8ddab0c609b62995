"""What the package's readers make of files of version 0.1, as plain values: the one place to change when a reader moves
or gives another type. The values themselves are in ``tests/data/v0.1-end/expected`` and stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowportrait.cli import main
from flowportrait.data.corpus import corpus_records, read_shard
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.judges.answers import CHOICE_FORMAT, THOUGHTS_FORMAT, grade_format, read_review
from flowportrait.judges.learning import read_labelled_pairs
from flowportrait.judges.replies import Reply, UnusableReply
from flowportrait.portraitgen.judging import STILL_SUBJECT
from flowportrait.portraitgen.still_flow import Still
from flowportrait.preferences.clips import PreferenceBatch
from flowportrait.preferences.dataset import (
    ASPECTS,
    DIMENSIONS,
    VERSION_1_LABELS,
    Label,
    PreferenceDataset,
    PreferencePair,
    Side,
)
from flowportrait.preferences.inspection import inspect_pairs
from flowportrait.preferences.reward_model import MOTION_CORRUPTIONS, load_pair_batches
from flowportrait.preferences.synthetic_pairs import DamagedPairSampler
from flowportrait.rendering.motion_files import read_motion
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.offline_data import OfflineDataConfig, PreferenceGroup, read_preference_groups

LABELS: dict[Label, str] = {label: name for name, label in VERSION_1_LABELS.items()}
"""Labels, and below sides, under the names of version 0.1."""
SIDES: dict[Side, str] = {"first": "a", "second": "b"}


def recipe(path: Path) -> PostTrainConfig:
    """The settings in a ``recipe.json``."""
    return PostTrainConfig.from_json(path)


def recipe_named(name: str) -> PostTrainConfig:
    """A recipe by its name."""
    return PostTrainConfig.from_recipe(name)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def _rounded(values: torch.Tensor) -> list[Any]:
    return [round(float(value), 4) for value in values.flatten()]


def _summary(values: torch.Tensor) -> dict[str, Any]:
    """Shape, and numbers that change when any of the values does."""
    values = values.double()
    steps = torch.linspace(0.5, 1.5, values.numel(), dtype=torch.float64).reshape(values.shape)
    return {"shape": list(values.shape), "mean": float(values.mean()), "weighted": float((values * steps).mean()),
            "spread": float(values.std())}  # fmt: skip


def checkpoint_motion(checkpoint: Path, folder: Path) -> list[list[float]]:
    """Motion ``[T, 30]`` of a checkpoint that speaks a prompt."""
    words = ["animate", "--checkpoint", str(checkpoint), "--image", "prompts/me.jpg", "--audio", "prompts/a.wav"]
    out = ["--output", str(folder / "v.mp4"), "--motion-out", str(folder / "m.json"), "--style", "plain"]
    assert main([*words, *out, "--crop", "--size", "64"]) == 0
    return [_rounded(row) for row in read_motion(folder / "m.json")]


def corpus(folder: Path) -> dict[str, Any]:
    """The index, the clips as they are learned from, and what is in the shards."""
    clips = load_motion_clips(folder, ["train"])
    packed = [one for path in sorted(folder.glob("shards/*.tar")) for one in read_shard(path)]
    return {
        "records": corpus_records(folder),
        "clips": [
            {"name": clip.name, "speaker": clip.speaker, "motion": _summary(clip.motion), "mel": _summary(clip.mel),
             "style": _rounded(clip.style)} for clip in clips
        ],
        "shards": [
            {"name": record["name"], "landmarks": list(clip.landmarks.shape),
             "audio": _summary(torch.as_tensor(clip.audio))}
            for record, clip in packed
        ],
    }  # fmt: skip


def _pair(pair: PreferencePair[str]) -> dict[str, Any]:
    return {
        "prompt": pair.prompt, "a": pair.first, "b": pair.second, "labels": _labels(pair.labels),
        "source": pair.source, "annotator": pair.annotator, "speaker": pair.speaker, "portrait": pair.portrait,
        "split": pair.split, "points": {SIDES[side]: dict(points) for side, points in pair.points.items()},
    }  # fmt: skip


def _labels(labels: Mapping[Any, Label]) -> dict[str, str]:
    return {aspect: LABELS[label] for aspect, label in labels.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    """Every pair of a file, all fields."""
    return [_pair(pair) for pair in PreferenceDataset.load(path)]


def lines_as_written(path: Path) -> list[dict[str, Any]]:
    """Every pair of a file as version 0.1 would have written it."""
    pairs = []
    for pair in lines(path):
        pair["aspects"] = pair.pop("labels")
        pairs.append({key: value for key, value in pair.items() if value})
    return pairs


def inspection(path: Path) -> dict[str, Any]:
    """The pairs to learn from, what is left out and why, the counts and the sentences."""
    found = inspect_pairs(PreferenceDataset.load(path))
    names = {label.name.lower(): name for label, name in LABELS.items()}
    counts = dict(found.counts)
    counts["aspects"] = {
        aspect: {names.get(key, key): value for key, value in row.items()} for aspect, row in counts["aspects"].items()
    }
    return {"kept": [_pair(pair) for pair in found.usable], "excluded": found.excluded, "counts": counts,
            "sentences": found.sentences}  # fmt: skip


def _groups(path: Path, config: OfflineDataConfig) -> Any:
    try:
        groups, files = read_preference_groups([path], config)
    except BadInput as error:
        return {"refused": str(error).replace(str(path.parent), "…")}
    return {"families": [_group(group) for group in groups],
            "files": sorted(str(file.relative_to(path.parent)) for file in files)}  # fmt: skip


def _group(group: PreferenceGroup) -> dict[str, Any]:
    return {
        "clips": [{"motion": _summary(clip.motion), "mel": _summary(clip.mel)} for clip in group.clips],
        "scores": {aspect: _rounded(group.scores[aspect]) for aspect in ASPECTS if aspect in group.scores},
    }


def lesson(path: Path) -> Any:
    """Pairs as post-training learns from them: clips, and a score of each by aspect."""
    return _groups(path, OfflineDataConfig(clips="pairs"))


def rated(path: Path) -> Any:
    """Single clips with the mean of their points, as post-training learns from them."""
    return _groups(path, OfflineDataConfig(clips="rated"))


def _batch(batch: PreferenceBatch) -> dict[str, Any]:
    labels = [
        {
            aspect: None if value != value else LABELS[Label(value)]
            for aspect, value in zip(DIMENSIONS, row, strict=True)
        }
        for row in batch.labels.tolist()
    ]
    points = torch.nan_to_num(batch.points, nan=-1.0)
    return {"a": _summary(batch.first), "b": _summary(batch.second), "mel": _summary(batch.mel), "labels": labels,
            "points": [[_rounded(side) for side in row] for row in points], "kinds": list(batch.kinds)}  # fmt: skip


def stated(path: Path) -> dict[str, Any]:
    """Pairs as the reward model learns from them; points that nobody gave are −1."""
    batches, unreadable = load_pair_batches(PreferenceDataset.load(path))
    return {"pairs": [_batch(batch) for batch in batches], "unread": sorted(unreadable)}


def shown_to_judges(path: Path) -> list[dict[str, Any]]:
    """Pairs as judges are asked about them."""
    return [
        {"clips": [[clip.name, list(clip.frames.shape), len(clip.audio)] for clip in pair.clips],
         "labels": _labels(pair.labels)} for pair in read_labelled_pairs(PreferenceDataset.load(path))
    ]  # fmt: skip


def pairs_made_from(folder: Path) -> dict[str, Any]:
    """Intact against damaged windows of a corpus, drawn with a seed."""
    return _batch(DamagedPairSampler(load_motion_clips(folder, ["train"]), MOTION_CORRUPTIONS, 3).draw(8, 0.5))


def reply(record: dict[str, Any]) -> dict[str, Any]:
    """What is read in a judge's reply, or of which kind the failure is."""
    given = Reply.from_dict(record["reply"])
    try:
        match record["asked"]:
            case "opinion":
                grade = grade_format(record["seconds"]).read(given)
                return {"score": grade.score, "written": grade.written_score, "expected": grade.from_logprobs,
                        "rationale": grade.rationale, "errors": [list(flaw) for flaw in grade.flaws]}  # fmt: skip
            case "review":
                scores, rationale = read_review(given, tuple(record["disputed"]))
                return {"scores": dict(scores), "rationale": rationale}
            case "choice":
                worth, rationale = CHOICE_FORMAT.read(given)
                return {"worth": worth, "rationale": rationale}
            case "still":
                picture = Still(np.zeros((1, 1, 3), np.uint8))
                grade = STILL_SUBJECT.answer(picture, record["rubric"]).read(given)
                return {"score": grade.score, "rationale": grade.rationale, "dimensions": grade.dimensions,
                        "artefacts": grade.artefacts, "unknown": grade.unknown_artefacts}  # fmt: skip
            case _:
                return {"thoughts": THOUGHTS_FORMAT.read(given)}
    except UnusableReply as error:
        return {"failure": error.failure.kind, "detail": error.failure.detail}

"""What the package's readers make of files of version 0.1, as plain values: the one place to change when a reader moves
or gives another type. The values themselves are in ``tests/data/v0.1-end/expected`` and stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from flowportrait.judge.comparing import read_choice
from flowportrait.judge.opinion import Reply, Unusable, read_opinion, read_review
from flowportrait.judge.preferring import stated_from
from flowportrait.judge.thinking import read_thoughts
from flowportrait.portraitgen.opinion import read_still
from flowportrait.posttrain.given import Family, Given
from flowportrait.posttrain.given_clips import read_families
from flowportrait.preferences.made_pairs import DIMENSIONS, PairBatch, PairMaker
from flowportrait.preferences.motion_damage import LEARNED
from flowportrait.preferences.pairs import ASPECTS, Pair, read_pairs
from flowportrait.preferences.stated_pairs import load_stated

from flowportrait.cli import main
from flowportrait.data.corpus import corpus_records, read_shard
from flowportrait.data.motion_dataset import load_motion
from flowportrait.errors import BadInput
from flowportrait.preferences.inspection import inspect_pairs
from flowportrait.rendering.motion_files import read_motion
from flowportrait.rl.config import Recipe
from flowportrait.rl.recipes import named, read_recipe

LABELS = {1: "A", 0: "tie", -1: "B", 2: None}
SCORES = {1.0: "A", 0.5: "tie", 0.0: "B"}


def recipe(path: Path) -> Recipe:
    return read_recipe(path)


def recipe_named(name: str) -> Recipe:
    return named(name)


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
    out = ["--output", str(folder / "v.mp4"), "--motion-out", str(folder / "m.json"), "--crop", "--size", "64"]
    assert main([*words, *out]) == 0
    return [_rounded(row) for row in read_motion(folder / "m.json")]


def corpus(folder: Path) -> dict[str, Any]:
    """The index, the clips as they are learned from, and what is in the shards."""
    clips = load_motion(folder, ["train"])
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


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "prompt": pair.prompt, "a": pair.a, "b": pair.b, "labels": dict(pair.aspects), "source": pair.source,
        "annotator": pair.annotator, "speaker": pair.speaker, "portrait": pair.portrait, "split": pair.split,
        "points": {side: dict(given) for side, given in pair.points.items()},
    }  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    """Every pair of a file, all fields."""
    return [_pair(pair) for pair in read_pairs(path)]


def inspection(path: Path) -> dict[str, Any]:
    """What is kept, what is left out and why, the counts and what is said."""
    found = inspect_pairs(read_pairs(path), path.parent)
    return {"kept": [_pair(pair) for pair in found.kept], "excluded": found.excluded, "counts": found.counts,
            "sentences": found.sentences}  # fmt: skip


def _families(path: Path, given: Given) -> Any:
    try:
        families, files = read_families([path], given)
    except BadInput as error:
        return {"refused": str(error).replace(str(path.parent), "…")}
    return {"families": [_family(family) for family in families],
            "files": sorted(str(file.relative_to(path.parent)) for file in files)}  # fmt: skip


def _family(family: Family) -> dict[str, Any]:
    return {
        "clips": [{"motion": _summary(motion), "mel": _summary(mel)} for motion, mel in family.clips],
        "scores": {aspect: _rounded(family.scores[aspect]) for aspect in ASPECTS if aspect in family.scores},
    }


def lesson(path: Path) -> Any:
    """Pairs as post-training learns from them: clips, and a score of each by aspect."""
    return _families(path, Given(clips="pairs"))


def rated(path: Path) -> Any:
    """Single clips with the mean of their points, as post-training learns from them."""
    return _families(path, Given(clips="rated"))


def _batch(batch: PairBatch) -> dict[str, Any]:
    labels = [dict(zip(DIMENSIONS, [LABELS[int(code)] for code in row], strict=True)) for row in batch.labels]
    points = torch.nan_to_num(batch.points, nan=-1.0)
    return {"a": _summary(batch.a), "b": _summary(batch.b), "mel": _summary(batch.mel), "labels": labels,
            "points": [[_rounded(side) for side in row] for row in points], "kinds": list(batch.kinds)}  # fmt: skip


def stated(path: Path) -> dict[str, Any]:
    """Pairs as the reward model learns from them; points that nobody gave are −1."""
    batches, unread = load_stated(read_pairs(path), path.parent)
    return {"pairs": [_batch(batch) for batch in batches], "unread": sorted(unread)}


def shown_to_judges(path: Path) -> list[dict[str, Any]]:
    """Pairs as judges are asked about them."""
    return [
        {"clips": [[clip.name, list(clip.frames.shape), len(clip.audio)] for clip in one.clips],
         "labels": dict(one.labels)} for one in stated_from(read_pairs(path), path.parent)
    ]  # fmt: skip


def pairs_made_from(folder: Path) -> dict[str, Any]:
    """Intact against damaged windows of a corpus, drawn with a seed."""
    return _batch(PairMaker(load_motion(folder, ["train"]), LEARNED, 3).draw(8, 0.5))


def reply(record: dict[str, Any]) -> dict[str, Any]:
    """What is read in a judge's reply, or of which kind the failure is."""
    said = Reply.from_dict(record["reply"])
    try:
        match record["asked"]:
            case "opinion":
                opinion = read_opinion(said, record["seconds"])
                return {"score": opinion.score, "written": opinion.written, "expected": opinion.expected,
                        "rationale": opinion.rationale, "errors": [list(flaw) for flaw in opinion.flaws]}  # fmt: skip
            case "review":
                scores, why = read_review(said, tuple(record["disputed"]))
                return {"scores": dict(scores), "rationale": why}
            case "choice":
                worth, why = read_choice(said)
                return {"worth": worth, "rationale": why}
            case "still":
                still = read_still(said, record["rubric"])
                return {"score": still.score, "rationale": still.rationale, "dimensions": still.dimensions,
                        "artefacts": still.artefacts, "unknown": still.unknown}  # fmt: skip
            case _:
                return {"thoughts": read_thoughts(said)}
    except Unusable as error:
        return {"failure": error.failure.kind, "detail": error.failure.detail}

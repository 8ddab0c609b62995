"""Reading given clips: what somebody stated (``pairs.jsonl``), or footage to damage, to a task of post-training.

A clip is a video, whose face is tracked, or a performance as ``animate --motion-out`` writes it (.json, .csv) with its
sound beside it (.wav): exact, and read at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from flowportrait.codec.motion_file import read_motion
from flowportrait.corpus.motion_set import TRAINING_SPLITS, load_motion
from flowportrait.errors import BadInput
from flowportrait.media.audio import read_audio
from flowportrait.media.mel import MELS_PER_FRAME, level, log_mel
from flowportrait.posttrain.given import Family, Given, GivenTask, damaged, score_pair, windows
from flowportrait.preference.inspection import TRAIN, Inspection, inspect_pairs, require_lesson
from flowportrait.preference.made_pairs import CODES
from flowportrait.preference.pairs import Aspect, Pair, read_together
from flowportrait.preference.stated_pairs import SIDES, clip_features
from flowportrait.terminal import progress, say

PERFORMANCES = (".json", ".csv")
Features = tuple[torch.Tensor, torch.Tensor]


def given_task(
    given: Given, frames: int, pairs: Sequence[Path], corpus: Path | None, chunk: int
) -> tuple[GivenTask, list[Path]]:
    """The task, and the files that it was read from.

    Raises:
        BadInput: what ``given`` asks for is not there, or cannot be learned from.
    """
    if given.clips == "damaged":
        if corpus is None:
            raise BadInput("This recipe damages real clips: give a prepared corpus with --exemplars.")
        return GivenTask(damaged(load_motion(corpus, TRAINING_SPLITS), given, frames), chunk), [corpus / "clips.jsonl"]
    if not pairs:
        raise BadInput("This run learns from stated clips: give their pairs.jsonl with --pairs.")
    families, files = read_families(pairs, given)
    judged = [aspect for aspect in given.weights if any(aspect in family.scores for family in families)]
    return GivenTask(windows(families, frames, judged), chunk), files


def read_families(paths: Sequence[Path], given: Given) -> tuple[list[Family], list[Path]]:
    """Families of the pairs that can be learned from, and every file that they were read from.

    Raises:
        BadInput: unreadable pairs, or nothing to learn from them.
    """
    pairs, folder = read_together(paths)
    found = inspect_pairs(pairs, folder)
    for reason, count in found.excluded.items():
        say(f"Left out: {count} pairs: {reason}.")
    lesson = [pair for pair in require_lesson(found, _in_question(found, given)) if pair.split in ("", TRAIN)]
    names = list(dict.fromkeys(name for pair in lesson for name in (pair.a, pair.b)))
    features: dict[str, Features] = {}
    for name in progress(names, len(names), "reading clips"):
        try:
            features[name] = read_clip(folder / name)
        except BadInput as error:
            say(f"Left out: {name}: {error}")
    families = rated(lesson, features) if given.clips == "rated" else paired(lesson, features)
    if not families:
        wanted = "points of a clip" if given.clips == "rated" else "a pair of readable clips"
        raise BadInput(f"Nothing to learn from: no line of {paths[0]} gives {wanted}.")
    return families, [*paths, *(folder / name for name in features)]


def _in_question(found: Inspection, given: Given) -> list[Aspect]:
    """Aspects that the clips must differ in: those that somebody decided, or all where nobody did."""
    if given.clips == "rated":
        return []
    counts = {aspect: row for aspect, row in found.counts["aspects"].items() if given.weights.get(aspect)}
    return [aspect for aspect, row in counts.items() if row["A"] or row["B"]] or list(counts)


def read_clip(path: Path) -> Features:
    """Motion ``[T, 30]`` and log-mel ``[4T, 80]``.

    Raises:
        BadInput: unreadable, silent, too short, or without a face.
    """
    if path.suffix.lower() not in PERFORMANCES:
        return clip_features(path)
    motion, mel = read_motion(path), log_mel(level(read_audio(path.with_suffix(".wav"))))
    frames = min(len(motion), len(mel) // MELS_PER_FRAME)
    return motion[:frames], mel[: MELS_PER_FRAME * frames]


def paired(pairs: Sequence[Pair], features: dict[str, Features]) -> list[Family]:
    """A family per pair: the aspects' labels as scores."""
    return [
        Family(
            [features[pair.a], features[pair.b]],
            {aspect: score_pair(torch.tensor(CODES[label])) for aspect, label in pair.aspects.items()},
        )
        for pair in pairs
        if {pair.a, pair.b} <= features.keys()
    ]


def rated(pairs: Sequence[Pair], features: dict[str, Features]) -> list[Family]:
    """A family per clip that was given points: their mean by aspect, whomever they are from."""
    points: dict[str, dict[str, list[float]]] = {}
    for pair in pairs:
        for side in SIDES:
            own = points.setdefault(getattr(pair, side), {})
            for aspect, value in pair.points.get(side, {}).items():
                own.setdefault(aspect, []).append(value)
    return [
        Family([features[name]], {aspect: torch.tensor([sum(v) / len(v)]) for aspect, v in own.items()})
        for name, own in points.items()
        if own and name in features
    ]

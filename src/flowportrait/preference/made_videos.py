"""Pairs of finished videos that need no annotator: each intact, and damaged by one corruption of the catalogue.

    strength of the k-th pair = strong + (k / last) · (mild − strong)           coarse first, subtle last

Both clips are encoded the same way, sides are drawn, and only what the corruption is known to hurt is judged. Damage to
the picture (blur, colour pumping) is no matter of sync, expression or motion: it decides ``overall`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.errors import BadInput
from flowportrait.media.face import FaceTracker, bridge
from flowportrait.media.write_video import write_video
from flowportrait.preference.pairs import ASPECTS, Aspect, Pair, write_pairs
from flowportrait.study.playable import load

MEDIA, PAIRS = "media", "pairs.jsonl"
SOURCE = "corruption"


def make_videos(
    videos: Sequence[Path],
    output: Path,
    per_video: int = 3,
    names: Sequence[str] = tuple(CORRUPTIONS),
    split: str = "",
    seed: int = 0,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, str]:
    """Write ``output/media`` and ``output/pairs.jsonl``; corruptions are taken in turn, ``per_video`` of each clip.
    Returns the videos left out, with the reason; report: called with each video that is done.

    Raises:
        BadInput: an unknown corruption, or no video can be used.
    """
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise BadInput(f"Unknown corruption '{unknown[0]}': choose from {', '.join(CORRUPTIONS)}.")
    if not names or per_video < 1:
        raise BadInput("Nothing to make: name a corruption, and at least one pair per video.")
    (output / MEDIA).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pairs: list[Pair] = []
    left_out: dict[str, str] = {}
    last = max(1, len(videos) * per_video - 1)
    for number, path in enumerate(videos):
        turn = number * per_video
        chosen = [names[(turn + extra) % len(names)] for extra in range(min(per_video, len(names)))]
        try:
            clip = _footage(path, any("landmarks" in CORRUPTIONS[name].needs for name in chosen))
            made = [
                corrupt(clip, name, strength(name, (turn + extra) / last), seed + turn + extra)
                for extra, name in enumerate(chosen)
            ]
        except BadInput as error:
            left_out[str(path)] = str(error)
            continue
        stem = f"{number:05d}"
        _write(output / MEDIA / f"{stem}.mp4", clip)
        for extra, (name, damaged) in enumerate(zip(chosen, made, strict=True)):
            file = f"{MEDIA}/{stem}-{extra}.mp4"
            _write(output / file, damaged)
            pair = Pair(
                path.stem, f"{MEDIA}/{stem}.mp4", file, dict.fromkeys(aspects_hurt(name), "A"), SOURCE,
                annotator=name, split=split,
            )  # fmt: skip
            pairs.append(pair if rng.random() < 0.5 else pair.swapped())
        report(path.name)
    if not pairs:
        raise BadInput(f"None of {len(videos)} videos can be used ({next(iter(left_out.values()))})")
    write_pairs(output / PAIRS, pairs)
    return left_out


def aspects_hurt(name: str) -> list[Aspect]:
    """Aspects of a pair that a corruption decides: those that it hurts, and ``overall``."""
    return [aspect for aspect in ASPECTS if aspect == "overall" or aspect in CORRUPTIONS[name].hurts]


def strength(name: str, progress: float) -> float:
    """Of a corruption, from strong at progress 0 to mild at 1."""
    mild, _, strong = CORRUPTIONS[name].strengths
    return strong + progress * (mild - strong)


def _footage(path: Path, with_face: bool) -> Footage:
    clip = load(path)
    if clip.audio is None:
        raise BadInput(f"{path} has no sound: nobody can say whether its lips fit.")
    if not with_face:
        return clip
    assert clip.frames is not None
    with FaceTracker() as tracker:
        faces = tracker.track(clip.frames)
    if not faces.valid.any():
        raise BadInput(f"{path} shows no face.")
    return replace(clip, landmarks=bridge(faces.landmarks, faces.valid))


def _write(path: Path, clip: Footage) -> None:
    assert clip.frames is not None
    write_video(path, iter(clip.frames), clip.audio)

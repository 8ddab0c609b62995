"""Preference pairs from a judge's scores, and from damaged videos.

    judge's scores of systems A and B ─► first if score_a − score_b > band, second if < −band, else tie
    videos ─► each intact, and damaged by one corruption of the catalogue, coarse first, subtle last

The band is the test–retest noise of the judge: how much its score changes when it sees the same clip again. In pairs of
damaged videos both clips are encoded the same way, their order is random, and only aspects that the corruption is known
to hurt are labelled. Damage to the picture (blur, colour pumping) decides ``overall`` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.errors import BadInput
from flowportrait.human_study.make import read_footage
from flowportrait.media.faces import interpolate_missing_frames
from flowportrait.media.write_video import write_video
from flowportrait.preferences.clips import track_clip_faces
from flowportrait.preferences.dataset import (
    ASPECTS,
    JUDGE_ASPECTS,
    MAX_POINTS,
    MIN_POINTS,
    PAIRS_FILE,
    Aspect,
    Label,
    PreferencePair,
    write_pairs,
)

PAIR_MEDIA_FOLDER = "media"

ScoreTable = dict[str, dict[Aspect, float]]
"""Scores from 1 to 5 by clip and aspect."""


def read_judge_scores(path: Path) -> ScoreTable:
    """Read the scores from a report of ``judge score``, or from its list of verdicts.

    A verdict is ``{"file", "aspects": {name: {"score"}}}`` (or a plain number per aspect). Aspects that could not be
    judged are left out.

    Raises:
        BadInput: the file has another format, lists a clip twice, or has a score outside 1 to 5.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{path} cannot be read as the judge's scores: give a report of `flowportrait judge score`."
        ) from error
    if isinstance(rows, dict):
        rows = rows.get("verdicts")
    if not isinstance(rows, list):
        raise BadInput(f"{path} holds no list of verdicts: give the report that `flowportrait judge score` wrote.")
    table: ScoreTable = {}
    for number, row in enumerate(rows, 1):
        is_verdict = isinstance(row, dict) and isinstance(row.get("file"), str) and isinstance(row.get("aspects"), dict)
        if not is_verdict:
            raise BadInput(f"{path}, entry {number}: a verdict has 'file' and 'aspects'.")
        name = Path(row["file"]).name
        if name in table:
            raise BadInput(f"{path}, entry {number}: {name} is listed twice; keep one verdict of each clip.")
        table[name] = _verdict_scores(row, path, number)
    return table


def _verdict_scores(row: dict[str, Any], path: Path, number: int) -> dict[Aspect, float]:
    scores: dict[Aspect, float] = {}
    for name, value in [*row["aspects"].items(), ("overall", row.get("overall"))]:
        score = value.get("score") if isinstance(value, dict) else value
        if score is None:
            continue
        if name not in JUDGE_ASPECTS:
            known = ", ".join(JUDGE_ASPECTS)
            raise BadInput(f"{path}, entry {number}: unknown aspect '{name}'; known are {known}.")
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not MIN_POINTS <= score <= MAX_POINTS:
            raise BadInput(f"{path}, entry {number}: the score {score!r} of {name} does not lie between 1 and 5.")
        scores[JUDGE_ASPECTS[name]] = float(score)
    return scores


def build_pairs_from_scores(
    a: ScoreTable, b: ScoreTable, band: float, judge: str, folders: tuple[str, str] = ("a", "b")
) -> tuple[list[PreferencePair[str]], list[str]]:
    """Make pairs of the clips that both tables score.

    Args:
        a: scores of one system.
        b: scores of another system on clips with the same names.
        band: largest difference in points that counts as a tie.
        judge: name of the judge.
        folders: folders of the clips of each table.

    Returns:
        The pairs, and the names of clips that only one table scores.

    Raises:
        BadInput: the band is negative, or the tables have no clip in common.
    """
    if not band >= 0:
        raise BadInput(f"--tie-band {band} is not possible: it must be 0 or more points.")
    common = sorted(a.keys() & b.keys())
    if not common:
        raise BadInput("The two score tables have no clip name in common: judge the same prompts with both systems.")
    pairs = []
    for name in common:
        margins = {aspect: a[name][aspect] - b[name][aspect] for aspect in a[name] if aspect in b[name]}
        if not margins:
            continue
        pairs.append(
            PreferencePair(
                prompt=Path(name).stem,
                first=f"{folders[0]}/{name}",
                second=f"{folders[1]}/{name}",
                labels={aspect: Label.from_margin(margin, band) for aspect, margin in margins.items()},
                source="judge",
                annotator=judge,
                points={"first": a[name], "second": b[name]},
                margins=margins,
            )
        )
    return pairs, sorted(a.keys() ^ b.keys())


def build_pairs_from_damage(
    videos: Sequence[Path],
    output: Path,
    per_video: int = 3,
    names: Sequence[str] = tuple(CORRUPTIONS),
    split: str = "",
    seed: int = 0,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, str]:
    """Make pairs of intact and damaged videos: write ``output/media`` and ``output/pairs.jsonl``.

    The strength of the k-th pair is ``strong + (k / last) · (mild − strong)``.

    Args:
        videos: videos of people who speak.
        output: output folder.
        per_video: number of pairs per video.
        names: corruptions, used in turn.
        split: name of the pairs' split.
        seed: random seed of the damage.
        report: called with the name of each finished video.

    Returns:
        The reason for each video that was left out.

    Raises:
        BadInput: a corruption is unknown, or no video can be used.
    """
    if unknown := [name for name in names if name not in CORRUPTIONS]:
        raise BadInput(f"Unknown corruption '{unknown[0]}': choose from {', '.join(CORRUPTIONS)}.")
    if not names or per_video < 1:
        raise BadInput("Nothing to make: name a corruption, and at least one pair per video.")
    (output / PAIR_MEDIA_FOLDER).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pairs: list[PreferencePair[str]] = []
    left_out: dict[str, str] = {}
    last = max(1, len(videos) * per_video - 1)
    for number, path in enumerate(videos):
        turn = number * per_video
        chosen = [names[(turn + extra) % len(names)] for extra in range(min(per_video, len(names)))]
        try:
            clip = _footage(path, any("landmarks" in CORRUPTIONS[name].needs for name in chosen))
            damaged_clips = [
                corrupt(clip, name, damage_strength(name, (turn + extra) / last), seed + turn + extra)
                for extra, name in enumerate(chosen)
            ]
        except BadInput as error:
            left_out[str(path)] = str(error)
            continue
        intact = f"{PAIR_MEDIA_FOLDER}/{number:05d}.mp4"
        _write(output / intact, clip)
        for extra, (name, damaged) in enumerate(zip(chosen, damaged_clips, strict=True)):
            file = f"{PAIR_MEDIA_FOLDER}/{number:05d}-{extra}.mp4"
            _write(output / file, damaged)
            labels = dict.fromkeys(aspects_hurt_by(name), Label.FIRST)
            pair = PreferencePair(path.stem, intact, file, labels, "corruption", annotator=name, split=split)
            pairs.append(pair if rng.random() < 0.5 else pair.swapped())
        report(path.name)
    if not pairs:
        raise BadInput(f"None of {len(videos)} videos can be used ({next(iter(left_out.values()))})")
    write_pairs(output / PAIRS_FILE, pairs)
    return left_out


def aspects_hurt_by(name: str) -> list[Aspect]:
    """Return the aspects of a pair that a corruption decides: those that it hurts, and ``overall``."""
    return [aspect for aspect in ASPECTS if aspect == "overall" or aspect in CORRUPTIONS[name].hurts]


def damage_strength(name: str, progress: float) -> float:
    """Return the strength of a corruption, from strong at progress 0 to mild at 1."""
    mild, _, strong = CORRUPTIONS[name].strengths
    return strong + progress * (mild - strong)


def _footage(path: Path, with_face: bool) -> Footage:
    clip = read_footage(path)
    if clip.audio is None:
        raise BadInput(f"{path} has no sound: lip sync cannot be judged.")
    if not with_face:
        return clip
    faces = track_clip_faces(path)
    if not faces.valid.any():
        raise BadInput(f"{path} shows no face.")
    return replace(clip, landmarks=interpolate_missing_frames(faces.landmarks, faces.valid))


def _write(path: Path, clip: Footage) -> None:
    assert clip.frames is not None
    write_video(path, iter(clip.frames), clip.audio)

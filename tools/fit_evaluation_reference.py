"""Measure real footage for the evaluation to compare with.

    python -m tools.fit_evaluation_reference expression --corpus DIR --data FOOTAGE --output FILE
    python -m tools.fit_evaluation_reference footage VIDEO_OR_FOLDER … --output FILE --about SENTENCE

``expression`` writes ``expression_reference.json``: quantiles of facial-action dynamics of the training speakers, by
both face networks. The tracker's points come with the corpus, those of the evaluation's own network are found in the
footage. In the same file: what held-out speakers, noise and stillness score. ``footage`` writes ``real_footage.json``:
the ground-truth row of an evaluation without real clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from flowportrait.data.corpus import Clip
from flowportrait.data.prompts import find_videos
from flowportrait.evaluation.api import measure_videos
from flowportrait.evaluation.comparison import compare_systems
from flowportrait.evaluation.metrics import METRICS
from flowportrait.evaluation.motion_metrics import (
    GROUPS,
    Reference,
    Samples,
    action_signals,
    action_signals68,
    dynamics_samples,
    ecs,
    pooled_ecs,
    reference_quantiles,
    remove_pose,
)
from flowportrait.evaluation.tracking import default_cache, face_boxes, landmarks68
from flowportrait.files import write_json
from flowportrait.media.video import iter_frames

FITTED_ON = ("reward", "evaluation")
Signals = dict[str, np.ndarray]


def fit_expression(corpus: Path, data: Path, output: Path, every: int = 1) -> None:
    """Write the reference from every ``every``-th clip of the corpus."""
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines()][::every]
    signals: dict[str, dict[str, list[Signals]]] = {n: {"train": [], "dev": []} for n in ("mediapipe", "dlib68")}
    for record in track(records, description="reading"):
        clip = Clip.load(corpus / "clips" / f"{record['name']}.safetensors")
        part = "train" if record["split"] in FITTED_ON else "dev"
        signals["mediapipe"][part].append(action_signals(remove_pose(clip.landmarks)[0]))
        outline = _outline(clip, data, record["name"])
        if outline is not None:
            signals["dlib68"][part].append(action_signals68(outline))
    found: dict[str, Any] = {"clips": {}, "check": {}, "groups": {}}
    for network, parts in signals.items():
        reference = {g: reference_quantiles([dynamics_samples(clip[g]) for clip in parts["train"]]) for g in GROUPS}
        found["groups"][network] = reference
        found["clips"][network] = {part: len(clips) for part, clips in parts.items()}
        found["check"][network] = _check(parts["dev"], reference)
    write_json(output, found, indent=None)
    print(json.dumps({"clips": found["clips"], "check": found["check"]}, indent=1))


def _outline(clip: Clip, data: Path, name: str) -> np.ndarray | None:
    """68 points ``[T, 68, 2]`` in the clip's footage, if the file is there and as long as the clip."""
    file = next((data / f"{name}{suffix}" for suffix in (".mp4", ".mpg") if (data / f"{name}{suffix}").is_file()), None)
    if file is None:
        return None
    around = face_boxes(clip.landmarks, np.isfinite(clip.landmarks[:, 0, 0]))
    frames = list(iter_frames(file))
    if len(frames) < len(clip):
        return None
    return np.array([landmarks68(f, box) for f, box in zip(frames[: len(clip)], around, strict=True)])


def _check(real: list[Signals], reference: Reference) -> dict[str, dict[str, float]]:
    """Scores of speakers that were not fitted and of negative controls, clip by clip and pooled."""
    rng = np.random.default_rng(0)
    kinds = {
        "real, other speakers": real,
        "noise with the same marginals": [{g: rng.permuted(x, axis=0) for g, x in clip.items()} for clip in real],
        "half as lively": [{g: 0.5 * x for g, x in clip.items()} for clip in real],
        "slowed to half": [{g: _slowed(x) for g, x in clip.items()} for clip in real],
        "still": [{g: np.zeros_like(x) + x.mean(0) for g, x in clip.items()} for clip in real],
    }
    halves = _halves(real)
    found = {}
    for name, clips in kinds.items():
        rows = [row["all"] for row in (ecs(clip, reference) for clip in clips) if row]
        pooled = pooled_ecs(_sampled(clips), reference)
        own = pooled_ecs(_sampled(clips[::2]), halves[1])
        found[name] = {
            "per clip": round(float(np.mean(rows)), 3),
            "pooled": round(pooled["all"], 3) if pooled else float("nan"),
            "pooled, against the other half of the same speakers": round(own["all"], 3) if own else float("nan"),
        }
    return found


def _slowed(signal: np.ndarray) -> np.ndarray:
    times = np.arange(len(signal)) / 2
    return np.stack([np.interp(times, np.arange(len(signal)), column) for column in signal.T], 1)


def _sampled(clips: list[Signals]) -> list[dict[str, Samples]]:
    return [{g: dynamics_samples(clip[g]) for g in GROUPS} for clip in clips]


def _halves(clips: list[Signals]) -> tuple[Reference, Reference]:
    one, other = (_sampled(clips[start::2]) for start in (0, 1))
    return _reference(one), _reference(other)


def _reference(half: list[dict[str, Samples]]) -> Reference:
    return {g: reference_quantiles([clip[g] for clip in half]) for g in GROUPS}


def fit_footage(videos: list[Path], output: Path, about: str = "", every: int = 1) -> None:
    """Measure real videos and write their row.

    Args:
        videos: files or folders.
        output: the file to write.
        about: one sentence on whose footage it is, and how many clips.
        every: take every n-th video.
    """
    measured = measure_videos({"real": find_videos(videos)[::every]}, default_cache(), workers=1)
    estimates = compare_systems(
        {"real": {clip: found.row for clip, found in measured.metrics["real"].items()}}
    ).estimates
    row = {
        metric.key: [e.mean, e.low, e.high, e.clips]
        for metric in METRICS
        if metric.key != "tfi_guarded" and (e := estimates["real"].get(metric.key)) is not None
    }
    write_json(output, {"about": about, "metrics": row})
    print(json.dumps(row, indent=1))


def main() -> None:
    """Fit one of the two references."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    references = parser.add_subparsers(required=True, metavar="REFERENCE")
    expression = references.add_parser("expression", help="quantiles of facial-action dynamics")
    expression.add_argument("--corpus", type=Path, required=True, help="prepared clips")
    expression.add_argument("--data", type=Path, required=True, help="the footage they were prepared from")
    expression.set_defaults(fit=fit_expression)
    footage = references.add_parser("footage", help="the ground-truth row")
    footage.add_argument("videos", type=Path, nargs="+", help="files or folders")
    footage.add_argument("--about", default="", help="one sentence on whose footage it is, and how many clips")
    footage.set_defaults(fit=fit_footage)
    for command in (expression, footage):
        command.add_argument("--output", type=Path, required=True, help="the file to write")
        command.add_argument("--every", type=int, default=1, help="take every n-th clip")
    options = vars(parser.parse_args())
    options.pop("fit")(**options)


if __name__ == "__main__":
    main()

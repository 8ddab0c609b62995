"""Measure real footage as the reference of the evaluation.

    python -m tools.fit_evaluation_reference expression --corpus DIR --data FOOTAGE --output FILE
    python -m tools.fit_evaluation_reference footage VIDEO_OR_FOLDER … --output FILE --about SENTENCE

``expression`` writes ``expression_reference.json``: quantiles of facial-action dynamics of the training speakers, by
both face networks. The landmarks of the tracker come with the corpus, those of the evaluation's own network are
detected in the footage. The file also holds the scores of held-out speakers, of noise and of still faces. ``footage``
writes ``real_footage.json``: the ground-truth row of an evaluation without real clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from flowportrait.data.corpus import FaceClip
from flowportrait.data.prompts import find_videos
from flowportrait.evaluation.comparison import compare_systems
from flowportrait.evaluation.measure_files import measure_videos
from flowportrait.evaluation.metrics import METRICS
from flowportrait.evaluation.motion_metrics import (
    ACTION_GROUPS,
    DynamicsReference,
    DynamicsSamples,
    action_signals,
    action_signals68,
    clip_ecs,
    compute_reference_quantiles,
    dynamics_samples,
    pooled_ecs,
    remove_pose,
)
from flowportrait.evaluation.tracking import default_tracks_cache, face_boxes, find_landmarks68
from flowportrait.files import write_json
from flowportrait.media.video import iter_frames

FITTED_ON = ("reward", "evaluation")
"""Splits whose speakers the reference is fitted on."""
Signals = dict[str, np.ndarray]


def fit_expression(corpus: Path, data: Path, output: Path, every: int = 1) -> None:
    """Write the expression reference of every ``every``-th clip of the corpus.

    Args:
        corpus: prepared clips.
        data: the footage that they were prepared from.
        output: the file to write.
        every: use every n-th clip.
    """
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines()][::every]
    signals: dict[str, dict[str, list[Signals]]] = {n: {"train": [], "dev": []} for n in ("mediapipe", "dlib68")}
    for record in track(records, description="reading"):
        clip = FaceClip.load(corpus / "clips" / f"{record['name']}.safetensors")
        part = "train" if record["split"] in FITTED_ON else "dev"
        signals["mediapipe"][part].append(action_signals(remove_pose(clip.landmarks)[0]))
        outline = _landmarks68(clip, data, record["name"])
        if outline is not None:
            signals["dlib68"][part].append(action_signals68(outline))
    result: dict[str, Any] = {"clips": {}, "check": {}, "groups": {}}
    for network, parts in signals.items():
        reference = {
            g: compute_reference_quantiles([dynamics_samples(clip[g]) for clip in parts["train"]])
            for g in ACTION_GROUPS
        }
        result["groups"][network] = reference
        result["clips"][network] = {part: len(clips) for part, clips in parts.items()}
        result["check"][network] = _check(parts["dev"], reference)
    write_json(output, result, indent=None)
    print(json.dumps({"clips": result["clips"], "check": result["check"]}, indent=1))


def _landmarks68(clip: FaceClip, data: Path, name: str) -> np.ndarray | None:
    """Return 68 landmarks ``[T, 68, 2]`` in the clip's footage; None if the file is missing or too short."""
    file = next((data / f"{name}{suffix}" for suffix in (".mp4", ".mpg") if (data / f"{name}{suffix}").is_file()), None)
    if file is None:
        return None
    boxes = face_boxes(clip.landmarks, np.isfinite(clip.landmarks[:, 0, 0]))
    frames = list(iter_frames(file))
    if len(frames) < len(clip):
        return None
    return np.array([find_landmarks68(f, box) for f, box in zip(frames[: len(clip)], boxes, strict=True)])


def _check(real: list[Signals], reference: DynamicsReference) -> dict[str, dict[str, float]]:
    """Return scores of held-out speakers and of negative controls, per clip and pooled."""
    rng = np.random.default_rng(0)
    kinds = {
        "real, other speakers": real,
        "noise with the same marginals": [{g: rng.permuted(x, axis=0) for g, x in clip.items()} for clip in real],
        "half as lively": [{g: 0.5 * x for g, x in clip.items()} for clip in real],
        "slowed to half": [{g: _slow_down(x) for g, x in clip.items()} for clip in real],
        "still": [{g: np.zeros_like(x) + x.mean(0) for g, x in clip.items()} for clip in real],
    }
    halves = _halves(real)
    result = {}
    for name, clips in kinds.items():
        rows = [row["all"] for row in (clip_ecs(clip, reference) for clip in clips) if row]
        pooled = pooled_ecs(_dynamics(clips), reference)
        same_speakers = pooled_ecs(_dynamics(clips[::2]), halves[1])
        result[name] = {
            "per clip": round(float(np.mean(rows)), 3),
            "pooled": round(pooled["all"], 3) if pooled else float("nan"),
            "pooled, against the other half of the same speakers": round(same_speakers["all"], 3)
            if same_speakers
            else float("nan"),
        }
    return result


def _slow_down(signal: np.ndarray) -> np.ndarray:
    times = np.arange(len(signal)) / 2
    return np.stack([np.interp(times, np.arange(len(signal)), column) for column in signal.T], 1)


def _dynamics(clips: list[Signals]) -> list[dict[str, DynamicsSamples]]:
    return [{g: dynamics_samples(clip[g]) for g in ACTION_GROUPS} for clip in clips]


def _halves(clips: list[Signals]) -> tuple[DynamicsReference, DynamicsReference]:
    one, other = (_dynamics(clips[start::2]) for start in (0, 1))
    return _reference(one), _reference(other)


def _reference(half: list[dict[str, DynamicsSamples]]) -> DynamicsReference:
    return {g: compute_reference_quantiles([clip[g] for clip in half]) for g in ACTION_GROUPS}


def fit_footage(videos: list[Path], output: Path, about: str = "", every: int = 1) -> None:
    """Measure real videos and write the ground-truth row.

    Args:
        videos: files or folders.
        output: the file to write.
        about: one sentence on whose footage it is, and how many clips.
        every: use every n-th video.
    """
    measured = measure_videos({"real": find_videos(videos)[::every]}, default_tracks_cache(), workers=1)
    estimates = compare_systems(
        {"real": {clip: result.row for clip, result in measured.metrics["real"].items()}}
    ).estimates
    row = {
        metric.key: [e.mean, e.low, e.high, e.clips]
        for metric in METRICS
        if metric.key != "tfi_guarded" and (e := estimates["real"].get(metric.key)) is not None
    }
    write_json(output, {"about": about, "metrics": row})
    print(json.dumps(row, indent=1))


def main() -> None:
    """Fit one of the two references from the command line."""
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
        command.add_argument("--every", type=int, default=1, help="use every n-th clip")
    options = vars(parser.parse_args())
    options.pop("fit")(**options)


if __name__ == "__main__":
    main()

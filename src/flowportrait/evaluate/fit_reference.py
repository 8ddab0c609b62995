"""Fit what real expression is: quantiles of facial-action dynamics of the training speakers.

    python -m flowportrait.evaluate.fit_reference --corpus DIR --data FOOTAGE --output expression_reference.json

Both face networks are measured: the tracker's points come with the corpus, those of the evaluation's own network are
found in the footage. In the same file: what held-out speakers, noise and stillness score.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.progress import track

from flowportrait.corpus.clip import Clip
from flowportrait.evaluate import points68
from flowportrait.evaluate.expression import Reference, Samples, dynamics, ecs, pooled_ecs, quantiles
from flowportrait.evaluate.signals import GROUPS, actions, actions68, pose_free
from flowportrait.media.video import iter_frames
from flowportrait.written import write_json

FITTED_ON = ("reward", "evaluation")
Signals = dict[str, np.ndarray]


def fit(corpus: Path, data: Path, output: Path, every: int = 1) -> None:
    """Write the reference from every ``every``-th clip of the corpus."""
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines()][::every]
    signals: dict[str, dict[str, list[Signals]]] = {n: {"train": [], "dev": []} for n in ("mediapipe", "dlib68")}
    for record in track(records, description="reading"):
        clip = Clip.load(corpus / "clips" / f"{record['name']}.safetensors")
        part = "train" if record["split"] in FITTED_ON else "dev"
        signals["mediapipe"][part].append(actions(pose_free(clip.landmarks)[0]))
        outline = _outline(clip, data, record["name"])
        if outline is not None:
            signals["dlib68"][part].append(actions68(outline))
    found: dict[str, Any] = {"clips": {}, "check": {}, "groups": {}}
    for network, parts in signals.items():
        reference = {g: quantiles([dynamics(clip[g]) for clip in parts["train"]]) for g in GROUPS}
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
    around = points68.boxes(clip.landmarks, np.isfinite(clip.landmarks[:, 0, 0]))
    frames = list(iter_frames(file))
    if len(frames) < len(clip):
        return None
    return np.array([points68.points(f, box) for f, box in zip(frames[: len(clip)], around, strict=True)])


def _check(real: list[Signals], reference: Reference) -> dict[str, dict[str, float]]:
    """What speakers that were not fitted score, and what must lose, clip by clip and pooled."""
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
    return [{g: dynamics(clip[g]) for g in GROUPS} for clip in clips]


def _halves(clips: list[Signals]) -> tuple[Reference, Reference]:
    one, other = (_sampled(clips[start::2]) for start in (0, 1))
    return _reference(one), _reference(other)


def _reference(half: list[dict[str, Samples]]) -> Reference:
    return {g: quantiles([clip[g] for clip in half]) for g in GROUPS}


if __name__ == "__main__":
    tyro.cli(fit)

"""In how many pairs a finished video is preferred to the supervised model's of the same speech, and by whom.

    python benchmarks/preferred.py VIDEOS --output FILE [--against sft] [--systems rl …]

    VIDEOS/SYSTEM/CLIP.mp4, as ``heldout.py`` leaves them        share = (won + ½ · cannot tell) / pairs
    FILE   grades of every video, read again if they are there; shares by system, for ``results.py --preferred``

Two judges that measure: the measured panel's grades (1 to 5, one cannot tell within ``NO_OPINION_BAND``), and the
reward model
that was learned from damage (no ties). Both belong to the rewards' side, neither paid for what ships
but for the sync expert in both, and nobody knows how often people agree with them: a share says which way they lean.
Intervals are bootstrapped over clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.judges.learning import NO_OPINION_BAND
from flowportrait.judges.measured_panel import MeasuredPanel
from flowportrait.judges.rubric import ASPECT_WEIGHTS, CLIP_ASPECTS
from flowportrait.media.audio import read_audio
from flowportrait.media.video import iter_frames
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.reward_model import MotionReward
from flowportrait.rewards.batch import RewardBatch

Grades = Mapping[str, Mapping[str, float]]
_OUT = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--against", default="sft")
    parser.add_argument("--systems", nargs="+", help="default: all that are there")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = given.systems or sorted(path.name for path in given.videos.iterdir() if path.name != given.against)
    graded: dict[str, dict[str, dict[str, float]]] = {}
    if given.output.is_file():
        graded = json.loads(given.output.read_text())["grades"]
    judges = MeasuredPanel(), MotionReward.load()
    for name in (given.against, *names):
        known = graded.setdefault(name, {})
        left = [path for path in sorted((given.videos / name).glob("*.mp4")) if path.stem not in known]
        for path in track(left, name, console=_OUT):
            known[path.stem] = grades(path, *judges)
    shares = {name: {key: share(graded[name], graded[given.against], key) for key in KEYS} for name in names}
    given.output.write_text(json.dumps({"grades": graded, "shares": shares}) + "\n")
    for name, own in shares.items():
        told = (f"{key} {mean:.0%} ({low:.0%} … {high:.0%})" for key, (mean, low, high) in own.items())
        print(name, *told, sep=" · ")


def grades(path: Path, panel: MeasuredPanel, model: MotionReward) -> dict[str, float]:
    """The panel's grade of every aspect and the model's score of every dimension, those that there are."""
    batch = RewardBatch.from_frames([np.stack(list(iter_frames(path)))], [read_audio(path)])
    findings = panel.measure(batch, [False])[0]
    found = {f"panel {aspect}": finding.score for aspect, finding in findings.items() if finding.score is not None}
    if len(found) == len(CLIP_ASPECTS):
        found["panel"] = sum(found[f"panel {aspect}"] * ASPECT_WEIGHTS[aspect] for aspect in CLIP_ASPECTS)
    with torch.no_grad():
        scores = model(batch.motion, batch.mel)[0].tolist()
    return found | {f"model {name}": score for name, score in zip(DIMENSIONS, scores, strict=True)} | {
        "model": sum(scores)
    }  # fmt: skip


KEYS = ("panel", *(f"panel {aspect}" for aspect in CLIP_ASPECTS), "model", *(f"model {name}" for name in DIMENSIONS))


def share(ours: Grades, theirs: Grades, key: str) -> tuple[float, float, float]:
    """Of the pairs won, ties as halves, with its interval."""
    pairs = [name for name in ours if key in ours[name] and key in theirs.get(name, {})]
    margins = np.array([ours[name][key] - theirs[name][key] for name in pairs])
    won = np.where(np.abs(margins) <= (NO_OPINION_BAND if key.startswith("panel") else 0), 0.5, margins > 0)
    found = bootstrap_mean(won.astype(float))
    return found.mean, found.low, found.high


if __name__ == "__main__":
    main()

"""Where the supervised checkpoint fails worst, and what post-training did there: ``docs/results/failures.jpg``.

    python benchmarks/failures.py --corpus CORPUS [--checkpoints sft rl] [--clips 24] [--output docs/results]

Speech of speakers that nothing was trained on, performed on ``skimage.data.astronaut()``, measured on finished mp4.
Shown are the clips with the worst sync of the first checkpoint and the one that the second made worse than any other,
eight moments each, and above them what the evaluation measured.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from arena import SIZE
from figures import SYNC
from material import choice_clips as test_clips
from over_runs import number
from rich.console import Console
from rich.progress import track
from skimage.data import astronaut

from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.renderer import MotionCodec

WORST, MOMENTS, TILE, STRIP = 2, 8, 144, 20
SHOWN = {SYNC: "sync", "ler": "LER", "tfi": "TFI", "head_range": "head", "gaze_std": "gaze"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--checkpoints", nargs=2, default=["sft", "rl"])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    codec = MotionCodec(Portrait.from_image(astronaut(), SIZE, "the astronaut"))
    clips = test_clips(given.corpus, given.clips)
    rows: dict[str, dict[str, MetricRow]] = {name: {} for name in given.checkpoints}
    frames: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in given.checkpoints}
    for name in given.checkpoints:
        animator = Animator.from_pretrained(name)
        for index, (stem, clip) in enumerate(track(list(clips.items()), name, console=Console(stderr=True))):
            motion = torch.cat(list(animator.motion(clip.audio, seed=index)))
            frames[name][stem] = list(codec.decode(motion))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "clip.mp4"
                write_video(path, frames[name][stem], clip.audio)
                rows[name][stem] = measure_video(path).row
    before, after = ({stem: number(row, SYNC) or 0.0 for stem, row in rows[name].items()} for name in given.checkpoints)
    worst = sorted(before, key=lambda stem: before[stem])[:WORST]
    spoilt = min((stem for stem in after if stem not in worst), key=lambda stem: after[stem] - before[stem])
    sheet = np.vstack([
        strip(f"{title}: {Path(name).name}", frames[name][stem], rows[name][stem])
        for title, stem in [*((f"worst {i + 1}", stem) for i, stem in enumerate(worst)), ("made worse", spoilt)]
        for name in given.checkpoints
    ])  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    partial = given.output / ".failures.jpg"
    cv2.imwrite(str(partial), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    os.replace(partial, given.output / "failures.jpg")


def strip(title: str, frames: list[np.ndarray], row: MetricRow) -> np.ndarray:
    """Eight moments side by side under what was measured."""
    known = {word: value for key, word in SHOWN.items() if (value := number(row, key)) is not None}
    told = ", ".join(f"{word} {value:.3g}" for word, value in known.items())
    label = np.full((STRIP, MOMENTS * TILE, 3), 255, np.uint8)
    cv2.putText(label, f"{title}   {told}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (60, 60, 60), 1, cv2.LINE_AA)
    chosen = [frames[place] for place in np.linspace(2, len(frames) - 2, MOMENTS).astype(int)]
    small = [cv2.resize(frame, (TILE, TILE), interpolation=cv2.INTER_AREA) for frame in chosen]
    return np.vstack([label, np.hstack(small)])


if __name__ == "__main__":
    main()

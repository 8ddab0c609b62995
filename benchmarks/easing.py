"""Do chunks show where they meet? Before and after ``rendering/motion_filters.py``, beside the motion of real people.

    python benchmarks/easing.py --corpus CORPUS --data FOOTAGE --output DIR [--checkpoints sft rl] [--shares 0 0.15]

Sentences of ``dev`` speakers, without those of the headline table. Of motion: acceleration (second difference, in
standard deviations) of lips and lids at the two frames beside a border and at the two inside a chunk; real motion has
no borders, and shows what is left between the phases by chance. Of finished video, drawn on the portraits: LSE-C, TFI
and mouth amplitude by the evaluation; changes are paired with the first share, 95 % intervals by bootstrap over clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from arena import SIZE
from material import choice_clips as test_clips
from rich.progress import track

from flowportrait.data.corpus import FaceClip
from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import BLINK, LOWER_FACE, MotionBasis
from flowportrait.rendering.renderer import MotionCodec

Figures = dict[str, np.ndarray]

SHOWN = {"sync_in_time_short": "LSE-C", "tfi": "TFI", "mouth_amplitude": "amplitude"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoints", nargs="+", default=["sft", "rl"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.0, 0.15])
    parser.add_argument("--clips", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    clips = test_clips(given.corpus, given.clips)
    images = sorted(path for path in (given.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), SIZE, path.name)) for path in images]
    basis = MotionBasis.load()
    real = [basis.encode(clip.landmarks, clip.blendshapes)[0] for clip in clips.values()]
    show("real", real, finished(given.output / "real", real, clips, codecs))
    for name in given.checkpoints:
        first: Figures = {}
        for share in given.shares:
            animator = Animator.from_pretrained(name)
            animator.generator.config = replace(animator.generator.config, ease=share)
            takes = [torch.cat(list(animator.motion(clip.audio, seed=i))) for i, clip in enumerate(clips.values())]
            figures = finished(given.output / f"{name}_{share:g}", takes, clips, codecs)
            show(f"{name} {share:g}", takes, figures, first)
            first = first or figures


def finished(
    folder: Path, takes: Sequence[torch.Tensor], clips: dict[str, FaceClip], codecs: list[MotionCodec]
) -> Figures:
    """Figures of finished videos, a value per clip; files that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[float]] = {key: [] for key in SHOWN}
    jobs = list(enumerate(zip(clips.items(), takes, strict=True)))
    for index, ((name, clip), motion) in track(jobs, description=folder.name):
        path = folder / f"{name}.mp4"
        if not path.is_file():
            write_video(path, codecs[index % len(codecs)].decode(motion), clip.audio)
        row = measure_video(path).row
        for key, values in found.items():
            value = row.get(key)
            values.append(np.nan if value is None else float(value))
    return {key: np.array(values) for key, values in found.items()}


def show(name: str, takes: Sequence[torch.Tensor], figures: Figures, first: Figures | None = None) -> None:
    """Print a row."""
    parts = [f"{name:10s}"]
    for what, part in (("lips", LOWER_FACE), ("lids", BLINK)):
        beside, inside = bends([take[:, part] for take in takes])
        parts.append(f"{what} {beside:.3f} beside borders, {inside:.3f} inside;")
    for key, title in SHOWN.items():
        values = figures[key]
        parts.append(f"{title} {np.nanmean(values):.4f}")
        if first:
            change = values - first[key]
            estimate = bootstrap_mean(change[np.isfinite(change)])
            parts.append(f"({estimate.mean:+.4f}, {estimate.low or 0:+.4f} … {estimate.high or 0:+.4f})")
    print(" ".join(parts), flush=True)


def bends(tracks: Sequence[torch.Tensor], chunk: int = 4) -> tuple[float, float]:
    """Mean absolute second difference at frames beside a border between chunks, and at the others."""
    beside, inside = [], []
    for motion in tracks:
        bend = motion.diff(n=2, dim=0).abs().mean(1)
        phase = torch.arange(1, len(motion) - 1) % chunk
        at_border = (phase == 0) | (phase == chunk - 1)
        beside.append(bend[at_border])
        inside.append(bend[~at_border])
    return float(torch.cat(beside).mean()), float(torch.cat(inside).mean())


if __name__ == "__main__":
    main()

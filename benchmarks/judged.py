"""Finished videos of a contestant of ``recipes.py``, unseen speakers' speech, and the evaluation's figures of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from arena import Bench
from controls import Sampling, best_of

from flowportrait.evaluation.measure import measure_video
from flowportrait.media.write_video import write_video
from flowportrait.models.arflow import load_generator
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE, MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rl.task import PortraitRenderer


def evaluate(bench: Bench, name: str, seed: int) -> None:
    """Leave ``rows.json`` in the contestant's folder, unless it is there; ``real``: the speakers' own motion."""
    folder, codecs = bench.folder(name, seed), bench.portraits
    is_there = (folder / "checkpoint").is_dir() or (name in ("real", "sft") and seed == 0)
    if (folder / "rows.json").is_file() or not is_there:
        return
    act, rows = Act(bench, name, folder), {}
    for index, (stem, clip) in enumerate(bench.test.items()):
        if name == "real":
            motion, spread = MotionBasis.load().encode(clip.landmarks, clip.blendshapes)[0], None
        else:
            motion = act(clip.audio, index)
            spread = torch.stack([motion, act(clip.audio, index, again=True)]).std(0).mean(0)
        path = folder / "videos" / f"{stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, codecs[index % len(codecs)].decode(motion), clip.audio)
        rows[stem] = measure_video(path).row
        if spread is not None:
            rows[stem] |= {"spread_lips": float(spread[LOWER_FACE].mean()), "spread_head": float(spread[HEAD].mean())}
    (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")


class Act:
    """A contestant's performance of one clip's speech."""

    def __init__(self, bench: Bench, name: str, folder: Path) -> None:
        self.bench, self.sampling = bench, None
        if name == "real":
            return
        self.model = load_generator("sft" if name == "sft" else folder / "checkpoint")
        if (folder / "sampling.json").is_file():
            self.sampling = Sampling(**json.loads((folder / "sampling.json").read_text()))
            self.small = [MotionCodec(codec.portrait, 96, retouch=False) for codec in bench.portraits]

    def __call__(self, audio: np.ndarray, index: int, again: bool = False) -> torch.Tensor:
        """Motion ``[T, 30]``; ``again``: with other noise. A clip has one noise, whoever performs it."""
        seed = index + 500 * again
        if self.sampling is None:
            return torch.cat(list(Animator(self.model).motion(audio, seed=seed)))
        return best_of(
            self.model, self.sampling, audio, seed, index % len(self.small), self.bench.everything,
            lambda rows: PortraitRenderer(self.small, rows, 96),
        )  # fmt: skip

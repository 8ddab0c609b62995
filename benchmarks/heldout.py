"""Supervised against post-trained on speakers, voices and portraits that nothing was trained on.

    python benchmarks/heldout.py --corpus CORPUS --data FOOTAGE --output DIR [--checkpoints sft rl NAME=FOLDER …]

Two tables, each with metrics.json, metrics.csv and report.html, all measured on finished mp4 files:

``speakers``  clips of ``dev`` speakers (1.2 s): every checkpoint on their speech, next to their real motion drawn
              through the same codec (the ceiling) and to motion that must lose.
``voices``    four-second pieces of recordings of other voices, portraits in turn: checkpoints and a
              loudness-driven jaw; there is no real video of them.

The same prompt has the same seed in every system.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from material import headline_clips as headline
from rich.progress import track

from flowportrait.corruption.motion import loudness_driven_jaw, negative_controls
from flowportrait.evaluation.api import evaluate
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec

PIECE_SECONDS = 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    options.add_argument("--data", type=Path, required=True, help="footage folder with portraits/ and speech/")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--checkpoints", nargs="+", default=["sft", "rl"], help="each a name, a folder or NAME=FOLDER")
    options.add_argument("--only", choices=("speakers", "voices"))
    options.add_argument("--clips", type=int, default=48, help="of unseen speakers")
    options.add_argument("--pieces", type=int, default=28, help="of other voices")
    given = options.parse_args()
    portraits = sorted(path for path in (given.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), name=path.name)) for path in portraits]
    animators = dict(map(called, given.checkpoints))
    if given.only != "voices":
        table(given.output / "speakers", speakers(given.corpus, given.clips, codecs, animators))
    if given.only != "speakers":
        table(given.output / "voices", voices(given.data / "speech", given.pieces, codecs, animators))


def called(checkpoint: str) -> tuple[str, Animator]:
    """A system by the name that is asked for, or that its checkpoint has."""
    name, is_named, folder = checkpoint.partition("=")
    return (name, Animator.from_pretrained(folder)) if is_named else (Path(name).name, Animator.from_pretrained(name))


Take = tuple[str, str, MotionCodec, torch.Tensor, np.ndarray]
"""System, clip name, whom to draw, motion, sound."""


def speakers(corpus: Path, count: int, codecs: list[MotionCodec], animators: dict[str, Animator]) -> Iterator[Take]:
    """Every system on clips of dev speakers."""
    basis = MotionBasis.load()
    clips = headline(corpus, count)
    real = [basis.encode(clip.landmarks, clip.blendshapes)[0] for clip in clips.values()]
    for index, ((name, clip), motion) in enumerate(zip(clips.items(), real, strict=True)):
        codec, stem = codecs[index % len(codecs)], Path(name).stem
        yield "real", stem, codec, motion, clip.audio
        for system, track_ in negative_controls(motion, clip.audio, real[index - 1]).items():
            yield system, stem, codec, track_, clip.audio
        for system, animator in animators.items():
            yield system, stem, codec, torch.cat(list(animator.motion(clip.audio, seed=index))), clip.audio


def voices(folder: Path, count: int, codecs: list[MotionCodec], animators: dict[str, Animator]) -> Iterator[Take]:
    """Checkpoints and the loudness jaw on pieces of unseen voices."""
    pieces = []
    for path in sorted(folder.glob("*.wav")):
        sound = read_audio(path)[: 60 * SAMPLE_RATE]
        length = PIECE_SECONDS * SAMPLE_RATE
        for i in range(max(1, len(sound) // length)):
            pieces.append((f"{path.stem}_{i}", sound[i * length : (i + 1) * length]))
    chosen = np.linspace(0, len(pieces) - 1, min(count, len(pieces))).astype(int)
    for index, (stem, sound) in enumerate(pieces[i] for i in chosen):
        codec = codecs[index % len(codecs)]
        made = {system: torch.cat(list(a.motion(sound, seed=index))) for system, a in animators.items()}
        for system, motion in made.items():
            yield system, stem, codec, motion, sound
        yield "loudness jaw", stem, codec, loudness_driven_jaw(next(iter(made.values())), sound), sound


def table(output: Path, takes: Iterator[Take]) -> None:
    """Draw every take to a file and measure all of them; files that are there already are kept."""
    systems: dict[str, list[Path]] = {}
    for system, stem, codec, motion, sound in track(takes, description=f"drawing {output.name}"):
        path = output / "videos" / system.replace(" ", "_") / f"{stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            write_video(path, codec.decode(motion), sound)
        systems.setdefault(system, []).append(path)
    baseline = "sft" if "sft" in systems else None
    summary = evaluate(systems, baseline=baseline, title=f"Held-out {output.name}").write(output)
    found = summary["metrics"]
    assert isinstance(found, dict)
    for system, metrics in found.items():
        print(system, {key: round(value["mean"], 4) for key, value in metrics.items()})


if __name__ == "__main__":
    main()

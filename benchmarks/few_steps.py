"""One or two bare steps beside the six guided ones of their teacher: what is seen of it, and what it saves.

    python benchmarks/few_steps.py --corpus CORPUS --data FOOTAGE --output DIR --students one=RUN … [--clips 16]

Systems: the speakers' own motion redrawn, the teacher, the teacher in one guided step, and every student as it is
delivered. Short clips of unseen speakers, portraits in turn, 256 px, measured on finished mp4 by the evaluation side:
means with 95 % intervals over clips, and each system's difference from the teacher on the same clip. ``ms``: processor
time of motion alone, a frame. What is drawn is kept, so that systems can be added.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from unseen import headline

from flowportrait.animator import Animator
from flowportrait.codec.basis import MotionBasis
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.evaluate.compare import Estimate, Row, bootstrap, column, compare
from flowportrait.evaluate.measure import measure
from flowportrait.evaluate.metrics import BY_KEY
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import write_video

SIZE = 256
KEYS = ("lse_c_short", "sync_in_time_short", "ler", "ecs", "tfi", "mouth_amplitude", "head_range", "lid_motion")
REAL, TEACHER = "real", "six guided steps"
Perform = Callable[[np.ndarray, int], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="footage folder with portraits/")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--teacher", default="rl")
    parser.add_argument("--students", nargs="+", default=[], metavar="NAME=RUN")
    parser.add_argument("--clips", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    paths = sorted(path for path in (given.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), SIZE), SIZE) for path in paths[: given.clips]]
    clips, basis = headline(given.corpus, given.clips), MotionBasis.load()
    rows: dict[str, dict[str, Row]] = {}
    costs: dict[str, float] = {}
    for system, perform in systems(given.teacher, given.students):
        own = rows.setdefault(system, {})
        began = time.process_time()
        made = {name: perform(clip.audio, seed) for seed, (name, clip) in enumerate(clips.items())} if perform else {}
        costs[system] = 1e3 * (time.process_time() - began) / max(1, sum(map(len, made.values())))
        for index, (name, clip) in enumerate(clips.items()):
            path = given.output / system.replace(" ", "_") / f"{Path(name).stem}.mp4"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                motion = made[name] if made else basis.encode(clip.landmarks, clip.blendshapes)[0]
                write_video(path, codecs[index % len(codecs)].decode(motion), clip.audio)
            own[path.stem] = measure(path, given.output / "seen").row
    table(rows, costs)


def systems(teacher: str, students: list[str]) -> Iterator[tuple[str, Perform | None]]:
    """Each with how it performs sound under a seed; the speakers themselves need not."""
    yield REAL, None
    yield TEACHER, performer(Animator.from_pretrained(teacher))
    hurried = Animator.from_pretrained(teacher)
    hurried.generator.config = replace(hurried.generator.config, steps=1)
    yield "one guided step", performer(hurried)
    for entry in students:
        name, _, run = entry.partition("=")
        yield name, performer(Animator.from_pretrained(run))


def performer(animator: Animator) -> Perform:
    """Warm: what the first call loads is not timed."""
    list(animator.motion(np.zeros(16_000, np.float32)))
    return lambda audio, seed: torch.cat(list(animator.motion(audio, seed=seed)))


def table(rows: dict[str, dict[str, Row]], costs: dict[str, float]) -> None:
    """Means, then differences from the teacher."""
    print("| | ms | " + " | ".join(BY_KEY[key].title for key in KEYS) + " |\n" + "|---" * (len(KEYS) + 2) + "|")
    for system, own in rows.items():
        cells = [shown(bootstrap(column(own, key)[1]), "") for key in KEYS]
        print(f"| {system} | {costs[system]:.1f} | " + " | ".join(cells) + " |")
    print("\nminus the teacher, same clip (p: Wilcoxon, Holm-corrected over everything here)")
    for gap in compare(rows, TEACHER).differences:
        if gap.metric in KEYS and gap.system != TEACHER:
            p = "" if gap.p is None else f"  p {gap.p:.3f}"
            print(f"{gap.system:24} {BY_KEY[gap.metric].title:20} {shown(gap.difference, '+')}{p}")


def shown(found: Estimate, sign: str) -> str:
    """Mean with its interval."""
    if found.low is None or found.high is None:
        return f"{found.mean:{sign}.3f}"
    return f"{found.mean:{sign}.3f} ({found.low:{sign}.3f}–{found.high:{sign}.3f})"


if __name__ == "__main__":
    main()

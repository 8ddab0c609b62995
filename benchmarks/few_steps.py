"""One or two bare steps beside the six guided ones of their teacher: what is seen of it, and what it saves.

    python benchmarks/few_steps.py --corpus CORPUS --data FOOTAGE --output DIR --students one=RUN … [--clips 16]
    python benchmarks/few_steps.py --corpus CORPUS --students one=RUN … [--ranks 16]   # motion alone, 48 clips, quickly

Systems: the speakers' own motion redrawn, the teacher, the teacher in one guided step, and every student as it is
delivered. Short clips of unseen speakers, portraits in turn, 256 px, measured on finished mp4 by the evaluation side:
means with 95 % intervals over clips, and each system's difference from the teacher on the same clip. ``ms``: processor
time of motion alone, a frame. What is drawn is kept, so that systems can be added. Quickly: what a frame costs, how far
each part of the face moves (as a factor of the teacher's), and the ratings of the reward side. ``--ranks``: every
student also as a difference of low rank from its teacher, as it could be kept in little room.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from material import headline_clips as headline
from preference_material import rate
from preference_motion import differences, factor, speech

from flowportrait.evaluation.comparison import compare_systems, metric_values
from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.metrics import METRIC_BY_KEY, MetricRow
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.models.sampler import sample_from_mel
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.motion import MOTION_GROUPS, log_amplitude

SIZE = 256
KEYS = ("lse_c_short", "sync_in_time_short", "ler", "ecs", "tfi", "mouth_amplitude", "head_range", "lid_motion")
REAL, TEACHER = "real", "six guided steps"
Perform = Callable[[np.ndarray, int], torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="footage folder with portraits/")
    parser.add_argument("--output", type=Path, help="folder of videos; without, motion alone is looked at")
    parser.add_argument("--teacher", default="rl")
    parser.add_argument("--students", nargs="+", default=[], metavar="NAME=RUN")
    parser.add_argument("--ranks", nargs="*", type=int, default=[])
    parser.add_argument("--clips", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.output is None:
        found = systems(given.teacher, given.students)
        for name, rank in [(one.partition("=")[0], rank) for one in given.students for rank in given.ranks]:
            found[f"{name}, rank {rank}"] = low_rank(found[name], found[TEACHER], rank)
        quickly(given.corpus, found)
        return
    if given.data is None:
        parser.error("to draw, give --data")
    paths = sorted(path for path in (given.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), SIZE), SIZE) for path in paths[: given.clips]]
    clips, basis = headline(given.corpus, given.clips), MotionBasis.load()
    rows: dict[str, dict[str, MetricRow]] = {}
    costs: dict[str, float] = {}
    acting = {name: performer(one) for name, one in systems(given.teacher, given.students).items()}
    for system, perform in ((REAL, None), *acting.items()):
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
            own[path.stem] = measure_video(path, given.output / "seen").row
    table(rows, costs)


def systems(teacher: str, students: list[str]) -> dict[str, Animator]:
    """The teacher as it is and in one step, and its students."""
    found = {TEACHER: Animator.from_pretrained(teacher), "one guided step": Animator.from_pretrained(teacher)}
    hurried = found["one guided step"].generator
    hurried.config = replace(hurried.config, steps=1)
    return found | {name: Animator.from_pretrained(run) for name, _, run in (one.partition("=") for one in students)}


@torch.no_grad()
def low_rank(student: Animator, teacher: Animator, rank: int) -> Animator:
    """A student of which every matrix's difference from the teacher's keeps its first singular values only."""
    result, size = copy.deepcopy(student), 0
    for own, before in zip(result.generator.parameters(), teacher.generator.parameters(), strict=True):
        if torch.equal(own, before):
            continue
        if own.dim() == 2:
            left, values, right = torch.linalg.svd(own - before, full_matrices=False)
            own.copy_(before + left[:, :rank] * values[:rank] @ right[:rank])
        size += rank * sum(own.shape) if own.dim() == 2 else own.numel()
    print(f"rank {rank}: {2e-6 * size:.2f} MB in half precision")
    return result


@torch.no_grad()
def quickly(corpus: Path, found: dict[str, Animator]) -> None:
    """See the module; the same noise for all."""
    for name, one in found.items():
        perform = performer(one)
        began = time.process_time()
        frames = len(perform(0.1 * np.random.default_rng(0).normal(size=5 * SAMPLE_RATE).astype(np.float32), 0))
        print(f"{name:20} {1e3 * (time.process_time() - began) / frames:.1f} ms a frame", flush=True)
    mel = speech(corpus)
    made = {name: sample_from_mel(one.generator.eval(), mel, list(range(len(mel)))) for name, one in found.items()}
    teacher = made.pop(TEACHER)
    for name, motion in made.items():
        more = (log_amplitude(motion) - log_amplitude(teacher)).T
        print(name, *(factor(part, logs) for part, logs in zip(MOTION_GROUPS, more, strict=True)), sep="  ")
        print(name, differences([rate(motion, mel).tolist()], rate(teacher, mel).tolist()), sep="  ")


def performer(animator: Animator) -> Perform:
    """Warm: what the first call loads is not timed."""
    list(animator.motion(np.zeros(SAMPLE_RATE, np.float32)))
    return lambda audio, seed: torch.cat(list(animator.motion(audio, seed=seed)))


def table(rows: dict[str, dict[str, MetricRow]], costs: dict[str, float]) -> None:
    """Means, then differences from the teacher."""
    print("| | ms | " + " | ".join(METRIC_BY_KEY[key].title for key in KEYS) + " |\n" + "|---" * (len(KEYS) + 2) + "|")
    for system, own in rows.items():
        cells = [shown(bootstrap_mean(metric_values(own, key)[1]), "") for key in KEYS]
        print(f"| {system} | {costs[system]:.1f} | " + " | ".join(cells) + " |")
    print("\nminus the teacher, same clip (p: Wilcoxon, Holm-corrected over everything here)")
    for gap in compare_systems(rows, TEACHER).differences:
        if gap.metric in KEYS and gap.system != TEACHER:
            p = "" if gap.p is None else f"  p {gap.p:.3f}"
            print(f"{gap.system:24} {METRIC_BY_KEY[gap.metric].title:20} {shown(gap.difference, '+')}{p}")


def shown(found: Estimate, sign: str) -> str:
    """Mean with its interval."""
    if found.low is None or found.high is None:
        return f"{found.mean:{sign}.3f}"
    return f"{found.mean:{sign}.3f} ({found.low:{sign}.3f}–{found.high:{sign}.3f})"


if __name__ == "__main__":
    main()

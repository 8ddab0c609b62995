"""Students of one or two denoising steps beside the six guided steps of their teacher."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.drawing import codecs, draw_and_measure, generate_motion, named_checkpoints, real_motion
from benchmarks.material import headline_clips, use_one_thread
from benchmarks.motion_ratings import RATINGS, add_amplitudes, load_speech, rate, rating_rows
from benchmarks.paired import Rows, compare_runs
from benchmarks.record import Record
from benchmarks.timing import stopwatch
from flowportrait.commands.options import OptionalPath
from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.metrics import REAL, MetricRow
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.models.sampler import sample_from_mel
from flowportrait.pipelines.animator import Animator

METRIC_KEYS = ("lse_c_short", "sync_in_time_short", "ler", "ecs", "tfi", "mouth_amplitude", "head_range", "lid_motion")
TEACHER, ONE_STEP = "six guided steps", "one guided step"


@dataclass(frozen=True)
class FewStepsOptions:
    """Measure what is lost and what is saved by generators distilled to one or two steps, beside their teacher.

    The teacher in one guided step should lose; the speakers' own motion drawn again should win. motion: processor time
    of a frame, how far each part of the face moves, and ratings of the reward side, on 48 clips. videos: metrics of
    finished videos. Clips are of unseen speakers, with the same noise for all.
    """

    corpus: Path
    """Prepared corpus with dev speakers."""
    students: tuple[str, ...] = ()
    """Distilled checkpoints, NAME=FOLDER."""
    part: tuple[Literal["motion", "videos"], ...] = ("motion",)
    """What to measure: motion, videos."""
    data: OptionalPath = None
    """Footage folder with portraits/, for videos."""
    output: OptionalPath = None
    """Folder of videos; those that are there are kept."""
    teacher: str = "rl"
    """Checkpoint of the teacher."""
    ranks: tuple[int, ...] = ()
    """Also measure every student as a difference from its teacher of these ranks, which takes little room."""
    clips: int = 16
    """Clips that are drawn."""


def few_steps(options: FewStepsOptions, record: Record) -> None:
    """Compare the teacher in one step and its students with the teacher."""
    use_one_thread()
    if "videos" in options.part and (options.data is None or options.output is None):
        raise BadInput("To make videos, give --data and --output.")
    systems = {TEACHER: Animator.from_pretrained(options.teacher), ONE_STEP: Animator.from_pretrained(options.teacher)}
    generator = systems[ONE_STEP].generator
    generator.config = replace(generator.config, steps=1)
    for name, folder in named_checkpoints(options.students).items():
        systems[name] = student = Animator.from_pretrained(folder)
        for rank in options.ranks:
            systems[f"{name}, rank {rank}"] = low_rank(student, systems[TEACHER], rank, record)
    if "motion" in options.part:
        add_motion(options.corpus, systems, record)
    if "videos" in options.part:
        add_videos(options, systems, record)


@torch.no_grad()
def low_rank(student: Animator, teacher: Animator, rank: int, record: Record) -> Animator:
    """Return a student of which every matrix's difference from the teacher's keeps its first singular values."""
    result, size = copy.deepcopy(student), 0
    for own, before in zip(result.generator.parameters(), teacher.generator.parameters(), strict=True):
        if torch.equal(own, before):
            continue
        if own.dim() == 2:
            left, values, right = torch.linalg.svd(own - before, full_matrices=False)
            own.copy_(before + left[:, :rank] * values[:rank] @ right[:rank])
        size += rank * sum(own.shape) if own.dim() == 2 else own.numel()
    record.add(f"rank {rank}", "size in half precision", 2e-6 * size, unit="MB", group="size")
    return result


@torch.no_grad()
def add_motion(corpus: Path, systems: dict[str, Animator], record: Record) -> None:
    """Add the cost of a frame, the ratings of the reward side, and how far each part of the face moves."""
    noise = 0.1 * np.random.default_rng(0).normal(size=5 * SAMPLE_RATE).astype(np.float32)
    for name, animator in systems.items():
        generate_motion(animator, noise[:SAMPLE_RATE], 0)
        with stopwatch() as spent:
            frames = len(generate_motion(animator, noise, 0))
        record.add(name, "motion", 1e3 * spent.processor / frames, unit="ms a frame", group="cost")
    mel = load_speech(corpus)
    seeds = list(range(len(mel)))
    motion = {name: sample_from_mel(animator.generator.eval(), mel, seeds) for name, animator in systems.items()}
    rows = {name: rating_rows(rate(own, mel)) for name, own in motion.items()}
    compare_runs(record, rows, RATINGS, baseline=TEACHER, group="ratings of the reward side")
    for name, own in motion.items():
        if name != TEACHER:
            add_amplitudes(record, name, own, motion[TEACHER], TEACHER)


def add_videos(options: FewStepsOptions, systems: dict[str, Animator], record: Record) -> None:
    """Draw and measure every system and the speakers' own motion, and compare them with the teacher."""
    assert options.data is not None
    assert options.output is not None
    clips, people = headline_clips(options.corpus, options.clips), codecs(options.data, options.clips)
    rows: dict[str, Rows] = {}
    for system in (REAL, *systems):

        def motion(clip: FaceClip, seed: int, system: str = system) -> torch.Tensor:
            return real_motion(clip) if system == REAL else generate_motion(systems[system], clip.audio, seed)

        folder, system_rows = options.output / system.replace(" ", "_"), dict[str, MetricRow]()
        for index, (name, clip) in enumerate(clips.items()):
            system_rows[name] = draw_and_measure(
                folder / f"{name}.mp4", people[index % len(people)], partial(motion, clip, index),
                clip.audio, options.output / "tracks",
            )  # fmt: skip
        rows[system] = system_rows
    compare_runs(record, rows, METRIC_KEYS, baseline=TEACHER, group="finished videos")

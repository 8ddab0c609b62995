"""Checkpoints on speakers, voices and portraits that nothing was trained on, measured on finished mp4 files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from benchmarks.drawing import codecs, draw, generate_motion, named_checkpoints, real_motion
from benchmarks.material import (
    HEADLINE_CLIPS,
    headline_clips,
    speech_paths,
    spread_evenly,
    use_one_thread,
)
from benchmarks.paired import compare_runs, group_runs, metric_title, pair
from benchmarks.record import Record
from flowportrait.commands.options import Flag, Inputs, OptionalPath
from flowportrait.config import override
from flowportrait.corruption.motion import loudness_driven_jaw, negative_controls
from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.metrics import METRICS, REAL
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.files import write_json
from flowportrait.judges.learning import NO_OPINION_BAND
from flowportrait.judges.measured_panel import MeasuredPanel
from flowportrait.judges.rubric import ASPECT_WEIGHTS, CLIP_ASPECTS
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.video import iter_frames
from flowportrait.models.arflow import checkpoint_folder, load_generator
from flowportrait.pipelines.animator import Animator
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.preferences.reward_model import MotionReward
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rl.config import PostTrainConfig, Recipe
from flowportrait.rl.post_trainer import PostTrainer
from flowportrait.terminal import log, progress

BASELINE = "sft"
PICTURE_SIZE = 512
"""Side of the videos in pixels."""
PIECE_SECONDS = 4
"""Length of the pieces of other voices."""
LONGEST_SECONDS = 60
"""Part of a recording of another voice that is used."""
WHOLE_SYSTEM_KEYS = ("ecs_pooled", "theval")


# ── held-out speakers and voices ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class HeldoutOptions:
    """Compare checkpoints on unseen speakers, voices and portraits, clip by clip, on finished videos.

    speakers: short clips of dev speakers. Still, shifted and loudness-driven motion should lose, and the speakers' own
    motion drawn through the same codec should win. voices: four-second pieces of other voices, beside a jaw driven by
    loudness, which should lose; there is no real motion. The same clip has the same seed and portrait in every system.
    """

    corpus: Path
    """Prepared corpus with dev speakers."""
    data: Path
    """Footage folder with portraits/ and speech/."""
    output: Path
    """Folder of videos and reports; videos that are there are kept."""
    checkpoints: tuple[str, ...] = ("sft", "rl")
    """Each a name, a folder, NAME=FOLDER, or NAME@SEED=FOLDER for one of several runs of a system."""
    against: tuple[str, ...] = ()
    """Further changes, each A:B for system A from system B; all are compared with sft anyway."""
    part: tuple[Literal["speakers", "voices"], ...] = ("speakers", "voices")
    """What to measure on."""
    clips: int = HEADLINE_CLIPS
    """Clips of unseen speakers; up to the default, nothing was chosen on them."""
    pieces: int = 16
    """Pieces of other voices."""


class Sample(NamedTuple):
    """Motion of a system for the sound of a clip, and the portrait that it moves."""

    system: str
    clip: str
    codec: MotionCodec
    motion: torch.Tensor
    audio: np.ndarray


def heldout(options: HeldoutOptions, record: Record) -> None:
    """Draw and measure all systems, and add their metrics and changes from ``sft``."""
    pairs = [_pair(word) for word in options.against]
    people = codecs(options.data, size=PICTURE_SIZE)
    found = named_checkpoints(options.checkpoints)
    animators = {name: Animator.from_pretrained(checkpoint) for name, checkpoint in found.items()}
    if "speakers" in options.part:
        samples = on_speakers(headline_clips(options.corpus, options.clips), people, animators)
        measure(options.output / "speakers", samples, record, "speakers", pairs)
    if "voices" in options.part:
        samples = on_voices(options.data, options.pieces, people, animators)
        measure(options.output / "voices", samples, record, "voices", pairs)


def _pair(word: str) -> tuple[str, str]:
    one, colon, other = word.partition(":")
    if not (one and colon and other):
        raise BadInput(f"--against {word} names no two systems: write A:B, such as rl:sft.")
    return one, other


def on_speakers(
    clips: Mapping[str, FaceClip], people: list[MotionCodec], animators: dict[str, Animator]
) -> Iterator[Sample]:
    """Yield the samples of every system on clips of unseen speakers."""
    motions = [real_motion(clip) for clip in clips.values()]
    for index, ((name, clip), motion) in enumerate(zip(clips.items(), motions, strict=True)):
        codec = people[index % len(people)]
        systems = {REAL: motion, **negative_controls(motion, clip.audio, motions[index - 1])}
        systems |= {system: generate_motion(animator, clip.audio, index) for system, animator in animators.items()}
        yield from (Sample(system, name, codec, own, clip.audio) for system, own in systems.items())


def on_voices(footage: Path, count: int, people: list[MotionCodec], animators: dict[str, Animator]) -> Iterator[Sample]:
    """Yield the samples of the checkpoints and of a loudness-driven jaw on pieces of other voices."""
    length, pieces = PIECE_SECONDS * SAMPLE_RATE, []
    for path in speech_paths(footage):
        sound = read_audio(path)[: LONGEST_SECONDS * SAMPLE_RATE]
        for place in range(max(1, len(sound) // length)):
            pieces.append((f"{path.stem}_{place}", sound[place * length : (place + 1) * length]))
    for index, (clip, audio) in enumerate(spread_evenly(pieces, count)):
        codec = people[index % len(people)]
        motions = {name: generate_motion(animator, audio, index) for name, animator in animators.items()}
        motions["loudness jaw"] = loudness_driven_jaw(next(iter(motions.values())), audio)
        yield from (Sample(system, clip, codec, motion, audio) for system, motion in motions.items())


def measure(
    output: Path, samples: Iterator[Sample], record: Record, group: str, pairs: Sequence[tuple[str, str]] = ()
) -> None:
    """Draw samples to files, measure the files, write the evaluation's report, and add the comparison."""
    systems: dict[str, list[Path]] = {}
    for system, clip, codec, motion, audio in progress(samples, None):
        path = output / "videos" / system.replace(" ", "_") / f"{clip}.mp4"
        draw(path, codec, motion, audio)
        systems.setdefault(system, []).append(path)
    report = evaluate(systems, baseline=BASELINE if BASELINE in systems else None, title=f"Held-out {group}")
    report.write(output)
    keys = [metric.key for metric in METRICS]
    compare_runs(record, report.rows, keys, baseline=BASELINE, group=group, pairs=pairs)
    for system, estimates in report.comparison.estimates.items():
        for key in WHOLE_SYSTEM_KEYS:
            if key in estimates:
                record.add(system, metric_title(key), estimates[key], group=f"{group}: whole systems")


# ── the shipped recipe and its ablations ───────────────────────────────────────────────────────────────────────────

SHIPPED, RANDOM = "shipped recipe", "random reward"
SHARES, SPREADS, GRAFT_STEPS = (0.25, 0.75), ("spread_eyes=1.3", "spread_mouth=0.5"), 400
"""Of finishing: shares of sft and of the run, the noise of the eyes and of the mouth, steps of giving back the lips."""


@dataclass(frozen=True)
class ShippedOptions:
    """Train the runs that rl is the mean of, the random-reward control, and the recipe without one of its rewards.

    OUTPUT/NAME/SEED holds run/ (of flowportrait posttrain), checkpoint/ and, with --finish, finished/: a quarter of sft
    and three quarters of the run, wider noise for the eyes, and the lips of sft. With --data, all of them are measured
    on unseen speakers. The random-reward control has the same regions and weights; it and sft should lose.
    """

    corpus: Path
    """Prepared corpus."""
    prompts: Path
    """Folder of prompts to train on."""
    output: Path
    """Folder of the runs; what is there is not done again."""
    only: tuple[str, ...] = ()
    """Some of: shipped recipe, random reward, without REWARD; all by default."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds, a run each."""
    iterations: int = 60
    """Iterations of a run."""
    finish: Flag = False
    """Also make of each run what would ship of it."""
    features: OptionalPath = None
    """The features.pt of a run of flowportrait pretrain, which saves computing them to finish."""
    data: OptionalPath = None
    """Footage folder with portraits/, to measure the runs."""
    clips: int = HEADLINE_CLIPS
    """Clips of unseen speakers to measure on."""


def shipped(options: ShippedOptions, record: Record) -> None:
    """Train every variant with every seed, and measure what came out."""
    use_one_thread()
    recipe = PostTrainConfig.from_json(checkpoint_folder("rl") / "recipe.json")
    names = options.only or variants(recipe)
    if unknown := set(names) - set(variants(recipe)):
        raise BadInput(f"--only {sorted(unknown)[0]} is none of {', '.join(variants(recipe))}.")
    results: dict[str, Animator] = {}
    for seed in options.seeds:
        for name in names:
            folder = options.output / name.replace(" ", "_") / str(seed)
            if not (folder / "checkpoint").is_dir():
                log(f"Training {name}, seed {seed}")
                config = replace(variant(recipe, name), seed=seed, iterations=options.iterations, evaluate_every=1000)
                PostTrainer(config=config, train_prompts=options.prompts, output_dir=folder / "run").train(resume=True)
                shutil.copytree(folder / "run" / "checkpoint", folder / "checkpoint")
            if options.finish and not (folder / "finished").is_dir():
                finish(folder, options.corpus, options.features)
            kind = "finished" if options.finish else "checkpoint"
            results[f"{name}@{seed}"] = Animator.from_pretrained(folder / kind)
            record.add(f"{name}@{seed}", "iterations", options.iterations, group="runs")
    if options.data is not None:
        people = codecs(options.data, size=PICTURE_SIZE)
        animators = {BASELINE: Animator.from_pretrained(BASELINE), **results}
        samples = on_speakers(headline_clips(options.corpus, options.clips), people, animators)
        pairs = [(name, RANDOM) for name in names if name != RANDOM]
        measure(options.output / "speakers", samples, record, "speakers", pairs)


def variants(recipe: Recipe) -> list[str]:
    """Return the names of what can be trained: the recipe, its control, and its ablations."""
    return [SHIPPED, RANDOM, *(f"without {reward}" for reward in recipe.rewards.by_name())]


def variant(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with the rewards of a variant."""
    if name == SHIPPED:
        return recipe
    if name == RANDOM:
        return recipe.with_random_rewards()
    removed, rewards = name.removeprefix("without "), recipe.rewards
    remaining = {reward: weight for reward, weight in rewards.other.items() if reward != removed}
    regions = {reward: region for reward, region in recipe.allocation.regions.items() if reward != removed}
    return replace(
        recipe,
        rewards=replace(rewards, sync=0.0 if removed == "sync" else rewards.sync, other=remaining),
        allocation=replace(recipe.allocation, regions=regions),
    )


def finish(folder: Path, corpus: Path, features: Path | None) -> None:
    """Make of a run's checkpoint what would ship of it."""
    from tools.average_checkpoints import soup
    from tools.graft_checkpoint import grafted

    mixed = soup([load_generator("sft"), load_generator(folder / "checkpoint")], SHARES)
    mixed.config = override(mixed.config, list(SPREADS))
    grafted(load_generator("sft"), mixed, corpus, features, GRAFT_STEPS).save_pretrained(folder / "finished")


# ── preferences of two measuring judges ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PreferredOptions:
    """Count in how many pairs a finished video is preferred to that of sft with the same speech.

    Two judges that measure: the measured panel (1 to 5 points; close grades are half a win) and the reward model that
    learned from damage. Both belong to the rewards' side, and how often people agree with them is not known, so a share
    says which way they lean. Negative controls among the systems should lose, real motion should win.
    """

    videos: Inputs
    """The folder VIDEOS/SYSTEM/CLIP.mp4, as heldout leaves it."""
    output: Path
    """JSON file of the grades of every video; those that are there are not made again."""
    baseline: str = BASELINE
    """The system that the others are compared with."""
    systems: tuple[str, ...] = ()
    """Folders of the systems; all by default."""


GRADES = ("panel", *(f"panel {aspect}" for aspect in CLIP_ASPECTS), "model", *(f"model {name}" for name in DIMENSIONS))


def preferred(options: PreferredOptions, record: Record) -> None:
    """Grade every video and add the share of pairs that each system wins."""
    use_one_thread()
    if len(options.videos) != 1 or not options.videos[0].is_dir():
        raise BadInput("Give one folder of videos, with a folder for each system.")
    folder = options.videos[0]
    others = options.systems or sorted(path.name for path in folder.iterdir() if path.name != options.baseline)
    if missing := [name for name in (options.baseline, *others) if not any((folder / name).glob("*.mp4"))]:
        raise BadInput(f"There are no videos in {folder / missing[0]}.")
    grades: dict[str, dict[str, dict[str, float]]] = {}
    if options.output.is_file():
        grades = json.loads(options.output.read_text())
    panel, model = MeasuredPanel(), MotionReward.load()
    for name in (options.baseline, *others):
        graded = grades.setdefault(name, {})
        missing_videos = [path for path in sorted((folder / name).glob("*.mp4")) if path.stem not in graded]
        for path in progress(missing_videos, len(missing_videos), f"grading {name}"):
            graded[path.stem] = grade(path, panel, model)
        write_json(options.output, grades)
    for name, runs in group_runs(others).items():
        for key in GRADES:
            share = preference_share([grades[run] for run in runs], grades[options.baseline], key)
            record.add(name.replace("_", " "), key, share, group=f"share of pairs preferred to {options.baseline}")


def grade(path: Path, panel: MeasuredPanel, model: MotionReward) -> dict[str, float]:
    """Return the panel's grade of every aspect and the model's score of every dimension that can be measured."""
    batch = RewardBatch.from_frames([np.stack(list(iter_frames(path)))], [read_audio(path)])
    findings = panel.measure(batch, [False])[0]
    found = {f"panel {aspect}": finding.score for aspect, finding in findings.items() if finding.score is not None}
    if len(found) == len(CLIP_ASPECTS):
        found["panel"] = sum(found[f"panel {aspect}"] * ASPECT_WEIGHTS[aspect] for aspect in CLIP_ASPECTS)
    with torch.no_grad():
        scores = model(batch.motion, batch.mel)[0].tolist()
    found |= {f"model {name}": score for name, score in zip(DIMENSIONS, scores, strict=True)}
    return found | {"model": sum(scores)}


def preference_share(
    runs: Sequence[Mapping[str, Mapping[str, float]]], baseline: Mapping[str, Mapping[str, float]], key: str
) -> Estimate | None:
    """Return the share of pairs won, ties as halves, over runs and clips; None without pairs."""
    found = pair(runs, [baseline], key)
    if found is None:
        return None
    tie = NO_OPINION_BAND if key.startswith("panel") else 0.0
    margins = found.difference
    return bootstrap_mean(np.where(np.abs(margins) <= tie, 0.5, margins > 0).astype(float))

"""Ways of learning from preferences at equal processor time, and ways of choosing by them, on unseen speakers.

Labels come from the reward side, verdicts from the evaluation side. A system is ``sft``, a run of an arm (ARM@SEED),
``guide sync=3`` (any weights of the latent reward's guidance), ``best of 8`` whole samples, or ``pruned 8`` candidates
of every chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.drawing import Generate, codecs, draw_and_measure, generate_motion
from benchmarks.material import choice_clips, load_or_make, use_one_thread
from benchmarks.motion_ratings import RATINGS, add_amplitudes, load_speech, rate, rating_rows
from benchmarks.paired import Rows, compare_runs
from benchmarks.preference_arms import (
    ARMS,
    CHUNK,
    TRAINED,
    WINDOW_FRAMES,
    arm_setup,
    is_arm,
    make_training_clips,
    run_folder,
    run_name,
)
from benchmarks.record import Record
from benchmarks.timing import processor_seconds, stopwatch
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.files import write_json, write_text
from flowportrait.flow.noise import NoiseKey
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.conditioning import RewardSteering, ordered_weights
from flowportrait.models.sampler import sample_from_mel
from flowportrait.pipelines.animator import Animator
from flowportrait.pipelines.guidance import best_candidate, score_candidates
from flowportrait.pipelines.request import GUIDE_DIMENSIONS, parse_guide
from flowportrait.preferences.latent_reward import HISTORY_CHUNKS, LatentReward
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import build_reward
from flowportrait.rl.learner import Metrics
from flowportrait.rl.objectives.preference import DPO
from flowportrait.rl.offline_data import (
    OfflineDataConfig,
    OfflineSource,
    OfflineTask,
    clip_window_source,
    damaged_clip_source,
)
from flowportrait.rl.rollout import velocity_at
from flowportrait.rl.task import latent_regions
from flowportrait.rl.trainer import Trainer
from flowportrait.terminal import log
from flowportrait.training.state import write_checkpoint

BASELINE = "sft"
GUIDED = "guide sync=3,expression=1,motion=1"
CHOSEN = ("best of 2", "pruned 8", "best of 8")
"""The first two cost about as much as each other."""
SWEEP = tuple(f"guide {dimension}={weight}" for dimension in GUIDE_DIMENSIONS for weight in (1, 3, 10))
PROMPTS, HELD_OUT = 96, 48
DAMAGED_FRAMES = 20
"""Length of a clip that is damaged in time."""
MOUTH = latent_regions(CHUNK)["mouth"].bool()
"""Where the held-out pairs differ most, since they are labelled by sync."""
LOOKS = 4
"""Looks at held-out pairs during training, evenly in its time and not counted."""
SAMPLE_OFFSET = 1000
"""Distance of the seeds of samples among which one is chosen."""
METRIC_KEYS = (
    "sync_in_time_short", "lse_d_short", "ecs", "ecs_brows", "mouth_amplitude", "lid_motion", "gaze_std",
    "head_range", "tfi", "jerk",
)  # fmt: skip
LIKELIHOODS = ("winner_gain", "loser_gain", "margin_right", "velocity")
Part = Literal["train", "likelihood", "ratings", "motion", "videos", "cost"]


@dataclass(frozen=True)
class PreferenceMethodsOptions:
    """Compare ways of learning from preferences at equal processor time, and of choosing by a reward, with sft.

    train: the arms. likelihood: what became of winners and losers of held-out pairs. ratings: ratings of the reward
    side. motion: how much each part of the face moves. videos: finished videos measured by the evaluation. cost: of
    guidance and choosing. Supervised training on the same clips and DPO at a tenfold learning rate should lose.
    """

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage folder with portraits/."""
    output: Path
    """Folder of runs, ratings and videos; what is there is not done again."""
    part: tuple[Part, ...] = ("train", "likelihood", "ratings", "motion", "videos", "cost")
    """What to do, of train, likelihood, ratings, motion, videos, cost."""
    only: tuple[str, ...] = ()
    """Arms or systems; by default all arms, the guided systems and those that choose."""
    seeds: tuple[int, ...] = (0,)
    """Random seeds of training; a run of an arm each."""
    seconds: float = 60.0
    """Processor seconds of a run."""
    clips: int = 10
    """Clips of unseen speakers that are drawn."""
    choose_by: str = "preference"
    """The reward that chooses among whole samples."""


def preference_methods(options: PreferenceMethodsOptions, record: Record) -> None:
    """Do the parts that are asked for, in their order."""
    use_one_thread()
    chosen = options.only or (*ARMS, *SWEEP, GUIDED, *CHOSEN)
    systems = [BASELINE]
    for name in chosen:
        if name in TRAINED:
            systems += [run_name(name, seed) for seed in options.seeds]
        elif name.partition(" ")[0] in ("guide", "best", "pruned"):
            systems.append(name)
        elif name != BASELINE:
            raise BadInput(f"--only {name} is none of {', '.join(TRAINED)}, 'guide sync=3', 'best of 8', 'pruned 8'.")
    systems = list(dict.fromkeys(systems))
    runs = [system for system in systems if is_arm(system)]
    work: dict[Part, Callable[[], None]] = {
        "train": lambda: train(options, runs),
        "likelihood": lambda: add_likelihoods(options.output, runs, record),
        "ratings": lambda: add_ratings(options, systems, record),
        "motion": lambda: add_motion(options, systems, record),
        "videos": lambda: add_videos(options, systems, record),
        "cost": lambda: add_costs(options, record),
    }
    for part in work:
        if part in options.part:
            work[part]()


# ── training ───────────────────────────────────────────────────────────────────────────────────────────────────────


def train(options: PreferenceMethodsOptions, runs: Sequence[str]) -> None:
    """Leave checkpoint, curve.jsonl, and likelihood.json of the looks in the folder of every run."""
    start = load_generator(BASELINE)
    clips, unseen = (load_motion_clips(options.corpus, (split,)) for split in ("reward", "dev"))
    training, pairs = load_or_make(
        options.output / "clips.pt",
        lambda: (make_training_clips(start, clips, PROMPTS), make_training_clips(start, unseen, HELD_OUT).pairs),
    )
    held_out = {
        "samples": clip_window_source(pairs, WINDOW_FRAMES, ["sync"]),
        "real and out of time": damaged_clip_source(unseen, OfflineDataConfig(curriculum=1), DAMAGED_FRAMES),
    }
    for run in runs:
        arm, _, seed = run.partition("@")
        folder = run_folder(options.output, run)
        if (folder / "likelihood.json").is_file():
            continue
        trainer, spent = Trainer(load_generator(BASELINE), *arm_setup(arm, training, clips, int(seed))), 0.0
        curve: list[Metrics] = []
        looks: list[dict[str, Any]] = []
        for look in range(1, LOOKS + 1):
            while spent < options.seconds * look / LOOKS:
                with stopwatch() as step:
                    metrics = trainer.step()
                spent += step.processor
                curve.append({**metrics, "seconds": spent})
            with trainer.roles.use("ema"):
                found = {name: likelihood(trainer.policy.eval(), start, source) for name, source in held_out.items()}
            trainer.policy.train()
            looks.append({"seconds": spent, "iterations": len(curve), **found})
            log(f"{run} {json.dumps(looks[-1])}")
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(trainer, folder / "checkpoint")
        write_text(folder / "curve.jsonl", "".join(json.dumps(metrics) + "\n" for metrics in curve))
        write_json(folder / "likelihood.json", looks)


@torch.no_grad()
def likelihood(policy: ARFlow, start: ARFlow, source: OfflineSource) -> dict[str, float]:
    """Return what became of held-out pairs.

    Returns:
        How much better than ``sft`` the policy matches winners and losers (squared error of velocity; below zero they
        are less likely than they were), how often its margin is right, and the norm of its velocities over sft's.
    """
    task = OfflineTask(source, CHUNK)
    batch = task.draw(HELD_OUT, 0, 1)
    trajectory = task.build_rollouts(start, batch, torch.arange(HELD_OUT)).trajectory
    points = DPO().points(trajectory, NoiseKey(7))
    now, before = velocity_at(policy, trajectory, points), velocity_at(start, trajectory, points)
    assert points.target is not None, "noised points have a target"
    gain = ((before - points.target).square() - (now - points.target).square())[..., MOUTH].flatten(1).mean(1)
    first, second = gain.view(-1, 2).T
    sync = batch.scores["sync"]
    decided = sync[:, 0] != sync[:, 1]
    first_won = (sync[:, 0] > sync[:, 1])[decided]
    first, second = first[decided], second[decided]
    winner, loser = torch.where(first_won, first, second), torch.where(first_won, second, first)
    return {
        "pairs": int(decided.sum()),
        "winner_gain": float(winner.mean()),
        "loser_gain": float(loser.mean()),
        "margin_right": float((winner > loser).float().mean()),
        "velocity": float(now.square().mean().sqrt() / before.square().mean().sqrt()),
    }


def add_likelihoods(output: Path, runs: Sequence[str], record: Record) -> None:
    """Add the last look of every run."""
    for run in runs:
        path = run_folder(output, run) / "likelihood.json"
        if path.is_file():
            look = json.loads(path.read_text())[-1]
            for source in ("samples", "real and out of time"):
                for key in LIKELIHOODS:
                    record.add(run, key.replace("_", " "), look[source][key], n=look[source]["pairs"],
                               group=f"likelihood of held-out pairs: {source}")  # fmt: skip


# ── motion and videos ──────────────────────────────────────────────────────────────────────────────────────────────


def samples_of(system: str) -> int:
    """Return the number of samples, or of candidates for every chunk, among which a system chooses."""
    return int(system.rpartition(" ")[2])


def generator_of(system: str, output: Path) -> ARFlow:
    """Return the generator of a system."""
    return load_generator(run_folder(output, system) / "checkpoint" if is_arm(system) else BASELINE)


def steering_of(system: str) -> RewardSteering | None:
    """Return the guidance of a system, or its choice among the candidates for a chunk; None if it has neither."""
    if system.startswith("guide "):
        weights = ordered_weights(parse_guide(system.removeprefix("guide ")), GUIDE_DIMENSIONS)
        return RewardSteering(LatentReward.load(), weights, history_chunks=HISTORY_CHUNKS)
    if system.startswith("pruned "):
        candidates = samples_of(system)
        return RewardSteering(
            LatentReward.load(), choose=(1.0, 1.0, 1.0), candidates=candidates, history_chunks=HISTORY_CHUNKS
        )
    return None


def sample_motion(system: str, output: Path, mel: torch.Tensor) -> torch.Tensor:
    """Return the motion ``[B, T, 30]`` of a system for log-mel ``[B, 4T, 80]``; the same seeds for all systems."""
    model, seeds, steering = generator_of(system, output), list(range(len(mel))), steering_of(system)
    if system.startswith("best of "):
        offsets = range(0, SAMPLE_OFFSET * samples_of(system), SAMPLE_OFFSET)
        samples = [sample_from_mel(model, mel, [seed + offset for seed in seeds]) for offset in offsets]
        scores = torch.stack([build_reward("preference")(RewardBatch(motion, mel)).value for motion in samples])
        return torch.stack(samples)[scores.argmax(0), torch.arange(len(mel))]
    if system.startswith("pruned "):
        rows = [sample_from_mel(model, mel[row : row + 1], [seed], steering=steering) for row, seed in enumerate(seeds)]
        return torch.cat(rows)
    return sample_from_mel(model, mel, seeds, steering=steering)


def add_ratings(options: PreferenceMethodsOptions, systems: Sequence[str], record: Record) -> None:
    """Rate the motion of every system, and compare it with ``sft``."""
    path = options.output / "ratings.json"
    ratings: dict[str, list[list[float]]] = json.loads(path.read_text()) if path.is_file() else {}
    mel = load_speech(options.corpus)
    for system in systems:
        if system not in ratings:
            log(f"Rating {system}")
            ratings[system] = rate(sample_motion(system, options.output, mel), mel).tolist()
            options.output.mkdir(parents=True, exist_ok=True)
            write_json(path, ratings, indent=None)
    rows = {system: rating_rows(torch.tensor(ratings[system])) for system in systems}
    compare_runs(record, rows, RATINGS, baseline=BASELINE, group="ratings of the reward side")


def add_motion(options: PreferenceMethodsOptions, systems: Sequence[str], record: Record) -> None:
    """Add how much each part of the face moves, as a factor of ``sft``."""
    mel = load_speech(options.corpus)
    start = sample_motion(BASELINE, options.output, mel)
    for system in systems[1:]:
        add_amplitudes(record, system, sample_motion(system, options.output, mel), start, BASELINE)


def motion_function(system: str, options: PreferenceMethodsOptions) -> Generate:
    """Return what makes the motion of a system from speech and a seed, as the product does it."""
    animator, steering = Animator(generator_of(system, options.output)), steering_of(system)

    def once(audio: np.ndarray, seed: int) -> torch.Tensor:
        return generate_motion(animator, audio, seed, steering)

    if not system.startswith("best of "):
        return once
    reward = build_reward(options.choose_by)

    def best(audio: np.ndarray, seed: int) -> torch.Tensor:
        seeds = [seed + SAMPLE_OFFSET * sample for sample in range(samples_of(system))]
        return best_candidate(score_candidates(lambda own: [once(audio, own)], seeds, audio, reward)).motion

    return best


@torch.no_grad()
def add_videos(options: PreferenceMethodsOptions, systems: Sequence[str], record: Record) -> None:
    """Draw and measure every system, and compare it with ``sft``, an arm over all its seeds."""
    faces = codecs(options.data, 3, retouch=False)
    rows: dict[str, Rows] = {}
    for system in systems:
        log(f"Drawing {system}")
        generate, folder = motion_function(system, options), options.output / "videos" / system.replace(" ", "_")
        rows[system] = {
            name: draw_and_measure(
                folder / f"{name}.mp4", faces[index % len(faces)],
                partial(generate, clip.audio, index), clip.audio,
            )
            for index, (name, clip) in enumerate(choice_clips(options.corpus, options.clips).items())
        }  # fmt: skip
    compare_runs(record, rows, METRIC_KEYS, baseline=BASELINE, group="finished videos")


@torch.no_grad()
def add_costs(options: PreferenceMethodsOptions, record: Record) -> None:
    """Add the processor seconds of motion per second of speech, and as a factor of those of ``sft``."""
    audio = np.concatenate([clip.audio for clip in choice_clips(options.corpus, 4).values()])
    seconds: dict[str, float] = {}
    for system in (BASELINE, GUIDED, *CHOSEN):
        generate = motion_function(system, options)
        generate(audio, 0)
        times = [processor_seconds(partial(generate, audio, seed)) * SAMPLE_RATE / len(audio) for seed in (1, 2, 3)]
        seconds[system] = float(np.median(times))
        record.add(system, "processor time", bootstrap_mean(np.array(times)), unit="s per s of speech", group="cost")
        record.add(system, "factor of sft", seconds[system] / seconds[BASELINE], group="cost")

"""Ways of learning from preferences at equal processor time, judged on finished mp4 of speakers nobody trained on.

    python benchmarks/preference_methods.py CORPUS FOOTAGE OUTPUT train       # 60 s of processor time an arm
    python benchmarks/preference_methods.py CORPUS FOOTAGE OUTPUT likelihood  # what became of winners and losers
    python benchmarks/preference_methods.py CORPUS FOOTAGE OUTPUT rate        # motion of every system, quickly
    python benchmarks/preference_methods.py CORPUS FOOTAGE OUTPUT parts       # which part of the face a weight moves
    python benchmarks/preference_methods.py CORPUS FOOTAGE OUTPUT draw        # finished mp4 of every system, measured
    python benchmarks/preference_methods.py CORPUS FOOTAGE OUTPUT table       # compare with sft, clip by clip
    python benchmarks/preference_methods.py CORPUS FOOTAGE OUTPUT cost        # of guiding and choosing

Every arm starts from ``sft``, sees the same speakers and has the same processor seconds, acting and scoring included
(wall-clock on a machine that does other things measures those). Guidance and best-of-n train nothing. Labels come from
the reward side, verdicts from the evaluation side. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from preference_arms import ARMS, CHUNK, FRAMES, again, setup, trained
from preference_material import material

from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.flow.noise import NoiseKey
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.rl.collection import ScoredRollouts
from flowportrait.rl.learner import Metrics
from flowportrait.rl.objectives.interface import Advantage
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
from flowportrait.training.state import write_checkpoint

SEEDS = 3
PROMPTS = 96
HELD_OUT = 48
SHORT = 20
"""Frames of a damaged clip."""
MOUTH = latent_regions(CHUNK)["mouth"].bool()
"""Where the pairs that are looked at differ most: they are labelled by sync."""
LOOKS = 4
"""At an arm on held-out pairs while it trains, evenly in its time and outside it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "footage", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("stage", choices=("train", "draw", "table", "cost", "rate", "parts", "likelihood"))
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time per arm")
    parser.add_argument("--clips", type=int, default=10)
    parser.add_argument("--by", default="preference", help="what chooses among whole performances")
    parser.add_argument("--only", nargs="*", help="of the arms or systems")
    parser.add_argument("--moved", action="store_true", help="table: what guidance moves, part by part of the face")
    parser.add_argument("--seed", type=int, default=0, help="of the training; systems of it are called ARM@SEED")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = options.only
    if options.stage == "train":
        train(options.corpus, options.output, options.seconds, ARMS if chosen is None else chosen, options.seed)
        return
    if options.stage == "likelihood":
        likelihoods(options.output, ARMS if chosen is None else chosen)
        return
    from preference_motion import SWEEP, SYSTEMS, parts, rated

    if options.stage == "parts":
        parts(options.corpus, options.output, SWEEP if chosen is None else chosen)
        return

    systems = SYSTEMS if chosen is None else chosen
    if options.stage == "rate":
        rated(options.corpus, options.output, systems)
        return
    from preference_judged import MOVED, READ, cost, draw, table

    if options.stage == "table":
        every = dict.fromkeys(again(system, seed) for system in systems for seed in range(SEEDS))
        table(options.output, list(every), MOVED if options.moved else READ, options.moved)
        return
    if options.stage == "cost":
        cost(options.corpus, options.output, options.by)
        return
    for system in systems:
        draw(options.corpus, options.footage, options.output, options.clips, system, options.by)


def train(corpus: Path, output: Path, seconds: float, arms: Sequence[str], seed: int) -> None:
    """Every arm to ``trained(OUTPUT, ARM@SEED)``: checkpoint, curve.jsonl, and likelihood.json of its looks."""
    start = load_generator("sft")
    clips = load_motion_clips(corpus, ("reward",))
    kept = output / "material.pt"
    if not kept.is_file():
        output.mkdir(parents=True, exist_ok=True)
        held_out = material(start, load_motion_clips(corpus, ("dev",)), HELD_OUT).pairs
        torch.save((material(start, clips, PROMPTS), held_out), kept.with_suffix(".partial"))
        kept.with_suffix(".partial").replace(kept)
    made, own = torch.load(kept, weights_only=False)
    held = {
        "performances": clip_window_source(own, FRAMES, ["sync"]),
        "real and out of time": damaged_clip_source(
            load_motion_clips(corpus, ("dev",)), OfflineDataConfig(curriculum=1), SHORT
        ),
    }
    for arm in arms:
        folder = trained(output, again(arm, seed))
        if (folder / "likelihood.json").is_file():
            continue
        trainer, spent = Watched(load_generator("sft"), *setup(arm, made, clips, seed)), 0.0
        curve: list[Metrics] = []
        looks: list[dict[str, object]] = []
        for look in range(1, LOOKS + 1):
            while spent < seconds * look / LOOKS:
                began = time.process_time()
                record = trainer.step()
                spent += time.process_time() - began
                curve.append({**record, "seconds": spent})
            with trainer.roles.use("ema"):
                found = {name: likelihood(trainer.policy.eval(), start, source) for name, source in held.items()}
            trainer.policy.train()
            looks.append({"seconds": spent, "iterations": len(curve), **found})
            print(again(arm, seed), json.dumps(looks[-1]), flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_checkpoint(trainer, folder / "checkpoint")
        (folder / "curve.jsonl").write_text("".join(json.dumps(record) + "\n" for record in curve))
        (folder / "likelihood.json").write_text(json.dumps(looks, indent=1) + "\n")


class Watched(Trainer):
    """Also logs ``negative``, the share of own samples that a step pushes away from."""

    def credit(self, batch: ScoredRollouts) -> tuple[Advantage, Metrics]:
        advantage, metrics = super().credit(batch)
        own = advantage.per_sample[~batch.trajectory.real]
        return advantage, metrics | {"negative": float((own < 0).float().mean())}


@torch.no_grad()
def likelihood(policy: ARFlow, start: ARFlow, source: OfflineSource) -> dict[str, float]:
    """On pairs of unseen speakers: how much better than ``sft`` an arm matches winners and losers (their squared error
    of velocity; below zero they are less likely than they were), how often its margin is right, and the norm of its
    velocities over sft's."""
    task = OfflineTask(source, CHUNK)
    shown = task.draw(HELD_OUT, 0, 1)
    trajectory = task.show(start, shown, torch.arange(HELD_OUT)).trajectory
    points = DPO().points(trajectory, NoiseKey(7))
    now, before = velocity_at(policy, trajectory, points), velocity_at(start, trajectory, points)
    assert points.target is not None, "noised points have a target"
    gain = ((before - points.target).square() - (now - points.target).square())[..., MOUTH].flatten(1).mean(1)
    first, second = gain.view(-1, 2).T
    a_won = shown.scores["sync"][:, 0] > shown.scores["sync"][:, 1]
    decided = shown.scores["sync"][:, 0] != shown.scores["sync"][:, 1]
    winner, loser = torch.where(a_won, first, second)[decided], torch.where(a_won, second, first)[decided]
    return {
        "pairs": int(decided.sum()),
        "winner_gain": float(winner.mean()),
        "loser_gain": float(loser.mean()),
        "margin_right": float((winner > loser).float().mean()),
        "velocity": float(now.square().mean().sqrt() / before.square().mean().sqrt()),
    }


def likelihoods(output: Path, arms: Sequence[str]) -> None:
    """The last look of every arm, mean over its seeds and their range."""
    for arm in arms:
        kept = [trained(output, again(arm, seed)) / "likelihood.json" for seed in range(SEEDS)]
        looks = [json.loads(path.read_text())[-1] for path in kept if path.is_file()]
        for pairs in ("performances", "real and out of time") if looks else ():
            cells = []
            for figure in ("winner_gain", "loser_gain", "margin_right", "velocity"):
                found = [look[pairs][figure] for look in looks]
                cells.append(f"{figure} {sum(found) / len(found):+.3f} [{min(found):+.3f}, {max(found):+.3f}]")
            print(f"{arm:20} {len(looks)} seeds, {pairs:22}", "  ".join(cells))


if __name__ == "__main__":
    main()

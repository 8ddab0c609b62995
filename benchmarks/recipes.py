"""Recipes and controls after equal processor time, on speakers that nothing was trained on.

    python benchmarks/recipes.py --corpus CORPUS --data FOOTAGE --prompts DIR --held-out DIR2 --output RUNS
        [--study recipes hacks …] [--seeds 0 1 2] [--seconds 120] [--only NAME ...]

    RUNS/NAME/SEED/   checkpoint/   curve.jsonl: rewards on held-out prompts by processor seconds
                      held.json: the same per performance, at the end
                      videos/       rows.json: the evaluation's figures of finished mp4, unseen speakers

Every contestant starts from ``sft`` and gets the same number of processor seconds for acting, scoring and learning.
Processor time and not wall-clock: on a machine that does other things, wall-clock measures those. Held-out looks are
not counted. Seed by seed, so that an evening cut short leaves every contestant with as many; what is there already is
not done again. ``results.py`` makes the page from the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from arena import Bench
from contestants import CONTESTANTS, PAID, PARTS, SMALL, STUDIES
from controls import continued, tuned
from judged import evaluate
from rich.console import Console

from flowportrait.config import override
from flowportrait.models.arflow import load_generator
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.trainer import Trainer

LOOKS = 2
_OUT = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "data", "prompts", "held-out", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--study", choices=tuple(STUDIES), nargs="+", default=["recipes"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--only", nargs="+", help="of the study's contestants")
    parser.add_argument("--stage", choices=("train", "evaluate", "both"), default="both")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.corpus, given.data, given.prompts, given.held_out, given.output, given.seconds, given.clips)
    names = dict.fromkeys(name for study in given.study for name in STUDIES[study])
    wanted = [name for name in names if not given.only or name in given.only]
    for seed in given.seeds:
        for name in wanted:
            if given.stage != "evaluate":
                train(bench, name, seed)
            if given.stage != "train":
                _OUT.print(f"measuring {name}, seed {seed}")
                evaluate(bench, name, seed)
    if given.stage != "train":
        evaluate(bench, "real", 0)


def train(bench: Bench, name: str, seed: int) -> None:
    """Leave a contestant's checkpoint and curve in its folder, unless they are there."""
    folder = bench.folder(name, seed)
    if (folder / "checkpoint" / "config.json").is_file() or name in ("sft", *PARTS, *PAID):
        return
    folder.mkdir(parents=True, exist_ok=True)
    _OUT.print(f"{name}, seed {seed}")
    if name == "supervised on":
        model = continued(bench.corpus, bench.output / "heard.pt", bench.seconds, seed)
        model.save_pretrained(folder / "checkpoint")
    elif name == "sft tuned":
        tune(bench, folder, seed)
    else:
        post_train(bench, name, folder, seed)


def post_train(bench: Bench, name: str, folder: Path, seed: int) -> None:
    """Iterations of a recipe until its processor seconds are spent."""
    contestant = CONTESTANTS[name]
    recipe = override(find_recipe(contestant.recipe), [*SMALL, *contestant.settings, f"seed={seed}"])
    task = bench.shown if recipe.exemplars else bench.spoken
    trainer = Trainer(load_generator("sft"), task, recipe, CompositeReward.default(recipe.rewards))
    seen = bench.at_start(trainer.policy)
    records = [{"iteration": 0.0, "seconds": 0.0, **means(seen)}]
    spent, due = 0.0, bench.seconds / LOOKS
    while spent < bench.seconds:
        begun = time.process_time()
        record = trainer.step()
        spent += time.process_time() - begun
        record["seconds"] = spent
        if spent >= due:
            with trainer.rollout_mode("ema"):
                seen = bench.watch(trainer.policy)
            record |= means(seen)
            due += bench.seconds / LOOKS
        records.append(record)
    with trainer.roles.use("ema"):
        trainer.policy.save_pretrained(folder / "checkpoint")
    (folder / "held.json").write_text(json.dumps(seen) + "\n")
    (folder / "curve.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def means(seen: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of every watched reward, under the name that curves have it by."""
    return {f"held/{name}": sum(values) / len(values) for name, values in seen.items()}


def tune(bench: Bench, folder: Path, seed: int) -> None:
    """Sampling settings for ``sft`` by the training reward on training prompts."""
    task = bench.spoken
    assert task.renderer_for is not None, "these tasks draw"
    model = load_generator("sft")
    sampling = tuned(model, task.draw(8, seed, 0), bench.everything, task.renderer_for, _OUT.print)
    (folder / "sampling.json").write_text(json.dumps(asdict(sampling), indent=1) + "\n")
    load_generator("sft").save_pretrained(folder / "checkpoint")


if __name__ == "__main__":
    main()

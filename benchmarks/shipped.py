"""The runs that ``rl`` is the mean of, and the same paid at random or with one reward left out.

    python benchmarks/shipped.py --corpus CORPUS --prompts DIR --output RUNS [--only NAME …] [--seeds 0 1 2]
        [--iterations 60] [--finish [--heard FILE]]

    RUNS/NAME/SEED/run/          the run folder of ``flowportrait posttrain``
    RUNS/NAME/SEED/checkpoint/   its weights, for ``recipes.py --study paid --stage evaluate``
    RUNS/NAME/SEED/finished/     with --finish: for ``heldout.py``; of ``crowd``, from three seeds, ``rl`` is the mean
                                 (``python -m tools.average_checkpoints RUNS/crowd/*/finished --output rl``)

Finishing is ¼ ``sft`` and ¾ of the run, wider noise for the eyes, then the lips of ``sft``
(``tools.graft_checkpoint``).
``paid at random`` has the same regions and weights, and its pay knows nothing: what that run becomes is drift.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import torch
from contestants import PAID
from rich.console import Console
from tools.average_checkpoints import soup
from tools.graft_checkpoint import grafted

from flowportrait.config import override
from flowportrait.models.arflow import checkpoint_folder, load_generator
from flowportrait.rl.config import PostTrainConfig, Recipe
from flowportrait.rl.post_trainer import PostTrainer

SHARES, SPREAD_EYES, GRAFT_STEPS = (0.25, 0.75), 1.3, 400
_OUT = Console(stderr=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "prompts", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=PAID, default=list(PAID))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--finish", action="store_true")
    parser.add_argument("--heard", type=Path, help="what a supervised run remembered, to save listening")
    given = parser.parse_args()
    torch.set_num_threads(1)
    shipped = PostTrainConfig.from_json(checkpoint_folder("rl") / "recipe.json")
    for seed in given.seeds:
        for name in given.only:
            folder = given.output / name.replace(" ", "_") / str(seed)
            if not (folder / "checkpoint").is_dir():
                _OUT.print(f"{name}, seed {seed}")
                recipe = replace(paid(shipped, name), seed=seed, iterations=given.iterations, evaluate_every=1000)
                run = PostTrainer(config=recipe, train_prompts=given.prompts, output_dir=folder / "run")
                run.train(resume=True)
                shutil.copytree(folder / "run" / "checkpoint", folder / "checkpoint")
            if given.finish and not (folder / "finished").is_dir():
                finish(folder, given.corpus, given.heard)


def paid(recipe: Recipe, name: str) -> Recipe:
    """The recipe, paid as ``name`` says: ``crowd`` (as it ships), ``paid at random``, ``without REWARD``."""
    rewards, allocation = recipe.rewards, recipe.allocation
    if name == "paid at random":
        weights: dict[str, float] = {}
        for reward, weight in rewards.by_name().items():
            chance = f"chance_{allocation.regions[reward]}"
            weights[chance] = weights.get(chance, 0.0) + weight
        regions = {chance: chance.removeprefix("chance_") for chance in weights}
        return replace(
            recipe, rewards=replace(rewards, sync=0.0, other=weights), allocation=replace(allocation, regions=regions)
        )
    if name == "crowd":
        return recipe
    gone = name.removeprefix("without ")
    kept = {reward: weight for reward, weight in rewards.other.items() if reward != gone}
    regions = {reward: region for reward, region in allocation.regions.items() if reward != gone}
    sync = 0.0 if gone == "sync" else rewards.sync
    return replace(
        recipe, rewards=replace(rewards, sync=sync, other=kept), allocation=replace(allocation, regions=regions)
    )


def finish(folder: Path, corpus: Path, heard: Path | None) -> None:
    """From a run's checkpoint to what would ship of it."""
    mixed = soup([load_generator("sft"), load_generator(folder / "checkpoint")], SHARES)
    mixed.config = override(mixed.config, [f"spread_eyes={SPREAD_EYES}"])
    grafted(load_generator("sft"), mixed, corpus, heard, GRAFT_STEPS).save_pretrained(folder / "finished")


if __name__ == "__main__":
    main()

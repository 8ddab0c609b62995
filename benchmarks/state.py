"""What saving a run costs: a state that survives anything, against one plain ``torch.save``, same weights and disk.

python benchmarks/state.py [FOLDER] [--lora]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from flowportrait.models.arflow import load_generator
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import SpeechItem, TalkingTask
from flowportrait.rl.trainer import Trainer
from flowportrait.training.lora import LoraSettings
from flowportrait.training.state import read_state, write_state

TIMES = 5


class Lift:
    """A reward that costs nothing."""

    name = "lift"
    needs = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        return all_valid(batch.motion[..., 0].mean(1))


def trainer(recipe: Recipe) -> Trainer:
    """The shipped generator after one iteration, so that there are moments to save."""
    policy = load_generator("sft")
    task = TalkingTask([SpeechItem(torch.randn(160, 80), 0)], recipe.frames, None, policy.config.chunk)
    run = Trainer(policy, task, recipe, CompositeReward((Lift(),), {"lift": 1.0}))
    run.step()
    return run


def median(work: Callable[[], object]) -> float:
    """Seconds."""
    took = []
    for _ in range(TIMES):
        started = time.monotonic()
        work()
        took.append(time.monotonic() - started)
    return sorted(took)[TIMES // 2]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, nargs="?", default=Path(tempfile.gettempdir()))
    options.add_argument("--lora", action="store_true")
    chosen = options.parse_args()
    recipe = replace(find_recipe("flow-grpo"), groups=1, group_size=2, frames=32, updates=1)
    run = trainer(replace(recipe, lora=LoraSettings()) if chosen.lora else recipe)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)

        def plain() -> None:
            with (folder / "plain.pt").open("wb") as file:
                torch.save(run.state_dict(), file)
                file.flush()
                os.fsync(file.fileno())

        def whole() -> None:
            run.iteration += 1
            write_state(run, folder / "state")

        baseline, ours = median(plain), median(whole)
        back = median(lambda: read_state(run, folder / "state"))
        size = sum(path.stat().st_size for path in (folder / "state").rglob("*") if path.is_file())
    print(f"state: {size / 2**20:.1f} MiB   torch.save + fsync: {baseline:.3f} s   write: {ours:.3f} s "
          f"({ours / baseline:.1f} x)   read: {back:.3f} s")  # fmt: skip


if __name__ == "__main__":
    main()

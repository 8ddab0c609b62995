"""What the tests of Ray run in the processes of a cluster: a task, and rewards."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid


def held_square(number: int, log: Path, released: Path) -> tuple[int, float]:
    """A task that leaves a line about where it began, and does not end before there is a file ``released``."""
    import ray

    with log.open("a") as file:
        file.write(f"{number} {ray.get_runtime_context().get_node_id()} {os.getpid()}\n")
    while not released.exists():
        time.sleep(0.05)
    return number, number**2 / 7


@dataclass(frozen=True)
class Opening:
    """Pays for an open mouth, and writes down the process in which it did."""

    log: Path
    name: str = "opening"
    needs: frozenset[str] = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return all_valid(batch.motion[..., 0].mean(1))


class LockedOpening(Opening):
    """The same, with a lock, which cannot be pickled."""

    def __init__(self, log: Path) -> None:
        super().__init__(log, "locked")
        object.__setattr__(self, "lock", threading.Lock())

"""The same work on one process and on two (gloo): run as a program, it leaves what each found in a folder.

    python -m tests.processes FOLDER            →   FOLDER/one.pt, FOLDER/two0.pt, FOLDER/two1.pt
    python -m tests.processes FOLDER --recipes  →   one step of every recipe, on one and on two
    python -m tests.processes FOLDER --loop         a run without end, for launchers

Processes are forked from one that has imported everything, with the variables that torchrun would set.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp
from accelerate.state import AcceleratorState

from flowportrait.models.arflow import ARFlow
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import RewardUnavailable, Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.credit import CreditConfig
from flowportrait.rl.loop import TrainingLoop
from flowportrait.rl.plan import AllSteps
from flowportrait.rl.task import SpeechItem, TalkingTask
from flowportrait.rl.trainer import Trainer
from flowportrait.training.learner import SlowCopy
from flowportrait.training.lora import LoraSettings
from flowportrait.training.state import read_state, write_checkpoint, write_state
from tests.models.test_generator import TINY

RECIPE = Recipe(
    "tiny", groups=2, group_size=4, frames=28, plan=AllSteps(steps=3), learning_rate=1e-3, eta=0.7, grad_clip=0.1,
    credit=CreditConfig(std="largest"),
)  # fmt: skip
Found = dict[str, Any]


@dataclass(frozen=True)
class Lift:
    """Pays for a large first coefficient. ``away``: iterations at which some process gets no answer."""

    away: tuple[int, ...] = ()
    process: int = 0
    slow: float = 0.0
    name: str = "lift"
    needs: frozenset[str] = frozenset({"motion"})
    calls: list[int] = None  # type: ignore[assignment]

    def __call__(self, batch: RewardBatch) -> Score:
        own = int(os.environ.get("RANK", 0)) == self.process
        time.sleep(self.slow if own else 0)
        if self.calls is not None:
            self.calls.append(1)
            if own and len(self.calls) in self.away:
                raise RewardUnavailable("the server is away")
        return all_valid(batch.motion[..., 0].mean(1))


def trainer(recipe: Recipe = RECIPE, reward: Lift | None = None) -> Trainer:
    torch.manual_seed(0)
    policy = ARFlow(TINY)
    for parameter in policy.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    items = [SpeechItem(torch.randn(160, 80, generator=torch.Generator().manual_seed(i)), 0) for i in range(5)]
    task = TalkingTask(items, recipe.frames, None, TINY.chunk)
    return Trainer(policy, task, recipe, CompositeReward((reward or Lift(),), {"lift": 1.0}))


def weights(run: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """All roles, whole."""

    def full(tensor: Any) -> torch.Tensor:
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    roles = run.roles.state_dict()
    return {role: {name: full(value).clone() for name, value in own.items()} for role, own in roles.items()}


def state(run: Trainer, **more: Any) -> Found:
    return {"weights": weights(run), "iteration": run.iteration, "updates": run.updates, **more}


def iterate(run: Trainer, count: int) -> Found:
    """Some iterations, with the samples of the last."""
    seen: list[Any] = []
    collect = run.collect
    run.collect = lambda: (seen.append(collect()), seen[-1])[1]  # type: ignore[method-assign]
    records = [run.step() for _ in range(count)]
    last = seen[-1].trajectory
    samples = {int(i): (last.noise[row], last.latents[row]) for row, i in enumerate(last.sample)}
    return state(run, records=records, samples=samples)


def sharded(work: Callable[[], Found]) -> Found:
    """With the weights in shards, where there are processes to shard over."""
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    try:
        return work()
    finally:
        del os.environ["ACCELERATE_USE_FSDP"]


def resumed(recipe: Recipe, folder: Path, count: int) -> Found:
    run = trainer(recipe)
    read_state(run, folder)
    return iterate(run, count)


def kept(recipe: Recipe, folder: Path, count: int) -> Found:
    run = trainer(recipe)
    found = iterate(run, count)
    write_state(run, folder)
    write_checkpoint(run, folder / "checkpoint")
    return found


def poisoned(on: int) -> Found:
    """A sample that is not numbers, on one process only."""
    run = trainer()
    before = {key: value.clone() for key, value in run.state_dict().items()}
    condition = run.task.condition

    def broken(policy: Any, prompts: Any) -> Any:
        found = condition(policy, prompts)
        if run.accelerator.process_index == on:
            found.audio[0] = torch.nan
        return found

    run.task.condition = broken  # type: ignore[method-assign]
    record = run.step()
    untouched = all(torch.equal(before[key], value) for key, value in run.state_dict().items())
    run.task.condition = condition  # type: ignore[method-assign]
    return {"record": record, "untouched": untouched, "then": run.step()}


def troubled(folder: Path, on: int) -> Found:
    """A run in shards of which one process is slow, finds the disk full for a while, and is told to stop."""
    recipe = replace(RECIPE, iterations=9, checkpoint_every=1, frames=16)
    run = trainer(recipe, Lift(slow=1.5, process=on))
    step, flush = run.step, os.fsync

    def fsync(handle: int) -> None:
        if own and run.iteration == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    def stepped() -> dict[str, float]:
        if own and run.iteration == 2:
            signal.raise_signal(signal.SIGTERM)
        return step()

    own = run.accelerator.process_index == on
    run.step, os.fsync = stepped, fsync  # type: ignore[method-assign]
    ended = ""
    try:
        TrainingLoop(run, folder).run()
    except SystemExit as error:
        ended = f"exit {error.code}"
    finally:
        os.fsync = flush
    return {"iteration": run.iteration, "ended": ended}


STALE = replace(RECIPE, staleness=1)
RECOMPUTED = replace(RECIPE, checkpointing=True, old=SlowCopy())
LORA = replace(RECIPE, lora=LoraSettings(rank=2), micro_batch=3)


def main(folder: Path, processes: int) -> None:
    """Every scenario; what one process and what two write is kept apart."""
    own, last = folder / ("one" if processes == 1 else "two"), processes - 1
    found = {
        "replicated": iterate(trainer(replace(RECIPE, micro_batch=3, group_size=5)), 2),
        "sharded": sharded(lambda: kept(RECIPE, own / "sharded", 2)),
        "adapters in shards": sharded(lambda: kept(LORA, own / "adapters", 2)),
        "recomputed in shards": sharded(lambda: iterate(trainer(RECOMPUTED), 1)),
        "stale": kept(STALE, own / "stale", 3),
        "poisoned": poisoned(last),
        "deaf": iterate(trainer(reward=Lift((1,), last, calls=[])), 1),
        "troubled": sharded(lambda: troubled(own / "troubled", last)),
    }
    torch.save(found, folder / f"{own.name}{os.environ.get('RANK', '')}.pt")


def resume(folder: Path, processes: int) -> None:
    """On as many processes what the other number of them left."""
    other, own = ("two", "one") if processes == 1 else ("one", "two")
    found = {
        "stale": resumed(STALE, folder / other / "stale", 1),
        "sharded": sharded(lambda: resumed(RECIPE, folder / other / "sharded", 1)),
        "sharded, then replicated": resumed(RECIPE, folder / other / "sharded", 1),
        "adapters in shards": sharded(lambda: resumed(LORA, folder / other / "adapters", 1)),
    }
    torch.save(found, folder / f"resumed-{own}{os.environ.get('RANK', '')}.pt")


def every_recipe(folder: Path, processes: int) -> None:
    """One step of each, cut to the tiny policy; after one step, the first moment is a tenth of the gradient."""
    from flowportrait.rl.recipes import CARDS, find_recipe
    from tests.rl.test_posttrain import trainer as with_real_clips
    from tests.rl.test_recipes import small

    found = {}
    for name in CARDS:
        run = with_real_clips(replace(small(find_recipe(name)), groups=2, updates=1, epochs=1, grad_clip=1e9))
        own = iterate(run, 1)
        moments = [value.flatten() for key, value in run.state_dict().items() if key.startswith("optimizer.exp_avg/")]
        found[name] = {"samples": own["samples"], "gradient": 10 * torch.cat(moments)}
    torch.save(found, folder / f"recipes-{'one' if processes == 1 else 'two'}{os.environ.get('RANK', '')}.pt")


def fork(work: Callable[[], None], **environment: str) -> int:
    """A process that does the work and ends; returns its id."""
    sys.stdout.flush()
    if process := os.fork():
        return process
    try:
        os.environ.update(environment)
        AcceleratorState._reset_state(True)
        work()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def joined(ids: list[int]) -> None:
    for process in ids:
        _, status = os.waitpid(process, 0)
        if status:
            raise SystemExit(f"a process ended with {status}")


def together(work: Callable[[int], None]) -> list[int]:
    """Two processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [fork(lambda: work(2), RANK=str(r), LOCAL_RANK=str(r), **common) for r in range(2)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    if "--loop" in sys.argv:
        TrainingLoop(trainer(replace(RECIPE, iterations=1000, checkpoint_every=1000)), target).run()
        raise SystemExit
    if "--recipes" in sys.argv:
        joined([fork(lambda: every_recipe(target, 1)), *together(lambda count: every_recipe(target, count))])
        raise SystemExit
    joined([fork(lambda: main(target, 1)), *together(lambda count: main(target, count))])
    joined([fork(lambda: resume(target, 1)), *together(lambda count: resume(target, count))])

"""A week-long run's hazards, compressed: what happens is written down, and nothing that was learned is lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn

from flowportrait.errors import BadInput
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Score, all_valid
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.loop import EventLog, TrainingLoop
from flowportrait.rl.trainer import Trainer
from flowportrait.training.json_lines import JsonLinesLog
from flowportrait.training.state import latest_state, read_state, write_state
from tests.processes import RECIPE, Lift, trainer

SMALL = replace(RECIPE, groups=2, frames=16, iterations=4, checkpoint_every=1)
STALE = replace(SMALL, staleness=1)


def weights(run: Trainer) -> list[torch.Tensor]:
    return [value.clone() for own in run.roles.state_dict().values() for value in own.values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def loop(folder: Path, run: Trainer | None = None, resume: bool = False) -> TrainingLoop:
    run = run or trainer(SMALL)
    if resume:
        read_state(run, folder / "state")
    return TrainingLoop(run, folder)


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight() -> list[torch.Tensor]:
    """All weights after four iterations that nothing disturbed."""
    run = trainer(SMALL)
    for _ in range(4):
        run.step()
    return weights(run)


FILE_WORK = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")


def write_and_die(run: Trainer, folder: Path, at: int) -> bool:
    """Write a state in a process of its own that is killed at its ``at``-th dealing with the file system; returns
    whether it lived. Every second time what was last written is cut in half, as after a power failure."""
    process = os.fork()
    if process == 0:
        count = itertools.count()

        def die(event: str, arguments: Any) -> None:
            if event in FILE_WORK and str(folder) in str(arguments[0]) and next(count) == at:
                for path in folder.rglob("*.partial/**/*"):
                    if at % 2 and path.is_file():
                        os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
        write_state(run, folder)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status == 0


def test_killed_anywhere_while_saving_the_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    run, states = trainer(STALE), {}
    for _ in range(3):
        run.step()
        states[run.iteration] = weights(run)
        if run.iteration == 2:
            write_state(run, tmp_path / "before")
    found, again = [], trainer(STALE)
    for at in itertools.count():
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "before", folder)
        lived = write_and_die(run, folder, at)
        read_state(again, folder)
        assert same(weights(again), states[again.iteration])
        found.append(again.iteration)
        if lived:
            break
    assert set(found) == {2, 3}
    assert found == sorted(found)
    assert len(found) > 10
    run.step()
    for name in ("0", str(found.index(3))):
        again = trainer(STALE)
        read_state(again, tmp_path / name)
        while again.iteration < 4:
            again.step()
        assert same(weights(again), weights(run)), "what waited to be trained on came back too"


def full_disk(monkeypatch: pytest.MonkeyPatch, full: Callable[[int], bool]) -> None:
    """``full``: whether the n-th flush to disk finds no room."""
    count, flush = itertools.count(), os.fsync

    def fsync(handle: int) -> None:
        if full(next(count)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def test_wherever_the_disk_is_full_the_state_before_stays_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(STALE)
    run.step()
    before = weights(run)
    write_state(run, tmp_path)
    run.step()
    codes = set()
    for at in itertools.count():
        with monkeypatch.context() as patch:
            full_disk(patch, lambda n, at=at: n == at)
            try:
                write_state(run, tmp_path)
                break
            except OSError as error:
                codes.add(error.errno)
        if at < 6:  # up to the rename
            assert [path.name for path in tmp_path.iterdir()] == ["000001"]
            again = trainer(STALE)
            read_state(again, tmp_path)
            assert same(weights(again), before)
    assert at >= 6
    assert codes == {errno.ENOSPC}
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: list[torch.Tensor]
) -> None:
    full_disk(monkeypatch, lambda n: n < 2)
    watched = loop(tmp_path)
    watched.run()
    assert events(tmp_path) == ["started", "not saved", "not saved", "saved again", "ended"]
    again = trainer(SMALL)
    read_state(again, tmp_path / "state")
    assert again.iteration == 4
    assert same(weights(again), straight)


def test_a_disk_that_stays_full_ends_the_run_with_a_sentence_and_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, straight: list[torch.Tensor]
) -> None:
    with monkeypatch.context() as patch:
        full_disk(patch, lambda n: n >= 5)
        with pytest.raises(BadInput) as error:
            loop(tmp_path, trainer(replace(SMALL, give_up=2, iterations=9))).run()
    said = str(error.value)
    assert "it could not be saved 2 times in a row (No space left on device)" in said
    assert "the state of iteration 1 is complete" in said
    assert "\n" not in said
    loop(tmp_path, resume=True).run()
    assert [record["iteration"] for record in records(tmp_path)] == [1, 2, 3, 4]
    again = trainer(SMALL)
    read_state(again, tmp_path / "state")
    assert same(weights(again), straight)


def test_lines_that_find_no_room_are_written_later_and_never_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lines.jsonl").write_text('{"n": 0}\n{"n": cut o')
    journal = JsonLinesLog(tmp_path / "lines.jsonl")
    assert journal.add({"n": 1})

    def half(path: Path, mode: str) -> Any:
        file = open(path, mode, buffering=0)  # noqa: SIM115
        write = file.write

        class Full:
            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: Any) -> None:
                file.close()

            def write(self, data: bytes) -> None:
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "full")

        return Full()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", half)
        assert not journal.add({"n": 2})
    assert (tmp_path / "lines.jsonl").read_text() == '{"n": 0}\n{"n": 1}\n'
    assert journal.add({"n": 3})
    assert [json.loads(line)["n"] for line in (tmp_path / "lines.jsonl").read_text().splitlines()] == [0, 1, 2, 3]


def test_an_iteration_that_no_reward_answers_changes_nothing_and_the_run_goes_on(tmp_path: Path) -> None:
    pieces = SMALL.rollout_chunks
    away = Lift(away=tuple(range(pieces + 1, 2 * pieces + 1)), calls=[])
    run = trainer(replace(SMALL, iterations=3), away)
    kept: list[Any] = []
    step = run.step

    def watched() -> dict[str, float]:
        kept.append((weights(run), {k: v.clone() for k, v in run.state_dict().items()}))
        return step()

    run.step = watched  # type: ignore[method-assign]
    TrainingLoop(run, tmp_path).run()
    assert [record["skipped"] for record in records(tmp_path)] == [0.0, 1.0, 0.0]
    assert events(tmp_path) == ["started", "not scored", "skipped", "ended"]
    assert all(torch.equal(kept[1][1][key], kept[2][1][key]) for key in kept[1][1]), "moments are untouched too"
    assert not same(kept[2][0], weights(run))


def test_samples_that_one_reward_lost_learn_from_the_others(tmp_path: Path) -> None:
    run = trainer(SMALL, Lift(away=(1,), calls=[]))
    record = run.step()
    assert record["invalid/lift"] == 0.5
    assert record["skipped"] == 0.0
    assert record["grad_norm"] > 0


def test_a_reward_that_never_comes_back_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    run = trainer(replace(SMALL, give_up=3, iterations=50), Lift(away=tuple(range(200)), calls=[]))
    before = weights(run)
    with pytest.raises(BadInput, match="nothing was learned for 3 iterations in a row") as error:
        TrainingLoop(run, tmp_path).run()
    assert "the state of iteration 3 is complete" in str(error.value)
    assert same(before, weights(run))


def test_a_rollout_that_is_not_numbers_is_skipped_and_leaves_no_trace(tmp_path: Path) -> None:
    run, condition = trainer(SMALL), TalkingCondition()
    condition.poison(run, at=1)
    run.step()
    before = {key: value.clone() for key, value in run.state_dict().items()}
    record = run.step()
    assert record["skipped"] == 1.0
    assert record["invalid/lift"] == pytest.approx(1 / SMALL.groups)
    assert all(torch.equal(before[key], value) for key, value in run.state_dict().items())
    assert run.step()["grad_norm"] > 0


@dataclass
class TalkingCondition:
    """Puts a number that is none into one prompt's condition at one iteration."""

    calls: list[int] = field(default_factory=list)

    def poison(self, run: Trainer, at: int) -> None:
        plain = run.task.condition

        def poisoned(policy: Any, prompts: Any) -> Any:
            found = plain(policy, prompts)
            if run.iteration == at and run.iteration not in self.calls:
                self.calls.append(at)
                found.audio[0] = torch.nan
            return found

        run.task.condition = poisoned  # type: ignore[method-assign]


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_terminated_like_interrupted_the_step_is_finished_and_saved(
    tmp_path: Path, number: signal.Signals, ends: type[BaseException], straight: list[torch.Tensor]
) -> None:
    run = trainer(SMALL)
    collect = run.collect

    def terminated() -> Any:
        # A launcher passes the signal on a second time.
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        return collect()

    run.collect = terminated  # type: ignore[method-assign]
    with pytest.raises(ends) as ended:
        TrainingLoop(run, tmp_path).run()
    assert ends is KeyboardInterrupt or ended.value.code == 143  # type: ignore[attr-defined]
    assert latest_state(tmp_path / "state") == tmp_path / "state" / "000001"
    loop(tmp_path, resume=True).run()
    again = trainer(SMALL)
    read_state(again, tmp_path / "state")
    assert same(weights(again), straight)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    from flowportrait.training.lora import LoraSettings

    run = trainer(SMALL)
    write_state(run, tmp_path)
    with pytest.raises(BadInput, match="not of this model and recipe"):
        read_state(trainer(replace(SMALL, lora=LoraSettings(rank=2))), tmp_path)
    with pytest.raises(BadInput, match="no complete state"):
        read_state(run, tmp_path / "elsewhere")


def test_another_recipe_is_refused_and_changed_settings_print_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_state(trainer(SMALL), tmp_path / "run" / "state")
    with pytest.raises(BadInput, match=f"was begun with the recipe {SMALL.name}, not nft: resume it with --recipe"):
        read_state(trainer(replace(SMALL, name="nft")), tmp_path / "run" / "state")
    other = replace(SMALL, iterations=9, micro_batch=2, eta=0.25, objective=replace(SMALL.objective, clip_low=0.3))
    read_state(trainer(other), tmp_path / "run" / "state")
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["eta", "objective.clip_low"]


def test_who_holds_up_the_others_is_said_once(tmp_path: Path) -> None:
    noted = EventLog(tmp_path / "events.jsonl", 10)
    for iteration, times in enumerate([1.1, 2.0, 2.1, 1.0, 3.0, 2.0, 1.8, 1.7, 4.0]):
        noted.after_iteration({"iteration": iteration, "slowest/process": 3, "slowest/times": times})
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [6]
    assert lines[0]["detail"].startswith("process 3 takes 1.8 times as long")


@dataclass
class Far:
    """A reward on another machine, which hangs while told to."""

    hangs: float = 0.0
    name: str = "far"
    needs: frozenset[str] = frozenset({"motion"})

    def __call__(self, batch: RewardBatch) -> Score:
        time.sleep(self.hangs)
        return all_valid(batch.motion[..., 0].mean(1))


@contextmanager
def served(reward: Far, port: int) -> Iterator[None]:
    """``flowportrait judge serve`` with that scorer, for a while."""
    from flowportrait.judges.server import judge_app

    app = judge_app(None, {"far": reward})  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield
    server.should_exit = True
    thread.join()


def test_a_reward_on_another_machine_is_asked_meanwhile_and_may_hang_or_be_gone() -> None:
    from flowportrait.rewards.remote import HttpReward

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run, far = trainer(SMALL), Far()
    with served(far, port):
        remote = HttpReward.at(f"http://127.0.0.1:{port}", "far", retries=1, timeout=0.5)
        run.rewards = CompositeReward((Lift(), remote), {"lift": 1.0, "far": 1.0})
        assert run.step()["invalid/far"] == 0.0
        far.hangs = 1.0
        hung = run.step()
        far.hangs = 0.0
    gone = run.step()
    for record in (hung, gone):
        assert record["invalid/far"] == 1.0
        assert record["invalid/lift"] == 0.0
        assert record["grad_norm"] > 0, "the other reward still teaches"
        assert record["seconds/reward"] < SMALL.rollout_chunks * 2 * (0.5 + 0.5) + 5, "asked twice, half a second each"
    with served(far, port):
        assert run.step()["invalid/far"] == 0.0

"""Claims about a Ray cluster of two nodes, one of them lost in the middle: the results are those of one machine."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from scipy.io import wavfile
from skimage.data import astronaut

pytest.importorskip("ray")

from ray.cluster_utils import Cluster

from flowportrait.data.corpus import corpus_records
from flowportrait.data.prepare import PreparationConfig, prepare_corpus
from flowportrait.errors import BadInput
from flowportrait.evaluation.measure_files import measure_videos
from flowportrait.media.write_video import write_video
from flowportrait.parallel import RayTasks, Workers, parallel_map
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.post_trainer import PostTrainer
from flowportrait.rl.remote_scoring import RayScorer
from tests import ROOT
from tests.corpus.test_prepare import LOOSE, face, syllables
from tests.workflow.ray_work import LockedOpening, Opening, held_square

pytestmark = pytest.mark.slow
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


class TwoNodes:
    """A cluster whose second node can be lost, as a machine that loses its power."""

    def __init__(self) -> None:
        self.cluster = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
        self.second: Any = None

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def complete(self) -> None:
        if self.second is None:
            self.second = self.cluster.add_node(**NODE)
            self.cluster.wait_for_nodes()

    def lose_one(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None


@pytest.fixture(scope="module")
def _cluster() -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        folders = (ROOT / "src", ROOT / "weights", ROOT)
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)), prepend=os.pathsep)
        cluster = TwoNodes()
        yield cluster
        cluster.cluster.shutdown()


@pytest.fixture
def nodes(_cluster: TwoNodes) -> TwoNodes:
    _cluster.complete()
    return _cluster


def test_tasks_of_a_lost_node_are_done_again_and_results_stay_in_order(
    nodes: TwoNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log, released = tmp_path / "log", tmp_path / "released"
    numbers = list(range(8))

    def lose_one_in_the_middle() -> None:
        while len({line.split()[1] for line in (log.read_text() if log.exists() else "").splitlines()}) < 2:
            time.sleep(0.05)  # until both nodes are in the middle of a task
        workers = [int(line.split()[2]) for line in log.read_text().splitlines()]
        nodes.lose_one()
        while all(Path(f"/proc/{worker}").exists() for worker in workers):
            time.sleep(0.05)  # its processes notice it later, and could still deliver
        released.touch()

    loss = threading.Thread(target=lose_one_in_the_middle)
    loss.start()
    task = partial(held_square, log=log, released=released)
    found = list(parallel_map(task, numbers, Workers(ray=nodes.address), lambda _: tmp_path))
    loss.join()
    assert found == [(number, number**2 / 7) for number in numbers]
    begun = [line.split() for line in log.read_text().splitlines()]
    assert len({node for _, node, _ in begun}) == 2
    assert len(begun) > len(numbers), "no task was begun twice, so none was lost"
    assert capsys.readouterr().out == "", "results are on standard output, messages are not"


def test_an_error_in_a_task_is_the_error_of_the_command(nodes: TwoNodes, tmp_path: Path) -> None:
    missing = tmp_path / "none.mp4"
    with pytest.raises(BadInput, match=rf"of the cluster does not see {missing}: inputs and outputs must be"):
        list(parallel_map(len, [missing], Workers(ray=nodes.address), lambda item: item))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no len"):
        list(parallel_map(len, [3], Workers(ray=nodes.address), lambda _: tmp_path))  # type: ignore[list-item]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("footage")
    for number in range(4):
        write_video(folder / f"{number}.mp4", face(24, 9 * number), syllables(0.96))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_a_corpus_is_the_one_that_a_single_machine_prepares(
    nodes: TwoNodes, footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_corpus([footage], tmp_path / "one", PreparationConfig(gates=LOOSE, workers=1))
    submit, begun = RayTasks.result, []

    def result(self: RayTasks, *arguments: Any) -> Any:
        found = submit(self, *arguments)
        begun.append(found)
        if len(begun) == 1:
            nodes.lose_one()
        return found

    monkeypatch.setattr(RayTasks, "result", result)
    prepare_corpus([footage], tmp_path / "two", PreparationConfig(gates=LOOSE, ray=nodes.address))
    assert len(begun) == 5
    for name in ("clips.jsonl", "rejected.jsonl", "sources.jsonl"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()
    assert len(corpus_records(tmp_path / "one")) == 4
    clips = {path.name: path.read_bytes() for path in (tmp_path / "one" / "clips").iterdir()}
    assert clips == {path.name: path.read_bytes() for path in (tmp_path / "two" / "clips").iterdir()}
    assert not list((tmp_path / "two").glob(".shared*"))


def test_videos_are_measured_as_on_a_single_machine(nodes: TwoNodes, footage: Path, tmp_path: Path) -> None:
    systems = {"a": sorted(footage.glob("[01b]*.mp4"))}
    one = measure_videos(systems, tmp_path / "cache one")
    two = measure_videos(systems, tmp_path / "cache two", ray=nodes.address)
    assert {clip: metrics.row for clip, metrics in one.metrics["a"].items()} == {
        clip: metrics.row for clip, metrics in two.metrics["a"].items()
    }
    assert one.excluded == two.excluded
    assert [entry["file"] for entry in two.excluded] == ["broken.mp4"]


def records(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds/", "slowest/")
    return [{key: value for key, value in line.items() if not key.startswith(timed)} for line in lines]


def test_rollouts_scored_on_a_cluster_train_the_same_weights(nodes: TwoNodes, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    cv2.imwrite(str(tmp_path / "mine" / "a.png"), astronaut()[:320, 60:380, ::-1])
    wavfile.write(tmp_path / "mine" / "a.wav", 16_000, (syllables(1) * 32767).astype(np.int16))
    config = PostTrainConfig.from_recipe(
        "nft", groups=2, group_size=2, frames=24, updates=1, iterations=2, rollout_chunks=2, render_size=64
    )
    scored = {}
    for name, address in (("one", None), ("two", nodes.address)):
        # Frames are drawn where the reward is; a reward that asks the policy stays here.
        rewards = ["sync", "temporal", "self_confidence", Opening(tmp_path / f"{name}.txt")]
        trainer = PostTrainer("sft", rewards, config, tmp_path / "mine", output_dir=tmp_path / name, ray=address)
        if address is not None:
            nodes.lose_one()
        trainer.train()
        scored[name] = set((tmp_path / f"{name}.txt").read_text().split())
    assert scored["one"] == {str(os.getpid())}
    assert str(os.getpid()) not in scored["two"]
    assert records(tmp_path / "one") == records(tmp_path / "two")
    weights = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_a_reward_that_cannot_be_sent_is_scored_here(
    nodes: TwoNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = LockedOpening(tmp_path / "here"), Opening(tmp_path / "there")
    rewards = CompositeReward((here, there), {"locked": 1.0, "opening": 1.0})
    batch = RewardBatch(torch.randn(3, 8, 30), torch.zeros(3, 32, 80))
    with RayScorer(rewards, nodes.address) as scorer:
        scores = scorer(batch)
    assert list(scores) == ["locked", "opening"]
    assert torch.equal(scores["locked"].value, scores["opening"].value)
    assert (tmp_path / "here").read_text() == f"{os.getpid()}\n" != (tmp_path / "there").read_text()
    assert "the reward locked is scored on this machine" in capsys.readouterr().err

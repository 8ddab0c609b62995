"""Two threads of one process that animate, score and judge at once get what one thread gets, and change nothing for
the rest of the process."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait import Animator
from flowportrait.judges.build import build_judge
from flowportrait.judges.clips import JudgedClip
from flowportrait.media.faces import FaceTracker
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import score_batch
from flowportrait.rewards.registry import build_reward
from tests.compatibility.test_golden import speech

PHOTO = astronaut()[:400, 60:400]
REWARDS = ("sync", "expressiveness", "sharpness", "temporal")


class Work(NamedTuple):
    """What one call of ``animate_score_judge`` found."""

    motion: np.ndarray
    frames: np.ndarray
    scores: dict[str, float]
    verdict: dict[str, Any]


def animate_score_judge(animator: Animator, seed: int) -> Work:
    """A video of a second in each of its forms: motion, frames, scores, verdict."""
    audio = speech()[:19_200]
    motion = torch.cat(list(animator.motion(audio, seed=seed)))
    frames = np.stack(list(animator.draw(PHOTO, [motion], size=256)))
    batch = RewardBatch.from_frames([frames], [audio])
    with torch.no_grad():
        scores = {name: float(score_batch(build_reward(name), batch).value) for name in REWARDS}
    verdict = build_judge().judge([JudgedClip(frames, audio, f"seed {seed}")])[0]
    return Work(motion.numpy(), frames, scores, verdict.to_dict())


def process_state() -> dict[str, Any]:
    """What a library has no business to change."""
    output = os.fstat(2)
    return {
        "threads": torch.get_num_threads(), "dtype": torch.get_default_dtype(), "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "device": torch.get_default_device(),
        "standard error": (output.st_dev, output.st_ino), "folder": os.getcwd(), "environment": dict(os.environ),
        "numpy": np.random.get_state()[1].tolist(), "errors of numpy": np.geterr(),  # noqa: NPY002
    }  # fmt: skip


@pytest.fixture(scope="module")
def animator() -> Animator:
    return Animator.from_pretrained("rl")


def test_two_threads_get_what_one_gets_and_leave_the_process_as_it_was(animator: Animator) -> None:
    before = process_state()
    alone = [animate_score_judge(animator, seed) for seed in (0, 1)]
    assert np.abs(alone[0].motion - alone[1].motion).max() > 0.1
    barrier = threading.Barrier(2)

    def worker(seed: int) -> Work:
        barrier.wait()
        return animate_score_judge(animator, seed)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(worker, (0, 1)))
    for one, two in zip(alone, together, strict=True):
        assert np.array_equal(one.motion, two.motion)
        assert np.array_equal(one.frames, two.frames)
        assert one.scores == two.scores
        assert one.verdict == two.verdict
    assert process_state() == before


def test_trackers_begin_in_many_threads_at_once_and_all_see_the_face(capfd: pytest.CaptureFixture[str]) -> None:
    def face(_: int) -> np.ndarray:
        with FaceTracker(still=True) as tracker:
            return tracker.detect(PHOTO)[0][0]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(face, range(8)))
    assert all(np.array_equal(points, found[0]) for points in found)
    os.write(2, b"standard error is where it was")
    assert capfd.readouterr().err.endswith("standard error is where it was")


def test_two_loaded_generators_are_the_same_and_independent(animator: Animator) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: Animator.from_pretrained("rl"), range(2))
    for name, value in first.generator.state_dict().items():
        assert torch.equal(value, second.generator.state_dict()[name])
        assert torch.equal(value, animator.generator.state_dict()[name])
    assert not {p.data_ptr() for p in first.generator.parameters()} & {
        p.data_ptr() for p in second.generator.parameters()
    }

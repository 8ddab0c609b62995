"""Claims about what a machine is measured to carry."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from flowportrait.live import capacity
from flowportrait.live.avatar import LivePortrait
from flowportrait.live.capacity import FrameCost, next_size, sessions_that_fit
from tests.live.live_server import PHOTO


def costs(**seconds: float) -> dict[int, FrameCost]:
    return {int(size[1:]): FrameCost(int(size[1:]), value, value) for size, value in seconds.items()}


def test_sizes_go_up_while_they_hold_and_down_while_none_does() -> None:
    assert next_size(costs(s512=0.0279)) == 640
    assert next_size(costs(s512=0.0281)) == 384
    assert next_size(costs(s512=0.03, s384=0.02)) is None
    assert next_size(costs(s512=0.02, s640=0.03)) is None
    assert next_size(costs(s512=0.02, s640=0.02, s768=0.02)) is None
    assert next_size(costs(s512=0.9, s384=0.8, s256=0.7)) is None


@pytest.mark.parametrize(("seconds", "cores", "sessions"), [(0.028, 2, 2), (0.0281, 2, 1), (0.007, 1, 4), (9, 1, 1)])
def test_sessions_take_seven_tenths_of_the_cores(seconds: float, cores: float, sessions: int) -> None:
    assert sessions_that_fit(FrameCost(512, 0.01, seconds * (1 - 1e-9)), cores) == sessions


def test_a_portrait_that_draws_slowly_does_not_hold() -> None:
    def draw(motion: Any) -> np.ndarray:
        time.sleep(0.05)
        return np.zeros((128, 128, 3), np.uint8)

    source = SimpleNamespace(push=lambda _: [torch.zeros(25, 30)], finish=list)
    slow: Any = SimpleNamespace(size=128, draw=draw, motion_source=lambda _: source)
    cost = capacity.measure_frame(slow, np.zeros(16_000, np.float32))
    assert cost.drawing_seconds >= 0.05
    assert cost.processor_seconds < cost.drawing_seconds
    assert not cost.holds


@pytest.mark.slow
def test_a_given_size_alone_is_measured(small_face: LivePortrait) -> None:
    seen: list[int] = []
    found, portrait = capacity.measure_capacity(PHOTO, small_face.pipeline, 128, on_size=seen.append)
    assert (seen, found.size, found.sizes, portrait.size) == ([128], 128, (128,), 128)
    assert 0 < found.cost.drawing_seconds < 2
    assert 1 <= found.sessions_per_process <= found.sessions
    assert found.sentence().startswith("At 128 px a frame takes ")

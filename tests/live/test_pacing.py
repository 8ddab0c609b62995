"""Claims about which pictures are drawn, by a simulation of one thread on a clock of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, cycle, repeat

import numpy as np
import pytest

from flowportrait.live.pacing import DrawingSchedule, PictureQueue
from flowportrait.live.session import LiveFrame

PERIOD, DELAY = 0.04, 2
CHUNK, READY = 4, 8


def frame(index: int) -> LiveFrame:
    return LiveFrame(index, "idle", np.zeros(30, np.float32), np.full((1, 4), index, np.float32))


class NewestFirst:
    """The policy of version 0.1: draw the newest frame, and generate only where there is none."""

    def next_frame(self, now: float, waiting: list, motion_due: float | None) -> LiveFrame | None:
        return waiting[-1].frame if waiting else None

    def record_drawing(self, seconds: float) -> None:
        pass

    record_generation = record_drawing


class Outcome:
    def __init__(self, late: int, starved: int, speech_waited: float) -> None:
        self.late, self.starved, self.speech_waited = late, starved, speech_waited


def simulate(
    schedule: DrawingSchedule | NewestFirst,
    drawing: Iterator[float],
    count: int = 1500,
    generating: float = 0.025,
    speech: Callable[[int], bool] = lambda index: True,
) -> Outcome:
    """Run ``count`` ticks with one thread whose drawings take the given seconds.

    While ``speech(index)``, each tick takes one frame of motion from the reserve, which generating fills.
    """
    queue = PictureQueue(np.array([-1]), DELAY)
    now, busy_until, drawn, reserve, starved, waited, began = 0.0, 0.0, -1, 0, 0, 0.0, 0.0
    done: Callable[[], None] | None = None
    for index in range(count):
        tick = index * PERIOD
        # What the thread does until this tick.
        while busy_until <= tick:
            now = max(now, busy_until)
            if done:
                done()
                done = None
            can_generate = speech(index) and reserve < READY
            waiting = queue.waiting(drawn)
            chosen = schedule.next_frame(now, waiting, tick + reserve * PERIOD if can_generate else None)
            if chosen is not None:
                seconds, drawn = next(drawing), chosen.index

                def finish_drawing(number: int = chosen.index, took: float = seconds) -> None:
                    queue.drawn(number, np.array([number]))
                    schedule.record_drawing(took)

                done = finish_drawing
            elif can_generate:
                seconds = generating

                def finish_generating(took: float = seconds) -> None:
                    nonlocal reserve
                    reserve += CHUNK
                    schedule.record_generation(took)

                done = finish_generating
            else:
                break
            busy_until = now + seconds
        now = max(now, tick)
        busy_until = max(busy_until, tick) if done is None else busy_until
        if speech(index):
            starved += reserve == 0
            began = tick if reserve == 0 and not began else began
            waited = max(waited, tick - began if reserve == 0 else 0.0)
            began = 0.0 if reserve else began
            reserve = max(reserve - 1, 0)
        queue.add(frame(index), tick + DELAY * PERIOD)
        queue.leave()
    return Outcome(queue.late, starved, waited)


def spikes(normal: float, spike: float, every: int) -> Iterator[float]:
    return cycle(chain(repeat(normal, every - 1), [spike]))


def noisy(normal: float, deviation: float) -> Iterator[float]:
    rng = np.random.default_rng(0)
    while True:
        yield normal * float(np.exp(rng.normal(0, deviation)))


LOADS: dict[str, Callable[[], Iterator[float]]] = {
    "a pause of 90 ms in 10 drawings": lambda: spikes(0.024, 0.09, 10),
    "a pause of 120 ms in 6 drawings": lambda: spikes(0.024, 0.12, 6),
    "durations that vary by half": lambda: noisy(0.028, 0.4),
    "a thread that is nearly full": lambda: noisy(0.033, 0.3),
    "a thread that is too slow": lambda: noisy(0.045, 0.3),
}


@pytest.mark.parametrize("load", LOADS)
def test_fewer_frames_are_late_or_without_motion_than_if_the_newest_is_drawn_first(load: str) -> None:
    before, now = (simulate(policy(), LOADS[load]()) for policy in (NewestFirst, DrawingSchedule))
    assert now.late + now.starved < 0.85 * (before.late + before.starved)
    assert now.starved <= before.starved
    assert now.speech_waited < 0.2


@pytest.mark.parametrize("every", [4, 6, 10, 20])
@pytest.mark.parametrize("pause", [0.05, 0.07, 0.09, 0.12, 0.2])
def test_a_face_that_does_not_speak_never_loses_by_it(pause: float, every: int) -> None:
    before, now = (
        simulate(policy(), spikes(0.024, pause, every), speech=lambda index: False)
        for policy in (NewestFirst, DrawingSchedule)
    )
    assert now.late <= before.late
    assert pause != 0.09 or now.late < before.late


def test_speech_gets_its_motion_on_a_machine_that_is_too_slow_to_draw_every_frame() -> None:
    before, now = (simulate(policy(), noisy(0.05, 0.1)) for policy in (NewestFirst, DrawingSchedule))
    assert before.speech_waited > 5, "drawing leaves no time for motion"
    assert now.speech_waited < 0.1


def test_of_frames_that_cannot_be_in_time_the_newest_is_drawn() -> None:
    schedule, queue = DrawingSchedule(), PictureQueue(np.array([-1]), DELAY)
    for _ in range(9):
        schedule.record_drawing(0.03)
    for index in range(3):
        queue.add(frame(index), 1.0 + index * PERIOD)

    def choice(now: float) -> int:
        chosen = schedule.next_frame(now, queue.waiting(-1), None)
        assert chosen is not None
        return chosen.index

    assert [choice(now) for now in (0.96, 0.98, 1.02, 1.2)] == [0, 1, 2, 2]
    assert schedule.next_frame(0.9, queue.waiting(2), None) is None


def test_a_frame_is_drawn_before_motion_is_generated_if_both_are_in_time() -> None:
    schedule, queue = DrawingSchedule(), PictureQueue(np.array([-1]), DELAY)
    for _ in range(9):
        schedule.record_drawing(0.02)
        schedule.record_generation(0.03)
    queue.add(frame(0), 1.0)
    assert schedule.next_frame(0.94, queue.waiting(-1), 1.0) is not None
    assert schedule.next_frame(0.96, queue.waiting(-1), 1.0) is None
    assert schedule.next_frame(0.96, queue.waiting(-1), None) is not None
    assert schedule.next_frame(0.5, [], 1.0) is None


def test_a_late_picture_is_replaced_by_the_newest_and_sound_never_waits() -> None:
    queue = PictureQueue(np.array([-1]), delay=2)
    left = []
    for index in range(30):
        queue.add(frame(index))
        if not 10 <= index < 15:  # the drawing thread is stuck for five frames
            assert [waiting.frame.index for waiting in queue.waiting(index - 1)] == [index]
            queue.drawn(index, np.array([index]))
        if (pair := queue.leave()) is not None:
            left.append((pair[0].index, int(pair[0].sound[0, 0]), int(pair[1][0])))
    assert [index for index, _, _ in left] == list(range(28))
    assert all(sound == index for index, sound, _ in left)
    assert [picture for _, _, picture in left] == [*range(10), 9, 9, 9, 9, 9, *range(15, 28)]
    assert queue.late == 5


def revised(index: int, revision: int = 1) -> LiveFrame:
    return LiveFrame(index, "interrupted", np.ones(30, np.float32), np.zeros((1, 4), np.float32), revision=revision)


def test_a_frame_that_is_revised_is_drawn_again_and_leaves_in_its_place() -> None:
    queue = PictureQueue(np.array([-1]), delay=2)
    for index in range(3):
        queue.add(frame(index), index * PERIOD)
        assert queue.take(lambda waiting: waiting[0].frame) is not None
        queue.drawn(index, np.array([index]))
    assert queue.take(lambda waiting: waiting[0].frame if waiting else None) is None
    assert queue.leaving_after(0.5 * PERIOD) == 2
    queue.revise([revised(1), revised(2)])
    offered: list[int] = []
    while (chosen := queue.take(lambda waiting: waiting[0].frame if waiting else None)) is not None:
        assert chosen.revision == 1
        offered.append(chosen.index)
        queue.drawn(chosen.index, np.array([100 + chosen.index]), chosen.revision)
    assert offered == [1, 2]
    left = []
    for index in range(3, 6):
        queue.add(frame(index))
        queue.drawn(index, np.array([index]))
        pair = queue.leave()
        assert pair is not None
        left.append((pair[0].index, pair[0].state, int(pair[1][0])))
    assert left == [(0, "idle", 0), (1, "interrupted", 101), (2, "interrupted", 102)]
    assert queue.late == 0


def test_a_revised_frame_that_is_not_drawn_in_time_leaves_with_its_older_picture_and_counts_as_late() -> None:
    queue = PictureQueue(np.array([-1]), delay=1)
    queue.add(frame(0))
    queue.drawn(0, np.array([0]))
    queue.revise([revised(0)])
    queue.add(frame(1))
    pair = queue.leave()
    assert pair is not None
    assert (pair[0].revision, int(pair[1][0]), queue.late) == (1, 0, 1)
    # The drawing of what it was before, when that ends late, takes the place of no newer picture.
    queue.drawn(1, np.array([7]), 1)
    queue.drawn(1, np.array([1]), 0)
    queue.revise([revised(1)])
    queue.add(frame(2))
    pair = queue.leave()
    assert pair is not None
    assert (int(pair[1][0]), queue.late) == (7, 1)


class Change:
    """How long a change takes from its call until its first frame leaves, drawn as it is after the change."""

    def __init__(self, drawing: float, revises: bool, calls: int = 300) -> None:
        rng = np.random.default_rng(0)
        self.waits = [self._once(drawing, revises, float(rng.uniform(0, PERIOD)), rng) for _ in range(calls)]

    def _once(self, drawing: float, revises: bool, after: float, rng: np.random.Generator) -> float:
        queue, schedule = PictureQueue(np.array([-1]), DELAY), DrawingSchedule()
        busy_until, drawing_now, called, time = 0.0, None, 20 * PERIOD + after, 0.0
        has_changed, step, index = False, 0.0005, 0
        while time < 30 * PERIOD:
            if drawing_now is not None and time >= busy_until:
                queue.drawn(drawing_now.index, np.array([drawing_now.state == "interrupted"]), drawing_now.revision)
                schedule.record_drawing(drawing)
                drawing_now = None
            if not has_changed and time >= called:
                has_changed = True
                count = queue.leaving_after(time + schedule.redrawing_seconds) if revises else 0
                queue.revise([revised(n) for n in range(index - count, index)])
            if time >= index * PERIOD:
                queue.add(revised(index, 0) if has_changed else frame(index), (index + DELAY) * PERIOD)
                index += 1
                if (pair := queue.leave()) is not None and pair[0].state == "interrupted" and pair[1][0]:
                    assert queue.late <= 1 + DELAY, "frames before the first drawing"
                    return time - called
            if drawing_now is None:
                drawing_now = queue.take(partial(schedule.next_frame, time, motion_due=None))
                busy_until = time + drawing
            time += step
        raise AssertionError("the change never left")


@pytest.mark.parametrize("drawing", [0.015, 0.025, 0.032])
def test_a_change_leaves_sooner_if_waiting_frames_are_revised(drawing: float) -> None:
    before, now = (Change(drawing, revises).waits for revises in (False, True))
    assert np.mean(before) == pytest.approx((DELAY + 0.5) * PERIOD, abs=0.003)
    # As soon as it can be drawn, and then at the next frame that leaves.
    assert np.mean(now) == pytest.approx(1.5 * drawing + 0.5 * PERIOD, abs=0.006)
    assert max(now) < 1.5 * drawing + PERIOD + 0.004


def test_pictures_that_come_late_are_shown_as_soon_as_they_are_there() -> None:
    queue = PictureQueue(np.array([-1]), delay=1)
    shown = []
    for index in range(20):
        queue.add(frame(index))
        if index >= 3:
            queue.drawn(index - 3, np.array([index - 3]))  # always three frames late
        if (pair := queue.leave()) is not None:
            shown.append(int(pair[1][0]))
    assert shown == [-1, -1, *range(17)]
    assert queue.late == 19

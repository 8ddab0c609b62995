"""Claims about the live session, on a clock of the test: what it shows and plays at every frame."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.live.session import FADE_FRAMES, MAX_QUEUED_SECONDS, REST_FRAMES, LiveFrame, LiveSession
from flowportrait.live.utterance import PATIENCE_FRAMES
from flowportrait.rendering.motion_basis import BLINK, HEAD, LOWER_FACE

RATE = 48_000
FRAME = RATE // 25


class LoudSource:
    """A generator whose lips open and close four times a second; its motion comes as late as that of the real one."""

    def __init__(self, number: int) -> None:
        self.samples, self.sent, self.head = np.zeros(0, np.float32), 0, 0.5 * (-1) ** number

    def push(self, audio: np.ndarray) -> Iterable[torch.Tensor]:
        self.samples = np.concatenate([self.samples, audio])
        return self._until((len(self.samples) // 640 - 3) // 4 * 4)

    def finish(self) -> Iterable[torch.Tensor]:
        return self._until(-(-len(self.samples) // 640))

    def _until(self, last: int) -> Iterable[torch.Tensor]:
        first, self.sent = self.sent, max(self.sent, last)
        if self.sent > first:
            time = torch.arange(first, self.sent)
            motion = torch.zeros(self.sent - first, 30)
            motion[:, LOWER_FACE] = 1.5 * torch.sin(2 * torch.pi * 4 * time / 25)[:, None]
            motion[:, HEAD] = self.head
            yield motion


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def session(seed: int = 0, **options: object) -> LiveSession:
    return LiveSession(LoudSource, seed=seed, **options)  # type: ignore[arg-type]


def run(live: LiveSession, frames: int) -> list[LiveFrame]:
    result = []
    for _ in range(frames):
        while live.generate():
            pass
        result.append(live.tick())
    return result


def speech(seconds: float, rate: int = RATE) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def lips(frames: list[LiveFrame]) -> np.ndarray:
    return np.abs(np.stack([frame.motion[LOWER_FACE] for frame in frames])).max(1)


def states(frames: list[LiveFrame]) -> list[str]:
    return [frame.state for frame in frames]


def test_frames_say_how_much_pushed_speech_is_in_them() -> None:
    live = session()
    live.push(speech(1.01), RATE)
    live.finish()
    frames = run(live, 40)
    assert sum(frame.spoken for frame in frames) == round(1.01 * RATE)
    assert all(frame.spoken == 0 for frame in frames if not frame.sound.any())
    live.push(speech(1.0), RATE)
    live.finish()
    before = run(live, 10)
    live.interrupt()
    after = run(live, 5)
    assert after[0].sound.any(), "the speech fades out"
    assert [frame.spoken for frame in after] == [0] * 5, "which is no speech that was said"
    assert all(frame.spoken == RATE // 25 for frame in before if frame.state == "speaking")


def test_exactly_25_frames_a_second_over_hours_without_growth() -> None:
    clock = Clock()
    live = session(clock=clock)
    begin, heard, spoken = clock.now, 0, 0

    def minute() -> None:
        nonlocal heard, spoken
        live.push(speech(0.6, 16_000), 16_000)
        live.finish()
        frames = run(live, 50)
        spoken += states(frames).count("speaking")
        heard += sum(frame.sound.shape[1] for frame in frames)
        # The rest of the minute passes without a call, as on a machine that sleeps.
        clock.now += 60
        while live.is_due:
            heard += live.tick().sound.shape[1]

    for _ in range(118):
        minute()
    tracemalloc.start()
    minute()
    first = tracemalloc.get_traced_memory()[0]
    minute()
    growth = tracemalloc.get_traced_memory()[0] - first
    tracemalloc.stop()
    assert clock.now == begin + 7200
    assert live.index == 7200 * 25 + 1
    assert live.next_time == begin + live.index / 25
    assert heard == live.index * FRAME
    assert spoken == 120 * 15
    assert growth < 5_000
    assert live.queued_seconds == 0


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_a_click_leaves_with_the_frame_of_its_time(rate: int) -> None:
    live = session()
    sound = np.zeros(rate * 2, np.float32)
    at = 1.01
    sound[round(at * rate) - rate // 2000 : round(at * rate) + rate // 2000] = 0.9
    for start in range(0, len(sound), 777):
        live.push(sound[start : start + 777], rate)
    live.finish()
    frames = run(live, 60)
    first = states(frames).index("speaking")
    played = np.concatenate([frame.sound[0] for frame in frames[first:]])
    assert abs(np.abs(played).argmax() / RATE - at) < 0.002
    opening = np.stack([frame.motion[LOWER_FACE.start] for frame in frames[first:]])
    expected = 1.5 * np.sin(2 * np.pi * 4 * np.arange(50) / 25)
    assert np.allclose(opening[FADE_FRAMES:50], expected[FADE_FRAMES:], atol=1e-5)
    assert states(frames).count("speaking") == 50


def test_the_length_of_the_pieces_changes_nothing() -> None:
    whole, pieces = session(), session()
    sound = speech(1.5, 24_000)
    whole.push(sound, 24_000)
    for start in range(0, len(sound), 480):
        pieces.push((sound[start : start + 480] * 32767).astype(np.int16), 24_000)
    whole.finish(), pieces.finish()
    for a, b in zip(run(whole, 50), run(pieces, 50), strict=True):
        assert a.state == b.state
        assert np.array_equal(a.motion, b.motion)
        assert np.abs(a.sound - b.sound).max() < 1e-3


def test_stereo_and_bytes_are_read() -> None:
    played = []
    mono = (speech(1.0) * 32767).astype(np.int16)
    for samples in (mono, np.stack([mono, mono], 1), np.stack([mono, mono]), mono.tobytes()):
        live = session()
        live.push(samples, RATE)
        live.finish()
        played.append(np.concatenate([frame.sound for frame in run(live, 30)], 1))
    assert all(np.allclose(one, played[0]) for one in played)
    assert np.abs(played[0]).max() > 0.1


def test_sound_that_arrives_as_fast_as_it_is_spoken_is_never_late() -> None:
    live = session()
    frames = []
    for start in range(0, 3 * 16_000, 640):
        live.push(speech(3, 16_000)[start : start + 640], 16_000)
        frames += run(live, 1)
    live.finish()
    frames += run(live, 30)
    spoken = "".join("s" if state == "speaking" else "." for state in states(frames)).strip(".")
    assert spoken == "s" * 75
    assert states(frames).index("speaking") <= 10
    assert np.abs(lips(frames[20:70])).max() == pytest.approx(1.5, abs=0.1)


def test_an_interruption_brings_the_lips_to_rest_without_a_jump() -> None:
    for at in range(30, 43):
        live = session()
        live.push(speech(10), RATE)
        before = run(live, at)
        live.interrupt()
        after = run(live, 30)
        assert (lips(after)[REST_FRAMES - 1 :] == 0).all()
        assert REST_FRAMES <= 0.3 * 25 - 2, "the picture leaves two frames later"
        assert live.queued_seconds == 0
        loud = [np.abs(frame.sound).max() > 0 for frame in after]
        assert loud == [True] + [False] * 29, "one frame in which the sound fades out"
        assert states(after)[:FADE_FRAMES] == ["interrupted"] * FADE_FRAMES
        assert "interrupted" not in states(after)[FADE_FRAMES:]
        track = np.stack([frame.motion[LOWER_FACE] for frame in [*before[-1:], *after]])
        spoken = np.stack([frame.motion[LOWER_FACE] for frame in before[-15:]])
        assert np.abs(np.diff(track, axis=0)).max() <= np.abs(np.diff(spoken, axis=0)).max()


def test_the_head_never_jumps_between_kinds_of_motion() -> None:
    live = session()
    frames = run(live, 100)
    for pause in (60, 0, 0, 60):
        live.push(speech(1.2), RATE)
        live.finish()
        frames += run(live, pause)
    head = np.stack([frame.motion[HEAD] for frame in frames])
    assert head.min() < -0.4
    assert head.max() > 0.4
    assert np.abs(np.diff(head, axis=0)).max() < 0.5


def test_several_utterances_are_spoken_in_a_row() -> None:
    live = session()
    for _ in range(3):
        live.push(speech(0.8), RATE)
        live.finish()
    frames = run(live, 80)
    assert states(frames).count("speaking") == 60
    assert sum(np.abs(frame.sound).max() > 0.1 for frame in frames) == 60
    live.interrupt()
    live.push(speech(0.8), RATE)
    live.finish()
    assert states(run(live, 30)).count("speaking") == 20


def test_an_utterance_without_an_end_is_spoken_to_its_end() -> None:
    live = session()
    live.push(speech(0.2), RATE)
    frames = run(live, 40)
    assert states(frames).count("speaking") == 5
    assert states(frames)[:PATIENCE_FRAMES].count("speaking") <= 1
    assert frames[-1].state == "idle"


def test_lips_are_closed_unless_the_face_speaks() -> None:
    live = session()
    frames = run(live, 250)
    rng = np.random.default_rng(0)
    for start in range(250):
        live.hear(rng.normal(0, 0.1 * (start % 60 < 30), 640).astype(np.float32), 16_000)
        frames += run(live, 1)
    assert {"idle", "listening"} == set(states(frames))
    assert (lips(frames) == 0).all()


def test_a_listener_nods_and_blinks_at_pauses() -> None:
    rng = np.random.default_rng(1)
    closures, pitches = [], []
    for speaks in (True, False):
        live = session(seed=4)
        frames = []
        for index in range(750):
            live.hear(rng.normal(0, 0.1 * (index % 75 < 50) * speaks, 640).astype(np.float32), 16_000)
            frames += run(live, 1)
        closed = np.stack([frame.motion[BLINK.start] for frame in frames]) > 3
        closures.append(int((np.diff(closed.astype(int)) > 0).sum()))
        pitches.append(np.abs(np.diff([frame.motion[HEAD.start] for frame in frames])).max())
        assert ("listening" in states(frames)) == speaks
    assert closures[0] > closures[1]
    assert pitches[0] > 3 * pitches[1]


def test_idle_motion_never_repeats() -> None:
    motion = np.stack([frame.motion for frame in run(session(), 25 * 600)])
    for part in (HEAD.start, HEAD.start + 1, HEAD.start + 2, BLINK.start):
        track = motion[:, part] - motion[:, part].mean()
        spectrum = np.abs(np.fft.rfft(track, 2 * len(track))) ** 2
        correlation = np.fft.irfft(spectrum)[: len(track) // 2]
        assert (correlation / correlation[0])[25 * 20 :].max() < 0.35
        assert track.std() > 0.1
    speeds = np.abs(np.diff(motion[:, HEAD], axis=0))
    assert speeds.max() < 0.1
    blinks = np.flatnonzero(np.diff((motion[:, BLINK.start] > 3).astype(int)) > 0)
    assert 0.2 < len(blinks) / 600 < 0.4
    assert np.diff(blinks).min() >= 50


def test_an_idle_face_breathes_at_a_human_rate_and_never_in_the_same_way() -> None:
    motion = np.stack([frame.motion for frame in run(session(), 25 * 600)])
    height = motion[:, HEAD.start + 4] - motion[:, HEAD.start + 4].mean()
    power = np.abs(np.fft.rfft(height * np.hanning(len(height)))) ** 2
    rate = np.fft.rfftfreq(len(height), 1 / 25)
    breathing, beside = (power[(rate > low) & (rate < high)].mean() for low, high in ((0.19, 0.3), (0.35, 0.8)))
    assert breathing > 20 * beside
    assert np.ptp(height) < 4, "a few hundredths of an eye distance"
    peak = power[(rate > 0.15) & (rate < 0.4)]
    assert peak.max() < 0.3 * peak.sum(), "no single period"


def test_the_seed_decides_and_sessions_do_not_disturb_each_other() -> None:
    alone = run(session(seed=3), 200)
    one, other = session(seed=3), session(seed=5)
    other.push(speech(2.0), RATE)
    both = [(run(one, 1)[0], run(other, 1)[0]) for _ in range(200)]
    assert all(np.array_equal(a.motion, b.motion) for a, (b, _) in zip(alone, both, strict=True))
    assert not np.array_equal(alone[-1].motion, both[-1][1].motion)


def test_what_cannot_be_used_is_refused_in_a_sentence() -> None:
    live = session()
    live.push(speech(MAX_QUEUED_SECONDS - 1), RATE)
    with pytest.raises(BadInput, match="would wait"):
        live.push(speech(2), RATE)
    assert live.queued_seconds == MAX_QUEUED_SECONDS - 1
    for samples, rate, words in (
        (speech(0.1), 100, "sample rate"),
        (np.zeros((3, 3, 3), np.float32), RATE, "neither mono nor stereo"),
        (np.zeros(4, np.int32), RATE, "type"),
        (b"123", RATE, "16-bit"),
    ):
        with pytest.raises(BadInput, match=words):
            session().push(samples, rate)
    with pytest.raises(BadInput, match="multiple of 25"):
        session(rate=22_051)


def test_an_utterance_starts_sooner_where_its_sound_comes_faster_than_it_is_spoken() -> None:
    begun = {}
    for pieces_per_frame in (1, 3):
        live = session()
        frames = []
        for start in range(0, 75, pieces_per_frame):
            live.push(speech(0.04 * pieces_per_frame, 16_000), 16_000)
            frames += run(live, 1)
            if start + pieces_per_frame >= 75:
                live.finish()
        frames += run(live, 80)
        spoken = "".join("s" if state == "speaking" else "." for state in states(frames))
        begun[pieces_per_frame] = spoken.index("s")
        assert spoken.strip(".") == "s" * 75, "and never runs out of motion"
    assert begun == {1: 9, 3: 2}


def test_the_next_chunk_is_needed_when_the_motion_before_it_runs_out() -> None:
    live = session(clock=Clock())
    live.push(speech(0.2), RATE)
    assert live.motion_due is None, "the sound of a chunk is not there yet"
    live.push(speech(0.8), RATE)
    live.finish()
    due = [live.motion_due]
    while live.generate():
        due.append(live.motion_due)
    assert due == [live.next_time, live.next_time + 4 / 25, None]
    run_without_generating = [live.tick() for _ in range(5)]
    assert states(run_without_generating) == ["speaking"] * 5
    assert live.motion_due == live.next_time + 3 / 25


def test_an_interruption_revises_the_frames_that_wait_and_nothing_jumps() -> None:
    for at in range(30, 43):
        for count in (1, 2):
            live = session()
            live.push(speech(10), RATE)
            before = run(live, at)
            live.interrupt()
            assert live.revise(0) == []
            changed = live.revise(count)
            assert [(frame.index, frame.revision) for frame in changed] == [(at - count + n, 1) for n in range(count)]
            assert live.revise(count) == [], "nothing new has happened"
            shown = [*before[:-count], *changed, *run(live, 30)]
            after = shown[at - count :]
            assert (lips(after)[REST_FRAMES - 1 :] == 0).all()
            assert [frame.spoken for frame in after] == [0] * len(after)
            assert [bool(np.abs(frame.sound).max() > 0) for frame in after] == [True] + [False] * (len(after) - 1)
            assert abs(after[0].sound[0, -1]) < 1e-3, "the sound fades out within the first of them"
            assert abs(after[0].sound[0, 0] - before[-count].sound[0, 0]) < 1e-3
            assert states(after)[:FADE_FRAMES] == ["interrupted"] * FADE_FRAMES
            track = np.stack([frame.motion[LOWER_FACE] for frame in shown[at - count - 1 :]])
            spoken = np.stack([frame.motion[LOWER_FACE] for frame in before[-15:]])
            assert np.abs(np.diff(track, axis=0)).max() <= np.abs(np.diff(spoken, axis=0)).max()


def test_speech_that_can_begin_begins_in_frames_that_wait_and_all_of_it_is_spoken() -> None:
    for count in (1, 2):
        live = session()
        idle = run(live, 10)
        live.push(speech(1.2), RATE)
        live.finish()
        while live.generate():
            pass
        changed = live.revise(count)
        assert states(changed) == ["speaking"] * count
        frames = [*idle[:-count], *changed, *run(live, 40)]
        assert [frame.index for frame in frames] == list(range(50))
        assert states(frames).count("speaking") == 30
        assert sum(frame.spoken for frame in frames) == round(1.2 * RATE)
        played = np.concatenate([frame.sound[0] for frame in frames if frame.spoken])
        assert np.abs(played[: round(1.2 * RATE)] - speech(1.2)).max() < 1e-3
        assert live.revise(2) == []


def test_frames_with_speech_are_revised_by_an_interruption_alone() -> None:
    live = session()
    live.push(speech(2), RATE)
    live.finish()
    run(live, 20)
    live.push(speech(2), RATE)
    while live.generate():
        pass
    assert live.state == "speaking"
    assert live.revise(2) == []


def test_speech_at_the_pace_of_a_microphone_does_not_begin_before_its_motion_lasts() -> None:
    live = session()
    frames: list[LiveFrame] = []
    for start in range(0, 3 * 16_000, 640):
        live.push(speech(3, 16_000)[start : start + 640], 16_000)
        while live.generate():
            pass
        for frame in live.revise(2):
            frames[frame.index] = frame
        frames.append(live.tick())
    live.finish()
    frames += run(live, 30)
    assert "".join("s" if state == "speaking" else "." for state in states(frames)).strip(".") == "s" * 75


def test_the_lips_part_with_the_first_sound_and_close_again_if_nobody_speaks() -> None:
    live = session()
    idle = run(live, 10)
    live.push(speech(0.04), RATE)
    changed = live.revise(1)
    assert len(changed) == 1
    before = lips(idle)[-2]
    waiting = run(live, 5)
    opened = lips([*changed, *waiting])
    assert before == 0
    assert (opened > 0).all()
    assert (np.diff(opened) > 0).all()
    assert {frame.state for frame in waiting} == {"idle"}
    live.interrupt()
    after = lips(run(live, 20))
    assert (np.diff(after) <= 0).all()
    assert after[-1] == 0


def test_silence_moves_no_lips_and_lips_stay_parted_until_the_voice_begins() -> None:
    class Still(LoudSource):
        def _until(self, last: int) -> Iterable[torch.Tensor]:
            for motion in super()._until(last):
                yield 0 * motion

    live = LiveSession(Still)
    live.push(np.zeros(RATE // 2, np.float32), RATE)
    frames = run(live, 10)
    assert (lips(frames) == 0).all()
    live.interrupt()
    run(live, 10)
    live.push(np.concatenate([np.zeros(RATE * 4 // 25, np.float32), speech(0.8)]), RATE)
    live.finish()
    run(live, 1)
    parted = lips(run(live, 2))
    assert (parted > 0).all()
    assert (lips(run(live, 18))[10:] == 0).all()

"""Claims about the measurement of the live server: known lateness, delays and movements are found as they are."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import click_and_flash, live, live_analysis, live_bench, live_clients
from benchmarks.__main__ import main
from hypothesis import given
from hypothesis import strategies as st

from flowportrait import samples
from flowportrait.errors import BadInput
from flowportrait.media.audio import read_audio
from flowportrait.media.video import FPS

PHOTO = samples.portrait_path(next(iter(samples.PORTRAITS)))


def row(count: int, delay: float = 30.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return media time, arrival and showing in ms of frames that all come after the same time."""
    due = 40.0 * np.arange(count)
    return due, due + delay, due + delay + 15


@given(st.floats(0, 2000), st.integers(3, 400))
def test_an_even_row_has_no_late_frame_however_long_its_way(delay: float, count: int) -> None:
    found = live_analysis.measure_punctuality(*row(count, delay))
    assert (found.frames, found.missing, found.late_received, found.late_shown) == (count, 0, 0, 0)
    assert found.longest_gap == pytest.approx(40)


@pytest.mark.parametrize(("lateness", "late"), [(39, 0), (41, 1)])
def test_a_frame_is_late_by_more_than_one_frame(lateness: float, late: int) -> None:
    due, received, shown = row(100)
    received[50] += lateness
    shown[50] += lateness
    found = live_analysis.measure_punctuality(due, received, shown)
    assert found.late_received == found.late_shown == late / 100


def test_frames_that_never_come_are_late_too_and_a_stall_is_found() -> None:
    due, received, shown = row(200)
    kept = np.delete(np.arange(200), [20, 21, 22])
    found = live_analysis.measure_punctuality(due[kept], received[kept], shown[kept])
    assert found.frames == 200
    assert found.missing == found.late_received == found.late_shown == 3 / 200
    assert found.longest_gap == pytest.approx(160)
    # What was due during 200 ms arrives at its end: 200, 160, 120 and 80 ms late, and 40.
    stalled = np.maximum(received, np.where((due >= 4000) & (due < 4200), 4230.0, 0.0))
    assert live_analysis.measure_punctuality(due, stalled, shown).late_received == 4 / 200


def test_a_jitter_buffer_that_grows_is_no_lateness_and_a_clock_that_drifts_is_found() -> None:
    due, received, shown = row(25 * 120)
    shown[25 * 60 :] += 60
    assert live_analysis.measure_punctuality(due, received, shown).late_shown < 0.01
    drifting = received + due / 3_600_000 * 500
    assert live_analysis.measure_punctuality(due, drifting, shown).drift == pytest.approx(500, rel=0.05)
    assert live_analysis.measure_punctuality(due, received, shown).drift == pytest.approx(0, abs=1e-6)


def test_movement_begins_where_the_mouth_opens_and_ends_where_it_rests() -> None:
    rng = np.random.default_rng(0)
    times = 40.0 * np.arange(-12, 30)
    openings = 0.004 + 0.0005 * rng.standard_normal(len(times))
    mouth = live_analysis.RestingMouth.from_idle(openings)
    assert live_analysis.first_movement(times, mouth.moves(openings)) is None
    assert live_analysis.time_to_rest(times, mouth.moves(openings)) == 0
    openings[(times >= 160) & (times < 600)] += 0.08
    openings[times == -80] += 0.08  # a single frame in which the tracker errs
    assert live_analysis.first_movement(times, mouth.moves(openings)) == 160
    assert live_analysis.time_to_rest(times, mouth.moves(openings)) == 600
    openings[times >= 160] += 0.08
    assert live_analysis.time_to_rest(times, mouth.moves(openings)) is None


def test_lips_that_prepare_to_speak_are_told_from_lips_that_speak() -> None:
    times = 40.0 * np.arange(-12, 30)
    openings = np.full(len(times), 0.004)
    mouth = live_analysis.RestingMouth.from_idle(openings)
    openings[times >= 80] = 0.054
    assert live_analysis.first_movement(times, mouth.moves(openings)) == 80
    assert live.first_wide(times, mouth, openings) is None
    openings[times >= 400] = 0.09
    openings[times == -80] = 0.09
    assert live.first_wide(times, mouth, openings) == 400


@pytest.mark.slow
def test_the_lips_of_the_avatar_are_seen_to_move_with_its_first_frames_of_speech() -> None:
    from PIL import Image

    from flowportrait.live import LivePortrait
    from flowportrait.live.session import LiveSession

    portrait, now = LivePortrait(PHOTO, size=256), 0.0
    speech = live_analysis.cut_utterances(read_audio(samples.SPEECH), 1, 1.2)[0]
    session = LiveSession(portrait.motion_source, clock=lambda: now)
    pictures = []
    for index in range(60):
        if index == 20:
            session.push(speech, 16_000)
            session.finish()
        while session.generate():
            pass
        file = io.BytesIO()
        Image.fromarray(portrait.draw(session.tick().motion)).save(file, "jpeg", quality=90)
        pictures.append(file.getvalue())
    openings = live_analysis.measure_mouths(pictures)
    mouth = live_analysis.RestingMouth.from_idle(openings[:20])
    times = 40.0 * (np.arange(60) - 20)
    assert not mouth.moves(openings[:20]).any()
    first = live_analysis.first_movement(times, mouth.moves(openings))
    assert first is not None
    assert 0 <= first <= 160
    rest = live_analysis.time_to_rest(times, mouth.moves(openings))
    assert rest is not None
    assert 600 <= rest <= 1500


@given(st.floats(-400, 400), st.integers(3, 30))
def test_clicks_are_found_at_their_flashes(offset: float, count: int) -> None:
    flashes = 1000.0 * np.arange(count)
    found = live_analysis.click_offsets(list(flashes), list(flashes + offset))
    assert found == pytest.approx(np.full(count, offset), abs=1e-6)
    assert len(live_analysis.click_offsets(list(flashes), [])) == 0


@pytest.mark.parametrize("delay", [0, 5])
def test_the_test_source_has_click_and_flash_as_far_apart_as_it_was_told(delay: int, tmp_path: Path) -> None:
    from flowportrait.media.write_video import write_video

    frames = 3 * FPS
    sound = np.concatenate([click_and_flash.click_sound(index, 16_000, delay)[0] for index in range(frames)])
    pictures = [click_and_flash.flash_picture(index, 64) for index in range(frames)]
    write_video(tmp_path / "click.mp4", pictures, sound)
    flashes, clicks = live_analysis.read_clicks_and_flashes(tmp_path / "click.mp4")
    offsets = live_analysis.click_offsets(flashes, clicks)
    assert len(offsets) == 2  # the first flash is there from the beginning
    assert offsets == pytest.approx(np.full(2, 40 * delay), abs=12)


def test_utterances_begin_with_a_voice() -> None:
    speech = np.zeros(16_000 * 5, np.float32)
    tone = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float32)
    speech[8_000:24_000], speech[40_000:56_000] = tone, tone
    found = live_analysis.cut_utterances(speech, 3, 0.8)
    assert [len(one) for one in found] == [12_800] * 3
    assert all(np.abs(one[:400]).max() > 10_000 for one in found)


def test_growth_is_per_hour_and_ignores_the_beginning() -> None:
    times = list(range(0, 7200, 60))
    assert live_analysis.slope_per_hour(times, [500 + 3 * time / 3600 for time in times]) == pytest.approx(3)
    assert live_analysis.slope_per_hour(times, [100.0 * (time > 600) for time in times]) == pytest.approx(0)


_LEAK_PROGRAM = """
import json, sys
import numpy as np, torch
from benchmarks import live_memory

class Still:  # motion that costs nothing
    def push(self, audio):
        return [torch.zeros(len(audio) // 640, 30)]
    def finish(self):
        return []

leak_bytes = int(sys.argv[1])
curve = live_memory.simulate_session(lambda utterance: Still(), np.zeros(16_000, np.int16), 0.1, leak_bytes=leak_bytes)
print(json.dumps([curve.slope, curve.new_objects]))
"""


def test_a_session_that_leaks_is_found_and_one_that_does_not_is_flat() -> None:
    # Each in a fresh process: memory that this one has freed would take up the leak.
    leak_bytes = 2**14
    (flat, flat_objects), (leaking, _) = (
        json.loads(subprocess.run([sys.executable, "-c", _LEAK_PROGRAM, str(size)], check=True, stdout=-1).stdout)
        for size in (0, leak_bytes)
    )
    assert abs(flat_objects) < 20_000
    assert leaking > flat + leak_bytes * FPS * 3600 / 2**20 / 2


@pytest.mark.parametrize("text", ["384", "384:1", "384:0:60", "big:1:60", "384:1:-5"])
def test_a_run_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="SIZE:SESSIONS:SECONDS"):
        live_bench.parse_run(text)
    assert live_bench.parse_run("384:2:1.5") == (384, 2, 1.5)


def test_missing_files_are_refused_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", "nowhere.jpg", "nowhere.wav"]) == 2
    assert capsys.readouterr().err.splitlines() == ["No file at nowhere.jpg: give a photo and a recording of speech."]


def test_there_are_at_least_a_dozen_ways_to_misbehave_each_with_a_sentence() -> None:
    assert len(live_clients.KINDS) >= 12
    assert all((kind.__doc__ or "").strip().endswith(".") for kind in live_clients.KINDS)


@pytest.mark.slow
@pytest.mark.browser
def test_late_sound_and_stalls_of_the_test_source_are_seen_in_a_browser(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("no Chromium is installed")
    pytest.importorskip("playwright.sync_api")
    pytest.importorskip("aiortc")
    target = tmp_path / "live.json"
    words = ["live", str(PHOTO), str(samples.SPEECH), "--parts", "source", "--source-seconds", "5"]
    assert main([*words, "--record", str(target)]) == 0
    found = {
        (one["group"], one["system"], one["metric"]): one["value"] for one in json.loads(target.read_text())["rows"]
    }
    metric = "sound after picture, in a recording, without the page's own"
    on_time = found["click", "by WebRTC", metric]
    late = found["click", "by WebRTC, sound 5 frames late (control)", metric]
    assert late - on_time == pytest.approx(200, abs=60)

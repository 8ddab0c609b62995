"""Claims about the studio: what it draws can be watched meanwhile, and mistakes get a sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait.errors import BadInput
from flowportrait.media.audio import read_sound
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.animator import Animator
from flowportrait.pipelines.guidance import build_guidance
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.provenance.manifest import read_signature
from flowportrait.studio import draw, training_process
from flowportrait.studio.draw import iterate_speech, load_pipeline
from flowportrait.studio.job import RenderJob
from flowportrait.studio.portrait import find_portrait
from flowportrait.studio.render_queue import RenderQueue
from flowportrait.studio.storage import StudioLimits
from flowportrait.studio.training import Training
from flowportrait.uploads import delete_old_files
from tests.pipelines.test_animator import babble


def request(image: Path | None, audio: Path | None = None, **settings: Any) -> AnimateRequest:
    """What the page submits: the face square alone, unless it is told otherwise."""
    return AnimateRequest(**{"image": image, "audio": audio, "crop": True, **settings})


def photo(folder: Path) -> Path:
    path = folder / "face.png"
    cv2.imwrite(str(path), cv2.cvtColor(astronaut()[:300, 60:360], cv2.COLOR_RGB2BGR))
    return path


def speech(folder: Path, seconds: float = 1.0) -> Path:
    path = folder / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((babble(seconds).clip(-1, 1) * 32767).astype("<i2").tobytes())
    return path


def test_a_wish_is_drawn_no_longer_than_allowed_and_can_be_followed(tmp_path: Path) -> None:
    queue = RenderQueue(tmp_path / "videos", StudioLimits(seconds=1))
    try:
        job = queue.submit(request(photo(tmp_path), speech(tmp_path, 2.0)))
        watched = b"".join(job.follow())
        assert job.done.is_set()
        assert job.error is None
        assert watched == job.path.read_bytes()
        with av.open(str(job.path)) as made:
            assert sum(1 for _ in made.decode(video=0)) == 25
        assert "the first frame after" in job.status_text()
        assert "left out" in job.status_text()
    finally:
        queue.close()


def test_a_tight_photo_is_framed_as_on_the_command_line(tmp_path: Path) -> None:
    tight = astronaut()[60:230, 120:275]
    cv2.imwrite(str(tmp_path / "tight.png"), cv2.cvtColor(tight, cv2.COLOR_RGB2BGR))
    queue = RenderQueue(tmp_path / "videos", StudioLimits())
    try:
        job = queue.submit(request(tmp_path / "tight.png", speech(tmp_path, 0.4), checkpoint="sft"))
        b"".join(job.follow())
        assert "left out" not in job.status_text()
        seen = next(iter_frames(job.path)).astype(int)
    finally:
        queue.close()
    portrait = Portrait.from_image(tight)
    expected = next(Animator.show(portrait, [torch.zeros(1, 30)])).astype(int)
    # The face moves in the first frame already, but less than the square around it differs from the photo.
    assert np.abs(seen - expected).mean() < np.abs(portrait.crop - expected).mean() / 2


def test_as_much_as_allowed_is_not_called_cut(tmp_path: Path) -> None:
    called: list[bool] = []
    wanted = request(None, speech(tmp_path, 2.0))
    for seconds, cut in ((2.0, 0), (1.0, 1)):
        pieces = list(iterate_speech(wanted, StudioLimits(seconds=seconds), lambda: called.append(True)))
        assert sum(piece.samples.shape[1] for piece in pieces) == seconds * 16_000
        assert len(called) == cut


def test_the_video_plays_the_recording_at_its_own_rate_and_in_stereo(tmp_path: Path) -> None:
    queue, path = RenderQueue(tmp_path / "videos", StudioLimits()), tmp_path / "stereo.wav"
    left = np.repeat(babble(0.6), 3)
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", ""))
        file.writeframes((np.stack([left, 0 * left], 1).clip(-1, 1) * 32767).astype("<i2").tobytes())
    try:
        job = queue.submit(request(photo(tmp_path), path))
        b"".join(job.follow())
        played = read_sound(job.path)
    finally:
        queue.close()
    assert (played.rate, played.layout) == (48_000, "stereo")
    assert np.abs(played.samples[1]).mean() < 0.02 * np.abs(played.samples[0]).mean()


def test_guidance_reaches_every_chunk_and_none_is_none(tmp_path: Path) -> None:
    generator = load_pipeline("sft").generator
    assert build_guidance(generator, {"sync": 0.0, "expression": 0.0}) is None
    steering = build_guidance(generator, {"expression": 3.0})
    assert steering is not None
    assert steering.guide == (0.0, 3.0, 0.0)
    plain, bent = (
        torch.cat(list(load_pipeline("sft").motion(babble(0.7), seed=1, guidance=one))) for one in (None, steering)
    )
    assert not torch.allclose(plain, bent, atol=1e-3)
    assert request(None, guide={"expression": 3.0}).guide["expression"] == 3.0


def test_mistakes_get_a_sentence_before_anything_is_drawn(tmp_path: Path) -> None:
    queue = RenderQueue(tmp_path / "videos", StudioLimits(letters=10))
    bad, blank = tmp_path / "bad.png", tmp_path / "blank.png"
    bad.write_bytes(b"no picture")
    cv2.imwrite(str(blank), np.full((200, 200, 3), 128, np.uint8))
    face, sound = photo(tmp_path), speech(tmp_path)
    for wanted, said in (
        (request(None, sound), "no photo yet"),
        (request(bad, sound), "bad.png"),
        (request(blank, sound), "No face found"),
        (request(face), "nothing to say yet"),
        (request(face, text="more than ten letters"), "more than 10"),
        (request(face, text="Hello.", voice="nobody"), "no voice"),
        (request(face, bad), "bad.png"),
    ):
        with pytest.raises(BadInput, match=said):
            queue.submit(wanted)
    assert queue.jobs == {}
    assert not list((tmp_path / "videos").iterdir())
    queue.close()


def test_who_follows_sees_what_is_there_and_waits_for_the_rest(tmp_path: Path) -> None:
    job = RenderJob(tmp_path / "a.mp4", request(None))
    job.path.write_bytes(b"first")
    seen = job.follow()
    assert next(seen) == b"first"
    with job.path.open("ab") as file:
        file.write(b"second")
    assert next(seen) == b"second"
    job.done.set()
    assert list(seen) == []


def test_a_run_is_started_watched_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import sys, time, pathlib\nfolder = pathlib.Path(sys.argv[-1])\n"
        "(folder / 'metrics.jsonl').write_text('{\"reward/sync\": 1.5}\\n{\"rew')\nprint('working', flush=True)\n"
        "try: time.sleep(60)\nexcept KeyboardInterrupt: print('saved'); sys.exit(130)\n"
    )
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.orig_argv[0]} {program} $*\n")
    (tmp_path / "python").chmod(0o755)
    training = Training(tmp_path / "runs")
    for name, prompts, said in (("a/b", str(tmp_path), "no name"), ("a", "nowhere", "no folder of prompts")):
        with pytest.raises(BadInput, match=said):
            training.start(name, prompts, "flow-grpo", "sft", 1)
    training.start("mine", str(tmp_path), "flow-grpo", "sft", 3)
    with pytest.raises(BadInput, match="under way"):
        training.start("other", str(tmp_path), "flow-grpo", "sft", 3)
    for _ in range(200):
        if training.records() and "working" in training.status_text():
            break
        time.sleep(0.05)
    assert training.records() == [{"reward/sync": 1.5}]
    assert "under way, 1 iterations" in training.status_text()
    training.stop()
    assert training.wait(10) == 130
    assert "stopped (130)" in training.status_text()
    assert "saved" in training.status_text()


def until(true: Callable[[], object]) -> None:
    for _ in range(2400):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("never true")


def test_stop_ends_what_its_own_tab_asked_for_and_says_so(tmp_path: Path) -> None:
    queue = RenderQueue(tmp_path / "videos", StudioLimits())
    face, sound = photo(tmp_path), speech(tmp_path, 3.0)
    try:
        first = queue.submit(request(face, sound), owner="one tab")
        second = queue.submit(request(face, sound), owner="another")
        queue.stop("another")
        assert second.done.wait(1), "nobody waits for a video that was stopped before it began"
        assert second.status_text() == "Stopped before it began."
        until(lambda: first.frames)
        queue.stop("another")
        queue.stop("one tab")
        assert first.done.wait(30)
        assert first.status_text().startswith("Stopped: ")
        assert 0 < first.frames < 75
        third = queue.submit(request(face, speech(tmp_path, 0.4)), owner="one tab")
        queue.stop("another")
        assert third.done.wait(60)
        assert third.status_text().startswith("Done: ")
        queue.stop("one tab")
        assert third.status_text().startswith("Done: "), "what was done already stays done"
    finally:
        queue.close()


def test_a_failure_nobody_foresaw_is_one_sentence_on_the_page_and_a_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(name: str) -> AnimatePipeline:
        raise RuntimeError("no weights\nin /srv/secret/rl")

    monkeypatch.setattr(draw, "load_pipeline", broken)
    queue = RenderQueue(tmp_path / "videos", StudioLimits())
    try:
        job = queue.submit(request(photo(tmp_path), speech(tmp_path)))
        assert job.done.wait(60)
        assert job.status_text() == "Drawing failed (RuntimeError: no weights in rl): the terminal has more."
        assert "Traceback" in caplog.text
        assert list(job.follow()) == []
    finally:
        queue.close()


def test_what_waits_when_the_studio_closes_is_done(tmp_path: Path) -> None:
    queue = RenderQueue(tmp_path / "videos", StudioLimits())
    jobs = [queue.submit(request(photo(tmp_path), speech(tmp_path, 2.0))) for _ in range(2)]
    queue.close()
    assert all(job.done.is_set() and job.stopped for job in jobs)


def test_old_files_go_by_age_and_size_and_what_is_in_use_stays(tmp_path: Path) -> None:
    def aged(name: str, hours: float, kilobytes: int = 1) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * 1024 * kilobytes)
        os.utime(path, (time.time() - 3600 * hours,) * 2)
        return path

    old, used, upload = aged("old.mp4", 30), aged("used.mp4", 30), aged("upload/photo.jpg", 30)
    large, newer, fresh = aged("large.mp4", 3, 900), aged("newer.mp4", 2, 900), aged("fresh.mp4", 0, 900)
    assert set(delete_old_files(tmp_path, 24, 2, [used])) == {old, upload, large}
    assert used.exists()
    assert newer.exists()
    assert fresh.exists()
    assert not upload.parent.exists()
    assert delete_old_files(tmp_path, 24, 0.1, [used]) == [newer], "a file of this minute may be about to be used"


def test_a_video_that_went_is_forgotten(tmp_path: Path) -> None:
    queue = RenderQueue(tmp_path / "videos", StudioLimits())
    job = RenderJob(queue.folder / "a.mp4", request(None), ended=time.monotonic() - 4000)
    job.done.set()
    job.path.write_bytes(b"x")
    os.utime(job.path, (0, 0))
    queue.jobs["a"] = job
    queue.tidy()
    assert queue.jobs == {}
    assert queue.signed("a") is None
    queue.close()


def two_faces(folder: Path) -> Path:
    """The same person twice, the right one smaller."""
    face = astronaut()[:300, 60:360]
    canvas = np.full((300, 600, 3), 200, np.uint8)
    canvas[:, :300] = face
    canvas[:220, 300:520] = cv2.resize(face, (220, 220), interpolation=cv2.INTER_AREA)
    path = folder / "two.png"
    cv2.imwrite(str(path), cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))
    return path


def test_the_page_says_what_the_terminal_did_and_lets_one_choose_a_face(tmp_path: Path) -> None:
    path = two_faces(tmp_path)
    largest, left, right = (find_portrait(path, face) for face in (None, 1, 2))
    assert largest.faces == 2
    assert "2 faces: the largest one speaks" in largest.notes[0]
    assert np.array_equal(largest.portrait.crop, left.portrait.crop)
    assert "number 2 from the left" in right.notes[0]
    assert not np.array_equal(right.portrait.crop, left.portrait.crop)
    with pytest.raises(BadInput, match="no face number 3"):
        find_portrait(path, 3)
    small = tmp_path / "small.png"
    canvas = np.full((400, 400, 3), 200, np.uint8)
    canvas[150:250, 150:250] = cv2.resize(astronaut()[:300, 60:360], (100, 100), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(small), cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR))
    assert "will be soft" in find_portrait(small).notes[0]
    assert find_portrait(photo(tmp_path)).notes == ()


def test_a_covered_mouth_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowportrait.media.portrait_notes.is_mouth_covered", lambda image, landmarks: True)
    path = photo(tmp_path)
    os.utime(path, (5, 5))
    assert find_portrait(path).notes == ("The mouth in the photo seems to be covered: lips will be drawn over it.",)


def test_the_whole_photo_is_shown_and_the_finished_file_is_signed(tmp_path: Path) -> None:
    queue = RenderQueue(tmp_path / "videos", StudioLimits())
    try:
        job = queue.submit(request(two_faces(tmp_path), speech(tmp_path, 0.8), face=2, crop=False))
        assert queue.signed(job.name) is None, "not before it is done"
        drawn = b"".join(job.follow())
        assert drawn
        assert next(iter_frames(job.path)).shape == (300, 600, 3)
        path = queue.signed(job.name)
        assert path is not None
        assert path == queue.signed(job.name)
        found = read_signature(path)
        assert found.present
        assert found.intact
        for was, now in zip(iter_frames(job.path), iter_frames(path), strict=True):
            assert np.array_equal(was, now), "the very pictures that were watched"
        with av.open(str(path)) as made:
            assert "Synthetic video" in made.metadata["comment"]
    finally:
        queue.close()
    assert not list((tmp_path / "videos").glob(".*"))


def test_a_run_can_be_interrupted_whoever_started_the_studio(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def command(arguments: list[str]) -> int:
        given.extend([arguments, signal.getsignal(signal.SIGINT)])
        return 3

    monkeypatch.setattr("flowportrait.cli.main", command)
    monkeypatch.setattr(sys, "argv", ["training_process", "recipes"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert training_process.main() == 3
    finally:
        signal.signal(signal.SIGINT, before)
    assert given == [["recipes"], signal.default_int_handler]


def test_a_run_is_started_without_code_between_fork_and_exec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, object]] = []

    class Recorded:
        def __init__(self, command: list[str], **options: object) -> None:
            started.append({"command": command, **options})

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    Training(tmp_path / "runs").start("mine", str(tmp_path), "flow-grpo", "sft", 1)
    assert "preexec_fn" not in started[0]
    assert "flowportrait.studio.training_process" in started[0]["command"]  # type: ignore[operator]

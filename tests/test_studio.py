"""Claims about the studio: what it draws can be watched meanwhile, and mistakes get a sentence."""

from __future__ import annotations

import sys
import time
import wave
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from skimage.data import astronaut

from flowportrait.animator import Animator
from flowportrait.errors import BadInput
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.steered import steering_by
from flowportrait.studio.limits import Limits
from flowportrait.studio.live import Show, Theatre, animator
from flowportrait.studio.training import Training
from flowportrait.studio.wish import Wish
from tests.test_animator import babble


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
    theatre = Theatre(tmp_path / "videos", Limits(seconds=1))
    try:
        show = theatre.put_on(Wish(photo(tmp_path), speech(tmp_path, 2.0)))
        watched = b"".join(show.follow())
        assert show.done.is_set()
        assert show.trouble is None
        assert watched == show.path.read_bytes()
        with av.open(str(show.path)) as made:
            assert sum(1 for _ in made.decode(video=0)) == 25
        assert "the first frame after" in show.told()
        assert "left out" in show.told()
    finally:
        theatre.close()


def test_a_tight_photo_is_framed_as_on_the_command_line(tmp_path: Path) -> None:
    tight = astronaut()[60:230, 120:275]
    cv2.imwrite(str(tmp_path / "tight.png"), cv2.cvtColor(tight, cv2.COLOR_RGB2BGR))
    theatre = Theatre(tmp_path / "videos", Limits())
    try:
        show = theatre.put_on(Wish(tmp_path / "tight.png", speech(tmp_path, 0.4), checkpoint="sft"))
        b"".join(show.follow())
        assert "left out" not in show.told()
        seen = next(iter_frames(show.path)).astype(int)
    finally:
        theatre.close()
    portrait = Portrait.from_image(tight)
    expected = next(Animator.show(portrait, [torch.zeros(1, 30)])).astype(int)
    assert np.abs(seen - expected).mean() < 6 < np.abs(portrait.crop - expected).mean()


def test_as_much_as_allowed_is_not_called_cut(tmp_path: Path) -> None:
    called: list[bool] = []
    wish = Wish(None, speech(tmp_path, 2.0))
    for seconds, cut in ((2.0, 0), (1.0, 1)):
        pieces = list(wish.sound(Limits(seconds=seconds), lambda: called.append(True)))
        assert sum(map(len, pieces)) == seconds * 16_000
        assert len(called) == cut


def test_guidance_reaches_every_chunk_and_none_is_none(tmp_path: Path) -> None:
    generator = animator("sft").generator
    assert steering_by(generator, {"sync": 0.0, "expression": 0.0}) is None
    steering = steering_by(generator, {"expression": 3.0})
    assert steering is not None
    assert steering.guide == (0.0, 3.0, 0.0)
    plain, bent = (
        torch.cat(list(animator("sft").motion(babble(0.7), seed=1, steering=one))) for one in (None, steering)
    )
    assert not torch.allclose(plain, bent, atol=1e-3)
    assert Wish(None, guide={"expression": 3.0}).guide["expression"] == 3.0


def test_mistakes_get_a_sentence_before_anything_is_drawn(tmp_path: Path) -> None:
    theatre = Theatre(tmp_path / "videos", Limits(letters=10))
    bad, blank = tmp_path / "bad.png", tmp_path / "blank.png"
    bad.write_bytes(b"no picture")
    cv2.imwrite(str(blank), np.full((200, 200, 3), 128, np.uint8))
    face, sound = photo(tmp_path), speech(tmp_path)
    for wish, said in (
        (Wish(None, sound), "no photo yet"),
        (Wish(bad, sound), "bad.png"),
        (Wish(blank, sound), "No face found"),
        (Wish(face), "nothing to say yet"),
        (Wish(face, text="more than ten letters"), "more than 10"),
        (Wish(face, text="Hello.", voice="nobody"), "no voice"),
        (Wish(face, bad), "bad.png"),
    ):
        with pytest.raises(BadInput, match=said):
            theatre.put_on(wish)
    assert theatre.shows == {}
    assert not list((tmp_path / "videos").iterdir())
    theatre.close()


def test_who_follows_sees_what_is_there_and_waits_for_the_rest(tmp_path: Path) -> None:
    show = Show(tmp_path / "a.mp4", Wish(None))
    show.path.write_bytes(b"first")
    seen = show.follow()
    assert next(seen) == b"first"
    with show.path.open("ab") as file:
        file.write(b"second")
    assert next(seen) == b"second"
    show.done.set()
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
        if training.records() and "working" in training.told():
            break
        time.sleep(0.05)
    assert training.records() == [{"reward/sync": 1.5}]
    assert "under way, 1 iterations" in training.told()
    training.stop()
    assert training.wait(10) == 130
    assert "stopped (130)" in training.told()
    assert "saved" in training.told()

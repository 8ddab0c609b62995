"""What takes longer than two seconds says what it does, where standard error is a terminal."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from flowportrait import terminal
from flowportrait.data import prepare as preparing
from flowportrait.data.corpus import SourceVideo
from flowportrait.data.prepare import PreparationConfig, prepare_video
from flowportrait.judges.sanity import CLIP_SANITY, certify_judge
from flowportrait.media.write_video import write_video
from tests.corpus.test_prepare import room, syllables
from tests.judges.test_judge_opinion import Scripted, sane_clips


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a user sees on a terminal, with every intermediate state of the bars."""
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=True, width=100)
    monkeypatch.setattr(terminal, "error_console", lambda: console)
    return seen


def test_the_examination_of_a_judge_shows_each_of_its_steps(screen: io.StringIO) -> None:
    assert certify_judge(Scripted("good", 1.5), sane_clips(), CLIP_SANITY).passed
    shown = screen.getvalue()
    assert "looking for faces" in shown
    assert "judging" in shown
    assert "drawing" not in shown


def test_the_frames_that_a_worker_reads_are_counted_while_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "a.mp4", room(30), syllables(1.2))
    seen = multiprocessing.get_context("spawn").Value("q", 0)
    monkeypatch.setattr(preparing, "_frames_read", seen)
    prepare_video(SourceVideo(tmp_path / "a.mp4", "a", "s", "train"), tmp_path / "out", PreparationConfig())
    assert seen.value == 30
    assert "1 s of video seen" in str(preparing._SecondsRead(seen).render(None))  # type: ignore[arg-type]


def terminal_output(arguments: list[str], folder: Path, until: str, seconds: float) -> list[str]:
    """Run the command line with a terminal for standard error; what it shows, piece by piece, up to ``until``."""
    pty = pytest.importorskip("pty")
    main_end, end = pty.openpty()
    code = "import sys; from flowportrait.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=end, cwd=folder)
    os.close(end)
    began = time.monotonic()
    shown: list[str] = []
    try:
        while time.monotonic() - began < seconds:
            if select.select([main_end], [], [], 0.2)[0]:
                text = os.read(main_end, 65536).decode(errors="replace")
                shown.append(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))
                if until in "".join(shown):
                    break
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        os.close(main_end)
    return shown


@pytest.mark.slow
def test_the_studio_says_that_it_starts_until_it_has_an_address(tmp_path: Path) -> None:
    started = time.monotonic()
    shown = terminal_output(["studio", "--port", "0"], tmp_path, "http://127.0.0.1", 120)
    seconds = time.monotonic() - started
    whole = "".join(shown)
    assert "starting the studio" in whole
    assert "The studio is at http://127.0.0.1" in whole
    wheel = {piece.split(" starting")[0].strip() for piece in shown if " starting" in piece}
    assert seconds < 2 or len(wheel) >= 2  # who waits sees a wheel that turns, not one line

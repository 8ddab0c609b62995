"""A real browser over a real server, for the claims about the study's page."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from skimage.data import astronaut

from flowportrait.human_study.make import make_study
from flowportrait.human_study.server import study_app
from flowportrait.media.write_video import write_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def videos(folder: Path, clips: int = 2, frames: int = 12, step: int = 2) -> Path:
    """A system's folder: a face that slides by ``step`` pixels a frame, with a tone that comes and goes."""
    folder.mkdir(parents=True)
    face = np.ascontiguousarray(astronaut()[0:240:2, 110:350:2])
    times = np.arange(frames * 640) / 16_000
    for clip in range(clips):
        tone = 0.2 * np.sin(2 * np.pi * (180 + 40 * clip) * times) * (np.sin(2 * np.pi * 4 * times) > 0)
        pictures = [np.roll(face, step * index, axis=1) for index in range(frames)]
        write_video(folder / f"clip{clip}.mp4", pictures, tone.astype(np.float32), tags={"title": folder.name})
    return folder


def small_study(folder: Path, clips: int = 2, **options: Any) -> Path:
    """Two systems called slow and fast in a study."""
    systems = [videos(folder / "slow", clips, step=1), videos(folder / "fast", clips, step=4)]
    make_study(systems, folder / "study", seed="fixed", contact="Ada Example, ada@example.org", **options)
    return folder / "study"


@contextlib.contextmanager
def served(study: Path) -> Iterator[str]:
    """The address of a running study."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(study_app(study), log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; skips the test, with the reason, where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield one
        finally:
            one.close()

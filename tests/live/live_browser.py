"""A real Chromium in front of a live server, with a microphone and a webcam that play files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.samples import SPEECH
from tests.study_browser import CHROMIUM

PATIENCE = 60.0
"""Seconds in which something must happen on a busy machine."""
PICTURE = """() => {
  const video = document.querySelector('#screen video, #screen canvas'), copy = document.createElement('canvas');
  copy.width = copy.height = 64;
  const context = copy.getContext('2d');
  context.drawImage(video, 0, 0, 64, 64);
  return [...context.getImageData(0, 0, 64, 64).data].filter((_, i) => i % 4 < 3);
}"""


@contextlib.contextmanager
def opened_chromium(*options: str) -> Iterator[Any]:
    """A headless Chromium with these further command-line options; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *fake, *options]
        )
        yield browser
        browser.close()


def speech_wav(path: Path, seconds: float = 3.0) -> Path:
    """A recording for the fake microphone, which plays it again and again."""
    sound = read_audio(SPEECH)[SAMPLE_RATE : int((1 + seconds) * SAMPLE_RATE)]
    wavfile.write(path, SAMPLE_RATE, (sound * 32767).astype(np.int16))
    return path


@contextlib.contextmanager
def opened_page(browser: Any, address: str, **context: Any) -> Iterator[Any]:
    """A tab with the page; at its end it must have had no errors, but for those in ``page.expected``."""
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **context}).new_page()
    page.set_default_timeout(1000 * PATIENCE)
    problems: list[str] = []
    page.expected = ()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    try:
        page.answer = page.goto(address)
        page.wait_for_selector("body[data-ready]")
        yield page
    finally:
        page.close()
    assert [one for one in problems if not any(words in one for words in page.expected)] == []


def until(page: Any, expression: str, seconds: float = PATIENCE) -> Any:
    """Wait until an expression is true; the page's own policy forbids Playwright to evaluate it in the page."""
    deadline = time.monotonic() + seconds
    while not (value := page.evaluate(expression)):
        assert time.monotonic() < deadline, f"{expression}: {page.inner_text('body')}"
        page.wait_for_timeout(40)
    return value


def until_state(page: Any, *states: str, seconds: float = PATIENCE) -> str:
    """Wait until the page shows one of these states, and return it."""
    return until(page, f"{list(states)}.find((one) => one === document.body.dataset.state)", seconds)


def start(page: Any) -> None:
    """Click the overlay and wait for the face."""
    page.click("#start")
    until_state(page, "idle", "listening", "speaking")
    until(page, "document.querySelector('#screen video, #screen canvas').readyState !== 0")


def picture(page: Any) -> np.ndarray:
    """The picture that is shown now, ``[64, 64, 3]``."""
    return np.array(page.evaluate(PICTURE), np.float32).reshape(64, 64, 3)


def until_picture_changes(page: Any, seconds: float, threshold: float = 0.0) -> float:
    """Wait until the picture is another one, and return the seconds that this took."""
    first, begun = picture(page), time.monotonic()
    while time.monotonic() < begun + seconds:
        page.wait_for_timeout(20)
        if np.abs(picture(page) - first).max() > threshold:
            return time.monotonic() - begun
    raise AssertionError(f"no new picture within {seconds} s")


def loudest(page: Any, seconds: float, expression: str) -> float:
    """The largest value of an expression within some seconds; returns early once it is well over silence."""
    most, deadline = 0.0, time.monotonic() + seconds
    while time.monotonic() < deadline and most < 0.05:
        most = max(most, float(page.evaluate(expression)))
        page.wait_for_timeout(30)
    return most

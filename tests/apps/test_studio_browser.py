"""Claims about the studio's page in a real Chromium: upload, a video that plays, compare, a sentence for a bad file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowportrait.provenance.manifest import read_signature
from flowportrait.studio.render_queue import StudioLimits
from flowportrait.studio.server import Studio, serve_studio
from tests.apps.test_studio import photo, speech, two_faces
from tests.study_browser import browser, small_study

pytestmark = pytest.mark.slow
PATIENCE = 180_000


def plays(page: Any, count: int) -> None:
    """That so many videos run."""
    running = "[...document.querySelectorAll('video.show')].filter(v => v.currentTime > 0.3 && v.videoWidth > 100)"
    page.wait_for_function(f"{running}.length == {count}", timeout=PATIENCE)


@contextmanager
def studio_at(folder: Path, limits: StudioLimits) -> Iterator[tuple[Studio, str]]:
    """A running studio and its address."""
    pytest.importorskip("gradio")
    studio, found, there = Studio(folder, limits), [], threading.Event()

    def ready(address: str) -> None:
        found.append(address)
        there.set()

    threading.Thread(target=serve_studio, args=(studio, 0, ready), daemon=True).start()
    assert there.wait(60)
    try:
        yield studio, found[0]
    finally:
        studio.close()


def upload_photo_and_speech(page: Any, address: str, image: Path, sound: Path) -> None:
    """The page with a photo and speech."""
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.set_input_files("#photo input[type=file]", str(image))
    page.wait_for_selector("#photo img")
    page.set_input_files("#audio input[type=file]", str(sound))
    page.wait_for_timeout(1500)


def test_stop_ends_ones_own_video_and_not_that_of_another_tab(tmp_path: Path) -> None:
    with studio_at(tmp_path / "studio", StudioLimits()) as (studio, address), browser() as chromium:
        pages = [chromium.new_context().new_page() for _ in range(2)]
        for page in pages:
            upload_photo_and_speech(page, address, photo(tmp_path), speech(tmp_path, 4.0))
            page.click("#go")
            page.wait_for_selector("#said:has-text('Drawing'), #said:has-text('Waiting')")
        pages[1].click("#stop")
        pages[1].wait_for_selector("#said:has-text('Stopped')")
        assert "Stopped" not in pages[0].text_content("#said")
        pages[0].wait_for_selector("#said:has-text('Done')")
        pages[0].click("#go")
        pages[0].wait_for_selector("#said:has-text('Drawing')")
        pages[0].click("#stop")
        pages[0].wait_for_selector("#said:has-text('Stopped')")
        states = [job.status_text().split(":")[0].split(" before")[0] for job in studio.queue.jobs.values()]
        assert states == ["Done", "Stopped", "Stopped"]


def test_the_page_says_what_a_photo_shows_and_a_face_can_be_chosen(tmp_path: Path) -> None:
    with studio_at(tmp_path / "studio", StudioLimits()) as (studio, address), browser() as chromium:
        page = chromium.new_page()
        upload_photo_and_speech(page, address, two_faces(tmp_path), speech(tmp_path, 0.6))
        page.wait_for_selector("#photo-notes:has-text('2 faces: the largest one speaks')")
        page.click("#face input")
        page.click("text=2 from the left")
        page.wait_for_selector("#photo-notes:has-text('number 2 from the left')")
        page.check("#whole input")
        page.click("#go")
        page.wait_for_selector("#said:has-text('Done')")
        page.screenshot(path=tmp_path / "whole.png")
        (job,) = studio.queue.jobs.values()
        assert (job.request.face, job.request.crop) == (2, False)
        page.wait_for_function("document.querySelector('video.show').videoWidth == 600")


def set_slider(page: Any, name: str, value: str) -> None:
    """Type a value beside a slider until it stays: an accordion that opens sets its sliders back once more."""
    number, handle = (f"{name} input[type={kind}]" for kind in ("number", "range"))
    for _ in range(10):
        page.wait_for_selector(number)
        page.fill(number, value)
        page.press(number, "Tab")
        page.wait_for_timeout(700)
        if page.input_value(number) == page.input_value(handle) == value:
            return
    raise AssertionError(f"{name} does not keep {value}")


def test_a_photo_and_speech_become_a_video_that_plays_and_is_compared(tmp_path: Path) -> None:
    with studio_at(tmp_path / "studio", StudioLimits(seconds=1.6)) as (studio, address), browser() as chromium:
        page = chromium.new_context(viewport={"width": 1300, "height": 1000}).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.click("#go")
        page.wait_for_selector("#said:has-text('There is no photo yet')")
        bad = tmp_path / "holiday.jpg"
        bad.write_bytes(b"this is no picture")
        page.set_input_files("#photo input[type=file]", str(bad))
        page.wait_for_timeout(1500)
        page.click("#go")
        page.wait_for_selector("#said:has-text('holiday.jpg')")
        assert str(tmp_path) not in page.text_content("#said")
        page.click("#photo button[aria-label='Remove Image'], #photo button[aria-label='Clear']")
        page.set_input_files("#photo input[type=file]", str(photo(tmp_path)))
        page.wait_for_selector("#photo img")
        page.set_input_files("#audio input[type=file]", str(speech(tmp_path, 2.0)))
        page.wait_for_timeout(1500)
        page.click("#go")
        plays(page, 1)
        page.wait_for_selector("#said:has-text('Done')")
        with page.expect_download() as download:
            page.click("#said a:has-text('signed')")
        assert read_signature(Path(download.value.path())).intact
        page.click("#score")
        page.wait_for_selector("#said table")
        page.screenshot(path=tmp_path / "speak.png")
        page.click("button:has-text('Guidance')")
        set_slider(page, "#guide-expression", "3")
        page.click("button[role=tab]:has-text('Compare')")
        page.click("#compare")
        plays(page, 2)
        page.wait_for_selector("#compared:has-text('rl Done')")
        page.screenshot(path=tmp_path / "compare.png")
        guided = [job.request.guide["expression"] for job in studio.queue.jobs.values()]
        assert guided == [0, 3, 3]
        page.click("button[role=tab]:has-text('Train')")
        page.fill("#prompts textarea, #prompts input", "nowhere")
        page.click("#train")
        page.wait_for_selector("#run:has-text('no folder of prompts')")
        page.click("button[role=tab]:has-text('Ask people')")
        page.fill("#study textarea, #study input", str(small_study(tmp_path)))
        page.click("#open-study")
        page.wait_for_selector("#opened a")
        page.goto(page.get_attribute("#opened a", "href"))
        page.wait_for_selector("#begin")
        assert all(url.startswith(("http://127.0.0.1", "data:", "blob:")) for url in asked)
    assert {path.parent.name for path in (tmp_path / "studio").rglob("*.mp4")} >= {"videos"}

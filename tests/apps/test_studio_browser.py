"""Claims about the studio's page in a real Chromium: one click speaks, every control counts, phone, dark, keyboard."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowportrait.media.image import read_image
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.provenance.manifest import read_signature
from flowportrait.studio import form
from flowportrait.studio.form import EXAMPLE_SENTENCE, VideoForm
from flowportrait.studio.job import RenderJob
from flowportrait.studio.server import Studio, serve_studio
from flowportrait.studio.storage import StudioLimits
from tests.apps.test_studio import photo, speech, two_faces
from tests.apps.test_studio_page import footage
from tests.study_browser import CHROMIUM, small_study

pytestmark = [pytest.mark.slow, pytest.mark.browser]
PATIENCE = 180_000
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium with a microphone that beeps."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    options = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=options)
        yield one
        one.close()


@contextmanager
def studio_at(folder: Path, limits: StudioLimits) -> Iterator[tuple[Studio, str]]:
    """A running studio and its address."""
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


def opened(chromium: Any, address: str, **context: Any) -> Any:
    """A new tab with the page, ready to be used."""
    page = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
    page.set_default_timeout(PATIENCE)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    return page


def until(page: Any, expression: str) -> None:
    """Wait until an expression is true; the page's own policy forbids Playwright to evaluate it in the page."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(expression)


def open_all(page: Any) -> None:
    """Open all groups of settings."""
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")


# --- Every control ---


class Recorder:
    """A studio whose queue notes what it is asked for and draws nothing."""

    def __init__(self, studio: Studio, address: str) -> None:
        self.studio, self.address = studio, address
        self.asked: list[tuple[AnimateRequest, str]] = []
        studio.queue.submit = self.submit  # type: ignore[method-assign]

    def submit(self, request: AnimateRequest, owner: str = "", suffix: str = ".mp4") -> RenderJob:
        self.asked.append((request, suffix))
        job = RenderJob(self.studio.queue.folder / f"{uuid.uuid4().hex}{suffix}", request, owner)
        job.started, job.ended = True, time.monotonic()
        job.done.set()
        self.studio.queue.jobs[job.name] = job
        return job

    def go(self, page: Any, count: int = 1) -> tuple[AnimateRequest, str]:
        """Click the button and return the first request that arrived."""
        self.asked.clear()
        page.click("#go")
        for _ in range(600):
            if len(self.asked) >= count:
                break
            page.wait_for_timeout(20)
        assert len(self.asked) == count
        return self.asked[0]


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorder]:
    with studio_at(tmp_path_factory.mktemp("studio"), StudioLimits()) as (studio, address):
        yield Recorder(studio, address)


def fill(name: str, value: str) -> Callable[[Any], None]:
    return lambda page: page.fill(f"[name='{name}']", value)


def pick(name: str, value: str) -> Callable[[Any], None]:
    return lambda page: page.check(f"[name='{name}'][value='{value}']")


def choose(name: str, value: str) -> Callable[[Any], None]:
    return lambda page: page.select_option(f"[name='{name}']", value)


CONTROLS: dict[str, tuple[list[Callable[[Any], None]], Callable[[AnimateRequest], object], object]] = {
    "photo": ([pick("photo", "example-beard")], lambda asked: asked.image.name, "beard.jpg"),  # type: ignore[union-attr]
    "text": ([fill("text", "Good day.")], lambda asked: asked.text, "Good day."),
    "voice": ([choose("voice", "espeak:de")], lambda asked: asked.voice, "espeak:de"),
    "speech": (
        [pick("speech", "recording")],
        lambda asked: (asked.audio and asked.audio.name, asked.text),
        ("beckett.flac", None),
    ),
    "whole": ([pick("whole", "face")], lambda asked: asked.crop, True),
    "intensity": ([fill("intensity", "1.4")], lambda asked: asked.intensity, 1.4),
    "expression": ([fill("expression", "2.5")], lambda asked: asked.expression_scale, 2.5),
    "head": ([fill("head", "0")], lambda asked: asked.head_motion, 0),
    "blink": ([fill("blink", "0.5")], lambda asked: asked.blink, 0.5),
    "gaze_x": ([fill("gaze_x", "-12")], lambda asked: asked.gaze, (-12, 0)),
    "gaze_y": ([fill("gaze_y", "7")], lambda asked: asked.gaze, (0, 7)),
    "background": ([fill("background", "green")], lambda asked: asked.background, "green"),
    "size": ([choose("size", "256")], lambda asked: asked.size, 256),
    "seed": ([fill("seed", "17")], lambda asked: asked.seed, 17),
    "dice": ([lambda page: page.click("#dice")], lambda asked: asked.seed > 0, True),
    "denoise": ([lambda page: page.uncheck("[name=denoise]")], lambda asked: asked.denoise, False),
    "best_of": ([fill("best_of", "3")], lambda asked: (asked.best_of, asked.by), (3, "reward")),
    "by": ([fill("best_of", "2"), choose("by", "sync")], lambda asked: asked.by, "sync"),
    "prune": ([fill("best_of", "2"), lambda page: page.check("[name=prune]")], lambda asked: asked.prune, True),
    "guide.sync": ([fill("guide.sync", "2")], lambda asked: asked.guide, {"sync": 2}),
    "guide.expression": ([fill("guide.expression", "1.5")], lambda asked: asked.guide, {"expression": 1.5}),
    "guide.motion": ([fill("guide.motion", "3")], lambda asked: asked.guide, {"motion": 3}),
    "checkpoint": ([fill("checkpoint", "sft")], lambda asked: asked.checkpoint, "sft"),
}
"""Controls of a video from a photo: what is done, what is read of the request, and what it must be."""


def test_every_control_changes_the_request_and_nothing_else(chromium: Any, recorder: Recorder) -> None:
    page = opened(chromium, recorder.address)
    plain, suffix = recorder.go(page)
    assert plain.text == EXAMPLE_SENTENCE
    assert (plain, suffix) == (AnimateRequest(image=plain.image, text=plain.text, voice="heart"), ".mp4")
    assert plain.image == form.samples.portrait_path("hair-tied")
    for name, (actions, read, expected) in CONTROLS.items():
        page.goto(recorder.address)
        page.wait_for_selector("body[data-ready]")
        open_all(page)
        for action in actions:
            action(page)
        asked, _ = recorder.go(page)
        assert read(asked) == expected, name
        assert read(plain) != expected, name
        changed = {field for field in vars(plain) if getattr(plain, field) != getattr(asked, field)}
        assert len(changed) <= 3, (name, changed)
    page.click("#reset")
    again, _ = recorder.go(page)
    assert again == plain
    for ending in ("mov", "gif"):
        page.select_option("[name=format]", ending)
        assert recorder.go(page) == (plain, f".{ending}")
    page.fill("[name=compare]", "sft")
    recorder.go(page, 2)
    assert [request.checkpoint for request, _ in recorder.asked] == ["rl", "sft"]
    assert page.problems == []


def test_every_field_of_the_form_is_on_the_page(chromium: Any, recorder: Recorder) -> None:
    page = opened(chromium, recorder.address)
    names = page.evaluate("[...new Set([...document.getElementById('form').elements].map((one) => one.name))]")
    fields = {name.split(".")[0] for name in names if name} - {"video_face"} | {"face"}
    # A video has a tile, and faces a row, once there is one to choose.
    assert fields | {"video"} == set(VideoForm.model_fields)
    unlabelled = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')].filter((one) => !(one.labels?.length) && "
        "!one.getAttribute('aria-label') && !one.textContent.trim()).map((one) => one.outerHTML)"
    )
    assert unlabelled == []


def test_own_files_are_used(chromium: Any, recorder: Recorder, tmp_path: Path) -> None:
    from flowportrait.rendering.motion_files import write_motion
    from flowportrait.rendering.motion_filters import torch

    write_motion(tmp_path / "motion.csv", torch.zeros(10, 30))
    page = opened(chromium, recorder.address)
    add = "[data-picker={}] input[type=file]".format
    page.set_input_files(add("photo"), str(photo(tmp_path)))
    page.wait_for_selector("[data-picker=photo] .tile:nth-child(5) img")
    page.check("[name=speech][value=recording]")
    page.set_input_files(add("audio"), str(speech(tmp_path, 0.6)))
    page.wait_for_selector("[data-picker=audio] .tile:has-text('speech.wav')")
    open_all(page)
    page.set_input_files(add("motion_in"), str(tmp_path / "motion.csv"))
    page.wait_for_selector("[data-picker=motion_in] .tile:has-text('motion.csv')")
    asked, _ = recorder.go(page)
    assert [path.name for path in (asked.image, asked.audio, asked.motion_in) if path] == [
        "face.png", "speech.wav", "motion.csv"]  # fmt: skip
    page.click("#record")
    page.wait_for_selector("#record-status:has-text('Recording, 1 s')")
    page.click("#record")
    page.wait_for_selector("[data-picker=audio] .tile:has-text('Your recording.webm')")
    asked, _ = recorder.go(page)
    assert asked.audio is not None
    assert asked.audio.name == "Your recording.webm"
    page.check("[name=kind][value=video]")
    page.set_input_files(add("video"), str(footage(tmp_path)))
    page.wait_for_selector("[data-picker=video] .tile:has-text('footage.mp4')")
    page.check("[name=loop]")
    page.fill("[name=video_face]", "2")
    asked, _ = recorder.go(page)
    assert asked.video is not None
    assert (asked.video.name, asked.loop, asked.face, asked.image) == ("footage.mp4", True, 2, None)
    page.check("[name=kind][value=two]")
    page.set_input_files(add("right_audio"), str(speech(tmp_path, 0.6)))
    page.wait_for_selector("[data-picker=right_audio] .tile:has-text('speech.wav')")
    page.check("[name=right_photo][value=example-astronaut]")
    page.check("[name=turns]")
    asked, _ = recorder.go(page)
    assert [(turn.speaker, turn.image.name, turn.audio.name) for turn in asked.speakers] == [
        (0, "hair-tied.jpg", "beckett.flac"), (1, "astronaut.jpg", "speech.wav")]  # fmt: skip
    assert asked.turns
    page.set_input_files(add("left_photo"), str(two_faces(tmp_path)))
    page.wait_for_selector("[data-picker=left_photo] .tile:nth-child(6) input:checked", state="attached")
    page.locator("[data-picker=right_photo] .tile:nth-child(6) input").check()
    asked, _ = recorder.go(page)
    assert asked.speakers[0].image == asked.speakers[1].image, "one photo shows both"
    assert asked.speakers[0].image.name == "two.png"
    assert page.problems == []


# --- What is said ---


def test_what_is_wrong_is_a_sentence_on_the_page(chromium: Any, recorder: Recorder, tmp_path: Path) -> None:
    page = opened(chromium, recorder.address)
    bad = tmp_path / "holiday.jpg"
    bad.write_bytes(b"this is no picture")
    page.set_input_files("[data-picker=photo] input[type=file]", str(bad))
    page.wait_for_selector("#problem:has-text('holiday.jpg')")
    assert str(tmp_path) not in page.text_content("#problem")
    large = tmp_path / "large.png"
    large.write_bytes(bytes(26 * 2**20))
    page.set_input_files("[data-picker=photo] input[type=file]", str(large))
    page.wait_for_selector("#problem:has-text('large.png has 26 MB, more than 25')")
    page.check("[name=kind][value=video]")
    page.click("#go")
    page.wait_for_selector("#problem:has-text('There is no video yet')")
    page.check("[name=kind][value=two]")
    page.click("#go")
    page.wait_for_selector("#problem:has-text('The person on the right has no recording yet')")


def test_without_voices_a_recording_is_chosen_and_the_page_says_how_to_get_them(
    chromium: Any, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "installed_voices", dict)
    page = opened(chromium, recorder.address)
    asked, _ = recorder.go(page)
    assert asked.audio is not None, "one click speaks all the same"
    page.check("[name=speech][value=text]")
    assert "pip install 'flowportrait[voice]'" in page.text_content("#no-voices")
    assert page.is_disabled("#text")


def test_the_page_says_what_a_photo_shows_and_a_face_can_be_chosen(tmp_path: Path, chromium: Any) -> None:
    with studio_at(tmp_path / "studio", StudioLimits(seconds=1)) as (studio, address):
        page = opened(chromium, address)
        page.set_input_files("[data-picker=photo] input[type=file]", str(two_faces(tmp_path)))
        page.wait_for_selector("#photo-notes:has-text('2 faces: the largest one speaks')")
        page.check("[name=face][value='2']")
        page.wait_for_selector("#photo-notes:has-text('number 2 from the left')")
        page.check("[name=speech][value=recording]")
        page.click("#go")
        page.wait_for_selector("#video-notes:has-text('the rest was left out')")
        page.wait_for_selector("#download:visible")
        (job,) = studio.queue.jobs.values()
        assert (job.request.face, job.request.crop) == (2, False)
        until(page, "document.querySelector('video')?.videoWidth == 600")
        assert page.problems == []


# --- Videos ---


def plays(page: Any, count: int) -> None:
    """Check that so many videos run."""
    running = "[...document.querySelectorAll('#screens video')].filter(v => v.currentTime > 0.3 && v.videoWidth > 100)"
    until(page, f"{running}.length == {count}")


def test_one_click_speaks_and_the_signed_file_is_a_download(tmp_path: Path, chromium: Any) -> None:
    with studio_at(tmp_path / "studio", StudioLimits(seconds=1.6)) as (_, address):
        page = opened(chromium, address)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.click("#go")
        page.wait_for_selector("#progress:visible")
        until(page, "/%, (about \\d+ s left|almost done)/.test(document.querySelector('#list').textContent)")
        plays(page, 1)
        page.wait_for_selector("#progress", state="hidden")
        with page.expect_download() as download:
            page.click("#download")
        path = Path(download.value.path())
        assert download.value.suggested_filename == "talking-portrait.mp4"
        assert read_signature(path).intact
        page.click(".score")
        page.wait_for_selector(".scores:has-text('From 1 to 5')")
        page.reload()
        page.wait_for_selector(".result:has-text('A moment ago I was only a photo')")
        page.click(".result .show")
        plays(page, 1)
        page.click(".remove")
        page.wait_for_selector("#results", state="hidden")
        assert not list((tmp_path / "studio" / "videos").iterdir())
        assert page.problems == []
        assert all(url.startswith((address, "data:", "blob:")) for url in asked)


def test_a_photo_and_speech_become_a_video_that_plays_and_is_compared(tmp_path: Path, chromium: Any) -> None:
    with studio_at(tmp_path / "studio", StudioLimits(seconds=1)) as (studio, address):
        page = opened(chromium, address)
        page.set_input_files("[data-picker=photo] input[type=file]", str(photo(tmp_path)))
        page.wait_for_selector("[data-picker=photo] .tile:nth-child(5) img")
        page.check("[name=speech][value=recording]")
        open_all(page)
        page.select_option("[name=size]", "256")
        page.fill("[name=compare]", "sft")
        page.click("#go")
        plays(page, 2)
        assert page.locator("figcaption").all_text_contents() == ["rl", "sft"]
        assert [job.request.checkpoint for job in studio.queue.jobs.values()] == ["rl", "sft"]


def test_stop_ends_ones_own_video_and_not_that_of_another_tab(tmp_path: Path, chromium: Any) -> None:
    with studio_at(tmp_path / "studio", StudioLimits()) as (studio, address):
        pages = [opened(chromium, address) for _ in range(2)]
        for page in pages:
            page.check("[name=speech][value=recording]")
            page.click("#go")
            page.wait_for_selector("#progress:visible")
        pages[1].wait_for_selector("#progress-text:has-text('1 video comes before this one')")
        pages[1].click("#stop")
        pages[1].wait_for_selector("#video-notes:has-text('Stopped before it began')")
        pages[0].wait_for_selector("#progress-text:has-text('Drawing')")
        pages[0].click(".remove:has-text('Stop')")
        pages[0].wait_for_selector(".result:has-text('Stopped, ')")
        first, second = studio.queue.jobs.values()
        assert (first.state, second.state) == ("stopped", "stopped")
        assert 0 < first.frames < 250
        assert second.frames == 0


def test_training_and_studies_are_on_a_page_of_their_own(tmp_path: Path, chromium: Any) -> None:
    with studio_at(tmp_path / "studio", StudioLimits()) as (_, address):
        page = opened(chromium, address)
        page.click("footer a")
        page.wait_for_selector("[name=recipe] option[value=flow-grpo]", state="attached")
        page.fill("[name=prompts]", "nowhere")
        page.click("#train")
        page.wait_for_selector("#training-problem:has-text('no folder of prompts')")
        page.fill("[name=folder]", str(small_study(tmp_path)))
        page.click("#open-study")
        page.wait_for_selector("#opened a")
        page.goto(page.get_attribute("#opened a", "href"))
        page.wait_for_selector("#begin")


# --- Phone, dark, keyboard ---

CONTRAST = Path(__file__).with_name("poor_contrast.js").read_text(encoding="utf-8")
"""A function of the page that returns its texts with too little contrast."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_in_light_and_dark(chromium: Any, recorder: Recorder, scheme: str, tmp_path: Path) -> None:
    page = opened(chromium, recorder.address, color_scheme=scheme)
    open_all(page)
    recorder.go(page)
    page.check("[name=kind][value=video]")
    page.click("#go")
    page.wait_for_selector("#problem:visible")
    for kind in ("photo", "video", "two"):
        page.check(f"[name=kind][value={kind}]")
        page.wait_for_timeout(200)
        assert page.evaluate(CONTRAST) == []
    page.screenshot(path=tmp_path / "page.png")
    brightness = read_image(tmp_path / "page.png")[:40].mean()
    assert brightness < 60 if scheme == "dark" else brightness > 200


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_scrolls_sideways_on_a_phone_and_the_button_is_there(
    chromium: Any, recorder: Recorder, width: int
) -> None:
    page = opened(chromium, recorder.address, viewport={"width": width, "height": 844}, has_touch=True, is_mobile=True)
    recorder.go(page)
    open_all(page)
    for kind in ("photo", "video", "two"):
        page.check(f"[name=kind][value={kind}]")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        box = page.locator("#go").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert 0 < box["y"] < 844 - box["height"], "the button stays in sight"
        small = page.evaluate(
            "[...document.querySelectorAll('button, select, .tile, .segments label, .check, summary')]"
            ".filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 32)"
            ".map((one) => one.outerHTML.slice(0, 80))"
        )
        assert small == [], "a finger hits every control"


def test_a_video_can_be_made_with_the_keyboard_alone(chromium: Any, recorder: Recorder) -> None:
    page = opened(chromium, recorder.address)
    recorder.asked.clear()
    active = "document.activeElement?.{}".format

    def tab_to(condition: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            outlined = "document.activeElement.closest('.segments')?.querySelector('input:checked + span')"
            if page.evaluate(f"(one => {condition})(document.activeElement)"):
                visible = page.evaluate(
                    f"[document.activeElement, document.activeElement.parentElement, {outlined}]"
                    ".some((one) => one && getComputedStyle(one).outlineStyle !== 'none')"
                )
                assert visible, "the focus is visible"
                return
        raise AssertionError(condition)

    tab_to("one.name === 'photo'")
    page.keyboard.press("ArrowRight")
    tab_to("one.name === 'speech'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    tab_to("one.id === 'text'")
    page.keyboard.press("Control+A")
    page.keyboard.type("By hand.")
    tab_to("one.name === 'head'")
    page.keyboard.press("ArrowRight")
    tab_to("one.tagName === 'SUMMARY'")
    page.keyboard.press("Enter")
    tab_to("one.name === 'gaze_x'")
    page.keyboard.press("ArrowLeft")
    tab_to("one.id === 'go'")
    page.keyboard.press("Enter")
    for _ in range(300):
        if recorder.asked:
            break
        page.wait_for_timeout(20)
    ((asked, _),) = recorder.asked
    assert asked.image is not None
    assert (asked.image.name, asked.text) == ("beard.jpg", "By hand.")
    assert asked.head_motion == pytest.approx(1.1)
    assert asked.gaze == (-1, 0)
    assert page.evaluate(active("id")) == "go"
    assert np.isfinite(asked.intensity)

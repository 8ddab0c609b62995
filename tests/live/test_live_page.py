"""Claims about the page of ``flowportrait serve`` in a real Chromium, with a real server and real speech."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowportrait.live.avatar import LiveAvatar, LivePortrait
from flowportrait.live.limits import LiveLimits
from flowportrait.samples import portrait_path
from tests.live.live_browser import (
    loudest,
    opened_chromium,
    opened_page,
    picture,
    speech_wav,
    start,
    until,
    until_picture_changes,
    until_state,
)
from tests.live.live_server import LiveServer, live_server

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SENTENCE = "Good day, this is a longer sentence, and after it comes another one, so that it takes some seconds."
LEVEL = "getComputedStyle(document.documentElement).getPropertyValue('--level') || 0"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    recording = speech_wav(tmp_path_factory.mktemp("microphone") / "speech.wav")
    with opened_chromium(f"--use-file-for-fake-audio-capture={recording}") as browser:
        yield browser


@pytest.fixture(autouse=True)
def _empty_server(server: LiveServer) -> Iterator[None]:
    yield
    server.wait_until_empty()


@pytest.fixture
def page(chromium: Any, server: LiveServer) -> Iterator[Any]:
    with opened_page(chromium, server.url) as page:
        yield page


def speak(page: Any, text: str = SENTENCE) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    until_state(page, "speaking")


def test_one_click_wakes_the_face_and_it_moves(page: Any) -> None:
    assert page.is_visible("#start")
    until(page, "document.getElementById('poster').naturalWidth === 128")  # the face waits behind the button
    assert page.inner_text("#state") == "Not connected"
    assert page.inner_text("#notice") == "This face is generated."
    start(page)
    assert page.evaluate("document.body.dataset.transport") == "webrtc"
    assert page.inner_text("#state") == "Idle"
    assert not page.is_visible("#overlay")
    assert page.is_visible("#notice")
    until(page, "document.querySelector('#screen video').videoWidth === 128")
    assert picture(page).std() > 20  # a photo, and no empty screen
    until_picture_changes(page, 15.0)


def test_a_typed_sentence_is_spoken_with_sound_and_stop_ends_it(page: Any) -> None:
    start(page)
    speak(page)
    assert page.inner_text("#state") == "Speaking"
    assert page.is_visible("#stop")
    assert page.input_value("#text") == ""
    assert loudest(page, 10.0, LEVEL) >= 0.05
    page.click("#stop")
    until_state(page, "interrupted", "idle", seconds=2.0)
    assert page.is_visible("#speak")
    until_state(page, "idle", seconds=3.0)
    speak(page)
    page.keyboard.press("Escape")
    until_state(page, "interrupted", "idle", seconds=2.0)


def test_a_sentence_typed_before_the_start_starts_and_is_spoken(page: Any) -> None:
    speak(page)


@pytest.mark.parametrize(("video", "element"), [("jpeg", "CANVAS"), ("mp4", "VIDEO")])
def test_over_a_websocket_the_face_moves_and_speaks(
    chromium: Any, server: LiveServer, video: str, element: str
) -> None:
    with opened_page(chromium, f"{server.url}/?transport=websocket&video={video}") as page:
        start(page)
        assert page.evaluate("document.body.dataset.transport") == "websocket"
        assert page.evaluate("document.querySelector('#screen :last-child').tagName") == element
        until_picture_changes(page, 15.0)
        speak(page)
        assert loudest(page, 10.0, LEVEL) >= 0.05


def test_where_webrtc_finds_no_way_a_websocket_takes_over(page: Any) -> None:
    def close_all_ways(route: Any) -> None:
        """As behind a strict firewall: neither side learns an address of the other."""
        offer = json.loads(route.request.post_data)
        offer["sdp"] = without_candidates(offer["sdp"])
        answer = route.fetch(post_data=json.dumps(offer))
        fields = answer.json()
        fields["sdp"] = without_candidates(fields["sdp"])
        route.fulfill(response=answer, body=json.dumps(fields))

    def without_candidates(sdp: str) -> str:
        return "".join(line for line in sdp.splitlines(True) if not line.startswith("a=candidate"))

    page.route("**/live/offer", close_all_ways)
    start(page)
    assert page.evaluate("document.body.dataset.transport") == "websocket"
    until_picture_changes(page, 15.0)


@pytest.mark.parametrize("transport", ["auto", "websocket"])
def test_a_full_server_says_so_and_can_be_asked_again(chromium: Any, server: LiveServer, transport: str) -> None:
    with opened_page(chromium, f"{server.url}/?transport={transport}") as late:
        late.expected = ("503",)
        with opened_page(chromium, server.url) as first:
            start(first)
            late.click("#start")
            until(late, "!document.getElementById('reason').hidden")
            assert late.inner_text("#reason").startswith("This server carries 1 session at once")
            assert late.inner_text("#start") == "Try again"
            until_picture_changes(first, 15.0)
        server.wait_until_empty()
        start(late)


def test_the_end_of_a_session_is_explained_and_it_can_start_again(
    chromium: Any, small_face: LivePortrait, tmp_path: Path
) -> None:
    with (
        live_server(small_face, tmp_path, limits=LiveLimits(session_minutes=0.05)) as short,
        opened_page(chromium, short.url) as page,
    ):
        start(page)
        until_state(page, "closed")
        assert "0.05 minutes" in page.inner_text("#reason")
        assert picture(page).std() > 20  # the last picture stays
        assert page.inner_text("#start") == "Start again"
        start(page)


def test_without_the_token_the_page_says_what_is_missing_and_with_it_it_starts(
    chromium: Any, small_face: LivePortrait, tmp_path: Path
) -> None:
    with live_server(small_face, tmp_path, token="a-token-of-this-test") as guarded:
        with opened_page(chromium, guarded.url) as page:
            page.expected = ("401",)
            assert "token" in page.inner_text("#reason")
            page.click("#start")
            until_state(page, "closed")
            assert "token" in page.inner_text("#reason")
        with opened_page(chromium, f"{guarded.url}/#token=a-token-of-this-test") as page:
            start(page)


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_the_face_says_what_the_microphone_hears_or_listens_to_it(
    chromium: Any, server: LiveServer, transport: str
) -> None:
    with opened_page(chromium, f"{server.url}/?transport={transport}") as page:
        start(page)
        page.click("#microphone-menu summary")
        page.click("text=The face listens to me")
        until_state(page, "listening")
        page.click("#microphone-menu summary")
        page.click("text=The face says what I say")
        until_state(page, "speaking")
        assert loudest(page, 10.0, LEVEL) >= 0.05
        page.click("#microphone-menu summary")
        page.click("text=Nothing happens")
        until_state(page, "idle")
        assert page.evaluate("document.querySelector('#microphone-menu').classList.contains('active')") is False


@pytest.mark.parametrize("transport", ["webrtc", "websocket"])
def test_the_webcam_is_shown_and_reaches_the_avatar_until_it_is_switched_off(
    chromium: Any, server: LiveServer, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[tuple[int, ...] | None] = []
    drive_with = LiveAvatar.drive_with

    def note_and_drive(avatar: LiveAvatar, picture: np.ndarray | None) -> None:
        arrived.append(None if picture is None else picture.shape)
        drive_with(avatar, picture)

    monkeypatch.setattr(LiveAvatar, "drive_with", note_and_drive)
    with opened_page(chromium, f"{server.url}/?transport={transport}") as page:
        start(page)
        page.click("#camera")
        until(page, "document.getElementById('preview').videoWidth > 0")
        assert page.get_attribute("#camera", "aria-pressed") == "true"
        for _ in range(500):
            if arrived:
                break
            page.wait_for_timeout(40)
        height, width, channels = arrived[0]
        assert (width / height, channels) == (pytest.approx(4 / 3, abs=0.01), 3)
        page.click("#camera")
        until(page, "document.getElementById('preview').hidden")
        assert page.get_attribute("#camera", "aria-pressed") == "false"
        for _ in range(500):
            if arrived[-1] is None:
                break
            page.wait_for_timeout(40)
        assert arrived[-1] is None
        until_picture_changes(page, 15.0)


def test_a_chosen_expression_reaches_the_face_and_a_new_session_begins_with_it(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, float]] = []
    show_emotion = LiveAvatar.show_emotion

    def note_and_show(avatar: LiveAvatar, weights: dict[str, float]) -> None:
        show_emotion(avatar, weights)
        asked.append(avatar.emotion)

    def until_asked(weights: dict[str, float]) -> None:
        for _ in range(500):
            if asked and asked[-1] == weights:
                return
            page.wait_for_timeout(20)
        raise AssertionError(f"{weights} was not asked for, but {asked}")

    monkeypatch.setattr(LiveAvatar, "show_emotion", note_and_show)
    start(page)
    page.click("#emotion-menu summary")
    page.check("[name=emotion][value=happy]")
    until_asked({"happy": 0.6})
    page.fill("#emotion-strength", "1")
    until_asked({"happy": 1.0})
    assert page.evaluate("document.querySelector('#emotion-menu').classList.contains('active')")
    asked.clear()
    page.set_input_files("#photo", portrait_path("astronaut"))
    until_asked({"happy": 1.0})
    page.check("[name=emotion][value='']", force=True)
    until_asked({})


def test_another_photo_is_shown_and_one_without_a_face_is_refused_with_a_sentence(page: Any, tmp_path: Path) -> None:
    page.expected = ("400",)
    start(page)
    until(page, "document.querySelector('#screen video').videoWidth > 0")
    before = picture(page)
    (tmp_path / "noise.png").write_bytes(b"this is no picture")
    page.set_input_files("#photo", tmp_path / "noise.png")
    until(page, "!document.getElementById('problem').hidden")
    assert "noise" in page.inner_text("#problem") or "photo" in page.inner_text("#problem")
    page.set_input_files("#photo", portrait_path("astronaut"))
    until(page, "document.getElementById('photo-text').textContent === 'Another photo'")
    until_state(page, "idle")
    until(page, "document.querySelector('#screen video')?.videoWidth > 0")
    assert np.abs(picture(page) - before).mean() > 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_nothing_is_cut(chromium: Any, server: LiveServer, scheme: str) -> None:
    options = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "color_scheme": scheme}
    with opened_page(chromium, server.url, **options) as page:
        steps = (
            lambda: None,
            lambda: start(page),
            lambda: page.click("#sound-menu summary"),
            lambda: page.keyboard.press("Escape"),
            lambda: page.click("#emotion-menu summary"),
        )
        for step in steps:
            step()
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            assert page.is_visible("#notice")
        cut = """[...document.querySelectorAll('button, summary, .button, label')]
            .filter((one) => one.offsetParent && !one.matches('.hidden'))
            .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.textContent.trim())"""
        assert page.evaluate(cut) == []


def test_the_keyboard_reaches_everything_and_every_control_has_a_name(page: Any) -> None:
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    until_state(page, "idle")
    assert page.evaluate("document.activeElement.id") == "text"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "speak"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.is_visible("#microphone-menu fieldset")
    page.keyboard.press("Escape")
    assert not page.is_visible("#microphone-menu fieldset")
    for role, name in [("textbox", "What the face says"), ("button", "Speak"), ("button", "Follow my face"),
                       ("img", "The face"), ("status", None)]:  # fmt: skip
        assert page.get_by_role(role, **({"name": name} if name else {})).count() == 1


def test_the_policy_of_the_page_forbids_everything_foreign_and_inline(page: Any) -> None:
    policy = page.answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    assert "style-src 'self';" in policy
    start(page)  # and nothing of the page is against it: opened_page reports errors

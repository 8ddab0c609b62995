"""Sound against picture, the transport alone, and a recording of the page: parts of ``benchmarks/live.py``.

    click and flash ─► WebRTCPeer ─► browser: when shown, when played; and in a recording of the page
    avatar          ─► WebRTCPeer ─► browser ─ MediaRecorder ─► sync expert at shifts of −10 … +10 frames

Each figure stands beside that of a click and a flash which the page makes itself: what its own clocks, its audio thread
and its recorder add.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.click_and_flash import STALL_EVERY
from benchmarks.live_analysis import click_offsets, read_clicks_and_flashes, sync_distances
from benchmarks.live_bench import RATE, SETTLE_SECONDS, Bench, add_punctuality
from benchmarks.live_browser import connect, encode, opened_page, served, sleep_with
from benchmarks.timing import run_python
from flowportrait.errors import BadInput
from flowportrait.media.video import FPS

LATE_SOUND = 5
"""Frames by which the control has its sound late."""
STALL_MS = 200
"""Length of the stalls of the control, in ms."""
FIRST_SECONDS, CONVERGED_SECONDS = 3.0, 10.0
"""A browser moves picture and sound towards each other after it has connected: the first seconds are stated alone."""
ANSWERS = 10
RECORD_SECONDS = 6.0
PAGE_SIZE = {"width": 900, "height": 1000}
"""Size in pixels of the page that is recorded."""
SHIFTS = 10
"""Largest shift in frames of the sync expert."""


# --- The test source --------------------------------------------------------------------


def measure_source(bench: Bench) -> None:
    """Measure the transport alone with click and flash, and what the measurement itself adds."""
    local = _click_and_flash(bench, "made in the page itself", [], local=True)
    for name, words in (
        ("by WebRTC", []), (f"by WebRTC, sound {LATE_SOUND} frames late (control)", ["--delay", str(LATE_SOUND)]),
    ):  # fmt: skip
        found = _click_and_flash(bench, name, words)
        for metric, value in found.items():
            if value is not None and (own := local.get(metric)) is not None:
                bench.record.add(name, f"{metric}, without the page's own", value - own, unit="ms", group="click")
    for name, words in (
        ("test source", []),
        (f"test source, {STALL_MS} ms stalls every {STALL_EVERY} frames (control)", ["--stall", str(STALL_MS)]),
    ):
        _measure_stalls(bench, name, words)


def _click_and_flash(bench: Bench, name: str, words: Sequence[str], local: bool = False) -> dict[str, float | None]:
    """Add when clicks are heard after their flashes: in the page, at first and later, and in a recording."""
    found: dict[str, float | None] = {}
    source = ["-m", "benchmarks.click_and_flash", *words]
    with served(source) as server, opened_page(bench.browser, server) as page:
        client = connect(page, server, "local" if local else "webrtc")
        length = CONVERGED_SECONDS + bench.options.source_seconds
        times = client.run("return await bench.watchClicksAndFlashes(client, argument);", 1000 * length)
        flashes, clicks = np.array(times["flashes"]), times["clicks"]
        begin = client.received().events["first frame"]
        for metric, rows in (
            (f"sound after picture, first {FIRST_SECONDS:g} s", flashes < begin + 1000 * FIRST_SECONDS),
            (f"sound after picture, after {CONVERGED_SECONDS:g} s", flashes > begin + 1000 * CONVERGED_SECONDS),
        ):
            offsets = click_offsets(flashes[rows], clicks)
            found[metric] = float(np.median(offsets)) if len(offsets) else None
            bench.record.add(name, metric, found[metric], unit="ms", group="click", n=len(offsets))
            if len(offsets):
                bench.record.add(name, f"{metric}, farthest", float(offsets[np.abs(offsets).argmax()]), unit="ms",
                                 group="click", n=len(offsets))  # fmt: skip
        path = bench.folder / f"click-{'local' if local else '-'.join(words).strip('-') or 'webrtc'}.webm"
        client.record(path, 1000 * RECORD_SECONDS)
        offsets = click_offsets(*read_clicks_and_flashes(path))
        found["sound after picture, in a recording"] = float(np.median(offsets)) if len(offsets) else None
        bench.record.add(name, "sound after picture, in a recording", found["sound after picture, in a recording"],
                         unit="ms", group="click", n=len(offsets))  # fmt: skip
        if not local and not words:
            answers = [client.run("return await bench.measureAnswer(client);") for _ in range(ANSWERS)]
            bench.add_times("transport alone (ceiling)", "message to changed picture",
                            [one for one in answers if one is not None], "motion")  # fmt: skip
        client.close()
    return found


def _measure_stalls(bench: Bench, name: str, words: Sequence[str]) -> None:
    with served(["-m", "benchmarks.click_and_flash", *words]) as server, opened_page(bench.browser, server) as page:
        client = connect(page, server)
        sleep_with(page, SETTLE_SECONDS)
        begin = client.now()
        sleep_with(page, bench.options.source_seconds)
        frames = client.received().between(begin, client.now())
        add_punctuality(bench.record, name, frames, client.stats(), "late frames")
        client.close()


# --- The sync expert --------------------------------------------------------------------


def measure_sync_of_page(bench: Bench) -> None:
    """Measure lip sync on a recording made in the page, beside the same speech as a file and with late sound."""
    options, speech = bench.options, bench.speech()
    speech = speech[: round(RATE * options.sync_seconds)]
    samples = np.clip(32767 * speech, -32768, 32767).astype(np.int16)
    path = bench.folder / "page.webm"
    with served(["-m", "benchmarks.click_and_flash"]) as server, opened_page(bench.browser, server) as page:
        client = connect(page, server, "local")
        own_path = bench.folder / "own.webm"
        client.record(own_path, 1000 * RECORD_SECONDS)
        client.close()
    own = click_offsets(*read_clicks_and_flashes(own_path))
    own_ms = float(np.median(own)) if len(own) else 0.0
    bench.record.add("recorder of the page", "sound after picture", own_ms, unit="ms", group="sync expert", n=len(own))
    with bench.server() as server, bench.client(server, speech_rate=RATE) as client:
        sleep_with(client.page, CONVERGED_SECONDS)
        action = "await client.push(decodeBase64(argument.value.pcm), argument.value.rate, 200, 20);"
        client.record(path, 1000 * (options.sync_seconds - 0.5), action, {"pcm": encode(samples), "rate": RATE})
    _add_sync(bench, "page, as recorded", path, 0.0)
    _add_sync(bench, "page, without the recorder's delay", path, own_ms)
    late = own_ms - 1000 * LATE_SOUND / FPS
    _add_sync(bench, f"page, sound {LATE_SOUND} frames late (control)", path, late)
    _add_sync(bench, "the same speech in a file (ceiling)", _animate(bench, samples), 0.0)


def _add_sync(bench: Bench, system: str, path: Path, sound_delay: float) -> None:
    distances = sync_distances(path, sound_delay, SHIFTS)
    best = int(distances.argmin()) - SHIFTS
    bench.record.add(system, "best shift", best, unit="frames", group="sync expert")
    bench.record.add(system, "distance there", float(distances.min()), group="sync expert")
    bench.record.add(system, "distance at 0", float(distances[SHIFTS]), group="sync expert")
    bench.record.add(system, "median distance", float(np.median(distances)), group="sync expert")


def _animate(bench: Bench, samples: np.ndarray) -> Path:
    """Return a video file of the same photo and speech."""
    import wave

    sound, video = bench.folder / "speech.wav", bench.folder / "file.mp4"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())
    words = ["--image", str(bench.options.photo.resolve()), "--audio", str(sound.resolve())]
    words += ["--output", str(video.resolve()), "--size", str(bench.options.size)]
    run_python(["-m", "flowportrait", "animate", *words])
    return video


# --- The page ---------------------------------------------------------------------------


def record_page(bench: Bench) -> None:
    """Record the server's own page while it is used: a video, and a picture every second."""
    from playwright.sync_api import Error

    folder = bench.folder / "page"
    folder.mkdir(exist_ok=True)
    seconds = max(2, round(bench.options.page_seconds))
    with bench.server() as server:
        context = bench.browser.new_context(viewport=PAGE_SIZE)
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        try:
            page.goto(f"{server.address}/{f'#token={server.token}' if server.token else ''}")
            screen = _Screencast(context, page)
            _use_page(page)
            for second in range(seconds):
                sleep_with(page, 1.0)
                page.screenshot(path=str(folder / f"second-{second:02}.png"))
            found = page.evaluate(
                "() => [...document.querySelectorAll('video')].map(one => [one.videoWidth, one.currentTime])"
            )
            screen.write(folder / "page.webm")
        except Error as error:
            raise BadInput(f"The page cannot be used: {str(error).splitlines()[0]}") from error
        finally:
            context.close()
    playing = max((time for width, time in found if width), default=0.0)
    bench.record.add("page", "screenshots", seconds, group="page")
    bench.record.add("page", "video played", playing, unit="s", group="page")
    bench.record.add("page", "pictures of its screen", len(screen.pictures), group="page")
    bench.record.add("page", "errors in its console", len(errors), group="page")
    for line in errors[:5]:
        bench.record.note(f"The page reported: {line}")
    if bench.options.output:
        bench.record.note(f"The recording of the page is in {folder}.")


class _Screencast:
    """The pictures that the browser makes of a page; what playwright records itself needs a program of its own."""

    def __init__(self, context: Any, page: Any) -> None:
        self.pictures: list[tuple[float, bytes]] = []
        self._session = context.new_cdp_session(page)
        self._session.on("Page.screencastFrame", self._take)
        self._session.send("Page.startScreencast", {"format": "jpeg", "quality": 90})

    def _take(self, frame: Any) -> None:
        self.pictures.append((float(frame["metadata"]["timestamp"]), base64.b64decode(frame["data"])))
        self._session.send("Page.screencastFrameAck", {"sessionId": frame["sessionId"]})

    def write(self, path: Path) -> None:
        """End and write a video of 25 frames a second, in which the last picture stays until the next."""
        from PIL import Image

        from flowportrait.media.write_video import write_video

        self._session.send("Page.stopScreencast")
        times = np.array([time for time, _ in self.pictures])

        def frames() -> Iterator[np.ndarray]:
            last, picture = -1, np.zeros(0, np.uint8)
            for now in np.arange(times[0], times[-1], 1 / FPS):
                place = int(np.searchsorted(times, now, side="right")) - 1
                if place != last:
                    image = Image.open(io.BytesIO(self.pictures[place][1])).convert("RGB")
                    last, picture = place, np.asarray(image.resize((PAGE_SIZE["width"], PAGE_SIZE["height"])))
                yield picture

        if len(times) > 1:
            write_video(path, frames(), None)


def _use_page(page: Any) -> None:
    """Start the session by the page's first button, and let the face say a sentence."""
    page.wait_for_selector("button:visible")
    page.locator("button:visible").first.click()
    sleep_with(page, 2.0)
    field = page.locator("textarea:visible, input[type=text]:visible").first
    field.fill("Good morning. This is the page of the live avatar, and I say whatever you type.")
    field.press("Enter")
    button = page.locator("button[type=submit]:visible")
    if field.input_value() and button.count():
        button.first.click()

"""What the parts of ``benchmarks/live.py`` share: options, servers, pages that talk, and the frames that they get."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.live_analysis import cut_utterances, measure_punctuality
from benchmarks.live_browser import BrowserClient, Received, Served, Transport, connect, encode, opened_page, served
from benchmarks.material import Photo, Speech
from benchmarks.record import ROOT, Record
from flowportrait.commands.options import OptionalPath
from flowportrait.errors import BadInput

Part = Literal["offer", "motion", "interrupt", "late", "source", "sync", "memory", "clients", "worker", "page"]
RATE = 24_000
"""Sample rate in Hz of the speech that is sent, that of most voices."""
SETTLE_SECONDS = 3.0
"""Seconds after the first frame in which a connection may settle before late frames are counted."""
UTTERANCE_SECONDS = 1.2


@dataclass(frozen=True)
class LiveOptions:
    """The live server as a headless Chromium receives it: latency, late frames, sync, interruption, memory, failures.

    The parts: offer, the time from an offer to the first frame; motion, from the first sound that is sent to the
    first frame in which the lips move, to lips that speak, and to the voice; interrupt, from the interruption to
    resting lips; late, frames that come late; source, click and flash through the same transport, which is the
    ceiling of all of these, with late sound and stalls that must be found; sync, the sync expert on a recording
    made in the page; memory, hours on an injected clock; clients, twenty misbehaving clients beside a good one;
    worker, a worker process that is killed; page, a recording of the page to look at.
    """

    photo: Photo
    """Photo of a face."""
    speech: Speech
    """Recording that the face speaks, 10 s or more."""
    parts: tuple[Part, ...] = ("offer", "motion", "interrupt", "late", "sync")
    """Parts to measure; those of the default take about five minutes."""
    transports: tuple[Literal["webrtc", "websocket"], ...] = ("webrtc",)
    """How frames reach the browser in the parts offer, motion, interrupt and late."""
    size: int = 384
    """Side of the frames in pixels, except where --late has its own."""
    offers: int = 5
    """Connections of the part offer."""
    utterances: int = 8
    """Utterances of the part motion, at each of two paces."""
    interruptions: int = 5
    """Interruptions of the part interrupt."""
    late: tuple[str, ...] = ("384:1:30",)
    """Runs of the part late as SIZE:SESSIONS:SECONDS."""
    sync_seconds: float = 10
    """Length of the recording of the part sync."""
    source_seconds: float = 12
    """Length of every run of the part source."""
    hours: float = 2
    """Hours on the clock of the part memory."""
    drawn_hours: float = 0.5
    """The same for the session that also draws, which takes longer."""
    clients: int = 20
    """Misbehaving clients."""
    client_sessions: int = 1
    """Sessions of the server in that part; with more than one, clients also misbehave inside of sessions."""
    clients_seconds: float = 20
    """Time with them, and as long without them."""
    page_seconds: float = 12
    """Length of the recording of the page."""
    jitter: int = -1
    """Milliseconds that the browser is asked to buffer over WebRTC; by default those of the JavaScript client."""
    checkout: OptionalPath = None
    """Checkout of another version, to measure its server."""
    output: OptionalPath = None
    """Folder for recordings and screenshots; by default they are deleted."""


def parse_run(text: str) -> tuple[int, int, float]:
    """Return size, sessions and seconds of ``SIZE:SESSIONS:SECONDS``.

    Raises:
        BadInput: the text is no such run.
    """
    try:
        size, sessions, seconds = text.split(":")
        run = int(size), int(sessions), float(seconds)
        if min(run) <= 0:
            raise ValueError
    except ValueError:
        raise BadInput(f"--late {text} is no run: write SIZE:SESSIONS:SECONDS, such as 384:1:60.") from None
    return run


@dataclass
class Bench:
    """What all parts share.

    Attributes:
        options: the options.
        record: where the figures go.
        folder: for recordings.
        browser: the running Chromium.
    """

    options: LiveOptions
    record: Record
    folder: Path
    browser: Any

    @contextmanager
    def server(self, size: int | None = None, sessions: int = 1, *more: str) -> Iterator[Served]:
        """A server of the photo with so many sessions."""
        words = ["-m", "flowportrait", "serve", "--image", str(self.options.photo), "--port", "0", "--size"]
        words += [str(size or self.options.size), "--sessions", str(sessions), *more]
        with served(words, self.options.checkout or ROOT) as server:
            yield server

    @contextmanager
    def client(self, server: Served, transport: Transport = "webrtc", **start: Any) -> Iterator[BrowserClient]:
        """A page with one connection, which is ended afterwards."""
        with opened_page(self.browser, server) as page:
            client = connect(page, server, transport, jitter=self.jitter(), **start)
            yield client
            client.close()

    def jitter(self) -> int:
        """Return the ``jitterBufferTarget`` in ms: the wanted one, or that of the JavaScript client."""
        if self.options.jitter >= 0:
            return self.options.jitter
        source = (self.options.checkout or ROOT) / "src/flowportrait/live/clients/flowportrait-live.js"
        found = re.search(r"^const JITTER_MS = (\d+);", source.read_text("utf-8"), re.MULTILINE)
        if found is None:
            raise BadInput(f"{source} names no JITTER_MS: give --jitter.")
        return int(found[1])

    def utterances(self, count: int, seconds: float = UTTERANCE_SECONDS) -> list[np.ndarray]:
        """Return pieces of the speech, int16 at ``RATE``, that begin with a voice."""
        return cut_utterances(self.speech(), count, seconds, RATE)

    def speech(self) -> np.ndarray:
        """Return the recording ``[n]`` float32 at ``RATE``."""
        from scipy.signal import resample_poly

        from flowportrait.media.audio import SAMPLE_RATE, read_audio

        return np.asarray(resample_poly(read_audio(self.options.speech), RATE, SAMPLE_RATE), np.float32)

    def add_times(self, system: str, metric: str, values: Sequence[float], group: str, unit: str = "ms") -> None:
        """Add median, 95 % quantile and largest of times."""
        known = np.asarray(values, float)
        for name, value in (
            (f"{metric}, median", np.median), (f"{metric}, 95 % quantile", lambda v: np.quantile(v, 0.95)),
            (f"{metric}, longest", np.max),
        ):  # fmt: skip
            figure = float(value(known)) if len(known) else None
            self.record.add(system, name, figure, unit=unit, group=group, n=len(known))


# --- Pages that talk, and their frames ---


def start_chatter(client: BrowserClient, utterances: Sequence[np.ndarray]) -> None:
    """Let the page speak without end: an utterance, a pause of one to three seconds, the next."""
    code = """
        const speeches = argument.pcm.map(decodeBase64);
        client.chatting = true;
        (async () => {
          for (let turn = 0; client.chatting; turn++) {
            const data = speeches[turn % speeches.length];
            await client.push(data, argument.rate, 200, 40);
            await bench.wait(1000 * data.length / 2 / argument.rate - data.length / 9600 * 40 + 1000 * (1 + turn % 3));
          }
        })().catch(() => {});
    """
    client.run(code, {"pcm": [encode(one) for one in utterances], "rate": RATE})


def add_punctuality(record: Record, system: str, frames: Received, stats: dict[str, Any], group: str) -> float | None:
    """Add what a browser received in a stretch of time; returns the share of frames that were shown late."""
    if len(frames.due) < 2:
        record.add(system, "shown late", None, unit="%", group=group)
        return None
    found = measure_punctuality(frames.due, frames.received, frames.shown)
    for metric, value, unit in (
        ("frames", found.frames, ""), ("never shown", 100 * found.missing, "%"),
        ("arrived late", 100 * found.late_received, "%"), ("shown late", 100 * found.late_shown, "%"),
        ("longest gap", found.longest_gap, "ms"), ("drift", found.drift, "ms/h"),
    ):  # fmt: skip
        record.add(system, metric, value, unit=unit, group=group)
    if video := stats.get("video"):
        record.add(system, "freezes", video["freezeCount"], group=group)
        record.add(system, "frozen", video["totalFreezesDuration"], unit="s", group=group)
    if (sound := stats.get("audio")) and sound.get("totalSamplesReceived"):
        concealed = 100 * sound["concealedSamples"] / sound["totalSamplesReceived"]
        record.add(system, "sound concealed", concealed, unit="%", group=group)
    return 100 * found.late_shown

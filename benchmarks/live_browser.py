"""A headless Chromium as the client of a live server: connections, what they received, and the processes of servers.

    served(words) ─► process, address ◄─ loopback ─► Chromium: an empty page of that address + live_page.js

The page measures with the browser's own clocks (``live_page.js``); what comes back here are plain lists. Two processes
share the machine with the server: the browser, and this one, which waits.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.record import ROOT
from flowportrait.errors import BadInput

Transport = Literal["webrtc", "websocket", "local"]
"""How frames arrive; ``local`` is a picture and a sound that the page makes itself."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER_OPTIONS = ("--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--mute-audio")
START_SECONDS = 90.0
"""Seconds within which a server must be ready: it loads networks and measures its capacity."""
CONNECT_SECONDS = 20.0
_SCRIPT = Path(__file__).with_name("live_page.js")


# --- Servers ----------------------------------------------------------------------------


@dataclass
class Served:
    """A running server.

    Attributes:
        process: the process that was started; workers are its children.
        address: such as ``http://127.0.0.1:7861``, without a slash at the end.
        token: what the address has after ``#token=``; empty for none.
        lines: what the server wrote.
    """

    process: subprocess.Popen[str]
    address: str = ""
    token: str = ""
    lines: list[str] = field(default_factory=list)

    def processes(self) -> list[int]:
        """Return the ids of the process and of all that it started."""
        parents = dict(_parents())
        found = [self.process.pid]
        for one in found:
            found += [child for child, parent in parents.items() if parent == one]
        return found

    def memory(self) -> float:
        """Return the resident memory in MB of the process and of all that it started."""
        return sum(resident_memory(one) for one in self.processes())

    def processor_seconds(self) -> float:
        """Return the processor time that the process and all that it started have taken."""
        return sum(map(process_seconds, self.processes()))


@contextlib.contextmanager
def served(words: Sequence[str], root: Path = ROOT) -> Iterator[Served]:
    """Run ``python WORDS`` with the package of a checkout until it prints its address, and end it afterwards.

    Raises:
        BadInput: it ended, or was not ready within ``START_SECONDS``; with the last line that it wrote.
    """
    path = os.pathsep.join(map(str, (root / "src", root / "weights", root)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    server = Served(process)
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            server.lines.append(line.rstrip())
            if found := re.search(r"(https?://[\w.\[\]:-]+)/?(?:#token=([\w.-]+))?", line):
                if not server.address:
                    server.address, server.token = found[1], found[2] or ""
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        if not ready.wait(START_SECONDS) or process.poll() is not None or not server.address:
            last = next((line for line in reversed(server.lines) if line), "it wrote nothing")
            raise BadInput(f"'python {' '.join(map(str, words))}' was not ready within {START_SECONDS:g} s: {last}")
        yield server
    finally:
        # It has a process group of its own: workers end with it.
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


def resident_memory(process: int) -> float:
    """Return the resident memory of a process in MB; 0 if it has ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def _parents() -> Iterator[tuple[int, int]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), int((folder / "stat").read_text().rpartition(")")[2].split()[1])


def process_seconds(process: int) -> float:
    """Return the processor time of a process in seconds; 0 if it has ended."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


# --- The browser ------------------------------------------------------------------------


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium.

    Raises:
        BadInput: there is none, or playwright is not installed.
    """
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise BadInput(f"No browser: install Chromium ({' or '.join(BROWSERS)}).")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise BadInput("playwright is not installed: pip install playwright.") from error
    # A sandbox needs a user other than root.
    options = [*BROWSER_OPTIONS, *(("--no-sandbox",) if os.geteuid() == 0 else ())]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Received:
    """What one client has received, in milliseconds of the browser's clock.

    Attributes:
        due: ``[n]`` media time of every frame that was shown.
        received: ``[n]`` when its last packet or message arrived.
        shown: ``[n]`` when it was handed to the screen.
        number: ``[n]`` its number: frames that were shown (WebRTC), or the server's number (WebSocket).
        messages: control messages with their times.
        events: first times of what happened to the connection.
    """

    due: np.ndarray
    received: np.ndarray
    shown: np.ndarray
    number: np.ndarray
    messages: list[tuple[float, str]]
    events: dict[str, float]

    def between(self, first: float, last: float) -> Received:
        """Return the frames that arrived between two times."""
        rows = (self.received >= first) & (self.received < last)
        messages = [message for message in self.messages if first <= message[0] < last]
        return Received(self.due[rows], self.received[rows], self.shown[rows], self.number[rows], messages, self.events)


@dataclass(frozen=True)
class Watched:
    """The frames around an action.

    Attributes:
        shown: ``[n]`` when every frame was shown, in ms after the action.
        pictures: the frames as JPEG.
        messages: control messages after the action, with their ms after it.
        voices: ms after the action at which a voice began to be heard, after ``listen``.
    """

    shown: np.ndarray
    pictures: list[bytes]
    messages: list[tuple[float, str]]
    voices: list[float]


class BrowserClient:
    """One connection of a page."""

    def __init__(self, page: Any, number: int, token: str = "") -> None:
        self.page, self.number, self.token = page, number, token

    def run(self, code: str, argument: Any = None) -> Any:
        """Run JavaScript with ``client`` and ``argument``; ``await`` is possible."""
        source = f"async ([number, argument]) => {{ const client = bench.clients[number]; {code} }}"
        return self.page.evaluate(source, [self.number, argument])

    def push(self, pcm: np.ndarray, rate: int, piece_ms: float, pace_ms: float) -> float:
        """Send speech; returns when the first piece left, once the last one has.

        Args:
            pcm: int16 ``[n]``.
            rate: sample rate in Hz.
            piece_ms: length of a piece.
            pace_ms: time between two pieces; 0 sends all at once.
        """
        argument = {"pcm": encode(pcm), "rate": rate, "piece": piece_ms, "pace": pace_ms}
        code = "return await client.push(argument.pcm, argument.rate, argument.piece, argument.pace);"
        return float(self.run(code, argument))

    def watch(self, action: str, argument: Any, before: float, after: float) -> Watched:
        """Run JavaScript and return the frames from ``before`` ms before it to ``after`` ms after it."""
        code = f"return await client.watch(async () => {{ {action} }}, argument.before, argument.after);"
        found = self.run(code, {"before": before, "after": after, "value": argument})
        return Watched(
            np.array([shown for _, shown, _ in found["pictures"]], float) - found["time"],
            [base64.b64decode(picture) for _, _, picture in found["pictures"]],
            [(when - found["time"], text) for when, text in found["messages"]],
            [when - found["time"] for when in found["voices"]],
        )

    def listen(self) -> None:
        """Note from now on when a voice begins to be heard."""
        self.run("await client.listen();")

    def received(self) -> Received:
        """Return everything so far."""
        found = self.run("return client.report();")
        rows = np.array(found["frames"], float).reshape(-1, 4)
        due, received, shown, number = rows.T
        messages = [(float(when), str(text)) for when, text in found["messages"]]
        return Received(due, received, shown, number, messages, found["events"])

    def now(self) -> float:
        """Return the browser's time in ms."""
        return float(self.run("return performance.now();"))

    def stats(self) -> dict[str, Any]:
        """Return what the browser counts of the received streams; empty for a WebSocket."""
        return dict(self.run("return await client.stats();"))

    def record(self, path: Path, milliseconds: float, action: str = "", argument: Any = None) -> None:
        """Record the stream as the browser plays it into a WebM file, from before the action."""
        code = f"return await client.record(argument.ms, async () => {{ {action} }});"
        path.write_bytes(base64.b64decode(self.run(code, {"ms": milliseconds, "value": argument})))

    def close(self) -> None:
        """End the connection."""
        self.run("client.close();")


@contextlib.contextmanager
def opened_page(browser: Any, server: Served, **settings: Any) -> Iterator[Any]:
    """An empty page of the server's address that can be given connections."""
    context = browser.new_context(bypass_csp=True, **settings)
    page = context.new_page()
    page.set_default_timeout(600_000)
    try:
        page.goto(f"{server.address}/healthz")
        page.add_script_tag(content=_SCRIPT.read_text("utf-8"))
        yield page
    finally:
        context.close()


def connect(
    page: Any,
    server: Served,
    transport: Transport = "webrtc",
    seconds: float = CONNECT_SECONDS,
    jitter: int | None = None,
    **start: Any,
) -> BrowserClient:
    """Connect and wait for the first frame.

    Args:
        page: of ``opened_page``.
        server: a running server.
        transport: how frames arrive.
        seconds: in which the first one must come.
        jitter: ``jitterBufferTarget`` in ms of both media of WebRTC; the browser's own by default.
        start: fields of the start message.

    Raises:
        BadInput: the server refused, or no frame came in time.
    """
    from playwright.sync_api import Error

    fields = {"version": 1, "speech_rate": 24_000, **({"token": server.token} if server.token else {}), **start}
    try:
        number = page.evaluate(
            "argument => bench.connect(argument)",
            {"transport": transport, "start": fields, "timeout": 1000 * seconds, "jitter": jitter},
        )
    except Error as error:
        raise BadInput(f"{server.address} gave no {transport} session: {str(error).splitlines()[0]}") from error
    return BrowserClient(page, number, server.token)


def encode(samples: np.ndarray) -> str:
    """Return int16 samples as base64."""
    return base64.b64encode(np.ascontiguousarray(samples, "<i2").tobytes()).decode()


def sleep_with(page: Any, seconds: float) -> None:
    """Wait while the page's events are handled."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        page.wait_for_timeout(1000 * min(left, 1.0))

"""What goes wrong, and what a good session notices of it: parts of ``benchmarks/live.py``.

memory    hours on an injected clock (live_memory.py)
clients   twenty misbehaving clients (live_clients.py) beside a good one: its late frames without and with them
worker    kill −9 of one of two worker processes: who is told, and when; what the other session sees
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from typing import Any

from benchmarks import live_memory
from benchmarks.live_analysis import cut_utterances
from benchmarks.live_bench import RATE, SETTLE_SECONDS, Bench, add_punctuality, start_chatter
from benchmarks.live_browser import (
    BrowserClient,
    Served,
    connect,
    opened_page,
    process_seconds,
    resident_memory,
    sleep_with,
)
from benchmarks.live_clients import KINDS
from benchmarks.record import ROOT, Record
from flowportrait.errors import BadInput

TOKEN = "benchmark-token-of-32-characters"
WORKER_MEGABYTES = 150
"""Memory above which a process of the server is one that draws."""
TOLD_SECONDS = 40.0
"""Longest time in which a client is waited for to notice that its worker is gone."""
NEW_SESSION_SECONDS = 60.0
"""Longest time for which a new session is waited for."""
CLIENTS_END_SECONDS = 60.0
"""Longest time in which the misbehaving clients are waited for after their time."""
LEAK_HOURS = 0.25


# --- Memory -----------------------------------------------------------------------------


def measure_memory(bench: Bench) -> None:
    """Measure the growth of a session over hours of the clock."""
    from flowportrait.live import LivePortrait
    from flowportrait.media.audio import SAMPLE_RATE, read_audio
    from flowportrait.models.sampler import GenerationSession

    options = bench.options
    speech = cut_utterances(read_audio(options.speech), 1, 2.0, SAMPLE_RATE)[0]
    portrait = LivePortrait(options.photo, size=128)

    def open_source(utterance: int) -> GenerationSession:
        return portrait.motion_source(utterance)

    sessions = {
        "session": live_memory.simulate_session(open_source, speech, options.hours),
        "session that leaks (control)": live_memory.simulate_session(
            open_source, speech, min(options.hours, LEAK_HOURS), leak_bytes=live_memory.LEAK_BYTES
        ),
        "avatar and connection": live_memory.simulate_connection(
            portrait, bench.utterances(1, 2.0)[0], options.drawn_hours
        ),
    }
    for name, curve in sessions.items():
        for metric, value, unit in (
            ("time on the clock", (curve.seconds[-1] - curve.seconds[0]) / 3600, "h"),
            ("memory after a quarter", curve.megabytes[len(curve.megabytes) // 4], "MB"),
            ("memory at the end", curve.megabytes[-1], "MB"), ("growth", curve.slope, "MB/h"),
            ("new objects", curve.new_objects, "1/h"),
        ):  # fmt: skip
            bench.record.add(name, metric, value, unit=unit, group="memory", n=len(curve.seconds))
    bench.record.add(
        "avatar and connection", "different pictures", sessions["avatar and connection"].drawn, group="memory"
    )


# --- Misbehaving clients ----------------------------------------------------------------


def measure_clients(bench: Bench) -> None:
    """Measure the late frames of a good session without and with misbehaving clients, and the server after them."""
    options = bench.options
    with (
        bench.server(None, options.client_sessions, "--token", TOKEN) as server,
        bench.client(server, speech_rate=RATE) as good,
    ):
        start_chatter(good, bench.utterances(8, 3.0))
        sleep_with(good.page, SETTLE_SECONDS)
        begin, calm_memory = good.now(), server.memory()
        sleep_with(good.page, options.clients_seconds)
        middle = good.now()
        words = ["-m", "benchmarks.live_clients", server.address, "--token", TOKEN, "--count", str(options.clients)]
        others = subprocess.Popen(
            [sys.executable, *words, "--seconds", str(options.clients_seconds)], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT / "weights", ROOT)))},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        memory = processor = 0.0
        latest = time.monotonic() + options.clients_seconds + CLIENTS_END_SECONDS
        while others.poll() is None:
            if time.monotonic() > latest:
                others.kill()
                raise BadInput("The misbehaving clients did not end: run python -m benchmarks.live_clients yourself.")
            processor = process_seconds(others.pid)
            sleep_with(good.page, 0.5)
            memory = max(memory, server.memory())
        end = good.now()
        tally = json.loads(others.communicate()[0] or "{}")
        received, stats = good.received(), good.stats()
        add_punctuality(bench.record, "alone", received.between(begin, middle), {}, "misbehaving clients")
        add_punctuality(
            bench.record, f"beside {options.clients}", received.between(middle, end), stats, "misbehaving clients"
        )
        sleep_with(good.page, 2.0)
        status = request_status(server, "/healthz")
        bench.record.add(f"beside {options.clients}", "memory of the server, most", memory, unit="MB",
                         group="misbehaving clients")  # fmt: skip
        bench.record.add("alone", "memory of the server, most", calm_memory, unit="MB", group="misbehaving clients")
        bench.record.add("server afterwards", "answer of /healthz", status, group="misbehaving clients")
        is_alive = "peer gone" not in good.received().events
        bench.record.add("good session", "goes on afterwards", float(is_alive), group="misbehaving clients")
        bench.record.add(
            f"beside {options.clients}", "processor of the clients", 1000 * processor / (end - middle), unit="cores",
            group="misbehaving clients",
        )  # fmt: skip
    bench.record.note(f"{options.clients} clients misbehaved in {min(options.clients, len(KINDS))} ways:")
    for kind, seen in tally.items():
        bench.record.note(f"{kind}: " + ", ".join(f"{name} {count}" for name, count in sorted(seen.items())))
    if not tally:
        raise BadInput("The misbehaving clients ended early: run python -m benchmarks.live_clients yourself.")


def request_status(server: Served, path: str) -> int:
    """Return the status with which the server answers a GET; 0 if it does not."""
    request = urllib.request.Request(server.address + path)
    if server.token:
        request.add_header("Authorization", f"Bearer {server.token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


# --- A killed worker --------------------------------------------------------------------


def measure_worker(bench: Bench) -> None:
    """Kill one of two workers, and measure what its session, the other one and a new one see."""
    for transport in bench.options.transports:
        with ExitStack() as stack:
            server = stack.enter_context(bench.server(None, 2, "--workers", "2"))
            pages = [stack.enter_context(opened_page(bench.browser, server)) for _ in range(2)]
            clients = [connect(page, server, transport, speech_rate=RATE) for page in pages]
            for client in clients:
                start_chatter(client, bench.utterances(8, 3.0))
            sleep_with(pages[0], SETTLE_SECONDS)
            begins = [client.now() for client in clients]
            sleep_with(pages[0], 3.0)
            workers = [one for one in server.processes()[1:] if resident_memory(one) > WORKER_MEGABYTES]
            if len(workers) < 2:
                bench.record.note(f"{transport}: the server has {len(workers)} worker processes; none was killed.")
                bench.record.add(transport, "worker processes", len(workers), group="killed worker")
                continue
            seeking = stack.enter_context(opened_page(bench.browser, server))
            killed_at = [client.now() for client in clients]
            os.kill(workers[0], signal.SIGKILL)
            _seek_new_session(seeking, server, transport)
            sleep_with(pages[0], 2.0)
            lost = _find_lost(clients)
            if lost is None:
                bench.record.note(f"{transport}: no session ended when a worker was killed: it had none.")
                continue
            _add_told(bench.record, transport, clients[lost], killed_at[lost])
            _add_new_session(bench.record, transport, seeking)
            other = clients[1 - lost]
            frames = other.received()
            add_punctuality(bench.record, f"{transport}, other session before", frames.between(begins[1 - lost],
                            killed_at[1 - lost]), {}, "killed worker")  # fmt: skip
            add_punctuality(bench.record, f"{transport}, other session afterwards", frames.between(killed_at[1 - lost],
                            other.now()), {}, "killed worker")  # fmt: skip


def _find_lost(clients: list[BrowserClient]) -> int | None:
    """Return which client has received no frame in the second before now."""
    for number, client in enumerate(clients):
        frames = client.received()
        if not len(frames.received) or frames.received[-1] < client.now() - 1000:
            return number
    return None


def _add_told(record: Record, transport: str, client: BrowserClient, killed_at: float) -> None:
    """Wait until the client knows that its session has ended, and add when it learned it, by every way."""
    code = """
        const headers = argument ? {Authorization: `Bearer ${argument}`} : {};
        const answer = await fetch(`/live/sessions/${client.session}`, {headers}).catch(() => null);
        return [performance.now(), answer ? answer.status : 0, answer ? await answer.text() : ""];
    """
    told: dict[str, float] = {}
    reason = ""
    end = time.monotonic() + TOLD_SECONDS
    ways = {"told": "told by a message", "channel closed": "channel closed", "peer gone": "connection reported lost"}
    while time.monotonic() < end and not {"session resource says it ended", "connection reported lost"} <= told.keys():
        now, status, text = client.run(code, client.token)
        if status in (404, 410) and "session resource says it ended" not in told:
            told["session resource says it ended"] = now - killed_at
            reason = text
        events: dict[str, Any] = client.received().events
        told |= {way: events[name] - killed_at for name, way in ways.items() if events.get(name, -1) > killed_at}
        sleep_with(client.page, 0.1)
    for way in ("session resource says it ended", *ways.values()):
        value = told.get(way)
        record.add(transport, way, None if value is None else value / 1000, unit="s", group="killed worker")
    record.add(transport, "client knows", min(told.values()) / 1000 if told else None, unit="s", group="killed worker")
    if reason:
        record.note(f"{transport}: the session of the killed worker answers {reason}")


_TRY_AGAIN = """async argument => {
    const began = performance.now();
    window.newSession = null;
    (async () => {
        while (performance.now() < began + argument.most) {
            try {
                const number = await bench.connect(argument);
                window.newSession = performance.now() - began;
                bench.clients[number].close();
                return;
            } catch (error) { await bench.wait(100); }
        }
    })();
}"""


def _seek_new_session(page: Any, server: Served, transport: str) -> None:
    """Let a page ask for a session until it gets one."""
    start = {"version": 1, "speech_rate": RATE, **({"token": server.token} if server.token else {})}
    page.evaluate(
        _TRY_AGAIN, {"transport": transport, "start": start, "timeout": 5000, "most": 1000 * NEW_SESSION_SECONDS}
    )


def _add_new_session(record: Record, transport: str, page: Any) -> None:
    end = time.monotonic() + NEW_SESSION_SECONDS
    while (found := page.evaluate("() => window.newSession")) is None and time.monotonic() < end:
        sleep_with(page, 0.25)
    record.add(
        transport, "new session possible", None if found is None else found / 1000, unit="s", group="killed worker"
    )

"""The live server, measured by a real browser: what a person at a page of it would see and hear.

    flowportrait serve (a process of its own) ─ loopback ─ headless Chromium ─► times, pictures, recordings ─► figures

Every part starts its own server and is measured in the browser, from what arrived there (``live_browser.py``,
``live_page.js``); ``live_analysis.py`` makes figures of it. Beside most figures stands a control that must fail and a
ceiling: the test source (``click_and_flash.py``), the page's own source, a file, a session that leaks.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.live_analysis import RestingMouth, first_movement, measure_mouths, slope_per_hour, time_to_rest
from benchmarks.live_bench import (
    RATE,
    SETTLE_SECONDS,
    UTTERANCE_SECONDS,
    Bench,
    LiveOptions,
    Part,
    add_punctuality,
    parse_run,
    start_chatter,
)
from benchmarks.live_browser import BrowserClient, Served, Transport, Watched, chromium, encode, sleep_with
from benchmarks.live_failures import measure_clients, measure_memory, measure_worker
from benchmarks.live_quality import measure_source, measure_sync_of_page, record_page
from benchmarks.record import Record
from flowportrait.errors import BadInput

BEFORE_MS, AFTER_MS = 480, 1500
"""Milliseconds of pictures before and after sound is sent, or an interruption."""
REST_MS = 300
"""Milliseconds after an interruption in which the lips should be at rest."""
PREPARED_OPENING = 0.06
"""Opening in eye distances that only speech reaches: a preparation opens the lips by 0.05 at most."""
PACES = {"faster than real time": (200, 40), "at the pace of a microphone": (20, 20)}
"""Length of a piece in ms and time between two: a voice that is five times as fast as its speech, and a microphone."""


def live(options: LiveOptions, record: Record) -> None:
    for path in (options.photo, options.speech):
        if not path.is_file():
            raise BadInput(f"No file at {path}: give a photo and a recording of speech.")
    runs = [parse_run(text) for text in options.late]
    record.note(f"Load average at the start: {os.getloadavg()[0]:.1f}.")
    with ExitStack() as stack:
        folder = options.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        measures: dict[Part, Callable[[Bench], None]] = {
            "offer": measure_offers, "motion": measure_motion, "interrupt": measure_interruptions,
            "late": lambda bench: measure_late_runs(bench, runs), "source": measure_source,
            "sync": measure_sync_of_page, "memory": measure_memory,
            "clients": measure_clients, "worker": measure_worker,
            "page": record_page,
        }  # fmt: skip
        bench = Bench(options, record, folder, None)
        if "memory" in options.parts:
            measures["memory"](bench)
        if set(options.parts) != {"memory"}:
            bench.browser = stack.enter_context(chromium())
        for part in options.parts:
            if part != "memory":
                measures[part](bench)
    record.note(f"Load average at the end: {os.getloadavg()[0]:.1f}.")


# --- Offer, motion, interruption --------------------------------------------------------


def measure_offers(bench: Bench) -> None:
    """Measure the time from an offer (or start message) to the first frame."""
    with bench.server() as server:
        for transport in bench.options.transports:
            events = []
            for _ in range(bench.options.offers):
                with bench.client(server, transport) as client:
                    events.append(client.received().events)
            begin = "offered" if transport == "webrtc" else "began"
            for last in ("answered", "connected", "first frame"):
                times = [one[last] - one[begin] for one in events if last in one]
                if times:
                    bench.add_times(transport, f"offer to {last}", times, "offer")


def measure_motion(bench: Bench) -> None:
    """Measure the time from the first sound to lips that move, to lips that speak, and to the voice that is heard.

    The first movement prepares to speak. Lips that speak are seen where they are open wider than any preparation opens
    them; the voice is heard with the first frame of speech, because sound and picture leave together.
    """
    utterances = bench.utterances(bench.options.utterances)
    for transport in bench.options.transports:
        with bench.server() as server, bench.client(server, transport, speech_rate=RATE) as client:
            sleep_with(client.page, 1.0)
            client.listen()
            quiet = [client.watch("", None, BEFORE_MS, AFTER_MS) for _ in range(max(4, len(utterances) // 3))]
            spoken = {
                pace: [_push_and_watch(client, pcm, *timing) for pcm in utterances] for pace, timing in PACES.items()
            }
            frames = client.received()
        bench.add_times(f"{transport}, both paces", "received to shown", list(frames.shown - frames.received), "motion")
        still = [measure_mouths(one.pictures) for one in quiet]
        mouth = RestingMouth.from_idle(np.concatenate(still))
        false = [first_movement(one.shown, mouth.moves(rows)) for one, rows in zip(quiet, still, strict=True)]
        for pace, watched in spoken.items():
            mouths = [measure_mouths(one.pictures) for one in watched]
            save_windows(bench.folder, f"{transport} {pace}", watched, mouths)
            found = [first_movement(one.shown, mouth.moves(rows)) for one, rows in zip(watched, mouths, strict=True)]
            bench.add_times(f"{transport}, {pace}", "first sound to moving lips", _known(found), "motion")
            wide = [first_wide(one.shown, mouth, rows) for one, rows in zip(watched, mouths, strict=True)]
            bench.add_times(f"{transport}, {pace}", "first sound to lips that speak", _known(wide), "motion")
            heard = [next((when for when in one.voices if when > 0), None) for one in watched]
            bench.add_times(f"{transport}, {pace}", "first sound to the voice that is heard", _known(heard), "motion")
            told = [_first_state(one.messages, "speaking") for one in watched]
            bench.add_times(f"{transport}, {pace}", "first sound to state speaking", _known(told), "motion")
            bench.record.add(f"{transport}, {pace}", "utterances without movement", 100 * _share_missing(found),
                             unit="%", group="motion", n=len(found))  # fmt: skip
        bench.record.add(f"{transport}, nothing sent (control)", "windows with movement",
                         100 * (1 - _share_missing(false)), unit="%", group="motion", n=len(false))  # fmt: skip


def _push_and_watch(client: BrowserClient, pcm: np.ndarray, piece: float, pace: float) -> Any:
    value = {"pcm": encode(pcm), "rate": RATE, "piece": piece, "pace": pace}
    action = (
        "const {pcm, rate, piece, pace} = argument.value; const data = decodeBase64(pcm);"
        "await client.push(data, rate, piece, pace);"
    )
    watched = client.watch(action, value, BEFORE_MS, AFTER_MS)
    # Until it is silent again, wherever the speech ends.
    sleep_with(client.page, UTTERANCE_SECONDS + 0.6)
    return watched


def measure_interruptions(bench: Bench) -> None:
    """Measure the time from an interruption to lips at rest, as they are seen; and without one, as the control."""
    speeches = bench.utterances(2 * bench.options.interruptions, 6.0)
    stop = 'client.send(JSON.stringify({type: "interrupt"}));'
    for transport in bench.options.transports:
        with bench.server() as server, bench.client(server, transport, speech_rate=RATE) as client:
            sleep_with(client.page, 1.0)
            quiet = [client.watch("", None, BEFORE_MS, AFTER_MS) for _ in range(4)]
            watched: dict[str, list[Any]] = {"interrupted": [], "not interrupted (control)": []}
            for number, pcm in enumerate(speeches):
                name = list(watched)[number % 2]
                client.push(pcm, RATE, 200, 0)
                sleep_with(client.page, 1.2 + 0.13 * (number % 7))
                watched[name].append(client.watch(stop if number % 2 == 0 else "", None, BEFORE_MS, AFTER_MS))
                client.run(stop)
                sleep_with(client.page, 1.0)
        mouth = RestingMouth.from_idle(np.concatenate([measure_mouths(one.pictures) for one in quiet]))
        for name, windows in watched.items():
            mouths = [measure_mouths(one.pictures) for one in windows]
            save_windows(bench.folder, f"{transport} {name}", windows, mouths)
            rests = [time_to_rest(one.shown, mouth.moves(rows)) for one, rows in zip(windows, mouths, strict=True)]
            system = f"{transport}, {name}"
            in_time = 100 * sum(rest is not None and rest <= REST_MS for rest in rests) / len(rests)
            bench.record.add(system, f"at rest within {REST_MS} ms", in_time, unit="%", group="interruption",
                             n=len(rests))  # fmt: skip
            # Without an interruption the lips rest where the window happens to end in a pause.
            bench.add_times(system, "to resting lips", [AFTER_MS if rest is None else rest for rest in rests],
                            "interruption")  # fmt: skip
            steps = [np.nanmax(np.abs(np.diff(rows[one.shown >= 0])))
                     for one, rows in zip(windows, mouths, strict=True) if (one.shown >= 0).sum() > 2]  # fmt: skip
            bench.record.add(system, "largest step of the opening", float(np.max(steps)) if steps else None,
                             unit="eye distances a frame", group="interruption", n=len(steps))  # fmt: skip


def first_wide(times: np.ndarray, mouth: RestingMouth, openings: np.ndarray) -> float | None:
    """Return the first time ≥ 0 at which the lips are open wider than a preparation opens them; None if never."""
    wide = (times >= 0) & (openings > mouth.middle + PREPARED_OPENING)
    return float(times[wide.argmax()]) if wide.any() else None


def save_windows(folder: Path, name: str, windows: Sequence[Watched], mouths: Sequence[np.ndarray]) -> None:
    """Write the frames from 80 ms before an action to 600 ms after it as rows of one picture, to look at.

    Args:
        folder: where to.
        name: of the file.
        windows: at most six are taken, a row each.
        mouths: openings of their frames, which are written beside them with the time.
    """
    from PIL import Image, ImageDraw

    rows = []
    for window, openings in list(zip(windows, mouths, strict=True))[:6]:
        near = [place for place, when in enumerate(window.shown) if -80 <= when <= 600]
        row = Image.new("RGB", (18 * 160, 176))
        for column, place in enumerate(near[:18]):
            picture = Image.open(io.BytesIO(window.pictures[place])).convert("RGB")
            side = picture.width
            # Mouth and chin.
            part = picture.crop((side // 4, side // 2, 3 * side // 4, side)).resize((160, 160))
            row.paste(part, (160 * column, 16))
            text = f"{window.shown[place]:.0f} ms  {openings[place]:.3f}"
            ImageDraw.Draw(row).text((160 * column + 4, 2), text, "white")
        rows.append(row)
    sheet = Image.new("RGB", (18 * 160, 176 * max(1, len(rows))))
    for number, row in enumerate(rows):
        sheet.paste(row, (0, 176 * number))
    sheet.save(folder / f"{name}.png")


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _share_missing(values: Sequence[float | None]) -> float:
    return sum(value is None for value in values) / max(1, len(values))


def _first_state(messages: Sequence[tuple[float, str]], state: str) -> float | None:
    return next((when for when, text in messages if f'"{state}"' in text and '"state"' in text), None)


# --- Late frames ------------------------------------------------------------------------


def measure_late_runs(bench: Bench, runs: Sequence[tuple[int, int, float]]) -> None:
    """Measure late frames of every run, in the browser and as the server counts them.

    A frame that the server repeats because the next one was not drawn in time reaches the browser in time: what a
    person sees late is at most the sum of both.
    """
    for transport in bench.options.transports:
        for size, sessions, seconds in runs:
            with bench.server(size, sessions) as server:
                run_sessions(bench, server, transport, f"{size} px", sessions, seconds)


def run_sessions(bench: Bench, server: Served, transport: Transport, name: str, sessions: int, seconds: float) -> None:
    """Let faces talk and idle, each in a page of its own, and add what the browser received.

    Args:
        bench: what the parts share.
        server: a running server.
        transport: how frames arrive.
        name: of the run, for the tables.
        sessions: number of pages.
        seconds: how long.
    """
    system = f"{transport}, {name}, {sessions} session{'s' if sessions > 1 else ''}, {seconds:g} s"
    with ExitStack() as stack:
        clients = [stack.enter_context(bench.client(server, transport, speech_rate=RATE)) for _ in range(sessions)]
        for client in clients:
            start_chatter(client, bench.utterances(8, 3.0))
        sleep_with(clients[0].page, SETTLE_SECONDS)
        before, processor = server_frames(clients), server.processor_seconds()
        spans = [[client.now()] for client in clients]
        memory, times, waited = list[float](), list[float](), 0.0
        while waited < seconds:
            step = min(5.0, seconds - waited)
            sleep_with(clients[0].page, step)
            waited += step
            memory.append(server.memory())
            times.append(waited)
        for client, span in zip(clients, spans, strict=True):
            span.append(client.now())
        after, spent = server_frames(clients), server.processor_seconds() - processor
        shares = list[float | None]()
        for number, (client, span) in enumerate(zip(clients, spans, strict=True)):
            label = system if sessions == 1 else f"{system}, no. {number + 1}"
            frames_of_one = client.received().between(*span)
            shares.append(add_punctuality(bench.record, label, frames_of_one, client.stats(), "late frames"))
        frames = max(1, after[0] - before[0])
        late = 100 * (after[1] - before[1]) / frames
        if known := _known(shares):
            both = float(np.mean(known)) + late
            bench.record.add(system, "shown late or repeated, mean", both, unit="%", group="late frames")
        for metric, value, unit in (
            ("repeated by the server", late, "%"),
            ("processor of the server", 1000 * spent / frames, "ms/frame"),
            ("memory of the server at the end", memory[-1], "MB"),
        ):  # fmt: skip
            bench.record.add(system, metric, value, unit=unit, group="late frames")
        if seconds >= 60:
            growth = slope_per_hour(times, memory)
            bench.record.add(system, "growth of the server", growth, unit="MB/h", group="late frames")


def server_frames(clients: Sequence[BrowserClient]) -> tuple[int, int]:
    """Return how many frames the sessions have sent so far, and how many of them were late, by the server's count."""
    code = """
        const token = argument, headers = token ? {Authorization: `Bearer ${token}`} : {};
        const answer = await fetch(`/live/sessions/${client.session}`, {headers});
        return answer.ok ? await answer.json() : null;
    """
    found = [client.run(code, client.token) for client in clients]
    known = [one for one in found if one]
    return sum(one["frame"] for one in known), sum(one["late_frames"] for one in known)

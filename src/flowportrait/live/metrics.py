"""What a live server reports of itself: figures for Prometheus, and one line of log for every event.

    sessions ─► LiveMetrics ─► /metrics of this process ─┐
    worker processes ─► their /metrics ──────────────────┴─► merge_worker_metrics ─► /metrics of the whole server

Neither holds a token or what was spoken: log fields are named in ``LOG_FIELDS``, and nothing else is written.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

LogForm = Literal["text", "json"]
QUANTILES = (0.5, 0.95, 0.99)
"""Quantiles of every latency."""
WINDOW = 2000
"""Newest values from which a quantile is computed."""
LOG_FIELDS = frozenset({
    "session", "transport", "size", "seconds", "frames", "late_frames", "reason", "worker", "code", "sessions",
    "error",
})  # fmt: skip
"""Names of the fields that an event may have."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of the figures."""


class LiveLog:
    """One line on standard error for every event, as text or as JSON."""

    def __init__(self, form: LogForm = "text", stream: TextIO | None = None) -> None:
        """Prepare the log.

        Args:
            form: ``json`` writes an object a line, with the time in UTC.
            stream: where the lines go; standard error by default.
        """
        self._form, self._stream, self._lock = form, stream, threading.Lock()

    def write(self, event: str, **fields: Any) -> None:
        """Write an event.

        Args:
            event: its name, such as ``session_opened``.
            **fields: its values, with names from ``LOG_FIELDS``; None is left out.

        Raises:
            ValueError: a field has another name.
        """
        if unknown := fields.keys() - LOG_FIELDS:
            raise ValueError(f"{', '.join(sorted(unknown))} may not be logged")
        values = {name: value for name, value in fields.items() if value is not None}
        now = datetime.now(UTC)
        if self._form == "json":
            stamp = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
            line = json.dumps({"time": stamp, "event": event, **values})
        else:
            words = " ".join(f"{name}={_plain(value)}" for name, value in values.items())
            line = f"{now.astimezone():%H:%M:%S} {event.replace('_', ' ')} {words}".rstrip()
        # A closed terminal or a broken pipe must not end a session.
        with self._lock, suppress(OSError, ValueError):
            print(line, file=self._stream or sys.stderr, flush=True)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    text = " ".join(str(value).split())
    return json.dumps(text) if " " in text else text


class LatencyWindow:
    """Quantiles of the newest values of one latency, and the count and sum of all of them."""

    def __init__(self, name: str, meaning: str) -> None:
        """Prepare a window.

        Args:
            name: Prometheus name without ``flowportrait_`` and ``_seconds``.
            meaning: what is measured, one sentence.
        """
        self.name, self.meaning = f"flowportrait_{name}_seconds", meaning
        self._values: deque[float] = deque(maxlen=WINDOW)
        self._count, self._sum, self._lock = 0, 0.0, threading.Lock()

    def observe(self, seconds: float) -> None:
        """Add a value."""
        with self._lock:
            self._values.append(seconds)
            self._count += 1
            self._sum += seconds

    def quantile(self, share: float) -> float:
        """Return the value that this share of the newest values does not exceed; NaN without any."""
        with self._lock:
            ordered = sorted(self._values)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else float("nan")

    def collect(self) -> Iterable[Metric]:
        """Return the values as a Prometheus summary (the interface of a collector)."""
        found = Metric(self.name, self.meaning, "summary")
        for share in QUANTILES:
            found.add_sample(self.name, {"quantile": str(share)}, self.quantile(share))
        found.add_sample(f"{self.name}_count", {}, self._count)
        found.add_sample(f"{self.name}_sum", {}, self._sum)
        yield found


class LiveMetrics:
    """The figures of one process."""

    def __init__(self) -> None:
        """Start all figures at zero."""
        self.registry = CollectorRegistry()

        def counter(name: str, meaning: str) -> Counter:
            return Counter(f"flowportrait_{name}", meaning, registry=self.registry)

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"flowportrait_{name}", meaning, registry=self.registry)

        def latency(name: str, meaning: str) -> LatencyWindow:
            window = LatencyWindow(name, meaning)
            self.registry.register(window)
            return window

        self.sessions = gauge("sessions", "Sessions that are open.")
        self.capacity = gauge("capacity_sessions", "Sessions that can be open at once.")
        self.opened = counter("sessions_opened", "Sessions that were opened.")
        self.refused = counter("sessions_refused", "Sessions that were refused because the server was full.")
        self.frames = counter("frames", "Frames that left.")
        self.late_frames = counter("late_frames", "Frames that left with an older picture.")
        self.dropped_pictures = counter("dropped_pictures", "Pictures that were not sent because a client was slow.")
        self.errors = counter("client_errors", "Messages of clients that could not be used.")
        self.queued = gauge("queued_speech_seconds", "Seconds of speech that wait to be spoken, over all sessions.")
        self.first_frame = latency("first_frame", "From the request for a session to its first frame.")
        self.push_to_frame = latency("push_to_frame", "From the first sound of an utterance to its first frame.")
        self.draw = latency("draw", "Drawing one picture in the running sessions.")
        self.encode = latency("encode", "Encoding one frame for a WebSocket.")

    def text(self) -> bytes:
        """Return the figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _Gathered:
    """The samples of several processes as one collector."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for worker, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                found = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        found.add_sample(sample.name, {**sample.labels, "worker": worker}, sample.value)
        yield from merged.values()


def merge_worker_metrics(texts: Mapping[str, str]) -> bytes:
    """Return the figures of several worker processes in one text; each sample gets the label ``worker``.

    Args:
        texts: what the workers answered, by the name of the worker.
    """
    registry = CollectorRegistry()
    registry.register(_Gathered(texts))
    return generate_latest(registry)


class TokenBucket:
    """A limit of a rate: a second's worth may come at once."""

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare a full bucket.

        Args:
            per_second: how much may come in a second, on average.
            clock: returns seconds; only differences count.
        """
        self._rate, self._left, self._clock, self._last = per_second, per_second, clock, clock()

    def take(self, amount: float = 1.0) -> bool:
        """Return whether so much may come now; an amount above a second's worth only into a full bucket."""
        now = self._clock()
        self._left = min(self._rate, self._left + (now - self._last) * self._rate)
        self._last = now
        if self._left < min(amount, self._rate):
            return False
        self._left -= amount
        return True

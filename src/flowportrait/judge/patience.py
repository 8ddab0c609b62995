"""How long to wait before asking again, and never more often than allowed.

wait = Retry-After, where the server says;  else  min(longest, first · 2^(try − 1)) · (½ … 1)
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Callable, Mapping


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a server asks to wait: a number, or a date; None where it does not say or says nonsense."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            return max(0.0, float(text) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
        except (TypeError, ValueError):
            continue
    return None


def backoff(tried: int, first: float, longest: float) -> float:
    """Seconds after the ``tried``-th failure; spread, so that many askers do not come back at once."""
    return min(longest, first * 2.0 ** (tried - 1)) * random.uniform(0.5, 1.0)


class Pace:
    """At most ``per_minute`` beginnings a minute, evenly spaced (0: no limit), and none before ``hold`` is over."""

    def __init__(self, per_minute: float = 0.0) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._held = 0.0

    async def turn(self) -> None:
        """Wait until it is this caller's turn."""
        while True:
            now = time.monotonic()
            start = max(now, self._next, self._held)
            if start <= now:
                self._next = now + self._gap
                return
            await asyncio.sleep(start - now)

    def hold(self, seconds: float) -> None:
        """Nobody begins for that long: the server has asked for it."""
        self._held = max(self._held, time.monotonic() + seconds)

"""Admission of sessions: as many as the machine was measured to carry, and no more.

One more session would make all of them stutter, so it is refused with the time after which to ask again.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

RETRY_SECONDS = 10
"""Seconds after which a refused client may ask again."""


class ServerFull(Exception):
    """A session that was refused because too many are open; the message is one sentence."""

    def __init__(self, message: str, retry_seconds: int = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class Admission:
    """Counts the open sessions, in all and by client address."""

    def __init__(self, sessions: int, per_address: int) -> None:
        """Prepare an empty server.

        Args:
            sessions: how many may be open at once.
            per_address: how many of one client address; the machine itself is exempt, where proxies run.
        """
        self.sessions, self._per_address = sessions, per_address
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        """Number of open sessions."""
        return self._open.total()

    @property
    def has_room(self) -> bool:
        """Whether another session could be opened."""
        return self.open < self.sessions

    def enter(self, address: str) -> None:
        """Count a session of a client.

        Raises:
            ServerFull: too many are open.
        """
        if not self.has_room:
            count = "1 session" if self.sessions == 1 else f"{self.sessions} sessions"
            raise ServerFull(f"This server carries {count} at once, and all are in use: try again later.")
        if self._open[address] >= self._per_address and not _is_this_machine(address):
            raise ServerFull(f"{self._per_address} sessions of your address are open already: end one first.")
        self._open[address] += 1

    def leave(self, address: str) -> None:
        """Count the end of a session of a client."""
        self._open[address] -= 1
        if self._open[address] <= 0:
            del self._open[address]


def _is_this_machine(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False

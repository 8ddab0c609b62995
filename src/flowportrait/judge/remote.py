"""Rewards that live behind an address: the client's side of ``/score``.

HttpReward.at("http://127.0.0.1:8300", "identity")        is as good as Identity.load()
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

from flowportrait.errors import BadInput
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score
from flowportrait.reward.scoring import Unavailable
from flowportrait.reward.transport import MEDIA_TYPE, Sent, Wanted, pack_batch, unpack_score

KEY_ENV = "FLOWPORTRAIT_SERVE_KEY"
"""Environment variable with the key of a server that asks for one."""
_MOST_ROUNDS = 4
"""How often a scorer may ask for more frames."""


@dataclass(frozen=True)
class HttpReward:
    """A scorer on another machine. What it is called, needs and promises is what the server says it does."""

    url: str
    scorer: str
    name: str
    needs: frozenset[str]
    scope: Literal["sample", "group"] = "sample"
    range: tuple[float, float] = (float("-inf"), float("inf"))
    noise: float = 0.0
    retries: int = 4
    timeout: float = 120.0
    _wanted: dict[int, Sent] = field(default_factory=dict, repr=False, compare=False)
    _client: httpx2.Client = field(default_factory=httpx2.Client, repr=False, compare=False)

    @classmethod
    def at(cls, url: str, scorer: str, retries: int = 4, timeout: float = 120.0) -> HttpReward:
        """The scorer of that name at a server.

        Raises:
            BadInput: nobody answers there, or has such a scorer.
        """
        url = url.rstrip("/")
        try:
            answer = httpx2.get(f"{url}/scorers", headers=_headers(), timeout=timeout)
            answer.raise_for_status()
            offered = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise BadInput(
                f"No scorers are served at {url} ({error}): start flowportrait judge serve there."
            ) from error
        if scorer not in offered:
            raise BadInput(f"{url} serves no {scorer!r}: choose from {', '.join(sorted(offered))}.")
        told = offered[scorer]
        low, high = (float("nan") if bound is None else float(bound) for bound in told["range"])
        limits = (float("-inf") if low != low else low, float("inf") if high != high else high)
        return cls(url, scorer, told["name"], frozenset(told["needs"]), told["scope"], limits, told["noise"], retries,
                   timeout)  # fmt: skip

    def __call__(self, batch: RewardBatch) -> Score:
        """Scores from the far side.

        Raises:
            Unavailable: no usable answer; ``reward.scoring`` asks again.
            BadInput: the far side says that the batch cannot be scored.
        """
        length = batch.motion.shape[1]
        sent = self._wanted.get(length, Sent())
        needs = self.needs | ({"group"} if self.scope == "group" else frozenset())
        for _ in range(_MOST_ROUNDS):
            found = self._post(pack_batch(batch, needs, sent), len(batch))
            if isinstance(found, Score):
                self._wanted[length] = sent
                return found
            sent = sent.with_(found)
        raise Unavailable(f"{self.url} asked for frames {_MOST_ROUNDS} times")

    def _post(self, body: bytes, rows: int) -> Score | Wanted:
        headers = {"Content-Type": MEDIA_TYPE, **_headers()}
        try:
            answer = self._client.post(f"{self.url}/score/{self.scorer}", content=body, headers=headers,
                                       timeout=self.timeout)  # fmt: skip
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self.url} does not answer ({type(error).__name__})") from error
        if answer.status_code == 409:
            return Wanted(**{name: tuple(indices) for name, indices in _json(answer)["wanted"].items()})
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise Unavailable(f"{self.url} failed ({answer.status_code})")
        if answer.status_code != 200:
            raise BadInput(f"{self.url} would not score ({answer.status_code}): {_said(answer)}")
        try:
            return unpack_score(answer.content, rows)
        except ValueError as error:
            raise Unavailable(f"{self.url}: {error}") from error


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_ENV)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _json(answer: httpx2.Response) -> dict[str, Any]:
    try:
        return dict(answer.json())
    except ValueError as error:
        raise Unavailable(f"unreadable answer ({error})") from error


def _said(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]

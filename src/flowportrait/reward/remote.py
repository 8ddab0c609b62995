"""Rewards that live behind an address: the client's side of ``/score``.

HttpReward.at("http://127.0.0.1:8300", "identity")        is as good as Identity.load()
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2

from flowportrait.api_keys import check_address, key_for
from flowportrait.errors import BadInput
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Score
from flowportrait.reward.scoring import Unavailable
from flowportrait.reward.transport import MEDIA_TYPE, TRAVELS, Sent, Wanted, pack_batch, unpack_score
from flowportrait.web_client import make_client

KEY_ENV = "FLOWPORTRAIT_SERVE_KEY"
"""Environment variable with the key of a server that asks for one; which host it is for stands in
FLOWPORTRAIT_SERVE_HOST where that is not this computer."""
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
    _client: httpx2.Client = field(default_factory=make_client, repr=False, compare=False)

    @classmethod
    def at(cls, url: str, scorer: str, retries: int = 4, timeout: float = 120.0) -> HttpReward:
        """The scorer of that name at a server.

        Raises:
            BadInput: the address is not safe, nobody answers there, or has such a scorer.
        """
        url = url.rstrip("/")
        check_address(url, f"The address of the reward {scorer!r}")
        client = make_client(timeout)
        try:
            answer = client.get(f"{url}/scorers", headers=_headers(url))
            answer.raise_for_status()
            offered = dict(answer.json())
            offer = _Offer.read(offered[scorer]) if scorer in offered else None
        except (httpx2.HTTPError, ValueError, TypeError, LookupError, RecursionError) as error:
            raise BadInput(
                f"No scorers are served at {url} ({error}): start flowportrait judge serve there."
            ) from error
        if offer is None:
            raise BadInput(f"{url} serves no {scorer!r}: choose from {', '.join(sorted(offered))[:300]}.")
        return cls(url, scorer, offer.name, offer.needs, offer.scope, offer.range, offer.noise, retries, timeout,
                   _client=client)  # fmt: skip

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
            if any(index >= length for index in (*found.frames, *found.places)):
                raise Unavailable(f"{self.url} asked for frames that a clip of {length} frames does not have")
            sent = sent.with_(found)
        raise Unavailable(f"{self.url} asked for frames {_MOST_ROUNDS} times")

    def _post(self, body: bytes, rows: int) -> Score | Wanted:
        headers = {"Content-Type": MEDIA_TYPE, **_headers(self.url)}
        try:
            answer = self._client.post(f"{self.url}/score/{self.scorer}", content=body, headers=headers,
                                       timeout=self.timeout)  # fmt: skip
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self.url} does not answer ({type(error).__name__})") from error
        if answer.status_code == 409:
            return _wanted(answer)
        if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
            raise Unavailable(f"{self.url} failed ({answer.status_code})")
        if 300 <= answer.status_code < 400:
            place = answer.headers.get("location", "another address")[:120]
            raise BadInput(f"{self.url} sends requests on to {place}, which is not followed: give that address.")
        if answer.status_code != 200:
            raise BadInput(f"{self.url} would not score ({answer.status_code}): {_said(answer)}")
        try:
            return unpack_score(answer.content, rows)
        except ValueError as error:
            raise Unavailable(f"{self.url}: {error}") from error


@dataclass(frozen=True)
class _Offer:
    """What a server says of one of its scorers."""

    name: str
    needs: frozenset[str]
    scope: Literal["sample", "group"]
    range: tuple[float, float]
    noise: float

    @classmethod
    def read(cls, said: Any) -> _Offer:
        """From JSON; raises ValueError, TypeError or LookupError."""
        low, high = said["range"]
        limits = (float("-inf" if low is None else low), float("inf" if high is None else high))
        needs, scope = frozenset(said["needs"]), said["scope"]
        if scope not in ("sample", "group") or not needs <= TRAVELS or not isinstance(said["name"], str):
            raise ValueError("it describes its scorer in another way")
        return cls(said["name"], needs, scope, limits, float(said["noise"]))


def _headers(url: str) -> dict[str, str]:
    key = key_for(url, KEY_ENV)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _wanted(answer: httpx2.Response) -> Wanted:
    """The frames and landmarks that a scorer asks for."""
    try:
        asked = answer.json()["wanted"]
        frames, places = asked.get("frames", ()), asked.get("places", ())
        if not all(type(index) is int and index >= 0 for index in (*frames, *places)):
            raise ValueError("frames are whole numbers from 0")
        return Wanted(tuple(frames), tuple(places))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise Unavailable(f"unreadable answer ({error})") from error


def _said(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])[:500]
    except (ValueError, LookupError, TypeError, RecursionError):
        return answer.text[:200]

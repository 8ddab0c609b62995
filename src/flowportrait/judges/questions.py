"""This module defines questions to a model, the interface of a backend, the cache of replies and the ledger of costs.

    questions ─► cached replies ──────────────────────────────────────┐
        └─ not in the cache ─► backend ─► accept(reply): read, cached ─┴► answers, and failures

    address = SHA-256(model, content, aspect, sample, rubric, system message, text)

The same question about the same clip is asked only once. Replies are read in ``ask_all`` alone.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from flowportrait.files import cache_folder, write_json
from flowportrait.judges.answers import AnswerFormat
from flowportrait.judges.clips import JudgeInput
from flowportrait.judges.replies import Reply, UnusableReply
from flowportrait.judges.rubric import rubric_version
from flowportrait.rewards.batch import Failure

JudgeKind = Literal["multimodal LLM panel", "measured panel", "LLM panel without pictures or sound"]
"""Whether a model looks, experts measure, or a model is shown nothing, which is a control that must lose; every
verdict, report and certificate states it."""

Answer_co = TypeVar("Answer_co", covariant=True)


@dataclass(frozen=True)
class Question(Generic[Answer_co]):
    """One question to a model about one clip or picture.

    Args:
        system: the system message.
        text: the user's message.
        aspect: the aspect that is judged, or the name of an intermediate step; part of the address.
        content: identifies the pictures and sound that are shown, such as a digest; part of the address.
        sample: the index of the sample when the same question is asked several times.
        answer: the form of the answer.
        make_input: makes the pictures and sound; called only if the question is put to a model. Questions about the
            same pictures share one function, so that a backend encodes them once.
    """

    system: str
    text: str
    aspect: str
    content: str
    sample: int
    answer: AnswerFormat[Answer_co]
    make_input: Callable[[], JudgeInput] = field(repr=False)

    def address(self, model_id: str) -> str:
        """Return the address under which this model's reply is cached, in hexadecimal."""
        parts = [model_id, self.content, self.aspect, str(self.sample), rubric_version(), self.system, self.text]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


AcceptReply = Callable[[int, Reply], None]
"""``accept(index, reply)`` reads the reply to a question and stores the answer; it raises ``UnusableReply`` if the
reply is not an answer."""


class Backend(Protocol):
    """The interface of a model that answers questions about pictures and sound."""

    @property
    def model_id(self) -> str:
        """The model and the settings that change its answers; part of every address."""
        ...

    @property
    def kind(self) -> JudgeKind:
        """Whether a model looks or experts measure."""
        ...

    def ask(self, questions: Sequence[Question[Any]], accept: AcceptReply) -> dict[int, Failure]:
        """Ask all questions and return the failures.

        Args:
            questions: the questions; they may be asked in any order.
            accept: called with the index of a question and its reply, as soon as the reply arrives.

        Returns:
            The failures by index, for the questions without an accepted reply.
        """
        ...


def ask_all(
    questions: Sequence[Question[Answer_co]], backend: Backend, cache: ReplyCache
) -> tuple[dict[int, Answer_co], dict[int, Failure]]:
    """Answer questions from the cache and then from the backend.

    Returns:
        The answers by index and the failures by index.

    Raises:
        BadInput: the backend cannot be used at all (key, model, address).
    """
    addresses = [question.address(backend.model_id) for question in questions]
    answers: dict[int, Answer_co] = {}
    for index, (question, address) in enumerate(zip(questions, addresses, strict=True)):
        if (reply := cache.get(address)) is not None:
            try:
                answers[index] = question.answer.read(reply)
            except UnusableReply:
                continue  # cached by a version that read replies differently
    todo = [index for index in range(len(questions)) if index not in answers]

    def accept(place: int, reply: Reply) -> None:
        index = todo[place]
        answers[index] = questions[index].answer.read(reply)
        cache.put(addresses[index], reply)

    failures = backend.ask([questions[index] for index in todo], accept)
    return answers, {todo[place]: failure for place, failure in failures.items()}


# --- The cache of replies


def judge_cache_folder() -> Path:
    """Return the folder ``judge`` in the user's cache folder."""
    return cache_folder() / "judge"


class ReplyCache:
    """A cache of replies by the address of their question, one small JSON file each.

    A run that was interrupted asks only the questions that have no cached reply.
    """

    def __init__(self, folder: Path | None) -> None:
        """Keep replies in ``folder``; None turns the cache off."""
        self._folder = folder
        self.looked_up: list[str] = []
        """The addresses of all questions so far, in order, with and without a cached reply."""

    def get(self, address: str) -> Reply | None:
        """Return the cached reply, None if there is none that can be read."""
        self.looked_up.append(address)
        if self._folder is None:
            return None
        try:
            return Reply.from_dict(json.loads(self._path(address).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, address: str, reply: Reply) -> None:
        """Write a reply into the cache."""
        if self._folder is None:
            return
        path = self._path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, reply.to_dict(), indent=None)

    def _path(self, address: str) -> Path:
        assert self._folder is not None
        return self._folder / address[:2] / f"{address}.json"


# --- The ledger of costs

RequestOutcome = Literal[
    "answered", "malformed", "refused", "timed_out", "rate_limited", "server_error", "cut_off", "rejected",
    "unfinished",
]  # fmt: skip
"""How a request ended. ``rejected``: the server rejected it (4xx); ``unfinished``: it was cancelled on this side."""


@dataclass(frozen=True)
class LedgerEntry:
    """One request to a server.

    Args:
        address: the address of the question.
        attempt: number of the request for this question, from 1.
        outcome: how the request ended.
        status: HTTP status, None without a response.
        tokens_in: input tokens, None if the server did not report them.
        tokens_out: output tokens, likewise.
        dollars: cost at the endpoint's prices.
        seconds: duration of the request.
        detail: description of an error.
    """

    address: str
    attempt: int
    outcome: RequestOutcome
    status: int | None
    tokens_in: int | None
    tokens_out: int | None
    dollars: float
    seconds: float
    detail: str = ""


class Ledger:
    """A record of every request with its outcome and cost, in memory and in a JSON-lines file.

    Later runs append to the file, and totals are sums over its lines, so that they stay exact after a crash. A request
    that was cut off may have been billed without a report of its tokens; such requests are counted as ``untold``, and
    their cost is not estimated.

    Args:
        path: the file; None keeps the record in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.entries: list[LedgerEntry] = [] if path is None else read_ledger(path)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, entry: LedgerEntry) -> None:
        """Append one entry and write it to the file at once."""
        with self._lock:
            self.entries.append(entry)
            if self._path is not None:
                with self._path.open("ab") as file:
                    line = json.dumps({"at": round(time.time(), 3), **asdict(entry)}) + "\n"
                    # A process that was killed may have left an incomplete line: start a new line after it.
                    torn = file.tell() > 0 and _last_byte(self._path) != b"\n"
                    file.write(("\n" + line if torn else line).encode())

    def totals(self, first: int = 0, addresses: Collection[str] | None = None) -> dict[str, Any]:
        """Return the totals of requests, outcomes, tokens, dollars and seconds, and ``untold``: the number of requests
        without reported tokens.

        Args:
            first: index of the first entry that counts.
            addresses: the questions that count; all by default.
        """
        entries = [one for one in self.entries[first:] if addresses is None or one.address in addresses]
        outcomes: dict[str, int] = {}
        for entry in entries:
            outcomes[entry.outcome] = outcomes.get(entry.outcome, 0) + 1
        return {
            "requests": len(entries),
            "outcomes": outcomes,
            "tokens_in": sum(entry.tokens_in or 0 for entry in entries),
            "tokens_out": sum(entry.tokens_out or 0 for entry in entries),
            "untold": sum(entry.tokens_in is None for entry in entries),
            "dollars": round(sum(entry.dollars for entry in entries), 6),
            "seconds": round(sum(entry.seconds for entry in entries), 3),
        }


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Return the entries of a ledger file; incomplete lines are skipped."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            data = json.loads(line)
            data.pop("at")
            entries.append(LedgerEntry(**data))
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)

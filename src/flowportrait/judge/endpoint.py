"""Where a server is and how it may be used."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowportrait.api_keys import check_address, key_for
from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.judge.parts import Shows

KEYLESS = "none"
OWN_MODEL = "flowportrait-panel"
"""What ``flowportrait judge serve`` calls its measured panel."""


@dataclass(frozen=True)
class Endpoint:
    url: str = "http://127.0.0.1:8000/v1"
    """Base address of an OpenAI-compatible server: vLLM, SGLang, a hosted one, or ``flowportrait judge serve``."""
    model: str = ""
    key_env: str = ""
    """Environment variable that holds the key, FLOWPORTRAIT_…_KEY, with the host it is for in FLOWPORTRAIT_…_HOST;
    empty: OPENAI_API_KEY where ``url`` is OpenAI's, and no key elsewhere. See ``api_keys``."""
    shows: Shows = field(default_factory=Shows)
    temperature: float = 0.7
    max_tokens: int = 700
    top_logprobs: int = 10
    """Alternatives to ask for at every token; 0: the server has none."""
    timeout: float = 120.0
    """Seconds for one request."""
    attempts: int = 6
    """Requests per question while the server is away, busy or fails."""
    answers: int = 3
    """Answers per question while they are refused or not what was asked for."""
    first_wait: float = 0.5
    longest_wait: float = 30.0
    patience: float = 300.0
    """A server that asks for a longer pause than this many seconds is given up for now."""
    concurrency: int = 8
    per_minute: float = 0.0
    """Requests begun per minute, 0: no limit."""
    dollars_in: float = 0.0
    """Price of a million tokens read."""
    dollars_out: float = 0.0
    """Price of a million tokens written."""

    def __post_init__(self) -> None:
        at_least(self, attempts=1, answers=1, concurrency=1, timeout=0.01, max_tokens=16, top_logprobs=0, per_minute=0,
                 first_wait=0, longest_wait=0, patience=0, temperature=0, dollars_in=0, dollars_out=0)  # fmt: skip

    @property
    def who(self) -> str:
        """What changes its answers; where the server stands does not."""
        return f"{self.model} {self.temperature:g} {self.max_tokens} {self.top_logprobs} {self.shows}"

    def key(self) -> str:
        """The key, from the environment.

        Raises:
            BadInput: it is not meant for this server.
        """
        return key_for(self.url, self.key_env) or KEYLESS

    def checked(self) -> Endpoint:
        """Itself.

        Raises:
            BadInput: no model is named, the address is none or not safe, or the key is not meant for it.
        """
        if not self.model:
            raise BadInput("A judge by server needs the model's name: --set endpoint.model=NAME.")
        check_address(self.url, "endpoint.url")
        self.key()
        return self

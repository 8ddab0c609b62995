"""``openai:VOICE`` and ``openai:VOICE@MODEL``: any OpenAI-compatible speech server.

OPENAI_BASE_URL says where it is and OPENAI_API_KEY holds the key, as everywhere; servers of one's own mostly need none.
A key travels encrypted or not at all, and no redirect is followed.
"""

from __future__ import annotations

import io
import os
from functools import cached_property
from typing import Any

import numpy as np

from flowportrait.api_keys import OPENAI_ADDRESS, OPENAI_KEY, check_address, key_for
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.stream import iter_stream

NAME = "openai"
MODEL = "tts-1"
_TIMEOUT = 60.0
_ATTEMPTS = 3


class SpeechServer:
    """Reads whatever the server reads; one request a sentence."""

    def __init__(self, voice: str, model: str = MODEL) -> None:
        """Raises:
        BadInput: no address is set, it is none, or not safe.
        """
        address = os.environ.get(OPENAI_ADDRESS, "")
        if not address:
            raise BadInput(f"A voice by server needs its address: set {OPENAI_ADDRESS} to http://HOST:PORT/v1.")
        check_address(address, OPENAI_ADDRESS)
        key_for(address, OPENAI_KEY, OPENAI_ADDRESS)
        self.voice, self.model, self.address = voice, model, address

    @property
    def name(self) -> str:
        """See ``Voice``."""
        return f"{NAME}:{self.voice}@{self.model}"

    def reads(self, language: str) -> bool:
        """See ``Voice``: nothing is known about it, so it is trusted with everything."""
        return True

    def say(self, sentence: str) -> Sound:
        """See ``Voice``."""
        import openai

        try:
            reply = self._client.audio.speech.create(
                model=self.model, voice=self.voice, input=sentence, response_format="wav"
            )
        except openai.APIStatusError as error:
            raise BadInput(
                f"{self.address} did not speak ({error.status_code}: {str(error)[:120]}): check voice {self.voice!r}, "
                f"model {self.model!r} and {OPENAI_KEY}."
            ) from error
        except openai.APIError as error:
            raise BadInput(f"{self.address} cannot be reached ({error}): check {OPENAI_ADDRESS}.") from error
        if reply.content[:4] != b"RIFF":
            raise BadInput(f"{self.address} did not send wav but something else: use a server that can write wav.")
        pieces = list(iter_stream(io.BytesIO(reply.content)))
        if not pieces:
            return Sound(np.zeros((1, 0), np.float32), SAMPLE_RATE, "mono")
        # A voice is one person, whatever the server's channels.
        samples = np.concatenate([piece.samples for piece in pieces], axis=1).mean(0, keepdims=True)
        return Sound(samples, pieces[0].rate, "mono")

    @cached_property
    def _client(self) -> Any:
        import openai

        from flowportrait.web_client import make_client

        return openai.OpenAI(
            base_url=self.address, api_key=key_for(self.address, OPENAI_KEY) or "none", timeout=_TIMEOUT,
            max_retries=_ATTEMPTS - 1, http_client=make_client(_TIMEOUT),
        )  # fmt: skip

"""``openai:VOICE`` and ``openai:VOICE@MODEL``: any OpenAI-compatible speech server.

OPENAI_BASE_URL says where it is and OPENAI_API_KEY holds the key, as everywhere; servers of one's own mostly need none.
"""

from __future__ import annotations

import io
import os
from functools import cached_property
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.stream import read_stream

NAME = "openai"
MODEL = "tts-1"
ADDRESS, KEY = "OPENAI_BASE_URL", "OPENAI_API_KEY"
_TIMEOUT = 60.0
_ATTEMPTS = 3


class SpeechServer:
    """Reads whatever the server reads; one request a sentence."""

    def __init__(self, voice: str, model: str = MODEL) -> None:
        """Raises:
            BadInput: no address is set, or it is none.
        """
        address = os.environ.get(ADDRESS, "")
        if not address.startswith(("http://", "https://")):
            raise BadInput(f"A voice by server needs its address: set {ADDRESS} to http://HOST:PORT/v1.")
        self.voice, self.model, self.address = voice, model, address

    @property
    def name(self) -> str:
        """See ``Voice``."""
        return f"{NAME}:{self.voice}@{self.model}"

    def reads(self, language: str) -> bool:
        """See ``Voice``: nothing is known about it, so it is trusted with everything."""
        return True

    def say(self, sentence: str) -> np.ndarray:
        """See ``Voice``."""
        import openai

        try:
            reply = self._client.audio.speech.create(
                model=self.model, voice=self.voice, input=sentence, response_format="wav"
            )
        except openai.APIStatusError as error:
            raise BadInput(
                f"{self.address} did not speak ({error.status_code}: {str(error)[:120]}): check voice {self.voice!r}, "
                f"model {self.model!r} and {KEY}."
            ) from error
        except openai.APIError as error:
            raise BadInput(f"{self.address} cannot be reached ({error}): check {ADDRESS}.") from error
        if reply.content[:4] != b"RIFF":
            raise BadInput(f"{self.address} did not send wav but something else: use a server that can write wav.")
        return np.concatenate([np.zeros(0, np.float32), *read_stream(io.BytesIO(reply.content))])

    @cached_property
    def _client(self) -> Any:
        import openai

        return openai.OpenAI(
            base_url=self.address, api_key=os.environ.get(KEY, "none"), timeout=_TIMEOUT, max_retries=_ATTEMPTS - 1
        )

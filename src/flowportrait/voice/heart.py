"""``heart``: an English neural voice that lies complete in the package ``hibari-tts`` (Apache-2.0)."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound
from flowportrait.voice.scripts import LATIN

NAME = "heart"
_RATE = 24_000


class Heart:
    """Reads English, the same text always the same."""

    name = NAME

    def __init__(self) -> None:
        """Raises:
        BadInput: the package is not installed.
        """
        try:
            from hibari import Hibari
        except ImportError as error:
            raise BadInput(
                f"The voice {NAME!r} needs the package hibari-tts: pip install 'flowportrait[voice]'."
            ) from error
        self._speech: Any = Hibari(threads=1)

    def reads(self, language: str) -> bool:
        """See ``Voice``."""
        return language == LATIN

    def say(self, sentence: str) -> Sound:
        """See ``Voice``."""
        return Sound(np.asarray(self._speech(sentence, seed=0), np.float32).reshape(1, -1), _RATE, "mono")

"""``heart``: an English neural voice that lies complete in the package ``hibari-tts`` (Apache-2.0)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.signal import resample_poly

from flowportrait.errors import BadInput
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

    def say(self, sentence: str) -> np.ndarray:
        """See ``Voice``."""
        spoken = self._speech(sentence, seed=0)
        return np.asarray(resample_poly(spoken, 16_000, _RATE), np.float32) if len(spoken) else np.zeros(0, np.float32)

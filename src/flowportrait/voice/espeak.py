"""``espeak`` and ``espeak:LANGUAGE``: the formant voice of espeak-ng, about a hundred languages from one small package.

Nobody takes it for a person, but it reads what no other installed voice can. The library (GPL-3) and its data lie in
``espeakng-loader`` and are called through ctypes; it keeps one voice for the whole process, hence the lock.
"""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import Any

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound
from flowportrait.voice.scripts import LANGUAGE, LATIN

NAME = "espeak"
_SYNCHRONOUS, _UTF8, _WORDS_PER_MINUTE, _RATE = 2, 1, 160, 1
_Heard = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()


class Espeak:
    """Reads one language, by default whichever a sentence's script stands for."""

    def __init__(self, language: str = LATIN) -> None:
        """language: as espeak-ng names it (``de``, ``fr``, ``pt-br``, ``cmn``), with ``+f2`` and the like for others
        of its voices.

        Raises:
            BadInput: the package is not installed, or the language unknown.
        """
        self._library, self._rate = _library()
        self.language = language
        with _LOCK:
            self._choose()

    @property
    def name(self) -> str:
        """See ``Voice``."""
        return f"{NAME}:{self.language}"

    def reads(self, language: str) -> bool:
        """See ``Voice``: only Latin script is written by many languages, of which this voice has one."""
        own = self.language.split("+")[0].split("-")[0]
        return language == own or (language == LATIN and own not in LANGUAGE.values())

    def say(self, sentence: str) -> Sound:
        """See ``Voice``."""
        pieces: list[np.ndarray] = []

        @_Heard
        def heard(wave: Any, count: int, _: Any) -> int:
            if wave and count > 0:
                pieces.append(np.ctypeslib.as_array(wave, (count,)).copy())
            return 0

        text = sentence.encode() + b"\0"
        with _LOCK:
            self._choose()
            self._library.espeak_SetSynthCallback(heard)
            self._library.espeak_Synth(text, len(text), 0, 0, 0, _UTF8, None, None)
        wave = np.concatenate([np.zeros(0, np.int16), *pieces]).astype(np.float32) / 32768.0
        return Sound(wave[None], self._rate, "mono")

    def _choose(self) -> None:
        if self._library.espeak_SetVoiceByName(self.language.encode()) != 0:
            raise BadInput(f"espeak knows no language {self.language!r}: give one such as espeak:de or espeak:cmn.")
        self._library.espeak_SetParameter(_RATE, _WORDS_PER_MINUTE, 0)


@lru_cache(maxsize=1)
def _library() -> tuple[Any, int]:
    try:
        import espeakng_loader
    except ImportError as error:
        raise BadInput(
            f"The voice {NAME!r} needs the package espeakng-loader: pip install 'flowportrait[voice]'."
        ) from error
    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    if rate <= 0:
        raise BadInput("espeak-ng does not start: install the package espeakng-loader again.")
    return library, rate

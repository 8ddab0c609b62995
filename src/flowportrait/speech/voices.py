"""Voices by name: installed ones, espeak's, and those of a speech server.

    heart              English, neural, in a package (the default)
    espeak             about a hundred languages, mechanical;  espeak:de, espeak:fr, espeak:pt-br+f2, …
    openai:NAME        any OpenAI-compatible speech server; openai:NAME@MODEL
    NAME, NAME:REST    a voice that another package announces as an entry point ``flowportrait.voices``
    MODULE:NAME        an object, class or function of one's own

The parts of this file: the script that words are written in, what a voice is, the three kinds of voice, and
``load_voice``, which finds one.
"""

from __future__ import annotations

import ctypes
import io
import os
import threading
import unicodedata
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, Protocol

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.stream import iter_sound_stream
from flowportrait.plugins import is_reference, load_plugin, load_reference, plugin_names
from flowportrait.terminal import log
from flowportrait.web_client import OPENAI_ADDRESS_VARIABLE, OPENAI_KEY_VARIABLE, api_key_for, check_server_address

# --- Scripts ----------------------------------------------------------------------------
#
#     "Say Привет to 東京."  ─►  (en, "Say "), (ru, "Привет "), (en, "to "), (cmn, "東京.")
#
# Each part of a sentence is read by a voice that knows its script. A script stands for the most spoken language written
# in it, as espeak-ng names it; Latin script stands for English. Kana anywhere in a sentence makes its Han characters
# Japanese.

LATIN_LANGUAGE = "en"
JAPANESE = "ja"
SCRIPT_LANGUAGES = {
    "LATIN": LATIN_LANGUAGE, "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar", "HEBREW": "he", "CJK": "cmn",
    "HIRAGANA": JAPANESE,
    "KATAKANA": JAPANESE, "HANGUL": "ko", "DEVANAGARI": "hi", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te",
    "GEORGIAN": "ka", "ARMENIAN": "hy", "ETHIOPIC": "am", "THAI": "th",
}  # fmt: skip
"""Language by the first word of a character's Unicode name."""


def script_language(character: str) -> str | None:
    """Return the language that a character's script stands for; None for digits, marks, spaces and unknown scripts."""
    if not (character.isalpha() or unicodedata.category(character) == "Lo"):
        return None
    return SCRIPT_LANGUAGES.get(unicodedata.name(character, "").split(" ", 1)[0].split("-", 1)[0])


def split_by_script(sentence: str) -> list[tuple[str, str]]:
    """Return the parts of a sentence in one script, with their language.

    Characters that belong to no script join the words before them.
    """
    parts: list[tuple[str, str]] = []
    for character in sentence:
        language = script_language(character)
        if parts and (language is None or language == parts[-1][0]):
            parts[-1] = (parts[-1][0], parts[-1][1] + character)
        else:
            before = parts.pop()[1] if parts and not any(map(script_language, parts[0][1])) else ""
            parts.append((language or LATIN_LANGUAGE, before + character))
    if any(language == JAPANESE for language, _ in parts):
        parts = _merge_same_language(
            [(JAPANESE if language == "cmn" else language, words) for language, words in parts]
        )
    return parts


def _merge_same_language(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    result: list[tuple[str, str]] = []
    for language, words in parts:
        if result and result[-1][0] == language:
            result[-1] = (language, result[-1][1] + words)
        else:
            result.append((language, words))
    return result


# --- What a voice is --------------------------------------------------------------------


class Voice(Protocol):
    """A synthetic voice: one sentence in, its sound out."""

    @property
    def name(self) -> str:
        """The name by which ``load_voice`` finds the voice."""

    def supports(self, language: str) -> bool:
        """Return whether text in this language's script (``en``, ``ru``, ``cmn``, …) comes out as speech."""

    def synthesize(self, sentence: str) -> Sound:
        """Return the sound of a sentence, one channel at the voice's own rate.

        It has no samples where there is nothing to say.

        Raises:
            BadInput: the voice cannot be reached.
        """


# --- espeak -----------------------------------------------------------------------------
#
# The formant voice of espeak-ng sounds mechanical, but it reads about a hundred languages, which no other installed
# voice does. The library (GPL-3) and its data lie in ``espeakng-loader`` and are called through ctypes; it keeps one
# voice for the whole process, hence the lock.

ESPEAK = "espeak"
_SYNCHRONOUS, _UTF8, _WORDS_PER_MINUTE, _RATE = 2, 1, 160, 1
_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()


class EspeakVoice:
    """A voice of espeak-ng that reads one language, English by default."""

    def __init__(self, language: str = LATIN_LANGUAGE) -> None:
        """Load the library.

        Args:
            language: as espeak-ng names it (``de``, ``fr``, ``pt-br``, ``cmn``), with ``+f2`` and the like for others
                of its voices.

        Raises:
            BadInput: the package is not installed, or the language unknown.
        """
        self._library, self._rate = _library()
        self.language = language
        with _LOCK:
            self._select_language()

    @property
    def name(self) -> str:
        """The name by which ``load_voice`` finds the voice."""
        return f"{ESPEAK}:{self.language}"

    def supports(self, language: str) -> bool:
        """Return whether the voice reads a script; Latin script has many languages, of which it reads one."""
        spoken = self.language.split("+")[0].split("-")[0]
        return language == spoken or (language == LATIN_LANGUAGE and spoken not in SCRIPT_LANGUAGES.values())

    def synthesize(self, sentence: str) -> Sound:
        """Return the sound of a sentence; see ``Voice``."""
        pieces: list[np.ndarray] = []

        @_SynthCallback
        def collect(wave: Any, count: int, _: Any) -> int:
            if wave and count > 0:
                pieces.append(np.ctypeslib.as_array(wave, (count,)).copy())
            return 0

        text = sentence.encode() + b"\0"
        with _LOCK:
            self._select_language()
            self._library.espeak_SetSynthCallback(collect)
            self._library.espeak_Synth(text, len(text), 0, 0, 0, _UTF8, None, None)
        wave = np.concatenate([np.zeros(0, np.int16), *pieces]).astype(np.float32) / 32768.0
        return Sound(wave[None], self._rate, "mono")

    def _select_language(self) -> None:
        if self._library.espeak_SetVoiceByName(self.language.encode()) != 0:
            raise BadInput(f"espeak knows no language {self.language!r}: give one such as espeak:de or espeak:cmn.")
        self._library.espeak_SetParameter(_RATE, _WORDS_PER_MINUTE, 0)


@lru_cache(maxsize=1)
def _library() -> tuple[Any, int]:
    """Load espeak-ng once and return it with its sample rate in Hz."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise BadInput(
            f"The voice {ESPEAK!r} needs the package espeakng-loader: pip install 'flowportrait[voice]'."
        ) from error
    library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, str(espeakng_loader.get_data_path()).encode(), 0)
    if rate <= 0:
        raise BadInput("espeak-ng does not start: install the package espeakng-loader again.")
    return library, rate


# --- heart ------------------------------------------------------------------------------

HEART = "heart"
_HEART_RATE = 24_000


class HeartVoice:
    """The English neural voice of the package ``hibari-tts`` (Apache-2.0); the same text always sounds the same."""

    name = HEART

    def __init__(self) -> None:
        """Load the network.

        Raises:
            BadInput: the package is not installed.
        """
        try:
            from hibari import Hibari
        except ImportError as error:
            raise BadInput(
                f"The voice {HEART!r} needs the package hibari-tts: pip install 'flowportrait[voice]'."
            ) from error
        self._speech: Any = Hibari(threads=1)

    def supports(self, language: str) -> bool:
        """Return whether the language is English."""
        return language == LATIN_LANGUAGE

    def synthesize(self, sentence: str) -> Sound:
        """Return the sound of a sentence; see ``Voice``."""
        return Sound(np.asarray(self._speech(sentence, seed=0), np.float32).reshape(1, -1), _HEART_RATE, "mono")


# --- Speech servers ---------------------------------------------------------------------
#
# OPENAI_BASE_URL is the server's address and OPENAI_API_KEY holds the key, as everywhere; servers of one's own mostly
# need none. A key travels encrypted or not at all, and no redirect is followed.

SPEECH_SERVER = "openai"
SPEECH_MODEL = "tts-1"
_TIMEOUT = 60.0
_ATTEMPTS = 3


class SpeechServerVoice:
    """A voice of an OpenAI-compatible speech server; it sends one request per sentence."""

    def __init__(self, voice: str, model: str = SPEECH_MODEL) -> None:
        """Check the address and key in the environment.

        Raises:
            BadInput: no address is set, it is none, or not safe.
        """
        address = os.environ.get(OPENAI_ADDRESS_VARIABLE, "")
        if not address:
            raise BadInput(
                f"A voice by server needs its address: set {OPENAI_ADDRESS_VARIABLE} to http://HOST:PORT/v1."
            )
        check_server_address(address, OPENAI_ADDRESS_VARIABLE)
        api_key_for(address, OPENAI_KEY_VARIABLE, OPENAI_ADDRESS_VARIABLE)
        self.voice, self.model, self.address = voice, model, address

    @property
    def name(self) -> str:
        """The name by which ``load_voice`` finds the voice."""
        return f"{SPEECH_SERVER}:{self.voice}@{self.model}"

    def supports(self, language: str) -> bool:
        """Return True: nothing is known about the server, so every language is sent to it."""
        return True

    def synthesize(self, sentence: str) -> Sound:
        """Return the sound of a sentence; see ``Voice``."""
        import openai

        try:
            reply = self._client.audio.speech.create(
                model=self.model, voice=self.voice, input=sentence, response_format="wav"
            )
        except openai.APIStatusError as error:
            raise BadInput(
                f"{self.address} did not speak ({error.status_code}: {str(error)[:120]}): check voice {self.voice!r}, "
                f"model {self.model!r} and {OPENAI_KEY_VARIABLE}."
            ) from error
        except openai.APIError as error:
            raise BadInput(f"{self.address} cannot be reached ({error}): check {OPENAI_ADDRESS_VARIABLE}.") from error
        if reply.content[:4] != b"RIFF":
            raise BadInput(f"{self.address} did not send wav but something else: use a server that can write wav.")
        pieces = list(iter_sound_stream(io.BytesIO(reply.content)))
        if not pieces:
            return Sound(np.zeros((1, 0), np.float32), SAMPLE_RATE, "mono")
        # A voice has one channel, whatever the server sends.
        samples = np.concatenate([piece.samples for piece in pieces], axis=1).mean(0, keepdims=True)
        return Sound(samples, pieces[0].rate, "mono")

    @cached_property
    def _client(self) -> Any:
        import openai

        from flowportrait.web_client import make_http_client

        return openai.OpenAI(
            base_url=self.address, api_key=api_key_for(self.address, OPENAI_KEY_VARIABLE) or "none", timeout=_TIMEOUT,
            max_retries=_ATTEMPTS - 1, http_client=make_http_client(_TIMEOUT),
        )  # fmt: skip


# --- Voices by name ---------------------------------------------------------------------

DEFAULT_VOICE = HEART
"""Name of the voice that speaks if none is chosen."""


def load_voice(name: str = DEFAULT_VOICE) -> Voice:
    """Return the voice ``heart``, ``espeak[:LANGUAGE]``, ``openai:NAME[@MODEL]``, or one that was added.

    A voice of another package is an object, or a class or function that is called with what follows the colon.

    Raises:
        BadInput: no voice has this name, its package is not installed, or its server's address is not set.
    """
    kind, _, rest = name.partition(":")
    if name == HEART:
        return HeartVoice()
    if kind == ESPEAK:
        return EspeakVoice(rest) if rest else EspeakVoice()
    if kind == SPEECH_SERVER and rest:
        voice, _, model = rest.partition("@")
        return SpeechServerVoice(voice, model or SPEECH_MODEL)
    if kind in plugin_names("voices"):
        return _build_voice(load_plugin("voices", kind), rest)
    if is_reference(name):
        return _build_voice(load_reference(name), "")
    added = "".join(f", {other}" for other in plugin_names("voices"))
    raise BadInput(
        f"There is no voice {name!r}: give {HEART}, espeak, espeak:LANGUAGE, openai:NAME{added} or MODULE:NAME."
    )


def _build_voice(part: Any, rest: str) -> Voice:
    """Return the voice of another package: the object itself, or what the class or function returns."""
    if isinstance(part, type) or not (hasattr(part, "synthesize") or hasattr(part, "say")):
        part = part(rest) if rest else part()
    voice: Voice = part if hasattr(part, "synthesize") else _VoiceOfVersion1(part)
    return voice


class _VoiceOfVersion1:
    """A voice of another package with the methods of version 0.1: ``say`` and ``reads``."""

    def __init__(self, voice: Any) -> None:
        log(
            f"Warning: the voice {voice.name} has methods of version 0.1: rename 'say' to 'synthesize' and 'reads' to "
            "'supports'."
        )
        self.name: str = voice.name
        self.synthesize: Callable[[str], Sound] = voice.say
        self.supports: Callable[[str], bool] = voice.reads

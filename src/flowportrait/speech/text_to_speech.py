"""Text to speech, sentence by sentence, so that a portrait speaks the first words while the rest is still to come.

    text ─► sentences ─► parts of one script ─► voice ─► loudness ─► pieces, with a pause after each sentence

A part in a script that the voice does not read is read by espeak in the language that the script stands for.
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from math import gcd
from typing import TypeVar

import numpy as np
from scipy.signal import resample_poly

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound
from flowportrait.media.mel import normalize_loudness
from flowportrait.media.stream import resample_to_speech
from flowportrait.speech.voices import EspeakVoice, Voice, split_by_script

# --- Sentences --------------------------------------------------------------------------
#
# A sentence is passed on once the next one has begun. A full stop ends a sentence where white space and no small letter
# follow, and no title or initial comes before it. Sentences too long to wait for are cut after a comma.

MAX_SENTENCE_CHARACTERS = 240
"""Characters of the longest sentence that is spoken as a whole."""
_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[」』”]*|[؟۔।]+|\n+""")
_TITLE = re.compile(r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|St|Hr|Fr|Nr|No|vs|etc|e\.g|i\.e|z\.B|bzw|ca|usw)|\b[A-Z])\.$")
_UNAMBIGUOUS_ENDS = "。！？؟۔।"
_COMMA = re.compile(r"[,;:，、；،]\s*")


def split_into_sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the sentences of text that arrives in ``pieces``, however cut; none without a letter or digit."""
    buffer = ""
    for piece in pieces:
        buffer += piece
        while (end := _first_end(buffer)) is not None:
            yield from _split_at_commas(buffer[:end])
            buffer = buffer[end:]
    yield from _split_at_commas(buffer)


def _first_end(text: str) -> int | None:
    for match in _END.finditer(text):
        ending, following = match.group(), text[match.end() :]
        if "\n" in ending or (following and ending[0] in _UNAMBIGUOUS_ENDS):
            return match.end()
        following = following.lstrip()
        if following and not following[0].islower() and not _TITLE.search(text[: match.end()]):
            return match.end()
    return None


def _split_at_commas(sentence: str) -> Iterator[str]:
    """Yield a sentence in parts that are not too long."""
    sentence = " ".join(sentence.split())
    while len(sentence) > MAX_SENTENCE_CHARACTERS:
        commas = [match.end() for match in _COMMA.finditer(sentence, 0, MAX_SENTENCE_CHARACTERS)]
        cut = commas[-1] if commas else sentence.rfind(" ", 1, MAX_SENTENCE_CHARACTERS) + 1 or MAX_SENTENCE_CHARACTERS
        yield from _if_it_has_words(sentence[:cut])
        sentence = sentence[cut:]
    yield from _if_it_has_words(sentence)


def _if_it_has_words(sentence: str) -> Iterator[str]:
    """Yield the sentence if it has a letter or digit."""
    if any(map(str.isalnum, sentence)):
        yield sentence.strip()


# --- Speech -----------------------------------------------------------------------------

Piece = TypeVar("Piece")

PAUSE_BEFORE, PAUSE_BETWEEN, PAUSE_AFTER = 0.2, 0.3, 0.5
"""Seconds of silence before the first word, between sentences, and after the last one, while the face returns to its
neutral pose.
"""
_AHEAD = 2
"""Sentences that are spoken in advance."""
_EDGE_RMS = 1e-3


def synthesize_samples(pieces: Iterable[str], voice: Voice) -> Iterator[np.ndarray]:
    """Yield the sound of ``synthesize_sound`` as 16 kHz samples ``[N]`` float32.

    Raises:
        BadInput: see ``synthesize_sound``.
    """
    return resample_to_speech(synthesize_sound(pieces, voice))


def synthesize_sound(pieces: Iterable[str], voice: Voice) -> Iterator[Sound]:
    """Yield the spoken text, one piece per sentence, in one channel at the voice's own rate, 16 kHz at least.

    Raises:
        BadInput: the text has no words, or a voice fails.
    """
    rate = 0
    for sentence in split_into_sentences(pieces):
        parts = _speak_by_script(sentence, voice)
        if not any(len(wave) for wave, _ in parts):
            continue
        pause = PAUSE_BETWEEN if rate else PAUSE_BEFORE
        rate = rate or max(SAMPLE_RATE, parts[0][1])
        waves = [_resample(wave, wave_rate, rate) for wave, wave_rate in parts]
        yield Sound(np.concatenate([_silence(pause, rate), *waves])[None], rate, "mono")
    if not rate:
        raise BadInput("The text holds nothing to say: give words.")
    yield Sound(_silence(PAUSE_AFTER, rate)[None], rate, "mono")


def prefetch(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield the same pieces, computed by a thread up to two in advance, so that speech does not wait for drawing."""
    finished_pieces: queue.Queue[Piece | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Piece | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return finished_pieces.put(item, timeout=0.1)
            except queue.Full:
                continue

    def fill_queue() -> None:
        try:
            for piece in pieces:
                put(piece)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=fill_queue, daemon=True, name="voice").start()
    try:
        while (item := finished_pieces.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


def _speak_by_script(sentence: str, voice: Voice) -> list[tuple[np.ndarray, int]]:
    """Return the sound of a sentence, part by part of one script: samples ``[n]`` and their rate.

    They have the loudness of speech and no silence around them.
    """
    spoken = [
        (voice if voice.supports(language) else _espeak(language)).synthesize(words)
        for language, words in split_by_script(sentence)
    ]
    return [(_trim_silence(normalize_loudness(sound.samples[0], sound.rate // 100)), sound.rate) for sound in spoken]


def _resample(wave: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    if source_rate == target_rate or not len(wave):
        return wave
    common = gcd(source_rate, target_rate)
    return np.asarray(resample_poly(wave, target_rate // common, source_rate // common), np.float32)


@lru_cache(maxsize=16)
def _espeak(language: str) -> EspeakVoice:
    return EspeakVoice(language)


def _trim_silence(wave: np.ndarray) -> np.ndarray:
    """Return samples without the silence that voices put around what they say."""
    loud = np.flatnonzero(np.abs(wave) > _EDGE_RMS)
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]


def _silence(seconds: float, rate: int) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)

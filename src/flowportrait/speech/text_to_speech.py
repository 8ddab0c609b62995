"""Text to sound, sentence by sentence, while the rest is still to come.

Text to sentences, as it comes: a sentence is let go once the next one has begun.

A full stop ends a sentence where white space and no small letter follow, and no title or initial comes before it.
Sentences too long to wait for are cut after a comma.

Text to sound, sentence by sentence, so that a portrait speaks the first words while the rest is still to come.

    text ─► sentences ─► stretches of one script ─► voice ─► level ─► pieces, with a pause after each sentence

A stretch in a script that the voice does not read is read by espeak in the language the script stands for.
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
from flowportrait.media.mel import level
from flowportrait.media.stream import speech_of
from flowportrait.speech.voices import Espeak, Voice, runs

LONGEST = 240
"""Characters."""
_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[」』”]*|[؟۔।]+|\n+""")
_TITLE = re.compile(r"(?:\b(?:Dr|Mr|Mrs|Ms|Prof|St|Hr|Fr|Nr|No|vs|etc|e\.g|i\.e|z\.B|bzw|ca|usw)|\b[A-Z])\.$")
_CERTAIN = "。！？؟۔।"
_COMMA = re.compile(r"[,;:，、；،]\s*")


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the sentences of text that comes in ``pieces``, however cut; none without a letter or digit."""
    waiting = ""
    for piece in pieces:
        waiting += piece
        while (end := _first_end(waiting)) is not None:
            yield from _short(waiting[:end])
            waiting = waiting[end:]
    yield from _short(waiting)


def _first_end(text: str) -> int | None:
    for found in _END.finditer(text):
        mark, rest = found.group(), text[found.end() :]
        if "\n" in mark or (rest and mark[0] in _CERTAIN):
            return found.end()
        rest = rest.lstrip()
        if rest and not rest[0].islower() and not _TITLE.search(text[: found.end()]):
            return found.end()
    return None


def _short(sentence: str) -> Iterator[str]:
    sentence = " ".join(sentence.split())
    while len(sentence) > LONGEST:
        commas = [found.end() for found in _COMMA.finditer(sentence, 0, LONGEST)]
        cut = commas[-1] if commas else sentence.rfind(" ", 1, LONGEST) + 1 or LONGEST
        yield from _worded(sentence[:cut])
        sentence = sentence[cut:]
    yield from _worded(sentence)


def _worded(sentence: str) -> Iterator[str]:
    if any(map(str.isalnum, sentence)):
        yield sentence.strip()


Piece = TypeVar("Piece")

BEFORE, BETWEEN, AFTER = 0.2, 0.3, 0.5
"""Seconds of silence before the first word, between sentences, and after the last one, while the face comes to rest."""
_AHEAD = 2
"""Sentences spoken in advance."""
_EDGE_RMS = 1e-3


def speak(pieces: Iterable[str], voice: Voice) -> Iterator[np.ndarray]:
    """Yield 16 kHz samples ``[N]`` float32 of what ``speak_sound`` says.

    Raises:
        BadInput: see ``speak_sound``.
    """
    return speech_of(speak_sound(pieces, voice))


def speak_sound(pieces: Iterable[str], voice: Voice) -> Iterator[Sound]:
    """Yield the spoken text, one piece per sentence, in one channel at the voice's own rate, 16 kHz at least.

    Raises:
        BadInput: the text holds nothing to say, or a voice fails.
    """
    rate = 0
    for sentence in sentences(pieces):
        stretches = _stretches(sentence, voice)
        if not any(len(wave) for wave, _ in stretches):
            continue
        pause = BETWEEN if rate else BEFORE
        rate = rate or max(SAMPLE_RATE, stretches[0][1])
        waves = [_resampled(wave, own_rate, rate) for wave, own_rate in stretches]
        yield Sound(np.concatenate([_silence(pause, rate), *waves])[None], rate, "mono")
    if not rate:
        raise BadInput("The text holds nothing to say: give words.")
    yield Sound(_silence(AFTER, rate)[None], rate, "mono")


def ahead(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same pieces, made by a thread up to two in advance: who speaks does not wait for who draws."""
    waiting: queue.Queue[Piece | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Piece | BaseException | None) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for piece in pieces:
                put(piece)
                if stopped.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=make, daemon=True, name="voice").start()
    try:
        while (item := waiting.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()


def _stretches(sentence: str, voice: Voice) -> list[tuple[np.ndarray, int]]:
    """What a sentence sounds like, stretch by stretch of one script: samples ``[n]``, at speech's loudness and without
    the silence around them, and their rate."""
    spoken = [(voice if voice.reads(language) else _espeak(language)).say(words) for language, words in runs(sentence)]
    return [(_trimmed(level(one.samples[0], one.rate // 100)), one.rate) for one in spoken]


def _resampled(wave: np.ndarray, given: int, wanted: int) -> np.ndarray:
    if given == wanted or not len(wave):
        return wave
    common = gcd(given, wanted)
    return np.asarray(resample_poly(wave, wanted // common, given // common), np.float32)


@lru_cache(maxsize=16)
def _espeak(language: str) -> Espeak:
    return Espeak(language)


def _trimmed(wave: np.ndarray) -> np.ndarray:
    """Without the silence that voices put around what they say."""
    loud = np.flatnonzero(np.abs(wave) > _EDGE_RMS)
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]


def _silence(seconds: float, rate: int) -> np.ndarray:
    return np.zeros(round(seconds * rate), np.float32)

"""Text to sound, sentence by sentence, so that a portrait speaks the first words while the rest is still to come.

    text ─► sentences ─► stretches of one script ─► voice ─► level ─► 16 kHz pieces, with a pause after each sentence

A stretch in a script that the voice does not read is read by espeak in the language the script stands for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.mel import level
from flowportrait.voice.espeak import Espeak
from flowportrait.voice.interface import Voice
from flowportrait.voice.scripts import runs
from flowportrait.voice.sentences import sentences

BEFORE, BETWEEN, AFTER = 0.2, 0.3, 0.5
"""Seconds of silence before the first word, between sentences, and after the last one, while the face comes to rest."""
_AHEAD = 2
"""Sentences spoken in advance."""
_EDGE_RMS = 1e-3


def speak(pieces: Iterable[str], voice: Voice) -> Iterator[np.ndarray]:
    """Yield 16 kHz samples ``[N]`` float32, one array per sentence of the text that comes in ``pieces``.

    Raises:
        BadInput: the text holds nothing to say, or a voice fails.
    """
    spoken = 0
    for sentence in sentences(pieces):
        sound = _sentence(sentence, voice)
        if not len(sound):
            continue
        yield np.concatenate([_silence(BETWEEN if spoken else BEFORE), sound])
        spoken += 1
    if not spoken:
        raise BadInput("The text holds nothing to say: give words.")
    yield _silence(AFTER)


def ahead(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The same pieces, made by a thread up to two in advance: who speaks does not wait for who draws."""
    waiting: queue.Queue[np.ndarray | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: np.ndarray | BaseException | None) -> None:
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


def _sentence(sentence: str, voice: Voice) -> np.ndarray:
    stretches = [
        (voice if voice.reads(language) else _espeak(language)).say(words) for language, words in runs(sentence)
    ]
    return np.concatenate([np.zeros(0, np.float32), *(_trimmed(level(wave)) for wave in stretches)])


@lru_cache(maxsize=16)
def _espeak(language: str) -> Espeak:
    return Espeak(language)


def _trimmed(wave: np.ndarray) -> np.ndarray:
    """Without the silence that voices put around what they say."""
    loud = np.flatnonzero(np.abs(wave) > _EDGE_RMS)
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave[:0]


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)

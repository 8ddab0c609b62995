"""``flowportrait animate --text``: where the sound comes from, and a text as sound."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    import numpy as np


def check_sound(options: argparse.Namespace) -> None:
    """That there is one source of sound.

    Raises:
        BadInput: there is none, or more than one.
    """
    if options.audio is None and options.text is None and not options.stream and not options.speaker:
        raise BadInput("There is nothing to say: give --audio FILE, --text TEXT, or --stream with sound coming in.")
    if options.audio is not None and options.stream:
        raise BadInput("--stream reads sound from standard input: leave out --audio, or leave out --stream.")
    if options.voice is not None and options.text is None:
        raise BadInput("--voice reads a text: give --text too.")


def said(options: argparse.Namespace) -> Iterator[np.ndarray]:
    """The options' text as 16 kHz sound, a sentence at a time."""
    from flowportrait.voice.speaker import speak
    from flowportrait.voice.voices import DEFAULT, voice_named

    voice = voice_named(options.voice or DEFAULT)
    return speak(sys.stdin if options.text == "-" else [options.text], voice)

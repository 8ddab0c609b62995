"""``flowportrait animate --text``: where the sound comes from, a text as sound, and what is said of quiet speech."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from flowportrait.errors import BadInput
from flowportrait.terminal import say

if TYPE_CHECKING:
    import numpy as np

    from flowportrait.media.audio import Sound

_ALL_BUT_SILENT = 0.9
"""Share of a recording through which the lips rest."""


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


def synthesize_speech(options: argparse.Namespace) -> Iterator[Sound]:
    """The options' text as sound at the voice's own rate, a sentence at a time."""
    from flowportrait.voice.speaker import speak_sound
    from flowportrait.voice.voices import DEFAULT, voice_named

    voice = voice_named(options.voice or DEFAULT)
    return speak_sound(sys.stdin if options.text == "-" else [options.text], voice)


def warn_of_quiet_speech(speech: np.ndarray, name: str) -> None:
    """Say that ``speech`` ``[N]`` at 16 kHz, from ``name``, is silent, or that it is raised for the lips."""
    import numpy as np

    from flowportrait.generator.speech_stream import closed_lips_share
    from flowportrait.media.mel import QUIET_RMS

    rms = float(np.sqrt((speech.astype(np.float64) ** 2).mean()))
    if rms >= QUIET_RMS:
        return
    share = closed_lips_share(speech)
    if share > _ALL_BUT_SILENT:
        say(f"Warning: {name} is all but silent, and the lips rest for {share:.0%} of it: speech has to be louder.")
    else:
        decibels = 20 * np.log10(max(rms, 1e-9))
        say(f"Note: {name} is quiet, {-decibels:.0f} dB below full scale: it is raised for the lips; the video's sound "
            "is the given one.")  # fmt: skip

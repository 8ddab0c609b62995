"""What the page asks for, checked: a performance that can be drawn, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flowportrait.codec.controls import Controls
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.studio.limits import Limits
from flowportrait.voice.speaker import ahead, speak
from flowportrait.voice.voices import DEFAULT, voice_named

PIECE_SECONDS = 0.5
SIZE = 512


@dataclass(frozen=True)
class Wish:
    """A portrait, what it says, and how. Recorded speech has precedence over text."""

    photo: Path | None
    audio: Path | None = None
    text: str = ""
    voice: str = DEFAULT
    checkpoint: str = "rl"
    seed: int = 0
    controls: Controls = field(default_factory=Controls)
    guide: Mapping[str, float] = field(default_factory=dict)
    """Weights of sync, expression and motion that every chunk is bent by."""

    def portrait(self) -> Portrait:
        """The face.

        Raises:
            BadInput: there is no photo, it cannot be read, or shows no face.
        """
        if self.photo is None:
            raise BadInput("There is no photo yet: drop one on the left.")
        return Portrait.from_image(read_image(self.photo), SIZE, "the photo")

    def sound(self, limits: Limits, cut: Callable[[], None]) -> Iterator[np.ndarray]:
        """Speech at 16 kHz in pieces, as it is spoken; no more of it than allowed, and ``cut`` is called where there
        would be more.

        Raises:
            BadInput: nothing to say, too much of it, or no such voice.
        """
        if self.audio is not None:
            heard = read_audio(self.audio)
            pieces = iter(np.array_split(heard, max(1, round(len(heard) / PIECE_SECONDS / SAMPLE_RATE))))
        elif not self.text.strip():
            raise BadInput("There is nothing to say yet: type a text, or record or drop speech.")
        elif len(self.text) > limits.letters:
            raise BadInput(f"The text has {len(self.text)} letters, more than {limits.letters}: shorten it.")
        else:
            pieces = ahead(speak([self.text], voice_named(self.voice)))
        return _up_to(pieces, round(limits.seconds * SAMPLE_RATE), cut)


def _up_to(pieces: Iterator[np.ndarray], samples: int, cut: Callable[[], None]) -> Iterator[np.ndarray]:
    for piece in pieces:
        if samples:
            yield piece[:samples]
        if len(piece) > samples:
            cut()
            return
        samples -= len(piece)

"""What the page asks for, checked: a performance that can be drawn, or a sentence that says why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowportrait.codec.controls import Controls
from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound, read_sound
from flowportrait.media.portrait import Portrait
from flowportrait.studio.limits import Limits
from flowportrait.studio.photo import find_portrait
from flowportrait.voice.speaker import ahead, speak_sound
from flowportrait.voice.voices import DEFAULT, voice_named

PIECE_SECONDS = 0.5
LONGEST_UPLOAD = 3600.0
"""Seconds of recorded speech that are decoded; a few bytes could otherwise become gigabytes of silence."""


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
    face: int | None = None
    """Which face of the photo, counted from the left beginning at 1; None: the largest."""
    whole: bool = False
    """Whether the whole photo is shown, and not the face alone."""

    def portrait(self) -> Portrait:
        """The face.

        Raises:
            BadInput: there is no photo, it cannot be read, or shows no face.
        """
        if self.photo is None:
            raise BadInput("There is no photo yet: drop one on the left.")
        return find_portrait(self.photo, self.face, self.whole).portrait

    def sound(self, limits: Limits, cut: Callable[[], None]) -> Iterator[Sound]:
        """Speech in pieces as it is spoken, with its own rate and channels; no more of it than allowed, and ``cut`` is
        called where there would be more.

        Raises:
            BadInput: nothing to say, too much of it, or no such voice.
        """
        if self.audio is not None:
            pieces = _pieces(read_sound(self.audio, longest=LONGEST_UPLOAD))
        elif not self.text.strip():
            raise BadInput("There is nothing to say yet: type a text, or record or drop speech.")
        elif len(self.text) > limits.letters:
            raise BadInput(f"The text has {len(self.text)} letters, more than {limits.letters}: shorten it.")
        else:
            pieces = ahead(speak_sound([self.text], voice_named(self.voice)))
        return _up_to(pieces, limits.seconds, cut)


def _pieces(sound: Sound) -> Iterator[Sound]:
    length = max(1, round(PIECE_SECONDS * sound.rate))
    for start in range(0, sound.samples.shape[1], length):
        yield Sound(sound.samples[:, start : start + length], sound.rate, sound.layout)


def _up_to(pieces: Iterator[Sound], seconds: float, cut: Callable[[], None]) -> Iterator[Sound]:
    taken = 0
    for piece in pieces:
        left, length = round(seconds * piece.rate) - taken, piece.samples.shape[1]
        if left > 0:
            yield Sound(piece.samples[:, :left], piece.rate, piece.layout)
        if length > left:
            cut()
            return
        taken += length

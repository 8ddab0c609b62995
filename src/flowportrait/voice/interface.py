"""What a voice is: one sentence in, its sound out."""

from __future__ import annotations

from typing import Protocol

from flowportrait.media.audio import Sound


class Voice(Protocol):
    """Somebody who can speak."""

    @property
    def name(self) -> str:
        """As ``voice_named`` knows it."""

    def reads(self, language: str) -> bool:
        """Whether text in this language's script (``en``, ``ru``, ``cmn``, …) comes out as speech."""

    def say(self, sentence: str) -> Sound:
        """One channel at the voice's own rate; no samples for a sentence without anything to say.

        Raises:
            BadInput: the voice cannot be reached.
        """

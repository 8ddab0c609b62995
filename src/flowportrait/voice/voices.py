"""Voices by name.

heart              English, neural, in a package (the default)
espeak             about a hundred languages, mechanical;  espeak:de, espeak:fr, espeak:pt-br+f2, …
openai:NAME        a speech server; openai:NAME@MODEL
"""

from __future__ import annotations

from flowportrait.errors import BadInput
from flowportrait.voice import espeak, heart, server
from flowportrait.voice.interface import Voice

DEFAULT = heart.NAME


def voice_named(name: str = DEFAULT) -> Voice:
    """The voice ``heart``, ``espeak[:LANGUAGE]`` or ``openai:NAME[@MODEL]``.

    Raises:
        BadInput: there is none of this name, its package is not installed, or its server's address is not set.
    """
    kind, _, rest = name.partition(":")
    if name == heart.NAME:
        return heart.Heart()
    if kind == espeak.NAME:
        return espeak.Espeak(rest) if rest else espeak.Espeak()
    if kind == server.NAME and rest:
        voice, _, model = rest.partition("@")
        return server.SpeechServer(voice, model or server.MODEL)
    raise BadInput(f"There is no voice {name!r}: give {heart.NAME}, espeak, espeak:LANGUAGE or openai:NAME.")

"""Voices by name.

heart              English, neural, in a package (the default)
espeak             about a hundred languages, mechanical;  espeak:de, espeak:fr, espeak:pt-br+f2, …
openai:NAME        a speech server; openai:NAME@MODEL
NAME, NAME:REST    a voice that another package announces as an entry point ``flowportrait.voices``
MODULE:NAME        a voice of one's own
"""

from __future__ import annotations

from typing import Any

from flowportrait.errors import BadInput
from flowportrait.plugins import is_reference, load_plugin, load_reference, plugin_names
from flowportrait.voice import espeak, heart, server
from flowportrait.voice.interface import Voice

DEFAULT = heart.NAME


def voice_named(name: str = DEFAULT) -> Voice:
    """Return the voice ``heart``, ``espeak[:LANGUAGE]``, ``openai:NAME[@MODEL]``, or one that was added.

    A voice of another package is an object, or a class or function that is called with what follows the colon.

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
    if kind in plugin_names("voices"):
        return _made(load_plugin("voices", kind), rest)
    if is_reference(name):
        return _made(load_reference(name), "")
    added = "".join(f", {other}" for other in plugin_names("voices"))
    raise BadInput(
        f"There is no voice {name!r}: give {heart.NAME}, espeak, espeak:LANGUAGE, openai:NAME{added} or MODULE:NAME."
    )


def _made(found: Any, rest: str) -> Voice:
    if not isinstance(found, type) and hasattr(found, "say"):
        voice: Voice = found
    else:
        voice = found(rest) if rest else found()
    return voice

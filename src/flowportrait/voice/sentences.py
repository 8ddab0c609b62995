"""Text to sentences, as it comes: a sentence is let go once the next one has begun.

A full stop ends a sentence where white space and no small letter follow, and no title or initial comes before it.
Sentences too long to wait for are cut after a comma.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

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

"""Which script words are written in, so that each can be read by a voice that knows it.

    "Say Привет to 東京."  ─►  (en, "Say "), (ru, "Привет "), (en, "to "), (cmn, "東京.")

A script stands for the most spoken language written in it, as espeak-ng names it; Latin script stands for English.
Kana anywhere in a sentence makes its Han characters Japanese.
"""

from __future__ import annotations

import unicodedata

LATIN = "en"
JAPANESE = "ja"
LANGUAGE = {
    "LATIN": LATIN, "CYRILLIC": "ru", "GREEK": "el", "ARABIC": "ar", "HEBREW": "he", "CJK": "cmn", "HIRAGANA": JAPANESE,
    "KATAKANA": JAPANESE, "HANGUL": "ko", "DEVANAGARI": "hi", "BENGALI": "bn", "TAMIL": "ta", "TELUGU": "te",
    "GEORGIAN": "ka", "ARMENIAN": "hy", "ETHIOPIC": "am", "THAI": "th",
}  # fmt: skip
"""First word of a character's Unicode name, and a language."""


def language_of(character: str) -> str | None:
    """Language that a character's script stands for; None for digits, marks, spaces and unknown scripts."""
    if not (character.isalpha() or unicodedata.category(character) == "Lo"):
        return None
    return LANGUAGE.get(unicodedata.name(character, "").split(" ", 1)[0].split("-", 1)[0])


def runs(sentence: str) -> list[tuple[str, str]]:
    """Stretches of one script with their language; what belongs to no script goes with the words before it."""
    found: list[tuple[str, str]] = []
    for character in sentence:
        language = language_of(character)
        if found and (language is None or language == found[-1][0]):
            found[-1] = (found[-1][0], found[-1][1] + character)
        else:
            before = found.pop()[1] if found and not any(map(language_of, found[0][1])) else ""
            found.append((language or LATIN, before + character))
    if any(language == JAPANESE for language, _ in found):
        found = _joined([(JAPANESE if language == "cmn" else language, words) for language, words in found])
    return found


def _joined(parts: list[tuple[str, str]]) -> list[tuple[str, str]]:
    result: list[tuple[str, str]] = []
    for language, words in parts:
        if result and result[-1][0] == language:
            result[-1] = (language, result[-1][1] + words)
        else:
            result.append((language, words))
    return result

"""The voices that a page may offer to everybody who opens it: those that are installed here, by name."""

from __future__ import annotations

import os
from importlib.util import find_spec

from flowportrait.errors import BadInput
from flowportrait.plugins import plugin_names

LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt-br": "Portuguese (Brazil)",
    "nl": "Dutch", "pl": "Polish", "ru": "Russian", "uk": "Ukrainian", "tr": "Turkish", "ar": "Arabic",
    "fa": "Persian", "hi": "Hindi", "cmn": "Chinese (Mandarin)", "ja": "Japanese", "ko": "Korean", "sw": "Swahili",
}  # fmt: skip
"""Languages of espeak that pages offer."""


def installed_voices() -> dict[str, str]:
    """Return the names of the voices that can speak here, and what pages call them."""
    voices: dict[str, str] = {}
    if find_spec("hibari"):
        voices["heart"] = "English, natural"
    if find_spec("espeakng_loader"):
        voices |= {f"espeak:{code}": f"{language}, synthetic" for code, language in LANGUAGES.items()}
    if os.environ.get("OPENAI_BASE_URL"):
        voices["openai:alloy"] = "Alloy, of your speech server"
    return voices | {name: name for name in plugin_names("voices")}


def check_offered_voice(name: str) -> None:
    """Check that a page may ask for a voice; it cannot name modules to import.

    Raises:
        BadInput: the voice is none of those that pages offer.
    """
    kind = name.partition(":")[0]
    if name and name not in installed_voices() and kind not in ("espeak", "openai", *plugin_names("voices")):
        raise BadInput(f"There is no voice {name!r} here: choose one of the list.")

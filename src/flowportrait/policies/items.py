"""Prompts of a generator: ``prompts.jsonl``, a line each, or a folder of portraits and speech.

{"text": "a woman speaks to the camera", "image": "a.png", "audio": "b.wav", "id": "optional"}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.policies.interface import Item
from flowportrait.prompts import read_prompts

KEYS = frozenset({"id", "text", "image", "audio"})
SPEAKS = "A person speaks to the camera."
"""What is said of a folder's pairs, which come without a text."""


def read_items(path: Path) -> list[Item]:
    """Items of a ``.jsonl`` file, of a folder with a ``prompts.jsonl``, or every portrait with every recording.

    Raises:
        BadInput: nothing there, or a line that cannot be used, with its number.
    """
    listing = path / "prompts.jsonl" if path.is_dir() else path
    if not listing.is_file():
        return [Item(prompt.id, SPEAKS, prompt.image, prompt.audio) for prompt in read_prompts(path)]
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{listing} cannot be read as text ({error}): write one JSON object per line.") from error
    items = [
        _item(line, f"{listing} line {number}", number, listing.parent)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not items:
        raise BadInput(f"{listing} lists no prompts: write one JSON object per line.")
    ids = [item.id for item in items]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise BadInput(f"{listing} has two prompts with the id {twice!r}: give each its own.")
    return items


def _item(line: str, where: str, number: int, folder: Path) -> Item:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where} is not JSON ({error.msg}): write one object per line.") from error
    if not isinstance(record, dict) or not record or not set(record) <= KEYS:
        raise BadInput(f"{where} may have the keys text, image, audio and id, and no others.")
    if not all(isinstance(value, str) and value for value in record.values()):
        raise BadInput(f"{where} has a value that is not a text: write text, paths and id in quotes.")
    paths = {key: folder / record[key] for key in ("image", "audio") if key in record}
    for path in paths.values():
        if not path.is_file():
            raise BadInput(f"{where} names {path}, which does not exist.")
    return Item(record.get("id", f"{number:05d}"), record.get("text", ""), paths.get("image"), paths.get("audio"))

"""``pairs.jsonl``: one format for every preference, whoever stated it.

    {"prompt": "0007", "a": "media/3f9c.mp4", "b": "media/81d0.mp4",
     "aspects": {"sync": "A", "expression": "tie", "motion": "B", "overall": "A"},
     "points": {"a": {"sync": 4}, "b": {"sync": 2.5}},
     "source": "study", "annotator": "p003", "speaker": "s12", "portrait": "p4", "split": "train"}

``a`` and ``b`` are paths, relative to the folder of the file. Only ``prompt``, ``a``, ``b``, ``aspects`` and
``source`` must be there; an aspect that nobody judged is left out. Points are optional and lie in 1 … 5.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

from flowportrait.errors import BadInput
from flowportrait.written import complete

Aspect = Literal["sync", "expression", "motion", "overall"]
Label = Literal["A", "B", "tie"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
LABELS: tuple[Label, ...] = get_args(Label)
LOWEST, HIGHEST = 1.0, 5.0
OPPOSITE: Mapping[Label, Label] = {"A": "B", "B": "A", "tie": "tie"}

OTHER: Mapping[Literal["a", "b"], Literal["a", "b"]] = {"a": "b", "b": "a"}

LARGEST_FILE, LONGEST_LINE = 256 * 2**20, 2**20
"""Bytes of a pairs.jsonl, and characters of a line: some hundred thousand pairs of a few hundred characters."""

_REQUIRED = ("prompt", "a", "b", "aspects", "source")
_TEXT = ("prompt", "a", "b", "source", "annotator", "speaker", "portrait", "split")


@dataclass(frozen=True)
class Pair:
    """Two clips of one prompt and what somebody thought of them.

    points: ``{"a": {aspect: 1 … 5}, "b": …}`` where they were given. Empty text means unknown.
    """

    prompt: str
    a: str
    b: str
    aspects: Mapping[Aspect, Label]
    source: str
    annotator: str = ""
    speaker: str = ""
    portrait: str = ""
    split: str = ""
    points: Mapping[Literal["a", "b"], Mapping[Aspect, float]] = field(default_factory=dict)

    def swapped(self) -> Pair:
        """The same statement with the clips in the other order."""
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        values |= {"a": self.b, "b": self.a, "aspects": {k: OPPOSITE[v] for k, v in self.aspects.items()}}
        values["points"] = {OTHER[side]: given for side, given in self.points.items()}
        return Pair(**values)

    def in_order(self) -> Pair:
        """With the clips in alphabetical order, so that the same two clips always stand alike."""
        return self if self.a <= self.b else self.swapped()


def write_pairs(path: Path, pairs: Iterable[Pair]) -> int:
    """Write, whole or not at all; returns how many. Unknown fields are left out."""
    count = 0
    try:
        with complete(path) as partial, partial.open("w", encoding="utf-8") as file:
            for pair in pairs:
                file.write(json.dumps({k: v for k, v in asdict(pair).items() if v}, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise BadInput(f"Cannot write {path} ({error.strerror}): choose another --output.") from error
    return count


def read_pairs(path: Path) -> list[Pair]:
    """Read and check every line; one is in memory at a time.

    Raises:
        BadInput: no such file, no pairs, a line that is not a pair, or too much of either; the sentence names the line
            and the field.
    """
    pairs = []
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise BadInput(f"{path} is larger than {LARGEST_FILE // 2**20} MiB: split it.")
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            number = 0
            while text := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(text) > LONGEST_LINE:
                    raise BadInput(f"{path}, line {number}: longer than {LONGEST_LINE} characters.")
                if text.strip():
                    pairs.append(_parse(text, path, number))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as preference pairs: give a pairs.jsonl file.") from error
    if not pairs:
        raise BadInput(f"{path} holds no pairs: give a pairs.jsonl file with one pair a line.")
    return pairs


def read_together(paths: Sequence[Path]) -> tuple[list[Pair], Path]:
    """The pairs of several files, and the folder that their clip paths start from then: absolute paths where the files
    lie in different folders.

    Raises:
        BadInput: as ``read_pairs``.
    """
    folders = {path.parent for path in paths}
    if len(folders) == 1:
        return [pair for path in paths for pair in read_pairs(path)], folders.pop()
    pairs = [
        replace(pair, a=str(path.parent.resolve() / pair.a), b=str(path.parent.resolve() / pair.b))
        for path in paths
        for pair in read_pairs(path)
    ]
    return pairs, Path("/")


def _parse(text: str, path: Path, number: int) -> Pair:
    def wrong(what: str) -> NoReturn:
        raise BadInput(f"{path}, line {number}: {what}.")

    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        wrong("this is not JSON (is the line cut off?)")
    if not isinstance(data, dict):
        wrong("a pair is an object with keys")
    known = [part.name for part in fields(Pair)]
    if unknown := sorted(set(data) - set(known)):
        wrong(f"unknown field {_short(unknown[0])}; the fields are {', '.join(known)}")
    if missing := [key for key in _REQUIRED if not data.get(key)]:
        wrong(f"'{missing[0]}' is missing")
    for key in _TEXT:
        if not isinstance(value := data.get(key, ""), str):
            wrong(f"'{key}' must be text, not {_short(value)}")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            wrong(f"'{key}' holds half a character, which no file can")
    if not isinstance(data["aspects"], dict):
        wrong('\'aspects\' must be an object such as {"sync": "A"}')
    for aspect, label in data["aspects"].items():
        if aspect not in ASPECTS:
            wrong(f"unknown aspect {_short(aspect)}; the aspects are {', '.join(ASPECTS)}")
        if label not in LABELS:
            wrong(f"{aspect} is {_short(label)}, but must be one of {', '.join(LABELS)}")
    if problem := _wrong_points(data.get("points", {})):
        wrong(problem)
    return Pair(**data)


def _wrong_points(points: Any) -> str:
    if not isinstance(points, dict) or set(points) - {"a", "b"}:
        return "'points' must be an object with the keys a and b"
    for side, given in points.items():
        if not isinstance(given, dict):
            return f'the points of {side} must be an object such as {{"sync": 4}}'
        for aspect, value in given.items():
            if aspect not in ASPECTS:
                return f"unknown aspect {_short(aspect)} in the points of {side}; the aspects are {', '.join(ASPECTS)}"
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not LOWEST <= value <= HIGHEST:
                return f"{side} has {_short(value)} points for {aspect}, but points lie between 1 and 5"
    return ""


def _short(value: Any) -> str:
    """A value as it appears in a sentence, which may go to a terminal of any encoding."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

"""The dataset of preference pairs and its file format.

    {"version": 2, "prompt": "0007", "first": "media/3f9c.mp4", "second": "media/81d0.mp4",
     "labels": {"sync": "first", "expression": "tie", "motion": "second", "overall": "first"},
     "points": {"first": {"sync": 4}, "second": {"sync": 2.5}}, "margins": {"sync": 1.5},
     "source": "study", "annotator": "p003", "speaker": "s12", "portrait": "p4", "split": "train"}

``pairs.jsonl`` holds one such object per line. ``first`` and ``second`` are paths, relative to the folder of the file,
of videos or of motion files with their sound beside them. Only ``prompt``, both paths, ``labels`` and ``source`` are
required; an aspect that nobody judged is left out.

Lines without a version come from FlowPortrait 0.1, which called the clips ``a`` and ``b``, the labels ``aspects``, and
their values ``A``, ``B`` and ``tie``. They can be read too, also in one file with newer lines.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args

from flowportrait.errors import BadInput
from flowportrait.files import atomic_write

Aspect = Literal["sync", "expression", "motion", "overall"]
"""Aspect in which two clips are compared."""
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
DIMENSIONS: tuple[Aspect, ...] = ("sync", "expression", "motion")
"""Aspects that reward models score, in the order of their outputs."""
JUDGE_ASPECTS: Mapping[str, Aspect] = {
    "lip_sync": "sync", "sync": "sync", "expressiveness": "expression", "expression": "expression",
    "motion": "motion", "overall": "overall",
}  # fmt: skip
"""Names that judges use for aspects, and the aspects."""
Side = Literal["first", "second"]
SIDES: tuple[Side, Side] = ("first", "second")
MIN_POINTS, MAX_POINTS = 1.0, 5.0
"""Smallest and largest points of one clip."""
NOT_JUDGED = math.nan
"""Value in tensors of labels for an aspect that nobody judged."""
PAIRS_FILE = "pairs.jsonl"
PAIRS_VERSION = 2
MAX_PAIRS_BYTES, MAX_LINE_CHARACTERS = 256 * 2**20, 2**20
"""Largest size of a pairs.jsonl in bytes (some hundred thousand pairs), and of a line in characters."""


class Label(float, Enum):
    """Which of two clips is better, as the preference for the first one from 0 to 1.

    Files hold the name in lower case, tensors the number.
    """

    FIRST = 1.0
    TIE = 0.5
    SECOND = 0.0

    @property
    def opposite(self) -> Label:
        """The label of the same preference with the clips swapped."""
        return Label(1.0 - self.value)

    @classmethod
    def from_margin(cls, margin: float, band: float) -> Label:
        """Return the label for a first clip that is better by ``margin``; a margin within ``band`` is a tie."""
        if abs(margin) <= band:
            return cls.TIE
        return cls.FIRST if margin > 0 else cls.SECOND


LABELS: tuple[Label, ...] = (Label.FIRST, Label.SECOND, Label.TIE)
VERSION_1_LABELS: Mapping[str, Label] = {"A": Label.FIRST, "B": Label.SECOND, "tie": Label.TIE}
"""Labels as FlowPortrait 0.1 wrote them, in pairs and in the answers of a study."""

Clip = TypeVar("Clip")
Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class PreferencePair(Generic[Clip]):
    """Two clips of one prompt, and which of them is preferred.

    Attributes:
        prompt: name of the prompt from which both clips were made.
        first: the first clip: a path relative to the dataset's folder, or the loaded clip.
        second: the second clip, of the same form.
        labels: label by aspect; aspects that nobody judged are missing.
        source: origin of the preference: ``study``, ``judge``, ``corruption``, …
        annotator: the annotator within the source; empty text means unknown, here and below.
        speaker: speaker of the clips; pairs with the same speaker belong in one split.
        portrait: portrait of the clips; pairs with the same portrait belong in one split.
        split: ``train``, or the name of another split.
        points: points from 1 to 5 by clip and aspect, if clips were also rated individually.
        margins: how much better the first clip is by aspect, in the annotator's own unit, if known.
    """

    prompt: str
    first: Clip
    second: Clip
    labels: Mapping[Aspect, Label]
    source: str
    annotator: str = ""
    speaker: str = ""
    portrait: str = ""
    split: str = ""
    points: Mapping[Side, Mapping[Aspect, float]] = field(default_factory=dict)
    margins: Mapping[Aspect, float] = field(default_factory=dict)

    @property
    def clips(self) -> tuple[Clip, Clip]:
        """Both clips in order."""
        return self.first, self.second

    def swapped(self) -> PreferencePair[Clip]:
        """Return the same preference with the clips in the other order."""
        other: dict[Side, Side] = {"first": "second", "second": "first"}
        return replace(
            self,
            first=self.second,
            second=self.first,
            labels={aspect: label.opposite for aspect, label in self.labels.items()},
            points={other[side]: points for side, points in self.points.items()},
            margins={aspect: -margin for aspect, margin in self.margins.items()},
        )

    def label_values(self, aspects: Sequence[Aspect] = DIMENSIONS) -> list[float]:
        """Return the labels as numbers in the order of ``aspects``, ``NOT_JUDGED`` where there is none."""
        return [float(self.labels.get(aspect, NOT_JUDGED)) for aspect in aspects]

    def point_values(self, aspects: Sequence[Aspect] = DIMENSIONS) -> list[list[float]]:
        """Return the points of both clips in the order of ``aspects``, NaN where there are none."""
        return [[self.points.get(side, {}).get(aspect, math.nan) for aspect in aspects] for side in SIDES]

    def with_clips(self, clips: Mapping[Clip, Loaded]) -> PreferencePair[Loaded]:
        """Return the same preference with the clips replaced by what was loaded from them."""
        values = {name: value for name, value in vars(self).items() if name not in SIDES}
        return PreferencePair(first=clips[self.first], second=clips[self.second], **values)


@dataclass(frozen=True)
class PreferenceDataset(Sequence[PreferencePair[str]]):
    """Preference pairs, and the folder to which their paths are relative.

    dataset = PreferenceDataset.load(Path("study"))           # reads study/pairs.jsonl
    clips, unreadable = dataset.read_clips(clip_features)
    pairs = [pair.with_clips(clips) for pair in dataset.with_clips_in(clips)]
    """

    pairs: tuple[PreferencePair[str], ...]
    folder: Path
    files: tuple[Path, ...] = ()
    """Files from which the pairs were read."""

    @classmethod
    def load(cls, *paths: Path) -> PreferenceDataset:
        """Read and check files of pairs, or the ``pairs.jsonl`` of folders, of any version.

        Paths in the pairs become absolute if the files lie in different folders.

        Raises:
            BadInput: a file is missing, empty or too large, or a line is not a valid pair; the message names the line
                and the field.
        """
        files = tuple(path / PAIRS_FILE if path.is_dir() else path for path in paths)
        folders = {path.parent for path in files}
        if len(folders) == 1:
            return cls(tuple(pair for path in files for pair in read_pairs(path)), folders.pop(), files)
        pairs = []
        for path in files:
            start = path.parent.resolve()
            for pair in read_pairs(path):
                pairs.append(replace(pair, first=str(start / pair.first), second=str(start / pair.second)))
        return cls(tuple(pairs), Path("/"), files)

    def save(self, path: Path) -> int:
        """Write the pairs to a file atomically and return their number. Paths are written as they are.

        Raises:
            BadInput: the file cannot be written.
        """
        return write_pairs(path, self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PreferencePair[str]]:
        return iter(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        return replace(self, pairs=self.pairs[index]) if isinstance(index, slice) else self.pairs[index]

    @property
    def clip_names(self) -> list[str]:
        """The names of all clips, each once, in the order of the pairs."""
        return list(dict.fromkeys(name for pair in self.pairs for name in pair.clips))

    def read_clips(
        self, read: Callable[[Path], Loaded], names: Iterable[str] | None = None
    ) -> tuple[dict[str, Loaded], dict[str, str]]:
        """Read every clip once.

        Args:
            read: function that reads the clip of a path, and raises ``BadInput`` if it cannot be used.
            names: the clips to read; all of ``clip_names`` by default.

        Returns:
            The clips by name, and the reason for each clip that cannot be used.
        """
        loaded: dict[str, Loaded] = {}
        unreadable: dict[str, str] = {}
        for name in self.clip_names if names is None else names:
            try:
                loaded[name] = read(self.folder / name)
            except BadInput as error:
                unreadable[name] = str(error)
        return loaded, unreadable

    def filter_by_clips(self, names: AbstractSet[str] | Mapping[str, Any]) -> PreferenceDataset:
        """Return the pairs with both clips among ``names``."""
        return replace(self, pairs=tuple(pair for pair in self.pairs if all(name in names for name in pair.clips)))


def write_pairs(path: Path, pairs: Iterable[PreferencePair[str]]) -> int:
    """Write pairs to a file atomically and return their number; empty fields are left out.

    Raises:
        BadInput: the file cannot be written.
    """
    count = 0
    try:
        with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
            for pair in pairs:
                labels = {aspect: label.name.lower() for aspect, label in pair.labels.items()}
                values = {"version": PAIRS_VERSION, **vars(pair), "labels": labels}
                file.write(json.dumps({k: v for k, v in values.items() if v}, ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise BadInput(f"Cannot write {path} ({error.strerror}): choose another --output.") from error
    return count


def read_pairs(path: Path) -> list[PreferencePair[str]]:
    """Read and check every line of a file of any version, one line at a time.

    Raises:
        BadInput: as in ``PreferenceDataset.load``.
    """
    pairs = []
    try:
        if path.stat().st_size > MAX_PAIRS_BYTES:
            raise BadInput(f"{path} is larger than {MAX_PAIRS_BYTES // 2**20} MiB: split it.")
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            number = 0
            while text := file.readline(MAX_LINE_CHARACTERS + 1):
                number += 1
                if len(text) > MAX_LINE_CHARACTERS:
                    raise BadInput(f"{path}, line {number}: longer than {MAX_LINE_CHARACTERS} characters.")
                if text.strip():
                    pairs.append(_parse(text, path, number))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as preference pairs: give a pairs.jsonl file.") from error
    if not pairs:
        raise BadInput(f"{path} holds no pairs: give a pairs.jsonl file with one pair a line.")
    return pairs


@dataclass(frozen=True)
class _Format:
    """The keys of a format version: those of the two clips, of the labels, and the values of labels."""

    sides: tuple[str, str]
    labels: str
    values: Mapping[str, Label]
    optional: tuple[str, ...] = ()

    @property
    def keys(self) -> list[str]:
        """All keys that a line may have."""
        text = ("source", "annotator", "speaker", "portrait", "split")
        return ["prompt", *self.sides, self.labels, *text, "points", *self.optional]


_FORMATS = {
    1: _Format(("a", "b"), "aspects", VERSION_1_LABELS),
    2: _Format(SIDES, "labels", {label.name.lower(): label for label in LABELS}, ("margins", "version")),
}


def _parse(text: str, path: Path, number: int) -> PreferencePair[str]:
    def refuse(what: str) -> NoReturn:
        raise BadInput(f"{path}, line {number}: {what}.")

    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        refuse("this is not JSON (is the line cut off?)")
    if not isinstance(data, dict):
        refuse("a pair is an object with keys")
    version = data.get("version", 1)
    if type(version) is not int or version not in _FORMATS:
        refuse(f"version {_short(version)} is not known; this FlowPortrait reads versions 1 to {PAIRS_VERSION}")
    form = _FORMATS[version]
    if unknown := sorted(set(data) - set(form.keys)):
        refuse(f"unknown field {_short(unknown[0])}; the fields are {', '.join(form.keys)}")
    if missing := [key for key in ("prompt", *form.sides, form.labels, "source") if not data.get(key)]:
        refuse(f"'{missing[0]}' is missing")
    for key in ("prompt", *form.sides, "source", "annotator", "speaker", "portrait", "split"):
        if not isinstance(value := data.get(key, ""), str):
            refuse(f"'{key}' must be text, not {_short(value)}")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            refuse(f"'{key}' holds half a character, which no file can")
    labels, margins, points = data.pop(form.labels), data.pop("margins", {}), data.pop("points", {})
    if not isinstance(labels, dict):
        refuse(f'\'{form.labels}\' must be an object such as {{"sync": "{next(iter(form.values))}"}}')
    for aspect, label in labels.items():
        if aspect not in ASPECTS:
            refuse(f"unknown aspect {_short(aspect)}; the aspects are {', '.join(ASPECTS)}")
        if not isinstance(label, str) or label not in form.values:
            refuse(f"{aspect} is {_short(label)}, but must be one of {', '.join(form.values)}")
    if not isinstance(points, dict) or set(points) - set(form.sides):
        refuse(f"'points' must be an object with the keys {' and '.join(form.sides)}")
    for side, numbers in points.items():
        wrong = side + " has {value} points for {aspect}, but points lie between 1 and 5"
        if problem := _numbers_problem(numbers, f"the points of {side}", MIN_POINTS, MAX_POINTS, wrong):
            refuse(problem)
    wrong = "the margin of {aspect} is {value}, which is no finite number"
    if problem := _numbers_problem(margins, "the margins", -sys.float_info.max, sys.float_info.max, wrong):
        refuse(problem)
    sides: dict[str, Side] = dict(zip(form.sides, SIDES, strict=True))
    data.pop("version", None)
    return PreferencePair(
        **{str(sides.get(key, key)): value for key, value in data.items()},
        labels={aspect: form.values[label] for aspect, label in labels.items()},
        points={sides[side]: numbers for side, numbers in points.items()},
        margins=margins,
    )


def _numbers_problem(numbers: Any, what: str, lowest: float, highest: float, sentence: str) -> str | None:
    """Return what is wrong with numbers by aspect, or None; ``sentence`` is the text for a number out of range."""
    if not isinstance(numbers, dict):
        return f'{what} must be an object such as {{"sync": 4}}'
    for aspect, value in numbers.items():
        if aspect not in ASPECTS:
            return f"unknown aspect {_short(aspect)} in {what}; the aspects are {', '.join(ASPECTS)}"
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not lowest <= value <= highest:
            return sentence.format(value=_short(value), aspect=aspect)
    return None


def _short(value: Any) -> str:
    """Return a value as short text that a terminal of any encoding can show."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

"""What is graded, and by which words.

5 like a filmed person · 4 a flaw that one must look for · 3 a flaw that one sees · 2 disturbing · 1 broken
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.files import write_json

Aspect = str
"""What one specialist grades: of clips one of ``ASPECTS``; stills have their own."""
ASPECTS: tuple[Aspect, ...] = ("lip_sync", "expressiveness", "motion")
LOWEST, HIGHEST = 1, 5

WEIGHTS: dict[Aspect, float] = {"lip_sync": 0.7, "expressiveness": 0.15, "motion": 0.15}
"""Shares of the aspects in one overall score; those of the default composite's judge group."""

SYSTEM = (
    "You are one of several specialists who grade videos of talking faces for research. You judge one aspect only, by "
    "the rubric, from what you are shown, and say nothing that you cannot see or hear in it."
)
INSTRUCTION = (
    "First look and listen, then answer with one JSON object and nothing else: "
    '{"rationale": "two or three sentences", "errors": [{"start": seconds, "end": seconds, "what": "a few words"}], '
    '"score": 1 to 5}. Leave the list empty if there are no errors.'
)
REVIEWER_SYSTEM = (
    "You are the reviewer of a panel that grades videos of talking faces. Specialists were asked independently, "
    "several times each, and disagree. Weigh what they say against what you are shown and settle each disputed aspect. "
    "Your score lies between the lowest and the highest of the specialists'."
)


@dataclass(frozen=True)
class Criterion:
    """What one specialist goes by, for clips and for stills.

    Args:
        question: what is asked.
        shown: what the specialist gets to see.
        ignore: what belongs to other aspects.
        grades: the meaning of 1 … 5.
        catalogue: what else is explained.
    """

    question: str
    shown: str
    ignore: str
    grades: tuple[str, str, str, str, str]
    catalogue: str = ""

    def text(self, rules: Sequence[str] = ()) -> str:
        """Return the criterion as a specialist reads it, with the rules that a library adds."""
        grades = "\n".join(f"{grade} = {text}" for grade, text in enumerate(self.grades, LOWEST))
        learned = "\nRules:\n" + "\n".join(f"- {rule}" for rule in rules) if rules else ""
        catalogue = f"{self.catalogue}\n" if self.catalogue else ""
        return (
            f"Question: {self.question}\nYou are shown {self.shown}.\nLeave aside {self.ignore}.\n"
            f"{catalogue}Grades:\n{grades}{learned}"
        )


RUBRIC: dict[Aspect, Criterion] = {
    "lip_sync": Criterion(
        "Does this mouth say what is heard, at the moment it is heard?",
        "close-ups of the mouth at 25 frames a second with their times, the waveform of the same moments under each "
        "row, and the sound",
        "picture quality, identity, eyes, and how much emotion there is",
        (
            "The mouth has nothing to do with the speech: still, or moving to other words.",
            "Lips and sound are clearly apart for most of the clip, or most closures of p, b and m are missing.",
            "The rhythm fits, but several sounds have the wrong mouth shape or come visibly early or late.",
            "In time and mostly well shaped; one or two moments are soft or slightly off.",
            "Every closure, opening and rounding comes with its sound, and the mouth rests when nothing is said.",
        ),
    ),
    "expressiveness": Criterion(
        "Is this the face of somebody who means what is said?",
        "the whole face several times a second with the times, and the sound",
        "whether lips fit the sound, and picture quality",
        (
            "A photo with a moving mouth, or a grimace without sense.",
            "Hardly anything but the mouth moves: fixed eyes, no blink, stiff brows and head.",
            "Some life in eyes, brows or head, but sparse, repetitive or not fitting the voice.",
            "Lively and mostly fitting; a little flat or a little exaggerated in places.",
            "Blinks, glances, brows, cheeks and head move as those of a person speaking in this tone.",
        ),
    ),
    "motion": Criterion(
        "Is the movement smooth and the picture steady from frame to frame?",
        "neighbouring frames and the amplified difference between them, where most changes",
        "whether lips fit the sound, and how much emotion there is; a still picture is steady but not a good video",
        (
            "The picture jumps, trembles, flickers or falls apart nearly all the time.",
            "Frequent jumps, freezes, trembling or flicker that spoil watching.",
            "Some visible trembling, freezing, flicker or pumping of colour, or a border that shows.",
            "Smooth, with a brief unsteadiness that only an attentive viewer notices.",
            "Movement starts, runs and stops as filmed movement does; nothing flickers, swims or jumps.",
        ),
    ),
}


def rubric_text(aspect: Aspect, rules: Sequence[str] = ()) -> str:
    """Return the criterion of an aspect of clips as a specialist reads it."""
    return RUBRIC[aspect].text(rules)


def rubric_version() -> str:
    """Return 12 hexadecimal digits that change with any word of the rubric: part of every cached reply's address."""
    text = "\n\n".join(rubric_text(aspect) for aspect in ASPECTS)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Library:
    """What a rubric has learned: entries by aspect.

    For a model in the chair these are rules that its specialists read below the grades; for the measured panel the
    names of the experts whose lowest grade counts. ``learning`` says how entries come and go.
    """

    entries: Mapping[Aspect, tuple[str, ...]] = field(default_factory=dict)

    def of(self, aspect: Aspect) -> tuple[str, ...]:
        """Return the entries of an aspect."""
        return self.entries.get(aspect, ())

    def with_entry(self, aspect: Aspect, entry: str, replaces: int | None = None) -> Library:
        """Return a library with one entry more, or with another in the place of number ``replaces``."""
        own = list(self.of(aspect))
        if replaces is None:
            own.append(entry)
        else:
            own[replaces] = entry
        return Library({**self.entries, aspect: tuple(own)})

    def without(self, aspect: Aspect, entry: str) -> Library:
        """Return a library with one entry less."""
        return Library({**self.entries, aspect: tuple(other for other in self.of(aspect) if other != entry)})

    @property
    def digest(self) -> str:
        """Changes with any entry; empty without any."""
        if not any(self.entries.values()):
            return ""
        return hashlib.sha256(json.dumps({a: self.of(a) for a in ASPECTS}).encode()).hexdigest()[:12]

    def save(self, path: Path, report: Mapping[str, Any]) -> None:
        """Write the entries, with a report of how they came to be."""
        write_json(path, {"entries": dict(self.entries), "report": report})

    @classmethod
    def load(cls, path: Path) -> Library:
        """Read what ``save`` wrote.

        Raises:
            BadInput: missing, or no library.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
            found = {aspect: tuple(map(str, own)) for aspect, own in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} is no rubric library ({error}): make one with judge learn.") from error
        if unknown := set(found) - set(ASPECTS):
            raise BadInput(f"{path} is no rubric library: {', '.join(sorted(unknown))} is no aspect.")
        return cls(found)

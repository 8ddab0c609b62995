"""This module holds the rubric of clips: aspects, the texts that a model is asked with, and the rules it has learned.

    5 like a filmed person · 4 a flaw found by looking for it · 3 an obvious flaw · 2 disturbing · 1 broken

``RUBRIC`` and the other texts are part of every question: a changed word invalidates cached replies and certificates.
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
"""The name of what one specialist grades: one of ``CLIP_ASPECTS`` for clips; stills have their own aspects."""
CLIP_ASPECTS: tuple[Aspect, ...] = ("lip_sync", "expressiveness", "motion")
LOWEST_GRADE, HIGHEST_GRADE = 1, 5

ASPECT_WEIGHTS: dict[Aspect, float] = {"lip_sync": 0.7, "expressiveness": 0.15, "motion": 0.15}
"""The weights of the aspects in the overall score; they equal those of the default composite reward's judge group."""

SPECIALIST_SYSTEM = (
    "You are one of several specialists who grade videos of talking faces for research. You judge one aspect only, by "
    "the rubric, from what you are shown, and say nothing that you cannot see or hear in it."
)
GRADE_INSTRUCTION = (
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
    """The rubric of one aspect, for clips and for stills.

    Args:
        question: the question that the grade answers.
        material: a description of what the specialist sees and hears.
        ignore: what belongs to other aspects.
        grades: the meanings of the grades 1 … 5.
        catalogue: further explanations, such as a list of artefacts.
    """

    question: str
    material: str
    ignore: str
    grades: tuple[str, str, str, str, str]
    catalogue: str = ""

    def text(self, rules: Sequence[str] = ()) -> str:
        """Return the rubric as a specialist reads it, followed by the ``rules`` of a library."""
        grades = "\n".join(f"{grade} = {text}" for grade, text in enumerate(self.grades, LOWEST_GRADE))
        learned = "\nRules:\n" + "\n".join(f"- {rule}" for rule in rules) if rules else ""
        catalogue = f"{self.catalogue}\n" if self.catalogue else ""
        return (
            f"Question: {self.question}\nYou are shown {self.material}.\nLeave aside {self.ignore}.\n"
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
    """Return the rubric of an aspect of clips as a specialist reads it, followed by ``rules``."""
    return RUBRIC[aspect].text(rules)


def rubric_version() -> str:
    """Return 12 hexadecimal digits that change with any word of the rubric; every cached reply's address has them."""
    text = "\n\n".join(rubric_text(aspect) for aspect in CLIP_ASPECTS)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class RubricLibrary:
    """The entries by aspect that a rubric has learned from preferences.

    For a model the entries are rules that specialists read below the grades. For the measured panel they are the names
    of the experts that are asked. ``judges.learning`` adds and removes entries.
    """

    entries: Mapping[Aspect, tuple[str, ...]] = field(default_factory=dict)

    def of(self, aspect: Aspect) -> tuple[str, ...]:
        """Return the entries of an aspect."""
        return self.entries.get(aspect, ())

    def with_entry(self, aspect: Aspect, entry: str, replaces: int | None = None) -> RubricLibrary:
        """Return a library with one more entry, or with entry number ``replaces`` of the aspect replaced."""
        entries = list(self.of(aspect))
        if replaces is None:
            entries.append(entry)
        else:
            entries[replaces] = entry
        return RubricLibrary({**self.entries, aspect: tuple(entries)})

    def without(self, aspect: Aspect, entry: str) -> RubricLibrary:
        """Return a library without this entry of the aspect."""
        return RubricLibrary({**self.entries, aspect: tuple(other for other in self.of(aspect) if other != entry)})

    @property
    def digest(self) -> str:
        """A hash of 12 hexadecimal digits over all entries; an empty string if there are none."""
        if not any(self.entries.values()):
            return ""
        return hashlib.sha256(json.dumps({a: self.of(a) for a in CLIP_ASPECTS}).encode()).hexdigest()[:12]

    def save(self, path: Path, report: Mapping[str, Any]) -> None:
        """Write the entries to a JSON file, with the report of how they were learned."""
        write_json(path, {"entries": dict(self.entries), "report": report})

    @classmethod
    def load(cls, path: Path) -> RubricLibrary:
        """Read what ``save`` wrote.

        Raises:
            BadInput: the file is missing or is not a library.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
            found = {aspect: tuple(map(str, texts)) for aspect, texts in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} is no rubric library ({error}): make one with judge learn.") from error
        if unknown := set(found) - set(CLIP_ASPECTS):
            raise BadInput(f"{path} is no rubric library: {', '.join(sorted(unknown))} is no aspect.")
        return cls(found)

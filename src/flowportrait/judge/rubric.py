"""What a grade means, in words: the one text that specialists, reviewer and human raters go by.

5 like a filmed person · 4 a flaw that one must look for · 3 a flaw that one sees · 2 disturbing · 1 broken
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Aspect = Literal["lip_sync", "expressiveness", "motion"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
LOWEST, HIGHEST = 1, 5

WEIGHTS: dict[Aspect, float] = {"lip_sync": 0.7, "expressiveness": 0.15, "motion": 0.15}
"""Shares of the aspects in one overall score; those of the default composite's judge group."""


@dataclass(frozen=True)
class Criterion:
    """question: what is asked; shown: what the specialist gets to see; ignore: what belongs to others; grades:
    the meaning of 1 … 5."""

    question: str
    shown: str
    ignore: str
    grades: tuple[str, str, str, str, str]


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
    """The criterion as a specialist reads it, with what a library adds to it."""
    criterion = RUBRIC[aspect]
    grades = "\n".join(f"{grade} = {text}" for grade, text in enumerate(criterion.grades, LOWEST))
    learned = "\nRules:\n" + "\n".join(f"- {rule}" for rule in rules) if rules else ""
    return (
        f"Question: {criterion.question}\nYou are shown {criterion.shown}.\nLeave aside {criterion.ignore}.\n"
        f"Grades:\n{grades}{learned}"
    )


def rubric_version() -> str:
    """12 hexadecimal digits that change with any word of the rubric: part of every cached answer's address."""
    text = "\n\n".join(rubric_text(aspect) for aspect in ASPECTS)
    return hashlib.sha256(text.encode()).hexdigest()[:12]

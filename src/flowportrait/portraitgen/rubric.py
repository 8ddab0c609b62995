"""What a judge is asked about a still portrait, in words: OmniReward looks at the picture, AI-Portrait at the person.

    omni_reward   composition, light, colour, detail and the prompt, each 1 to 5, and a score for all of it
    ai_portrait   the person, artefact by artefact, and a score for how real they look

The two names and what each is for are PortraitGen's (2606.26930); its wording is not public, this one is ours.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from flowportrait.portraitgen.artefacts import CATALOGUE

RubricName = Literal["omni_reward", "ai_portrait"]
RUBRICS: tuple[RubricName, ...] = get_args(RubricName)

DIMENSIONS: dict[str, str] = {
    "composition": "framing, balance, and a background that serves the person",
    "light": "exposure and light that could fall so",
    "colour": "colours that belong together and to the scene; strong is not better",
    "detail": "resolution and focus where one looks",
    "prompt": "everything that the prompt asks for, and nothing that contradicts it",
}
"""Of OmniReward."""


@dataclass(frozen=True)
class StillRubric:
    """question: what is asked; ignore: what belongs to the other rubric; grades: the meaning of 1 … 5; answer: the form
    of a reply; catalogue: what else is explained."""

    question: str
    ignore: str
    grades: tuple[str, str, str, str, str]
    answer: str
    catalogue: str


TEXT: dict[RubricName, StillRubric] = {
    "omni_reward": StillRubric(
        "How good is this picture, as a photograph of what the prompt asks for?",
        "whether skin, eyes, teeth, hands and anatomy are right",
        (
            "Unusable: nothing of what was asked for, or no picture one would look at.",
            "Poor: badly framed, lit or coloured, or much of the prompt is missing.",
            "Fair: an ordinary snapshot, or one clear part of the prompt is missing.",
            "Good: a careful photograph; something small could be better.",
            "Excellent: a photographer would put it into a portfolio, and the prompt is met in full.",
        ),
        '{"rationale": "two or three sentences", "dimensions": {'
        + ", ".join(f'"{name}": 1 to 5' for name in DIMENSIONS)
        + '}, "score": 1 to 5}',
        "Dimensions:\n" + "\n".join(f"{name}: {words}" for name, words in DIMENSIONS.items()),
    ),
    "ai_portrait": StillRubric(
        "Is this a real person in front of a camera? Go through the list and report every artefact that you can see.",
        "composition, taste and the prompt; a real person badly photographed is still real",
        (
            "Nobody would take this for a person: broken anatomy or a mask instead of a face.",
            "Plainly generated: one grave artefact, or several that one cannot overlook.",
            "Doubtful: an artefact that one sees at once, or the airbrushed shine of generated skin.",
            "Nearly real: one must look closely to find something wrong.",
            "Real: pores, asymmetries and light as a camera finds them; nothing to report.",
        ),
        '{"rationale": "two or three sentences", "artefacts": [{"type": "one of the list", "where": "a few words", '
        '"severity": 1 slight, 2 clear or 3 grave}], "score": 1 to 5}. Leave the list empty if there are none',
        "Artefacts:\n" + "\n".join(f"{a.name} ({a.part}): {a.words}" for a in CATALOGUE),
    ),
}

SYSTEM = (
    "You examine generated portraits for research. You judge by the rubric alone, from what you are shown, and report "
    "nothing that you cannot point at."
)


def still_question(rubric: RubricName, prompt: str) -> str:
    """The words put to a judge about a picture made for ``prompt`` (empty: none is known)."""
    text = TEXT[rubric]
    grades = "\n".join(f"{grade} = {words}" for grade, words in enumerate(text.grades, 1))
    asked = f"The prompt was: {prompt}\n" if prompt else "The prompt is not known: leave it out of account.\n"
    return (
        f"Aspect: {rubric}\n{asked if rubric == 'omni_reward' else ''}Question: {text.question}\n"
        f"You are shown the whole picture, and close-ups of face, eyes and mouth where there is a face.\n"
        f"Leave aside {text.ignore}.\n{text.catalogue}\nGrades:\n{grades}\n"
        f"Answer with one JSON object and nothing else: {text.answer}."
    )


def rubrics_version() -> str:
    """12 hexadecimal digits that change with any word."""
    return hashlib.sha256("\n\n".join(still_question(name, "") for name in RUBRICS).encode()).hexdigest()[:12]

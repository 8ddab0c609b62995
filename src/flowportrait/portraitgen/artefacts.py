"""What goes wrong with generated portraits, type by type: in words for a judge, and as a detector where it can be
measured.

    skin · eyes · teeth · hands · biology · picture
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flowportrait.portraitgen import detectors
from flowportrait.portraitgen.detectors import Detector

Part = Literal["skin", "eyes", "teeth", "hands", "biology", "picture"]


@dataclass(frozen=True)
class Artefact:
    """name; part: of the person or the picture; words: what a judge looks for; detector: what measures it, if
    anything does."""

    name: str
    part: Part
    words: str
    detector: Detector | None = None


CATALOGUE: tuple[Artefact, ...] = (
    Artefact("over_saturated", "skin", "skin or lips more colourful than any light makes them", detectors.saturation),
    Artefact("skin_hue", "skin", "skin of a colour that skin does not have under any plausible light", detectors.hue),
    Artefact("over_smooth", "skin", "skin without pores, lines or down, as if airbrushed", detectors.smoothness),
    Artefact("oily", "skin", "waxy or oily shine where real skin is matt", detectors.oil),
    Artefact("closed_eyes", "eyes", "eyes closed or half closed though not asked for", detectors.closed),
    Artefact("unequal_eyes", "eyes", "one eye open wider, larger or placed higher than the other", detectors.unequal),
    Artefact("crossed_gaze", "eyes", "eyes that look in different directions", detectors.crossed),
    Artefact("iris", "eyes", "pupils that are not round, irises or reflections that differ between the eyes"),
    Artefact("glowing_teeth", "teeth", "teeth brighter than everything around them", detectors.teeth),
    Artefact("merged_teeth", "teeth", "teeth without borders, too many, too small, or in more than one row"),
    Artefact("hands", "hands", "a wrong number of fingers, joints that bend the wrong way, hands grown into things"),
    Artefact("proportions", "biology", "a face whose parts do not go together in size or place"),
    Artefact("ears_and_hair", "biology", "ears that differ, are missing or melt into hair; hair growing from nowhere"),
    Artefact("anatomy", "biology", "neck, shoulders or limbs that cannot be so; jewellery or glasses grown into skin"),
    Artefact("missing_face", "biology", "no face where the prompt asks for a portrait"),
    Artefact("second_face", "biology", "another face where one person was asked for"),
    Artefact("blur", "picture", "eyes and mouth out of focus", detectors.softness),
    Artefact("blocks", "picture", "squares from compression", detectors.blocks),
)
"""``proportions``, ``missing_face`` and ``second_face`` are measured by ``limits``, which knows real faces and sees the
whole look."""

BY_NAME = {artefact.name: artefact for artefact in CATALOGUE}

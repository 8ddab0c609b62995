"""The sanity set for judges of stills: real portraits with damage of known cause and strength, which each rubric must
put in order.

    omni_reward   blur · faded · dark
    ai_portrait   chroma · airbrush · tint · shine · blur · jpeg

Passed as with clips (``judge.sanity``), but a grade may fall by less: one artefact is one of a long list.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.judge.sanity import CaseResult, Certificate, outcome
from flowportrait.media.image import read_image
from flowportrait.portraitgen import damage
from flowportrait.portraitgen.damage import STRENGTHS, Damage, enlarged
from flowportrait.portraitgen.rubric import RubricName
from flowportrait.portraitgen.verdict import Still, StillJudge, StillVerdict
from flowportrait.terminal import progress

CASES: dict[RubricName, tuple[Damage, ...]] = {
    "omni_reward": (damage.blur, damage.faded, damage.dark),
    "ai_portrait": (
        damage.chroma, damage.airbrush, damage.tint, damage.shine, damage.blur, damage.jpeg,
    ),
}  # fmt: skip
LEAST_DROP = 0.2
FEWEST = 6
LARGEST = 2.0
"""Times 115 px to which larger faces are brought, that filters stay affordable."""
HOW = "flowportrait judge check --stills"


def read_stills(paths: Sequence[Path]) -> list[Still]:
    """The pictures of files and folders.

    Raises:
        BadInput: one cannot be read.
    """
    found = [own for path in paths for own in (sorted(path.glob("[!.]*")) if path.is_dir() else [path])]
    return [Still(read_image(path), name=path.stem) for path in found]


def examine_stills(judge: StillJudge, stills: Sequence[Still]) -> Certificate:
    """Show ``judge`` every case on every portrait.

    Raises:
        BadInput: too few portraits, or one without a face that is large enough.
    """
    if len(stills) < FEWEST:
        raise BadInput(f"{len(stills)} portraits are too few to examine a judge: give at least {FEWEST} real ones.")
    whole = [_fitted(still) for still in stills]
    results = []
    for rubric, act in progress([(rubric, act) for rubric, acts in CASES.items() for act in acts], None, "judging"):
        levels = [whole, *([_spoilt(still, act, strength) for still in whole] for strength in STRENGTHS)]
        results.append(_case(rubric, act, [judge.judge(level, rubric) for level in levels]))
    return Certificate(judge.name, judge.kind, judge.fingerprint, tuple(results))


def _case(rubric: RubricName, act: Damage, levels: Sequence[Sequence[StillVerdict]]) -> CaseResult:
    scores = [[np.nan if verdict.score is None else verdict.score for verdict in level] for level in levels]
    return outcome(rubric, act.__name__, "of its full strength", (0.0, *STRENGTHS), np.array(scores), {}, LEAST_DROP)


def _fitted(still: Still) -> Still:
    """The still with its face no larger than ``LARGEST``."""
    scale = LARGEST / enlarged(_clear(still).look)
    if scale >= 1:
        return still
    small = cv2.resize(still.picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return _clear(Still(small, still.prompt, still.name))


def _clear(still: Still) -> Still:
    if still.look.landmarks is None or still.look.scale is None:
        raise BadInput(f"{still.name} cannot be in the sanity set: give portraits of one clearly visible person.")
    return still


def _spoilt(still: Still, act: Damage, strength: float) -> Still:
    return Still(act(still.look, strength), still.prompt, f"{still.name} {act.__name__} {strength:g}")

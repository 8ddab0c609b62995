"""This module holds the judges and the rewards of still portraits.

    omni_reward   composition, light, colour, detail and the prompt, each 1 to 5, and a score of the whole picture
    ai_portrait   artefacts of the person, and a score for how real the person looks

The two names and their purposes are those of PortraitGen (2606.26930); its prompts are not public, the texts here were
written for this package. As rewards they are measured, unless settings name a judge on a server or in this process:

    Composite.of({"omni_reward": 0.5, "ai_portrait": 0.5})
    --set rewards.other.ai_portrait=0.3 rewards.options.judge=FILE

The parts in order: the rubric and the judge, the pictures that a specialist is shown, the sanity set, and the rewards.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from flowportrait.corruption import Corruption, corruptions
from flowportrait.corruption.stills import relative_face_size
from flowportrait.errors import BadInput
from flowportrait.judges.answers import AnswerFormat, Grade, still_grade_format
from flowportrait.judges.build import (
    BUILT_IN_JUDGES,
    JudgeSettings,
    build_judge_backend,
    build_plugin_judge,
    certificate_folders,
    read_judge_settings,
)
from flowportrait.judges.clips import JudgedClip, JudgeInput
from flowportrait.judges.panel import Panel, PanelSettings, Subject
from flowportrait.judges.questions import ReplyCache
from flowportrait.judges.rubric import Aspect, Criterion
from flowportrait.judges.sanity import KnownDamage, SanitySet, require_certificate
from flowportrait.judges.verdicts import AspectVerdict, ItemJudge
from flowportrait.media.image import read_image
from flowportrait.portraitgen.detectors import ARTEFACTS, ARTEFACTS_BY_NAME
from flowportrait.portraitgen.measured_judge import MeasuredStills
from flowportrait.portraitgen.still_flow import STILL_ASPECTS, Still, StillBatch, find_batch_faces
from flowportrait.rendering.face_regions import EYES, OUTER_LOWER, OUTER_UPPER
from flowportrait.rewards.batch import Failure, RewardBatch
from flowportrait.rewards.interface import Score, score_with_failures
from flowportrait.rewards.registry import RewardOptions

# --- The rubric and the judge

StillJudge = ItemJudge[Still]
"""A judge of stills."""

OMNI_DIMENSIONS: dict[str, str] = {
    "composition": "framing, balance, and a background that serves the person",
    "light": "exposure and light that could fall so",
    "colour": "colours that belong together and to the scene; strong is not better",
    "detail": "resolution and focus where one looks",
    "prompt": "everything that the prompt asks for, and nothing that contradicts it",
}
"""The dimensions of ``omni_reward`` with their descriptions, which a model is asked with."""
_SHOWN = "the whole picture, and close-ups of face, eyes and mouth where there is a face"

STILL_RUBRIC: dict[Aspect, Criterion] = {
    "omni_reward": Criterion(
        "How good is this picture, as a photograph of what the prompt asks for?",
        _SHOWN,
        "whether skin, eyes, teeth, hands and anatomy are right",
        (
            "Unusable: nothing of what was asked for, or no picture one would look at.",
            "Poor: badly framed, lit or coloured, or much of the prompt is missing.",
            "Fair: an ordinary snapshot, or one clear part of the prompt is missing.",
            "Good: a careful photograph; something small could be better.",
            "Excellent: a photographer would put it into a portfolio, and the prompt is met in full.",
        ),
        "Dimensions:\n" + "\n".join(f"{name}: {words}" for name, words in OMNI_DIMENSIONS.items()),
    ),
    "ai_portrait": Criterion(
        "Is this a real person in front of a camera? Go through the list and report every artefact that you can see.",
        _SHOWN,
        "composition, taste and the prompt; a real person badly photographed is still real",
        (
            "Nobody would take this for a person: broken anatomy or a mask instead of a face.",
            "Plainly generated: one grave artefact, or several that one cannot overlook.",
            "Doubtful: an artefact that one sees at once, or the airbrushed shine of generated skin.",
            "Nearly real: one must look closely to find something wrong.",
            "Real: pores, asymmetries and light as a camera finds them; nothing to report.",
        ),
        "Artefacts:\n" + "\n".join(f"{a.name} ({a.part}): {a.words}" for a in ARTEFACTS),
    ),
}
_FORM: dict[Aspect, str] = {
    "omni_reward": '{"rationale": "two or three sentences", "dimensions": {'
    + ", ".join(f'"{name}": 1 to 5' for name in OMNI_DIMENSIONS)
    + '}, "score": 1 to 5}',
    "ai_portrait": '{"rationale": "two or three sentences", "artefacts": [{"type": "one of the list", "where": "a few '
    'words", "severity": 1 slight, 2 clear or 3 grave}], "score": 1 to 5}. Leave the list empty if there are none',
}

_WHOLE, _CLOSE = 768, 448
_EYES = [point for upper, lower, _ in EYES for point in upper + lower]
_MOUTH = OUTER_UPPER + OUTER_LOWER


class StillSubject(Subject[Still]):
    """Still portraits, judged on the picture and on the person in it."""

    name = "stills"
    aspects = STILL_ASPECTS
    system = (
        "You examine generated portraits for research. You judge by the rubric alone, from what you are shown, and "
        "report nothing that you cannot point at."
    )
    artefacts = tuple(ARTEFACTS_BY_NAME)

    def rubric(self, aspect: Aspect, rules: Sequence[str] = ()) -> str:
        """See ``Subject``."""
        return STILL_RUBRIC[aspect].text(rules)

    def context(self, item: Still, aspect: Aspect) -> str:
        """See ``Subject``; ``omni_reward`` shows the prompt, because its rubric asks whether the prompt is met."""
        if aspect != "omni_reward":
            return ""
        known = f"The prompt was: {item.prompt}\n"
        return known if item.prompt else "The prompt is not known: leave it out of account.\n"

    def instruction(self, aspect: Aspect) -> str:
        """See ``Subject``."""
        return f"Answer with one JSON object and nothing else: {_FORM[aspect]}."

    def answer(self, item: Still, aspect: Aspect) -> AnswerFormat[Grade]:
        """See ``Subject``."""
        if aspect == "omni_reward":
            return still_grade_format(dimensions=tuple(OMNI_DIMENSIONS))
        return still_grade_format(artefacts=self.artefacts)

    def content(self, item: Still, settings: PanelSettings) -> str:
        """See ``Subject``."""
        return item.digest

    def make_input(self, item: Still, aspect: Aspect, settings: PanelSettings) -> JudgeInput:
        """See ``Subject``."""
        return still_input(item, aspect)

    def fingerprint_text(self, panel: Panel[Still]) -> str:
        """See ``Subject``."""
        empty = Still(np.zeros((1, 1, 3), np.uint8))
        texts = [self.question(empty, a, self.rubric(a), self.instruction(a)) for a in self.aspects]
        version = hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:12]
        return f"{panel.backend.model_id}|{panel.settings.samples}|{version}"


STILL_SUBJECT = StillSubject()


def build_still_judge(settings: JudgeSettings | None = None) -> StillJudge:
    """Return the judge of stills that ``settings`` describe: measured, or a panel that asks a model.

    Raises:
        BadInput: a model or address cannot be used, or no judge has this name.
    """
    settings = settings or JudgeSettings()
    if settings.by == "measured":
        return MeasuredStills()
    if settings.by not in BUILT_IN_JUDGES:
        judge: StillJudge = build_plugin_judge(settings, "stills")
        return judge
    cache = ReplyCache(settings.storage_folder / "answers")
    return Panel(build_judge_backend(settings), settings.panel, cache, subject=STILL_SUBJECT)


# --- The pictures that a specialist is shown


def still_input(still: Still, aspect: Aspect) -> JudgeInput:
    """Return a specialist's input: the whole picture, and close-ups of the largest face, its eyes and its mouth."""
    landmarks = still.face.landmarks
    views = [("The whole picture", _shrink(still.picture, _WHOLE))]
    if landmarks is not None:
        points = landmarks[:, :2]
        places = (("The face", points, 1.5), ("The eyes", points[_EYES], 1.4), ("The mouth", points[_MOUTH], 1.6))
        views += [(caption, _close_up(still.picture, part, room)) for caption, part, room in places]
    video = np.stack([_square(view) for _, view in views])
    clip = JudgedClip(still.picture[None], np.zeros(0, np.float32), still.name)
    return JudgeInput(aspect, tuple(views), video, 1.0, np.zeros(0, np.float32), clip)


def _shrink(picture: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(picture.shape[:2])
    return picture if scale >= 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _close_up(picture: np.ndarray, points: np.ndarray, room: float) -> np.ndarray:
    low, high = points.min(0), points.max(0)
    half, middle = room * float((high - low).max()) / 2, (low + high) / 2
    scale = _CLOSE / max(2 * half, 1.0)
    matrix = np.array([[scale, 0, _CLOSE / 2 - scale * middle[0]], [0, scale, _CLOSE / 2 - scale * middle[1]]])
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.warpAffine(picture, matrix, (_CLOSE, _CLOSE), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _square(view: np.ndarray) -> np.ndarray:
    """Return a view padded to a square, for models that are shown the views as a video."""
    small = _shrink(view, _CLOSE)
    square = np.zeros((_CLOSE, _CLOSE, 3), np.uint8)
    square[: small.shape[0], : small.shape[1]] = small
    return square


# --- The sanity set of stills

STILL_CHECK_COMMAND = "flowportrait judge check --stills"
"""The command that certifies a judge of stills."""
MAX_FACE_SIZE = 2.0
"""Size of a face, in multiples of 115 px, to which larger faces are reduced, to bound the time that damage takes."""
STILL_CASES: dict[Aspect, tuple[str, ...]] = {
    "omni_reward": ("blur", "faded", "dark"),
    "ai_portrait": ("chroma", "airbrush", "tint", "shine", "blur", "jpeg"),
}
"""The kinds of damage that each aspect of stills must notice."""


def read_stills(paths: Sequence[Path]) -> list[Still]:
    """Read pictures from files and from all files of folders.

    Raises:
        BadInput: a picture cannot be read.
    """
    files = [file for path in paths for file in (sorted(path.glob("[!.]*")) if path.is_dir() else [path])]
    return [Still(read_image(file), name=file.stem) for file in files]


def _fit_faces(stills: Sequence[Still]) -> list[Still]:
    """Return the stills, reduced where a face is larger than ``MAX_FACE_SIZE``."""
    found = []
    for still in stills:
        scale = MAX_FACE_SIZE / relative_face_size(_require_face(still).face)
        if scale < 1:
            small = cv2.resize(still.picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            still = _require_face(Still(small, still.prompt, still.name))
        found.append(still)
    return found


def _require_face(still: Still) -> Still:
    if still.face.landmarks is None or still.face.scale is None:
        raise BadInput(f"{still.name} cannot be in the sanity set: give portraits of one clearly visible person.")
    return still


def _still_damage(corruption: Corruption) -> KnownDamage[Still]:
    def apply(still: Still, strength: float, _: int) -> Still:
        damaged = corruption.damage(still.face, strength)
        return Still(damaged, still.prompt, f"{still.name} {corruption.name} {strength:g}")

    return KnownDamage(corruption.name, corruption.unit, corruption.strengths, apply)


STILL_SANITY = SanitySet(
    {aspect: [_still_damage(corruptions("still")[name]) for name in names] for aspect, names in STILL_CASES.items()},
    _fit_faces, 6,
    "portraits", min_drop=0.2,
)  # fmt: skip
"""The sanity set of stills. A smaller drop is needed than for clips, because an artefact is one of a long list."""


# --- The judge as a reward


@dataclass(frozen=True)
class StillReward:
    """A reward from one aspect of a judge of stills; for a clip, the mean over the frames that are judged.

    Args:
        judge: the judge.
        name: the aspect.
    """

    judge: StillJudge
    name: Aspect
    needs: frozenset[str] = frozenset({"frames"})

    @classmethod
    def load(cls, aspect: Aspect, settings: Path | None = None) -> StillReward:
        """Return the reward of the judge in a settings file, without a file that of ``MeasuredStills``.

        Raises:
            BadInput: the judge has not passed the sanity set of stills, or cannot be built.
        """
        known = read_judge_settings(settings)
        judge = build_still_judge(known)
        require_certificate(judge, certificate_folders(known), STILL_CHECK_COMMAND)
        return cls(judge, aspect)

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        rows = find_batch_faces(batch)
        prompts = batch.prompts if isinstance(batch, StillBatch) and batch.prompts else [""] * len(rows)
        if isinstance(self.judge, MeasuredStills):
            found = [[self.judge.measure(view, self.name) for view in row] for row in rows]
        else:
            stills = [Still(view.picture, prompt) for row, prompt in zip(rows, prompts, strict=True) for view in row]
            verdicts = iter(self.judge.judge(stills, (self.name,)))
            found = [[next(verdicts).aspects[self.name] for _ in row] for row in rows]
        return _mean_score(found)


def _mean_score(found: list[list[AspectVerdict]]) -> Score:
    values, failures = torch.full((len(found),), torch.nan), {}
    for row, verdicts in enumerate(found):
        known = [verdict.reward for verdict in verdicts if verdict.reward is not None]
        if len(known) == len(verdicts):
            values[row] = statistics.fmean(known)
        else:
            failure = next((verdict.failure for verdict in verdicts if verdict.failure), None)
            failures[row] = failure or Failure("not_finite", "a frame has no score")
    return score_with_failures(values, failures)


def omni_reward(options: RewardOptions) -> StillReward:
    """Return the reward ``omni_reward``: the quality of the picture."""
    return StillReward.load("omni_reward", options.judge)


def ai_portrait_reward(options: RewardOptions) -> StillReward:
    """Return the reward ``ai_portrait``: how real the person in the picture looks."""
    return StillReward.load("ai_portrait", options.judge)

"""A model looks at still portraits: any backend of ``judge`` in the chair.

score = mean of the samples     artefact: named by more than half of them     none, if fewer than half are usable
"""

from __future__ import annotations

import hashlib
import statistics

import cv2
import numpy as np

from flowportrait.codec.contours import EYES, OUTER_LOWER, OUTER_UPPER
from flowportrait.judge.asking import ask_for
from flowportrait.judge.cache import Cache
from flowportrait.judge.evidence import Evidence
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.kind import Kind
from flowportrait.judge.opinion import Reply
from flowportrait.judge.question import Backend, Question
from flowportrait.portraitgen.artefacts import CATALOGUE
from flowportrait.portraitgen.opinion import StillOpinion, read_still
from flowportrait.portraitgen.rubric import SYSTEM, RubricName, rubrics_version, still_question
from flowportrait.portraitgen.verdict import Still, StillVerdict
from flowportrait.reward.batch import Failure

_WHOLE, _CLOSE = 768, 448
_EYES = [point for upper, lower, _ in EYES for point in upper + lower]
_MOUTH = OUTER_UPPER + OUTER_LOWER


class StillPanel:
    """A ``StillJudge``."""

    def __init__(self, backend: Backend, samples: int = 3, cache: Cache | None = None) -> None:
        self.backend = backend
        self.samples = samples
        self._cache = cache or Cache(None)

    @property
    def name(self) -> str:
        return f"panel of {self.backend.who.split()[0]}"

    @property
    def kind(self) -> Kind:
        return self.backend.kind

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.backend.who}|{self.samples}|{rubrics_version()}".encode()).hexdigest()[:16]

    def judge(self, stills: list[Still], rubric: RubricName) -> list[StillVerdict]:
        """See ``StillJudge``. Every picture is looked at, with a face or without.

        Raises:
            BadInput: the backend cannot be used at all (key, model, address).
        """
        questions = [self._question(still, rubric, sample) for still in stills for sample in range(self.samples)]
        replies, failures = ask_for(questions, self.backend, self._cache)
        verdicts = []
        for place in range(len(stills)):
            own = range(place * self.samples, (place + 1) * self.samples)
            said = [read_still(replies[index], rubric) for index in own if index in replies]
            verdicts.append(self._verdict(rubric, said, [failures[index] for index in own if index in failures]))
        return verdicts

    def _question(self, still: Still, rubric: RubricName, sample: int) -> Question:
        def check(reply: Reply) -> StillOpinion:
            return read_still(reply, rubric)

        content = hashlib.sha256(still.picture.tobytes() + repr(still.picture.shape).encode()).hexdigest()
        text = still_question(rubric, still.prompt)
        return Question(SYSTEM, text, rubric, content, sample, check, lambda: shown(still, rubric))

    def _verdict(self, rubric: RubricName, said: list[StillOpinion], reasons: list[Failure]) -> StillVerdict:
        if 2 * len(said) < self.samples:
            why = reasons[0]._replace(detail=f"{len(said)} of {self.samples} answers usable: {reasons[0].detail}")
            return StillVerdict(rubric, None, failure=why)
        scores = [opinion.score for opinion in said]
        mean = statistics.fmean(scores)
        nearest = min(said, key=lambda opinion: abs(opinion.score - mean))
        graded = [opinion.dimensions for opinion in said if opinion.dimensions is not None]
        named = [opinion.artefacts for opinion in said if opinion.artefacts is not None]
        return StillVerdict(
            rubric, mean, mean,
            {key: statistics.fmean(own[key] for own in graded) for key in (graded[0] if graded else {})},
            {a.name: 2 * sum(a.name in own for own in named) > len(named) for a in CATALOGUE} if named else {},
            nearest.rationale, max(scores) - min(scores),
        )  # fmt: skip


def shown(still: Still, rubric: RubricName) -> Evidence:
    """The whole picture, and close-ups of face, eyes and mouth of its largest face."""
    landmarks = still.look.landmarks
    views = [("The whole picture", _fitted(still.picture, _WHOLE))]
    if landmarks is not None:
        points = landmarks[:, :2]
        places = (("The face", points, 1.5), ("The eyes", points[_EYES], 1.4), ("The mouth", points[_MOUTH], 1.6))
        views += [(caption, _closer(still.picture, own, room)) for caption, own, room in places]
    video = np.stack([_padded(view) for _, view in views])
    clip = Exhibit(still.picture[None], np.zeros(0, np.float32), still.name)
    return Evidence(rubric, tuple(views), video, 1.0, np.zeros(0, np.float32), clip)


def _fitted(picture: np.ndarray, longest: int) -> np.ndarray:
    scale = longest / max(picture.shape[:2])
    return picture if scale >= 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _closer(picture: np.ndarray, points: np.ndarray, room: float) -> np.ndarray:
    low, high = points.min(0), points.max(0)
    half, middle = room * float((high - low).max()) / 2, (low + high) / 2
    scale = _CLOSE / max(2 * half, 1.0)
    matrix = np.array([[scale, 0, _CLOSE / 2 - scale * middle[0]], [0, scale, _CLOSE / 2 - scale * middle[1]]])
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return cv2.warpAffine(picture, matrix, (_CLOSE, _CLOSE), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _padded(view: np.ndarray) -> np.ndarray:
    """A view in a square, for models that watch views as a video."""
    fitted = _fitted(view, _CLOSE)
    square = np.zeros((_CLOSE, _CLOSE, 3), np.uint8)
    square[: fitted.shape[0], : fitted.shape[1]] = fitted
    return square

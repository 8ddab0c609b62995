"""This module holds the panel: specialists that a model plays, a reviewer, and the aggregation of their grades.

    score = mean_s E[score_s]          if max − min < dispute, over the samples s of one aspect
          = the reviewer's score       otherwise, within the specialists' range
    no score                           if fewer than half of the samples are usable, or the reviewer fails

Three specialists, a reviewer and an aggregator are those of FlowPortrait (2603.00159). A ``Subject`` holds what is
judged, with which texts and which pictures: ``CLIP_SUBJECT`` is here, still portraits are in ``portraitgen.judging``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import statistics
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from flowportrait.config import at_least
from flowportrait.judges.answers import AnswerFormat, Grade, grade_format, review_format
from flowportrait.judges.calibration import Calibration
from flowportrait.judges.clips import JudgedClip, JudgeInput, clip_input
from flowportrait.judges.questions import Backend, JudgeKind, Question, ReplyCache, ask_all
from flowportrait.judges.rubric import (
    CLIP_ASPECTS,
    GRADE_INSTRUCTION,
    REVIEWER_SYSTEM,
    SPECIALIST_SYSTEM,
    Aspect,
    RubricLibrary,
    rubric_text,
    rubric_version,
)
from flowportrait.judges.verdicts import AspectVerdict, Item, Verdict, missing_verdict
from flowportrait.rewards.batch import Failure

Answer = TypeVar("Answer")
MakeInput = Callable[[], JudgeInput]
AspectKey = tuple[int, Aspect]
"""The index of an item and an aspect."""
SampleKey = tuple[int, Aspect, int]
"""The index of an item, an aspect, and the index of a sample."""
Review = tuple[float, str]
"""The reviewer's score and reasons."""


# Fingerprints contain the text of an instance (its repr): a changed name of the class or of a field changes them.
@dataclass(frozen=True)
class PanelSettings:
    """The settings of a panel."""

    samples: int = 3
    """Number of times that each specialist is asked."""
    dispute: float = 1.5
    """Smallest spread of the samples of one aspect, in grades, at which the reviewer decides."""
    sheets: int = 4
    """Sheets of pictures per aspect."""

    def __post_init__(self) -> None:
        at_least(self, samples=1, sheets=1, dispute=0.0)


class Subject(ABC, Generic[Item]):
    """A kind of item that a panel judges: its aspects, and the texts and pictures of questions about it."""

    name: ClassVar[str]
    aspects: ClassVar[tuple[Aspect, ...]]
    system: ClassVar[str]
    has_reviewer: ClassVar[bool] = False
    """Whether a reviewer decides disputes."""
    artefacts: ClassVar[tuple[str, ...]] = ()
    """The names of artefacts that specialists may report."""

    @abstractmethod
    def rubric(self, aspect: Aspect, rules: Sequence[str] = ()) -> str:
        """Return the rubric of an aspect, followed by learned ``rules``."""

    @abstractmethod
    def context(self, item: Item, aspect: Aspect) -> str:
        """Return what the question says about the item before the rubric: complete lines, or an empty string."""

    @abstractmethod
    def instruction(self, aspect: Aspect) -> str:
        """Return the text that asks for the answer."""

    @abstractmethod
    def answer(self, item: Item, aspect: Aspect) -> AnswerFormat[Grade]:
        """Return the form of a grade of the item."""

    @abstractmethod
    def content(self, item: Item, settings: PanelSettings) -> str:
        """Return a text that identifies the pictures that are shown; part of a question's address."""

    @abstractmethod
    def make_input(self, item: Item, aspect: Aspect, settings: PanelSettings) -> JudgeInput:
        """Return the pictures and sound that a specialist is shown."""

    @abstractmethod
    def fingerprint_text(self, panel: Panel[Item]) -> str:
        """Return a text with everything that changes a panel's verdicts; its hash is the fingerprint."""

    def aspect_error(self, item: Item, aspect: Aspect) -> Failure | None:
        """Return the reason why the item cannot be judged on an aspect, or None."""
        return None

    def question(self, item: Item, aspect: Aspect, rubric: str, instruction: str) -> str:
        """Return the user's message of a question about one aspect."""
        return f"Aspect: {aspect}\n{self.context(item, aspect)}{rubric}\n{instruction}"


class ClipSubject(Subject[JudgedClip]):
    """Clips of talking faces, judged on lip sync, expressiveness and motion."""

    name = "clips"
    aspects = CLIP_ASPECTS
    system = SPECIALIST_SYSTEM
    has_reviewer = True

    def rubric(self, aspect: Aspect, rules: Sequence[str] = ()) -> str:
        """See ``Subject``."""
        return rubric_text(aspect, rules)

    def context(self, item: JudgedClip, aspect: Aspect) -> str:
        """See ``Subject``."""
        return f"The clip lasts {item.seconds:.2f} s.\n"

    def instruction(self, aspect: Aspect) -> str:
        """See ``Subject``."""
        return GRADE_INSTRUCTION

    def answer(self, item: JudgedClip, aspect: Aspect) -> AnswerFormat[Grade]:
        """See ``Subject``."""
        return grade_format(item.seconds)

    def content(self, item: JudgedClip, settings: PanelSettings) -> str:
        """See ``Subject``."""
        return f"{item.digest} {settings.sheets}"

    def make_input(self, item: JudgedClip, aspect: Aspect, settings: PanelSettings) -> JudgeInput:
        """See ``Subject``."""
        return clip_input(item, aspect, settings.sheets)

    def fingerprint_text(self, panel: Panel[JudgedClip]) -> str:
        """See ``Subject``."""
        calibration = panel.calibration.digest if panel.calibration else "uncalibrated"
        text = f"{type(panel).__name__}|{panel.backend.model_id}|{panel.settings}|{rubric_version()}|{calibration}"
        return text + (f"|{panel.library.digest}" if panel.library.digest else "")

    def aspect_error(self, item: JudgedClip, aspect: Aspect) -> Failure | None:
        """See ``Subject``; a silent clip is not judged on lip sync."""
        if aspect == "lip_sync" and item.is_silent():
            return Failure("no_sound", f"{item.name} is silent")
        return None


CLIP_SUBJECT = ClipSubject()


# Fingerprints contain the names of this class and of its subclasses.
class Panel(Generic[Item]):
    """A judge that asks a model for several samples per aspect, averages them, and lets a reviewer decide disputes.

    Args:
        backend: the model.
        settings: number of samples, threshold of a dispute, sheets of pictures.
        cache: cache of replies, none by default.
        calibration: map from the panel's scores to human ones.
        library: rules that are added to the rubric.
        subject: what is judged, clips by default.
    """

    def __init__(
        self,
        backend: Backend,
        settings: PanelSettings | None = None,
        cache: ReplyCache | None = None,
        calibration: Calibration | None = None,
        library: RubricLibrary | None = None,
        subject: Subject[Item] | None = None,
    ) -> None:
        self.backend = backend
        self.library = library or RubricLibrary()
        self.settings = settings or PanelSettings()
        self.calibration = calibration
        self.subject: Subject[Any] = subject or CLIP_SUBJECT
        self.cache = cache or ReplyCache(None)
        self.first_sample = 0
        """The index of the first sample. Another index asks the same questions again; see ``retest``."""

    @property
    def name(self) -> str:
        """See ``ItemJudge``."""
        return f"panel of {self.backend.model_id.split()[0]}"

    @property
    def kind(self) -> JudgeKind:
        """See ``ItemJudge``."""
        return self.backend.kind

    @property
    def fingerprint(self) -> str:
        """See ``ItemJudge``."""
        return hashlib.sha256(self.subject.fingerprint_text(self).encode()).hexdigest()[:16]

    def retest(self, number: int) -> Panel[Item]:
        """Return a panel with the same settings, model, cache and fingerprint that asks for other samples.

        Cached replies would otherwise repeat the first answers.

        Args:
            number: index of the repetition; 0 is the panel's first judgement itself.
        """
        again = copy.copy(self)
        again.first_sample = number * self.settings.samples
        return again

    def rubric(self, aspect: Aspect) -> str:
        """Return the rubric of an aspect with the rules of the library."""
        return self.subject.rubric(aspect, self.library.of(aspect))

    def judge(self, items: Sequence[Item], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """See ``ItemJudge``. Items that cannot be judged, such as a clip without a face, are not sent to the model.

        Raises:
            BadInput: the backend cannot be used at all (key, model, address).
        """
        aspects = self.subject.aspects if aspects is None else aspects
        errors = [self._errors(item, aspects) for item in items]
        samples = range(self.first_sample, self.first_sample + self.settings.samples)
        open_aspects = [
            (index, aspect) for index, by_aspect in enumerate(errors) for aspect in aspects if by_aspect[aspect] is None
        ]
        requests = [(index, aspect, sample) for index, aspect in open_aspects for sample in samples]
        grades: dict[AspectKey, list[Grade]] = {}
        failures: dict[AspectKey, list[Failure]] = {}
        for (index, aspect, _), found in zip(requests, self._grade(items, requests), strict=True):
            if isinstance(found, Grade):
                grades.setdefault((index, aspect), []).append(found)
            else:
                failures.setdefault((index, aspect), []).append(found)
        reviews = self._review(items, grades) if self.subject.has_reviewer else {}
        verdicts = []
        for index, item in enumerate(items):
            found_aspects = {}
            for aspect in aspects:
                error, at = errors[index][aspect], (index, aspect)
                found_aspects[aspect] = missing_verdict(aspect, error) if error else self._aggregate(
                    aspect, grades.get(at, []), failures.get(at, []), reviews.get(at)
                )  # fmt: skip
            verdicts.append(Verdict(item.name, item.generator, self.name, self.kind, found_aspects))
        return verdicts

    def _errors(self, item: Item, aspects: Sequence[Aspect]) -> dict[Aspect, Failure | None]:
        """Return by aspect why an item cannot be judged, None where it can."""
        error = item.validation_error()
        return {aspect: error or self.subject.aspect_error(item, aspect) for aspect in aspects}

    def _grade(self, items: Sequence[Item], requests: Sequence[SampleKey]) -> list[Grade | Failure]:
        """Return each specialist's grade or its failure, in the order of ``requests``.

        This method asks one question for each; other methods ask more questions before.
        """
        words = {place: self.subject.instruction(aspect) for place, (_, aspect, _) in enumerate(requests)}
        return self._ask_for_grades(items, requests, words, {})

    def _ask_for_grades(
        self, items: Sequence[Item], requests: Sequence[SampleKey], instructions: Mapping[int, str],
        failures: Mapping[int, Failure],
    ) -> list[Grade | Failure]:  # fmt: skip
        """Ask for grades.

        Args:
            items: the items that are judged.
            requests: what is graded.
            instructions: the text that asks for the answer, by the index of a request.
            failures: earlier failures by the index of a request; these requests are not asked.

        Returns:
            A grade or a failure for every request.
        """
        inputs, questions = self._inputs(items, requests), []
        places = sorted(instructions)
        for place in places:
            index, aspect, sample = requests[place]
            answer, make_input = self.subject.answer(items[index], aspect), inputs[index, aspect]
            questions.append(
                self._question(items[index], aspect, sample, aspect, instructions[place], answer, make_input)
            )  # fmt: skip
        grades, ungraded = ask_all(questions, self.backend, self.cache)
        found: dict[int, Grade | Failure] = dict(failures)
        for order, place in enumerate(places):
            found[place] = grades[order] if order in grades else ungraded[order]
        return [found[place] for place in range(len(requests))]

    def _question(
        self, item: Item, aspect: Aspect, sample: int, tag: str, instruction: str, answer: AnswerFormat[Answer],
        make_input: MakeInput,
    ) -> Question[Answer]:  # fmt: skip
        """Return a question with the rubric and an ``instruction``; ``tag`` is the step in the question's address."""
        text = self.subject.question(item, aspect, self.rubric(aspect), instruction)
        content = self.subject.content(item, self.settings)
        return Question(self.subject.system, text, tag, content, sample, answer, make_input)

    def _inputs(self, items: Sequence[Item], requests: Sequence[SampleKey]) -> dict[AspectKey, MakeInput]:
        """Return one input function for all samples of an item's aspect, so that a backend encodes it once."""
        return {(index, aspect): self._input(items[index], aspect) for index, aspect, _ in requests}

    def _input(self, item: Item, aspect: Aspect) -> MakeInput:
        return lambda: self.subject.make_input(item, aspect, self.settings)

    def _review(
        self, items: Sequence[Item], grades: Mapping[AspectKey, Sequence[Grade]]
    ) -> dict[AspectKey, Review | Failure]:
        """Return the reviewer's score of each disputed aspect, or its failure."""
        disputes: dict[int, dict[Aspect, Sequence[Grade]]] = {}
        for (index, aspect), found in grades.items():
            if len(found) >= self._quorum and _score_range(found) >= self.settings.dispute:
                disputes.setdefault(index, {})[aspect] = found
        places = list(disputes)
        questions = [self._review_question(items[index], disputes[index]) for index in places]
        answers, failures = ask_all(questions, self.backend, self.cache)
        result: dict[AspectKey, Review | Failure] = {}
        for place, index in enumerate(places):
            if place in answers:
                scores, rationale = answers[place]
                result |= {(index, aspect): (score, rationale) for aspect, score in scores.items()}
            else:
                result |= {(index, aspect): failures[place] for aspect in disputes[index]}
        return result

    def _review_question(self, item: Item, disputed: dict[Aspect, Sequence[Grade]]) -> Question[Any]:
        blocks = []
        for aspect, grades in disputed.items():
            opinions = [
                {"score": one.written_score, "rationale": one.rationale, "errors": [f._asdict() for f in one.flaws]}
                for one in grades
            ]
            blocks.append(
                f"{self.rubric(aspect)}\nSpecialists on {aspect}:\n{json.dumps(opinions, ensure_ascii=False)}"
            )
        form = json.dumps(dict.fromkeys(disputed, "1 to 5"))
        first = next(iter(disputed))
        text = (
            f"Aspect: review\n{self.subject.context(item, first)}" + "\n\n".join(blocks) + "\nAnswer with one JSON "
            f'object and nothing else: {{"rationale": "two or three sentences", "scores": {form}}}.'
        )
        answer = review_format(disputed)
        sample, make_input = self.first_sample, self._input(item, first)
        return Question(REVIEWER_SYSTEM, text, "review", item.digest, sample, answer, make_input)

    @property
    def _quorum(self) -> int:
        return -(-self.settings.samples // 2)

    def _aggregate(
        self, aspect: Aspect, grades: Sequence[Grade], failures: Sequence[Failure], review: Review | Failure | None
    ) -> AspectVerdict:
        """Return the verdict on an aspect from its samples and, if they are disputed, from the review."""
        if len(grades) < self._quorum:
            kind = Counter(failure.kind for failure in failures).most_common(1)[0][0]
            detail = next(failure.detail for failure in failures if failure.kind == kind)
            usable = f"{len(grades)} of {self.settings.samples} answers usable: {detail}"
            return missing_verdict(aspect, Failure(kind, usable))
        if isinstance(review, Failure):
            unsettled = f"disputed by {_score_range(grades):.1f} and not settled: {review.detail}"
            return missing_verdict(aspect, Failure(review.kind, unsettled))
        scores = tuple(grade.score for grade in grades)
        raw, rationale = (statistics.fmean(scores), "") if review is None else review
        nearest = min(grades, key=lambda grade: abs(grade.score - raw))
        return AspectVerdict(
            aspect,
            self.calibration.apply(aspect, raw) if self.calibration else raw,
            raw,
            "agreement" if review is None else "reviewer",
            scores,
            _score_range(grades),
            rationale or nearest.rationale,
            nearest.flaws,
            dimensions=_mean_dimensions(grades),
            artefacts=_majority_artefacts(grades, self.subject.artefacts),
        )


def _score_range(grades: Sequence[Grade]) -> float:
    scores = [grade.score for grade in grades]
    return max(scores) - min(scores)


def _mean_dimensions(grades: Sequence[Grade]) -> dict[str, float]:
    """Return the mean of each dimension over the samples that graded them."""
    known = [grade.dimensions for grade in grades if grade.dimensions is not None]
    return {name: statistics.fmean(grade[name] for grade in known) for name in (known[0] if known else {})}


def _majority_artefacts(grades: Sequence[Grade], catalogue: Sequence[str]) -> dict[str, bool | None]:
    """Return for each artefact of the catalogue whether more than half of the samples with a list report it."""
    known = [grade.artefacts for grade in grades if grade.artefacts is not None]
    return {name: 2 * sum(name in reported for reported in known) > len(known) for name in catalogue} if known else {}

"""The panel of multimodal-LLM specialists (MAS-MA): each aspect asked for several times, disputes reviewed, the rest
averaged.

    score = mean_s E[score_s]          if max − min < DISPUTE
          = the reviewer's             otherwise, within the specialists' range
    no score at all                    if fewer than half of the samples could be used, or a dispute was not settled

Three specialists, a reviewer and an aggregator: FlowPortrait (2603.00159).
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flowportrait.config import at_least
from flowportrait.judge.asking import ask_for
from flowportrait.judge.cache import Cache
from flowportrait.judge.calibration import Calibration
from flowportrait.judge.evidence import Evidence, gather
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.kind import Kind
from flowportrait.judge.library import Library
from flowportrait.judge.opinion import Opinion, Reply, Unusable, read_opinion, read_review
from flowportrait.judge.question import ANSWER, SYSTEM, Backend, Question, reviewer
from flowportrait.judge.rubric import ASPECTS, Aspect, rubric_text, rubric_version
from flowportrait.judge.verdict import Finding, Verdict, missing
from flowportrait.reward.batch import Failure

Asked = tuple[int, Aspect, int]
"""Place of the clip, aspect, and the how-manieth time."""


@dataclass(frozen=True)
class PanelSettings:
    samples: int = 3
    """How often each specialist is asked."""
    dispute: float = 1.5
    """Grades between the samples of one aspect from which on the reviewer settles."""
    sheets: int = 4
    """Sheets of pictures per aspect."""

    def __post_init__(self) -> None:
        at_least(self, samples=1, sheets=1, dispute=0.0)


class Panel:
    """A ``Judge``: any backend in the specialists' chairs."""

    def __init__(
        self,
        backend: Backend,
        settings: PanelSettings | None = None,
        cache: Cache | None = None,
        calibration: Calibration | None = None,
        library: Library | None = None,
    ) -> None:
        self.backend = backend
        self.library = library or Library()
        self.settings = settings or PanelSettings()
        self.calibration = calibration
        self._cache = cache or Cache(None)

    @property
    def name(self) -> str:
        return f"panel of {self.backend.who.split()[0]}"

    @property
    def kind(self) -> Kind:
        return self.backend.kind

    @property
    def fingerprint(self) -> str:
        mapped = self.calibration.digest if self.calibration else "uncalibrated"
        text = f"{type(self).__name__}|{self.backend.who}|{self.settings}|{rubric_version()}|{mapped}"
        text += f"|{self.library.digest}" if self.library.digest else ""
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def rubric(self, aspect: Aspect) -> str:
        """What a specialist goes by."""
        return rubric_text(aspect, self.library.of(aspect))

    def judge(self, exhibits: list[Exhibit]) -> list[Verdict]:
        """See ``Judge``. Clips that show no face are not sent anywhere.

        Raises:
            BadInput: the backend cannot be used at all (key, model, address).
        """
        trouble = [exhibit.trouble() for exhibit in exhibits]
        seen = [place for place, why in enumerate(trouble) if why is None]
        asked = [(place, aspect, sample) for place in seen for aspect in ASPECTS for sample in
                 range(self.settings.samples) if not _unheard(exhibits[place], aspect)]  # fmt: skip
        opinions: dict[tuple[int, Aspect], list[Opinion]] = {}
        reasons: dict[tuple[int, Aspect], list[Failure]] = {}
        for (place, aspect, _), said in zip(asked, self._opine(exhibits, asked), strict=True):
            if isinstance(said, Opinion):
                opinions.setdefault((place, aspect), []).append(said)
            else:
                reasons.setdefault((place, aspect), []).append(said)
        reviews = self._review(exhibits, opinions)
        verdicts = []
        for place, exhibit in enumerate(exhibits):
            findings: dict[Aspect, Finding] = {}
            for aspect in ASPECTS:
                why = trouble[place]
                if why is None and _unheard(exhibit, aspect):
                    why = Failure("no_sound", f"{exhibit.name} is silent")
                at = (place, aspect)
                findings[aspect] = missing(aspect, why) if why else self._settle(
                    aspect, opinions.get(at, []), reasons.get(at, []), reviews.get(at)
                )  # fmt: skip
            verdicts.append(Verdict(exhibit.name, exhibit.generator, self.name, self.kind, findings))
        return verdicts

    def _opine(self, exhibits: list[Exhibit], asked: Sequence[Asked]) -> list[Opinion | Failure]:
        """What each specialist says, in order: one question each, answered with a score."""
        shown = self._shows(exhibits, asked)
        questions = [
            self._specialist(exhibits[place], aspect, sample, shown[place, aspect]) for place, aspect, sample in asked
        ]
        replies, failures = ask_for(questions, self.backend, self._cache)
        return [
            read_opinion(replies[index], exhibits[place].seconds) if index in replies else failures[index]
            for index, (place, _, _) in enumerate(asked)
        ]

    def _specialist(
        self, exhibit: Exhibit, aspect: Aspect, sample: int, shown: Callable[[], Evidence] | None = None
    ) -> Question:
        def check(reply: Reply) -> Opinion:
            return read_opinion(reply, exhibit.seconds)

        return self._step(exhibit, aspect, sample, aspect, ANSWER, check, shown or self._shown(exhibit, aspect))

    def _step(
        self, exhibit: Exhibit, aspect: Aspect, sample: int, tag: str, words: str, check: Callable[[Reply], object],
        show: Callable[[], Evidence],
    ) -> Question:  # fmt: skip
        """One of several questions on the way to a grade: the rubric, and ``words`` that say what is wanted of it."""
        text = f"Aspect: {aspect}\nThe clip lasts {exhibit.seconds:.2f} s.\n{self.rubric(aspect)}\n{words}"
        content = f"{exhibit.digest} {self.settings.sheets}"
        return Question(SYSTEM, text, tag, content, sample, check, show)

    def _shows(
        self, exhibits: list[Exhibit], asked: Sequence[Asked]
    ) -> dict[tuple[int, Aspect], Callable[[], Evidence]]:
        """What is shown, one value for all samples of an aspect: a backend encodes it once."""
        return {(place, aspect): self._shown(exhibits[place], aspect) for place, aspect, _ in asked}

    def _shown(self, exhibit: Exhibit, aspect: Aspect) -> Callable[[], Evidence]:
        return lambda: gather(exhibit, aspect, self.settings.sheets)

    def _review(
        self, exhibits: list[Exhibit], opinions: dict[tuple[int, Aspect], list[Opinion]]
    ) -> dict[tuple[int, Aspect], tuple[float, str] | Failure]:
        disputes: dict[int, dict[Aspect, Sequence[Opinion]]] = {}
        for (place, aspect), said in opinions.items():
            if len(said) >= self._quorum and _spread(said) >= self.settings.dispute:
                disputes.setdefault(place, {})[aspect] = said
        places = list(disputes)
        questions = [self._reviewer(exhibits[place], disputes[place]) for place in places]
        replies, failures = ask_for(questions, self.backend, self._cache)
        result: dict[tuple[int, Aspect], tuple[float, str] | Failure] = {}
        for index, place in enumerate(places):
            if index in replies:
                scores, why = read_review(replies[index], tuple(disputes[place]))
                result |= {(place, aspect): (score, why) for aspect, score in scores.items()}
            else:
                result |= {(place, aspect): failures[index] for aspect in disputes[place]}
        return result

    def _reviewer(self, exhibit: Exhibit, disputed: dict[Aspect, Sequence[Opinion]]) -> Question:
        system, text = reviewer(disputed, exhibit.seconds, self.rubric)

        def check(reply: Reply) -> None:
            scores, _ = read_review(reply, tuple(disputed))
            for aspect, score in scores.items():
                written = [opinion.written for opinion in disputed[aspect]]
                if not min(written) <= score <= max(written):
                    between = f"{min(written):g} … {max(written):g}"
                    raise Unusable(Failure("malformed", f"the review's {aspect} {score:g} is not in {between}"))

        first = next(iter(disputed))
        return Question(system, text, "review", exhibit.digest, 0, check, self._shown(exhibit, first))

    @property
    def _quorum(self) -> int:
        return -(-self.settings.samples // 2)

    def _settle(
        self, aspect: Aspect, said: list[Opinion], reasons: list[Failure], review: tuple[float, str] | Failure | None
    ) -> Finding:
        if len(said) < self._quorum:
            kind = Counter(reason.kind for reason in reasons).most_common(1)[0][0]
            detail = next(reason.detail for reason in reasons if reason.kind == kind)
            return missing(aspect, Failure(kind, f"{len(said)} of {self.settings.samples} answers usable: {detail}"))
        if isinstance(review, Failure):
            unsettled = f"disputed by {_spread(said):.1f} and not settled: {review.detail}"
            return missing(aspect, Failure(review.kind, unsettled))
        scores = tuple(opinion.score for opinion in said)
        raw, rationale = (statistics.fmean(scores), "") if review is None else review
        nearest = min(said, key=lambda opinion: abs(opinion.score - raw))
        return Finding(
            aspect,
            self.calibration.apply(aspect, raw) if self.calibration else raw,
            raw,
            "agreement" if review is None else "reviewer",
            scores,
            _spread(said),
            rationale or nearest.rationale,
            nearest.flaws,
        )


def _spread(said: Sequence[Opinion]) -> float:
    scores = [opinion.score for opinion in said]
    return max(scores) - min(scores)


def _unheard(exhibit: Exhibit, aspect: Aspect) -> bool:
    """Nobody is asked how lips fit a silence."""
    return aspect == "lip_sync" and exhibit.silent()

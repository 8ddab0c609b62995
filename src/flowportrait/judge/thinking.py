"""Think, then score: what is seen is written down by one question, and graded by another that reads it.

    look ─► thoughts (no grade asked for) ─► thoughts + evidence ─► E[score]

A model that states its grade and its reasons in one breath reasons towards the grade. After DeScore (2605.05922), whose
second stage is a trained regression head; here it is the same model, asked for a grade alone, and its log-probabilities
are the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from flowportrait.judge.asking import ask_for
from flowportrait.judge.exhibit import Exhibit
from flowportrait.judge.opinion import Opinion, Reply, Unusable, read_object, read_opinion
from flowportrait.judge.panel import Asked, Panel
from flowportrait.judge.question import ANSWER
from flowportrait.reward.batch import Failure

_THINK = (
    "Do not grade yet. Write down what you see and hear that speaks for a high or a low grade, moment by moment, and "
    'answer with one JSON object and nothing else: {"thoughts": "at most ten sentences"}.'
)


class ThinkingPanel(Panel):
    """A panel whose specialists think before they grade; disputes are settled as ever."""

    def _opine(self, exhibits: list[Exhibit], asked: Sequence[Asked]) -> list[Opinion | Failure]:
        """See ``Panel``: two questions each."""
        shown = self._shows(exhibits, asked)
        thinking = [
            self._step(exhibits[place], aspect, sample, "thoughts", _THINK, read_thoughts, shown[place, aspect])
            for place, aspect, sample in asked
        ]
        replies, failures = ask_for(thinking, self.backend, self._cache)
        said: dict[int, Opinion | Failure] = dict(failures)
        thought = sorted(replies)
        questions = []
        for index in thought:
            place, aspect, sample = asked[index]
            words = f"What was noted before grading:\n{read_thoughts(replies[index])}\nGrade by the rubric. {ANSWER}"
            check = partial(read_opinion, seconds=exhibits[place].seconds)
            questions.append(self._step(exhibits[place], aspect, sample, aspect, words, check, shown[place, aspect]))
        grades, unanswered = ask_for(questions, self.backend, self._cache)
        for order, index in enumerate(thought):
            place = asked[index][0]
            graded = order in grades
            said[index] = read_opinion(grades[order], exhibits[place].seconds) if graded else unanswered[order]
        return [said[index] for index in range(len(asked))]


def read_thoughts(reply: Reply) -> str:
    """The thoughts in a reply.

    Raises:
        Unusable: there are none.
    """
    thoughts = read_object(reply, ("thoughts",))["thoughts"]
    if not isinstance(thoughts, str) or not thoughts.strip():
        raise Unusable(Failure("malformed", "no thoughts"))
    return thoughts.strip()

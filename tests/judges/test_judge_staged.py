"""Claims about judges that grade in stages: thoughts come first, and a flaw that is not found again does not count."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from flowportrait.config import override
from flowportrait.judges.answers import Flaw, read_box
from flowportrait.judges.build import JudgeSettings, build_judge
from flowportrait.judges.methods import LocatingPanel, ThinkingPanel, clip_around_flaw
from flowportrait.judges.panel import PanelSettings
from flowportrait.judges.questions import AcceptReply, JudgeKind, Question
from flowportrait.judges.replies import Reply, UnusableReply
from flowportrait.judges.rubric import CLIP_ASPECTS
from flowportrait.rewards.batch import Failure
from tests.judges.test_judge_client import clip


class Scripted:
    """Answers by rule; what cannot be read comes back as a failure, as from a server."""

    model_id = "scripted"
    kind: JudgeKind = "multimodal LLM panel"

    def __init__(self, answer: Callable[[Question], dict[str, object]]) -> None:
        self.answer = answer
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question], accept: AcceptReply) -> dict[int, Failure]:
        failures = {}
        for place, question in enumerate(questions):
            self.asked.append(question)
            reply = Reply(json.dumps(self.answer(question)))
            try:
                accept(place, reply)
            except UnusableReply as error:
                failures[place] = error.failure
        return failures


def graded(score: float) -> dict[str, object]:
    return {"rationale": "So it looks.", "errors": [], "score": score}


def test_the_grade_is_given_by_who_has_read_the_thoughts() -> None:
    def answer(question: Question) -> dict[str, object]:
        if question.aspect == "thoughts":
            assert "1 to 5" not in question.text
            return {"thoughts": "The mouth stands still." if "lip" in question.text[:20] else "All is well."}
        return graded(1 if "stands still" in question.text else 5)

    backend = Scripted(answer)
    (verdict,) = ThinkingPanel(backend, PanelSettings(samples=2)).judge([clip()])
    assert [verdict.aspects[aspect].score for aspect in CLIP_ASPECTS] == [1, 5, 5]
    assert [question.aspect for question in backend.asked[:6]] == ["thoughts"] * 6
    assert len(backend.asked) == 12


def test_without_thoughts_there_is_no_grade_and_it_is_said_why() -> None:
    backend = Scripted(lambda question: {"thoughts": ""} if question.aspect == "thoughts" else graded(3))
    (verdict,) = ThinkingPanel(backend, PanelSettings(samples=1)).judge([clip()])
    assert all(verdict.aspects[aspect].score is None for aspect in CLIP_ASPECTS)
    assert "no thoughts" in str(verdict.aspects["motion"].failure)
    assert len(backend.asked) == 3


def test_a_flaw_that_is_not_found_again_does_not_count() -> None:
    def answer(question: Question) -> dict[str, object]:
        if question.aspect == "windows":
            flaws = [{"start": 0.0, "end": 0.1, "what": "real"}, {"start": 0.2, "end": 0.3, "what": "imagined"},
                     {"start": 7.0, "end": 8.0, "what": "impossible"}]  # fmt: skip
            return {"windows": flaws}
        if question.aspect == "box":
            return {"seen": "'real'" in question.text, "box": [0.1, 0.2, 0.5, 0.6]}
        assert "imagined" not in question.text
        assert '"box": [0.1, 0.2, 0.5, 0.6]' in question.text
        return graded(2 if "real" in question.text else 5)

    backend = Scripted(answer)
    (verdict,) = LocatingPanel(backend, PanelSettings(samples=1)).judge([clip()])
    assert [verdict.aspects[aspect].score for aspect in CLIP_ASPECTS] == [2, 2, 2]
    assert sum(question.aspect == "box" for question in backend.asked) == 6


def test_nothing_wrong_needs_two_questions_and_no_third() -> None:
    backend = Scripted(lambda question: {"windows": []} if question.aspect == "windows" else graded(5))
    (verdict,) = LocatingPanel(backend, PanelSettings(samples=1)).judge([clip()])
    assert verdict.overall == 5
    assert len(backend.asked) == 6


def test_a_window_is_shown_alone_with_its_own_sound() -> None:
    whole = clip(frames=40)
    part = clip_around_flaw(whole, Flaw(0.8, 1.2, "soft p"))
    assert np.array_equal(part.frames, whole.frames[20:31])
    assert np.array_equal(part.audio, whole.audio[20 * 640 : 31 * 640])
    assert np.array_equal(part.landmarks, whole.landmarks[20:31])
    assert len(clip_around_flaw(whole, Flaw(1.6, 1.6, "the end"))) == 10


@pytest.mark.parametrize("said", [
    {"seen": "yes", "box": [0, 0, 1, 1]}, {"seen": True}, {"seen": True, "box": [0, 0, 1]},
    {"seen": True, "box": [0.5, 0, 0.4, 1]}, {"seen": True, "box": [0, 0, 64, 64]}, {"seen": True, "box": list("abcd")},
])  # fmt: skip
def test_a_box_is_inside_the_picture_or_no_box(said: dict[str, object]) -> None:
    assert read_box(Reply('{"seen": false}')) is None
    assert read_box(Reply('{"seen": true, "box": [0, 0.5, 1, 1]}')) == (0, 0.5, 1, 1)
    with pytest.raises(UnusableReply):
        read_box(Reply(json.dumps(said)))


def test_methods_are_told_apart_by_their_fingerprints() -> None:
    settings = override(JudgeSettings(), ["by=server", "endpoint.model=some"])
    prints = {build_judge(override(settings, [f"method={name}"])).fingerprint for name in ("panel", "think", "locate")}
    assert len(prints) == 3

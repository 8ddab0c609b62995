"""Claims about answers, calibration and the sanity set: read strictly, mapped monotonically, ordered or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.judges.answers import read_grade
from flowportrait.judges.calibration import (
    Calibration,
    compare_with_humans,
    fit_monotone,
    grade_histogram,
    intraclass_correlation,
    read_human_scores,
)
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.questions import JudgeKind
from flowportrait.judges.replies import Reply, Token, UnusableReply, expected_score
from flowportrait.judges.rubric import ASPECT_WEIGHTS, CLIP_ASPECTS, RUBRIC, Aspect, rubric_text
from flowportrait.judges.sanity import CLIP_CASES, CLIP_SANITY, certify_judge, require_certificate, save_certificate
from flowportrait.judges.verdicts import AspectVerdict, Verdict
from flowportrait.rewards.batch import Failure
from tests.judges.test_judge_client import clip

GOOD = {"rationale": "Fits.", "errors": [], "score": 4}


def told(text: str, **rest: object) -> Reply:
    return Reply(text, **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [
    json.dumps(GOOD), f"```json\n{json.dumps(GOOD)}\n```", f"<think>1? {{\"score\": 1}}</think>{json.dumps(GOOD)}",
    f"First I look. Then: {json.dumps(GOOD)} That is all.",
])  # fmt: skip
def test_the_answer_is_found_in_what_surrounds_it(text: str) -> None:
    assert read_grade(told(text), 1.0).score == 4


@pytest.mark.parametrize(("reply", "kind"), [
    (told("I'm sorry, I can't judge people."), "refused"), (told("", refusal="no"), "refused"),
    (told('{"rationale": "Fi', complete=False), "malformed"), (told("four"), "malformed"), (told(""), "malformed"),
    (told('{"rationale": "r", "errors": [], "score": 0}'), "malformed"),
    (told('{"rationale": "r", "errors": [], "score": 5.5}'), "malformed"),
    (told('{"rationale": "r", "errors": [], "score": true}'), "malformed"),
    (told('{"rationale": "r", "errors": [], "score": "4"}'), "malformed"),
    (told('{"rationale": "r", "errors": [], "score": NaN}'), "malformed"),
    (told('{"rationale": "", "errors": [], "score": 4}'), "malformed"),
    (told('{"rationale": "r", "errors": "none", "score": 4}'), "malformed"),
    (told('{"rationale": "r", "errors": [{"what": "x"}], "score": 4}'), "malformed"),
])  # fmt: skip
def test_what_is_no_opinion_is_a_failure_of_its_kind(reply: Reply, kind: str) -> None:
    with pytest.raises(UnusableReply) as caught:
        read_grade(reply, 1.0)
    assert caught.value.failure.kind == kind


@given(st.one_of(st.floats(), st.integers(), st.text(max_size=5), st.booleans(), st.none(), st.floats(1, 5)))
def test_whatever_stands_for_the_score_only_1_to_5_is_one(value: object) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and 1 <= value <= 5
    reply = told(json.dumps({**GOOD, "score": value}))
    if fits:
        assert read_grade(reply, 1.0).score == value
    else:
        with pytest.raises(UnusableReply):
            read_grade(reply, 1.0)


def test_errors_at_times_that_the_clip_does_not_have_are_not_believed() -> None:
    errors = [{"start": 0.2, "end": 0.4, "what": "late"}, {"start": 7, "end": 8, "what": "imagined"}]
    opinion = read_grade(told(json.dumps({**GOOD, "errors": errors})), 1.0)
    assert [flaw.what for flaw in opinion.flaws] == ["late"]


def scored(shares: dict[str, float], blank: bool = False) -> tuple[Token, ...]:
    alternatives = tuple((word, math.log(p)) for word, p in shares.items())
    return (Token('{"sc'), Token('ore":'), *([Token(" ")] if blank else []), Token("4", alternatives), Token("}"))


@pytest.mark.parametrize("blank", [True, False])
def test_a_score_is_the_mean_of_the_grades_by_their_probability(blank: bool) -> None:
    found = expected_score(scored({"4": 0.5, "3": 0.2, " 5": 0.2, "x": 0.1}, blank), 4)
    assert found == pytest.approx((4 * 0.5 + 3 * 0.2 + 5 * 0.2) / 0.9)


def test_little_probability_on_the_grades_is_no_expectation() -> None:
    assert expected_score(scored({"4": 0.3, "seven": 0.7}), 4) is None
    assert expected_score((), 4) is None
    assert expected_score(scored({"4": 0.9}), 3.5) is None


def test_every_grade_of_every_aspect_is_said_in_words() -> None:
    assert sum(ASPECT_WEIGHTS.values()) == pytest.approx(1)
    for aspect in CLIP_ASPECTS:
        assert all(f"{grade} = {words}" in rubric_text(aspect) for grade, words in enumerate(RUBRIC[aspect].grades, 1))


@given(st.lists(st.tuples(st.floats(1, 5), st.integers(1, 5)), min_size=8, max_size=30))
def test_a_calibration_never_changes_an_order(pairs: list[tuple[float, int]]) -> None:
    judge, human = np.array(pairs).T
    mapped = [
        Calibration("j", {"motion": fit_monotone(judge, human)}).apply("motion", score) for score in np.sort(judge)
    ]
    assert (np.diff(mapped) >= -1e-9).all()
    assert all(1 <= score <= 5 for score in mapped)


def test_a_biased_judge_is_put_right_on_clips_it_was_not_fitted_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    human = rng.uniform(1, 5, 80)
    judge = 1 + (human - 1) ** 2 / 8 + rng.normal(0, 0.1, 80)
    path = tmp_path / "scores.csv"
    lines = [f"{i}.mp4,{'a' if i % 2 else 'b'},{h:.3f},{h:.3f},{h:.3f}" for i, h in enumerate(human)]
    path.write_text("\n".join(["file,generator,lip_sync,expressiveness,motion", *lines]))
    raw = {f"{i}.mp4": dict.fromkeys(CLIP_ASPECTS, float(score)) for i, score in enumerate(judge)}
    calibration, report = compare_with_humans(raw, read_human_scores(path), "test")
    before, after = report["lip_sync"]["before"], report["lip_sync"]["after_on_unseen_clips"]
    assert after["mean_error"] < 0.4 * before["mean_error"]
    assert after["icc"] > before["icc"]
    assert before["by_generator"]["a"]["clips"] == 40
    assert before["by_generator"]["a"]["bias"] < -0.3
    assert before["spearman"] == pytest.approx(spearmanr(judge, np.round(human, 3)).statistic)
    calibration.save(tmp_path / "c.json", report)
    again = Calibration.load(tmp_path / "c.json")
    assert again.apply("motion", 2.0) == pytest.approx(calibration.apply("motion", 2.0))
    assert again.digest == calibration.digest


def test_icc_is_one_for_equals_and_knows_an_offset() -> None:
    scores = np.random.default_rng(0).uniform(1, 5, 50)
    assert intraclass_correlation(np.stack([scores, scores], 1)) == pytest.approx(1)
    assert intraclass_correlation(np.stack([scores, scores - 2], 1)) < 0.6
    # Shrout & Fleiss (1979), table 2: four judges, six targets, ICC(2,1) = .29
    table = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], float)
    assert intraclass_correlation(table) == pytest.approx(0.29, abs=0.005)
    assert grade_histogram(np.array([1.0, 1.4, 2.5, 4.6])) == [2, 0, 1, 0, 1]


@pytest.mark.parametrize(("text", "said"), [
    ("file,motion\na,3\n", "no column"), ("file,lip_sync,expressiveness,motion\na,6,3,3\n", "not a score"),
    ("file,lip_sync,expressiveness,motion\na,x,3,3\n", "line 2"),
])  # fmt: skip
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "h.csv"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        read_human_scores(path)


class Scripted:
    """A judge whose scores are a function of how much its clip was damaged."""

    kind: JudgeKind = "measured panel"
    name = "scripted"

    def __init__(self, fingerprint: str, fall: float, deaf: bool = False, lost: float = 0.0) -> None:
        self.fingerprint, self.fall, self.deaf, self.lost = fingerprint, fall, deaf, lost

    def judge(self, clips: Sequence[JudgedClip], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        verdicts = []
        for place, shown in enumerate(clips):
            level = 0
            for aspect in CLIP_ASPECTS:
                for damage in CLIP_CASES[aspect]:
                    if f" {damage} " in shown.name:
                        level = 0 if self.deaf and aspect == "lip_sync" else float(shown.name.split()[-1])
            score = 5 - self.fall * math.log1p(level)
            gone = place < self.lost * len(clips)
            finding = (
                AspectVerdict("motion", None, None, "nobody", failure=Failure("refused", "no"))
                if gone
                else AspectVerdict("motion", score, score, "agreement")
            )
            verdicts.append(Verdict(shown.name, "", self.name, self.kind, dict.fromkeys(CLIP_ASPECTS, finding)))
        return verdicts


def sane_clips() -> list[JudgedClip]:
    return [clip(seed, 30) for seed in range(4)]


def test_a_judge_that_orders_all_damage_passes_and_may_be_trained_on(tmp_path: Path) -> None:
    judge = Scripted("good", 1.5)
    certificate = certify_judge(judge, sane_clips(), CLIP_SANITY)
    assert certificate.passed
    assert {result.damage for result in certificate.results} == {
        name for names in CLIP_CASES.values() for name in names
    }
    assert all(result.order == 1 for result in certificate.results)
    save_certificate(certificate, tmp_path)
    require_certificate(judge, [tmp_path])


@pytest.mark.parametrize(("judge", "said"), [
    (Scripted("deaf", 1.5, deaf=True), "lip_sync/offset"), (Scripted("flat", 0.01), "failed the sanity set"),
    (Scripted("upside down", -0.5), "0%"), (Scripted("refuses", 1.5, lost=0.5), "failed"),
])  # fmt: skip
def test_a_judge_that_does_not_is_refused(tmp_path: Path, judge: Scripted, said: str) -> None:
    certificate = certify_judge(judge, sane_clips(), CLIP_SANITY)
    assert not certificate.passed
    save_certificate(certificate, tmp_path)
    with pytest.raises(BadInput, match=said):
        require_certificate(judge, [tmp_path])


def test_a_judge_that_was_never_examined_is_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="judge check"):
        require_certificate(Scripted("unknown", 1.0), [tmp_path])


def test_a_report_and_a_table_make_a_calibration_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    human = rng.uniform(1, 5, 12)
    aspects = [{aspect: {"raw": 0.5 * score + 1} for aspect in CLIP_ASPECTS} for score in human]
    verdicts = [{"file": f"{i}.mp4", "aspects": found} for i, found in enumerate(aspects)]
    (tmp_path / "r.json").write_text(json.dumps({"judge": "test", "verdicts": verdicts}))
    rows = [f"{i}.mp4,{s:.2f},{s:.2f},{s:.2f}" for i, s in enumerate(human)]
    (tmp_path / "h.csv").write_text("\n".join(["file,lip_sync,expressiveness,motion", *rows]))
    words = ["--human", str(tmp_path / "h.csv"), "--output", str(tmp_path / "c.json")]
    assert main(["judge", "calibrate", *words, "--scores", str(tmp_path / "r.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["motion"]["before"]["spearman"] == pytest.approx(1)
    assert told["motion"]["before"]["by_generator"]["unknown"]["clips"] == 12
    assert (tmp_path / "c.png").stat().st_size > 1000
    middle = Calibration.load(tmp_path / "c.json").apply("motion", 2.5)
    assert middle == pytest.approx(3.0, abs=0.4)
    assert main(["judge", "calibrate", *words]) == 2
    assert main(["judge", "calibrate", *words, "--scores", str(tmp_path / "h.csv")]) == 2

"""Claims about preference studies: what participants see, what is kept of them, and what the answers then say."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.human_study.analysis import (
    PreferenceResult,
    analyse_study,
    correct_p_values,
    exclusion_reason,
)
from flowportrait.human_study.make import make_study
from flowportrait.human_study.plan import QUESTIONS, AnswerStore, Study, StudyComparison
from flowportrait.human_study.server import choice_of_label, label_of_choice, study_app
from flowportrait.human_study.strengths import StudyVote, fit_strengths
from flowportrait.preferences.dataset import Label, read_pairs
from flowportrait.preferences.inspection import krippendorff_alpha
from tests.study_browser import small_study, videos


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_study(tmp_path_factory.mktemp("study"), checks=1)


@pytest.fixture
def fresh(study: Path, tmp_path: Path) -> Path:
    """The study without anybody's answers."""
    for name in ("study.json", "consent.txt"):
        (tmp_path / name).write_bytes((study / name).read_bytes())
    (tmp_path / "media").symlink_to(study / "media")
    return tmp_path


def client(folder: Path) -> TestClient:
    return TestClient(study_app(folder), base_url="http://localhost")


def planned(pairs: int, share: int = 0, checks: int = 2) -> Study:
    comparisons = [StudyComparison(f"p{n}", "pair", f"c{n}", f"{n}a", f"{n}b", "x", "y") for n in range(pairs)]
    comparisons += [StudyComparison(f"b{n}", "broken", "c", "a", "b") for n in range(checks)]
    return Study("id", "t", "seed", ("x", "y"), tuple(comparisons), share)


def test_a_file_in_the_study_has_the_pictures_of_its_source_and_none_of_its_tags(study: Path) -> None:
    plan = Study.load(study)
    one = next(one for one in plan.pairs if one.clip == "clip0")
    source = study.parent / one.system_a / "clip0.mp4"
    with av.open(str(source)) as before, av.open(str(study / "media" / one.a)) as after:
        assert before.metadata["title"] == one.system_a
        assert "title" not in after.metadata
        for was, now in zip(before.decode(video=0), after.decode(video=0), strict=True):
            assert np.array_equal(was.to_ndarray(), now.to_ndarray())
    assert not any(name in one.a for name in (*plan.systems, "clip0"))


def test_what_a_browser_cannot_play_is_encoded_again(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with av.open(str(tmp_path / name / "c.avi"), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for _ in range(5):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8))))
            container.mux(stream.encode())
    plan = make_study([tmp_path / "one", tmp_path / "two"], tmp_path / "study", checks=0)
    with av.open(str(tmp_path / "study" / "media" / plan.pairs[0].a)) as made:
        assert made.streams.video[0].codec_context.name == "h264"


def test_files_that_cannot_be_used_are_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    folders = [videos(tmp_path / name, clips=1) for name in ("one", "two", "three")]
    (folders[0] / "bad.mp4").write_bytes(b"no video")
    (folders[1] / "bad.mp4").write_bytes((folders[1] / "clip0.mp4").read_bytes())
    plan = make_study(folders, tmp_path / "study", checks=0)
    assert len(plan.pairs) == 3
    assert plan.excluded is not None
    assert set(plan.excluded) == {"one/bad.mp4", "three/bad"}
    assert len(list((tmp_path / "study" / "media").iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["make", "{0}/a", "--output", "{0}/s"], "at least two folders"),
        (["make", "{0}/a", "{0}/gone", "--output", "{0}/s"], "not a folder of videos"),
        (["make", "{0}/a", "{0}/b", "--output", "{0}/s"], "No clip exists in two systems"),
        (["serve", "{0}/a"], "holds no study"),
        (["analyse", "{0}/a"], "holds no study"),
    ],
)
def test_bad_input_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    for name, clip in (("a", "one"), ("b", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{clip}.mp4").write_bytes(b"x")
    assert main(["preferences", "study", *(argument.format(tmp_path) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


@given(st.text(min_size=1), st.integers(0, 50), st.integers(1, 9))
@settings(max_examples=30)
def test_a_participant_sees_each_thing_once_in_an_order_that_only_their_link_decides(
    token: str, number: int, pairs: int
) -> None:
    plan = planned(pairs)
    trials = plan.trials(token, number)
    assert trials == plan.trials(token, number)
    assert Counter(t.comparison.key for t in trials) == Counter(one.key for one in plan.comparisons)
    assert trials[0].comparison.kind == "pair"


def test_shares_meet_every_pair_equally_often_and_sides_are_a_coin() -> None:
    plan = planned(12, share=4, checks=0)
    shown = [trial for number in range(300) for trial in plan.trials(f"t{number}", number)]
    assert set(Counter(t.comparison.key for t in shown).values()) == {100}
    assert 0.45 < np.mean([t.flipped for t in shown]) < 0.55


def test_left_and_right_are_undone() -> None:
    assert label_of_choice("left", True) is Label.SECOND
    for flipped in (False, True):
        for choice in ("left", "same", "right"):
            assert choice_of_label(label_of_choice(choice, flipped), flipped) == choice  # type: ignore[arg-type]


def test_the_page_learns_no_system_and_no_check_and_videos_can_be_sought(fresh: Path) -> None:
    plan, web = Study.load(fresh), client(fresh)
    token = web.post("/api/participants").json()["token"]
    told = "".join(
        web.get(path).text
        for path in (
            "/api/study",
            f"/api/participants/{token}",
            *(f"/api/participants/{token}/trials/{i}" for i in range(4)),
        )
    )
    for secret in (*plan.systems, "broken", "identical", "clip0"):
        assert secret not in told
    part = web.get(f"/media/{plan.pairs[0].a}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, len(part.content)) == (206, 10)
    assert web.get("/").headers["content-security-policy"].startswith("default-src 'none'")
    for path in ("/media/study.json", "/media/..%2Fstudy.json", "/page/server.py", "/api/participants/nobody"):
        assert web.get(path).status_code == 404
    put = f"/api/participants/{token}/trials/0"
    assert web.put(put, json={"aspect": "beauty", "choice": "left"}).status_code == 422
    assert web.put(put, json={"aspect": "sync", "choice": "left", "name": "Ann"}).status_code == 422
    assert web.get("/", headers={"Host": "evil.example"}).status_code == 400


def test_nothing_identifying_is_stored(fresh: Path) -> None:
    web = client(fresh)
    began = web.post("/api/participants", headers={"User-Agent": "Remarkable/1.0", "X-Forwarded-For": "203.0.113.9"})
    assert "set-cookie" not in began.headers
    web.put(f"/api/participants/{began.json()['token']}/trials/0", json={"aspect": "sync", "choice": "same"})
    with sqlite3.connect(fresh / "answers.sqlite") as base:
        assert base.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        columns = {
            row[1] for table in ("participants", "answers") for row in base.execute(f"PRAGMA table_info({table})")
        }
    assert columns == {"token", "number", "comparison", "aspect", "label"}
    held = b"".join(path.read_bytes() for path in fresh.glob("answers.sqlite*"))
    assert b"Remarkable" not in held
    assert b"203.0.113" not in held


def test_the_last_answer_counts_and_withdrawing_forgets_all(fresh: Path) -> None:
    store = AnswerStore(fresh, Study.load(fresh))
    token, other = store.add_participant(), store.add_participant()
    assert (store.number(token), store.number(other), store.number("x")) == (0, 1, None)
    store.answer(token, "p0", "sync", Label.FIRST)
    store.answer(token, "p0", "sync", Label.TIE)
    assert store.answers(token) == {"p0": {"sync": Label.TIE}}
    assert store.answers(other) == {}
    store.withdraw(token)
    assert store.all_answers() == {}
    plan = json.loads((fresh / "study.json").read_text())
    (fresh / "study.json").write_text(json.dumps({**plan, "identity": "another"}))
    with pytest.raises(BadInput, match="another study"):
        study_app(fresh)


@pytest.mark.parametrize("name", ["../answers.sqlite", "..", "/etc/passwd", "..\\study.json", "a/b.mp4", ""])
def test_a_study_from_elsewhere_cannot_name_files_outside(fresh: Path, name: str) -> None:
    plan = json.loads((fresh / "study.json").read_text())
    plan["comparisons"][0]["a"] = name
    (fresh / "study.json").write_text(json.dumps(plan))
    with pytest.raises(BadInput, match="no name of a file"):
        study_app(fresh)


def test_no_more_begin_than_may_and_who_has_begun_goes_on(fresh: Path) -> None:
    web = TestClient(study_app(fresh, participants=2), base_url="http://localhost")
    tokens = [web.post("/api/participants").json()["token"] for _ in range(2)]
    full = web.post("/api/participants")
    assert full.status_code == 403
    assert "all the participants" in full.json()["detail"]
    assert web.get(f"/api/participants/{tokens[0]}").status_code == 200
    assert main(["preferences", "study", "serve", str(fresh), "--participants", "0"]) == 2


def test_a_request_reads_the_answers_of_its_own_participant_alone(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web, store = client(fresh), AnswerStore(fresh, Study.load(fresh))
    mine, others = (web.post("/api/participants").json()["token"] for _ in range(2))
    store.answer(others, "p0", "sync", Label.SECOND)
    monkeypatch.setattr(AnswerStore, "all_answers", lambda self: pytest.fail("all answers were read"))
    put = web.put(f"/api/participants/{mine}/trials/0", json={"aspect": "sync", "choice": "same"})
    assert put.status_code == 200
    assert web.get(f"/api/participants/{mine}").json()["finished"] == 0
    assert web.get(f"/api/participants/{mine}/trials/0").json()["answers"] == {"sync": "same"}


def test_who_does_not_look_does_not_count() -> None:
    plan = planned(1, checks=1)
    assert exclusion_reason(plan, {"b0": {"overall": Label.FIRST}}) == ""
    assert "ruined" in exclusion_reason(plan, {"b0": {"overall": Label.TIE}})
    assert "before" in exclusion_reason(plan, {"p0": {"overall": Label.FIRST}})
    same = tuple(StudyComparison(f"i{n}", "identical", "c", "a", "a") for n in range(2))
    plan = Study("id", "t", "s", ("x", "y"), (*plan.comparisons, *same))
    looked = {"b0": {"overall": Label.FIRST}, "i0": {"overall": Label.FIRST}, "i1": {"overall": Label.TIE}}
    assert exclusion_reason(plan, looked) == ""
    assert "identical" in exclusion_reason(plan, {**looked, "i1": {"overall": Label.SECOND}})


def test_krippendorffs_own_example() -> None:
    # Computing Krippendorff's Alpha-Reliability (2011), C: four observers, twelve units, missing data: 0.743.
    units = [
        [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
        [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
    ]  # fmt: skip
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=0.001)
    assert krippendorff_alpha([["A", "B"], ["A", "B"]]) == pytest.approx(-0.5)
    assert krippendorff_alpha([["A", "A"], ["B", "B"]]) == 1
    assert krippendorff_alpha([["A"], ["A", "A"]]) is None


def test_two_systems_strengths_are_the_closed_form() -> None:
    # With one pair, Davidson's model is saturated: it gives back the (smoothed) shares themselves.
    labels = [Label.FIRST] * 30 + [Label.SECOND] * 10 + [Label.TIE] * 20
    found = fit_strengths([StudyVote(n % 4, "x", "y", label) for n, label in enumerate(labels)], ("x", "y"))
    shares = np.array([30.5, 10.5, 20.5]) / 61.5
    assert found.chance("x", "y") == pytest.approx(tuple(shares), abs=1e-6)
    assert found.theta["x"] == pytest.approx(np.log(30.5 / 10.5) / 2, abs=1e-6)
    assert found.half["x"] == pytest.approx(1.959964 * np.sqrt(1 / 30.5 + 1 / 10.5) / 2, abs=1e-6)


def test_strengths_come_back_from_drawn_answers_and_never_run_away() -> None:
    rng, true = np.random.default_rng(0), {"x": 0.8, "y": 0.0, "z": -0.8}
    votes = []
    for n in range(3000):
        one, other = [("x", "y"), ("y", "z"), ("x", "z")][n % 3]
        a, b = np.exp(true[one]), np.exp(true[other])
        weights = np.array([a, b, 0.7 * np.sqrt(a * b)])
        label = (Label.FIRST, Label.SECOND, Label.TIE)[rng.choice(3, p=weights / weights.sum())]
        votes.append(StudyVote(n % 20, one, other, label))
    found = fit_strengths(votes, tuple(true))
    assert found.robust
    assert found.tie == pytest.approx(0.7, abs=0.1)
    for name, theta in true.items():
        assert abs(found.theta[name] - theta) < 2 * found.half[name] < 0.3
    always = fit_strengths([StudyVote(0, "x", "y", Label.FIRST)] * 10, ("x", "y", "z"))
    assert 0.5 < always.theta["x"] < 5
    assert always.half["z"] == float("inf")


def test_holm_by_hand() -> None:
    rows = [PreferenceResult("sync", "a", "b", 1, 1, 0, 0.5, 0.0, 1.0, 0.5, p, p) for p in (0.04, 0.01, 0.03)]
    assert [row.p_holm for row in correct_p_values(rows)] == pytest.approx([0.06, 0.03, 0.06])


def test_the_analysis_finds_what_people_said_and_leaves_out_who_did_not_look(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = Study.load(fresh)
    store = AnswerStore(fresh, plan)
    for person in range(6):
        token, careless = store.add_participant(), person == 5
        for one in plan.comparisons:
            # Everybody who looks prefers "fast"; the careless one always says B.
            label = {
                "pair": Label.FIRST if one.system_a == "fast" else Label.SECOND,
                "broken": Label.FIRST,
                "identical": Label.TIE,
            }[one.kind]
            for aspect in QUESTIONS:
                store.answer(token, one.key, aspect, Label.SECOND if careless else label)
    analysis = analyse_study(fresh, fresh / "out")
    assert (analysis["participants"], analysis["kept"]) == (6, 5)
    overall = next(row for row in analysis["preferences"] if row["aspect"] == "overall")
    assert overall["losses" if overall["system_b"] == "fast" else "wins"] == 10
    assert overall["p"] == pytest.approx(2 * 0.5**10)
    assert overall["p_person"] == pytest.approx(2 * 0.5**5)
    assert analysis["strengths"]["sync"]["theta"]["fast"] > 0
    pairs = read_pairs(fresh / "pairs.jsonl")
    assert len(pairs) == analysis["pairs"] == 10
    assert {pair.annotator for pair in pairs} == {f"p{n:03}" for n in range(5)}
    assert all((fresh / pair.first).is_file() for pair in pairs)
    page = (fresh / "out" / "analysis.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    assert main(["preferences", "study", "analyse", str(fresh), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 5


def test_serving_from_the_command_line_ends_well(fresh: Path) -> None:
    served = subprocess.Popen(
        [sys.executable, "-m", "flowportrait.cli", "preferences", "study", "serve", str(fresh), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert served.stderr is not None
    assert "http://127.0.0.1:" in served.stderr.readline()
    served.send_signal(signal.SIGINT)
    assert served.wait(20) in (0, 130)
    assert "Traceback" not in served.stderr.read()

"""Claims about a study that is to be held: consent before anybody begins, what it can tell, and what it then finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from scipy.stats import binomtest

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.human_study.analysis import analyse_study
from flowportrait.human_study.clusters import clustered_preferences
from flowportrait.human_study.consent import CONSENT_FILE, CONTACT_PLACEHOLDER, read_consent, write_consent
from flowportrait.human_study.plan import AnswerStore, Study, StudyComparison
from flowportrait.human_study.power import detectable_share, sign_test_power, study_power
from flowportrait.human_study.server import study_app
from flowportrait.human_study.strengths import StudyVote, fit_counts, fit_strengths
from flowportrait.preferences.dataset import Label

CONTACT = "Ada Example, University of Examples, ada@example.org"
PREFERRED, TIES = 0.75, 0.15
"""Share of answers without ties that prefer the system ``new``, and share of ties, of simulated participants."""


def planned_study(folder: Path, pairs: int = 40, contact: str | None = CONTACT) -> Study:
    """A study of blind pairs with empty files for videos: whoever only answers needs no more."""
    comparisons = [
        StudyComparison(f"p{n}", "pair", f"clip{n}", f"{n}a.mp4", f"{n}b.mp4", "new", "old", prompt=f"clip{n}")
        for n in range(pairs)
    ]
    for n in range(2):
        comparisons.append(StudyComparison(f"b{n}", "broken", f"clip{n}", f"{n}a.mp4", f"{n}x.mp4"))
        comparisons.append(StudyComparison(f"i{n}", "identical", f"clip{n}", f"{n}a.mp4", f"{n}a.mp4"))
    study = Study("identity", "Which video is better?", "seed", ("new", "old"), tuple(comparisons))
    (folder / "media").mkdir(parents=True)
    for name in study.files:
        (folder / "media" / name).touch()
    write_consent(folder, contact)
    study.save(folder)
    return study


# --- Consent


def test_a_study_is_not_held_until_its_contact_is_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned_study(tmp_path, contact=None)
    assert main(["preferences", "study", "serve", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "[CONTACT:" in error
    assert "--preview" in error
    assert error.count("\n") == 1
    text = (tmp_path / CONSENT_FILE).read_text()
    (tmp_path / CONSENT_FILE).write_text(text.replace(CONTACT_PLACEHOLDER, CONTACT))
    told = TestClient(study_app(tmp_path), base_url="http://localhost").get("/api/study").json()
    assert told["consent"][-1] == {"heading": "Whom to ask", "paragraphs": [CONTACT]}
    words = json.dumps(told["consent"])
    for needed in ("used in research", "random number", "without a reason", "deletes all your answers", "flicker"):
        assert needed in words
    assert not told["preview"]


def test_a_preview_keeps_no_answers(tmp_path: Path) -> None:
    planned_study(tmp_path / "study", contact=None)
    (tmp_path / "scratch").mkdir()
    app = study_app(tmp_path / "study", preview=tmp_path / "scratch")
    web = TestClient(app, base_url="http://localhost")
    assert web.get("/api/study").json()["preview"]
    token = web.post("/api/participants").json()["token"]
    put = web.put(f"/api/participants/{token}/trials/0", json={"aspect": "overall", "choice": "left"})
    assert put.status_code == 200
    assert not list((tmp_path / "study").glob("answers*"))


def test_a_study_of_an_earlier_version_is_refused_with_a_text_to_fill_in(tmp_path: Path) -> None:
    planned_study(tmp_path)
    (tmp_path / CONSENT_FILE).unlink()
    with pytest.raises(BadInput, match="placeholder"):
        study_app(tmp_path)
    assert CONTACT_PLACEHOLDER in (tmp_path / CONSENT_FILE).read_text()


def test_a_text_of_ones_own_is_kept_and_shown(tmp_path: Path) -> None:
    (tmp_path / CONSENT_FILE).write_text("Before all.\n\n# Why\nBecause.\n\nOnce more <b>.\n")
    write_consent(tmp_path, "somebody")
    assert [tuple(section) for section in read_consent(tmp_path)] == [
        ("", ["Before all."]), ("Why", ["Because.", "Once more <b>."])
    ]  # fmt: skip
    (tmp_path / CONSENT_FILE).write_text("  \n")
    with pytest.raises(BadInput, match="is empty"):
        read_consent(tmp_path)


# --- Power


@pytest.mark.parametrize("answers", [6, 40, 41, 160, 800])
def test_the_power_is_that_of_the_exact_test_and_the_share_the_smallest_with_it(answers: int) -> None:
    share = detectable_share(answers)
    assert share is not None
    wins = np.arange(answers + 1)
    significant = np.array([binomtest(int(k), answers).pvalue <= 0.05 for k in wins])
    from scipy.stats import binom

    for true in (0.5, 0.6, share):
        assert sign_test_power(answers, true) == pytest.approx(binom.pmf(wins, answers, true)[significant].sum())
    assert sign_test_power(answers, 0.5) <= 0.05
    assert sign_test_power(answers, share) == pytest.approx(0.8, abs=1e-6)
    assert sign_test_power(answers, share - 0.01) < 0.8


def test_five_answers_can_never_be_significant() -> None:
    assert detectable_share(5) is None


def test_alike_answers_tell_less_and_participants_alone_do_not_help_for_ever() -> None:
    sizes = [study_power(40, participants) for participants in (5, 20, 80, 2000, 4000)]
    for size in sizes:
        assert size.independent_share is not None
        assert size.clustered_share is not None
        assert size.clustered_share > size.independent_share > 0.5
    assert sizes[-1].clustered_share == pytest.approx(sizes[-2].clustered_share, abs=0.002)
    assert study_power(40, 10, icc_participant=0, icc_pair=0).design_effect == 1
    with pytest.raises(BadInput, match="icc-pair"):
        study_power(40, 10, icc_pair=1.5)


def test_the_command_prints_a_line_for_every_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preferences", "study", "power", "--participants", "5", "10", "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["sizes"]
    assert [size["participants"] for size in sizes] == [5, 10]
    assert main(["preferences", "study", "power", "--ties", "2"]) == 2


# --- Analysis


def alike_votes(rng: np.random.Generator, people: int, pairs: int, share: float, alike: float) -> list[StudyVote]:
    """Votes of which those about one pair, and those of one participant, are alike; ``share`` prefer the first."""
    from scipy.stats import norm

    latent = np.sqrt(alike) * (rng.normal(size=(people, 1)) * 0.5 + rng.normal(size=(1, pairs)))
    latent = latent + np.sqrt(1 - alike) * rng.normal(size=(people, pairs))
    first = latent < norm.ppf(share) * np.sqrt(1 + 0.25 * alike)
    return [
        StudyVote(person, "new", "old", Label.FIRST if first[person, pair] else Label.SECOND, f"p{pair}")
        for person in range(people)
        for pair in range(pairs)
    ]


def test_no_preference_is_rarely_called_one_although_answers_are_alike() -> None:
    rng, naive, clustered, effects = np.random.default_rng(1), 0, 0, []
    studies = 60
    for _ in range(studies):
        votes = alike_votes(rng, 10, 40, 0.5, 0.3)
        [row] = clustered_preferences(votes, ("new", "old"), resamples=200)
        wins = sum(vote.label is Label.FIRST for vote in votes)
        naive += binomtest(wins, len(votes)).pvalue < 0.05
        clustered += row.p < 0.05
        assert row.low is not None
        assert row.high is not None
        assert row.preferred is not None
        assert row.low <= row.preferred <= row.high
        effects.append(row.design_effect)
    # 60 studies without an effect: 3 false alarms are expected, and more than 9 have a probability of 0.0004.
    assert clustered <= 9 < naive
    assert np.mean(effects) > 2


def test_independent_answers_are_not_made_worthless() -> None:
    votes = alike_votes(np.random.default_rng(0), 12, 40, 0.65, 0.0)
    [row] = clustered_preferences(votes, ("new", "old"))
    assert 1 <= row.design_effect < 2
    assert row.p < 0.001
    assert row.strength_low > 0


def test_who_always_wins_has_an_interval_and_a_single_participant_proves_nothing() -> None:
    always = [StudyVote(person, "new", "old", Label.FIRST, f"p{n}") for person in range(4) for n in range(10)]
    [row] = clustered_preferences(always, ("new", "old"))
    assert (row.preferred, row.high) == (1.0, 1.0)
    assert row.low is not None
    assert 0.85 < row.low < 1
    [alone] = clustered_preferences(always[:10], ("new", "old"))
    assert (alone.p, alone.low, alone.high) == (1.0, 0.0, 1.0)
    [tied] = clustered_preferences([vote._replace(label=Label.TIE) for vote in always], ("new", "old"))
    assert (tied.preferred, tied.p) == (None, 1.0)


def test_counts_give_the_strengths_that_single_answers_give() -> None:
    rng, labels = np.random.default_rng(0), (Label.FIRST, Label.SECOND, Label.TIE)
    compared = [("x", "y"), ("x", "z"), ("y", "z")]
    counts = rng.integers(1, 20, (3, 3)).astype(float)
    votes = [
        StudyVote(0, one, other, label)
        for row, (one, other) in enumerate(compared)
        for column, label in enumerate(labels)
        for _ in range(int(counts[row, column]))
    ]
    [theta, _], _ = fit_counts([(0, 1), (0, 2), (1, 2)], np.stack([counts, counts + 1]), 3)
    assert theta == pytest.approx(list(fit_strengths(votes, ("x", "y", "z")).theta.values()), abs=1e-8)


@pytest.mark.slow
def test_simulated_participants_on_forty_pairs_are_recovered_over_http(tmp_path: Path) -> None:
    plan, rng = planned_study(tmp_path), np.random.default_rng(5)
    web = TestClient(study_app(tmp_path), base_url="http://localhost")
    for person in range(14):
        token, careless = web.post("/api/participants").json()["token"], person >= 12
        for index, trial in enumerate(plan.trials(token, person)):
            one, choice = trial.comparison, "same"
            if not careless and one.kind != "identical":
                a_is_better = one.kind == "broken" or rng.random() < PREFERRED
                if one.kind == "broken" or rng.random() >= TIES:
                    choice = "left" if a_is_better != trial.flipped else "right"
            put = web.put(f"/api/participants/{token}/trials/{index}", json={"aspect": "overall", "choice": choice})
            assert put.status_code == 200
    assert len(AnswerStore(tmp_path, plan).all_answers()) == 14
    analysis = analyse_study(tmp_path, tmp_path / "out")
    assert analysis["left_out"] == {"did not prefer the intact video to a ruined one": 2}
    [row] = [one for one in analysis["preferences"] if one["aspect"] == "overall"]
    assert row["wins"] + row["losses"] + row["ties"] == 12 * 40
    assert row["ties"] / (12 * 40) == pytest.approx(TIES, abs=0.05)
    [clustered] = analysis["clustered"]["overall"]
    assert (clustered["participants"], clustered["pairs"]) == (12, 40)
    assert clustered["low"] < PREFERRED < clustered["high"]
    assert clustered["p"] < 0.001
    true = np.log(PREFERRED / (1 - PREFERRED))
    assert clustered["strength_low"] < true < clustered["strength_high"]
    assert clustered["strength_low"] > 0
    assert "With the dependence of answers" in (tmp_path / "out" / "analysis.html").read_text()

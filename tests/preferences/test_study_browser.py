"""Claims about the study's page in a real Chromium: a whole session, a reload half-way, two people at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowportrait.human_study.analysis import analyse_study
from flowportrait.human_study.plan import QUESTIONS, AnswerStore, Study, Trial
from flowportrait.preferences.dataset import Label
from tests.study_browser import browser, served, small_study

pytestmark = pytest.mark.slow
PREFERRED = "fast"


def looked_at(trial: Trial) -> str:
    """The key that somebody presses who prefers ``fast`` and looks."""
    one = trial.comparison
    if one.kind == "identical":
        return "ArrowDown"
    better_is_a = one.kind == "broken" or one.system_a == PREFERRED
    return "ArrowLeft" if better_is_a != trial.flipped else "ArrowRight"


def until(page: Any, true: str) -> None:
    """Wait for an expression; playwright's own wait compiles strings, which the page's security policy forbids."""
    for _ in range(300):
        if page.evaluate(true):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {true}")


def shown(page: Any, number: int, total: int) -> None:
    until(page, f"count.textContent === '{number} of {total}' && document.querySelector('.question.now')")


def videos_run(page: Any) -> None:
    until(page, "left.currentTime > 0.1 && right.currentTime > 0.1 && !left.paused && !right.paused")


def test_two_people_at_once_one_of_whom_reloads_half_way(tmp_path: Path) -> None:
    study = small_study(tmp_path, checks=1)
    plan = Study.load(study)
    total = len(plan.comparisons)
    with served(study) as address, browser() as chromium:
        errors: list[str] = []
        asked: list[str] = []
        people = [chromium.new_context(viewport={"width": 1280, "height": 800}) for _ in range(2)]
        pages = [context.new_page() for context in people]
        for page in pages:
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            assert page.is_disabled("#begin"), "a session begins without consent"
            page.check("#agree")
            page.click("#begin")
        tokens = [page.url.rsplit("/", 1)[1] for page in pages if page.wait_for_url("**/p/*") is None]
        trials = [plan.trials(token, number) for number, token in enumerate(tokens)]
        assert trials[0] != trials[1]
        for index in range(total):
            for page, own in zip(pages, trials, strict=True):
                shown(page, index + 1, total)
                videos_run(page)
                assert page.evaluate("left.muted !== right.muted")
                assert page.is_disabled("#next")
                if page is pages[0] and index == total // 2:
                    page.keyboard.press(looked_at(own[index]))
                    page.wait_for_load_state("networkidle")
                    page.reload()
                    shown(page, index + 1, total)
                    assert page.locator("[aria-pressed=true]").count() == 1
                    videos_run(page)
                while page.locator("[aria-pressed=true]").count() < len(QUESTIONS):
                    page.keyboard.press(looked_at(own[index]))
                page.keyboard.press("Enter")
        for page in pages:
            page.wait_for_selector("#done:visible")
        assert not errors
        assert all(url.startswith((address, "data:")) for url in asked)
        assert not any(context.cookies() for context in people)
        assert pages[0].evaluate("localStorage.length + sessionStorage.length") == 0
        pages[1].goto(f"{address}/p/{tokens[1]}")
        pages[1].wait_for_selector("#done:visible")
    answers = AnswerStore(study, plan).all_answers()
    assert [len(own) for own in answers.values()] == [total, total]
    analysis = analyse_study(study, tmp_path / "out")
    assert analysis["kept"] == 2
    for row in analysis["preferences"]:
        assert row["preferred"] == (row["system_a"] == PREFERRED)


def test_a_phone_answers_by_touch_hears_one_side_at_a_time_and_can_withdraw(tmp_path: Path) -> None:
    study = small_study(tmp_path, clips=1, checks=0)
    plan = Study.load(study)
    with served(study) as address, browser() as chromium:
        context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        page = context.new_page()
        page.goto(address)
        page.tap("#agree")
        page.tap("#begin")
        shown(page, 1, 1)
        videos_run(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for side, muted in (("right", [True, False]), ("left", [False, True])):
            page.tap(f"#{side}-side")
            assert page.evaluate("[left.muted, right.muted]") == muted
        assert (
            page.evaluate("Math.min(...[...document.querySelectorAll('.choices button')].map(b => b.offsetHeight))")
            >= 44
        )
        for question in page.locator(".question").all():
            question.locator("[data-choice=same]").tap()
        page.tap("#next")
        page.wait_for_selector("#done:visible")
        assert AnswerStore(study, plan).all_answers()[0]["p0"] == dict.fromkeys(QUESTIONS, Label.TIE)
        page.on("dialog", lambda dialog: dialog.accept())
        page.tap("#done .withdraw")
        page.wait_for_selector("#lost:visible")
        assert "deleted" in page.text_content("#lost")
        page.goto(f"{address}/p/nobody")
        page.wait_for_selector("#lost:visible")
    assert AnswerStore(study, plan).all_answers() == {}


def test_a_study_of_forty_pairs_is_answered_to_its_end_after_consent(tmp_path: Path) -> None:
    study = small_study(tmp_path, clips=40, checks=2)
    plan = Study.load(study)
    assert len(plan.pairs) == 40
    with served(study) as address, browser() as chromium:
        page = chromium.new_context(viewport={"width": 1280, "height": 800}).new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_text("Whom to ask").wait_for()  # the text of the study arrives after the page
        text = page.inner_text("#intro")
        for heading in ("What this is for", "What is kept", "You can stop at any time", "Whom to ask"):
            assert heading in text
        assert "ada@example.org" in text
        page.focus("#agree")
        page.keyboard.press("Space")
        assert page.is_enabled("#begin")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_url("**/p/*")
        trials = plan.trials(page.url.rsplit("/", 1)[1], 0)
        for index, trial in enumerate(trials):
            shown(page, index + 1, 44)
            while page.locator("[aria-pressed=true]").count() < len(QUESTIONS):
                page.keyboard.press(looked_at(trial))
            page.keyboard.press("Enter")
        page.wait_for_selector("#done:visible")
        assert not errors
    [row] = analyse_study(study, tmp_path / "out")["clustered"]["overall"]
    assert (row["participants"], row["pairs"]) == (1, 40)
    assert row["preferred"] == (row["system_a"] == PREFERRED)
    assert row["p"] == 1.0, "one participant is no evidence about people"

"""Claims about the panel's path through a real server, llama.cpp with a small language model that does not see.

What the model says need not be good. Requests, schemas, tokens, refusals and failures are those of a real server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flowportrait.errors import BadInput
from flowportrait.judges.client import ChatClient
from flowportrait.judges.examination import examine_judge
from flowportrait.judges.messages import NOTHING_SHOWN, Endpoint, MediaFormats
from flowportrait.judges.methods import ComparingPanel
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import Ledger, ReplyCache
from flowportrait.judges.rubric import CLIP_ASPECTS, HIGHEST_GRADE, LOWEST_GRADE
from flowportrait.judges.sanity import CLIP_SANITY, SanitySet
from tests.judges.test_judge_client import clip
from tests.text_model_server import server_figures, text_model_server

pytestmark = pytest.mark.slow
NOTHING = MediaFormats(images=False, audio="off")
PRICES = {"dollars_in": 2.0, "dollars_out": 8.0}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with text_model_server() as found:
        yield found


def panel(address: str, folder: Path | None = None, shows: MediaFormats = NOTHING, **changes: Any) -> Panel:
    options: dict[str, Any] = {"max_tokens": 120, "concurrency": 3, "first_wait": 0.01, **PRICES, **changes}
    end = Endpoint(url=f"{address}/v1", model="SmolLM2-135M-Instruct", shows=shows, **options)
    ledger = Ledger(folder / "ledger.jsonl" if folder else None)
    return Panel(ChatClient(end, ledger), PanelSettings(samples=1), ReplyCache(folder))


def ledger_of(judge: Panel) -> Ledger:
    assert isinstance(judge.backend, ChatClient)
    return judge.backend.ledger


def test_grades_come_by_the_schema_with_expectations_and_tokens_are_those_that_the_server_counts(
    address: str, tmp_path: Path
) -> None:
    judge, before = panel(address, tmp_path, answers=4), server_figures(address)
    [verdict] = judge.judge([clip()])
    after, totals = server_figures(address), ledger_of(judge).totals()
    replies = [json.loads(path.read_text()) for path in tmp_path.glob("*/*.json")]
    assert len(replies) == totals["outcomes"]["answered"] > 0
    for reply in replies:
        # The grammar holds the model to the schema: one object, these keys, a whole grade within the bounds.
        answer = json.loads(reply["text"])
        assert list(answer) == ["rationale", "errors", "score"]
        assert answer["score"] in range(LOWEST_GRADE, HIGHEST_GRADE + 1)
        assert any(alternatives for _, alternatives in reply["tokens"])
    graded = [verdict.aspects[aspect] for aspect in CLIP_ASPECTS if verdict.aspects[aspect].score is not None]
    assert len(graded) == len(replies)
    assert any(grade.score != round(grade.score or 0) for grade in graded), "no grade is an expectation"
    assert verdict.kind == "LLM panel without pictures or sound"
    processed = sum(after[name] - before[name] for name in ("prompt_tokens_total", "prompt_tokens_cached_total"))
    assert totals["tokens_in"] == processed
    assert totals["tokens_out"] == after["tokens_predicted_total"] - before["tokens_predicted_total"]
    assert totals["dollars"] == pytest.approx((2 * totals["tokens_in"] + 8 * totals["tokens_out"]) / 1e6, abs=1e-6)
    assert totals["untold"] == 0
    again, aspect = panel(address, tmp_path), graded[0].aspect
    assert again.judge([clip()], (aspect,))[0].aspects[aspect] == graded[0]
    assert ledger_of(again).totals() == totals, "an answered question was asked again"


@pytest.mark.parametrize(
    ("shows", "kind", "setting"),
    [
        (MediaFormats(), "image", "endpoint.shows.images=false"),
        (MediaFormats(images=False), "audio", "endpoint.shows.audio=off"),
        (MediaFormats(images=False, audio="audio_url"), "audio", "endpoint.shows.audio=off"),
        (MediaFormats(images=False, audio="off", video=True), "video", "endpoint.shows.video=false"),
    ],
)
def test_a_server_that_takes_no_pictures_or_sound_is_named_at_once_with_the_setting(
    address: str, shows: MediaFormats, kind: str, setting: str
) -> None:
    judge = panel(address, shows=shows, concurrency=1)
    with pytest.raises(BadInput, match=f"takes no {kind}.*{setting}"):
        judge.judge([clip()])
    # Repeating such a request cannot help, and the JSON schema is not to blame.
    assert ledger_of(judge).totals()["outcomes"] == {"rejected": 1}


def test_without_pictures_and_sound_the_model_is_told_so(address: str) -> None:
    from flowportrait.judges.messages import message_parts
    from flowportrait.judges.panel import CLIP_SUBJECT

    parts = message_parts(CLIP_SUBJECT.make_input(clip(), "motion", PanelSettings()), NOTHING)
    assert parts == [{"type": "text", "text": NOTHING_SHOWN}]


def test_answers_that_are_no_json_are_asked_for_again_and_then_no_grade(address: str) -> None:
    judge = panel(address, json_schema=False, max_tokens=16, answers=2)
    [verdict] = judge.judge([clip()], ("motion",))
    failure = verdict.aspects["motion"].failure
    assert failure is not None
    assert failure.kind == "malformed"
    assert ledger_of(judge).totals()["outcomes"] == {"malformed": 2}
    assert ledger_of(judge).totals()["tokens_out"] == 32


def test_a_server_that_is_too_slow_is_a_typed_failure(address: str) -> None:
    judge = panel(address, timeout=0.05, attempts=2)
    [verdict] = judge.judge([clip()], ("motion",))
    failure = verdict.aspects["motion"].failure
    assert failure is not None
    assert failure.kind == "unavailable"
    assert ledger_of(judge).totals()["outcomes"] == {"timed_out": 2}
    assert ledger_of(judge).totals()["untold"] == 2


def test_a_question_longer_than_the_context_fails_alone_with_the_servers_words_and_keeps_the_schema(
    address: str,
) -> None:
    from flowportrait.judges.rubric import RubricLibrary

    judge = panel(address)
    judge.library = RubricLibrary({"motion": ("Look at every hair. " * 2000,)})
    [verdict] = judge.judge([clip()], ("motion", "expressiveness"))
    failure = verdict.aspects["motion"].failure
    assert failure is not None
    assert failure.kind == "refused"
    assert "context size" in failure.detail
    assert ledger_of(judge).totals()["outcomes"]["rejected"] == 1
    assert isinstance(judge.backend, ChatClient)
    assert "response_format" in judge.backend._params


def test_pairs_are_compared_in_both_orders(address: str) -> None:
    judge = panel(address, answers=4)
    comparing = ComparingPanel(judge.backend, PanelSettings(samples=1))
    [choices] = comparing.compare([(clip(), clip(1))])
    for choice in choices.values():
        assert choice.margin in (None, -1.0, -0.5, 0.0, 0.5, 1.0)
        assert choice.position_bias in (None, 0.0, 1.0)
    assert any(choice.margin is not None for choice in choices.values())
    assert ledger_of(judge).totals()["outcomes"]["answered"] <= 6


def test_an_examination_of_a_model_that_sees_nothing_fails_it_and_prices_it(address: str) -> None:
    def prepared(items: Sequence[Any]) -> list[Any]:
        return list(items)

    cases = {"motion": tuple(damage for damage in CLIP_SANITY.cases["motion"] if damage.name == "flicker")}
    short = SanitySet(cases, prepared, 1, "clips")
    judge = panel(address, answers=1, max_tokens=64)
    found = examine_judge(judge, [clip()], short, rounds=2)
    assert not found.certificate.passed
    assert found.cost is not None
    totals = ledger_of(judge).totals(addresses=set(judge.cache.looked_up[-2 * len(CLIP_ASPECTS) :]))
    assert found.cost.requests == totals["requests"] / 2
    assert found.cost.tokens_in == totals["tokens_in"] / 2
    assert found.cost.dollars_per_1000 == pytest.approx(
        1000 * (totals["tokens_in"] * 2.0 + totals["tokens_out"] * 8.0) / 1e6 / 2
    )
    assert found.cost.seconds is not None

"""Claims about the panel over real HTTP: nothing is lost, nothing is invented, and the ledger knows every request."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowportrait.errors import BadInput
from flowportrait.judges.answers import (
    BOX_FORMAT,
    CHOICE_FORMAT,
    THOUGHTS_FORMAT,
    Grade,
    grade_format,
    review_format,
    rule_format,
    still_grade_format,
    windows_format,
)
from flowportrait.judges.client import ChatClient, RequestPacer
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.messages import Endpoint
from flowportrait.judges.panel import Panel, PanelSettings
from flowportrait.judges.questions import Ledger, ReplyCache
from flowportrait.judges.replies import Reply
from flowportrait.judges.rubric import CLIP_ASPECTS
from tests.judge_server import GOOD, USAGE, FaultyServer

OUTCOME = {
    "ok": "answered", "slow": "timed_out", "busy": "rate_limited", "broken": "server_error", "cut": "cut_off",
    "garbage": "malformed", "truncated": "malformed", "chatter": "malformed", "declines": "refused",
    "eleven": "malformed",
}  # fmt: skip


def clip(seed: int = 0, frames: int = 12) -> JudgedClip:
    """A small noisy clip with a known face: no tracker is needed to judge it."""
    rng = np.random.default_rng(seed)
    face = np.stack(np.meshgrid(np.linspace(16, 48, 22), np.linspace(14, 50, 22)), -1).reshape(-1, 2)[:478]
    return JudgedClip(
        rng.integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8), rng.uniform(-0.3, 0.3, frames * 640), f"clip {seed}",
        known_landmarks=np.repeat(face[None], frames, 0),
    )  # fmt: skip


def endpoint(server: FaultyServer, **changes: Any) -> Endpoint:
    quick: dict[str, Any] = {"timeout": 2.0, "first_wait": 0.01, "longest_wait": 0.05, "dollars_in": 2.0,
                             "dollars_out": 8.0, "concurrency": 6, "attempts": 12, "answers": 6}  # fmt: skip
    return Endpoint(url=server.url, model="test", **(quick | changes))


def panel(server: FaultyServer, folder: Path | None = None, samples: int = 1, **changes: Any) -> tuple[Panel, Ledger]:
    ledger = Ledger(folder / "ledger.jsonl" if folder else None)
    return Panel(
        ChatClient(endpoint(server, **changes), ledger), PanelSettings(samples=samples), ReplyCache(folder)
    ), ledger


def scripted(names: Sequence[str]) -> Callable[[int, dict[str, Any]], str]:
    return lambda number, body: names[number] if number < len(names) else "ok"


def test_through_every_fault_all_scores_arrive_and_every_request_is_in_the_ledger(tmp_path: Path) -> None:
    faults = [name for name in OUTCOME if name != "ok"] * 2
    random.Random(0).shuffle(faults)
    with FaultyServer(scripted(faults)) as server:
        judge, ledger = panel(server, tmp_path, samples=2)
        verdicts = judge.judge([clip(seed) for seed in range(4)])
    assert all(verdict.aspects[aspect].score == 4.0 for verdict in verdicts for aspect in CLIP_ASPECTS)
    expected: dict[str, int] = {}
    for fault, count in server.happened.items():
        expected[OUTCOME[fault]] = expected.get(OUTCOME[fault], 0) + count
    totals = ledger.totals()
    assert totals["outcomes"] == expected
    assert totals["outcomes"]["answered"] == 4 * 3 * 2
    told = sum(server.happened[name] for name in ("ok", "truncated", "chatter", "declines", "eleven"))
    assert totals["tokens_in"] == told * USAGE["prompt_tokens"]
    assert totals["tokens_out"] == told * USAGE["completion_tokens"]
    assert totals["dollars"] == pytest.approx(told * (100 * 2.0 + 7 * 8.0) / 1e6)
    assert totals["untold"] == totals["requests"] - told
    assert Ledger(tmp_path / "ledger.jsonl").totals() == totals
    assert server.most_at_once > 1


@pytest.mark.parametrize(("fault", "kind"), [
    ("broken", "unavailable"), ("cut", "unavailable"), ("garbage", "unavailable"), ("slow", "unavailable"),
    ("truncated", "malformed"), ("chatter", "malformed"), ("eleven", "malformed"), ("declines", "refused"),
])  # fmt: skip
def test_a_fault_that_never_ends_is_a_typed_failure_and_no_score(fault: str, kind: str) -> None:
    with FaultyServer(lambda number, body: fault) as server:
        judge, ledger = panel(server, attempts=2, answers=2, timeout=0.3 if fault == "slow" else 5.0)
        [verdict] = judge.judge([clip()])
    assert verdict.overall is None
    for finding in verdict.aspects.values():
        assert finding.score is None
        assert finding.failure is not None
        assert finding.failure.kind == kind
    assert ledger.totals()["requests"] == 3 * 2 == sum(server.happened.values())


def test_a_server_that_dies_and_returns_loses_nothing_and_is_not_asked_twice(tmp_path: Path) -> None:
    clips = [clip(seed) for seed in range(3)]
    with FaultyServer(scripted([])) as server:
        judge, _ = panel(server, tmp_path)
        judge.judge(clips[:1])
        port = server.port
    gone = panel(server, tmp_path, attempts=2)[0].judge(clips)
    assert [verdict.overall is None for verdict in gone] == [False, True, True]
    assert gone[1].aspects["motion"].failure is not None
    assert gone[1].aspects["motion"].failure.kind == "unavailable"

    returned: list[FaultyServer] = []
    later = threading.Timer(0.3, lambda: returned.append(FaultyServer(scripted([]), port=port)))
    later.start()
    judge, ledger = panel(server, tmp_path, attempts=60)
    verdicts = judge.judge(clips)
    later.join()
    returned[0].stop()
    assert all(verdict.overall == pytest.approx(4.0) for verdict in verdicts)
    assert returned[0].happened == {"ok": 6}
    assert ledger.totals()["outcomes"]["answered"] == 9


def test_retry_after_holds_everybody_back() -> None:
    with FaultyServer(scripted(["busy"])) as server:
        judge, _ = panel(server, concurrency=1)
        judge.judge([clip()])
    assert server.times[1] - server.times[0] >= 0.29


def test_a_pause_longer_than_our_patience_is_not_waited_for() -> None:
    with FaultyServer(lambda number, body: "busy") as server:
        judge, _ = panel(server, patience=0.1)
        [verdict] = judge.judge([clip()])
    assert len(server.times) == 3
    failure = verdict.aspects["motion"].failure
    assert failure is not None
    assert failure.kind == "unavailable"


def test_no_more_begin_in_a_minute_than_allowed() -> None:
    async def begin() -> list[float]:
        pace, begun = RequestPacer(per_minute=1200), []

        async def one() -> None:
            await pace.wait_turn()
            begun.append(time.monotonic())

        await asyncio.gather(*(one() for _ in range(5)))
        return sorted(begun)

    begun = asyncio.run(begin())
    assert all(later - earlier >= 0.049 for earlier, later in pairwise(begun))


@pytest.mark.parametrize("at_once", [1, 6])
def test_what_a_model_does_not_know_is_no_longer_asked_of_it(at_once: int) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        faults = {"logprobs": "no_logprobs", "temperature": "no_temperature", "max_tokens": "no_max_tokens"}
        return next((fault for wish, fault in faults.items() if wish in body), "ok")

    with FaultyServer(script) as server:
        judge, ledger = panel(server, concurrency=at_once)
        [verdict] = judge.judge([clip()])
    assert verdict.overall == pytest.approx(4.0)
    assert ledger.totals()["outcomes"]["answered"] == 3
    assert ledger.totals()["requests"] == sum(server.happened.values())
    assert server.bodies[-1]["max_completion_tokens"] == 700
    if at_once == 1:
        assert ledger.totals()["outcomes"]["rejected"] == 3


def test_answers_are_asked_for_by_their_json_schema() -> None:
    with FaultyServer(scripted([])) as server:
        panel(server)[0].judge([clip()])
    for body in server.bodies:
        asked = body["response_format"]
        assert asked["type"] == "json_schema"
        schema = asked["json_schema"]["schema"]
        assert list(schema["properties"]) == ["rationale", "errors", "score"]
        assert schema["required"] == list(schema["properties"])
        assert schema["additionalProperties"] is False


@pytest.mark.parametrize("fault", ["no_schema", "unprocessable"])
def test_a_server_without_schemas_is_asked_without_from_then_on_and_read_from_its_words(fault: str) -> None:
    def script(number: int, body: dict[str, Any]) -> str:
        return fault if "response_format" in body else "ok"

    with FaultyServer(script, lambda body: f"I looked closely.\n```json\n{GOOD}\n```\nThat is all.") as server:
        judge, ledger = panel(server, concurrency=1, attempts=1, answers=1)
        first, second = judge.judge([clip()]), judge.judge([clip(1)])
    assert first[0].overall == second[0].overall == pytest.approx(4.0)
    assert ledger.totals()["outcomes"] == {"rejected": 1, "answered": 6}


def test_no_schema_is_asked_for_where_settings_say_so() -> None:
    with FaultyServer(scripted([])) as server:
        panel(server, json_schema=False)[0].judge([clip()])
    assert all("response_format" not in body for body in server.bodies)


def test_a_request_that_is_refused_for_another_reason_is_not_repeated_for_ever() -> None:
    with FaultyServer(lambda number, body: "unprocessable") as server:
        judge, ledger = panel(server, concurrency=1)
        [verdict] = judge.judge([clip()])
    failure = verdict.aspects["motion"].failure
    assert failure is not None
    assert failure.kind == "refused"
    assert ledger.totals()["outcomes"] == {"rejected": 4} == {"rejected": server.happened["unprocessable"]}


def test_every_answer_that_the_schemas_describe_is_read() -> None:
    review = review_format({"motion": [Grade(3, 3, False, "r")]})
    stills = still_grade_format(("light",)), still_grade_format((), ("oily",))
    formats = [
        grade_format(2.0),
        *stills,
        CHOICE_FORMAT,
        THOUGHTS_FORMAT,
        BOX_FORMAT,
        windows_format(2.0),
        rule_format(1),
        review,
    ]
    for form in formats:
        form.read(Reply(json.dumps(_example(form.schema))))


def _example(schema: dict[str, Any]) -> Any:
    """A value that a schema allows."""
    if schema["type"] == "object":
        return {name: _example(part) for name, part in schema["properties"].items()}
    if schema["type"] == "array":
        return [0.1, 0.2, 0.5, 0.6] if schema["items"]["type"] == "number" else [_example(schema["items"])]
    examples: dict[str, Any] = {"number": 3, "integer": 2, "string": "Some words.", "boolean": True}
    return schema["enum"][0] if "enum" in schema else examples.get(str(schema["type"]))


def test_a_wrong_key_is_said_at_once_and_in_the_ledger() -> None:
    with FaultyServer(lambda number, body: "unauthorised") as server:
        judge, ledger = panel(server, concurrency=1)
        with pytest.raises(BadInput, match="does not accept the key"):
            judge.judge([clip()])
    assert ledger.totals()["outcomes"] == {"rejected": 1}


def test_a_torn_ledger_line_spoils_no_other(tmp_path: Path) -> None:
    with FaultyServer(scripted([])) as server:
        panel(server, tmp_path)[0].judge([clip()])
        with (tmp_path / "ledger.jsonl").open("a") as file:
            file.write('{"at": 1, "addr')
        judge, ledger = panel(server, tmp_path)
        judge.judge([clip(1)])
    assert ledger.totals()["outcomes"] == {"answered": 6} == Ledger(tmp_path / "ledger.jsonl").totals()["outcomes"]


def test_disputes_go_to_the_reviewer_who_must_stay_between_the_specialists() -> None:
    asked = 0

    def reply(body: dict[str, Any]) -> str:
        nonlocal asked
        text = body["messages"][1]["content"][-1]["text"]
        if "Aspect: review" in text:
            asked += 1
            assert "Specialists on lip_sync" in text
            score = 1 if asked == 1 else 4
            return f'{{"rationale": "The second is right.", "scores": {{"lip_sync": {score}}}}}'
        if "Aspect: lip_sync" in text:
            lips.append(1)
            score = 2 if len(lips) % 2 else 5
            return f'{{"rationale": "r", "errors": [], "score": {score}}}'
        return '{"rationale": "r", "errors": [], "score": 3}'

    lips: list[int] = []
    with FaultyServer(scripted([]), reply) as server:
        judge, ledger = panel(server, samples=2, concurrency=1)
        [verdict] = judge.judge([clip()])
    finding = verdict.aspects["lip_sync"]
    assert (finding.decided_by, finding.score, finding.samples) == ("reviewer", 4.0, (2.0, 5.0))
    assert finding.rationale == "The second is right."
    assert verdict.aspects["motion"].decided_by == "agreement"
    assert ledger.totals()["outcomes"] == {"answered": 7, "malformed": 1}


def test_what_is_sent_is_pictures_and_the_sound_where_the_aspect_needs_it() -> None:
    with FaultyServer(scripted([])) as server:
        panel(server)[0].judge([clip()])
    kinds = {}
    for body in server.bodies:
        parts = body["messages"][1]["content"]
        aspect = parts[-1]["text"].split()[1]
        kinds[aspect] = {part["type"] for part in parts}
    assert kinds == {
        "lip_sync": {"text", "image_url", "input_audio"},
        "expressiveness": {"text", "image_url", "input_audio"},
        "motion": {"text", "image_url"},
    }

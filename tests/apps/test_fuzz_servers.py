"""Claims about bytes from elsewhere: pairs, replies of judges, batches and scores are read, or refused in one sentence.

No other exception, no example over two seconds of processor, and no example adds 100 MB to what the process takes.
Three hundred examples of each here; twenty thousand in the slow suite.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.judges.answers import (
    read_box,
    read_choice,
    read_grade,
    read_review,
    read_rule,
    read_still_grade,
    read_thoughts,
    read_windows,
)
from flowportrait.judges.replies import Reply, Token, UnusableReply, read_completion
from flowportrait.judges.rubric import HIGHEST_GRADE, LOWEST_GRADE
from flowportrait.portraitgen.detectors import ARTEFACTS_BY_NAME
from flowportrait.portraitgen.judging import OMNI_DIMENSIONS
from flowportrait.preferences.dataset import ASPECTS, LABELS, read_pairs
from flowportrait.rewards.batch import FailureKind
from flowportrait.rewards.interface import score_with_failures
from flowportrait.rewards.remote import (
    MAX_BATCH_FRAMES,
    MAX_BATCH_SAMPLES,
    FramesRequested,
    SentFrames,
    pack_batch,
    pack_score,
    unpack_batch,
    unpack_score,
)
from tests.judges.test_judge_serve import batch
from tests.memory import peak_mb

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""A failing example is shown as it was found: making it smaller would repeat whatever hangs."""
BOUND_MB = 100
SECONDS = 2.0
NUMBERS = st.one_of(
    st.integers(), st.integers(-5, 12), st.floats(), st.sampled_from([10**400, -(10**4000), 2**63, 2**64, -1, 1e308]),
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=12), st.sampled_from(["A", "tie", "a", "b", "first", "x" * 3000, "\ud800", "\0"]))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
KEYS = st.sampled_from([
    "prompt", "a", "b", "aspects", "source", "points", "speaker", "sync", "overall", "score", "scores", "rationale",
    "errors", "start", "end", "what", "lip_sync", "motion", "expressiveness", "better", "rule", "replaces", "seen",
    "box", "windows", "thoughts", "artefacts", "dimensions", "type", "severity", "x",
])  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6), max_leaves=8
)
REPEATED = st.builds(
    lambda part, count, end: part * count + end,
    st.sampled_from(["[", "{", '{"a":', "<think>", '{"a":[', '"score": ', "{}", "\\u", "[{"]),
    st.sampled_from([1, 2, 3, 9, 30, 30, 90, 2000]), st.sampled_from(["", "}", '{"score": 3}', "</think>"]),
)  # fmt: skip


def seconds(test: Callable[..., None], *given: Any) -> float:
    """Processor time of one call."""
    began = time.process_time()
    test(*given)
    return time.process_time() - began


def both_sizes(strategy: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of 300 examples, and of 20,000 where ``many`` is set, which is slow."""

    def wrap(test: Callable[..., None]) -> Callable[..., None]:
        def sized(many: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
            folder = tmp_path_factory.mktemp("fuzz")

            @settings(
                max_examples=20_000 if many else 300, deadline=None, database=None, phases=PHASES,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(strategy)
            def run(example: Any) -> None:
                before = peak_mb()
                # Python's own collection of old objects may fall into one call; a slow reader is slow again.
                assert any(seconds(test, example, folder) < SECONDS for _ in range(2))
                assert peak_mb() - before < BOUND_MB

            run()

        sized.__name__, sized.__doc__ = test.__name__, test.__doc__
        many = pytest.param(True, marks=[pytest.mark.slow, pytest.mark.fuzz])
        return pytest.mark.parametrize("many", [False, many])(sized)

    return wrap


def outcome(act: Callable[[], Any], expected: type[Exception] | tuple[type[Exception], ...]) -> tuple[Any, Any]:
    """What ``act`` returns, or the ``expected`` error; any other one passes."""
    try:
        return act(), None
    except expected as error:
        return None, error


GOOD_PAIR = {"prompt": "p", "a": "x.mp4", "b": "y.mp4", "aspects": {"sync": "A"}, "source": "study"}
GOOD_PAIR_2 = {"version": 2, "prompt": "p", "first": "x.mp4", "second": "y.mp4", "labels": {"sync": "first"},
               "source": "study"}  # fmt: skip
PAIR_LINES = st.one_of(
    st.tuples(st.sampled_from([GOOD_PAIR, GOOD_PAIR_2]), st.dictionaries(KEYS, VALUES, max_size=4)).map(
        lambda changed: json.dumps(changed[0] | changed[1]).encode()
    ),
    VALUES.map(lambda value: json.dumps(value).encode()),
    REPEATED.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
)


@both_sizes(st.lists(PAIR_LINES, max_size=3).map(b"\n".join))
def test_pairs_are_read_or_refused_by_line(data: bytes, folder: Path) -> None:
    path = folder / "pairs.jsonl"
    path.write_bytes(data)
    found, error = outcome(lambda: read_pairs(path), BadInput)
    if error is not None:
        assert len(str(error).encode()) < 1000
        return
    for pair in found:
        assert set(pair.labels) <= set(ASPECTS)
        assert set(pair.labels.values()) <= set(LABELS)
        assert all(1 <= value <= 5 for given_points in pair.points.values() for value in given_points.values())
        json.dumps(pair.prompt, ensure_ascii=False).encode()


TOKENS = st.lists(
    st.builds(Token, TEXTS, st.lists(st.tuples(TEXTS, st.floats()), max_size=3).map(tuple)), max_size=4
).map(tuple)
REPLY_TEXTS = st.one_of(
    st.dictionaries(KEYS, VALUES, max_size=6).map(json.dumps), REPEATED, st.text(max_size=40),
    st.dictionaries(KEYS, VALUES, max_size=4).map(
        lambda changed: "Well: " + json.dumps({"rationale": "r", "errors": [], "score": 4} | changed) + " so."
    ),
)  # fmt: skip
REPLIES = st.builds(Reply, REPLY_TEXTS, TOKENS, st.none() | TEXTS, st.booleans())
READERS: tuple[Callable[[Reply], Any], ...] = (
    lambda reply: read_grade(reply, 2.0), lambda reply: read_review(reply, ("lip_sync", "motion")), read_choice,
    lambda reply: read_rule(reply, 2), read_box, lambda reply: read_windows(reply, 2.0), read_thoughts,
    lambda reply: read_still_grade(reply, tuple(OMNI_DIMENSIONS)), lambda reply: read_still_grade(reply, (),
        ARTEFACTS_BY_NAME),
)  # fmt: skip


@both_sizes(REPLIES)
def test_replies_are_read_or_called_unusable(reply: Reply, folder: Path) -> None:
    for read in READERS:
        found, error = outcome(partial(read, reply), UnusableReply)
        if error is not None:
            assert error.failure.kind in ("refused", "malformed")
            assert len(error.failure.detail) < 1000
            continue
        json.dumps(getattr(found, "__dict__", found), ensure_ascii=False, default=str).encode()
        if hasattr(found, "score"):
            assert LOWEST_GRADE <= found.score <= HIGHEST_GRADE


class Loose:
    """An object with whatever attributes a server's JSON would give it."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.__dict__.update(value)


def loose(value: Any) -> Any:
    if isinstance(value, dict):
        return Loose({key: loose(part) for key, part in value.items()})
    return [loose(part) for part in value] if isinstance(value, list) else value


COMPLETIONS = st.fixed_dictionaries({
    "choices": VALUES | st.lists(st.fixed_dictionaries({
        "message": VALUES | st.fixed_dictionaries({"content": VALUES, "refusal": VALUES}),
        "finish_reason": SCALARS,
        "logprobs": st.none() | st.fixed_dictionaries({"content": VALUES | st.lists(st.fixed_dictionaries({
            "token": SCALARS, "logprob": SCALARS,
            "top_logprobs": VALUES | st.lists(
                st.fixed_dictionaries({"token": SCALARS, "logprob": SCALARS}), max_size=2),
        }), max_size=2)}),
    }), max_size=2),
    "usage": st.none() | st.fixed_dictionaries({"prompt_tokens": SCALARS, "completion_tokens": SCALARS}),
})  # fmt: skip


@both_sizes(COMPLETIONS)
def test_a_completion_of_any_types_is_a_reply_of_text_or_an_error_that_the_client_expects(
    value: Any, folder: Path
) -> None:
    # These are what ``ChatClient`` takes for a malformed completion.
    malformed = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError)
    found, error = outcome(lambda: read_completion(loose(value)), malformed)
    if error is not None:
        return
    reply, usage = found
    assert isinstance(reply.text, str)
    assert all(isinstance(token.text, str) for token in reply.tokens)
    assert usage is None or all(0 <= count < 2**53 for count in usage)
    for read in READERS:
        outcome(partial(read, reply), UnusableReply)


NEEDS = frozenset({"motion", "mel", "audio", "frames", "places", "portrait"})
PACKED = pack_batch(batch(2, 10), NEEDS, SentFrames((0, 9), (3,)))
SCORED = pack_score(score_with_failures(torch.tensor([0.5, 0.25]), {}, torch.zeros(2, 10)))
SIZES = st.sampled_from(
    [0, 1, 2, 3, 10, 30, 40, 80, 478, -1, 2**31, 2**62, 2**64, 10**30, MAX_BATCH_FRAMES + 1, MAX_BATCH_SAMPLES + 1]
)  # fmt: skip
SHAPES = st.lists(SIZES, max_size=5) | VALUES
OFFSETS = st.lists(st.integers(-10, 20_000) | st.sampled_from([0, 2**63, 2**64]), max_size=3) | VALUES
KINDS = st.sampled_from(["F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "U16", "Q", ""])


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def damaged(original: bytes, heads: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Safetensors of which something is wrong: a tensor's entry, the description, or any bytes."""
    header, body = header_of(original)
    names = st.sampled_from([name for name in header if name != "__metadata__"])
    entry = st.fixed_dictionaries({}, optional={"dtype": KINDS, "shape": SHAPES, "data_offsets": OFFSETS})
    told = next(iter(header["__metadata__"]))
    described = json.loads(header["__metadata__"][told])

    def with_entries(changes: dict[str, Any], drop: list[str], added: dict[str, Any], rest: bytes) -> bytes:
        changed = {name: value for name, value in header.items() if name not in drop}
        for name, change in changes.items():
            changed[name] = header[name] | change
        return joined(changed | added, body + rest)

    def described_as(change: Any) -> bytes:
        new = described | change if isinstance(change, dict) else change
        return joined({**header, "__metadata__": {told: json.dumps(new)}}, body)

    def flipped(places: list[tuple[int, int]], length: int) -> bytes:
        found = bytearray(original)
        for place, value in places:
            found[place % len(found)] = value
        return bytes(found[: length % (len(found) + 1)]) if length else bytes(found)

    empty = st.builds(lambda kind, shape: {"dtype": kind, "shape": shape, "data_offsets": [len(body), len(body)]},
                      KINDS, st.lists(SIZES, min_size=1, max_size=3).map(lambda found: [0, *found]))  # fmt: skip
    return st.one_of(
        st.builds(with_entries, st.dictionaries(names, entry, max_size=2), st.lists(names, max_size=2),
                  st.dictionaries(names | TEXTS, empty, max_size=1), st.binary(max_size=4)),
        heads.map(described_as), VALUES.map(described_as),
        st.builds(flipped, st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=4),
                  st.just(0) | st.integers(0, len(original))),
        st.binary(max_size=80), st.builds(joined, VALUES, st.binary(max_size=20)),
        REPEATED.map(lambda text: len(text).to_bytes(8, "little") + text.encode()),
    )  # fmt: skip


INDICES = st.lists(st.integers(-2, 12), max_size=4) | st.sampled_from([[2**62], [0, 9], [True], [0.5], {}, "x", None])
BATCH_HEADS = st.fixed_dictionaries({}, optional={
    "frames": INDICES, "places": INDICES, "portraits": INDICES, "draws": SCALARS, "lands": SCALARS, "domain": TEXTS,
    "transcript": VALUES, "unseen": st.dictionaries(TEXTS | st.integers(-2, 3).map(str), VALUES | st.lists(
        st.sampled_from(["no_face", "x"]), max_size=3), max_size=2),
})  # fmt: skip
SCORE_HEADS = st.fixed_dictionaries({}, optional={"failures": BATCH_HEADS | VALUES, "noise": SCALARS})


@both_sizes(damaged(PACKED, BATCH_HEADS))
def test_a_batch_is_consistent_or_refused(data: bytes, folder: Path) -> None:
    found, error = outcome(lambda: unpack_batch(data), BadInput)
    if error is not None:
        assert len(str(error)) < 2000
        return
    rows, frames = found.motion.shape[:2]
    assert 1 <= rows <= MAX_BATCH_SAMPLES
    assert 1 <= frames <= MAX_BATCH_FRAMES
    assert found.motion.shape[2] == 30
    assert found.mel.shape == (rows, 4 * frames, 80)
    assert found.audio is None or found.audio.shape == (rows, 640 * frames)
    assert found.portraits is None or len(found.portraits) == rows
    assert set(found.tracking_failures) <= set(range(rows))
    for what, draw in (("frames", found.frames), ("places", found.places)):
        if what in found.has:
            shown, wanted = outcome(partial(draw, (0,)), FramesRequested)
            assert wanted.frames or wanted.places if wanted is not None else shown.shape[:2] == (rows, 1)


@both_sizes(damaged(SCORED, SCORE_HEADS))
def test_scores_are_consistent_or_an_error_that_is_asked_again(data: bytes, folder: Path) -> None:
    found, error = outcome(lambda: unpack_score(data, 2), ValueError)
    if error is not None:
        assert len(str(error)) < 2000
        return
    assert found.value.shape == found.valid.shape == (2,)
    assert found.dense is None or len(found.dense) == 2
    assert all(why.kind in FailureKind.__args__ for why in found.reasons.values())  # type: ignore[attr-defined]
    noise = torch.as_tensor(found.noise)
    assert math.isfinite(float(noise.max()))


def test_what_was_packed_is_unpacked() -> None:
    made, found = batch(2, 10), unpack_batch(PACKED)
    assert torch.equal(made.motion, found.motion)
    assert torch.equal(made.frames((0, 9)), found.frames((0, 9)))
    assert found.portraits is not None
    assert found.portraits[1].crop.shape == (8, 8, 3)


def claimed(shape: list[int], place: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": place}


DESCRIBED = {"__metadata__": {"batch": "{}"}}


@pytest.mark.parametrize("data", [
    joined({**DESCRIBED, "motion": claimed([0, 2**40, 30], [0, 0])}, b""),
    joined({**DESCRIBED, "motion": claimed([-1, 2, 30], [0, 0])}, b""),
    joined({**DESCRIBED, "a": claimed([1], [0, 4]), "b": claimed([1], [2, 6])}, b"\0" * 6),
    (2**50).to_bytes(8, "little") + b"{}",
    joined({"__metadata__": {"batch": "[" * 100_000}}, b""),
])  # fmt: skip
def test_headers_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(BadInput):
        unpack_batch(data)
    with pytest.raises(ValueError, match="scores"):
        unpack_score(data, 1)


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"prompt": "' + b"x" * 2**21, b'{"prompt": "\\ud800", "a": "x"}', b"\xff"]
)
def test_lines_that_broke_the_reader(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(BadInput):
        read_pairs(path)


@pytest.mark.parametrize("text", [
    '{"a":' * 5000, "[" * 60_000 + '{"score": 3}', "<think>" * 9000, '{"rationale": "r", "score": 1' + "0" * 400 + "}",
    '{"rationale": "r", "score": 3, "errors": [{"start": 1' + "0" * 400 + ', "end": 2, "what": "x"}]}', "x" * 10**6,
])  # fmt: skip
def test_replies_that_broke_the_reader(text: str) -> None:
    began = time.process_time()
    _, error = outcome(lambda: read_grade(Reply(text), 1.0), UnusableReply)
    assert error is None or error.failure.kind == "malformed"
    assert time.process_time() - began < SECONDS

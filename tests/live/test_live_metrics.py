"""Claims about figures and logs of a live server."""

from __future__ import annotations

import io
import json
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowportrait.live.metrics import LatencyWindow, LiveLog, LiveMetrics, TokenBucket, merge_worker_metrics


def test_a_quantile_is_the_smallest_value_that_the_share_does_not_exceed() -> None:
    window = LatencyWindow("x", "A latency.")
    assert math.isnan(window.quantile(0.5))
    for value in range(100, 0, -1):
        window.observe(value)
    assert [window.quantile(share) for share in (0.0, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]


def test_figures_move_and_parse_and_workers_add_a_label() -> None:
    metrics = LiveMetrics()
    metrics.sessions.set(2)
    metrics.refused.inc()
    metrics.draw.observe(0.25)
    merged = merge_worker_metrics({"0": metrics.text().decode(), "1": metrics.text().decode()}).decode()
    samples = [one for family in text_string_to_metric_families(merged) for one in family.samples]
    found = {(one.name, one.labels["worker"]): one.value for one in samples if "quantile" not in one.labels}
    for worker in "01":
        assert found["flowportrait_sessions", worker] == 2
        assert found["flowportrait_sessions_refused_total", worker] == 1
        assert (found["flowportrait_draw_seconds_count", worker], found["flowportrait_draw_seconds_sum", worker]) == (
            1, 0.25,
        )  # fmt: skip


def test_json_lines_are_json_and_only_named_fields_are_written() -> None:
    stream = io.StringIO()
    log = LiveLog("json", stream)
    log.write("session_closed", session="s", reason='A "quoted"\nreason.', seconds=1.5, error=None)
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {"event": "session_closed", "session": "s", "reason": 'A "quoted"\nreason.', "seconds": 1.5}
    for secret in ("token", "text"):
        with pytest.raises(ValueError, match=secret):
            log.write("session_opened", **{secret: "secret"})
    assert stream.getvalue().count("\n") == 1


def test_a_bucket_lets_a_seconds_worth_through_at_once_and_then_the_rate() -> None:
    now = [0.0]
    bucket = TokenBucket(10, lambda: now[0])
    assert [bucket.take() for _ in range(11)] == [True] * 10 + [False]
    now[0] = 0.5
    assert [bucket.take() for _ in range(6)] == [True] * 5 + [False]

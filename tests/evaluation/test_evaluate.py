"""What the metrics must say about motion whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.errors import BadInput
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.comparison import compare_systems
from flowportrait.evaluation.lip_sync import sync_from_embeddings
from flowportrait.evaluation.motion_metrics import (
    ACTION_GROUPS,
    autocorrelation,
    clip_ecs,
    compute_reference_quantiles,
    dynamics_samples,
    guarded_tfi,
    longest_run,
    silent_frames,
    tfi_and_flow_power,
)
from flowportrait.evaluation.statistics import bootstrap_mean


def unit(rng: np.random.Generator, windows: int) -> np.ndarray:
    values = rng.normal(size=(windows, 32)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@given(shift=st.integers(-15, 15))
@settings(max_examples=15, deadline=None)
def test_the_offset_of_late_sound_is_found_and_counted_as_error(shift: int) -> None:
    face = unit(np.random.default_rng(1), 90)
    found = sync_from_embeddings(face, np.roll(face, shift, axis=0), 15)
    assert found.offset == shift
    assert found.lse_d == pytest.approx(0, abs=1e-5)
    assert found.lse_c > 1
    assert found.errors == (0 if abs(shift) <= 1 else found.ler_windows)


def test_confidence_at_zero_orders_real_shifted_and_still() -> None:
    rng = np.random.default_rng(0)
    voice = unit(rng, 90)
    real = voice + 0.8 * unit(rng, 90)
    still = np.repeat(real[40:41], 90, 0)
    lse_c_at_zero = {
        name: sync_from_embeddings(face / np.linalg.norm(face, axis=1, keepdims=True), voice, 15).lse_c_at_zero
        for name, face in {"real": real, "shifted": np.roll(real, 5, axis=0), "still": still}.items()
    }
    assert lse_c_at_zero["real"] > 0.4
    assert abs(lse_c_at_zero["shifted"]) < 0.1
    assert abs(lse_c_at_zero["still"]) < 0.1


def test_the_longest_run_ignores_gaps() -> None:
    assert longest_run(np.array([1, 0, 1, 1, 1, 0, 1], bool)) == slice(2, 5)
    assert longest_run(np.zeros(4, bool)) == slice(0, 0)


@pytest.mark.parametrize(("hertz", "trembles"), [(2.0, False), (4.0, False), (8.0, True), (11.0, True)])
def test_only_motion_above_the_cutoff_trembles(hertz: float, trembles: bool) -> None:
    wave = np.sin(2 * np.pi * hertz * np.arange(140) / 25)
    flow = np.broadcast_to(wave[:, None, None, None], (140, 8, 8, 2))
    tfi, power = tfi_and_flow_power(flow)
    assert power == pytest.approx(0.5, rel=0.1)
    assert (tfi > 0.9 * power) if trembles else (tfi < 0.05 * power)


def test_stillness_cannot_win_the_guarded_tfi() -> None:
    assert guarded_tfi(0.0, 0.0, 1.0, worst=9.0) == 9.0
    assert guarded_tfi(0.2, 1.2, 1.0, worst=9.0) == 0.2


def lively(seed: int, frames: int = 150) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    kernel = np.hanning(9) / np.hanning(9).sum()
    return {
        group: np.stack([np.convolve(rng.normal(size=frames + 8), kernel, "valid") for _ in range(3)], 1)
        for group in ACTION_GROUPS
    }


def test_expression_ranks_alike_above_noise_above_still() -> None:
    clips = [lively(seed) for seed in range(20)]
    reference = {
        group: compute_reference_quantiles([dynamics_samples(clip[group]) for clip in clips]) for group in ACTION_GROUPS
    }
    rng = np.random.default_rng(0)
    alike = lively(99)
    noise = {group: rng.permuted(x, axis=0) for group, x in alike.items()}
    still = {group: np.zeros_like(x) for group, x in alike.items()}
    scores = [clip_ecs(clip, reference)["all"] for clip in (alike, noise, still)]
    assert scores[0] > 0.6
    assert scores[0] > scores[1] + 0.1
    assert scores[0] > scores[2] + 0.5
    assert clip_ecs({group: x[:20] for group, x in alike.items()}, reference) is None


def test_autocorrelation_of_a_cosine_is_a_cosine_and_of_a_constant_nothing() -> None:
    wave = np.cos(2 * np.pi * np.arange(1000) / 20)[:, None]
    assert autocorrelation(wave, 10)[0] == pytest.approx(-1, abs=0.01)
    assert autocorrelation(wave, 20)[0] == pytest.approx(1, abs=0.01)
    assert autocorrelation(np.ones((50, 2)), 5).tolist() == [0, 0]


def test_silence_is_where_nobody_speaks() -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, 640 * 50).astype(np.float32)
    audio[640 * 20 : 640 * 32] = 0
    silent = silent_frames(audio, 50)
    assert silent[22:30].all()
    assert not silent[:18].any()
    assert not silent[34:].any()


def rows(values: list[float], **more: float) -> dict:
    return {f"clip{i}": {"frames": 75, "frames_without_face": 0, "ler": v, **more} for i, v in enumerate(values)}


def test_the_interval_holds_the_mean_and_shrinks_with_clips() -> None:
    rng = np.random.default_rng(0)
    few, many = bootstrap_mean(rng.normal(size=10)), bootstrap_mean(rng.normal(size=1000))
    assert few.low < few.mean < few.high
    assert many.high - many.low < 0.3 * (few.high - few.low)
    assert bootstrap_mean(np.array([3.0])).low is None


def test_runs_that_differ_widen_the_interval_and_runs_that_are_alike_do_not() -> None:
    rng = np.random.default_rng(0)
    clips, runs = rng.normal(size=40), 3 * rng.normal(size=(5, 1))

    def width(values: np.ndarray) -> float:
        found = bootstrap_mean(values)
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(np.tile(clips, (5, 1))) == pytest.approx(width(clips), rel=0.1)
    apart = 3.92 * np.sqrt(clips.var() / 40 + runs.var() / 5)
    assert width(clips + runs) == pytest.approx(apart, rel=0.1)


def test_paired_differences_are_signed_and_corrected() -> None:
    base = [0.5 + 0.01 * i for i in range(20)]
    found = compare_systems({"before": rows(base), "after": rows([v - 0.1 for v in base])}, baseline="before")
    (difference,) = [d for d in found.differences if d.metric == "ler"]
    assert difference.difference.mean == pytest.approx(-0.1)
    assert difference.change == pytest.approx(-0.1 / np.mean(base))
    assert difference.p is not None
    assert difference.p < 0.001
    same = compare_systems({"before": rows(base), "after": rows(base)}, baseline="before").differences[0]
    assert same.p is None
    assert same.difference.mean == 0


def test_what_was_not_measured_is_left_out_not_made_up() -> None:
    found = compare_systems({"a": {"x": {"frames": 10, "frames_without_face": 10, "ler": None}}})
    assert "ler" not in found.estimates["a"]
    assert found.counts["a"]["clips_without_sync"] == 1
    assert found.counts["a"]["frames_without_face"] == 10


def test_evaluating_nothing_or_against_nobody_is_refused(tmp_path) -> None:
    with pytest.raises(BadInput, match="nothing to evaluate"):
        evaluate({"videos": []})
    with pytest.raises(BadInput, match="baseline 'x'"):
        evaluate({"videos": [tmp_path / "a.mp4"]}, baseline="x")

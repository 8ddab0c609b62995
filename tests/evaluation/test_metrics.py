"""Figures whose answer is known: Fréchet distances, THEval's measures, steadiness, expression of 68 points."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowportrait.evaluation import measure as theval
from flowportrait.evaluation.comparison import frechet_distance
from flowportrait.evaluation.motion_metrics import (
    ACTION_GROUPS,
    action_signals68,
    brightness_flicker,
    colour_drift,
    compute_reference_quantiles,
    dynamics_samples,
    pooled_ecs,
    remove_pose,
    seam_energy,
)
from flowportrait.evaluation.tracking import SeamProbe, track_file
from flowportrait.media.optical_flow import DisFlow
from flowportrait.media.video import FPS


def test_the_frechet_distance_of_shifted_and_of_widened_normals_is_known() -> None:
    rows = np.random.default_rng(0).normal(size=(20_000, 3))
    assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(rows, rows + np.array([2.0, 0, 0])) == pytest.approx(4.0, rel=1e-3)
    # (σ₁ − σ₂)² a dimension
    assert frechet_distance(rows, 3 * rows) == pytest.approx(3 * 4.0, rel=0.02)


def test_the_score_of_theval_is_one_for_the_truth_itself_and_falls_by_the_relative_error() -> None:
    truth = {"lip_dynamics": 1.7166, "brow_dynamics": 0.006777, "lip_sync": 0.2528}
    assert theval.theval_total(truth, truth)[0] == 1
    off = truth | {"lip_dynamics": 1.5 * 1.7166, "lip_sync": 0.75 * 0.2528}
    total, scores = theval.theval_total(off, truth)
    assert scores == pytest.approx({"lip_dynamics": 0.5, "brow_dynamics": 1.0, "lip_sync": 0.75})
    assert total == pytest.approx((0.5 + 1.0 + 0.75) / 3)
    assert theval.theval_score(4 * 0.2528, 0.2528) == pytest.approx(-2)
    assert theval.theval_total({}, truth) is None


def test_lip_dynamics_is_the_spread_of_distances() -> None:
    """Two points whose distance swings by ±2 pixels, a third that stays beside the first."""
    swing = 10 + 2 * np.sin(2 * np.pi * np.arange(100) / 20)
    lips = np.zeros((100, 3, 2))
    lips[:, 1, 0] = swing
    lips[:, 2, 1] = 0.0
    assert theval.lip_dynamics(lips) == pytest.approx(2 / np.sqrt(2) * 2 / 3, rel=1e-6)


def test_head_motion_is_known_for_a_pendulum() -> None:
    swing = 5 * np.sin(2 * np.pi * np.arange(200) / 50)
    turn = np.stack([swing, 0 * swing, 0 * swing], 1)
    spread, steps = 5 / np.sqrt(2) / 3, (5 * 2 * np.sin(np.pi / 50)) ** 2 / 2 / 3
    still = np.zeros((200, 2))
    assert theval.head_motion(turn, still) == pytest.approx(np.sqrt(spread * steps), rel=0.02)
    assert theval.head_motion(0 * turn, still + np.array([[3.0, 0]]) * (np.arange(200) % 2)[:, None]) == pytest.approx(
        np.sqrt(2.25 / 2)
    )


def test_lip_sync_is_zero_for_lips_that_open_as_loud_as_it_is_and_silent_lips_are_stable() -> None:
    loud = np.abs(np.sin(np.arange(50) / 3))
    assert theval.lip_loudness_difference(0.1 + 0.4 * loud, loud) == pytest.approx(0, abs=1e-6)
    assert theval.lip_loudness_difference(1 - loud, loud) > 0.4
    assert theval.silent_lip_stability(np.full(20, 0.02)) == pytest.approx(0)
    assert theval.silent_lip_stability(0.02 + 0.01 * (np.arange(20) % 2)) == pytest.approx(0.005)


@given(scale=st.floats(0.5, 2), angle=st.floats(-0.5, 0.5), x=st.floats(-50, 50))
@settings(max_examples=15)
def test_where_and_how_large_the_head_is_does_not_change_its_actions(scale: float, angle: float, x: float) -> None:
    rng = np.random.default_rng(0)
    face = rng.uniform(0, 100, (1, 68, 2)) + rng.normal(0, 1, (20, 68, 2))
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    before, after = action_signals68(face), action_signals68(face @ turn.T + x)
    for group in ("mouth", "eyes"):
        lengths = slice(0, 2)
        np.testing.assert_allclose(after[group][:, lengths], before[group][:, lengths], rtol=1e-6, atol=1e-9)


def walk(seed: int, frames: int = 90) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    kernel = np.hanning(9) / np.hanning(9).sum()
    size = np.exp(rng.normal(0, 0.3))
    return {
        g: np.stack([size * np.convolve(rng.normal(size=frames + 8), kernel, "valid") for _ in range(3)], 1)
        for g in ACTION_GROUPS
    }


def test_pooled_real_footage_split_in_half_is_near_one_and_noise_with_its_marginals_far_below() -> None:
    real, others = [walk(s) for s in range(40)], [walk(s) for s in range(100, 140)]
    rng = np.random.default_rng(0)
    samples = [{g: dynamics_samples(clip[g]) for g in ACTION_GROUPS} for clip in real]
    reference = {g: compute_reference_quantiles([s[g] for s in samples]) for g in ACTION_GROUPS}

    def score(clips: list[dict[str, np.ndarray]]) -> float:
        return pooled_ecs([{g: dynamics_samples(clip[g]) for g in ACTION_GROUPS} for clip in clips], reference)["all"]

    assert score(others) > 0.85
    assert score([{g: rng.permuted(x, axis=0) for g, x in clip.items()} for clip in others]) < 0.5
    assert score([{g: 0.5 * x for g, x in clip.items()} for clip in others]) < score(others) - 0.2
    assert score([{g: 0 * x for g, x in clip.items()} for clip in others]) < 0


def test_colour_that_swings_drifts_and_light_that_jumps_flickers_and_neither_is_the_other() -> None:
    times, rng = np.arange(100) / FPS, np.random.default_rng(0)
    skin = np.full((100, 3), 120.0)
    warm = skin + (10 * np.sin(2 * np.pi * times))[:, None] * np.array([1, 0, -1])
    jumping = skin + rng.normal(0, 4, 100)[:, None]
    assert colour_drift(skin) == brightness_flicker(skin) == 0
    assert colour_drift(warm) == pytest.approx(20 / np.sqrt(2), rel=0.01)
    assert brightness_flicker(warm) < 1.0
    assert brightness_flicker(jumping) == pytest.approx(4 * np.sqrt(2), rel=0.2)
    assert colour_drift(jumping) == pytest.approx(0)
    skin[10:90] = np.nan
    assert brightness_flicker(skin[5:95]) is None


@pytest.mark.parametrize("levels", [0, 6, 25])
def test_a_paste_back_border_shows_with_its_levels(levels: int) -> None:
    y, x = np.mgrid[:256, :256]
    rng = np.random.default_rng(0)
    landmarks = np.zeros((1, 478, 3))
    landmarks[0, :, :2] = rng.uniform(96, 160, (478, 2))
    probe = SeamProbe(landmarks)
    for _ in range(20):
        frame = 60 + 0.3 * x + 0.2 * y + 8 * np.sin((x + y) / 9) + rng.normal(0, 3, x.shape)
        frame[60:200, 60:200] += levels
        probe.add(np.repeat(frame.clip(0, 255).astype(np.uint8)[..., None], 3, -1))
    assert seam_energy(probe.border_steps()) == pytest.approx(levels, abs=2.0)


def test_optical_flow_is_signed_and_in_pixels() -> None:
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.uniform(0, 255, (96, 96)).astype(np.float32), (0, 0), 3)
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)
    moved = cv2.warpAffine(picture, np.array([[1, 0, 2.0], [0, 1, -1.0]]), (96, 96), borderMode=cv2.BORDER_REPLICATE)
    field = DisFlow("medium").between(picture, moved)[16:-16, 16:-16].reshape(-1, 2)
    np.testing.assert_allclose(np.median(field, 0), [2.0, -1.0], atol=0.2)


@pytest.mark.data
def test_theval_on_real_clips_is_what_a_loop_over_frames_gives(tmp_path: Path) -> None:
    """The formulae written out once more, point by point, on three real clips; the truth scores one."""
    data = Path(os.environ["FLOWPORTRAIT_DATA"])
    clips = sorted((data / "grid").glob("*.mp4"))[:3]
    if not clips:
        pytest.skip("FLOWPORTRAIT_DATA does not hold the development footage")
    for clip in clips:
        tracked = track_file(clip, tmp_path)
        turn = remove_pose(tracked.landmarks[tracked.valid])[1]
        found = theval.theval_measures(tracked, turn)
        points = tracked.landmarks[..., :2] * 256 / max(tracked.size)
        spreads = []
        for i, a in enumerate(theval.THEVAL_LIPS):
            for b in theval.THEVAL_LIPS[i + 1 :]:
                spreads.append(np.std([np.hypot(*(frame[a] - frame[b])) for frame in points]))
        assert found["lip_dynamics"] == pytest.approx(np.mean(spreads), rel=1e-4)
        steps = []
        for brow, eye in zip(theval.BROW_LANDMARKS, theval.EYE_LANDMARKS, strict=True):
            track = []
            for frame in points:
                centres = [frame[e].mean(0) for e in theval.EYE_LANDMARKS]
                track.append(
                    np.hypot(*(frame[brow].mean(0) - frame[eye].mean(0))) / np.hypot(*(centres[0] - centres[1]))
                )
            steps += [abs(a - b) for a, b in zip(track[1:], track[:-1], strict=True)]
        assert found["brow_dynamics"] == pytest.approx(np.mean(steps), rel=1e-4)
        assert theval.theval_total(found, found)[0] == 1
        assert 0.1 < found["lip_dynamics"] < 5

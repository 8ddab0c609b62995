"""Claims about the emotion of a live face: it comes and goes smoothly, and speech keeps its lips."""

from __future__ import annotations

import numpy as np
import pytest

from flowportrait.errors import BadInput
from flowportrait.live.expression import EasedEmotion
from flowportrait.rendering.emotion import EMOTIONS, emotion_offset
from flowportrait.rendering.motion_basis import MotionBasis, lip_pair_gaps
from tests.live.test_session import Clock, session


@pytest.mark.parametrize("name", EMOTIONS)
def test_an_emotion_comes_within_a_second_and_goes_as_slowly(name: str) -> None:
    emotion, full = EasedEmotion(), emotion_offset({name: 0.6}).numpy()
    emotion.show({name: 0.6})
    shares = [float(emotion.next() @ full / (full @ full)) for _ in range(50)]
    emotion.show({})
    shares_after = [float(emotion.next() @ full / (full @ full)) for _ in range(50)]
    assert shares[4] < 0.2
    assert shares[24] > 0.9
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=0.01)
    assert shares_after[4] > 0.8
    assert shares_after[24] < 0.1


def test_neither_place_nor_speed_jumps_when_the_emotion_changes_halfway() -> None:
    emotion, places = EasedEmotion(), []
    for weights in ({"happy": 1.0}, {"angry": 1.0}, {}, {"surprised": 1.0}):
        emotion.show(weights)
        places += [emotion.next() for _ in range(6)]
    step = np.linalg.norm(np.diff(places, axis=0), axis=1)
    jolt = np.linalg.norm(np.diff(places, 2, axis=0), axis=1)
    whole = max(np.linalg.norm(emotion_offset({name: 1.0}).numpy()) for name in EMOTIONS)
    assert step.max() < 0.15 * whole
    assert jolt.max() < 0.06 * whole


def test_an_unknown_emotion_is_refused_and_changes_nothing() -> None:
    emotion = EasedEmotion()
    emotion.show({"happy": 0.5})
    for wrong in ({"bored": 0.5}, {"happy": 1.5}, {"happy": float("nan")}, {"happy": 0.7, "sad": 0.7}):
        with pytest.raises(BadInput):
            emotion.show(wrong)
    assert emotion.weights == {"happy": 0.5}


def spoken_motion(weights: dict[str, float]) -> list[np.ndarray]:
    """Two seconds of speech in a face that has shown an emotion for two seconds, as motion ``[30]`` by frame."""
    clock = Clock()
    live = session(clock=clock)
    live.show_emotion(weights)
    motion = []
    for number in range(100):
        if number == 50:
            live.push(np.ones(2 * 16_000, np.float32), 16_000)
            live.finish()
        while live.generate():
            pass
        motion.append(live.tick().motion)
        clock.now += 0.04
    return motion


def test_an_emotion_is_added_to_speech_and_leaves_the_opening_of_the_lips() -> None:
    plain, happy = np.stack(spoken_motion({})), np.stack(spoken_motion({"happy": 0.8}))
    added = happy - plain
    np.testing.assert_allclose(added[-40:], np.tile(emotion_offset({"happy": 0.8}).numpy(), (40, 1)), atol=0.02)
    gaps = lip_pair_gaps(MotionBasis.load().directions).mean(-1).numpy()  # of each of the moving directions
    openings = [motion[60:, : len(gaps)] @ gaps for motion in (plain, happy)]
    assert float(np.ptp(openings[0])) > 0.05
    np.testing.assert_allclose(openings[1], openings[0], atol=1e-3)


def test_a_driven_face_shows_the_drivers_expression_alone() -> None:
    live, driver = session(), np.full(30, 0.3, np.float32)
    live.show_emotion({"sad": 1.0})
    for _ in range(50):
        live.drive(driver)
        frame = live.tick()
    np.testing.assert_allclose(frame.motion, driver, atol=1e-3)
    live.drive(None)
    later = [live.tick().motion for _ in range(60)]
    brows_end = emotion_offset({"sad": 1.0}).numpy()
    assert live.emotion == {"sad": 1.0}
    assert np.abs(later[-1] - frame.motion).max() > 0.5 * np.abs(brows_end).max()


def test_without_an_emotion_nothing_is_added() -> None:
    emotion = EasedEmotion()
    assert all(not emotion.next().any() for _ in range(5))

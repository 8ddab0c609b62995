"""Claims about a face that follows a webcam: the filter, the neutral face, the session, and a real tracker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch

from flowportrait.errors import BadInput
from flowportrait.live import LiveAvatar, LivePortrait
from flowportrait.live.driving import FaceDriver, FaceReader, OneEuroFilter, driver_filter
from flowportrait.live.session import FADE_FRAMES, OPENING_FRAMES, REST_FRAMES, LiveSession
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo
from flowportrait.rendering.motion_basis import (
    BLINK,
    HEAD,
    LOWER_FACE,
    Identity,
    MotionBasis,
    Pose,
    close_lips,
    vector_to_pose,
)
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.samples import portrait_path
from tests.live.test_session import RATE, LoudSource, speech

REST_OF_FACE = slice(LOWER_FACE.stop, 30)


# --- The filter ---


def test_the_filter_removes_jitter_and_keeps_quick_movements() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (500, 30)).astype(np.float32)
    still, quick = driver_filter(), driver_filter()
    calm = np.stack([still(value) for value in noise])[50:]
    assert calm[:, HEAD].std() < 0.5 * noise[:, HEAD].std()
    step = np.zeros((20, 30), np.float32)
    step[5:] = 4
    followed = np.stack([quick(value) for value in step])
    assert (followed[6, LOWER_FACE] > 3.5).all(), "lips follow within two frames"
    assert (followed[6, BLINK] > 3.5).all()
    assert (followed[15, HEAD] > 3.5).all()


def test_the_filter_is_the_exponential_smoothing_of_its_cutoff_where_nothing_moves_fast() -> None:
    filtered = OneEuroFilter(np.array([2.0]), np.array([0.0]), 25)
    filtered(np.array([0.0]))
    share = 1 - 1 / (1 + 2 * np.pi * 2 / 25)
    values = [float(filtered(np.array([1.0]))[0]) for _ in range(5)]
    assert values == pytest.approx([1 - (1 - share) ** n for n in range(1, 6)])


# --- The neutral face ---


def person(motion: torch.Tensor, seed: int = 0) -> np.ndarray:
    """Landmarks ``[T, 478, 3]`` of somebody with another face who sits elsewhere and makes this motion."""
    basis = MotionBasis.load()
    rng = np.random.default_rng(seed)
    warp = torch.from_numpy(rng.normal(0, 0.02, 3).astype(np.float32))
    neutral = close_lips(basis.canonical * (1 + warp))
    pose = Pose(torch.eye(3)[None], torch.tensor([[320.0, 240.0, 0.0]]), torch.tensor([120.0]))
    start = torch.tensor([[0.05, 0.1, 0.02, 0.3, -0.2, 0.1]])
    return basis.decode(motion, Identity(neutral, vector_to_pose(start, pose))).numpy()


def test_a_moving_person_needs_no_neutral_pose_at_the_beginning() -> None:
    time_axis = torch.arange(250) / 25
    motion = torch.zeros(250, 30)
    motion[:, HEAD.start + 1] = 1.5 * torch.sin(2 * torch.pi * 0.7 * time_axis)
    motion[:, LOWER_FACE.start] = torch.sin(2 * torch.pi * 1.5 * time_axis)
    reader = FaceReader()
    shapes = np.zeros(52, np.float32)
    read = [reader.read(points, shapes) for points in person(motion)]
    assert all(one is None for one in read[:4])
    assert all(one is not None for one in read[4:])
    followed = np.stack([one for one in read[100:] if one is not None])
    yaw = np.corrcoef(followed[:, HEAD.start + 1], motion[100:, HEAD.start + 1])[0, 1]
    lips = np.corrcoef(followed[:, LOWER_FACE.start], motion[100:, LOWER_FACE.start])[0, 1]
    assert min(yaw, lips) > 0.97
    assert abs(followed[:, HEAD].mean(0)).max() < 0.5, "the head is centred wherever the person sits"


def test_a_person_who_moves_the_chair_faces_forward_again() -> None:
    motion = torch.zeros(1500, 30)
    motion[100:, HEAD.start + 1] = 4.0
    reader = FaceReader()
    read = [reader.read(points, np.zeros(52, np.float32)) for points in person(motion[::5])]
    turns = [one[HEAD.start + 1] for one in read if one is not None]
    assert max(turns) > 3
    assert abs(turns[-1]) < 0.5 * max(turns)


# --- The session ---


def session() -> LiveSession:
    return LiveSession(LoudSource)


def tick(live: LiveSession) -> np.ndarray:
    while live.generate():
        pass
    return live.tick().motion


def driven(amount: float = 2.0) -> np.ndarray:
    return np.full(30, amount, np.float32)


def test_a_driver_takes_over_and_is_lost_without_a_jump_within_300_ms() -> None:
    live = session()
    track = [tick(live) for _ in range(5)]
    for present in (True, False, True):
        for frame in range(20):
            live.drive(driven() if present else None)
            track.append(tick(live))
            if present and frame >= FADE_FRAMES - 1:
                assert np.allclose(track[-1], driven())
        assert live.is_driven == present
        assert live.state == "idle"
        if not present:
            assert np.abs(track[-20 + FADE_FRAMES][LOWER_FACE]).max() == 0
    assert FADE_FRAMES / 25 <= 0.3
    heads = np.stack(track)[:, HEAD]
    assert np.abs(np.diff(heads, axis=0)).max() < 2.5 * 2 / FADE_FRAMES


def test_a_driver_who_is_found_while_the_face_eases_back_causes_no_jump() -> None:
    live = session()
    track = []
    for index in range(60):
        live.drive(driven(2.0 if index < 30 else -2.0) if index % 10 > 2 or index < 20 else None)
        track.append(tick(live))
    # Lost for three frames at 20, 30, ...; found with the opposite motion at 33.
    steps = np.abs(np.diff(np.stack(track)[:, HEAD], axis=0)).max(1)
    assert steps[20:45].max() < 2.5 * 4 / FADE_FRAMES


def test_speech_moves_the_lips_and_the_driver_the_rest() -> None:
    live = session()
    frames = []
    for index in range(80):
        if index == 20:
            live.push(speech(1.2), RATE)
            live.finish()
        live.drive(driven())
        while live.generate():
            pass
        frames.append(live.tick())
    speaking = [frame for frame in frames if frame.state == "speaking"]
    assert len(speaking) == 30
    source = LoudSource(0)
    expected = np.concatenate([part.numpy() for part in [*source.push(np.zeros(19_200)), *source.finish()]])
    lips = np.stack([frame.motion[LOWER_FACE] for frame in speaking])
    assert np.allclose(lips[OPENING_FRAMES:], expected[OPENING_FRAMES:30, LOWER_FACE])
    assert all(np.allclose(frame.motion[REST_OF_FACE], 2.0) for frame in frames[FADE_FRAMES:])
    after = frames[frames.index(speaking[-1]) + REST_FRAMES]
    assert np.array_equal(after.motion, driven()), "and afterwards the driver's lips again"


def test_motion_that_cannot_be_drawn_is_refused() -> None:
    for wrong in (np.zeros(24), np.full(30, np.nan)):
        with pytest.raises(BadInput, match="30 finite numbers"):
            session().drive(wrong)


# --- A real tracker ---


@pytest.fixture(scope="module")
def shared() -> LivePortrait:
    pipeline = AnimatePipeline.from_pretrained("rl", denoise=False)
    return LivePortrait(Portrait.from_image(read_photo(portrait_path("astronaut")), 128), checkpoint=pipeline)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Somebody else, drawn with a turning head and an opening mouth, as a webcam would see it."""
    codec = MotionCodec(Portrait.from_image(read_photo(portrait_path("beard")), 256), retouch=False)
    motion = torch.zeros(40, 30)
    motion[:, HEAD.start + 1] = 4 * torch.sin(2 * torch.pi * torch.arange(40) / 20)
    motion[:, LOWER_FACE.start] = 3 * torch.sin(2 * torch.pi * torch.arange(40) / 10).clamp_min(0)
    return [cv2.copyMakeBorder(frame, 40, 40, 80, 80, cv2.BORDER_REPLICATE) for frame in codec.decode(motion)]


@pytest.fixture
def driver() -> Iterator[FaceDriver]:
    driver = FaceDriver()
    yield driver
    driver.close()


def wait_for(driver: FaceDriver, tracked: int) -> None:
    until = time.monotonic() + 60
    while driver.tracked < tracked and driver.error is None and time.monotonic() < until:
        time.sleep(0.002)
    assert driver.error is None
    assert driver.tracked >= tracked


def test_the_tracker_follows_a_picture_and_forgets_a_lost_face(driver: FaceDriver, pictures: list[np.ndarray]) -> None:
    turns = []
    for number, picture in enumerate(pictures, 1):
        driver.show(picture)
        wait_for(driver, number)
        motion = driver.next()
        turns.append(np.nan if motion is None else motion[HEAD.start + 1])
    seen = ~np.isnan(turns)
    assert seen.sum() >= len(pictures) - 5
    true_yaw = np.sin(2 * np.pi * np.arange(40) / 20)
    shifted = [np.corrcoef(np.array(turns)[10:], true_yaw[10 - lag : 40 - lag])[0, 1] for lag in range(4)]
    assert max(shifted) > 0.95
    assert int(np.argmax(shifted)) <= 3
    driver.show(np.zeros_like(pictures[0]))
    wait_for(driver, len(pictures) + 1)
    assert driver.next() is None


def test_of_many_pictures_the_newest_is_tracked(driver: FaceDriver, pictures: list[np.ndarray]) -> None:
    wait_began = time.monotonic()
    for _ in range(20):
        for picture in pictures:
            driver.show(picture)
    assert time.monotonic() - wait_began < 1
    wait_for(driver, 1)
    time.sleep(0.5)
    assert driver.tracked < 100


def test_pictures_that_stop_coming_are_a_lost_face(pictures: list[np.ndarray]) -> None:
    now = [0.0]
    driver = FaceDriver(lambda: now[0])
    for number in range(1, 8):
        driver.show(pictures[0])
        wait_for(driver, number)
    assert driver.next() is not None
    now[0] += 0.6
    assert driver.next() is None
    driver.close()


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((5000, 8, 3), np.uint8)])
def test_what_is_no_picture_is_refused(driver: FaceDriver, wrong: np.ndarray) -> None:
    with pytest.raises(BadInput, match="picture"):
        driver.show(wrong)


def test_an_avatar_follows_the_webcam_and_idles_afterwards(shared: LivePortrait, pictures: list[np.ndarray]) -> None:
    avatar = LiveAvatar(shared)

    async def run() -> tuple[list[bool], list[np.ndarray]]:
        flags, shown, count = [], [], 0
        async for picture, _ in avatar.frames():
            if count < 40:
                avatar.drive_with(pictures[count])
            elif count == 40:
                avatar.drive_with(None)
            flags.append(avatar.is_driven)
            shown.append(picture)
            count += 1
            if count == 60:
                await avatar.aclose()
        return flags, shown

    flags, shown = asyncio.run(run())
    assert any(flags[:40])
    assert not any(flags[42:])
    changes = np.array([np.abs(a.astype(float) - b).mean() for a, b in zip(shown[1:], shown, strict=False)])
    assert changes[20:40].mean() > 1.5 * changes[50:].mean(), "a turning head changes more than idle motion"
    with pytest.raises(BadInput, match="closed"):
        avatar.drive_with(pictures[0])

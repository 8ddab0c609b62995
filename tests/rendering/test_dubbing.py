"""Dubbing a whole video: a cut forgets the face before it, the video keeps its frame rate, and frames whose mouth
cannot be drawn keep their own lips."""

from __future__ import annotations

import json
import wave
import weakref
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from skimage import data

from flowportrait.cli import main
from flowportrait.errors import BadInput
from flowportrait.media.faces import FaceTracker, TrackedFace, face_yaw
from flowportrait.media.video import iter_frames, read_frame_rate
from flowportrait.media.write_video import write_video
from flowportrait.rendering import dubbing as dubbed_video
from flowportrait.rendering.dubbing import MEMORY_FRAMES, DubbedVideo, ping_pong_order, resample_motion
from flowportrait.rendering.footage import TrackedVideo, track_face_in_video
from flowportrait.rendering.motion_basis import MOTION_DIM

PHOTO = np.ascontiguousarray(data.astronaut()[:256, 90:346])
OPEN = torch.full((30, MOTION_DIM), 1.5)
COUNT = 9
NTSC = Fraction(30_000, 1001)


def other_person() -> np.ndarray:
    """Seen in a mirror, smaller, in the dark: all that a mouth is learned from differs."""
    smaller = np.full_like(PHOTO, 10)
    smaller[40:, 30:226] = PHOTO[:216, 30:226][:, ::-1] // 2
    return smaller


def dubbed(footage: TrackedVideo, lips: torch.Tensor = OPEN) -> list[np.ndarray]:
    return list(DubbedVideo(footage, [lips]))


def changes(after: Iterable[np.ndarray], before: Iterable[np.ndarray]) -> np.ndarray:
    """Mean change of each frame."""
    return np.array([np.abs(a.astype(int) - b).mean() for a, b in zip(after, before, strict=True)])


def faces(tracks: np.ndarray, shapes: np.ndarray, valid: bool = True) -> TrackedFace:
    seen = np.full(len(tracks), valid)
    return TrackedFace(tracks, np.repeat(shapes[None], len(tracks), 0), seen, seen.astype(int))


@pytest.fixture(scope="module")
def found() -> tuple[np.ndarray, np.ndarray]:
    with FaceTracker(still=True) as tracker:
        return tracker.detect(PHOTO)[0]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("footage") / "cut.mp4"
    write_video(path, [PHOTO] * COUNT + [other_person()] * COUNT, None, crf=0)
    return path


def test_what_comes_before_a_cut_changes_nothing_after_it(video: Path, tmp_path: Path) -> None:
    footage = track_face_in_video(video)
    assert footage.starts == [0, COUNT]
    write_video(tmp_path / "alone.mp4", [other_person()] * COUNT, None, crf=0)
    together = dubbed(footage)[COUNT:]
    alone = dubbed(track_face_in_video(tmp_path / "alone.mp4"))
    as_one = dubbed(TrackedVideo(video, footage.faces, [0]))[COUNT:]
    assert changes(together, alone)[1:].mean() < 0.1
    assert changes(as_one, alone)[1:].mean() > 5 * changes(together, alone)[1:].mean()


def test_a_face_in_profile_keeps_its_own_lips(video: Path, found: tuple[np.ndarray, np.ndarray]) -> None:
    frames = list(iter_frames(video))[:COUNT]
    points, shapes = found
    centre = points.mean(0)
    turns = [Rotation.from_euler("y", angle, degrees=True).as_matrix() for angle in np.linspace(0, 60, COUNT)]
    tracks = np.array([(points - centre) @ turn.T + centre for turn in turns], np.float32)
    dub = DubbedVideo(TrackedVideo(video, faces(tracks, shapes), [0]), [OPEN])
    change = changes(dub, frames)
    aside = np.abs([face_yaw(p) for p in tracks]) > 46
    assert change[0] > 0.5
    assert (change[aside] == 0).all()
    assert aside.any()
    assert dub.summary() == f"{aside.sum()} of 9 frames kept their own lips: in {aside.sum()} the head is turned aside."


def test_a_video_without_a_face_is_bad_input_and_a_shot_without_one_passes(tmp_path: Path) -> None:
    wall = np.full((256, 256, 3), 90, np.uint8)
    write_video(tmp_path / "wall.mp4", [wall] * 4, None)
    with pytest.raises(BadInput, match="No face found"):
        track_face_in_video(tmp_path / "wall.mp4")
    write_video(tmp_path / "both.mp4", [wall] * 5 + [PHOTO] * 5, None, crf=0)
    dub = DubbedVideo(track_face_in_video(tmp_path / "both.mp4"), [OPEN])
    change = changes(dub, iter_frames(tmp_path / "both.mp4"))
    assert (change > 0.1).tolist() == [False] * 5 + [True] * 5
    assert dub.summary() == "5 of 10 frames kept their own lips: in 5 no face is found."


def test_after_a_cut_a_face_is_chosen_anew() -> None:
    two = np.concatenate([PHOTO[:, ::-1], PHOTO], axis=1)
    with FaceTracker(face=2) as tracker:
        first = tracker.track([two])
        tracker.new_shot()
        second = tracker.track([PHOTO])
        tracker.new_shot()
        third = tracker.track([two])
    assert [float(faces.landmarks[0, :, 0].mean()) > 256 for faces in (first, second, third)] == [True, False, True]


def fingers(image: np.ndarray, points: np.ndarray, skin: np.ndarray) -> None:
    """Three fingers of the person's own skin across the mouth, a dark line between them."""
    size, (x, y) = np.ptp(points[:, 0]), points[13, :2]
    for side in (-1, 0, 1):
        ends = [(round(float(x + dx * size)), round(float(y + side * 0.16 * size))) for dx in (-0.25, 1.0)]
        cv2.line(image, ends[0], ends[1], (0.6 * skin).tolist(), round(0.18 * size), cv2.LINE_AA)
        cv2.line(image, ends[0], ends[1], skin.tolist(), round(0.15 * size), cv2.LINE_AA)


def card(image: np.ndarray, points: np.ndarray, skin: np.ndarray) -> None:
    """A flat piece of about the skin's colour."""
    size, (x, y) = np.ptp(points[:, 0]), points[13, :2]
    low, high = ((round(float(x + s * 0.35 * size)), round(float(y + s * 0.28 * size))) for s in (-1, 1))
    cv2.rectangle(image, low, high, (1.1 * skin).clip(0, 255).tolist(), -1)


def microphone(image: np.ndarray, points: np.ndarray, skin: np.ndarray) -> None:
    """A dark ball before the mouth, and its handle."""
    size, (x, y) = np.ptp(points[:, 0]), points[14, :2]
    ball = round(float(x)), round(float(y))
    cv2.line(image, ball, (ball[0] + round(0.4 * size), ball[1] + round(1.5 * size)), (70, 70, 75), round(0.2 * size))
    cv2.circle(image, ball, round(0.25 * size), (40, 40, 45), -1, cv2.LINE_AA)


@pytest.mark.parametrize("draw", [fingers, card, microphone])
def test_nothing_is_drawn_onto_what_comes_before_the_mouth(
    draw: Callable[..., None], tmp_path: Path, found: tuple[np.ndarray, np.ndarray]
) -> None:
    points, _ = found
    hidden, cheek = PHOTO.copy(), points[[50, 280], :2].mean(0).astype(int)
    draw(hidden, points, np.median(PHOTO[cheek[1] - 8 : cheek[1], cheek[0] - 25 : cheek[0] + 25].reshape(-1, 3), 0))
    path, free, covered = tmp_path / "hand.mp4", 12, 10
    write_video(path, [PHOTO] * free + [hidden] * covered + [PHOTO] * free, None, crf=0)
    dub = DubbedVideo(track_face_in_video(path), [OPEN])
    change = changes(dub, iter_frames(path))
    during = slice(free - 2, free + covered + 2)
    assert (change[during] == 0).all(), "the thing, and two frames on either side of it, stay as they were"
    assert (np.diff(change[free + covered + 1 : -2]) >= -0.02).all(), "lips come back gradually"
    assert (np.diff(change[2 : free - 1]) <= 0.02).all(), "and go gradually"
    whole = DubbedVideo(TrackedVideo(path, dub._footage.faces, [0]), [OPEN])
    expected = changes(whole, iter_frames(path))
    np.testing.assert_allclose(change[[0, 1, -2, -1]], expected[[0, 1, -2, -1]], rtol=0.15)
    kept = covered + 4
    assert dub.summary() == f"{kept} of 34 frames kept their own lips: in {kept} something covers the mouth."


def test_ordinary_footage_takes_new_lips_in_every_frame(video: Path) -> None:
    footage = track_face_in_video(video)
    assert (footage.share == 1).all()
    assert DubbedVideo(footage, [OPEN]).summary() is None


def test_a_video_whose_mouth_is_always_hidden_is_refused(tmp_path: Path, found: tuple[np.ndarray, np.ndarray]) -> None:
    hidden = PHOTO.copy()
    microphone(hidden, found[0], np.zeros(3))
    write_video(tmp_path / "singer.mp4", [hidden] * COUNT, None, crf=0)
    with pytest.raises(BadInput, match=r"Nothing can be dubbed in .*: in 9 something covers the mouth \(of 9 f"):
        track_face_in_video(tmp_path / "singer.mp4")


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_video_that_lies_on_its_side_or_its_head_is_refused_in_one_sentence(quarters: int, tmp_path: Path) -> None:
    write_video(tmp_path / "turned.mp4", [np.rot90(PHOTO, quarters)] * 6, None, crf=0)
    with pytest.raises(BadInput, match=r"turned\.mp4.*: rotate the video upright"):
        track_face_in_video(tmp_path / "turned.mp4")


def test_a_mouth_outside_the_picture_keeps_its_own_lips(tmp_path: Path, found: tuple[np.ndarray, np.ndarray]) -> None:
    edge = int(found[0][13, 1]) // 2 * 2
    write_video(tmp_path / "low.mp4", [PHOTO[:edge]] * 6, None, crf=0)
    with pytest.raises(BadInput, match=r"No face found|the mouth is outside the picture"):
        track_face_in_video(tmp_path / "low.mp4")


@pytest.mark.parametrize("fps", [Fraction(24), NTSC, Fraction(30), Fraction(50), Fraction(60)])
def test_a_dubbed_video_keeps_its_frame_rate_and_every_frame(fps: Fraction, tmp_path: Path) -> None:
    path, count = tmp_path / "clip.mp4", 13
    shades = [np.clip(PHOTO.astype(int) + 2 * number, 0, 255).astype(np.uint8) for number in range(count)]
    write_video(path, shades, None, fps, crf=0)
    assert read_frame_rate(path) == (fps, count)
    dub = DubbedVideo(track_face_in_video(path), [OPEN])
    assert dub.fps == fps
    assert len(dub) == count
    # Each frame is its own portrait: what is not lips is the frame's own.
    brightness = [float(frame[:40].mean()) for frame in dub]
    np.testing.assert_allclose(np.diff(brightness), np.diff([float(shade[:40].mean()) for shade in shades]), atol=0.2)


def write_uneven(path: Path, times: list[int]) -> None:
    """Frames of growing brightness at ``times`` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "0", "bf": "0"})
        stream.width = stream.height = 64
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            picture = np.full((64, 64, 3), 10 + 4 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_recorder_that_leaves_out_frames_has_a_rate_all_the_same(tmp_path: Path) -> None:
    times = [round(number * 1000 / 29.97) for number in range(60) if number % 9]
    write_uneven(tmp_path / "screen.mp4", times)
    assert read_frame_rate(tmp_path / "screen.mp4").fps == NTSC


def test_uneven_frame_times_become_their_average_rate(tmp_path: Path) -> None:
    times = np.concatenate([[0], np.cumsum([33, 50] * 20)]).tolist()
    write_uneven(tmp_path / "phone.mp4", times)
    rate = read_frame_rate(tmp_path / "phone.mp4")
    assert float(rate.fps) == pytest.approx(1000 / 41.5, rel=1e-3)
    assert rate.frames == len(times)
    assert len(list(iter_frames(tmp_path / "phone.mp4", rate.fps))) == pytest.approx(len(times), abs=1)


@pytest.mark.parametrize("fps", [25, Fraction(24), NTSC, Fraction(60)])
def test_reading_from_the_middle_gives_the_frames_that_reading_all_gives(fps: Fraction, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 200, (64, 64, 3))
    pictures = [(texture + number // 2).astype(np.uint8) for number in range(90)]
    write_video(tmp_path / "clip.mp4", pictures, None, NTSC, crf=5)
    frames = list(iter_frames(tmp_path / "clip.mp4", fps))
    for start in (1, 7, 40, len(frames) - 1):
        np.testing.assert_array_equal(list(iter_frames(tmp_path / "clip.mp4", fps, start)), frames[start:])


@pytest.mark.parametrize("fps", [10, 24, NTSC, 50, 60, 120])
def test_motion_at_another_rate_is_where_it_was_in_time(fps: Fraction) -> None:
    ramp = torch.arange(50.0)[:, None].expand(-1, MOTION_DIM)
    count = int(2 * fps)
    rows = torch.stack(
        [row for row, _ in zip(resample_motion(ramp.split(4), Fraction(fps)), range(count), strict=False)]
    )
    middles = (torch.arange(count) + 0.5) / float(fps)
    wanted = 25 * middles - 0.5
    inside = (wanted >= 1) & (wanted <= 48)
    torch.testing.assert_close(rows[inside, 0], wanted[inside], atol=1e-4, rtol=0)
    torch.testing.assert_close(rows[:, 0], wanted.clamp(0, 49), atol=0.2, rtol=0)


def test_motion_at_its_own_rate_is_unchanged_and_held_at_its_end() -> None:
    motion = torch.randn(10, MOTION_DIM, generator=torch.Generator().manual_seed(0))
    rows = [row for row, _ in zip(resample_motion(motion.split(3), Fraction(25)), range(14), strict=False)]
    assert torch.equal(torch.stack(rows), torch.cat([motion, motion[-1:].expand(4, -1)]))


@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=12), st.sampled_from([24, 30, 48, 60]))
def test_motion_between_two_frames_stays_between_them(values: list[float], fps: int) -> None:
    given_motion = torch.tensor(values)[:, None]
    for number, row in zip(
        range(len(values) * fps // 25), resample_motion([given_motion], Fraction(fps)), strict=False
    ):
        place = min(max((number + 0.5) * 25 / fps - 0.5, 0), len(values) - 1)
        beside = given_motion[int(place) : int(place) + 2]
        assert beside.min() - 1e-5 <= row <= beside.max() + 1e-5


def test_a_short_video_swings_back_and_forth_without_a_jump() -> None:
    order = ping_pong_order(5, 23)
    assert order[:13].tolist() == [0, 1, 2, 3, 4, 3, 2, 1, 0, 1, 2, 3, 4]
    assert (np.abs(np.diff(order)) == 1).all()
    assert ping_pong_order(1, 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("held", [1, 3, 1000])
def test_a_looped_video_shows_its_frames_backwards_however_few_are_held(
    held: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shades = [np.full((64, 64, 3), 20 * number, np.uint8) for number in range(11)]
    write_video(tmp_path / "clip.mp4", shades, None, 30, crf=0)
    monkeypatch.setattr(dubbed_video, "_BACKWARD_BYTES", held * shades[0].nbytes)
    nobody = faces(np.full((11, 478, 3), np.nan, np.float32), np.zeros(52), valid=False)
    dub = DubbedVideo(TrackedVideo(tmp_path / "clip.mp4", nobody, [0], Fraction(30)), [OPEN], count=40)
    brightness = [float(frame.mean()) for frame in dub]
    np.testing.assert_allclose(brightness, 20 * ping_pong_order(11, 40), atol=2)


def test_a_looped_video_goes_back_through_its_cut(video: Path) -> None:
    footage = track_face_in_video(video)
    frames = list(DubbedVideo(footage, [OPEN], count=3 * len(footage)))
    assert len(frames) == 3 * len(footage)
    # Held lips on the same frame of the video are the same picture, whichever way it is played.
    order = ping_pong_order(len(footage), len(frames))
    first = frames[: len(footage)]
    assert max(changes(frames, [first[number] for number in order])) < 0.05


def test_few_pictures_of_a_long_video_are_held(
    video: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[np.ndarray, np.ndarray]
) -> None:
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def long_video(*_: Any) -> Iterator[np.ndarray]:
        nonlocal alive, most
        for _number in range(600):
            picture = PHOTO.copy()
            weakref.finalize(picture, gone)
            alive += 1
            most = max(most, alive)
            yield picture
            del picture

    monkeypatch.setattr(dubbed_video, "iter_frames", long_video)
    points, shapes = found
    footage = TrackedVideo(video, faces(np.repeat(points[None], 600, 0), shapes), [0])
    frames = iter(DubbedVideo(footage, [OPEN]))
    for _ in range(3):
        next(frames)
    assert most <= 2 * MEMORY_FRAMES + 2


def test_what_comes_before_the_first_frame_is_shown_with_an_estimate(video: Path) -> None:
    shown: list[tuple[str, int | None]] = []

    def progress(items: Iterable[Any], total: int | None, doing: str) -> Iterable[Any]:
        shown.append((doing, total))
        return items

    DubbedVideo(track_face_in_video(video, progress=progress), [OPEN], progress=progress)
    assert shown == [("following the face", 2 * COUNT), ("learning the mouth", 2 * COUNT)]


def test_the_command_keeps_the_frame_rate_loops_and_says_which_frames_keep_their_lips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wall = np.full((256, 256, 3), 90, np.uint8)
    write_video(tmp_path / "clip.mp4", [wall] * 6 + [PHOTO] * 14, None, NTSC)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(np.random.default_rng(0).normal(0, 3000, 16_000).astype("<i2").tobytes())
    command = ["animate", "--video", str(tmp_path / "clip.mp4"), "--audio", str(tmp_path / "speech.wav"), "--output",
               str(tmp_path / "out.mp4"), "--loop", "--no-provenance", "--json"]  # fmt: skip
    assert main(command) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["frames"], report["fps"]) == (30, 29.97)
    assert read_frame_rate(tmp_path / "out.mp4") == (NTSC, 30)
    assert "6 of 30 frames kept their own lips: in 6 no face is found." in err
    assert report["undubbed_frames"] == 6
    output = str(tmp_path / "photo.mp4")
    assert main(["animate", "--image", "a.jpg", "--audio", "b.wav", "--output", output, "--loop"]) == 2
    assert "--loop works with --video only" in capsys.readouterr().err

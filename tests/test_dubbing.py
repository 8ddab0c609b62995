"""Dubbing a whole video: a cut forgets the face before it, and a face in profile keeps its own lips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from skimage import data

from flowportrait.codec.basis import MOTION_DIM
from flowportrait.codec.dubbed_video import Footage, dubbed, track_footage
from flowportrait.errors import BadInput
from flowportrait.media.face import Faces, FaceTracker, yaw
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video

PHOTO = np.ascontiguousarray(data.astronaut()[:256, 90:346])
OPEN = torch.full((30, MOTION_DIM), 1.5)
COUNT = 9


def other_person() -> np.ndarray:
    """Seen in a mirror, smaller, in the dark: all that a mouth is learned from differs."""
    smaller = np.full_like(PHOTO, 10)
    smaller[40:, 30:226] = PHOTO[:216, 30:226][:, ::-1] // 2
    return smaller


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("footage") / "cut.mp4"
    write_video(path, [PHOTO] * COUNT + [other_person()] * COUNT, None, crf=0)
    return path


def test_what_comes_before_a_cut_changes_nothing_after_it(video: Path, tmp_path: Path) -> None:
    footage = track_footage(video)
    assert footage.starts == [0, COUNT]
    write_video(tmp_path / "alone.mp4", [other_person()] * COUNT, None, crf=0)
    together = list(dubbed(footage, OPEN))[COUNT:]
    alone = list(dubbed(track_footage(tmp_path / "alone.mp4"), OPEN))
    as_one = list(dubbed(Footage(video, footage.faces, [0]), OPEN))[COUNT:]

    def apart(frames: list[np.ndarray]) -> float:
        return float(np.abs(np.array(frames[1:], int) - np.array(alone[1:], int)).mean())

    assert apart(together) < 0.1
    assert apart(as_one) > 5 * apart(together)


def test_a_face_in_profile_keeps_its_own_lips(video: Path) -> None:
    frames = list(iter_frames(video))[:COUNT]
    with FaceTracker() as tracker:
        points, shapes = tracker.detect(PHOTO)[0]
    centre = points.mean(0)
    turns = [Rotation.from_euler("y", angle, degrees=True).as_matrix() for angle in np.linspace(0, 60, COUNT)]
    tracks = np.array([(points - centre) @ turn.T + centre for turn in turns], np.float32)
    seen = np.ones(COUNT, bool)
    footage = Footage(video, Faces(tracks, np.repeat(shapes[None], COUNT, 0), seen, seen.astype(int)), [0])
    change = [np.abs(new.astype(int) - old).mean() for new, old in zip(dubbed(footage, OPEN), frames, strict=False)]
    turned = np.abs([yaw(p) for p in tracks])
    assert change[0] > 0.5
    assert all(value == 0 for value, angle in zip(change, turned, strict=True) if angle > 46)
    assert any(angle > 46 for angle in turned)


def test_a_video_without_a_face_is_bad_input_and_a_shot_without_one_passes(tmp_path: Path) -> None:
    wall = np.full((256, 256, 3), 90, np.uint8)
    write_video(tmp_path / "wall.mp4", [wall] * 4, None)
    with pytest.raises(BadInput, match="No face found"):
        track_footage(tmp_path / "wall.mp4")
    write_video(tmp_path / "both.mp4", [wall] * 5 + [PHOTO] * 5, None, crf=0)
    footage = track_footage(tmp_path / "both.mp4")
    before, after = list(iter_frames(tmp_path / "both.mp4")), list(dubbed(footage, OPEN))
    changed = [np.abs(new.astype(int) - old).mean() > 0.1 for new, old in zip(after, before, strict=True)]
    assert changed == [False] * 5 + [True] * 5


def test_after_a_cut_a_face_is_chosen_anew() -> None:
    two = np.concatenate([PHOTO[:, ::-1], PHOTO], axis=1)
    with FaceTracker(face=2) as tracker:
        first = tracker.track([two])
        tracker.new_shot()
        second = tracker.track([PHOTO])
        tracker.new_shot()
        third = tracker.track([two])
    assert [float(faces.landmarks[0, :, 0].mean()) > 256 for faces in (first, second, third)] == [True, False, True]

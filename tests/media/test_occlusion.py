"""Something before a mouth is noticed on photos, paintings and drawings, and none of these is taken for a mask."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import COVERED_THRESHOLD, OcclusionDetector, is_mouth_outside, part_cut_by_edge
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.footage import occluded_frames

DETECTOR = OcclusionDetector()
ASTRONAUT = data.astronaut()

Cover = Callable[[np.ndarray, np.ndarray], np.ndarray]


def mouth_box(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Middle of the lips in px and the distance of the outer eye corners."""
    return points[[13, 14], :2].mean(0), float(np.linalg.norm(points[33, :2] - points[263, :2]))


def mask(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A pale cloth from the nose to the chin."""
    around = [234, 132, 58, 172, 136, 150, 176, 152, 400, 379, 365, 397, 288, 361, 454, 4]
    cv2.fillConvexPoly(image, cv2.convexHull(np.round(points[around, :2]).astype(np.int32)), (170, 200, 230))
    return image


def hand(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Four fingers of the person's own skin with dark gaps, from the right."""
    (x, y), size = mouth_box(points)
    cheek = np.round(points[[50, 280], :2].mean(0)).astype(int)
    side = round(0.06 * size) + 1
    skin = np.median(image[cheek[1] - side : cheek[1] + side, cheek[0] - side : cheek[0] + side].reshape(-1, 3), 0)
    for number in range(4):
        height = round(y + (number - 1.5) * 0.22 * size)
        ends = (round(x - 0.4 * size), height), (round(x + 1.2 * size), height + round(0.2 * size))
        cv2.line(image, *ends, (0.6 * skin).tolist(), max(round(0.24 * size), 1), cv2.LINE_AA)
        cv2.line(image, *ends, skin.tolist(), max(round(0.2 * size), 1), cv2.LINE_AA)
    return image


def cup(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A white cup with a shadow on one side."""
    (x, y), size = mouth_box(points)
    low, high = (round(x - 0.4 * size), round(y - 0.2 * size)), (round(x + 0.4 * size), round(y + 0.7 * size))
    cv2.rectangle(image, low, high, (235, 232, 225), -1)
    cv2.rectangle(image, (round(x + 0.2 * size), low[1]), high, (180, 178, 172), -1)
    return image


def face_of(image: np.ndarray) -> np.ndarray:
    with FaceTracker(still=True) as tracker:
        return tracker.detect(image)[0][0]


def drawing(hair: tuple[int, int, int], skin: tuple[int, int, int], smile: int, low: int = 0) -> np.ndarray:
    """A face of flat colours and lines whose hair ends ``low`` px above the eyes."""
    image = np.full((512, 512, 3), (250, 240, 246), np.uint8)
    cv2.ellipse(image, (256, 256), (135, 165), 0, 0, 360, skin, -1, cv2.LINE_AA)
    cv2.ellipse(image, (256, 256), (135, 165), 0, 0, 360, (110, 60, 60), 2, cv2.LINE_AA)
    cv2.ellipse(image, (256, 215 - low), (152, 160 - low), 0, 180, 360, hair, -1, cv2.LINE_AA)
    for x in (200, 312):
        cv2.ellipse(image, (x, 262), (32, 44), 0, 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.ellipse(image, (x, 262), (32, 44), 0, 0, 360, (0, 0, 0), 2, cv2.LINE_AA)
        cv2.ellipse(image, (x, 266), (20, 32), 0, 0, 360, (60, 90, 200), -1, cv2.LINE_AA)
    cv2.line(image, (258, 312), (252, 334), (170, 100, 90), 2, cv2.LINE_AA)
    cv2.ellipse(image, (256, 362), (26, smile), 0, 0, 180, (160, 40, 50), 3, cv2.LINE_AA)
    return image


@pytest.mark.parametrize("hair", [(90, 70, 160), (20, 20, 20), (240, 220, 120), (200, 60, 60)])
@pytest.mark.parametrize("skin", [(255, 225, 205), (150, 100, 70)])
def test_a_drawing_has_nothing_before_its_mouth(hair: tuple[int, int, int], skin: tuple[int, int, int]) -> None:
    image = drawing(hair, skin, 10, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Portrait.from_image(image, name="anime.png")


@pytest.mark.parametrize("cover", [mask, hand, cup])
def test_a_covered_mouth_in_a_photo_is_warned_of(cover: Cover) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Portrait.from_image(ASTRONAUT, name="free.jpg")
    points = face_of(ASTRONAUT)
    with pytest.warns(UserWarning, match=r"The mouth in hidden\.jpg seems to be covered"):
        Portrait.from_image(cover(ASTRONAUT.copy(), points), name="hidden.jpg")


@pytest.mark.parametrize("look", ["grey", "dark", "sepia", "small", "mirrored", "painted"])
def test_light_and_style_cover_nothing_and_hide_no_cover(look: str) -> None:
    looks: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "grey": lambda x: np.repeat(x.mean(2, keepdims=True), 3, 2).astype(np.uint8),
        "dark": lambda x: (x * 0.35).astype(np.uint8),
        "sepia": lambda x: (x.mean(2, keepdims=True) * [1.0, 0.85, 0.6]).clip(0, 255).astype(np.uint8),
        "small": lambda x: cv2.resize(x, (200, 200), interpolation=cv2.INTER_AREA),
        "mirrored": lambda x: np.ascontiguousarray(x[:, ::-1]),
        "painted": lambda x: cv2.stylization(x, sigma_s=20, sigma_r=0.4),
    }
    free, points = looks[look](ASTRONAUT), face_of(ASTRONAUT)
    assert DETECTOR.covered_share(free, face_of(free)) < COVERED_THRESHOLD / 2
    for cover in (mask, hand, cup):
        hidden = looks[look](cover(ASTRONAUT.copy(), points))
        assert DETECTOR.covered_share(hidden, face_of(free)) > COVERED_THRESHOLD, cover.__name__


@pytest.mark.data
def test_covers_are_told_from_faces_on_photos_paintings_and_drawings() -> None:
    folder = Path(os.environ["FLOWPORTRAIT_DATA"]) / "portraits"
    for path in sorted(folder.iterdir()):
        image = read_image(path)
        points = face_of(image)
        assert DETECTOR.covered_share(image, points) < COVERED_THRESHOLD, path.name
        for cover in (mask, hand, cup):
            assert DETECTOR.covered_share(cover(image.copy(), points), points) > COVERED_THRESHOLD, (
                f"{path.name} {cover}"
            )


def test_a_chin_beyond_the_edge_of_the_photo_is_warned_of() -> None:
    points = face_of(ASTRONAUT)
    chin, lips = int(points[152, 1]), int(points[14, 1])
    with pytest.warns(UserWarning, match=r"The chin in cut\.png is cut off by the photo's edge"):
        Portrait.from_image(np.ascontiguousarray(ASTRONAUT[: (chin + lips) // 2]), name="cut.png")
    assert part_cut_by_edge(ASTRONAUT.shape, points) is None
    assert part_cut_by_edge((chin - 5, 512), points) == "chin"
    assert part_cut_by_edge((lips, 512), points) == "mouth"
    assert part_cut_by_edge((512, int(points[4, 0])), points) in ("mouth", "chin", "face")
    assert is_mouth_outside((lips - 3, 512), points)
    assert not is_mouth_outside((lips + 40, 512), points)


def test_a_thing_stays_before_the_mouth_from_where_it_comes_to_where_it_goes() -> None:
    come_and_gone = [0.15, 0.15, 0.9, 0.9, 0.15]
    shares = np.array([0.0] * 8 + come_and_gone + [0.0] * 8 + [0.15] * 3 + [0.0] * 4 + [0.9] + [0.0] * 4)
    hidden = np.flatnonzero(occluded_frames(shares))
    assert hidden.tolist() == [8, 9, 10, 11, 12], "beside a thing less counts; alone, or for one frame, it does not"
    assert occluded_frames(np.full(9, 0.9)).all()
    assert not occluded_frames(np.linspace(0.05, 0.25, 9)).any(), "a face that always looks so is not covered"

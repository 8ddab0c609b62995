"""The face of a large photo is cut from the file's own pixels; what is shown of it stays as large as players take."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from flowportrait.media.crop import resize_transform
from flowportrait.media.portrait import MAX_VIDEO_SIDE, Photo, Portrait
from flowportrait.pipelines.conversation import draw_in_one_photo, find_speaker_portraits
from flowportrait.pipelines.inputs import read_photo
from flowportrait.rendering.renderer import MotionCodec


def sharpness(picture: np.ndarray) -> float:
    return float(cv2.Laplacian(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def group(width: int = 4800, height: int = 3200, side: int = 1500) -> np.ndarray:
    """A large photo with one person in it, ``side`` px of astronaut at (300, 400), rich in detail."""
    picture = np.full((height, width, 3), 120, np.uint8)
    person = cv2.resize(data.astronaut(), (side, side), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    if side > 512:
        person += np.random.default_rng(0).normal(0, 12, person.shape).astype(np.int16)
    picture[400 : 400 + side, 300 : 300 + side] = person.clip(0, 255)
    return picture


def test_the_crop_of_a_large_photo_is_as_sharp_as_the_file(tmp_path: Path) -> None:
    picture = group()
    Image.fromarray(picture).save(tmp_path / "a.bmp")
    shown = read_photo(tmp_path / "a.bmp")
    assert max(shown.video_pixels.shape) == MAX_VIDEO_SIDE
    assert np.array_equal(shown.pixels, picture)
    portrait = Portrait.from_image(shown)
    assert portrait.image is shown.video_pixels
    own = Portrait.from_image(picture[400:1900, 300:1800])
    assert sharpness(portrait.crop) > 0.9 * sharpness(own.crop)
    assert sharpness(portrait.crop) > 3 * sharpness(Portrait.from_image(shown.video_pixels).crop)


def test_crop_and_shown_photo_lie_over_each_other() -> None:
    shown = Photo.for_video(group())
    portrait = Portrait.from_image(shown)
    seen = cv2.warpAffine(shown.video_pixels, portrait.to_crop, (512, 512), flags=cv2.INTER_LINEAR)
    blurred = cv2.GaussianBlur(portrait.crop, (0, 0), 512 / 1920 * 4)
    inside = np.s_[64:448, 64:448]
    shift, _ = cv2.phaseCorrelate(
        cv2.cvtColor(blurred[inside], cv2.COLOR_RGB2GRAY).astype(np.float64),
        cv2.cvtColor(seen[inside], cv2.COLOR_RGB2GRAY).astype(np.float64),
    )
    assert np.hypot(*shift) < 0.5


@pytest.mark.parametrize("shape", [(512, 512), (1080, 1080)])
def test_photos_that_players_take_are_cut_to_the_bit_as_before(shape: tuple[int, int]) -> None:
    picture = cv2.resize(data.astronaut(), shape[::-1], interpolation=cv2.INTER_AREA)
    shown = Photo.for_video(picture)
    assert shown.video_pixels is picture
    one, other = Portrait.from_image(shown), Portrait.from_image(picture)
    for name in ("image", "crop", "landmarks", "to_crop"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_the_warning_speaks_of_the_file_s_face() -> None:
    # In what is shown of the first one its face has 40 px.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Portrait.from_image(Photo.for_video(group(2400, 1600, 400), side=960))
    with pytest.warns(UserWarning, match=r"The face in group\.jpg is only 4\d px high and will be soft"):
        Portrait.from_image(Photo.for_video(group(2400, 1600, 200)), name="group.jpg")


def test_two_speakers_of_a_large_photo_are_shown_as_large_as_players_take_it() -> None:
    import torch

    picture = group(3000, 2000, 1000)
    picture[400:1400, 1700:2700] = picture[400:1400, 300:1300]
    codecs = [
        MotionCodec(portrait) for portrait in find_speaker_portraits([Photo.for_video(picture)] * 2, ["both"] * 2)
    ]
    frame = next(draw_in_one_photo(codecs, [torch.zeros(1, 30)] * 2))
    assert frame.shape == (1280, 1920, 3)


def test_outer_edges_meet_when_a_picture_is_scaled() -> None:
    matrix = resize_transform((400, 600), (100, 300))
    assert matrix @ [-0.5, -0.5, 1] == pytest.approx([-0.5, -0.5])
    assert matrix @ [599.5, 399.5, 1] == pytest.approx([299.5, 99.5])

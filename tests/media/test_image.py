"""Pictures of every common kind become upright RGB."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from flowportrait.errors import BadInput
from flowportrait.media.image import read_image


def test_camera_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10, :15] = 255
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 6  # The camera was held upright: turn clockwise to view.
    picture.save(tmp_path / "turned.png", exif=exif)
    seen = read_image(tmp_path / "turned.png")
    assert seen.shape == (30, 20, 3)
    assert seen[2, 17].min() == 255
    assert seen[2, 2].max() == 0


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = [200, 0, 0, 255]
    Image.fromarray(pixels).save(tmp_path / "cut.png")
    seen = read_image(tmp_path / "cut.png")
    assert seen[0, 0].tolist() == [200, 0, 0]
    assert seen[7, 7].tolist() == [255, 255, 255]


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(4, 0)
    cv2.imwrite(str(tmp_path / "deep.png"), ramp)
    seen = read_image(tmp_path / "deep.png")
    assert seen.shape == (4, 64, 3)
    assert np.abs(seen[0, :, 0] - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
def test_every_mode_and_format_that_exists_reads_as_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    try:
        Image.new("RGB", (12, 9), (240, 240, 240)).convert(mode).save(path)
    except (OSError, KeyError):
        pytest.skip(f"no {mode} in {suffix}")
    seen = read_image(path)
    assert seen.shape == (9, 12, 3)
    assert seen.dtype == np.uint8
    assert abs(float(seen.mean()) - 240) <= 16


def test_what_is_no_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not a picture")
    with pytest.raises(BadInput, match="is not a picture"):
        read_image(tmp_path / "notes.jpg")
    (tmp_path / "nothing.png").touch()
    with pytest.raises(BadInput, match="is empty"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(BadInput, match="check the path"):
        read_image(tmp_path / "missing.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:300])
    with pytest.raises(BadInput, match=r"half\.jpg"):
        read_image(tmp_path / "half.jpg")

"""Claims about how footage looks: its matrix and range, HDR, the shape of its pixels, turned and mirrored pictures."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from skimage import color

from flowportrait.errors import BadInput
from flowportrait.media.colour import (
    HLG,
    PQ,
    apply_display_matrix,
    light_to_pq,
    roll_off_highlights,
    square_pixel_size,
    to_sdr,
)
from flowportrait.media.video import iter_frames

COEFFICIENTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Kr and Kb of BT.709, BT.601 and BT.2020 by their number in ITU-T H.273."""

SKIN = np.array([0.80, 0.62, 0.50])


def to_yuv(rgb: np.ndarray, matrix: int, full: bool, bits: int) -> list[int]:
    """Code values of one colour in [0, 1] (ITU-R BT.2100-2, table 9)."""
    kr, kb = COEFFICIENTS[matrix]
    luma = float(rgb @ [kr, 1 - kr - kb, kb])
    blue, red = (rgb[2] - luma) / (2 - 2 * kb), (rgb[0] - luma) / (2 - 2 * kr)
    scale = 2 ** (bits - 8)
    if full:
        return [round(luma * (256 * scale - 1)), *(round(c * (256 * scale - 1) + 128 * scale) for c in (blue, red))]
    return [round((219 * luma + 16) * scale), *(round((224 * c + 128) * scale) for c in (blue, red))]


def patch_video(path: Path, colours: list[np.ndarray], size: tuple[int, int] = (64, 48), **tags: Any) -> Path:
    """A lossless video with one frame of each colour (signal in [0, 1]), tagged by numbers of ITU-T H.273; the matrix
    of one that is not tagged is ``encoded_as``."""
    matrix, bits, full = tags.get("colorspace", 2), tags.pop("bits", 8), tags.get("color_range") == 2
    stated, width = tags.pop("encoded_as", matrix), 1 if bits == 8 else 2
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "0", "bf": "0", "preset": "ultrafast"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for index, colour in enumerate(colours):
            frame = av.VideoFrame(*size, stream.pix_fmt)
            for plane, code in zip(frame.planes, to_yuv(colour, stated, full, bits), strict=True):
                plane.update(code.to_bytes(width, "little") * (plane.buffer_size // width))
            for name in set(tags) & {"colorspace", "color_range", "color_trc", "color_primaries"}:
                setattr(frame, name, tags[name])
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """CIEDE2000 of sRGB colours ``[..., 3]`` in [0, 1]."""
    return color.deltaE_ciede2000(color.rgb2lab(one), color.rgb2lab(other))


def colours_of(path: Path) -> np.ndarray:
    """Mean colour ``[T, 3]`` in [0, 255] of each frame."""
    return np.array([frame.mean((0, 1)) for frame in iter_frames(path)])


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("color_range", [1, 2])
@pytest.mark.parametrize("matrix", [1, 5, 9])
def test_the_stated_matrix_and_range_are_used(tmp_path: Path, matrix: int, color_range: int, bits: int) -> None:
    path = patch_video(tmp_path / "a.mp4", [SKIN, SKIN[::-1]], colorspace=matrix, color_range=color_range, bits=bits)
    assert np.abs(colours_of(path) - 255 * np.array([SKIN, SKIN[::-1]])).max() < 3.5


@pytest.mark.parametrize(("size", "matrix"), [((64, 48), 5), ((64, 576), 5), ((64, 720), 1), ((64, 1080), 1)])
def test_footage_that_does_not_say_is_taken_as_players_take_it(
    tmp_path: Path, size: tuple[int, int], matrix: int
) -> None:
    path = patch_video(tmp_path / "a.mp4", [SKIN], size, encoded_as=matrix)
    assert np.abs(colours_of(path) - 255 * SKIN).max() < 3.5


def hlg_signal(light: np.ndarray) -> np.ndarray:
    """HLG signal of light ``[3]`` in cd/m² on a display of 1000 (BT.2100-2, table 5, inverted)."""
    shown = light / 1000
    luma = float(shown @ [0.2627, 0.6780, 0.0593])
    scene = shown * luma ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


TO_2020 = np.linalg.inv(np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]))


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_hdr_footage_looks_as_the_sdr_picture_it_was_made_of(tmp_path: Path, transfer: int) -> None:
    dark = [np.full(3, 0.2), np.full(3, 0.4), 0.75 * SKIN, np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.1, 0.1])]
    white = np.full(3, 203 / 100) ** (1 / 2.4)
    light = [TO_2020 @ (100 * colour**2.4) for colour in [*dark, white]]
    signal = [hlg_signal(one) if transfer == HLG else light_to_pq(one) for one in light]
    path = patch_video(
        tmp_path / "a.mp4", signal, bits=10, colorspace=9, color_range=1, color_trc=transfer, color_primaries=9
    )
    kind = "HLG" if transfer == HLG else "PQ"
    with pytest.warns(UserWarning, match=rf"a\.mp4 is HDR video \({kind}\): .* mapped to SDR"):
        seen = colours_of(path)
    assert difference(seen[:-1] / 255, np.array(dark)).max() < 2
    # The white of paper, 203 cd/m², is nearly the white of the screen.
    assert seen[-1] == pytest.approx(255 * 0.949, abs=3)


def test_the_roll_off_keeps_the_dark_and_never_turns_back() -> None:
    light = np.linspace(0.0, 1000.0, 2001)
    bent = roll_off_highlights(light)
    assert np.allclose(bent[light < 27], light[light < 27], rtol=1e-6)
    assert (np.diff(bent) > 0).all()
    assert bent[-1] == pytest.approx(100.0, rel=1e-6)
    assert roll_off_highlights(np.array([5000.0])) == pytest.approx(100.0, rel=1e-6)


def test_colours_beyond_bt_709_are_paled_and_keep_their_hue() -> None:
    green = to_sdr(np.array([0.0, 0.5, 0.0]), PQ)
    assert green.argmax() == 1
    assert green.min() >= 0
    assert green[1] > 1.5 * max(green[0], green[2])
    assert np.ptp(to_sdr(np.full(3, 0.58), HLG)) < 0.002


def test_wide_gamut_footage_is_mapped_without_a_warning(tmp_path: Path) -> None:
    signal = [(TO_2020 @ SKIN**2.4) ** (1 / 2.4)]
    path = patch_video(
        tmp_path / "a.mp4", signal, bits=10, colorspace=9, color_range=1, color_trc=14, color_primaries=9
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(colours_of(path) - 255 * SKIN).max() < 4


def disc(size: tuple[int, int], squeeze: float) -> np.ndarray:
    """A white disc that is ``squeeze`` times as wide as high."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) / squeeze) ** 2 + (y - height / 2) ** 2 < (0.3 * min(size)) ** 2
    return np.where(inside[..., None], 230, 20).astype(np.uint8).repeat(3, 2)


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(8, 9), Fraction(1, 1), Fraction(2, 1)])
def test_pixels_that_are_not_square_are_shown_in_their_shape(tmp_path: Path, aspect: Fraction, turn: bool) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for index in range(3):
            frame = av.VideoFrame.from_ndarray(disc((160, 120), 1 / float(aspect)), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if turn:
        set_matrix(path, (0, 1, -1, 0))
    frame = next(iter_frames(path))
    bright = frame.mean(2) > 125
    assert np.ptp(np.flatnonzero(bright.any(0))) == pytest.approx(np.ptp(np.flatnonzero(bright.any(1))), abs=3)
    width, height = square_pixel_size(160, 120, aspect)
    assert frame.shape[:2] == ((width, height) if turn else (height, width))


def set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a, b, c, d of a display matrix into the track header of an mp4 file (ISO 14496-12, section 8.3.2)."""
    a, b, c, d = matrix
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 44
    values = [a << 16, b << 16, 0, c << 16, d << 16]
    data[place : place + 20] = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    path.write_bytes(data)


TURNS = [(1, 0, 0, 1), (-1, 0, 0, -1), (0, 1, -1, 0), (0, -1, 1, 0)]
MIRRORED = [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", [*TURNS, *MIRRORED])
def test_turned_and_mirrored_footage_stands_as_its_matrix_says(
    tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    picture = np.full((48, 64, 3), 30, np.uint8)
    picture[:16, :16] = 230
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    set_matrix(tmp_path / "a.mp4", matrix)
    frame = next(iter_frames(tmp_path / "a.mp4"))
    a, b, c, d = matrix
    # Where the matrix takes the middle of the bright corner, seen from the picture's middle.
    x, y = -24, -16
    across, down = a * x + c * y, b * x + d * y
    height, width = frame.shape[:2]
    assert (width, height) == ((64, 48) if a else (48, 64))
    bright = np.argwhere(frame.mean(2) > 125).mean(0) - (height / 2, width / 2)
    assert bright == pytest.approx((down, across), abs=1)


def test_a_turn_between_quarters_goes_to_the_nearest() -> None:
    image = np.arange(24).reshape(2, 4, 3).astype(np.uint8)
    assert np.array_equal(apply_display_matrix(image, (100, 5, -5, 100)), image)
    assert np.array_equal(apply_display_matrix(image, (5, 100, -100, 5)), np.rot90(image, -1))


def test_frames_that_would_be_larger_than_8k_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 4096, 2048, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(8, 1)
        container.mux(stream.encode(av.VideoFrame(4096, 2048, "yuv420p")))
        container.mux(stream.encode())
    with pytest.raises(BadInput, match="32768x2048 px, more than 35 megapixels: scale it down"):
        next(iter_frames(path))


def test_a_caller_may_allow_less(tmp_path: Path) -> None:
    path = patch_video(tmp_path / "a.mp4", [SKIN], (320, 240), encoded_as=5)
    assert next(iter_frames(path, max_pixels=320 * 240)).shape == (240, 320, 3)
    with pytest.raises(BadInput, match="320x240 px"):
        next(iter_frames(path, max_pixels=320 * 240 - 1))

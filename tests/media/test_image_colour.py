"""Claims about the colours of photos: a profile means what a colour-managed viewer shows of it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from scipy.io import wavfile
from skimage import color

from flowportrait.errors import BadInput
from flowportrait.media.colour import matrix_icc_profile
from flowportrait.media.image import read_image
from flowportrait.media.write_video import write_video

P3_TO_SRGB = np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]])
"""Linear light; what sRGB cannot show is left out of the patches below."""
D50_TO_SRGB = np.array([[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]])
SKIN, PAPER = ([190, 80, 60], [120, 80, 70], [230, 200, 190]), ([128] * 3, [250] * 3)
PATCHES = np.array([*SKIN, *PAPER, [60, 90, 140], [90, 130, 80]], float)
P3_COLUMNS = {b"r": (0.51512, 0.24120, -0.00105), b"g": (0.29198, 0.69225, 0.04189), b"b": (0.15710, 0.06657, 0.78407)}
"""X, Y, Z of Display P3's primaries under D50, as Apple's own profile has them."""


def profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile (ICC.1:2022, section 7) with these tags."""
    table, content, start = b"", b"", 132 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">II", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = bytearray(128)
    head[0:4] = struct.pack(">I", start + len(content))
    head[8:12] = b"\x02\x40\0\0"
    head[12:24] = (b"prtr" if space == b"CMYK" else b"mntr") + space + connection
    head[36:40] = b"acsp"
    head[68:80] = struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    return bytes(head) + struct.pack(">I", len(tags)) + table + content


def xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(65536 * value)) for value in values)


def curve(values: np.ndarray) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">I", len(values)) + np.round(65535 * values).astype(">u2").tobytes()


def linear(signal: np.ndarray) -> np.ndarray:
    """sRGB signal in [0, 1] to light."""
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def encoded(light: np.ndarray) -> np.ndarray:
    """Light to sRGB signal in [0, 1]."""
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def display_p3() -> bytes:
    ramp = curve(linear(np.linspace(0, 1, 1024)))
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    for name, column in P3_COLUMNS.items():
        tags |= {name + b"XYZ": xyz(column), name + b"TRC": ramp}
    return profile(b"RGB ", tags)


def patches(colours: np.ndarray = PATCHES) -> np.ndarray:
    """One square of 16 px of each colour, beside each other."""
    return np.round(colours).astype(np.uint8)[None].repeat(16, 0).repeat(16, 1)


def difference(seen: np.ndarray, expected: np.ndarray) -> float:
    """Largest CIEDE2000 between the middles of patches ``seen`` and the colours ``[N, 3]`` in [0, 255]."""
    middles = seen[8, 8::16]
    return float(color.deltaE_ciede2000(color.rgb2lab(middles / 255), color.rgb2lab(expected / 255)).max())


EXPECTED = 255 * encoded(linear(PATCHES / 255) @ P3_TO_SRGB.T)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
def test_a_display_p3_photo_has_the_colours_that_a_viewer_shows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    how = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "avif": {"quality": 100}}
    Image.fromarray(patches()).save(path, icc_profile=display_p3(), **how.get(suffix, {}))
    assert difference(read_image(path), EXPECTED) < 2
    # The numbers alone are what a viewer without colour management shows: visibly paler.
    assert difference(patches(), EXPECTED) > 3


@pytest.mark.parametrize("transparent", [False, True])
def test_transparency_and_rotation_survive_a_profile(tmp_path: Path, transparent: bool) -> None:
    pixels = np.dstack([patches(), np.full((16, 112), 255, np.uint8)])
    pixels[:, :16, 3] = 0 if transparent else 255
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = 3
    picture.save(tmp_path / "a.png", icc_profile=display_p3(), exif=exif)
    seen = read_image(tmp_path / "a.png", background=(0, 200, 0))[::-1, ::-1]
    assert difference(seen[:, 16:], EXPECTED[1:]) < 1.5
    assert seen[8, 8].tolist() == [0, 200, 0] if transparent else difference(seen[:, :16], EXPECTED[:1]) < 1.5


@pytest.mark.parametrize("broken", [b"", b"not a profile", display_p3()[:200], display_p3()[:-900] + bytes(900)])
def test_a_damaged_profile_is_as_none(tmp_path: Path, broken: bytes) -> None:
    Image.fromarray(patches()).save(tmp_path / "a.png", icc_profile=broken)
    assert read_image(tmp_path / "a.png").shape == (16, 112, 3)
    if len(broken) <= 200:
        assert np.array_equal(read_image(tmp_path / "a.png"), patches())


def test_an_srgb_profile_changes_no_bit(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=own)
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_used(tmp_path: Path, mode: str) -> None:
    grey = profile(b"GRAY", {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"kTRC": curve(np.linspace(0, 1, 256))})
    Image.new("L", (16, 16), 128).convert(mode).save(tmp_path / "a.png", icc_profile=grey)
    assert read_image(tmp_path / "a.png")[8, 8] == pytest.approx(255 * encoded(np.full(3, 128 / 255)), abs=1.5)


def test_sixteen_bit_grey_with_a_profile(tmp_path: Path) -> None:
    grey = profile(b"GRAY", {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"kTRC": curve(np.linspace(0, 1, 256))})
    Image.fromarray(np.full((16, 16), 32_896, np.uint16)).save(tmp_path / "a.png", icc_profile=grey)
    assert read_image(tmp_path / "a.png")[8, 8] == pytest.approx(255 * encoded(np.full(3, 128 / 255)), abs=1.5)


def ink_profile(inks: dict[tuple[int, ...], tuple[float, float, float]]) -> bytes:
    """A CMYK profile whose corners have these CIELAB colours; the others are black."""
    corners = []
    for index in range(16):
        lightness, a, b = inks.get(tuple(index >> shift & 1 for shift in (3, 2, 1, 0)), (0, 0, 0))
        corners += [round(lightness * 2.55), round(a + 128), round(b + 128)]
    ramp = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 * value) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(corners) + ramp * 3
    return profile(b"CMYK", {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"A2B0": table}, b"Lab ")


def test_a_cmyk_photo_is_converted_by_its_profile(tmp_path: Path) -> None:
    colours = {(0, 0, 0, 0): (100.0, 0.0, 0.0), (1, 0, 0, 0): (60.0, -12.0, -25.0), (0, 1, 0, 0): (55.0, 45.0, 10.0)}
    pixels = np.array([[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255]], np.uint8)[None]
    picture = Image.fromarray(pixels.repeat(16, 0).repeat(16, 1), "CMYK")
    picture.save(tmp_path / "a.tiff", icc_profile=ink_profile(colours))
    lab = np.array([*colours.values(), (0.0, 0.0, 0.0)])
    expected = 255 * encoded(color.lab2xyz(lab, illuminant="D50") @ D50_TO_SRGB.T)
    assert difference(read_image(tmp_path / "a.tiff"), expected) < 1


def test_a_profile_for_other_channels_is_as_none(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 0, 0)).save(tmp_path / "a.tiff", icc_profile=display_p3())
    assert read_image(tmp_path / "a.tiff")[8, 8].tolist() == [255, 0, 255]


def with_chunk(path: Path, kind: bytes, content: bytes) -> Path:
    """The patches as a PNG with one more chunk before its pixels."""
    target = io.BytesIO()
    Image.fromarray(patches()).save(target, format="PNG")
    data = target.getvalue()
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(data[:33] + chunk + data[33:])
    return path


def test_png_code_points_say_display_p3(tmp_path: Path) -> None:
    seen = read_image(with_chunk(tmp_path / "a.png", b"cICP", bytes([12, 13, 0, 1])))
    assert difference(seen, EXPECTED) < 1.5
    for codes in ([1, 13, 0, 1], [12, 16, 0, 1], [77, 13, 0, 1]):
        assert np.array_equal(read_image(with_chunk(tmp_path / "b.png", b"cICP", bytes(codes))), patches())


def test_png_gamma_is_used_and_the_usual_one_changes_nothing(tmp_path: Path) -> None:
    seen = read_image(with_chunk(tmp_path / "a.png", b"gAMA", struct.pack(">I", 100_000)))
    assert difference(seen, 255 * encoded(PATCHES / 255)) < 1
    assert np.array_equal(read_image(with_chunk(tmp_path / "b.png", b"gAMA", struct.pack(">I", 45_455))), patches())
    for nonsense in (0, 0xFFFF_FFFF):
        path = with_chunk(tmp_path / "c.png", b"gAMA", struct.pack(">I", nonsense))
        assert np.array_equal(read_image(path), patches())


def test_a_profile_made_of_primaries_has_the_known_columns() -> None:
    places = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329)
    made = ImageCms.ImageCmsProfile(io.BytesIO(matrix_icc_profile(places, None) or b""))
    for name, seen in zip((b"r", b"g", b"b"), ("red", "green", "blue"), strict=True):
        assert getattr(made.profile, f"{seen}_colorant")[0] == pytest.approx(P3_COLUMNS[name], abs=2e-3)
    assert matrix_icc_profile((0.3, 0.3) * 4, None) is None
    assert matrix_icc_profile((float("nan"), 0.3) * 4, None) is None


def test_photos_up_to_200_megapixels_are_read_without_a_warning(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    picture = Image.new("1", (10_000, 9_100), 1)
    picture.save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = read_image(tmp_path / "a.png")
    assert seen.shape == (9_100, 10_000, 3)
    assert seen[::999, ::999].min() == 255
    assert before == Image.MAX_IMAGE_PIXELS


def test_more_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    target = io.BytesIO()
    Image.new("1", (64, 64)).save(target, format="PNG")
    data = bytearray(target.getvalue())
    # Only the header says so: decoding would fail in another way.
    data[16:24] = struct.pack(">II", 20_000, 10_001)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.png has 20000x10001 px, over 200 megapixels: give a smaller picture"):
        read_image(tmp_path / "a.png")


def test_other_files_are_pointed_to_their_option(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [np.zeros((48, 64, 3), np.uint8)] * 5, None)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.mp4").read_bytes())
    for name in ("a.mp4", "b.jpg"):
        with pytest.raises(BadInput, match=rf"{name} is a video, not a picture: give it as --video"):
            read_image(tmp_path / name)
    wavfile.write(tmp_path / "c.png", 16_000, np.zeros(1600, np.int16))
    with pytest.raises(BadInput, match=r"c\.png is sound, not a picture: give it as --audio"):
        read_image(tmp_path / "c.png")
    with pytest.raises(BadInput, match="is an address, not a file: download it first"):
        read_image("https://example.org/a.jpg")

"""A phone's HEIC photo is read: a file made here, box by box (ISO 23008-12)."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from flowportrait.errors import BadInput
from flowportrait.media.image import is_image_file, read_image
from tests.media.test_image_colour import EXPECTED, difference, display_p3, patches

if "libx265" not in av.codecs_available:
    pytest.skip("no encoder for the pictures", allow_module_level=True)


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def full(kind: bytes, content: bytes, version: int = 0) -> bytes:
    return box(kind, bytes([version, 0, 0, 0]) + content)


def hevc(picture: np.ndarray) -> tuple[bytes, bytes]:
    """Decoder configuration and data of one picture (ISO 14496-15, section 8.3.2)."""
    height, width = picture.shape[:2]
    encoder = av.CodecContext.create("libx265", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, height, "yuv444p", Fraction(1, 25)
    encoder.options = {"x265-params": "lossless=1:log-level=none"}
    encoder.colorspace, encoder.color_range = 5, 2
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    frame = frame.reformat(format="yuv444p", dst_colorspace=5, dst_color_range=2)
    frame.pts, frame.time_base = 0, Fraction(1, 25)
    stream = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    units = [unit.rstrip(b"\0") for unit in stream.split(b"\0\0\1")[1:]]
    kinds: dict[int, list[bytes]] = {}
    for unit in units:
        kinds.setdefault(unit[0] >> 1, []).append(unit)
    parameters = {kind: kinds[kind] for kind in (32, 33, 34)}
    config = b"\1" + kinds[33][0].replace(b"\0\0\3", b"\0\0")[3:15] + b"\xf0\0\xfc\xff\xf8\xf8\0\0\x0f\3"
    for kind, found in parameters.items():
        config += struct.pack(">BH", 0x80 | kind, len(found))
        config += b"".join(struct.pack(">H", len(unit)) + unit for unit in found)
    slices = [unit for unit in units if unit[0] >> 1 < 32]
    return box(b"hvcC", config), b"".join(struct.pack(">I", len(unit)) + unit for unit in slices)


def heic(path: Path, picture: np.ndarray, *properties: bytes) -> Path:
    """One HEVC picture ``[H, W, 3]`` with item properties beside its own."""
    height, width = picture.shape[:2]
    config, data = hevc(picture)
    own = [config, full(b"ispe", struct.pack(">II", width, height)), *properties]
    links = bytes(0x80 * (number == 1) + number for number in range(1, len(own) + 1))
    brand = box(b"ftyp", b"heic\0\0\0\0mif1heic")

    def meta(offset: int) -> bytes:
        return full(
            b"meta",
            full(b"hdlr", bytes(4) + b"pict" + bytes(13))
            + full(b"pitm", struct.pack(">H", 1))
            + full(b"iloc", struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, offset, len(data)))
            + full(b"iinf", struct.pack(">H", 1) + full(b"infe", struct.pack(">HH", 1, 0) + b"hvc1\0", 2))
            + box(b"iprp", box(b"ipco", b"".join(own)) + full(b"ipma", struct.pack(">IHB", 1, 1, len(own)) + links)),
        )

    path.write_bytes(brand + meta(len(brand) + len(meta(0)) + 8) + box(b"mdat", data))
    return path


@pytest.mark.parametrize("profile", ["icc", "nclx"])
def test_a_phone_s_photo_is_read_in_its_colours(tmp_path: Path, profile: str) -> None:
    stated = {
        "icc": b"prof" + display_p3(),
        # Display P3, sRGB's curve, BT.601, full range.
        "nclx": b"nclx" + struct.pack(">HHHB", 12, 13, 5, 0x80),
    }
    pixels = np.pad(patches(), ((0, 48), (0, 16), (0, 0)), mode="edge")
    path = heic(tmp_path / "a.heic", pixels, box(b"colr", stated[profile]))
    assert is_image_file(path)
    assert difference(read_image(path)[:16, :112], EXPECTED) < 2


def test_a_phone_s_photo_stands_upright(tmp_path: Path) -> None:
    pixels = np.full((64, 96, 3), 40, np.uint8)
    pixels[:32, :32] = 220
    # A quarter turn counter-clockwise.
    seen = read_image(heic(tmp_path / "a.heic", pixels, box(b"irot", b"\x01")))
    assert seen.shape == (96, 64, 3)
    assert seen[64:, :32].mean() > 200
    assert seen[:60].mean() < 60


def test_half_a_heic_is_damaged(tmp_path: Path) -> None:
    path = heic(tmp_path / "a.heic", np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadInput, match=r"a\.heic cannot be read as a picture .*: it may be damaged"):
        read_image(path)

"""Damaged and hostile files: a sentence or the sound, never a crash, a hang or memory without bound."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowportrait.errors import BadInput
from flowportrait.media.audio import has_audio, parse_mp3_header, read_audio, read_sound
from flowportrait.media.image import read_image
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video

SECONDS = 20.0
"""Longest sound that is read here, and the longest that one file may take."""
BOUND = 200e6
"""Bytes of memory that one small file may take."""

many = settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
some = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def outcome(read: Callable[[], object]) -> object:
    """What a reader returns, or the sentence with which it refuses; anything else that it raises is a failure."""
    started = time.monotonic()
    try:
        result = read()
    except BadInput as error:
        result = str(error)
    assert time.monotonic() - started < SECONDS
    assert not isinstance(result, str) or "\n" not in result
    return result


def check_sound(result: object) -> None:
    if not isinstance(result, str):
        samples = getattr(result, "samples", result)
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1.0


@st.composite
def wav_files(draw: st.DrawFn) -> bytes:
    """Wav files whose every number may be wrong, with other pieces before, between and behind, cut anywhere."""
    numbers16, numbers32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF)
    coding = draw(st.sampled_from([1, 3, 6, 7, 2, 0x11, 0x31, 0x55, 0xFFFE]) | numbers16)
    channels = draw(st.sampled_from([1, 2, 6, 8]) | numbers16)
    rate = draw(st.sampled_from([8_000, 16_000, 44_100, 48_000, 0, 1]) | numbers32)
    bits = draw(st.sampled_from([8, 16, 24, 32, 64, 0, 1]) | numbers16)
    align = draw(st.just(channels * bits // 8 & 0xFFFF) | numbers16)
    header = struct.pack(
        "<HHIIHH", coding, channels, rate, draw(st.just(rate * align & 0xFFFF_FFFF) | numbers32), align, bits
    )
    header += draw(
        st.sampled_from([b"", b"\0\0", struct.pack("<HHI", 22, bits, 3) + bytes(range(16))]) | st.binary(max_size=24)
    )
    size = draw(st.just(len(header)) | numbers32)
    content = draw(st.binary(max_size=400))
    pieces = [b"fmt " + struct.pack("<I", size) + header]
    pieces.append(b"data" + struct.pack("<I", draw(st.just(len(content)) | numbers32)) + content)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(
            st.sampled_from([b"LIST", b"fact", b"bext", b"id3 ", b"ds64", b"fmt ", b"data"])
            | st.binary(min_size=4, max_size=4)
        )
        extra = draw(st.binary(max_size=40))
        pieces.insert(
            draw(st.integers(0, len(pieces))), name + struct.pack("<I", draw(st.just(len(extra)) | numbers32)) + extra
        )
    body = b"WAVE" + b"".join(pieces)
    data = (
        draw(st.sampled_from([b"RIFF", b"RIFF", b"RF64", b"RIFX"]))
        + struct.pack("<I", draw(st.just(len(body)) | numbers32))
        + body
    )
    return data[: draw(st.just(len(data)) | st.integers(0, len(data)))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@many
@given(data=wav_files())
@pytest.mark.slow
@pytest.mark.fuzz
def test_twenty_thousand_wav_headers_are_read_or_refused(folder: Path, data: bytes) -> None:
    path = folder / "a.wav"
    path.write_bytes(data)
    check_sound(outcome(lambda: read_audio(path, longest=SECONDS)))


@some
@given(data=wav_files())
def test_any_wav_header_is_read_or_refused_within_a_bound_of_memory(folder: Path, data: bytes) -> None:
    path = folder / "a.wav"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        check_sound(outcome(lambda: read_audio(path, longest=SECONDS)))
        check_sound(outcome(lambda: read_sound(path, longest=SECONDS)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BOUND
    has_audio(path)


@pytest.mark.parametrize("rate", [1, 900, 0x7FFF_FFFF])
def test_a_rate_that_no_recorder_has_is_damage(folder: Path, rate: int) -> None:
    path = folder / "a.wav"
    path.write_bytes(wav(struct.pack("<HHIIHH", 1, 1, rate, 2 * rate & 0xFFFF_FFFF, 2, 16), bytes(20_000)))
    for read in (read_audio, read_sound):
        with pytest.raises(BadInput):
            read(path)


def wav(header: bytes, content: bytes) -> bytes:
    body = b"WAVEfmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with some bytes changed, taken out or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, min(len(data) - 1, 600)) | st.integers(0, len(data) - 1))
        change = draw(st.sampled_from(["set", "set", "word", "cut", "insert"]))
        if change == "set":
            data[place] = draw(st.integers(0, 255))
        elif change == "word":
            data[place : place + 4] = struct.pack(
                ">I", draw(st.sampled_from([0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF, 0x10_0000]))
            )
        elif change == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        else:
            data[place:place] = draw(st.binary(min_size=1, max_size=32))
        if not data:
            return b"\0"
    return bytes(data)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small files of several kinds."""
    from tests.media.test_media import noise

    here = tmp_path_factory.mktemp("clips")
    result = {name: noise(here / name).read_bytes() for name in ("a.mp3", "a.flac", "a.mkv", "a.mov", "a.avi")}
    write_video(
        here / "a.mp4", [np.full((48, 64, 3), 9 * index, np.uint8) for index in range(12)], np.zeros(8000, np.float32)
    )
    return result | {"a.mp4": (here / "a.mp4").read_bytes()}


def read_damaged(folder: Path, clips: dict[str, bytes], name: str, data: st.DataObject) -> None:
    path = folder / name
    path.write_bytes(data.draw(damaged(clips[name])))
    check_sound(outcome(lambda: read_audio(path, longest=SECONDS)))
    count = outcome(lambda: sum(1 for _ in iter_frames(path, longest=SECONDS)))
    assert isinstance(count, str) or count <= 25 * SECONDS + 1


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["a.mp3", "a.flac", "a.mkv", "a.mov", "a.avi", "a.mp4"])
@settings(some, max_examples=400)
@given(data=st.data())
def test_damaged_clips_are_read_or_refused(
    folder: Path, clips: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    read_damaged(folder, clips, name, data)


@pytest.mark.parametrize("name", ["a.mp4", "a.mp3"])
@settings(some, max_examples=40)
@given(data=st.data())
def test_a_few_damaged_clips_are_read_or_refused(
    folder: Path, clips: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    read_damaged(folder, clips, name, data)


def pictures() -> dict[str, bytes]:
    """A small photo in every format, with a profile, transparency and a rotation where the format takes them."""
    from tests.media.test_image_colour import display_p3

    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 4), np.uint8)
    result = {}
    for name in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF"):
        target = io.BytesIO()
        picture = Image.fromarray(pixels).convert("RGB" if name in ("JPEG", "BMP") else "RGBA")
        picture.save(target, format=name, **({} if name in ("GIF", "BMP") else {"icc_profile": display_p3()}))
        result[name] = target.getvalue()
    return result


PICTURES = pictures()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PICTURES)
@settings(some, max_examples=80)
@given(data=st.data())
def test_damaged_pictures_are_read_or_refused(folder: Path, name: str, data: st.DataObject) -> None:
    path = folder / "a.picture"
    path.write_bytes(data.draw(damaged(PICTURES[name])))
    image = outcome(lambda: read_image(path))
    assert isinstance(image, str) or (image.dtype == np.uint8 and image.shape[2] == 3)


@settings(some, max_examples=500)
@given(data=st.binary(min_size=4, max_size=4) | st.binary(min_size=3, max_size=3).map(lambda rest: b"\xff" + rest))
def test_an_mp3_header_is_a_length_or_nothing(data: bytes) -> None:
    header = parse_mp3_header(data)
    assert header is None or (4 < header.length <= 2881 and 8_000 <= header.rate <= 48_000)

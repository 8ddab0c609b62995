"""Claims about sound that comes in and video that goes out while it is made."""

from __future__ import annotations

import errno
import io
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.errors import BadInput
from flowportrait.media.stream import read_stream, write_stream

TONE = (0.3 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)


def as_wav(samples: np.ndarray, rate: int) -> io.BytesIO:
    data = io.BytesIO()
    wavfile.write(data, rate, samples)
    data.seek(0)
    return data


def test_raw_samples_and_wav_of_any_rate_say_the_same() -> None:
    raw = np.concatenate(list(read_stream(io.BytesIO((TONE * 32767).astype("<i2").tobytes()))))
    assert np.abs(raw - TONE).max() < 1e-3
    wav = np.concatenate(list(read_stream(as_wav((TONE * 32767).astype(np.int16), 16_000))))
    assert np.array_equal(wav, raw)
    stereo = np.repeat(np.repeat(TONE, 3)[:, None], 2, 1)
    other = np.concatenate(list(read_stream(as_wav(stereo, 48_000))))
    assert abs(len(other) - len(TONE)) < 200
    assert np.abs(other[1000:9000] - TONE[1000:9000]).mean() < 0.1


def test_sound_arrives_while_the_source_is_open() -> None:
    class Open(io.RawIOBase):
        sent = 0

        def read(self, size: int = -1) -> bytes:
            self.sent += size
            return bytes(size)

    source = Open()
    assert len(next(read_stream(source))) > 0  # type: ignore[arg-type]
    assert source.sent < 3000


def test_nothing_and_unknown_formats_are_refused() -> None:
    with pytest.raises(BadInput, match="No sound"):
        list(read_stream(io.BytesIO(b"")))
    header = b"RIFF" + struct.pack("<I", 0) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
    with pytest.raises(BadInput, match="8-bit"):
        list(read_stream(io.BytesIO(header)))
    for beginning in (b"ID3\4\0\0\0\0\0\0\0\0", b"\0\0\0\x20ftypM4A ", b"OggS\0\2\0\0\0\0\0\0"):
        with pytest.raises(BadInput, match="compressed file"):
            list(read_stream(io.BytesIO(beginning + bytes(640))))
    with pytest.raises(BadInput, match="no format"):
        list(read_stream(io.BytesIO(b"RIFF0000WAVEdata0000")))


def header(code: int = 1, channels: int = 1, rate: int = 16_000, size: int = 32_000, riff: bytes = b"RIFF") -> bytes:
    form = struct.pack("<HHIIHH", code, channels, rate, 2 * rate * channels, 2 * channels, 16)
    return riff + b"\xff" * 4 + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size)


@pytest.mark.parametrize(
    "beginning",
    [
        header(),
        header(size=0),
        header(size=0x8000_0000),  # arecord
        header(size=0xFFFF_FFFF),  # ffmpeg -f wav -
        header(size=0xFFFF_FFFF, riff=b"RF64"),
        header()[:-8] + b"LIST" + struct.pack("<I", 5) + b"INFOx\0" + header()[-8:],
    ],
)
def test_headers_written_before_anybody_knew_the_length_are_read(beginning: bytes) -> None:
    samples = (TONE * 32767).astype("<i2").tobytes()
    heard = np.concatenate(list(read_stream(io.BytesIO(beginning + samples))))
    assert len(heard) == 16_000
    assert np.abs(heard - TONE).max() < 1e-3


def test_what_follows_the_samples_is_not_heard() -> None:
    tags = b"LIST" + struct.pack("<I", 4000) + bytes(range(250)) * 16
    samples = (TONE * 32767).astype("<i2").tobytes()
    assert sum(len(piece) for piece in read_stream(io.BytesIO(header() + samples + tags))) == 16_000


def test_damaged_headers_are_refused_in_a_sentence() -> None:
    for damaged, says in (
        (header()[:30], "ends within its header"),
        (header(channels=0), "0 channels"),
        (header(rate=0), "at 0 Hz"),
        (header(code=6), "of type 6"),
    ):
        with pytest.raises(BadInput, match=says):
            list(read_stream(io.BytesIO(damaged)))


def played(path: Path) -> int:
    """How many frames a player would show of a file, however it ends."""
    count = 0
    try:
        with av.open(str(path)) as video:
            for _ in video.decode(video=0):
                count += 1
    except av.FFmpegError:
        pass
    return count


def test_a_file_can_be_watched_while_it_grows_and_after_an_interruption(tmp_path: Path) -> None:
    path, seen = tmp_path / "live.mp4", []

    def frames() -> Iterator[np.ndarray]:
        for number in range(40):
            seen.append(played(path) if path.is_file() else 0)
            yield np.full((64, 80, 3), 4 * number, np.uint8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(path, frames(), lambda i: TONE[:640])
    # Never more behind than a fragment and what the encoders hold.
    assert all(number - count <= 18 for number, count in enumerate(seen))
    assert played(path) == 40


def test_nothing_is_written_of_nothing_and_a_closed_player_ends_the_stream(tmp_path: Path) -> None:
    assert write_stream(tmp_path / "none.mp4", iter(()), lambda i: TONE[:640]) == 0
    assert not (tmp_path / "none.mp4").exists()
    with pytest.raises(BadInput, match="Cannot write"):
        write_stream(tmp_path / "no" / "folder.mp4", [np.zeros((8, 8, 3), np.uint8)], lambda i: TONE[:640])
    reading, writing = os.pipe()
    player, video = os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0)

    def frames() -> Iterator[np.ndarray]:
        for number in range(500):
            if number == 5:
                player.close()
            yield np.full((64, 80, 3), number % 250, np.uint8)

    with video:
        assert write_stream(video, frames(), lambda i: TONE[:640]) < 40

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BadInput, match="No space left"):
        write_stream(Full(), frames(), lambda i: TONE[:640])


def test_what_is_written_so_far_can_be_played() -> None:
    made = io.BytesIO()
    frames = (np.full((64, 80, 3), 4 * i, np.uint8) for i in range(40))
    assert write_stream(made, frames, lambda i: TONE[:640]) == 40
    whole = made.getvalue()
    assert whole.count(b"moof") >= 3
    with av.open(io.BytesIO(whole)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 40
        assert video.streams.audio
    cut = whole[: whole.rindex(b"moof") - 4]
    with av.open(io.BytesIO(cut)) as video:
        assert 20 <= sum(1 for _ in video.decode(video=0)) < 40


def test_a_photo_speaks_what_is_piped_in(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "face.png"), astronaut()[..., ::-1])
    rng = np.random.default_rng(0)
    speech = (rng.normal(size=16_000) * 3000 * (1 + np.sin(np.arange(16_000) / 500))).astype("<i2").tobytes()
    command = [sys.executable, "-m", "flowportrait.cli", "animate", "--image", str(tmp_path / "face.png"), "--stream",
               "--crop", "--size", "64", "--output", "-"]  # fmt: skip
    done = subprocess.run(command, input=speech, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with av.open(io.BytesIO(done.stdout)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 25

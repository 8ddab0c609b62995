"""Claims about sound that comes in and video that goes out while it is made."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
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

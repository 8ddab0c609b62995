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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.errors import BadInput
from flowportrait.media.stream import SoundBuffer, iter_sound_stream, read_speech_stream, write_video_stream

TONE = (0.3 * np.sin(np.arange(16_000) * 0.2)).astype(np.float32)


def as_wav(samples: np.ndarray, rate: int) -> io.BytesIO:
    data = io.BytesIO()
    wavfile.write(data, rate, samples)
    data.seek(0)
    return data


def test_raw_samples_and_wav_of_any_rate_say_the_same() -> None:
    raw = np.concatenate(list(read_speech_stream(io.BytesIO((TONE * 32767).astype("<i2").tobytes()))))
    assert np.abs(raw - TONE).max() < 1e-3
    wav = np.concatenate(list(read_speech_stream(as_wav((TONE * 32767).astype(np.int16), 16_000))))
    assert np.array_equal(wav, raw)
    stereo = np.repeat(np.repeat(TONE, 3)[:, None], 2, 1)
    other = np.concatenate(list(read_speech_stream(as_wav(stereo, 48_000))))
    assert abs(len(other) - len(TONE)) < 200
    assert np.abs(other[1000:9000] - TONE[1000:9000]).mean() < 0.1


def test_sound_arrives_while_the_source_is_open() -> None:
    class Open(io.RawIOBase):
        sent = 0

        def read(self, size: int = -1) -> bytes:
            self.sent += size
            return bytes(size)

    source = Open()
    assert len(next(read_speech_stream(source))) > 0  # type: ignore[arg-type]
    assert source.sent < 3000


def test_nothing_and_unknown_formats_are_refused() -> None:
    with pytest.raises(BadInput, match="No sound"):
        list(read_speech_stream(io.BytesIO(b"")))
    header = b"RIFF" + struct.pack("<I", 0) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 40_000, 5, 40)
    with pytest.raises(BadInput, match="40-bit"):
        list(read_speech_stream(io.BytesIO(header)))
    for beginning in (b"ID3\4\0\0\0\0\0\0\0\0", b"\0\0\0\x20ftypM4A ", b"OggS\0\2\0\0\0\0\0\0"):
        with pytest.raises(BadInput, match="compressed file"):
            list(read_speech_stream(io.BytesIO(beginning + bytes(640))))
    with pytest.raises(BadInput, match="no format"):
        list(read_speech_stream(io.BytesIO(b"RIFF0000WAVEdata0000")))


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
    heard = np.concatenate(list(read_speech_stream(io.BytesIO(beginning + samples))))
    assert len(heard) == 16_000
    assert np.abs(heard - TONE).max() < 1e-3


def test_what_follows_the_samples_is_not_heard() -> None:
    tags = b"LIST" + struct.pack("<I", 4000) + bytes(range(250)) * 16
    samples = (TONE * 32767).astype("<i2").tobytes()
    assert sum(len(piece) for piece in read_speech_stream(io.BytesIO(header() + samples + tags))) == 16_000


def test_damaged_headers_are_refused_in_a_sentence() -> None:
    for damaged, says in (
        (header()[:30], "ends within its header"),
        (header(channels=0), "0 channels"),
        (header(rate=0), "at 0 Hz"),
        (header(rate=1), "at 1 Hz"),
        (header(code=6), "of type 6"),
    ):
        with pytest.raises(BadInput, match=says):
            list(read_speech_stream(io.BytesIO(damaged)))


KINDS = {
    "u8": ("pcm_u8", 2**-7), "16": ("pcm_s16le", 2**-15), "24": ("pcm_s24le", 2**-22), "32": ("pcm_s32le", 2**-22),
    "float": ("pcm_f32le", 2**-22), "double": ("pcm_f64le", 2**-22),
}  # fmt: skip
"""FFmpeg's names of what a wav may hold, and how far from the sound its rounding may be."""


def wav_of(samples: np.ndarray, codec: str, rate: int = 16_000, layout: str = "mono") -> bytes:
    """Samples ``[C, N]`` as FFmpeg writes them into a wav."""
    data = io.BytesIO()
    with av.open(data, "w", format="wav") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        interleaved = np.ascontiguousarray(samples.T.astype(np.float64)).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="dbl", layout=layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return data.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_wav_of_any_sample_size_is_read(kind: str) -> None:
    codec, rounding = KINDS[kind]
    heard = np.concatenate(list(read_speech_stream(io.BytesIO(wav_of(TONE[None], codec)))))
    assert len(heard) == len(TONE)
    assert np.abs(heard - TONE).max() <= rounding


def test_24_bit_samples_are_read_as_recorders_write_them() -> None:
    """Little-endian, signed; the header is the plain one or the extensible one, which recorders write for 24 bits."""
    body = bytes([0, 0, 0x40, 0, 0, 0xC0, 0xFF, 0xFF, 0x7F, 1, 0, 0])
    plain = struct.pack("<HHIIHH", 1, 1, 16_000, 48_000, 3, 24)
    guid = b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    extended = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16_000, 48_000, 3, 24, 22, 20, 4) + b"\1\0" + guid
    for form in (plain, extended):
        head = b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", 12)
        heard = np.concatenate(list(read_speech_stream(io.BytesIO(head + body))))
        assert heard == pytest.approx([0.5, -0.5, 1 - 2**-23, 2**-23], abs=1e-9)


def test_a_voice_in_the_centre_of_5_1_stays_as_loud_as_it_is() -> None:
    """Averaged it would drop by 15.6 dB."""
    samples = np.zeros((6, 16_000), np.float32)
    samples[2] = TONE
    for layout in ("5.1", "5.1(side)"):
        heard = np.concatenate(list(read_speech_stream(io.BytesIO(wav_of(samples, "pcm_s24le", layout=layout)))))
        assert np.abs(heard - TONE).max() < 1e-5


@pytest.mark.parametrize("mark", [b"RF64", b"BW64"])
def test_the_long_forms_of_wav_are_read(mark: bytes) -> None:
    samples = (TONE * 32767).astype("<i2").tobytes()
    sizes = b"ds64" + struct.pack("<IQQQI", 28, len(samples) + 80, len(samples), len(TONE), 0)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    head = mark + b"\xff" * 4 + b"WAVE" + sizes + form + b"data" + b"\xff" * 4
    heard = list(read_speech_stream(io.BytesIO(head + samples + b"LIST" + bytes(4000))))
    assert sum(map(len, heard)) == len(TONE)


def test_the_stream_keeps_the_rate_and_the_channels_that_came_in() -> None:
    times = np.arange(48_000) / 48_000
    given = np.stack([0.3 * np.sin(2 * np.pi * pitch * times) for pitch in (440, 9000)]).astype(np.float32)
    tape = SoundBuffer(iter_sound_stream(io.BytesIO(wav_of(given, "pcm_s24le", 48_000, "stereo"))))
    spoken = np.concatenate(list(tape))
    assert len(spoken) == pytest.approx(16_000, abs=20)
    made = io.BytesIO()
    frames = [np.full((64, 80, 3), 4 * i, np.uint8) for i in range(25)]
    assert write_video_stream(made, frames, tape.frame) == 25
    with av.open(io.BytesIO(made.getvalue())) as video:
        stream = video.streams.audio[0]
        assert (stream.rate, stream.layout.name) == (48_000, "stereo")
        heard = np.concatenate([frame.to_ndarray() for frame in video.decode(stream)], 1)
    for channel, pitch in enumerate((440, 9000)):
        spectrum = np.abs(np.fft.rfft(heard[channel, 4800:43_200] * np.hanning(38_400)))
        assert spectrum.argmax() * 48_000 / 38_400 == pytest.approx(pitch, abs=2)


@pytest.mark.parametrize("suffix", ["mp4", "webm"])
def test_a_streamed_file_is_tagged_as_bt709_and_says_what_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"live.{suffix}"
    frames = (np.full((720, 720, 3), [200, 40, 40], np.uint8) for _ in range(30))
    assert write_video_stream(path, frames, lambda i: TONE[:640], tags={"comment": "what it is"}) == 30
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        context = stream.codec_context
        assert [context.colorspace, context.color_primaries, context.color_trc, context.color_range] == [1, 1, 1, 1]
        assert {key.lower(): value for key, value in video.metadata.items()}["comment"] == "what it is"
        picture = next(video.decode(stream)).to_ndarray(format="rgb24")
        assert video.streams.audio[0].rate in (16_000, 48_000)
    assert np.abs(picture[360, 360].astype(int) - [200, 40, 40]).max() <= 3


WAV_PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"RIFF", b"RF64", b"BW64", b"WAVE", b"fmt ", b"data", b"ds64", b"LIST", b"\xff" * 4, bytes(4)]),
    st.integers(0, 2**32 - 1).map(lambda number: struct.pack("<I", number)),
    st.builds(
        lambda *fields: b"fmt " + struct.pack("<IHHIIHH", 16, *fields),
        st.sampled_from([0, 1, 3, 6, 0xFFFE]), st.sampled_from([0, 1, 2, 6, 64, 65, 65_535]),
        st.sampled_from([0, 1, 8000, 16_000, 44_100, 768_000, 2**32 - 1]), st.just(0), st.integers(0, 65_535),
        st.integers(0, 65),
    ),
)  # fmt: skip


def read_hostile(data: bytes) -> None:
    """Read a stream to its end, or to one sentence that refuses it."""
    samples = 0
    try:
        for piece in read_speech_stream(io.BytesIO(data)):
            samples += len(piece)
            # A byte of 8 bits at the lowest rate is sixteen samples at 16 kHz.
            assert samples <= 16 * len(data) + 1000
            assert np.isfinite(piece).all()
            assert np.abs(piece).max(initial=0) <= 1.0 + 1e-6
    except BadInput as error:
        message = str(error)
        assert "\n" not in message, message


@given(st.lists(WAV_PIECES, max_size=12), st.booleans())
def test_no_stream_is_too_strange_to_read_or_to_refuse(pieces: list[bytes], whole: bool) -> None:
    read_hostile((b"RIFF\0\0\0\0WAVE" if whole else b"") + b"".join(pieces))


@pytest.mark.slow
@pytest.mark.fuzz
def test_twenty_thousand_streams_are_read_or_refused_in_bounded_memory() -> None:
    """No crash, no hang, and 300 MB more at most for all of them together, the bookkeeping of the examples among them,
    whatever lengths they claim."""

    resource = pytest.importorskip("resource", reason="Windows counts memory otherwise")

    @settings(max_examples=20_000, suppress_health_check=list(HealthCheck))
    @given(st.lists(WAV_PIECES, max_size=12), st.booleans())
    def read(pieces: list[bytes], whole: bool) -> None:
        read_hostile((b"RIFF\0\0\0\0WAVE" if whole else b"") + b"".join(pieces))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read()
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Kilobytes on Linux, bytes on macOS.
    assert more < 300 << (20 if sys.platform == "darwin" else 10)


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
        write_video_stream(path, frames(), lambda i: TONE[:640])
    # Never more behind than a fragment and what the encoders hold.
    assert all(number - count <= 18 for number, count in enumerate(seen))
    assert played(path) == 40


def test_nothing_is_written_of_nothing_and_a_closed_player_ends_the_stream(tmp_path: Path) -> None:
    assert write_video_stream(tmp_path / "none.mp4", iter(()), lambda i: TONE[:640]) == 0
    assert not (tmp_path / "none.mp4").exists()
    with pytest.raises(BadInput, match="Cannot write"):
        write_video_stream(tmp_path / "no" / "folder.mp4", [np.zeros((8, 8, 3), np.uint8)], lambda i: TONE[:640])
    reading, writing = os.pipe()
    player, video = os.fdopen(reading, "rb"), os.fdopen(writing, "wb", buffering=0)

    def frames() -> Iterator[np.ndarray]:
        for number in range(500):
            if number == 5:
                player.close()
            yield np.full((64, 80, 3), number % 250, np.uint8)

    with video:
        assert write_video_stream(video, frames(), lambda i: TONE[:640]) < 40

    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BadInput, match="No space left"):
        write_video_stream(Full(), frames(), lambda i: TONE[:640])


def test_what_is_written_so_far_can_be_played() -> None:
    made = io.BytesIO()
    frames = (np.full((64, 80, 3), 4 * i, np.uint8) for i in range(40))
    assert write_video_stream(made, frames, lambda i: TONE[:640]) == 40
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

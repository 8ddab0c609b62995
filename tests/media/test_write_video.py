"""Claims about written videos: colours, sound, formats."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from skimage.data import astronaut

from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound
from flowportrait.media.write_video import _to_yuv420, write_video

PRIMARIES = np.array([
    [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [255, 255, 255], [0, 0, 0],
    [128, 128, 128], [224, 172, 145], [90, 60, 48], [30, 90, 200],
], np.uint8)  # fmt: skip
"""Pure colours, greys, two skins and a blue, one stripe each."""
UNSPECIFIED = 2


def stripes(side: int, count: int = 3) -> Iterator[np.ndarray]:
    """A square of vertical stripes."""
    width = -(-side // len(PRIMARIES))
    picture = np.repeat(PRIMARIES, width, 0)[:side][None].repeat(side, 0)
    for _ in range(count):
        yield np.ascontiguousarray(picture)


def moving(count: int, side: int = 64) -> Iterator[np.ndarray]:
    """A photo that slides."""
    photo = np.ascontiguousarray(astronaut()[64 : 64 + side, 180 : 180 + side])
    for index in range(count):
        yield np.roll(photo, index, 1)


def decoded_with_bt709(frame: Any) -> np.ndarray:
    """RGB ``[H, W, 3]`` float of a 4:2:0 frame by the equations of ITU-R BT.709, limited range."""
    planes = [np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
              for plane in frame.planes[:3]]  # fmt: skip
    luma = (planes[0].astype(float) - 16) / 219
    blue, red = ((plane.astype(float).repeat(2, 0).repeat(2, 1) - 128) / 224 for plane in planes[1:])
    r, b = luma + 1.5748 * red, luma + 1.8556 * blue
    g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
    return np.stack([r, g, b], -1) * 255


def tone(seconds: float, rate: int, channels: int) -> np.ndarray:
    """A sine of its own in every channel ``[C, N]``, 440 Hz and its multiples."""
    times = np.arange(round(seconds * rate)) / rate
    return np.stack([0.3 * np.sin(2 * np.pi * 440 * (1 + c) * times) for c in range(channels)]).astype(np.float32)


def decoded_sound(path: Path) -> tuple[np.ndarray, int, str]:
    """Samples ``[C, N]``, rate and codec of a file's sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        # Interleaved: PyAV holds planes of eight channels at most.
        resampler = av.AudioResampler(format="flt")
        frames = [part for frame in [*container.decode(stream), None] for part in resampler.resample(frame)]
        samples = np.concatenate([frame.to_ndarray().reshape(-1, frame.layout.nb_channels) for frame in frames]).T
        return samples, stream.rate, stream.codec_context.codec.canonical_name


def loudest_frequency(samples: np.ndarray, rate: int) -> float:
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle))


@pytest.mark.parametrize("side", [64, 480, 720, 1080])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "webm"])
def test_every_size_is_encoded_as_bt709_and_says_so(tmp_path: Path, suffix: str, side: int) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, stripes(side, 2), None)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        tags = [context.colorspace, context.color_primaries, context.color_trc, context.color_range]
        frame = next(container.decode(video=0))
    assert tags == [1, 1, 1, 1]
    width = -(-side // len(PRIMARIES))
    middles = np.arange(len(PRIMARIES)) * width + width // 2
    middles = middles[middles < side - 1]
    shown = decoded_with_bt709(frame)[side // 2, middles]
    # BT.601's matrix in place of BT.709's is off by up to 80.
    assert np.abs(shown - PRIMARIES[: len(middles)]).max() < (12 if side > 64 else 60)


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "aac"), ("mov", "aac"), ("webm", "opus")])
def test_the_sound_keeps_its_rate_its_channels_and_what_each_of_them_plays(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    for rate, layout, channels in (
        (48_000, "stereo", 2),
        (44_100, "stereo", 2),
        (48_000, "5.1", 6),
        (16_000, "mono", 1),
    ):
        path = tmp_path / f"{rate}_{layout}.{suffix}"
        given = tone(1.5, rate, channels)
        write_video(path, moving(50), Sound(given, rate, layout))
        heard, heard_rate, heard_codec = decoded_sound(path)
        assert (heard_rate, heard_codec, len(heard)) == (48_000 if codec == "opus" else rate, codec, channels)
        for channel, samples in enumerate(heard):
            # The fourth of 5.1 is for bass alone.
            if channel != 3:
                spoken = samples[: int(1.4 * heard_rate)]
                assert loudest_frequency(spoken, heard_rate) == pytest.approx(440 * (1 + channel), abs=2)
        assert np.abs(heard[:, int(1.6 * heard_rate) : int(1.9 * heard_rate)]).max() < 0.01
        with av.open(str(path)) as container:
            assert float(container.duration) / 1e6 == pytest.approx(2.0, abs=0.03)


def test_a_high_voice_stays_and_the_quality_is_that_of_a_recording(tmp_path: Path) -> None:
    """16 kHz ends at 8 kHz; the first version kept nothing above."""
    times = np.arange(96_000) / 48_000
    given = (0.2 * np.sin(2 * np.pi * 12_000 * times) + 0.2 * np.sin(2 * np.pi * 300 * times)).astype(np.float32)
    write_video(tmp_path / "a.mp4", moving(50), Sound(np.stack([given, given]), 48_000, "stereo"))
    heard, _, _ = decoded_sound(tmp_path / "a.mp4")
    heard = heard[:, 4800:91_200]
    best = max(np.corrcoef(heard[0], given[4800 + lag : 4800 + lag + heard.shape[1]])[0, 1] for lag in range(-40, 41))
    assert 10 * np.log10(1 / (1 - best**2)) > 25


@pytest.mark.parametrize("rate", [8000, 22_050, 37_800, 96_000, 192_000])
def test_any_rate_is_written_at_its_own_or_the_nearest_that_the_codec_has(tmp_path: Path, rate: int) -> None:
    write_video(tmp_path / "a.mp4", moving(25), Sound(tone(1, rate, 1), rate, "mono"))
    heard, heard_rate, _ = decoded_sound(tmp_path / "a.mp4")
    assert heard_rate == {37_800: 44_100, 192_000: 96_000}.get(rate, rate)
    assert heard.shape[1] == pytest.approx(heard_rate, abs=2048)
    assert loudest_frequency(heard[0], heard_rate) == pytest.approx(440, abs=3)


def test_channels_without_names_are_mixed_and_eight_stay_as_many_as_the_codec_takes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving(25), Sound(tone(1, 48_000, 12), 48_000, "12 channels"))
    assert decoded_sound(tmp_path / "a.mp4")[0].shape[0] == 1
    write_video(tmp_path / "b.mp4", moving(25), Sound(tone(1, 48_000, 8), 48_000, "7.1"))
    assert decoded_sound(tmp_path / "b.mp4")[0].shape[0] == 6
    write_video(tmp_path / "c.webm", moving(25), Sound(tone(1, 48_000, 8), 48_000, "7.1"))
    assert decoded_sound(tmp_path / "c.webm")[0].shape[0] == 8


def encoded_file(path: Path, codec: str, seconds: float = 2.0, rate: int = 48_000, start: float = 0.0) -> Path:
    """A stereo recording; ``start``: when it begins, beside a picture that begins at zero."""
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=25) if start else None
        stream = container.add_stream(codec, rate=rate, layout="stereo", bit_rate=160_000)
        if pictures is not None:
            pictures.width = pictures.height = 64
            for number, image in enumerate(moving(round(25 * (start + seconds)))):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(pictures.encode(frame))
            container.mux(pictures.encode())
        samples = np.ascontiguousarray(tone(seconds, rate, 2).T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate), Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packets(path: Path) -> list[bytes]:
    """The packets of a file's sound; AAC without the header that each has outside a container."""
    with av.open(str(path)) as container:
        found = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    return [packet[7:] if path.suffix == ".aac" else packet for packet in found]


COPIED = [
    ("mp4", "m4a", "aac"), ("mp4", "aac", "aac"), ("mp4", "mp3", "libmp3lame"), ("mp4", "ogg", "libopus"),
    ("mov", "m4a", "aac"), ("mov", "mp3", "libmp3lame"), ("mov", "m4a", "alac"), ("webm", "ogg", "libopus"),
    ("webm", "webm", "libopus"), ("mp4", "mkv", "aac"), ("mp4", "webm", "libopus"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "source", "codec"), COPIED)
def test_sound_that_the_container_takes_is_copied_bit_for_bit(
    tmp_path: Path, suffix: str, source: str, codec: str
) -> None:
    given = encoded_file(tmp_path / f"given.{source}", codec)
    path = tmp_path / f"a.{suffix}"
    write_video(path, moving(50), given, frame_total=50)
    wanted, got = packets(given), packets(path)
    assert got == wanted[: len(got)]
    # The decoder's last packets may lie behind the end of the picture.
    assert len(got) >= len(wanted) - 3
    with av.open(str(path)) as container:
        ends = [float(stream.duration * stream.time_base) for stream in container.streams if stream.duration]
        assert container.duration / 1e6 == pytest.approx(2, abs=0.03)
    assert all(end == pytest.approx(2, abs=0.03) for end in ends)
    # What is heard is in step with the recording: less than 3 ms apart.
    heard, rate, _ = decoded_sound(path)
    original, _, _ = decoded_sound(given)
    spoken = [np.flatnonzero(np.abs(wave[0]) > 0.05)[0] / rate for wave in (heard, original)]
    assert spoken[0] == pytest.approx(spoken[1], abs=0.003)


@pytest.mark.parametrize(
    ("suffix", "source", "codec"),
    [("webm", "mp3", "libmp3lame"), ("mp4", "wav", "pcm_s24le"), ("mp4", "flac", "flac"), ("webm", "m4a", "aac")],
)
def test_sound_that_the_container_does_not_take_is_encoded(
    tmp_path: Path, suffix: str, source: str, codec: str
) -> None:
    given = encoded_file(tmp_path / f"given.{source}", codec)
    write_video(tmp_path / f"a.{suffix}", moving(50), given, frame_total=50)
    heard, rate, written = decoded_sound(tmp_path / f"a.{suffix}")
    assert (rate, written, len(heard)) == (48_000, "opus" if suffix == "webm" else "aac", 2)
    assert [loudest_frequency(heard[c], rate) for c in (0, 1)] == pytest.approx([440, 880], abs=2)


@pytest.mark.parametrize("frames", [30, 75])
def test_a_copied_recording_is_cut_and_one_that_is_too_short_is_padded(tmp_path: Path, frames: int) -> None:
    given = encoded_file(tmp_path / "given.m4a", "aac")
    path = tmp_path / "a.mp4"
    write_video(path, moving(frames), given, frame_total=frames)
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(frames / 25, abs=0.022)
    assert (packets(path) == packets(given)[: len(packets(path))]) == (frames == 30)


def test_sound_that_starts_after_the_picture_is_encoded_with_the_silence_before_it(tmp_path: Path) -> None:
    given = encoded_file(tmp_path / "given.mkv", "aac", start=0.5)
    write_video(tmp_path / "a.mp4", moving(62), given, frame_total=62)
    heard, rate, _ = decoded_sound(tmp_path / "a.mp4")
    assert np.flatnonzero(np.abs(heard[0]) > 0.05)[0] / rate == pytest.approx(0.5, abs=0.03)


def test_joined_recordings_of_different_rates_are_not_copied(tmp_path: Path) -> None:
    """Players take a track's rate from its first packet."""
    parts = [encoded_file(tmp_path / f"{rate}.mp3", "libmp3lame", rate=rate).read_bytes() for rate in (48_000, 24_000)]
    (tmp_path / "joined.mp3").write_bytes(b"".join(parts))
    write_video(tmp_path / "a.mp4", moving(50), tmp_path / "joined.mp3", frame_total=50)
    assert decoded_sound(tmp_path / "a.mp4")[2] == "aac"


def test_long_sound_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    import tracemalloc

    with av.open(str(tmp_path / "long.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        second = np.zeros((1, 96_000), np.int16)
        for _ in range(120):
            frame = av.AudioFrame.from_ndarray(second, format="s16", layout="stereo")
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
    tracemalloc.start()
    try:
        write_video(tmp_path / "a.mp4", moving(3000, 16), tmp_path / "long.wav")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two minutes of 48 kHz stereo are 46 MB.
    assert peak < 6e6


def test_pictures_and_sound_lie_side_by_side_in_the_file(tmp_path: Path) -> None:
    """A player that loads a file from its beginning hears what it shows."""
    write_video(tmp_path / "a.mp4", moving(500), Sound(tone(20, 48_000, 2), 48_000, "stereo"))
    with av.open(str(tmp_path / "a.mp4")) as container:
        last = {"video": 0.0, "audio": 0.0}
        for packet in container.demux():
            if packet.size:
                last[packet.stream.type] = float(packet.pts * packet.time_base)
                assert abs(last["video"] - last["audio"]) < 1.5


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(30_000, 1001), Fraction(24), Fraction(50), Fraction(60)])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "webm", "gif"])
def test_any_frame_rate_lasts_as_long_as_its_frames(tmp_path: Path, suffix: str, fps: Fraction) -> None:
    path = tmp_path / f"a.{suffix}"
    assert write_video(path, moving(36, 32), Sound(tone(3, 16_000, 1), 16_000, "mono"), fps=fps) == 36
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        duration = container.duration / 1e6
    assert len(frames) == (18 if suffix == "gif" and fps > 50 else 36)
    assert duration == pytest.approx(float(36 / fps), abs=0.03)
    starts = np.array([frame.time for frame in frames])
    assert np.abs(starts - np.arange(len(starts)) * float(36 / len(frames) / fps)).max() < 0.006


def test_a_gif_shows_the_pictures_silently_and_is_smaller_where_nothing_moves(tmp_path: Path) -> None:
    photo = np.ascontiguousarray(astronaut()[:256, 128:384])
    frames = [photo.copy() for _ in range(20)]
    for index, frame in enumerate(frames):
        frame[100:140, 100:140] = np.roll(photo, index, 1)[100:140, 100:140]
    path = tmp_path / "a.gif"
    shown: list[tuple[int, str]] = []

    def progress(items: Iterable[Any], total: int, doing: str) -> Iterable[Any]:
        shown.append((total, doing))
        return items

    sound, tags = Sound(tone(1, 16_000, 1), 16_000, "mono"), {"comment": "who made this"}
    write_video(path, frames, sound, tags=tags, progress=progress)
    assert shown == [(20, "choosing colours"), (20, "writing the gif")]
    with av.open(str(path)) as container:
        assert not container.streams.audio
        assert container.metadata["comment"] == "who made this"
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.abs(shown[7].astype(int) - frames[7]).mean() < 6
    # Twenty whole pictures would be twenty times the first.
    write_video(tmp_path / "one.gif", frames[:1], None)
    assert path.stat().st_size < 5 * (tmp_path / "one.gif").stat().st_size
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.gif", "one.gif"]


@pytest.mark.parametrize("suffix", ["webm", "gif"])
def test_transparent_frames_stay_transparent(tmp_path: Path, suffix: str) -> None:
    frame = np.zeros((64, 64, 4), np.uint8)
    frame[16:48, 16:48] = [200, 60, 40, 255]
    write_video(tmp_path / f"a.{suffix}", [frame] * 4, None)
    with av.open(str(tmp_path / f"a.{suffix}")) as container:
        stream = container.streams.video[0]
        if suffix == "webm":
            # FFmpeg's own decoder leaves the second layer out.
            context = av.CodecContext.create("libvpx-vp9", "r")
            shown = next(f for packet in container.demux(stream) for f in context.decode(packet))
        else:
            shown = next(container.decode(stream))
        picture = shown.to_ndarray(format="rgba")
    assert picture[2:12, 2:12, 3].max() < 10
    assert picture[22:42, 22:42, 3].min() > 245
    assert np.abs(picture[22:42, 22:42, :3].astype(int).mean((0, 1)) - [200, 60, 40]).max() < 8
    with pytest.raises(ValueError, match="no transparent pictures"):
        write_video(tmp_path / "a.mp4", [frame], None)


@pytest.mark.parametrize("suffix", ["mp4", "mov", "webm", "gif"])
def test_tags_are_in_every_format_and_nothing_else_is_left_behind(tmp_path: Path, suffix: str) -> None:
    tags = {"comment": "Synthetic, é", "description": "http://example.org/x", "keywords": "AI"}
    write_video(tmp_path / f"a.{suffix}", moving(3), None, tags=tags)
    with av.open(str(tmp_path / f"a.{suffix}")) as container:
        found = {key.lower(): value for key, value in container.metadata.items()}
    for key in ["comment"] if suffix == "gif" else tags:
        assert found[key] == tags[key]
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{suffix}"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_with_colons_percents_and_250_bytes_are_file_names(tmp_path: Path) -> None:
    for name in ("10:30 talk.mp4", "http:x.webm", "%03d.mp4", "concat:a|b.gif", "x" * 250 + ".mp4", "ä" * 120 + ".mov"):
        write_video(tmp_path / name, moving(2), None)
        assert (tmp_path / name).stat().st_size > 100
    assert len(list(tmp_path.iterdir())) == 6


def test_an_unknown_ending_is_refused_before_a_frame_is_drawn(tmp_path: Path) -> None:
    def never() -> Iterator[np.ndarray]:
        raise AssertionError
        yield

    with pytest.raises(BadInput, match=r"must end in \.mp4, \.mov, \.webm or \.gif"):
        write_video(tmp_path / "a.avi", never(), None)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="limits of file sizes are POSIX")
def test_a_file_that_may_not_grow_gets_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np\nfrom pathlib import Path\n"
        "from flowportrait.media.write_video import write_video\nfrom flowportrait.errors import BadInput\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
        "frames = np.random.default_rng(0).integers(0, 256, (50, 256, 256, 3), np.uint8)\n"
        "try: write_video(Path(sys.argv[1]), frames, np.zeros(32000, np.float32))\n"
        "except BadInput as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "o.mp4")], capture_output=True, text=True)
    assert "larger than the file system or a limit allows; make room or choose another --output" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    with pytest.raises(BadInput, match="notes is a file and no folder"):
        write_video(tmp_path / "notes" / "o.mp4", np.zeros((2, 64, 64, 3), np.uint8), np.zeros(1280, np.float32))


def test_pictures_become_the_colours_of_ffmpegs_scaler() -> None:
    """Within a level of luma everywhere, and on average of chroma, whose filter is narrower."""
    picture = np.ascontiguousarray(astronaut()[:, :510])
    source = av.VideoFrame.from_ndarray(picture, format="rgb24")
    scaled = VideoReformatter().reformat(
        source, format="yuv420p", dst_colorspace=Colorspace.ITU709, src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG, interpolation=Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INP,
    )  # fmt: skip
    ours, theirs = _to_yuv420(picture).astype(int), scaled.to_ndarray().astype(int)
    height = len(picture)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs)[:height].max() <= 1
    assert np.abs(ours - theirs)[height:].mean() < 0.5
    assert abs((ours - theirs)[height:].mean()) < 0.25


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((255, 255, 255), (235, 128, 128)), ((0, 0, 0), (16, 128, 128)), ((255, 0, 0), (63, 102, 240)),
     ((0, 0, 255), (32, 240, 118))],
)  # fmt: skip
def test_primaries_have_the_levels_of_bt709(colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    planes = _to_yuv420(np.full((4, 6, 3), colour, np.uint8)).ravel()
    assert tuple(int(planes[at]) for at in (0, 24, 30)) == expected

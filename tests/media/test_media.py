"""Claims about sound and video files, on files made here."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import wavfile

from flowportrait.errors import BadInput
from flowportrait.media.audio import read_audio
from flowportrait.media.containers import silence_native_stderr
from flowportrait.media.crop import STABILISING_LANDMARKS, canonical_transform, mouth_patch
from flowportrait.media.faces import interpolate_missing_frames
from flowportrait.media.mel import frame_count, log_mel, normalize_loudness
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video


def numbered(count: int, size: tuple[int, int] = (64, 48)) -> Iterator[np.ndarray]:
    """Frames whose brightness tells their number."""
    for index in range(count):
        yield np.full((size[1], size[0], 3), min(20 + 4 * index, 255), np.uint8)


def encode(path: Path, times: list[Fraction], rate: int) -> Path:
    """A video whose frame i is shown at times[i] seconds and as bright as its number tells."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "5", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        base = Fraction(1, 30_000)
        stream.codec_context.time_base = base
        for image, time in zip(numbered(len(times)), times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(path: Path) -> list[int]:
    return [round((float(frame.mean()) - 20) / 4) for frame in iter_frames(path)]


def test_25_fps_comes_back_frame_by_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert write_video(path, numbered(50), None) == 50
    assert numbers(path) == list(range(50))


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(30_000, 1001), Fraction(50), Fraction(12)])
def test_any_rate_shows_at_every_25th_of_a_second_what_was_on_screen(tmp_path: Path, rate: Fraction) -> None:
    count = round(rate)
    path = encode(tmp_path / "a.mp4", [i / rate for i in range(count)], round(rate))
    shown = numbers(path)
    assert len(shown) == pytest.approx(25, abs=1)
    ideal = [min(count - 1, i / 25 * float(rate)) for i in range(len(shown))]
    assert max(abs(got - want) for got, want in zip(shown, ideal, strict=True)) <= 1.01


def test_a_variable_frame_rate_keeps_its_timing(tmp_path: Path) -> None:
    times = [Fraction(t, 100) for t in (0, 4, 8, 60, 64, 100, 104, 108)]
    shown = numbers(encode(tmp_path / "a.mp4", times, 25))
    assert shown[:3] == [0, 1, 2]
    assert shown[10] == 2
    assert shown[16] == 4
    assert shown[25] == 5


@settings(max_examples=8, deadline=None)
@given(frames=st.integers(1, 40), seconds=st.floats(0.0, 2.0))
def test_sound_and_picture_are_equally_long(
    tmp_path_factory: pytest.TempPathFactory, frames: int, seconds: float
) -> None:
    path = tmp_path_factory.mktemp("v") / "a.mp4"
    write_video(path, numbered(frames), np.zeros(round(seconds * 16_000), np.float32))
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        shown = float(picture.duration * picture.time_base)
        heard = float(sound.duration * sound.time_base)
    assert shown == pytest.approx(frames / 25)
    assert heard == pytest.approx(shown, abs=1024 / 16_000)


def test_odd_sides_lose_one_pixel(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(3, (65, 49)), None)
    assert next(iter_frames(tmp_path / "a.mp4")).shape == (48, 64, 3)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError])
def test_nothing_half_written_remains_and_the_old_file_stays(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def breaking() -> Iterator[np.ndarray]:
        yield from numbered(5)
        raise failure

    with pytest.raises(failure):
        write_video(path, breaking(), np.zeros(16_000, np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"old"


def test_frames_are_not_hoarded(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(100, (320, 240)), None)
    tracemalloc.start()
    try:
        size = [frame.nbytes for frame in iter_frames(tmp_path / "a.mp4")]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(size) == 100
    assert peak < 8 * size[0]


def test_phone_footage_stands_upright(tmp_path: Path) -> None:
    picture = np.full((48, 64, 3), 30, np.uint8)
    picture[:24, :32] = 220
    path = tmp_path / "a.mp4"
    write_video(path, [picture] * 3, None)
    data = bytearray(path.read_bytes())
    # The display matrix of the track, 16.16 fixed point: a quarter turn clockwise.
    place = data.index(b"tkhd") + 44
    turned = [0, 1 << 16, 0, -(1 << 16), 0]
    data[place : place + 20] = b"".join(value.to_bytes(4, "big", signed=True) for value in turned)
    path.write_bytes(data)
    shown = next(iter_frames(path))
    assert shown.shape == (64, 48, 3)
    assert shown[:32, 24:].mean() > 200
    assert shown[32:].mean() < 50


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_video_that_was_cut_off_is_named_before_its_first_frame(tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(0)
    pictures = (rng.integers(0, 255, (48, 64, 3), np.uint8) for _ in range(50))
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_video(whole, pictures, rng.normal(0, 0.1, 32_000).astype(np.float32))
    assert len(numbers(whole)) == 50
    cut.write_bytes(whole.read_bytes()[: round(share * whole.stat().st_size)])
    with pytest.raises(BadInput, match=rf"cut\.mp4 is damaged, only {share:.0%}"):
        next(iter_frames(cut))
    with pytest.raises(BadInput, match=r"cut\.mp4 is damaged"):
        read_audio(cut)


def with_offset(path: Path, picture: float, sound: float) -> Path:
    """A second of rising brightness and a second of tone that begin at different times."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"crf": "5", "bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        voice = container.add_stream("flac", rate=16_000, layout="mono")
        for index, image in enumerate(numbered(25)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index + round(25 * picture), Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        block = av.AudioFrame.from_ndarray(tone(16_000, seconds=1.0).T.copy(), format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = 16_000, round(16_000 * sound), Fraction(1, 16_000)
        resampler = av.AudioResampler("s16", "mono", 16_000, frame_size=voice.frame_size)
        for piece in [*resampler.resample(block), *resampler.resample(None)]:
            container.mux(voice.encode(piece))
        container.mux(voice.encode())
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.aiff", "a.mkv", "a.webm", "a.avi", "a.mov"])
def test_half_a_file_is_damaged_and_a_whole_one_is_not(tmp_path: Path, name: str) -> None:
    path = noise(tmp_path / name)
    read_audio(path)
    cut = path.with_name(f"cut{path.suffix}")
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadInput, match=r"cut\.\w+ is damaged.*: copy or download it again") as told:
        read_audio(cut)
    assert str(told.value).count(". ") == 0
    if path.suffix in (".mkv", ".webm", ".avi", ".mov"):
        with pytest.raises(BadInput, match=r"cut\.\w+ is damaged, only 5.% of it is there"):
            next(iter_frames(cut))


def noise(path: Path) -> Path:
    """Three seconds of noise, with as much picture where the container takes it."""
    kinds = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".aiff": "pcm_s16be", ".webm": "libopus"}
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        if path.suffix not in (".wav", ".flac", ".mp3", ".aiff"):
            video = container.add_stream("libvpx" if path.suffix == ".webm" else "mpeg4", rate=25)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream(kinds.get(path.suffix, "aac"), rate=48_000, layout="mono")
        if path.suffix not in (".wav", ".flac", ".mp3", ".aiff"):
            for _ in range(75):
                image = rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(video.encode())
        resampler = av.AudioResampler(format=sound.codec_context.format.name, layout="mono", rate=48_000)
        for start in range(0, 144_000, 960):
            block = rng.integers(-3000, 3000, (1, 960)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            for given in resampler.resample(frame):
                container.mux(sound.encode(given))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("length", [0x7FFF_F024, 0x8000_0024, 0xFFFF_FFFF])
def test_a_wav_from_a_pipe_is_whole(tmp_path: Path, length: int) -> None:
    content = bytearray(noise(tmp_path / "a.wav").read_bytes())
    content[4:8] = length.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(48_000, rel=0.01)


@pytest.mark.parametrize("name", ["a.mp4", "a.wav", "a.mkv"])
def test_a_file_without_a_byte_is_empty(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    for read in (read_audio, lambda given: next(iter_frames(given))):
        with pytest.raises(BadInput, match=rf"{name} is empty"):
            read(path)


def test_sound_that_is_not_a_number_is_written_as_silence(tmp_path: Path) -> None:
    audio = np.full(16_000, np.nan, np.float32)
    audio[8000:] = 3.0 * np.sin(np.arange(8000) / 5)
    write_video(tmp_path / "a.mp4", numbered(25), audio)
    heard = read_audio(tmp_path / "a.mp4")
    assert np.abs(heard[1000:6000]).max() < 0.01
    assert np.abs(heard[9000:15_000]).max() > 0.7


def test_frames_of_one_pixel_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="5x1 px is too small"):
        write_video(tmp_path / "a.mp4", [np.zeros((1, 5, 3), np.uint8)], None)
    assert write_video(tmp_path / "a.mp4", [np.zeros((2, 2, 3), np.uint8)], None) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_tags_are_written_and_a_failing_last_step_leaves_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(3), None, tags={"comment": "who made this"})
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["comment"] == "who made this"

    def fails(path: Path) -> None:
        assert path.stat().st_size > 0
        raise BadInput("no")

    with pytest.raises(BadInput):
        write_video(tmp_path / "b.mp4", numbered(3), None, finish=fails)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_sound_that_starts_late_stays_with_its_picture(tmp_path: Path) -> None:
    path = with_offset(tmp_path / "a.mkv", picture=0.0, sound=0.4)
    wave = read_audio(path)
    assert np.flatnonzero(np.abs(wave) > 0.05)[0] / 16_000 == pytest.approx(0.4, abs=0.005)
    assert numbers(path)[:3] == [0, 1, 2]


def test_a_picture_that_starts_late_is_held_from_the_start_of_the_sound(tmp_path: Path) -> None:
    path = with_offset(tmp_path / "a.mkv", picture=0.4, sound=0.0)
    assert numbers(path)[:13] == [0] * 11 + [1, 2]
    assert np.flatnonzero(np.abs(read_audio(path)) > 0.05)[0] < 80


def test_frames_of_different_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame 2"):
        write_video(tmp_path / "a.mp4", [*numbered(2), *numbered(1, (80, 60))], None)
    assert list(tmp_path.iterdir()) == []


def test_a_name_the_system_refuses_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="choose another --output"):
        write_video(tmp_path / f"{'x' * 300}.mp4", numbered(2), None)
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        write_video(tmp_path / "a.mp4", numbered(2), None)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_missing_folder_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="create it first"):
        write_video(tmp_path / "no" / "a.mp4", numbered(2), None)
    whole = tmp_path / "whole.mp4"
    write_video(whole, numbered(50), None)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:200])
    with pytest.raises(BadInput, match=r"cut\.mp4"):
        list(iter_frames(tmp_path / "cut.mp4"))


def tone(rate: int, channels: int = 1, seconds: float = 1.5) -> np.ndarray:
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    samples = np.round(32767 * wave).astype(np.int16)
    return np.stack([samples] * channels, 1)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (44_100, 2), (48_000, 2), (22_050, 1)])
def test_440_hz_stays_440_hz(tmp_path: Path, rate: int, channels: int) -> None:
    wavfile.write(tmp_path / "a.wav", rate, tone(rate, channels))
    wave = read_audio(tmp_path / "a.wav")
    assert len(wave) == pytest.approx(24_000, abs=40)
    spectrum = np.abs(np.fft.rfft(wave[2000:18_000] * np.hanning(16_000)))
    assert spectrum.argmax() == pytest.approx(440, abs=1)
    assert np.abs(wave).max() == pytest.approx(0.4, abs=0.05)


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp3", "libmp3lame"), ("m4a", "aac"), ("ogg", "libopus"), ("flac", "flac")]
)
def test_common_formats_are_read(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48_000, layout="mono")
        samples = tone(48_000).T
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="s16", layout="mono")
        block.sample_rate = 48_000
        resampler = av.AudioResampler(stream.format, "mono", 48_000, frame_size=stream.frame_size or 1024)
        for piece in [*resampler.resample(block), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    wave = read_audio(path)
    assert len(wave) / 16_000 == pytest.approx(1.5, abs=0.12)
    spectrum = np.abs(np.fft.rfft(wave[2000:18_000] * np.hanning(16_000)))
    assert spectrum.argmax() == pytest.approx(440, abs=2)


def test_broken_samples_become_silence(tmp_path: Path) -> None:
    wave = np.full(16_000, 0.1, np.float32)
    wave[100:200], wave[300:400], wave[500:600] = np.nan, np.inf, 7.0
    wavfile.write(tmp_path / "a.wav", 16_000, wave)
    heard = read_audio(tmp_path / "a.wav")
    assert not heard[100:200].any()
    assert not heard[300:400].any()
    assert (heard[500:600] == 1.0).all()
    assert heard[700] == pytest.approx(0.1)


def test_a_video_without_sound_says_so(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered(5), None)
    with pytest.raises(BadInput, match="no audio stream"):
        read_audio(tmp_path / "a.mp4")


def test_ten_minutes_of_sound_are_read_whole(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8_000, np.zeros(8_000 * 600, np.int16))
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(600 * 16_000, abs=100)


@given(samples=st.integers(1, 6000))
def test_four_mel_columns_per_frame(samples: int) -> None:
    assert len(log_mel(np.zeros(samples, np.float32))) == 4 * frame_count(np.zeros(samples))


def test_a_click_is_heard_in_its_own_column() -> None:
    wave = np.zeros(6400, np.float32)
    wave[160 * 17 + 80] = 1.0
    assert int(log_mel(wave).mean(1).argmax()) == 17


def test_levelling_undoes_gain_and_leaves_silence_alone() -> None:
    speech = np.random.default_rng(0).normal(size=16_000).astype(np.float32) * 0.02
    assert np.allclose(normalize_loudness(speech), normalize_loudness(5 * speech), atol=1e-6)
    assert np.array_equal(normalize_loudness(1e-4 * speech), 1e-4 * speech)


def test_lost_frames_are_bridged_linearly_and_held_at_the_ends() -> None:
    track = np.array([[9.0], [1.0], [9.0], [3.0], [9.0]])
    assert interpolate_missing_frames(track, np.array([False, True, False, True, False])).ravel().tolist() == [
        1,
        1,
        2,
        3,
        3,
    ]


def test_the_stabilised_view_ignores_shift_turn_and_size() -> None:
    face = np.random.default_rng(0).normal(size=(478, 3)) * 40 + 200
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    moved = face.copy()
    moved[:, :2] = 2.5 * face[:, :2] @ turn.T + [30, -80]

    def seen(points: np.ndarray) -> np.ndarray:
        matrix = canonical_transform(points)
        return points[:, :2] @ matrix[:, :2].T + matrix[:, 2]

    assert np.allclose(seen(face), seen(moved), atol=1e-6)


@pytest.mark.parametrize("shift", [-300, 0, 40, 300])
def test_looking_only_around_the_mouth_shows_what_looking_everywhere_does(shift: int) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (420, 640, 3), np.uint8)
    frame = cv2.GaussianBlur(frame, (0, 0), 3)
    points = np.zeros((478, 3), np.float32)
    points[STABILISING_LANDMARKS, :2] = np.array([300 + shift, 150 + shift / 2]) + 130 * np.array(
        [[-0.5, 0], [-0.17, 0.02], [0.17, 0.02], [0.5, 0], [0, -0.06], [0, 0.1], [0, 0.24], [0, 0.56]]
    )
    far = np.full((1260, 1920, 3), 0, np.uint8)
    far[420:840, 640:1280] = frame
    far[:420], far[840:] = far[420], far[839]
    far[:, :640], far[:, 1280:] = far[:, 640:641], far[:, 1279:1280]
    patch = mouth_patch(frame, points)
    # The same picture with its edge repeated all around: nothing that is cut away takes part.
    assert np.abs(patch.astype(int) - mouth_patch(far, points + np.float32([640, 420, 0]))).max() <= 1


def test_native_chatter_is_silenced_while_our_own_words_arrive() -> None:
    script = (
        "import os, sys\nfrom flowportrait.media.containers import silence_native_stderr\n"
        "with silence_native_stderr():\n    os.write(2, b'chatter')\n    print('ours', file=sys.stderr)\n"
        "os.write(2, b'after')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "chatter" not in done.stderr
    assert "ours" in done.stderr
    assert "after" in done.stderr


def test_an_exception_passes_through_the_silence() -> None:
    with pytest.raises(ValueError, match="loud"), silence_native_stderr():
        raise ValueError("loud")
    assert os.write(2, b"") == 0

"""Claims about what is opened and what is refused: names, playlists, covers, joined files, channels."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from scipy.io import wavfile

from flowportrait.errors import BadInput
from flowportrait.evaluation.tracking import _source_fps
from flowportrait.human_study.make import make_playable_video
from flowportrait.media.audio import has_audio, mono_mix_weights, read_audio, read_sound
from flowportrait.media.containers import file_url, open_media
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video

RATE = 48_000
NAMES = [
    "10:30.mp4",
    "http: talk.mp4",
    "file:a.mp4",
    "concat:a|b.mp4",
    "a%03d.mp4",
    "pipe:0.mp4",
    "-i.mp4",
    "a?b#c.mp4",
]

posix_names = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")


def sine(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """A tone of amplitude 0.4."""
    return (0.4 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def pictures(count: int, level: int = 60) -> list[np.ndarray]:
    return [np.full((48, 64, 3), level + index, np.uint8) for index in range(count)]


def encode_mp3(path: Path, seconds: float, bitrate: int, counted: bool) -> Path:
    """A tone as mp3, with or without the header that counts its frames."""
    with av.open(file_url(path), "w", options={} if counted else {"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=RATE, layout="mono", bit_rate=bitrate)
        frame = av.AudioFrame.from_ndarray(sine(seconds)[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        resampler = av.AudioResampler(stream.format, "mono", RATE, frame_size=stream.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    return path


@posix_names
@pytest.mark.parametrize("name", NAMES)
def test_any_legal_name_is_a_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "plain.mp4", pictures(10), sine(0.4, 16_000))
    os.rename("plain.mp4", name)
    for path in (Path(name), tmp_path / name):
        assert len(list(iter_frames(path))) == 10
        assert len(read_audio(path)) == pytest.approx(6400, abs=1100)
        assert read_sound(path).rate == 16_000
        assert has_audio(path)
        assert _source_fps(path) == 25
    assert not make_playable_video(Path(name), tmp_path / "copy: of.mp4")
    assert len(list(iter_frames(tmp_path / "copy: of.mp4"))) == 10


@posix_names
def test_the_name_of_an_output_is_a_file_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with av.open(file_url("10:30.mkv"), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert [path.name for path in tmp_path.iterdir()] == ["10:30.mkv"]


LISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{0}\n#EXT-X-ENDLIST\n",
    "a.mp4": "ffconcat version 1.0\nfile {0}\n",
    "a.sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 5004 RTP/AVP 0\r\n",
    "a.wav": "[playlist]\nFile1={0}\n",
    "a.mpd": '<?xml version="1.0"?>\n<MPD><BaseURL>{0}</BaseURL></MPD>\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_other_files_is_not_followed(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "secret.mp4", pictures(10), sine(0.4, 16_000))
    (tmp_path / name).write_text(LISTS[name].format("secret.mp4"))
    for read in (read_audio, read_sound, lambda path: next(iter_frames(path))):
        with pytest.raises(BadInput, match=r"is a list of other files or addresses: give the recording itself"):
            read(tmp_path / name)
    assert not has_audio(tmp_path / name)


@pytest.mark.parametrize("read", [read_audio, lambda path: next(iter_frames(path))])
@pytest.mark.parametrize("address", ["https://example.org/a.mp4", "rtsp://example.org/a", "s3://a/b.mp4"])
def test_an_address_is_told_from_a_path(read: Callable[[str], object], address: str) -> None:
    with pytest.raises(BadInput, match=f"^{address} is an address, not a file: download it first"):
        read(address)


def test_a_file_in_the_wrong_place_is_pointed_to_the_right_option(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    wavfile.write(tmp_path / "a.wav", RATE, sine(0.5))
    with pytest.raises(BadInput, match=r"a\.jpg is a picture, not a video: give it as --image"):
        next(iter_frames(tmp_path / "a.jpg"))
    with pytest.raises(BadInput, match=r"a\.jpg is a picture, not sound: give it as --image"):
        read_audio(tmp_path / "a.jpg")
    with pytest.raises(BadInput, match=r"holds no video stream: its sound is given as --audio"):
        next(iter_frames(tmp_path / "a.wav"))
    with pytest.raises(BadInput, match="is a folder: give one audio file"):
        read_audio(tmp_path)


def test_tags_in_another_encoding_are_no_obstacle(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, np.zeros(4800, np.int16))
    info = b"INFOINAM" + struct.pack("<I", 4) + b"\xe4\xf6\xfc\xff"
    data = (tmp_path / "a.wav").read_bytes() + b"LIST" + struct.pack("<I", len(info)) + info
    (tmp_path / "a.wav").write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(1600, abs=5)


def covered(path: Path, marked: bool) -> Path:
    """A song or clip whose first stream is a cover picture, with or without the mark that says so."""
    with av.open(file_url(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        if marked:
            cover.disposition = av.stream.Disposition.attached_pic
        video = container.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        picture = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 250, np.uint8), format="rgb24")
        picture.pts, picture.time_base = 0, Fraction(1, 25)
        container.mux(cover.encode(picture))
        container.mux(cover.encode())
        for index, image in enumerate(pictures(25)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        block = av.AudioFrame.from_ndarray((32767 * sine(1.0)).astype(np.int16)[None], format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(sound.encode(block))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("marked", [False, True])
def test_a_cover_before_the_video_is_not_the_video(tmp_path: Path, marked: bool) -> None:
    path = covered(tmp_path / "a.mkv", marked)
    frames = list(iter_frames(path))
    assert len(frames) == 25
    assert frames[0].shape == (48, 64, 3)
    assert frames[0].mean() == pytest.approx(60, abs=3)
    assert len(read_audio(path)) == pytest.approx(16_000, abs=50)


def test_a_song_with_a_cover_has_no_picture_to_dub(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.VideoFrame.from_ndarray(pictures(1)[0], format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        container.mux(cover.encode(frame))
        container.mux(cover.encode())
        for start in range(0, RATE, 1024):
            block = av.AudioFrame.from_ndarray(sine(1.0)[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts = RATE, start
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    assert len(read_audio(tmp_path / "a.m4a")) == pytest.approx(16_000, abs=700)
    with open_media(tmp_path / "a.m4a") as opened:
        if not opened.streams.video or not opened.streams.video[0].disposition & av.stream.Disposition.attached_pic:
            pytest.skip("this FFmpeg writes no cover into mp4")
    with pytest.raises(BadInput, match="holds no video stream: its sound is given as --audio"):
        next(iter_frames(tmp_path / "a.m4a"))


def test_an_mp3_is_whole_without_a_count_and_with_any_rates_joined(tmp_path: Path) -> None:
    low = encode_mp3(tmp_path / "low.mp3", 3.0, 32_000, counted=False)
    high = encode_mp3(tmp_path / "high.mp3", 3.0, 256_000, counted=False)
    counted = encode_mp3(tmp_path / "counted.mp3", 3.0, 128_000, counted=True)
    joined = tmp_path / "joined.mp3"
    tag = b"ID3\x04\x00\x00\x00\x00\x08\x00" + bytes(1024)
    pairs = {(low, high): 6.0, (high, low): 6.0, (counted, low): 6.0, (low, counted): 6.0, (low,): 3.0, (high,): 3.0}
    for files, seconds in pairs.items():
        for between in (b"", tag, b"TAG" + bytes(125)):
            joined.write_bytes(between.join(file.read_bytes() for file in files) + (b"" if between == tag else between))
            assert len(read_audio(joined)) / 16_000 == pytest.approx(seconds, abs=0.15)


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.97])
def test_an_mp3_that_ends_in_the_middle_of_a_frame_is_damaged(tmp_path: Path, counted: bool, share: float) -> None:
    path = encode_mp3(tmp_path / "a.mp3", 6.0, 128_000, counted)
    data = path.read_bytes()
    path.write_bytes(data[: round(share * len(data)) + 7])
    if (round(share * len(data)) + 7) % 384 == 0:
        pytest.skip("cut between two frames")
    with pytest.raises(BadInput, match=r"a\.mp3 is damaged, .*: copy or download it again"):
        read_audio(path)


def write_channels(path: Path, channels: list[np.ndarray], layout: str) -> Path:
    """A lossless recording of channels in the order of ``layout``."""
    with av.open(file_url(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
        samples = np.stack(channels, 1)
        block = np.round(32767 * samples).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def power(wave: np.ndarray) -> float:
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    return float(np.sqrt((middle.astype(np.float64) ** 2).mean()))


@pytest.mark.parametrize("layout", ["3.0", "5.0", "5.1", "5.1(side)", "6.1", "7.1"])
def test_a_voice_in_the_centre_stays_as_loud_as_it_is(tmp_path: Path, layout: str) -> None:
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    voice, silence = sine(1.0), np.zeros(RATE, np.float32)
    path = write_channels(tmp_path / "a.wav", [voice if name == "FC" else silence for name in names], layout)
    assert 20 * np.log10(power(read_audio(path)) / power(voice)) == pytest.approx(0.0, abs=0.05)
    sound = read_sound(path)
    assert (len(sound.samples), sound.rate) == (len(names), RATE)
    assert np.abs(sound.samples[names.index("FC")] - voice).max() < 1e-4
    assert not np.delete(sound.samples, names.index("FC"), 0).any()


def test_other_channels_are_mixed_as_bs_775_says() -> None:
    weights = dict(zip(["FL", "FR", "FC", "LFE", "BL", "BR"], mono_mix_weights("5.1", 6), strict=True))
    expected = {"FL": 0.7071, "FR": 0.7071, "FC": 1.0, "LFE": 0.0, "BL": 0.5, "BR": 0.5}
    assert weights == pytest.approx(expected, abs=1e-4)
    # Left and right alone: what both hold stays as loud as in stereo.
    assert mono_mix_weights("quad", 4)[:2] == pytest.approx([0.5, 0.5])
    assert mono_mix_weights("2.1", 3) == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("channels", range(3, 9))
def test_channels_without_a_stated_place_are_read(tmp_path: Path, channels: int) -> None:
    samples = np.stack([sine(0.5, hertz=200.0 * (index + 1)) for index in range(channels)], 1)
    wavfile.write(tmp_path / "a.wav", RATE, samples)
    assert len(read_audio(tmp_path / "a.wav")) == pytest.approx(8000, abs=5)
    sound = read_sound(tmp_path / "a.wav")
    assert np.array_equal(sound.samples, samples.T)
    assert av.AudioLayout(sound.layout).nb_channels == channels


def test_sound_that_starts_hours_after_the_picture_is_damage(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"bf": "0"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.VideoFrame.from_ndarray(pictures(1)[0], format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux([*video.encode(frame), *video.encode()])
        block = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), format="s16", layout="mono")
        block.sample_rate, block.pts, block.time_base = RATE, 20_000 * RATE, Fraction(1, RATE)
        container.mux(sound.encode(block))
    for read in (read_audio, read_sound):
        with pytest.raises(BadInput, match=r"a\.mov is damaged, its sound starts at 20000 s"):
            read(tmp_path / "a.mov")


def test_loud_channels_are_turned_down_together_and_not_cut(tmp_path: Path) -> None:
    loud = 2.2 * sine(1.0)
    wave = read_audio(write_channels(tmp_path / "a.wav", [loud] * 6, "5.1"))
    assert np.abs(wave).max() == pytest.approx(1.0, abs=0.01)
    spectrum = np.abs(np.fft.rfft(wave[:16_000] * np.hanning(16_000)))
    assert spectrum[430:450].max() > 1000 * spectrum[1300:1340].max()


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = sine(1.0), sine(1.0, hertz=1000.0)
    path = write_channels(tmp_path / "a.wav", [left, right], "stereo")
    alone = read_audio(write_channels(tmp_path / "b.wav", [(left + right) / 2], "mono"))
    assert np.abs(read_audio(path) - alone).max() < 1e-4


@pytest.mark.parametrize(("rate", "layout"), [(44_100, "stereo"), (48_000, "stereo"), (96_000, "mono")])
def test_sound_keeps_its_rate_channels_and_samples(tmp_path: Path, rate: int, layout: str) -> None:
    channels = 2 if layout == "stereo" else 1
    samples = np.stack([sine(1.0, rate, 440.0 + 100 * index) for index in range(channels)], 1)
    wavfile.write(tmp_path / "a.wav", rate, samples)
    sound = read_sound(tmp_path / "a.wav")
    assert (sound.rate, sound.layout, sound.codec, sound.delay) == (rate, layout, "pcm_f32le", 0.0)
    assert np.array_equal(sound.samples, samples.T)


def test_sound_that_changes_on_the_way_keeps_its_beginning_s_form(tmp_path: Path) -> None:
    encode_mp3(tmp_path / "a.mp3", 1.0, 128_000, counted=False)
    with av.open(str(tmp_path / "b.mp3"), "w", options={"write_xing": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=44_100, layout="stereo", bit_rate=128_000)
        frame = av.AudioFrame.from_ndarray(np.stack([sine(1.0, 44_100)] * 2), format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        resampler = av.AudioResampler(stream.format, "stereo", 44_100, frame_size=stream.frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode())
    (tmp_path / "c.mp3").write_bytes((tmp_path / "a.mp3").read_bytes() + (tmp_path / "b.mp3").read_bytes())
    sound = read_sound(tmp_path / "c.mp3")
    assert (sound.rate, sound.layout) == (RATE, "mono")
    assert sound.samples.shape[1] / RATE == pytest.approx(2.0, abs=0.15)
    assert len(read_audio(tmp_path / "c.mp3")) / 16_000 == pytest.approx(2.0, abs=0.15)


def test_long_sound_is_held_once(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", RATE, np.zeros((RATE * 300, 2), np.int16))
    tracemalloc.start()
    try:
        sound = read_sound(tmp_path / "a.wav")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sound.samples.shape == (2, RATE * 300)
    assert peak < 1.6 * sound.samples.nbytes


def test_what_is_longer_than_allowed_is_refused_at_once(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8_000, np.zeros(8_000 * 100, np.int16))
    with pytest.raises(BadInput, match="longer than 10 s"):
        read_audio(tmp_path / "a.wav", longest=10)
    assert len(read_audio(tmp_path / "a.wav", longest=100)) == pytest.approx(1_600_000, abs=100)
    write_video(tmp_path / "a.mp4", pictures(50), None)
    with pytest.raises(BadInput, match="longer than 1 s"):
        list(iter_frames(tmp_path / "a.mp4", longest=1))
    assert len(list(iter_frames(tmp_path / "a.mp4", longest=2))) == 50


def test_a_clock_that_jumps_is_named_and_not_waited_for(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, image in enumerate(pictures(4)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index + (100_000_000 if index > 1 else 0), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(BadInput, match=r"its clock jumps by \d+ s"):
        for _, _ in zip(range(1000), iter_frames(tmp_path / "a.mkv"), strict=False):
            pass


@pytest.mark.parametrize("start", [0, 1, 7, 30, 49])
def test_frames_from_a_number_on_are_the_same_frames(tmp_path: Path, start: int) -> None:
    write_video(tmp_path / "a.mp4", pictures(50), None)
    every = list(iter_frames(tmp_path / "a.mp4"))
    later = list(iter_frames(tmp_path / "a.mp4", 25, start))
    assert len(later) == 50 - start
    assert all(np.array_equal(a, b) for a, b in zip(later, every[start:], strict=True))

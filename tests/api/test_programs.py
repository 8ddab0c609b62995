"""Programs that a user writes, run as they are written: few lines, public names, and the result is what it says."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import get_type_hints

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

import flowportrait as fp
from flowportrait.cli import main
from flowportrait.media.audio import Sound, read_sound
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.output import MotionTrack
from flowportrait.pipelines.request import AnimateSettings
from flowportrait.provenance.manifest import read_signature
from flowportrait.provenance.watermark import find_watermark
from tests.pipelines.test_animator import babble

RATE = 16_000
FACE = np.ascontiguousarray(astronaut()[:300, 60:360])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what the programs read."""
    monkeypatch.chdir(tmp_path)
    for name, picture in (("me", FACE), ("ben", FACE[:, ::-1]), ("both", np.hstack([FACE, FACE]))):
        cv2.imwrite(f"{name}.png", picture[..., ::-1])
    for name, seconds in (("me", 2.0), ("ben", 1.2)):
        wavfile.write(f"{name}.wav", RATE, np.round(babble(seconds) * 32767).astype(np.int16))
    return tmp_path


@pytest.fixture(scope="module")
def pipe() -> fp.AnimatePipeline:
    return fp.AnimatePipeline.from_pretrained("rl")


def shape(path: str) -> tuple[int, int, int]:
    """Height, width and number of a file's frames."""
    with av.open(path) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return *frames[0].shape[:2], len(frames)


def test_a_photo_and_speech_become_a_signed_file_in_one_line() -> None:
    fp.AnimatePipeline.from_pretrained("rl", device="cpu")("me.png", "me.wav").save("out.mp4")
    assert shape("out.mp4") == (300, 300, 50)
    signature = read_signature(Path("out.mp4"))
    assert signature.intact
    assert "FlowPortrait" in signature.generator
    assert find_watermark(iter_frames(Path("out.mp4"))).found
    assert main(["animate", "--image", "me.png", "--audio", "me.wav", "--output", "command.mp4"]) == 0
    pictures = [np.stack(list(iter_frames(Path(name)))) for name in ("out.mp4", "command.mp4")]
    assert np.array_equal(*pictures), "the command line makes the same video"


def test_the_video_has_frames_sound_rate_seed_and_motion(pipe: fp.AnimatePipeline) -> None:
    video = pipe("me.png", "me.wav", seed=3, size=64, crop=True)
    assert (video.fps, video.frame_rate, video.seed, len(video.frames)) == (25.0, Fraction(25), 3, 50)
    assert video.motion.shape == (50, 30)
    assert (video.audio.rate, video.audio.samples.shape) == (RATE, (1, 2 * RATE))
    assert next(iter(video.frames)).shape == (64, 64, 3)
    assert np.array_equal(np.asarray(video.frames), np.stack(list(video.frames))), "they can be iterated again"
    other = pipe("me.png", "me.wav", seed=4, size=64, crop=True)
    assert not torch.equal(video.motion, other.motion)


def test_frames_that_were_seen_are_let_go(pipe: fp.AnimatePipeline) -> None:
    """Ten minutes take no more memory than ten seconds: a chunk or two of pictures."""
    seen, most = [], 0
    for frame in pipe("me.png", "me.wav", size=64, crop=True).frames:
        seen.append(weakref.ref(frame))
        most = max(most, sum(one() is not None for one in seen))
    assert len(seen) == 50
    assert most < 12


def test_files_arrays_and_pillow_images_are_one_video(pipe: fp.AnimatePipeline) -> None:
    audio = wavfile.read("me.wav")[1].astype(np.float32) / 32768
    motions = [
        pipe(image, sound, size=64, crop=True).motion
        for image, sound in (
            ("me.png", "me.wav"),
            (FACE, audio),
            (Image.open("me.png"), Sound(audio[None], RATE, "mono")),
        )
    ]
    assert torch.equal(motions[0], motions[1])
    assert torch.equal(motions[0], motions[2])
    first, second = (next(iter(pipe(image, audio).frames)) for image in (Path("me.png"), Image.open("me.png")))
    assert np.array_equal(first, second)


def test_marks_are_left_out_one_by_one(pipe: fp.AnimatePipeline) -> None:
    video = pipe("me.png", "me.wav", crop=True, size=256)
    found = {}
    for sign in (False, True):
        for watermark in (False, True):
            video.save("o.mp4", sign=sign, watermark=watermark)
            with av.open("o.mp4") as file:
                label = "Synthetic video" in file.metadata.get("comment", "")
            marked = find_watermark(iter_frames(Path("o.mp4"))).found
            found[sign, watermark] = (read_signature(Path("o.mp4")).intact, marked, label)
    assert found == {
        (False, False): (False, False, False), (False, True): (False, True, True),
        (True, False): (True, False, True), (True, True): (True, True, True),
    }  # fmt: skip
    video.save("o.mp4", watermark=False)
    assert b"c2pa.watermarked" not in Path("o.mp4").read_bytes(), "the manifest speaks of no mark that is not there"


def test_a_video_is_dubbed_at_its_own_rate(pipe: fp.AnimatePipeline) -> None:
    write_video("clip.mp4", [FACE] * 30, babble(1.0), fps=30)
    video = pipe.dub("clip.mp4", "me.wav", loop=True)
    video.save("dubbed.mp4")
    assert (video.fps, len(video.frames), video.undubbed_frames) == (30.0, 60, 0)
    assert shape("dubbed.mp4") == (300, 300, 60)
    assert read_signature(Path("dubbed.mp4")).source_type.endswith("compositeWithTrainedAlgorithmicMedia")
    first, again = next(iter(video.frames)), next(iter(video.frames))
    assert np.array_equal(first, again)
    assert any("longer than clip.mp4" in note for note in pipe.dub("clip.mp4", "me.wav").notes)


def test_two_people_talk_side_by_side_or_in_one_photo(pipe: fp.AnimatePipeline) -> None:
    video = pipe.conversation(["me.png", "ben.png"], ["me.wav", "ben.wav"], size=128)
    assert next(iter(video.frames)).shape == (128, 256, 3)
    assert video.motion.shape == (2, 50, 30)
    turns = pipe.conversation(["me.png", "ben.png"], [(0, "ben.wav"), (1, "ben.wav"), (0, "ben.wav")], turns=True)
    assert len(turns.frames) == 3 * 30 + 15
    video = pipe.conversation("both.png", ["ben.wav", "ben.wav"], turns=True)
    video.save("both.mp4")
    assert shape("both.mp4")[:2] == (300, 600)
    with pytest.raises(fp.BadInput, match="1 photos and 2 recordings"):
        pipe.conversation(["me.png"], ["me.wav", "ben.wav"])


def test_a_stream_is_drawn_while_speech_comes_in_and_grows_as_a_file(pipe: fp.AnimatePipeline) -> None:
    speech, given = wavfile.read("me.wav")[1].astype(np.float32) / 32768, 0

    def microphone() -> Iterator[np.ndarray]:
        nonlocal given
        for piece in np.array_split(speech, 50):
            given += 1
            yield piece

    stream = pipe.stream("me.png", microphone(), size=64, crop=True)
    first = next(iter(stream))
    assert first.shape == (64, 64, 3)
    assert given < 15, "half a second of two"
    assert stream.sound(0).samples.shape == (1, 640)
    assert pipe.stream("me.png", np.array_split(speech, 50), size=64, crop=True).save("live.mp4") == 50
    assert read_sound("live.mp4").rate == RATE
    whole = pipe("me.png", "me.wav", size=64, crop=True)
    difference = np.abs(first.astype(int) - next(iter(whole.frames))).mean()
    assert difference < 0.1, "what is streamed is what is made at once"


def test_a_request_is_run_as_it_is_written(pipe: fp.AnimatePipeline) -> None:
    request = fp.AnimateRequest(image=Path("me.png"), audio=Path("ben.wav"), seed=2, size=64, crop=True, blink=0.0)
    assert torch.equal(pipe.run(request).motion, pipe("me.png", "ben.wav", seed=2, blink=0.0).motion)
    for wrong, sentence in (
        ({"size": 65}, "even number"), ({"guide": {"lips": 1.0}}, "knows no 'lips'"), ({"best_of": 0}, "from 1 to 64"),
        ({"video": Path("me.mp4"), "crop": True}, "keeps its own picture"), ({"blink": 9.0}, "from 0 to 3"),
    ):  # fmt: skip
        with pytest.raises(fp.BadInput, match=sentence):
            pipe.run(fp.AnimateRequest(**{"image": Path("me.png"), "audio": Path("ben.wav"), **wrong}))


def test_keyword_arguments_of_the_pipeline_are_the_settings_of_a_request() -> None:
    inputs = {"image", "video", "drive", "speakers", "audio", "text", "voice", "checkpoint", "loop", "turns"}
    types = get_type_hints(fp.AnimateRequest)
    settings = {field.name: types[field.name] for field in fields(fp.AnimateRequest) if field.name not in inputs}
    assert get_type_hints(AnimateSettings) == settings


def test_motion_is_generated_once_and_anew_after_an_interruption() -> None:
    begun: list[int] = []

    def generate() -> Iterator[torch.Tensor]:
        begun.append(1)
        for place in range(3):
            if place == 2 and len(begun) == 1:
                raise KeyboardInterrupt
            yield torch.full((2, 30), float(place))

    track = MotionTrack(generate)
    with pytest.raises(KeyboardInterrupt):
        track.tensor()
    assert track.tensor()[:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    first, second = iter(track), iter(track)
    assert torch.equal(next(first), next(second))
    assert len(begun) == 2


def test_the_animator_of_version_0_1_gives_the_frames_of_the_pipeline(pipe: fp.AnimatePipeline) -> None:
    animator, audio = fp.Animator(pipe.generator, enhancer=pipe.enhancer), babble(0.8)
    frames = animator(FACE, audio, seed=1, size=64)
    assert frames.shape == (20, 64, 64, 3)
    assert np.array_equal(frames, np.asarray(pipe(FACE, audio, seed=1, size=64, crop=True).frames))
    motion = torch.cat(list(animator.motion(audio, seed=1)))
    live = torch.cat(list(animator.live(np.array_split(audio, 3), seed=1)))
    assert torch.allclose(motion, live, atol=0.01)
    assert np.array_equal(frames, np.stack(list(animator.draw(FACE, [motion], size=64))))


def test_precision_reaches_the_generator_the_enhancer_the_reward_and_the_retouching() -> None:
    half = fp.AnimatePipeline.from_pretrained("rl", device="cpu", dtype=torch.bfloat16)
    for network in (half.generator, half.enhancer):
        assert network is not None
        assert torch.bfloat16 in {weight.dtype for weight in network.parameters()}
    video = half("me.png", "ben.wav", size=64, crop=True, guide={"sync": 1.0})
    whole = fp.AnimatePipeline.from_pretrained("rl")("me.png", "ben.wav", size=64, crop=True, guide={"sync": 1.0})
    frames, expected = (next(iter(one.frames)).astype(int) for one in (video, whole))
    assert video.motion.dtype == torch.float32
    assert 0 < np.abs(frames - expected).mean() < 6

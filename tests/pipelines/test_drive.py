"""Claims about a clip that drives a photo: its motion, gaps, cuts, sound and frame rate, and the command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from flowportrait.commands import animate as command
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound, has_audio, read_audio
from flowportrait.media.faces import TrackedFace
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames, read_frame_rate
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.rendering.driver_motion import driver_motion, limit_driver_head, read_driver_motion
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE, Identity, MotionBasis, Pose, close_lips
from flowportrait.rendering.motion_files import read_motion
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.samples import portrait_path

PHOTO = portrait_path("astronaut")
FPS = Fraction(30)
COUNT = 45


# --- Motion ---


def moving_head(frames: int, amplitude: float = 2.0) -> torch.Tensor:
    motion = torch.zeros(frames, 30)
    motion[:, HEAD.start + 1] = amplitude * torch.sin(2 * torch.pi * torch.arange(frames) / 50)
    motion[:, LOWER_FACE.start] = torch.sin(2 * torch.pi * torch.arange(frames) / 25)
    return motion


def tracked(motion: torch.Tensor, missing: slice = slice(0, 0), shift: float = 0.0) -> TrackedFace:
    """A person who makes this motion, with another face and at another place than any portrait."""
    basis = MotionBasis.load()
    neutral = close_lips(basis.canonical * torch.tensor([1.05, 0.95, 1.0]))
    pose = Pose(torch.eye(3)[None], torch.tensor([[300.0 + shift, 200.0, 0.0]]), torch.tensor([90.0]))
    landmarks = basis.decode(motion, Identity(neutral, pose)).numpy()
    valid = np.ones(len(motion), bool)
    valid[missing] = False
    landmarks[~valid] = np.nan
    return TrackedFace(landmarks, np.where(valid[:, None], np.zeros((1, 52)), np.nan), valid, valid.astype(int))


def test_the_motion_is_that_of_the_person_whatever_the_face_and_the_place() -> None:
    motion = moving_head(200)
    for shift in (0.0, 150.0):
        read = driver_motion(tracked(motion, shift=shift), [0], 25)
        for index in (HEAD.start + 1, LOWER_FACE.start):
            assert np.corrcoef(read[:, index], motion[:, index])[0, 1] > 0.97
        assert abs(float(read[:, HEAD.start + 1].std() / motion[:, HEAD.start + 1].std()) - 1) < 0.15


def test_a_short_gap_is_bridged_and_in_a_long_one_the_portrait_rests() -> None:
    motion = moving_head(200)
    whole = driver_motion(tracked(motion), [0], 25)
    short = driver_motion(tracked(motion, slice(100, 106)), [0], 25)
    assert float((short - whole)[:, HEAD].abs().max()) < 0.5
    long = driver_motion(tracked(motion, slice(100, 150)), [0], 25)
    assert float(long[110:140].abs().max()) == 0
    usual = float(whole.diff(dim=0)[:, HEAD].abs().max())
    assert float(long.diff(dim=0)[:, HEAD].abs().max()) < usual + 2.5 * 2 / 7


def test_a_clip_that_begins_and_ends_without_a_face_eases_in_and_out() -> None:
    motion = moving_head(200)
    face = tracked(motion, slice(0, 50))
    read = driver_motion(face, [0], 25)
    assert float(read[:42].abs().max()) == 0
    assert float(read[60:, HEAD].abs().max()) > 1


def test_after_a_cut_the_motion_fades_from_that_of_the_shot_before() -> None:
    one, other = tracked(moving_head(80, 3.0)), tracked(moving_head(80, -3.0), shift=100)
    both = TrackedFace(*(np.concatenate(pair) for pair in zip(vars(one).values(), vars(other).values(), strict=True)))
    read = driver_motion(both, [0, 80], 25)
    assert float(read.diff(dim=0)[76:90, HEAD].abs().max()) < 2.5 * 6 / 7
    alone = driver_motion(other, [0], 25)
    assert np.allclose(read[90:], alone[10:], atol=1e-5)


def test_the_head_is_limited_smoothly_and_unchanged_where_it_moves_little() -> None:
    values = np.linspace(-40, 40, 801)[:, None].repeat(6, 1)
    limited = limit_driver_head(values)
    small = np.abs(values) < 2.4
    assert np.array_equal(limited[small], values[small])
    assert (np.diff(limited, axis=0) >= 0).all()
    assert np.diff(limited, axis=0).max() <= 0.1 + 1e-9
    assert np.abs(limited).max() < 9.01


# --- Videos ---


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody else with a known motion at 30 frames per second, ten frames of nothing, and a tone."""
    codec = MotionCodec(Portrait.from_image(read_photo(portrait_path("beard")), 192), retouch=False)
    frames = list(codec.decode(moving_head(COUNT, 4.0)))
    path = tmp_path_factory.mktemp("clips") / "driver.mp4"
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE * 3) / SAMPLE_RATE)).astype(np.float32)
    write_video(path, [*frames, *[np.zeros_like(frames[0])] * 10], tone, FPS)
    return path


@pytest.fixture(scope="module")
def pipeline() -> AnimatePipeline:
    return AnimatePipeline.from_pretrained("rl", denoise=False)


def test_a_photo_moves_as_the_person_in_the_clip(pipeline: AnimatePipeline, clip: Path, tmp_path: Path) -> None:
    output = pipeline.drive(PHOTO, clip, size=128, crop=True)
    assert output.frame_rate == FPS
    assert len(output.frames) == COUNT + 10
    assert any("10 of 55 frames" in note for note in output.notes)
    assert output.motion.shape == (round(55 * 25 / 30), 30)
    driver = read_driver_motion(clip)
    true = moving_head(COUNT, 4.0)
    assert np.corrcoef(driver.motion[:COUNT, HEAD.start + 1], true[:, HEAD.start + 1])[0, 1] > 0.95
    target = tmp_path / "driven.mp4"
    assert output.save(target) == COUNT + 10
    assert read_frame_rate(target).fps == FPS
    heard, original = read_audio(target), read_audio(clip)
    assert len(heard) == pytest.approx(55 / 30 * SAMPLE_RATE, abs=1100)
    middle = slice(4000, 20_000)
    assert np.corrcoef(heard[middle], original[middle])[0, 1] > 0.98
    with av.open(str(target)) as container:
        assert "movements of a person" in container.metadata["comment"]
    # The portrait's nose goes where the driver's goes, seen by the tracker.
    redrawn = read_driver_motion(target)
    assert np.corrcoef(redrawn.motion[:COUNT, HEAD.start + 1], true[:, HEAD.start + 1])[0, 1] > 0.9


def test_other_sound_replaces_that_of_the_clip_and_a_silent_clip_says_so(
    pipeline: AnimatePipeline, clip: Path, tmp_path: Path
) -> None:
    silence = pipeline.drive(PHOTO, clip, np.zeros(8000, np.float32), size=96, crop=True)
    assert silence.audio.samples.max() == 0
    assert not any("sound" in note for note in silence.notes)
    mute = tmp_path / "mute.mp4"
    write_video(mute, list(iter_frames(clip, 30))[:12], None, FPS)
    assert not has_audio(mute)
    output = pipeline.drive(PHOTO, mute, size=96, crop=True)
    assert any("no sound" in note for note in output.notes)
    assert output.save(tmp_path / "out.mp4", sign=False) == 12
    assert isinstance(output.audio, Sound)


def test_the_controls_scale_the_motion_of_the_clip(pipeline: AnimatePipeline, clip: Path) -> None:
    still = pipeline.drive(PHOTO, clip, size=96, crop=True, head_motion=0.0)
    assert float(still.motion[:, HEAD].abs().max()) == 0
    assert float(still.motion[:, LOWER_FACE].abs().max()) > 0.5


def test_a_clip_without_a_face_is_refused(pipeline: AnimatePipeline, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    write_video(empty, [np.full((96, 96, 3), 90, np.uint8)] * 8, None, FPS)
    with pytest.raises(BadInput, match=r"No face found in .*empty\.mp4"):
        pipeline.drive(PHOTO, empty)
    with pytest.raises(BadInput, match="No video file"):
        pipeline.drive(PHOTO, tmp_path / "missing.mp4")


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        ({"text": "Hello."}, "--text"), ({"video": Path("a.mp4")}, "--video"),
        ({"motion_in": Path("a.csv")}, "--motion-in"), ({"best_of": 3}, "--best-of"),
        ({"guide": {"sync": 1.0}}, "--guide"), ({"intensity": 1.2}, "--intensity"),
    ],
)  # fmt: skip
def test_what_generates_motion_does_not_go_with_a_driver(setting: dict, flag: str) -> None:
    request = AnimateRequest(image=PHOTO, drive=Path("clip.mp4"), **setting)
    with pytest.raises(BadInput, match=flag):
        request.check_inputs()


def test_a_driver_needs_a_photo_and_no_stream() -> None:
    with pytest.raises(BadInput, match="--drive"):
        AnimateRequest(image=PHOTO, drive=Path("clip.mp4")).check_stream()


def test_the_command_writes_the_video_and_its_motion(clip: Path, tmp_path: Path) -> None:
    target, motion = tmp_path / "out.mp4", tmp_path / "motion.csv"
    options = command.AnimateOptions(
        output=target, image=(PHOTO,), drive=clip, size=96, crop=True, motion_out=motion, no_provenance=True
    )
    result = command.run(options)
    assert (result["frames"], result["fps"], result["frames_without_face"]) == (55, 30.0, 10)
    assert len(read_motion(motion)) == round(55 * 25 / 30)
    with pytest.raises(BadInput, match="--text"):
        command.run(command.AnimateOptions(output=target, image=(PHOTO,), drive=clip, text="Hello."))
    with pytest.raises(BadInput, match="leave out --video"):
        command.run(command.AnimateOptions(output=target, video=(clip,), drive=clip))

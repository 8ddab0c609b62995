"""What every way to a video gave in version 0.1, from the command line to the decoded file: one photo, dubbing, a
stream, two speakers, performances as files, rewards that steer. Kept in ``tests/golden/outputs``; the pictures
were drawn anew in version 0.3, which separates hair and background and moves lids in another way.

    python -m tests.compatibility.test_golden_outputs        writes the kept results anew

Motion is compared to a tolerance, pictures by their peak signal-to-noise ratio, sound by its loudness in every 40 ms:
processors and codecs round differently. ``tools/compare_versions.py`` compares two checkouts to the bit.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from flowportrait.media.audio import read_audio
from flowportrait.media.video import iter_frames
from flowportrait.rendering.motion_files import read_motion
from tests import TESTS
from tests.compatibility.test_golden import psnr
from tests.golden_inputs import CASES, run_command, write_inputs

pytestmark = pytest.mark.slow

GOLDEN = TESTS / "golden" / "outputs"
FRAMES = (0, 13, 27)
MOTION_TOLERANCE = 0.02
"""In standard deviations of each number over real footage."""
LEAST_PSNR = 34.0
"""dB, as in ``test_golden``."""
LOUDNESS_TOLERANCE = 0.005
"""Of full scale."""


@dataclass(frozen=True)
class Output:
    """What a command printed, motion ``[T, 30]`` where it is written, frames ``[H, W, 3]``, loudness by frame."""

    printed: dict[str, Any]
    motion: np.ndarray | None
    frames: list[np.ndarray]
    loudness: np.ndarray


def make(name: str, folder: Path) -> Output:
    """Run a case in a folder with the inputs."""
    words = ["animate", *CASES[name], "--output", f"{name}.mp4", "--json"]
    stdin = (folder / "first.wav").read_bytes() if "--stream" in words else None
    result = run_command(folder, *words, stdin=stdin)
    assert result.returncode == 0, result.stderr.decode()
    printed = {key: value for key, value in json.loads(result.stdout).items() if key != "real_time_factor"}
    written = [folder / word for flag, word in pairwise(words) if flag == "--motion-out"]
    frames = [frame for number, frame in enumerate(iter_frames(folder / f"{name}.mp4")) if number in FRAMES]
    sound = read_audio(folder / f"{name}.mp4")
    pieces = sound[: len(sound) // 640 * 640].reshape(-1, 640).astype(np.float64)
    motion = read_motion(written[0]).numpy() if written else None
    return Output(printed, motion, frames, np.sqrt((pieces**2).mean(1)))


def kept(name: str) -> Output:
    """What version 0.1 gave."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    frames = [np.asarray(Image.open(GOLDEN / f"{name}_{number:02d}.jpg")) for number in FRAMES]
    printed = json.loads((GOLDEN / "printed.json").read_text())[name]
    return Output(printed, arrays.get("motion"), frames, arrays["loudness"])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    prepare(folder)
    return folder


def prepare(folder: Path) -> None:
    """The inputs, and a performance that version 0.1 wrote in both formats."""
    write_inputs(folder)
    for suffix in ("json", "csv"):
        (folder / f"kept.{suffix}").write_bytes((GOLDEN / f"performance.{suffix}").read_bytes())


@pytest.mark.parametrize("name", CASES)
def test_a_video_is_what_version_0_1_made(name: str, inputs: Path) -> None:
    found, golden = make(name, inputs), kept(name)
    assert found.printed == golden.printed
    if golden.motion is not None:
        assert found.motion is not None
        assert found.motion.shape == golden.motion.shape
        assert np.abs(found.motion - golden.motion).max() < MOTION_TOLERANCE
        assert golden.motion.std(0).mean() > 5 * MOTION_TOLERANCE  # it moves by more than that
    assert [frame.shape for frame in found.frames] == [frame.shape for frame in golden.frames]
    ratios = np.array([[psnr(frame, other) for other in golden.frames] for frame in found.frames])
    assert np.diag(ratios).min() > LEAST_PSNR
    assert (ratios.argmax(1) == np.arange(len(FRAMES))).all(), "every frame is likest to its own"
    count = min(len(found.loudness), len(golden.loudness))
    assert abs(len(found.loudness) - len(golden.loudness)) <= 1
    assert np.abs(found.loudness[:count] - golden.loudness[:count]).max() < LOUDNESS_TOLERANCE
    assert golden.loudness.max() > 10 * LOUDNESS_TOLERANCE


def test_the_cases_differ_by_more_than_the_tolerance() -> None:
    """Otherwise an option could be lost unseen."""
    moved = {name: kept(name).motion for name in ("photo", "controls", "guided", "pruned", "best")}
    names = list(moved)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            a, b = moved[one], moved[other]
            assert a is not None
            assert b is not None
            assert np.abs(a - b).max() > 10 * MOTION_TOLERANCE, (one, other)


@pytest.mark.parametrize("suffix", ["json", "csv"])
def test_a_motion_file_of_version_0_1_is_read_to_the_same_numbers(suffix: str) -> None:
    golden = np.load(GOLDEN / "performance.npz")["motion"]
    assert np.abs(read_motion(GOLDEN / f"performance.{suffix}").numpy() - golden).max() < 1e-4


def write_golden() -> None:
    """Keep what is made now; the performance files of version 0.1 stay as they are."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    printed = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        if not (GOLDEN / "performance.json").exists():
            for suffix in ("json", "csv"):
                words = ["--image", "photo.png", "--audio", "first.wav", "--seed", "3", "--crop", "--size", "64"]
                out = ["--output", "p.mp4", "--motion-out", f"performance.{suffix}"]
                assert run_command(folder, "animate", *words, *out).returncode == 0
                (GOLDEN / f"performance.{suffix}").write_bytes((folder / f"performance.{suffix}").read_bytes())
            motion = read_motion(GOLDEN / "performance.json").numpy()
            np.savez_compressed(GOLDEN / "performance.npz", motion=motion.astype(np.float32))
        prepare(folder)
        for case in CASES:
            found = make(case, folder)
            printed[case] = found.printed
            moved = {} if found.motion is None else {"motion": found.motion.astype(np.float32)}
            np.savez_compressed(GOLDEN / f"{case}.npz", loudness=found.loudness.astype(np.float32), **moved)
            for number, frame in zip(FRAMES, found.frames, strict=True):
                ok, content = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
                assert ok
                (GOLDEN / f"{case}_{number:02d}.jpg").write_bytes(content.tobytes())
    (GOLDEN / "printed.json").write_text(json.dumps(printed, indent=1) + "\n")


if __name__ == "__main__":
    write_golden()

"""A fixed photo and fixed sound through the shipped ``rl``, from the command line to the decoded file, against what is
kept in ``tests/golden``: motion to a tolerance, five frames by their peak signal-to-noise ratio.

    python -m tests.compatibility.test_golden        writes the kept results anew, for a change that is meant to be seen
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

from flowportrait.cli import main
from flowportrait.media.video import iter_frames
from flowportrait.rendering.motion_files import read_motion
from tests import TESTS
from tests.golden_inputs import speech

GOLDEN = TESTS / "golden"
SECONDS, SIZE = 2.0, 256
FRAMES = (0, 12, 24, 36, 48)
MOTION_TOLERANCE = 0.02
"""In standard deviations of each number over real footage; another seed differs by 0.56 on average."""
LEAST_PSNR = 34.0
"""dB: the same frame has 42 to 43, the video codec and JPEG between them; another frame has 27 at most."""


def render(folder: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """Motion ``[T, 30]`` and the five frames ``[256, 256, 3]`` of the video that the command writes."""
    Image.fromarray(astronaut()).save(folder / "photo.png")
    wavfile.write(folder / "speech.wav", 16_000, (32767 * speech(SECONDS)).astype(np.int16))
    words = {"--image": "photo.png", "--audio": "speech.wav", "--output": "video.mp4", "--motion-out": "motion.json"}
    arguments = [part for flag, name in words.items() for part in (flag, str(folder / name))]
    assert (
        main(
            [
                "animate",
                *arguments,
                "--checkpoint",
                "rl",
                "--style",
                "plain",
                "--seed",
                "3",
                "--crop",
                "--size",
                str(SIZE),
            ]
        )
        == 0
    )
    frames = [frame for number, frame in enumerate(iter_frames(folder / "video.mp4")) if number in FRAMES]
    return read_motion(folder / "motion.json").numpy(), frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two pictures in dB."""
    return float(10 * np.log10(255**2 / np.square(a.astype(np.float64) - b).mean()))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, list[np.ndarray]]:
    return render(tmp_path_factory.mktemp("golden"))


def test_the_shipped_generator_moves_as_it_did(result: tuple[np.ndarray, list[np.ndarray]]) -> None:
    golden = np.load(GOLDEN / "motion.npz")["motion"]
    assert result[0].shape == golden.shape == (round(25 * SECONDS), 30)
    assert np.abs(result[0] - golden).max() < MOTION_TOLERANCE
    assert golden.std(0).min() > 10 * MOTION_TOLERANCE  # it moves by much more than that


def test_the_decoded_video_looks_as_it_did(result: tuple[np.ndarray, list[np.ndarray]]) -> None:
    golden = [np.asarray(Image.open(GOLDEN / f"frame_{number:02d}.jpg")) for number in FRAMES]
    ratios = np.array([[psnr(frame, kept) for kept in golden] for frame in result[1]])
    assert ratios.shape == (5, 5)
    assert np.diag(ratios).min() > LEAST_PSNR
    # The bound can fail: every frame is likest to its own.
    assert (ratios.argmax(1) == np.arange(5)).all()


def write_golden() -> None:
    """Keep what is rendered now."""
    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        motion, frames = render(Path(folder))
    np.savez_compressed(GOLDEN / "motion.npz", motion=motion.astype(np.float32))
    for number, frame in zip(FRAMES, frames, strict=True):
        ok, content = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        assert ok
        (GOLDEN / f"frame_{number:02d}.jpg").write_bytes(content.tobytes())


if __name__ == "__main__":
    write_golden()
    sys.exit(0)

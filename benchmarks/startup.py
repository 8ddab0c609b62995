"""What the program costs before it works: processor seconds of fresh processes, and of one whole short video.

    python benchmarks/startup.py [--against CHECKOUT] [--repeats 3] [--seconds 7.5] [--quick]

Every row is a process of its own, started ``--repeats`` times in turn with the same row of CHECKOUT (another working
copy of this repository), so that both see the same machine; the least of the repeats counts, user and system time of
all its threads. ``--quick`` leaves out the video.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND = "import sys; from flowportrait.cli import main; sys.exit(main(sys.argv[1:]))"
READY = """
import sys
from pathlib import Path
from flowportrait import Animator
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
Animator.from_pretrained("rl")
Portrait.from_image(read_image(Path(sys.argv[1])), None)
"""
INPUTS = """
import sys
import numpy as np
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut
rng, time = np.random.default_rng(0), np.arange(int(16000 * float(sys.argv[3]))) / 16000
voice = 0.2 * np.sin(300 * np.pi * time) * (1 + np.sin(6 * np.pi * time)) + 0.01 * rng.standard_normal(len(time))
Image.fromarray(astronaut()).save(sys.argv[1])
wavfile.write(sys.argv[2], 16000, (32767 * voice.clip(-1, 1)).astype(np.int16))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=7.5)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        photo, speech, video = (str(Path(folder) / name) for name in ("photo.png", "speech.wav", "video.mp4"))
        subprocess.run([sys.executable, "-c", INPUTS, photo, speech, str(given.seconds)], check=True)
        rows: dict[str, list[str]] = {
            "import torch (for comparison)": ["-c", "import torch"],
            "import flowportrait": ["-c", "import flowportrait"],
            "flowportrait --help": ["-c", COMMAND, "--help"],
            "flowportrait animate --help": ["-c", COMMAND, "animate", "--help"],
            "flowportrait recipes": ["-c", COMMAND, "recipes"],
            "flowportrait policies": ["-c", COMMAND, "policies"],
            "flowportrait portraitbench --list": ["-c", COMMAND, "portraitbench", "--list"],
            "from flowportrait import Animator": ["-c", "from flowportrait import Animator"],
            "Animator and a portrait ready": ["-c", READY, photo],
        }
        if not given.quick:
            words = ["animate", "--image", photo, "--audio", speech, "--output", video]
            rows[f"animate, {given.seconds:g} s of speech"] = ["-c", COMMAND, *words]
        print(f"{'processor seconds':36}" + ("   before      now    ratio" if given.against else "      now"))
        for name, arguments in rows.items():
            print(f"{name:36}" + row(arguments, here, given.against, given.repeats), flush=True)


def row(arguments: list[str], here: Path, against: Path | None, repeats: int) -> str:
    """The figures of one row."""
    ours, theirs = [], []
    for _ in range(repeats):
        if against is not None:
            theirs.append(spent(arguments, against.resolve()))
        ours.append(spent(arguments, here))
    if not theirs:
        return f"{min(ours):9.2f}"
    return f"{min(theirs):9.2f}{min(ours):9.2f}{min(theirs) / min(ours):9.1f}"


def spent(arguments: list[str], checkout: Path) -> float:
    """Processor seconds of a fresh interpreter with the package of ``checkout``."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()

"""Whether two checkouts do the same, to the bit, and how fast the one is by the other.

    python tools/compare_versions.py --against CHECKOUT [--rounds 6] [--seconds 6] [--only photo nft live …] [--list]

Both are driven from the command line, in processes of their own with ``CHECKOUT/src`` and ``CHECKOUT/weights`` on
``PYTHONPATH``, and compared by the files that they write, so that modules may have moved between them:

    videos     decoded frames and sound, motion files, and what is printed; not the bytes of a video, whose signature
               has a date. x264 does not always give the same bits for the same pictures (of some sizes): a video
               that differs is made again by both, up to four times in all, and agrees if two of them do
    training   two iterations of five recipes: every number of every record but the seconds (those of the second follow
               from the weights after the first), the delivered checkpoint, and the live weights of the state
    speed      ``animate`` and live frames, one after the other in rounds: ratio of this checkout's time to the other's,
               with the interval of 95 % that resampling the rounds gives; below 1 this one is faster. Processor
               seconds are told on a busy machine too

Exit code 0: everything agrees and nothing is slower than ``--slack``; 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np
from safetensors.numpy import load_file
from scipy.stats import norm
from scipy.stats import t as student
from skimage.data import astronaut

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE), str(HERE / "src"), str(HERE / "weights")]

from tests.golden_inputs import CASES, DATA, RECIPES, run_command, training_words, write_inputs, write_speech  # noqa: E402

SAME = ""
"""What a comparison says when nothing differs."""
ITERATIONS = 2
ATTEMPTS = 4
UNTIMED = ("real_time_factor",)
RESAMPLED = 10_000


@dataclass(frozen=True)
class Version:
    """A checkout, and the folder that it writes into."""

    name: str
    checkout: Path
    folder: Path

    def run(self, words: Sequence[str], folder: Path | None = None, stdin: bytes | None = None) -> bytes:
        """Standard output of a command that has to succeed."""
        source = os.pathsep.join(str(self.checkout / folder) for folder in ("src", "weights", "."))
        done = run_command(folder or self.folder, *words, stdin=stdin, source=source)
        if done.returncode:
            raise SystemExit(f"{self.name}: flowportrait {' '.join(words)}\n{done.stderr.decode()[-2000:]}")
        return done.stdout


def main() -> int:
    """Compare, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another working copy of this repository")
    parser.add_argument("--rounds", type=int, default=6, help="of the timings; 0 leaves them out (default 6)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of speech that is timed (default 6)")
    parser.add_argument("--slack", type=float, default=0.02, help="how much slower still passes (default 0.02)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of what --list lists (default: all)")
    parser.add_argument("--list", action="store_true", help="print what is compared, and end")
    options = parser.parse_args()
    names = [*CASES, *RECIPES, *TIMED]
    if options.list:
        print("\n".join(names))
        return 0
    wanted = options.only or names
    if options.against is None or not (options.against / "src" / "flowportrait").is_dir():
        parser.error("--against needs a checkout: a folder with src/flowportrait in it.")
    if unknown := sorted(set(wanted) - set(names)):
        parser.error(f"--only knows no {unknown[0]!r}: choose from {', '.join(names)}.")
    with tempfile.TemporaryDirectory() as folder:
        versions = [
            Version(name, checkout.resolve(), Path(folder) / name)
            for name, checkout in (("before", options.against), ("now", HERE))
        ]
        for version in versions:
            prepare(version.folder, options.seconds)
        good = True
        for name in wanted:
            if name in TIMED:
                continue
            difference = (compare_videos if name in CASES else compare_runs)(name, *versions)
            good &= difference == SAME
            print(f"{name:18}{'same to the bit' if difference == SAME else 'DIFFERS: ' + difference}", flush=True)
        if options.rounds:
            good &= print_speed([name for name in wanted if name in TIMED], versions, options.rounds, options.slack)
    return 0 if good else 1


def prepare(folder: Path, seconds: float) -> None:
    """The same inputs for both."""
    folder.mkdir()
    write_inputs(folder)
    write_video(folder / "video.mp4")
    write_speech(folder / "timed.wav", seconds)
    for suffix in ("json", "csv"):
        shutil.copy(HERE / "tests" / "golden" / "outputs" / f"performance.{suffix}", folder / f"kept.{suffix}")


def write_video(path: Path) -> None:
    """A face that sways, of a size for which x264 is repeatable."""
    face = astronaut()[:256, 90:346]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width = face.shape[:2]
        stream.pix_fmt = "yuv420p"
        for number in range(20):
            picture = np.roll(face, abs(number % 16 - 8), axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def compare_videos(name: str, before: Version, now: Version) -> str:
    """The first difference of a case of ``animate``, in words."""
    made: tuple[list[Path], list[Path]] = ([], [])
    difference = SAME
    for attempt in range(ATTEMPTS):
        printed = [make_video(name, version) for version in (before, now)]
        if printed[0] != printed[1]:
            return f"printed {printed[0]} and {printed[1]}"
        for word in CASES[name]:
            if Path(word).stem == name and (before.folder / word).read_bytes() != (now.folder / word).read_bytes():
                return f"the motion in {word}"
        for version, paths in zip((before, now), made, strict=True):
            paths.append((version.folder / f"{name}.mp4").rename(version.folder / f"{name}-{attempt}.mp4"))
        for one, other in product(*made):
            difference = first_difference("frame", frames(one), frames(other))
            difference = difference or first_difference("piece of sound", sound(one), sound(other))
            if difference == SAME:
                return SAME
    return difference


def make_video(name: str, version: Version) -> dict[str, Any]:
    """Run a case of ``animate``; returns what it printed."""
    words = ["animate", *CASES[name], "--output", f"{name}.mp4", "--json"]
    stdin = (version.folder / "first.wav").read_bytes() if "--stream" in words else None
    result = json.loads(version.run(words, stdin=stdin))
    return {key: value for key, value in result.items() if key not in UNTIMED}


def frames(path: Path) -> Iterator[np.ndarray]:
    """Decoded pictures, in RGB."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


def sound(path: Path) -> Iterator[np.ndarray]:
    """Decoded sound, packet by packet."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0) if container.streams.audio else ():
            yield frame.to_ndarray()


def first_difference(what: str, before: Iterator[np.ndarray], now: Iterator[np.ndarray]) -> str:
    """Where two series of arrays differ first, in words."""
    for number, (one, other) in enumerate(zip_longest(before, now)):
        if one is None or other is None:
            return f"{number} {what}s in one, more in the other"
        if one.shape != other.shape:
            return f"{what} {number} has the shapes {one.shape} and {other.shape}"
        if not np.array_equal(one, other):
            return f"{what} {number}, by {np.abs(one.astype(np.float64) - other).max():.4g} at most"
    return SAME


def compare_runs(recipe: str, before: Version, now: Version) -> str:
    """The first difference of a run of a recipe, in words."""
    runs = []
    for version in (before, now):
        output = version.folder / f"run-{recipe}"
        version.run(training_words(recipe, output, ITERATIONS), DATA)
        runs.append(output)
    records = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    return (
        compare_records(*records)
        or compare_tensors("checkpoint", *(load_file(run / "checkpoint" / "model.safetensors") for run in runs))
        or compare_tensors("live weights", *map(live_weights, runs))
    )


def compare_records(before: Sequence[dict[str, float]], now: Sequence[dict[str, float]]) -> str:
    """The first number that differs, in words. A metric may have another name, but not another value."""
    if len(before) != len(now):
        return f"{len(before)} and {len(now)} records"
    for number, (one, other) in enumerate(zip(before, now, strict=True), 1):
        old, new = ({key: v for key, v in record.items() if "seconds" not in key} for record in (one, other))
        for key in old.keys() & new.keys():
            if repr(old[key]) != repr(new[key]):
                return f"{key} of iteration {number}: {old[key]!r} and {new[key]!r}"
        renamed = Counter(repr(old[key]) for key in old.keys() - new.keys())
        if lost := renamed - Counter(repr(new[key]) for key in new.keys() - old.keys()):
            gone = next(key for key in old.keys() - new.keys() if repr(old[key]) in lost)
            return f"{gone} of iteration {number}, {old[gone]!r}, is missing, by this name and any other"
    return SAME


def live_weights(run: Path) -> dict[str, np.ndarray]:
    """The weights that learn, from a run's last state; empty where a state has another layout."""
    found: dict[str, np.ndarray] = {}
    states = sorted((run / "state").iterdir())
    for file in sorted(states[-1].rglob("*.safetensors")) if states else ():
        found |= {name: value for name, value in load_file(file).items() if name.startswith("live/")}
    return found


def compare_tensors(what: str, before: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> str:
    """The first tensor that differs, in words; nothing where one side has none."""
    if not before or not now:
        return SAME
    if before.keys() != now.keys():
        return f"{what}: {min(before.keys() ^ now.keys())} is in one alone"
    for name, value in before.items():
        if value.dtype != now[name].dtype or value.tobytes() != now[name].tobytes():
            return f"{what}: {name}"
    return SAME


def animate(version: Version) -> dict[str, float]:
    """Times of one video."""
    words = ["animate", "--image", "photo.png", "--audio", "timed.wav", "--crop", "--output", "timed.mp4", "--json"]
    return timed(version, words, None)


def live(version: Version) -> dict[str, float]:
    """Times of one stream that gets its sound at once."""
    words = ["animate", "--image", "photo.png", "--stream", "--crop", "--output", "timed.mp4", "--json"]
    return timed(version, words, (version.folder / "timed.wav").read_bytes())


def timed(version: Version, words: Sequence[str], stdin: bytes | None) -> dict[str, float]:
    """Processor seconds of the whole process, its seconds, and the seconds that making the video took by itself."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(version.run(words, stdin=stdin))
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "processor seconds": processor,
        "seconds": ended - began,
        "seconds after start-up": result["real_time_factor"] * result["seconds"],
    }


TIMED: dict[str, Callable[[Version], dict[str, float]]] = {"animate": animate, "live": live}


def print_speed(names: Sequence[str], versions: Sequence[Version], rounds: int, slack: float) -> bool:
    """Print every ratio with its interval; returns whether none is surely slower than ``1 + slack``."""
    good = True
    for name in names:
        found: dict[str, list[dict[str, float]]] = {version.name: [] for version in versions}
        for number in range(rounds):
            # Whoever comes second finds the machine as the first left it.
            for version in versions if number % 2 else reversed(versions):
                found[version.name].append(TIMED[name](version))
        for measure in found["now"][0]:
            before, now = (np.array([one[measure] for one in found[key]]) for key in ("before", "now"))
            ratio, low, high = ratio_with_interval(before, now)
            verdict = "slower" if low > 1 + slack else "as fast" if high <= 1 + slack else "not told: more rounds"
            good &= low <= 1 + slack
            print(
                f"{name + ', ' + measure:34}{before.mean():7.2f} s before {now.mean():7.2f} s now   "
                f"ratio {ratio:.3f} ({low:.3f} to {high:.3f})   {verdict}",
                flush=True,
            )
    return good


def ratio_with_interval(before: Any, now: Any, seed: int = 0) -> tuple[float, float, float]:
    """Geometric mean over rounds of now / before, and its interval of 95 % by resampling rounds, which is widened as
    few rounds need it (expanded percentiles: Hesterberg, 2015, section 4.3)."""
    logs = np.log(np.asarray(now) / np.asarray(before))
    if (count := len(logs)) < 2:
        return float(np.exp(logs.mean())), 0.0, float("inf")
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLED, count))
    tail = float(norm.cdf((count / (count - 1)) ** 0.5 * student.ppf(0.025, count - 1)))
    low, high = np.quantile(logs[drawn].mean(1), (tail, 1 - tail))
    return float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high))


if __name__ == "__main__":
    sys.exit(main())

"""From a clone to one's own video, as docs/first-video.md tells it: its commands, in order, in a fresh clone.

    python benchmarks/newcomer.py PHOTO SPEECH [--repository .]

``make install``, then every ``flowportrait`` command of the page with PHOTO and SPEECH under the names that it uses.
Wall-clock and processor time of each; packages come from wherever pip is told to look, which is most of the first.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

PAGE = Path("docs") / "first-video.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--repository", default=".")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        home = Path(place) / "flowportrait"
        passed("git clone", ["git", "clone", "--quiet", given.repository, str(home)], Path(place))
        shutil.copy(given.photo, home / "photo.jpg")
        shutil.copy(given.speech, home / "speech.wav")
        total = 0.0
        for line in steps((home / PAGE).read_text()):
            begin = "source .venv/bin/activate && " if line.startswith("flowportrait") else ""
            total += passed(line, ["bash", "-c", begin + line], home)
        print(f"{total:7.0f} s in all")
        video = home / "talking.mp4"
        print(f"{video.name}: {video.stat().st_size / 1024:.0f} KB")


def steps(page: str) -> list[str]:
    """What the page says to run, from the first line of code to the last command on one's own photo."""
    lines = [line for block in re.findall(r"```bash\n(.*?)```", page, re.S) for line in block.splitlines()]
    return [re.split(r"\s+#", line)[0] for line in lines if line.startswith(("make install", "flowportrait "))]


def passed(name: str, command: list[str], folder: Path) -> float:
    """Run, print what it took, return the seconds."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:7.0f} s, {spent:5.0f} s of processor   {name}", flush=True)
    return seconds


if __name__ == "__main__":
    main()

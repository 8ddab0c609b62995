"""How long one waits in the studio: from the wish to the first frame, and how fast the rest follows.

    python benchmarks/studio.py PHOTO SPEECH [--repeats 3]

A wish is what the page sends: a photo, and recorded speech or a text; the theatre draws it at 512 px into a file that
can be watched meanwhile. Seconds of wall-clock and of this process (on a machine that does other things, the latter
says more); the first wish of a process loads everything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from flowportrait.media.video import FPS
from flowportrait.studio.limits import Limits
from flowportrait.studio.live import Theatre
from flowportrait.studio.wish import Wish

TEXT = "Good morning. I read whatever you type, and you watch while I am still being drawn."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        theatre = Theatre(Path(folder), Limits())
        for take in range(given.repeats):
            for name, wish in (("speech", Wish(given.photo, given.speech)), ("text", Wish(given.photo, text=TEXT))):
                print(f"{name:7} {'first wish' if take == 0 else 'again':10} {watched(theatre, wish)}", flush=True)
        theatre.close()


def watched(theatre: Theatre, wish: Wish) -> str:
    """What a wish took."""
    began = time.process_time()
    show = theatre.put_on(wish)
    while show.first is None and not show.done.is_set():
        time.sleep(0.005)
    first = time.process_time() - began
    show.done.wait()
    spent, seconds = time.process_time() - began, show.frames / FPS
    if show.trouble or show.first is None or show.ended is None:
        raise SystemExit(show.trouble)
    whole = show.ended - show.asked
    begun = f"first frame after {show.first:.1f} s ({first:.1f} s of processor)"
    return f"{begun}; {seconds:.1f} s of video in {whole:.1f} s ({spent:.1f} s of processor)"


if __name__ == "__main__":
    main()

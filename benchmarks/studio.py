"""How long one waits in the studio: from the request to the first frame, and how fast the rest follows.

    python benchmarks/studio.py PHOTO SPEECH [--repeats 3]

A request is what the page sends: a photo, and recorded speech or a text; the queue draws it at 512 px into a file that
can be watched meanwhile. Seconds of wall-clock and of this process (on a machine that does other things, the latter
says more); the first request of a process loads everything.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from flowportrait.media.video import FPS
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.studio.render_queue import RenderQueue, StudioLimits

TEXT = "Good morning. I read whatever you type, and you watch while I am still being drawn."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        queue = RenderQueue(Path(folder), StudioLimits())
        requests = {
            "speech": AnimateRequest(image=given.photo, audio=given.speech, crop=True),
            "text": AnimateRequest(image=given.photo, text=TEXT, crop=True),
        }
        for repeat in range(given.repeats):
            for name, request in requests.items():
                order = "first request" if repeat == 0 else "again"
                print(f"{name:7} {order:13} {time_request(queue, request)}", flush=True)
        queue.close()


def time_request(queue: RenderQueue, request: AnimateRequest) -> str:
    """How long a request took."""
    began = time.process_time()
    job = queue.submit(request)
    while job.first_frame is None and not job.done.is_set():
        time.sleep(0.005)
    first = time.process_time() - began
    job.done.wait()
    spent, seconds = time.process_time() - began, job.frames / FPS
    if job.error or job.first_frame is None or job.ended is None:
        raise SystemExit(job.error)
    whole = job.ended - job.submitted
    begun = f"first frame after {job.first_frame:.1f} s ({first:.1f} s of processor)"
    return f"{begun}; {seconds:.1f} s of video in {whole:.1f} s ({spent:.1f} s of processor)"


if __name__ == "__main__":
    main()

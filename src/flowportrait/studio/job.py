"""One video in the studio's queue: its state, how far it is, and its bytes while it grows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.pipelines.request import AnimateRequest

FPS = 25
"""Frames per second of a drawn video; ``media.video.FPS``, which imports more than the page needs to appear."""
_BLOCK_BYTES = 1 << 16
_POLL_SECONDS = 0.05
_FEW_FRAMES = 5
"""Frames before which the remaining time is not estimated."""
DRAWING = "drawing"
"""Name of the stage in which frames are drawn."""


@dataclass
class RenderJob:
    """One video in the queue."""

    path: Path
    request: AnimateRequest
    owner: str = ""
    """The browser tab that requested it."""
    submitted: float = field(default_factory=time.monotonic)
    first_frame: float | None = None
    """Seconds from the request to the first frame."""
    frames: int = 0
    total_frames: int | None = None
    """Frames that the video will have; estimated while a text is still being spoken."""
    ended: float | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    """Sentences that the user should read."""
    cut: threading.Event = field(default_factory=threading.Event)
    """Set if the speech was longer than a video may be."""
    done: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    started: bool = False
    stopped: bool = False
    """Whether somebody stopped it."""
    live: bool = True
    """Whether it can be watched while it is drawn."""
    stage: str = ""
    """What is being done, such as "following the face"."""
    stage_done: int = 0
    stage_total: int | None = None
    stage_began: float = 0.0

    @property
    def name(self) -> str:
        """The id of the job."""
        return self.path.stem

    @property
    def state(self) -> str:
        """One of waiting, preparing, drawing, done, stopped and failed."""
        if self.error:
            return "failed"
        if self.stopped:
            return "stopped"
        if self.done.is_set():
            return "done"
        return "waiting" if not self.started else "preparing" if self.first_frame is None else "drawing"

    def status_text(self) -> str:
        """Return the state of the job as a sentence."""
        if self.error:
            return self.error
        if self.first_frame is None:
            return "Stopped before it began." if self.stopped else "Waiting …" if not self.started else "Beginning …"
        seconds = (self.ended or time.monotonic()) - self.submitted
        drawn = (
            f"{self.frames / FPS:.1f} s of video in {seconds:.1f} s, the first frame after {self.first_frame:.1f} s."
        )
        rest = " The speech is longer than a video may be: the rest was left out." if self.cut.is_set() else ""
        state = "Stopped" if self.stopped else "Done" if self.done.is_set() else "Drawing"
        return f"{state}: {drawn}{rest}"

    def has_video(self) -> bool:
        """Return whether there is a file to play."""
        return self.frames > 0 and self.path.is_file()

    def fraction(self) -> float | None:
        """Return how much of the current stage is done, from 0 to 1; None if that is not known."""
        if self.done.is_set():
            return 1.0
        if not self.stage_total:
            return None
        return min(self.stage_done / self.stage_total, 0.99)

    def seconds_left(self) -> float | None:
        """Return an estimate of the seconds until the current stage ends; None if too little is known."""
        if self.done.is_set() or not self.stage_total or self.stage_done < _FEW_FRAMES:
            return None
        spent = time.monotonic() - self.stage_began
        return max(0.0, spent / self.stage_done * (self.stage_total - self.stage_done))

    def begin_stage(self, name: str, total: int | None) -> None:
        """Start to count the steps of a stage."""
        self.stage, self.stage_total, self.stage_done, self.stage_began = name, total, 0, time.monotonic()

    def count_frame(self) -> None:
        """Count a drawn frame."""
        if self.first_frame is None:
            self.first_frame = time.monotonic() - self.submitted
        self.frames += 1

    def follow(self) -> Iterator[bytes]:
        """Yield the bytes of the file from the beginning while it grows, until it is complete."""
        for data in self._blocks():
            if data:
                yield data
            else:
                time.sleep(_POLL_SECONDS)

    async def follow_async(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the file while it grows, in an event loop, so that waiting occupies no thread."""
        for data in self._blocks():
            if data:
                yield data
            else:
                await asyncio.sleep(_POLL_SECONDS)

    def _blocks(self) -> Iterator[bytes]:
        """Yield the bytes of the file, and empty bytes whenever the next ones are not there yet."""
        while not self.path.exists() and not self.done.is_set():
            yield b""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            while True:
                over = self.done.is_set()
                if data := file.read(_BLOCK_BYTES):
                    yield data
                elif over:
                    return
                else:
                    yield b""


class JobStopped(Exception):
    """Somebody stopped the job whose progress is shown."""


class JobProgress:
    """The progress display of a job (see ``pipelines.inputs.ProgressDisplay``); it also ends the job in time."""

    def __init__(self, job: RenderJob, minutes: float) -> None:
        self.job, self.minutes = job, minutes
        self._deadline = time.monotonic() + 60 * minutes

    def progress(self, items: Iterable[Any], total: int | None, doing: str = DRAWING) -> Iterator[Any]:
        """Yield the items and count them.

        Raises:
            JobStopped: somebody stopped the job.
            BadInput: the job takes too long.
        """
        self.job.begin_stage(doing, total)
        for item in items:
            self.check()
            yield item
            self.job.stage_done += 1
            if doing == DRAWING:
                self.job.count_frame()

    def waiting(self, doing: str) -> AbstractContextManager[None]:
        """Name the stage of the job."""
        self.check()
        self.job.begin_stage(doing, None)
        return nullcontext()

    def check(self) -> None:
        """Check that the job may go on.

        Raises:
            JobStopped: somebody stopped it.
            BadInput: it takes too long.
        """
        if self.job.stop.is_set():
            raise JobStopped
        if time.monotonic() > self._deadline:
            raise BadInput(f"Stopped after {self.minutes:g} minutes of drawing: ask for less.")

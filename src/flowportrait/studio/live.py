"""Videos that are watched while they are drawn: one is drawn at a time, into a file that grows.

wish ─► queue ─► one worker ─► folder/ID.mp4 (a fragment every half second) ─► GET /live/ID.mp4 follows the file
                                         └─► when it is done, GET /signed/ID.mp4: an ordinary mp4 with a manifest
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch

from flowportrait.animator import Animator
from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound
from flowportrait.media.portrait import Portrait
from flowportrait.media.remux import remux
from flowportrait.media.stream import write_stream
from flowportrait.media.tape import Tape
from flowportrait.media.video import FPS
from flowportrait.provenance.credential import find_credential
from flowportrait.provenance.manifest import sign
from flowportrait.provenance.origin import Origin
from flowportrait.provenance.watermark import marked
from flowportrait.steered import steering_by
from flowportrait.studio.limits import Limits
from flowportrait.studio.storage import prune
from flowportrait.studio.wish import Wish
from flowportrait.web_server import without_paths

_BLOCK = 1 << 16
_POLL = 0.05
_LOG = logging.getLogger(__name__)


@dataclass
class Show:
    """One video on its way."""

    path: Path
    wish: Wish
    owner: str = ""
    """The browser tab that asked for it."""
    asked: float = field(default_factory=time.monotonic)
    first: float | None = None
    """Seconds from the wish to the first frame."""
    frames: int = 0
    ended: float | None = None
    trouble: str | None = None
    cut: threading.Event = field(default_factory=threading.Event)
    """Set where there was more to say than a video may last."""
    done: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    begun: bool = False
    stopped: bool = False
    """Whether it ended because somebody stopped it."""

    @property
    def name(self) -> str:
        """Its id."""
        return self.path.stem

    def told(self) -> str:
        """How it stands, in a sentence."""
        if self.trouble:
            return self.trouble
        if self.first is None:
            return "Stopped before it began." if self.stopped else "Waiting …" if not self.begun else "Beginning …"
        seconds = (self.ended or time.monotonic()) - self.asked
        drawn = f"{self.frames / FPS:.1f} s of video in {seconds:.1f} s, the first frame after {self.first:.1f} s."
        rest = " The rest of what is said was left out: it is too long." if self.cut.is_set() else ""
        state = "Stopped" if self.stopped else "Done" if self.done.is_set() else "Drawing"
        return f"{state}: {drawn}{rest}"

    def follow(self) -> Iterator[bytes]:
        """The file's bytes from the beginning, as they come, until it is complete."""
        for data in self._blocks():
            if data:
                yield data
            else:
                time.sleep(_POLL)

    async def follow_async(self) -> AsyncIterator[bytes]:
        """The same in an event loop: who waits for a video occupies no thread."""
        for data in self._blocks():
            if data:
                yield data
            else:
                await asyncio.sleep(_POLL)

    def _blocks(self) -> Iterator[bytes]:
        """The file's bytes; nothing wherever more is still to come."""
        while not self.path.exists() and not self.done.is_set():
            yield b""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            while True:
                over = self.done.is_set()
                if data := file.read(_BLOCK):
                    yield data
                elif over:
                    return
                else:
                    yield b""


class Theatre:
    """Draws wishes one after the other into a folder."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limits = folder, limits
        self.shows: dict[str, Show] = {}
        self._worker = ThreadPoolExecutor(1, "theatre")
        self._lock, self._signing = threading.Lock(), threading.Lock()

    def put_on(self, wish: Wish, owner: str = "") -> Show:
        """Check a wish and queue it; ``owner``: the browser tab that it comes from.

        Raises:
            BadInput: it cannot be fulfilled, or too many wait.
        """
        self._check_room()
        show = Show(self.folder / f"{uuid.uuid4().hex}.mp4", wish, owner)
        portrait, sound = wish.portrait(), wish.sound(self.limits, show.cut.set)
        with self._lock:
            self._check_room()
            self.shows[show.name] = show
        self._worker.submit(self._draw, show, portrait, sound)
        return show

    def stop(self, owner: str | None = None) -> None:
        """Stop the videos that ``owner`` asked for, or all of them; what was drawn stays."""
        with self._lock:
            for show in self.shows.values():
                if show.done.is_set() or owner not in (None, show.owner):
                    continue
                show.stop.set()
                if not show.begun:
                    show.stopped, show.ended = True, time.monotonic()
                    show.done.set()

    def close(self) -> None:
        """Stop everything and wait."""
        self.stop()
        self._worker.shutdown(cancel_futures=True)

    def signed(self, name: str) -> Path | None:
        """The finished video as an ordinary mp4 with tags and signed manifest, made when it is first asked for; None
        where there is no such video.

        Raises:
            BadInput: it cannot be signed.
        """
        show = self.shows.get(name)
        if show is None or not show.done.is_set() or not show.path.is_file() or not show.frames:
            return None
        target = self.folder / f"{name}.signed.mp4"
        with self._signing:
            if not target.is_file():
                origin, partial = Origin("portrait"), self.folder / f".{name}.mp4"
                try:
                    with av.open(str(show.path.absolute())) as drawn:
                        remux(drawn, drawn.streams.get(video=0, audio=0), partial, origin.tags())
                    sign(partial, origin, find_credential())
                    os.replace(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
        return target

    def tidy(self) -> None:
        """Delete videos that are too old or too many, and forget them."""
        under_way = [show.path for show in self.shows.values() if not show.done.is_set()]
        prune(self.folder, self.limits.hours, self.limits.kept_megabytes, under_way)
        now = time.monotonic()
        with self._lock:
            for name, show in list(self.shows.items()):
                if show.ended is not None and now - show.ended > 3600 and not show.path.exists():
                    del self.shows[name]

    def _check_room(self) -> None:
        if sum(not show.done.is_set() for show in self.shows.values()) > self.limits.waiting:
            raise BadInput("Too many videos are waiting: wait for one, or stop it.")

    def _draw(self, show: Show, portrait: Portrait, sound: Iterator[Sound]) -> None:
        with self._lock:
            if show.done.is_set():
                return
            show.begun = True
        try:
            torch.set_num_threads(1)
            tape = Tape(sound)
            wish, performer = show.wish, animator(show.wish.checkpoint)
            steering = steering_by(performer.generator, wish.guide, name=wish.checkpoint)
            motion = performer.live(tape, seed=wish.seed, controls=wish.controls, steering=steering, portrait=portrait)
            frames = marked(Animator.show(portrait, motion, crop=not wish.whole, live=True))
            # Unbuffered: what is written can be watched.
            with show.path.open("wb", buffering=0) as file:
                write_stream(file, self._timed(show, frames), tape.frame, tags=Origin("portrait").tags())
        except BadInput as error:
            show.trouble = without_paths(str(error))
        except Exception as error:
            # Nobody asks for the result of this call: what is raised here would be lost.
            _LOG.exception("The video %s could not be drawn", show.name)
            why = without_paths(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
            show.trouble = f"Drawing failed ({why}): the terminal has more."
        finally:
            show.ended = time.monotonic()
            show.done.set()
            self.tidy()

    def _timed(self, show: Show, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        last = time.monotonic() + 60 * self.limits.minutes
        for frame in frames:
            show.first = show.first or time.monotonic() - show.asked
            yield frame
            show.frames += 1
            if show.stop.is_set():
                show.stopped = True
                return
            if time.monotonic() > last:
                show.trouble = f"Stopped after {self.limits.minutes:g} minutes of drawing: ask for less."
                return


@lru_cache(maxsize=2)
def animator(checkpoint: str) -> Animator:
    """A checkpoint, kept while it is used."""
    return Animator.from_pretrained(checkpoint)

"""Videos that are watched while they are drawn: one is drawn at a time, into a file that grows.

    wish ─► queue ─► one worker ─► folder/ID.mp4 (a fragment every half second) ─► GET /live/ID.mp4 follows the file
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from flowportrait.animator import Animator
from flowportrait.errors import BadInput
from flowportrait.media.portrait import Portrait
from flowportrait.media.stream import write_stream
from flowportrait.media.tape import Tape
from flowportrait.media.video import FPS
from flowportrait.provenance.origin import Origin
from flowportrait.provenance.watermark import marked
from flowportrait.steered import steering_by
from flowportrait.studio.limits import Limits
from flowportrait.studio.wish import Wish

_BLOCK = 1 << 16
_POLL = 0.05


@dataclass
class Show:
    """One video on its way."""

    path: Path
    wish: Wish
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

    @property
    def name(self) -> str:
        """Its id."""
        return self.path.stem

    def told(self) -> str:
        """How it stands, in a sentence."""
        if self.trouble:
            return self.trouble
        if self.first is None:
            return "Beginning …"
        seconds = (self.ended or time.monotonic()) - self.asked
        drawn = f"{self.frames / FPS:.1f} s of video in {seconds:.1f} s, the first frame after {self.first:.1f} s."
        rest = " The rest of what is said was left out: it is too long." if self.cut.is_set() else ""
        return f"{'Done' if self.done.is_set() else 'Drawing'}: {drawn}{rest}"

    def follow(self) -> Iterator[bytes]:
        """The file's bytes from the beginning, as they come, until it is complete."""
        while not self.path.exists() and not self.done.is_set():
            time.sleep(_POLL)
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
                    time.sleep(_POLL)


class Theatre:
    """Draws wishes one after the other into a folder."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limits = folder, limits
        self.shows: dict[str, Show] = {}
        self._worker = ThreadPoolExecutor(1, "theatre")

    def put_on(self, wish: Wish) -> Show:
        """Check a wish and queue it.

        Raises:
            BadInput: it cannot be fulfilled, or too many wait.
        """
        if sum(not show.done.is_set() for show in self.shows.values()) > self.limits.waiting:
            raise BadInput("Too many videos are waiting: wait for one, or stop it.")
        show = Show(self.folder / f"{uuid.uuid4().hex}.mp4", wish)
        portrait, sound = wish.portrait(), wish.sound(self.limits, show.cut.set)
        self.shows[show.name] = show
        self._worker.submit(self._draw, show, portrait, sound)
        return show

    def stop(self) -> None:
        """Stop the video under way and those waiting; what was drawn stays."""
        for show in self.shows.values():
            show.stop.set()

    def close(self) -> None:
        """Stop and wait."""
        self.stop()
        self._worker.shutdown(cancel_futures=True)

    def _draw(self, show: Show, portrait: Portrait, sound: Iterator[np.ndarray]) -> None:
        try:
            torch.set_num_threads(1)
            tape = Tape(sound)
            wish, performer = show.wish, animator(show.wish.checkpoint)
            steering = steering_by(performer.generator, wish.guide, name=wish.checkpoint)
            motion = performer.live(
                tape, seed=wish.seed, controls=wish.controls, steering=steering, portrait=portrait
            )
            frames = marked(Animator.show(portrait, motion, live=True))
            # Unbuffered: what is written can be watched.
            with show.path.open("wb", buffering=0) as file:
                write_stream(file, self._timed(show, frames), tape.frame, tags=Origin("portrait").tags())
        except BadInput as error:
            show.trouble = str(error)
        except Exception as error:
            show.trouble = f"Drawing failed ({type(error).__name__}: {error}): the terminal has more."
            raise
        finally:
            show.ended = time.monotonic()
            show.done.set()

    def _timed(self, show: Show, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        last = time.monotonic() + 60 * self.limits.minutes
        for frame in frames:
            show.first = show.first or time.monotonic() - show.asked
            yield frame
            show.frames += 1
            if show.stop.is_set():
                return
            if time.monotonic() > last:
                show.trouble = f"Stopped after {self.limits.minutes:g} minutes of drawing: ask for less."
                return


@lru_cache(maxsize=2)
def animator(checkpoint: str) -> Animator:
    """A checkpoint, kept while it is used."""
    return Animator.from_pretrained(checkpoint)

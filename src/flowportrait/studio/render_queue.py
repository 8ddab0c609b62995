"""Videos that are drawn one after the other and watched meanwhile.

How much one page may ask for.

Old files go: a folder is bounded by age and by size.

A photo as the studio takes it: the portrait in it, and what its owner should know before anything is drawn.

Videos that are watched while they are drawn: one is drawn at a time, into a file that grows.

request ─► queue ─► one worker ─► folder/ID.mp4 (a fragment every half second) ─► GET /live/ID.mp4 follows the file
                                            └─► when it is done, GET /signed/ID.mp4: an ordinary mp4 with a manifest
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound, read_sound
from flowportrait.media.faces import extent
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import mouth_covered
from flowportrait.media.portrait import Portrait, find_faces
from flowportrait.media.video import FPS
from flowportrait.media.write_video import remux
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo, synthesize_speech
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.provenance.manifest import Origin, find_credential, sign
from flowportrait.speech.text_to_speech import ahead
from flowportrait.web_server import without_paths


@dataclass(frozen=True)
class Limits:
    seconds: float = 60.0
    """Of speech in a video; the rest is cut off, which the page says."""
    letters: int = 1500
    """Of text."""
    megabytes: int = 25
    """Of an uploaded file."""
    minutes: float = 10.0
    """That one video may be drawn for."""
    waiting: int = 4
    """Videos asked for and not begun."""
    hours: float = 24.0
    """That uploads and videos are kept; they show people."""
    kept_megabytes: int = 2000
    """Of uploads, and of videos; the oldest go first."""

    def __post_init__(self) -> None:
        at_least(self, seconds=1, letters=1, megabytes=1, minutes=0.1, waiting=1, hours=0.1,
                 kept_megabytes=1)  # fmt: skip


_GRACE = 60.0
"""Seconds for which a new file stays whatever else holds: somebody may be about to use it."""


def prune(folder: Path, hours: float, megabytes: float, in_use: Collection[Path] = ()) -> list[Path]:
    """Delete files below ``folder`` that are older than ``hours``, and then the oldest until ``megabytes`` are left.

    ``in_use`` stay, and so do files that cannot be deleted. Returns what was deleted.
    """
    now, found = time.time(), []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        except OSError:
            continue
    kept, deleted = {path.resolve() for path in in_use}, []
    total = sum(size for _, size, _ in found)
    for changed, size, path in sorted(found):
        too_old, too_much = now - changed > 3600 * hours, total > megabytes * 2**20
        if not (too_old or too_much) or now - changed < _GRACE or path.resolve() in kept:
            continue
        try:
            path.unlink()
        except OSError:
            continue
        deleted.append(path)
        total -= size
        if path.parent != folder:
            with suppress(OSError):  # it holds more
                path.parent.rmdir()
    return deleted


SIZE = 512
_SMALL_PX = 64.0
"""Height of a face in the photo under which it will look soft."""


@dataclass(frozen=True)
class FoundPortrait:
    """A portrait, how many faces its photo shows, and sentences for the page."""

    portrait: Portrait
    faces: int
    notes: tuple[str, ...]


def find_portrait(path: Path, face: int | None = None, whole: bool = False) -> FoundPortrait:
    """The chosen face of a photo (counted from the left beginning at 1; None: the largest); kept for the next call.

    whole: the photo will be shown as a whole, scaled down to what players take.

    Raises:
        BadInput: it cannot be read, or shows no such face.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError as error:
        raise BadInput("The photo is no longer here: drop it on the left again.") from error
    return _find_portrait(path, changed, face, whole)


@lru_cache(maxsize=4)
def _find_portrait(path: Path, changed: int, face: int | None, whole: bool) -> FoundPortrait:
    image = read_image(path)
    faces = find_faces(image)
    portrait = Portrait.from_image(read_photo(path) if whole else image, SIZE, "the photo", face)
    notes, count = [], len(faces)
    if count > 1:
        which = "the largest one speaks" if face is None else f"number {face} from the left speaks"
        notes.append(f"The photo shows {count} faces: {which}. Choose another one under Face.")
    from_left = sorted(faces, key=lambda found: float(found[0][:, 0].mean()))
    height = extent((faces[0] if face is None else from_left[face - 1])[0])
    if height < _SMALL_PX:
        notes.append(f"The face is only {height:.0f} px high and will be soft: a closer photo looks better.")
    if mouth_covered(portrait.crop, portrait.landmarks):
        notes.append("The mouth seems to be covered: lips will be drawn over it.")
    return FoundPortrait(portrait, count, tuple(notes))


PIECE_SECONDS = 0.5
LONGEST_UPLOAD = 3600.0
"""Seconds of recorded speech that are decoded; a few bytes could otherwise become gigabytes of silence."""
_BLOCK = 1 << 16
_POLL = 0.05
_LOG = logging.getLogger(__name__)


@dataclass
class RenderJob:
    """One video on its way."""

    path: Path
    request: AnimateRequest
    owner: str = ""
    """The browser tab that asked for it."""
    submitted: float = field(default_factory=time.monotonic)
    first_frame: float | None = None
    """Seconds from the request to the first frame."""
    frames: int = 0
    ended: float | None = None
    error: str | None = None
    cut: threading.Event = field(default_factory=threading.Event)
    """Set where there was more to say than a video may last."""
    done: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    started: bool = False
    stopped: bool = False
    """Whether it ended because somebody stopped it."""

    @property
    def name(self) -> str:
        """Its id."""
        return self.path.stem

    def status_text(self) -> str:
        """How it stands, in a sentence."""
        if self.error:
            return self.error
        if self.first_frame is None:
            return "Stopped before it began." if self.stopped else "Waiting …" if not self.started else "Beginning …"
        seconds = (self.ended or time.monotonic()) - self.submitted
        drawn = (
            f"{self.frames / FPS:.1f} s of video in {seconds:.1f} s, the first frame after {self.first_frame:.1f} s."
        )
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


class RenderQueue:
    """Draws requests one after the other into a folder."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limits = folder, limits
        self.jobs: dict[str, RenderJob] = {}
        self._worker = ThreadPoolExecutor(1, "render queue")
        self._lock, self._signing = threading.Lock(), threading.Lock()

    def submit(self, request: AnimateRequest, owner: str = "") -> RenderJob:
        """Check a request and queue it.

        Args:
            request: a photo and speech; recorded speech has precedence over text. Guidance and the settings of the
                motion count; the face is drawn at 512 px.
            owner: the browser tab that it comes from.

        Raises:
            BadInput: it cannot be drawn, or too many wait.
        """
        self._check_room()
        job = RenderJob(self.folder / f"{uuid.uuid4().hex}.mp4", request, owner)
        if request.image is None:
            raise BadInput("There is no photo yet: drop one on the left.")
        request.check()
        request.check_stream()
        request.controls()
        portrait = find_portrait(request.image, request.face, not request.crop).portrait
        sound = speech_pieces(request, self.limits, job.cut.set)
        with self._lock:
            self._check_room()
            self.jobs[job.name] = job
        self._worker.submit(self._draw, job, portrait, sound)
        return job

    def stop(self, owner: str | None = None) -> None:
        """Stop the videos that ``owner`` asked for, or all of them; what was drawn stays."""
        with self._lock:
            for job in self.jobs.values():
                if job.done.is_set() or owner not in (None, job.owner):
                    continue
                job.stop.set()
                if not job.started:
                    job.stopped, job.ended = True, time.monotonic()
                    job.done.set()

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
        job = self.jobs.get(name)
        if job is None or not job.done.is_set() or not job.path.is_file() or not job.frames:
            return None
        target = self.folder / f"{name}.signed.mp4"
        with self._signing:
            if not target.is_file():
                origin, partial = Origin("portrait"), self.folder / f".{name}.mp4"
                try:
                    with av.open(str(job.path.absolute())) as drawn:
                        remux(drawn, drawn.streams.get(video=0, audio=0), partial, origin.tags())
                    sign(partial, origin, find_credential())
                    os.replace(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
        return target

    def tidy(self) -> None:
        """Delete videos that are too old or too many, and forget them."""
        under_way = [job.path for job in self.jobs.values() if not job.done.is_set()]
        prune(self.folder, self.limits.hours, self.limits.kept_megabytes, under_way)
        now = time.monotonic()
        with self._lock:
            for name, job in list(self.jobs.items()):
                if job.ended is not None and now - job.ended > 3600 and not job.path.exists():
                    del self.jobs[name]

    def _check_room(self) -> None:
        if sum(not job.done.is_set() for job in self.jobs.values()) > self.limits.waiting:
            raise BadInput("Too many videos are waiting: wait for one, or stop it.")

    def _draw(self, job: RenderJob, portrait: Portrait, sound: Iterator[Sound]) -> None:
        with self._lock:
            if job.done.is_set():
                return
            job.started = True
        try:
            torch.set_num_threads(1)
            stream = load_pipeline(job.request.checkpoint).run_stream(job.request, sound, portrait)
            # Unbuffered: what is written can be watched.
            with job.path.open("wb", buffering=0) as file:
                stream.save(file, watch=lambda frames: self._count_frames(job, frames))
        except BadInput as error:
            job.error = without_paths(str(error))
        except Exception as error:
            # Nobody asks for the result of this call: what is raised here would be lost.
            _LOG.exception("The video %s could not be drawn", job.name)
            why = without_paths(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
            job.error = f"Drawing failed ({why}): the terminal has more."
        finally:
            job.ended = time.monotonic()
            job.done.set()
            self.tidy()

    def _count_frames(self, job: RenderJob, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        last = time.monotonic() + 60 * self.limits.minutes
        for frame in frames:
            job.first_frame = job.first_frame or time.monotonic() - job.submitted
            yield frame
            job.frames += 1
            if job.stop.is_set():
                job.stopped = True
                return
            if time.monotonic() > last:
                job.error = f"Stopped after {self.limits.minutes:g} minutes of drawing: ask for less."
                return


def speech_pieces(request: AnimateRequest, limits: Limits, cut: Callable[[], None]) -> Iterator[Sound]:
    """Speech in pieces as it is spoken, with its own rate and channels; no more of it than allowed, and ``cut`` is
    called where there would be more.

    Raises:
        BadInput: nothing to say, too much of it, or no such voice.
    """
    text = request.text or ""
    if request.audio is not None:
        pieces = _split(read_sound(request.audio, longest=LONGEST_UPLOAD))
    elif not text.strip():
        raise BadInput("There is nothing to say yet: type a text, or record or drop speech.")
    elif len(text) > limits.letters:
        raise BadInput(f"The text has {len(text)} letters, more than {limits.letters}: shorten it.")
    else:
        pieces = ahead(synthesize_speech([text], request.voice))
    return _take(pieces, limits.seconds, cut)


def _split(sound: Sound) -> Iterator[Sound]:
    length = max(1, round(PIECE_SECONDS * sound.rate))
    for start in range(0, sound.samples.shape[1], length):
        yield Sound(sound.samples[:, start : start + length], sound.rate, sound.layout)


def _take(pieces: Iterator[Sound], seconds: float, cut: Callable[[], None]) -> Iterator[Sound]:
    taken = 0
    for piece in pieces:
        left, length = round(seconds * piece.rate) - taken, piece.samples.shape[1]
        if left > 0:
            yield Sound(piece.samples[:, :left], piece.rate, piece.layout)
        if length > left:
            cut()
            return
        taken += length


@lru_cache(maxsize=2)
def load_pipeline(checkpoint: str) -> AnimatePipeline:
    """The pipeline of a checkpoint, kept while it is used."""
    return AnimatePipeline.from_pretrained(checkpoint)

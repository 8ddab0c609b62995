"""The studio's render queue: videos are drawn one after the other and can be watched meanwhile.

    request ─► queue ─► one worker ─► folder/ID.mp4 (a fragment every half second) ─► GET /live/ID.mp4 follows the file
                                                └─► when it is done, GET /signed/ID.mp4: an mp4 with a signed manifest

The parts in order: limits of what one page may request, deletion of old files, the portrait in an uploaded photo, and
the queue with its jobs. Old files are deleted because they show people.
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
from flowportrait.media.faces import face_extent
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import is_mouth_covered
from flowportrait.media.portrait import Portrait, find_faces
from flowportrait.media.video import FPS
from flowportrait.media.write_video import remux_to_mp4
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo, synthesize_speech
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.provenance.manifest import VideoOrigin, find_credential, sign_video
from flowportrait.speech.text_to_speech import prefetch
from flowportrait.web_server import strip_paths


@dataclass(frozen=True)
class StudioLimits:
    """Limits of the studio."""

    seconds: float = 60.0
    """Seconds of speech per video; the rest is cut off, with a notice."""
    letters: int = 1500
    """Characters of text per video."""
    megabytes: int = 25
    """Size of an uploaded file in MB."""
    minutes: float = 10.0
    """Minutes that drawing one video may take."""
    waiting: int = 4
    """Videos that may wait in the queue."""
    hours: float = 24.0
    """Hours after which uploads and videos are deleted."""
    kept_megabytes: int = 2000
    """Total size in MB of uploads, and of videos; the oldest are deleted first."""

    def __post_init__(self) -> None:
        at_least(self, seconds=1, letters=1, megabytes=1, minutes=0.1, waiting=1, hours=0.1,
                 kept_megabytes=1)  # fmt: skip


# --- Deleting old files ---

_GRACE = 60.0
"""Seconds for which a new file is always kept, because somebody may be about to use it."""


def delete_old_files(folder: Path, hours: float, megabytes: float, in_use: Collection[Path] = ()) -> list[Path]:
    """Delete files that are too old, and then the oldest ones until the rest is small enough.

    Files that cannot be deleted are kept.

    Args:
        folder: the folder; files in its subfolders count too.
        hours: largest age.
        megabytes: largest total size.
        in_use: files that are always kept.

    Returns:
        The deleted files.
    """
    now, files = time.time(), []
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        except OSError:
            continue
    protected, deleted = {path.resolve() for path in in_use}, []
    total = sum(size for _, size, _ in files)
    for changed, size, path in sorted(files):
        too_old, too_much = now - changed > 3600 * hours, total > megabytes * 2**20
        if not (too_old or too_much) or now - changed < _GRACE or path.resolve() in protected:
            continue
        try:
            path.unlink()
        except OSError:
            continue
        deleted.append(path)
        total -= size
        if path.parent != folder:
            with suppress(OSError):  # the folder is not empty
                path.parent.rmdir()
    return deleted


# --- The portrait in a photo ---

STUDIO_FACE_SIZE = 512
"""Side of the drawn face square in pixels."""
_SMALL_PX = 64.0
"""Height of a face in the photo below which it will look soft."""


@dataclass(frozen=True)
class FoundPortrait:
    """A portrait, the number of faces in its photo, and sentences for the page."""

    portrait: Portrait
    faces: int
    notes: tuple[str, ...]


def find_portrait(path: Path, face: int | None = None, whole: bool = False) -> FoundPortrait:
    """Find the chosen face of a photo; the result is cached.

    Args:
        path: the photo.
        face: which face, counted from the left beginning at 1; the largest by default.
        whole: the video will show the whole photo, scaled to a size that players support.

    Raises:
        BadInput: the photo cannot be read, or does not show this face.
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
    portrait = Portrait.from_image(read_photo(path) if whole else image, STUDIO_FACE_SIZE, "the photo", face)
    notes, count = [], len(faces)
    if count > 1:
        which = "the largest one speaks" if face is None else f"number {face} from the left speaks"
        notes.append(f"The photo shows {count} faces: {which}. Choose another one under Face.")
    from_left = sorted(faces, key=lambda candidate: float(candidate[0][:, 0].mean()))
    height = face_extent((faces[0] if face is None else from_left[face - 1])[0])
    if height < _SMALL_PX:
        notes.append(f"The face is only {height:.0f} px high and will be soft: a closer photo looks better.")
    if is_mouth_covered(portrait.crop, portrait.landmarks):
        notes.append("The mouth seems to be covered: lips will be drawn over it.")
    return FoundPortrait(portrait, count, tuple(notes))


# --- The queue ---

PIECE_SECONDS = 0.5
"""Seconds of the pieces in which recorded speech is passed on."""
MAX_UPLOAD_SECONDS = 3600.0
"""Most seconds of recorded speech that are decoded; otherwise a few bytes could become gigabytes of silence."""
_BLOCK_BYTES = 1 << 16
_POLL_SECONDS = 0.05
_LOG = logging.getLogger(__name__)


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
    ended: float | None = None
    error: str | None = None
    cut: threading.Event = field(default_factory=threading.Event)
    """Set if the speech was longer than a video may be."""
    done: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    started: bool = False
    stopped: bool = False
    """Whether somebody stopped it."""

    @property
    def name(self) -> str:
        """The id of the job."""
        return self.path.stem

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
        rest = " The speech was too long: its end was left out." if self.cut.is_set() else ""
        state = "Stopped" if self.stopped else "Done" if self.done.is_set() else "Drawing"
        return f"{state}: {drawn}{rest}"

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


class RenderQueue:
    """Draws requested videos one after the other into a folder."""

    def __init__(self, folder: Path, limits: StudioLimits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limits = folder, limits
        self.jobs: dict[str, RenderJob] = {}
        self._worker = ThreadPoolExecutor(1, "render queue")
        self._lock, self._signing = threading.Lock(), threading.Lock()

    def submit(self, request: AnimateRequest, owner: str = "") -> RenderJob:
        """Check a request and queue it.

        Args:
            request: a photo and speech; recorded speech has precedence over text. Guidance and motion settings apply;
                the face is drawn at 512 px.
            owner: the browser tab that requested it.

        Raises:
            BadInput: the request cannot be drawn, or too many videos are waiting.
        """
        self._check_room()
        job = RenderJob(self.folder / f"{uuid.uuid4().hex}.mp4", request, owner)
        if request.image is None:
            raise BadInput("There is no photo yet: drop one on the left.")
        request.check()
        request.check_stream()
        request.controls()
        portrait = find_portrait(request.image, request.face, not request.crop).portrait
        sound = iterate_speech(request, self.limits, job.cut.set)
        with self._lock:
            self._check_room()
            self.jobs[job.name] = job
        self._worker.submit(self._draw, job, portrait, sound)
        return job

    def stop(self, owner: str | None = None) -> None:
        """Stop the videos that ``owner`` requested, or all videos by default; what was drawn is kept."""
        with self._lock:
            for job in self.jobs.values():
                if job.done.is_set() or owner not in (None, job.owner):
                    continue
                job.stop.set()
                if not job.started:
                    job.stopped, job.ended = True, time.monotonic()
                    job.done.set()

    def close(self) -> None:
        """Stop all videos and wait for the worker."""
        self.stop()
        self._worker.shutdown(cancel_futures=True)

    def signed(self, name: str) -> Path | None:
        """Return the finished video as an ordinary mp4 with tags and signed manifest; None if there is no such video.

        The file is written on the first call.

        Raises:
            BadInput: the video cannot be signed.
        """
        job = self.jobs.get(name)
        if job is None or not job.done.is_set() or not job.path.is_file() or not job.frames:
            return None
        target = self.folder / f"{name}.signed.mp4"
        with self._signing:
            if not target.is_file():
                origin, partial = VideoOrigin("portrait"), self.folder / f".{name}.mp4"
                try:
                    with av.open(str(job.path.absolute())) as drawn:
                        remux_to_mp4(drawn, drawn.streams.get(video=0, audio=0), partial, origin.tags())
                    sign_video(partial, origin, find_credential())
                    os.replace(partial, target)
                finally:
                    partial.unlink(missing_ok=True)
        return target

    def tidy(self) -> None:
        """Delete videos that are too old or too many, and remove their jobs."""
        unfinished = [job.path for job in self.jobs.values() if not job.done.is_set()]
        delete_old_files(self.folder, self.limits.hours, self.limits.kept_megabytes, unfinished)
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
            # Unbuffered, so that everything written can be watched at once.
            with job.path.open("wb", buffering=0) as file:
                stream.save(file, watch=lambda frames: self._count_frames(job, frames))
        except BadInput as error:
            job.error = strip_paths(str(error))
        except Exception as error:
            # Nobody reads the result of this call, so an exception would be lost.
            _LOG.exception("The video %s could not be drawn", job.name)
            why = strip_paths(" ".join(f"{type(error).__name__}: {error}".split()))[:200]
            job.error = f"Drawing failed ({why}): the terminal has more."
        finally:
            job.ended = time.monotonic()
            job.done.set()
            self.tidy()

    def _count_frames(self, job: RenderJob, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        deadline = time.monotonic() + 60 * self.limits.minutes
        for frame in frames:
            job.first_frame = job.first_frame or time.monotonic() - job.submitted
            yield frame
            job.frames += 1
            if job.stop.is_set():
                job.stopped = True
                return
            if time.monotonic() > deadline:
                job.error = f"Stopped after {self.limits.minutes:g} minutes of drawing: ask for less."
                return


def iterate_speech(request: AnimateRequest, limits: StudioLimits, cut: Callable[[], None]) -> Iterator[Sound]:
    """Yield the speech of a request in pieces, with its own rate and channels, up to the limits.

    Args:
        request: a request with a recording or a text.
        limits: limits of the studio.
        cut: called if the speech is longer than a video may be.

    Raises:
        BadInput: there is no speech, the text is too long, or there is no such voice.
    """
    text = request.text or ""
    if request.audio is not None:
        pieces = _split(read_sound(request.audio, longest=MAX_UPLOAD_SECONDS))
    elif not text.strip():
        raise BadInput("There is nothing to say yet: type a text, or record or drop speech.")
    elif len(text) > limits.letters:
        raise BadInput(f"The text has {len(text)} letters, more than {limits.letters}: shorten it.")
    else:
        pieces = prefetch(synthesize_speech([text], request.voice))
    return _limit_seconds(pieces, limits.seconds, cut)


def _split(sound: Sound) -> Iterator[Sound]:
    length = max(1, round(PIECE_SECONDS * sound.rate))
    for start in range(0, sound.samples.shape[1], length):
        yield Sound(sound.samples[:, start : start + length], sound.rate, sound.layout)


def _limit_seconds(pieces: Iterator[Sound], seconds: float, cut: Callable[[], None]) -> Iterator[Sound]:
    used = 0
    for piece in pieces:
        left, length = round(seconds * piece.rate) - used, piece.samples.shape[1]
        if left > 0:
            yield Sound(piece.samples[:, :left], piece.rate, piece.layout)
        if length > left:
            cut()
            return
        used += length


@lru_cache(maxsize=2)
def load_pipeline(checkpoint: str) -> AnimatePipeline:
    """Load the pipeline of a checkpoint; the two latest ones are cached."""
    return AnimatePipeline.from_pretrained(checkpoint)

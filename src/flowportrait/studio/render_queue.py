"""The studio's render queue: videos are drawn one after the other and can be watched meanwhile.

    request ─► queue ─► one worker ─► folder/ID.mp4 (a fragment every half second) ─► GET /live/ID.mp4 follows the file
                                                └─► when it is done, GET /signed/ID.mp4: an mp4 with a signed manifest

Importing this module imports no networks: ``studio.draw`` is imported with the first request.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from flowportrait.errors import BadInput
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.studio.job import JobStopped, RenderJob
from flowportrait.studio.storage import StudioLimits
from flowportrait.uploads import delete_old_files
from flowportrait.web_server import strip_paths

_LOG = logging.getLogger(__name__)
_REMEMBERED_SECONDS = 3600.0
"""Seconds for which a job without a file is remembered."""


class RenderQueue:
    """Draws requested videos one after the other into a folder."""

    def __init__(self, folder: Path, limits: StudioLimits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limits = folder, limits
        self.jobs: dict[str, RenderJob] = {}
        self._worker = ThreadPoolExecutor(1, "render queue")
        self._lock, self._signing = threading.Lock(), threading.Lock()

    def submit(self, request: AnimateRequest, owner: str = "", suffix: str = ".mp4") -> RenderJob:
        """Check a request and queue it.

        Args:
            request: a photo, a video or two speakers, and speech; recorded speech has precedence over text.
            owner: the browser tab that requested it.
            suffix: ending of the file: .mp4, .mov or .gif.

        Raises:
            BadInput: the request cannot be drawn, or too many videos are waiting.
        """
        self._check_room()
        job = RenderJob(self.folder / f"{uuid.uuid4().hex}{suffix}", request, owner)
        if request.image is None and request.video is None and not request.speakers:
            raise BadInput("There is no photo yet: choose an example, or add your own.")
        from flowportrait.studio import draw

        work = draw.prepare(job, self.limits)
        with self._lock:
            self._check_room()
            self.jobs[job.name] = job
        self._worker.submit(self._draw, job, work)
        return job

    def position(self, job: RenderJob) -> int:
        """Return how many unfinished videos come before a job."""
        before = 0
        for other in list(self.jobs.values()):
            if other is job:
                break
            before += not other.done.is_set()
        return before

    def of_owner(self, owner: str) -> list[RenderJob]:
        """Return the jobs of a browser tab, the oldest first."""
        return [job for job in list(self.jobs.values()) if job.owner == owner]

    def stop(self, owner: str | None = None, name: str | None = None) -> None:
        """Stop videos; what was drawn of a growing one is kept.

        Args:
            owner: only those that this browser tab requested.
            name: only the one with this id.
        """
        with self._lock:
            for job in self.jobs.values():
                if job.done.is_set() or owner not in (None, job.owner) or name not in (None, job.name):
                    continue
                job.stop.set()
                if not job.started:
                    job.stopped, job.ended = True, time.monotonic()
                    job.done.set()

    def remove(self, name: str, owner: str) -> None:
        """Stop and forget a video of a browser tab and delete its files."""
        self.stop(owner, name)
        job = self.jobs.get(name)
        if job is not None and job.owner == owner and job.done.is_set():
            with self._lock:
                del self.jobs[name]
            for path in self.folder.glob(f"{name}.*"):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop all videos and wait for the worker."""
        self.stop()
        self._worker.shutdown(cancel_futures=True)

    def signed(self, name: str) -> Path | None:
        """Return the finished video as an ordinary file with tags and signed manifest; None if there is no such video.

        The file of a video that was watched while it grew is written on the first call.

        Raises:
            BadInput: the video cannot be signed.
        """
        job = self.jobs.get(name)
        if job is None or not job.done.is_set() or not job.has_video():
            return None
        if not job.live:
            return job.path
        target = self.folder / f"{name}.signed.mp4"
        with self._signing:
            if not target.is_file():
                self._sign(job.path, target)
        return target

    def _sign(self, drawn_path: Path, target: Path) -> None:
        import av

        from flowportrait.media.write_video import remux_to_mp4
        from flowportrait.provenance.manifest import VideoOrigin, find_credential, sign_video

        origin, partial = VideoOrigin("portrait"), self.folder / f".{drawn_path.name}"
        try:
            with av.open(str(drawn_path.absolute())) as drawn:
                remux_to_mp4(drawn, drawn.streams.get(video=0, audio=0), partial, origin.tags())
            sign_video(partial, origin, find_credential())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Delete videos that are too old or too many, and remove their jobs."""
        unfinished = [job.path for job in list(self.jobs.values()) if not job.done.is_set()]
        delete_old_files(self.folder, self.limits.hours, self.limits.kept_megabytes, unfinished)
        now = time.monotonic()
        with self._lock:
            for name, job in list(self.jobs.items()):
                if job.ended is not None and now - job.ended > _REMEMBERED_SECONDS and not job.path.exists():
                    del self.jobs[name]

    def _check_room(self) -> None:
        if sum(not job.done.is_set() for job in list(self.jobs.values())) > self.limits.waiting:
            raise BadInput("Too many videos are waiting: wait for one, or stop it.")

    def _draw(self, job: RenderJob, work: Callable[[], None]) -> None:
        with self._lock:
            if job.done.is_set():
                return
            job.started = True
        from flowportrait.studio.draw import warnings_into

        try:
            with warnings_into(job.notes):
                work()
        except JobStopped:
            job.stopped = True
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

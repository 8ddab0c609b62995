"""The studio as a web application on this machine.

    GET    /                              the page; /research: training and studies
    GET    /page/NAME, /samples/NAME      its files, and the example portraits and speech
    GET    /api/choices                   examples, voices and limits
    PUT    /api/files?kind=&name=         an upload: photo, video, audio or motion; what is wrong with it is a sentence
    GET    /api/files/ID/picture.jpg      what the video will show of a photo or a video (face=, whole=)
    GET    /api/files/ID/portrait         number of faces, and notes (face=)
    GET    /api/sessions/TAB/videos       the videos of a browser tab and how far they are; POST makes one
    POST   /api/sessions/TAB/videos/ID/stop, /score;  DELETE /api/sessions/TAB/videos/ID
    GET    /live/ID.mp4                   a video, followed while it is drawn; with byte ranges once it is complete
    GET    /signed/ID                     the finished video with its signed manifest, for download
    GET    /api/training                  the training run; POST starts one, DELETE stops it
    POST   /api/studies                   serve a preference study

Nothing is loaded from elsewhere, and nobody else can reach it: it binds to loopback, answers requests for loopback
names from its own page only, and the page may load nothing from other hosts. It serves only its own files, what was
uploaded, and videos that it drew, and deletes them after a while (``StudioLimits``).
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel

from flowportrait import samples
from flowportrait.errors import BadInput
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.studio.form import VideoForm, page_choices, page_sentence
from flowportrait.studio.job import FPS, RenderJob
from flowportrait.studio.render_queue import RenderQueue
from flowportrait.studio.scores import score_job
from flowportrait.studio.storage import StudioLimits, open_uploads
from flowportrait.studio.training import Training
from flowportrait.uploads import delete_old_files
from flowportrait.web_server import RequestGuard, bind_listener, listener_url, make_server, strip_paths

PAGE_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
VIDEO_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".gif": "image/gif"}
STUDIO_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
MAX_FORM_BYTES = 2**20
"""Largest body of a form in bytes."""
_SESSION = r"[0-9a-f]{16,64}"
_TIDY_SECONDS = 600.0
_WARM_UP_SECONDS = 0.7
"""Seconds between a page that opens and the loading of networks, which would slow the page down."""
_LOG = logging.getLogger(__name__)


class Studio:
    """Folders, render queue, training and preference studies behind one page."""

    def __init__(self, folder: Path, limits: StudioLimits) -> None:
        self.folder, self.limits = folder, limits
        self.queue = RenderQueue(folder / "videos", limits)
        self.uploads = open_uploads(folder / "uploads")
        self.training = Training(folder / "runs")
        self._studies: dict[Path, str] = {}
        self._closed, self._warm = threading.Event(), False
        self.tidy()
        threading.Thread(target=self._keep_tidy, name="studio tidy", daemon=True).start()

    def warm_up(self) -> None:
        """Load the networks in the background, once, so that the first video begins at once."""

        def load() -> None:
            from flowportrait.studio.draw import warm_up

            try:
                warm_up()
            except Exception:
                _LOG.exception("The networks could not be loaded")

        if not self._warm:
            self._warm = True
            timer = threading.Timer(_WARM_UP_SECONDS, load)
            timer.daemon = True
            timer.start()

    def study(self, folder: Path) -> str:
        """Serve a preference study beside the studio and return its address.

        Raises:
            BadInput: the folder holds no study.
        """
        from flowportrait.human_study.server import study_app

        folder = folder.resolve()
        if folder not in self._studies:
            app, listener = study_app(folder), bind_listener("127.0.0.1", 0)
            server = make_server(app)
            threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
            self._studies[folder] = f"{listener_url(listener)}/"
        return self._studies[folder]

    def tidy(self) -> None:
        """Delete uploads and videos that are too old or too many."""
        self.queue.tidy()
        delete_old_files(self.uploads.folder, self.limits.hours, self.limits.kept_megabytes)

    def close(self) -> None:
        """Stop drawing, and ask a training run to save and stop."""
        self._closed.set()
        self.queue.close()
        self.training.stop()

    def _keep_tidy(self) -> None:
        while not self._closed.wait(_TIDY_SECONDS):
            try:
                self.tidy()
            except Exception:
                _LOG.exception("Old files could not be deleted")


def serve_studio(studio: Studio, port: int, ready: Callable[[str], None]) -> None:
    """Serve the studio until Ctrl-C.

    Args:
        studio: the studio.
        port: port on the loopback address; 0 for a free one.
        ready: called with the address.

    Raises:
        BadInput: the port is in use.
    """
    with bind_listener("127.0.0.1", port) as listener:
        server = make_server(studio_app(studio), lambda: ready(f"{listener_url(listener)}/"))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    studio.close()


def studio_app(studio: Studio) -> FastAPI:
    """Build the web application of a studio."""
    app = FastAPI(title="FlowPortrait studio", openapi_url=None)
    app.add_exception_handler(BadInput, _bad_input)
    app.add_exception_handler(RequestValidationError, _wrong_form)
    app.add_exception_handler(Exception, _failure)
    _add_page(app, studio)
    _add_files(app, studio)
    _add_videos(app, studio)
    _add_research(app, studio)
    app.add_middleware(
        RequestGuard, largest_body=studio.limits.megabytes * 2**20, headers=STUDIO_HEADERS,
        content_types={"/api/files": ("application/octet-stream",), "/": ("application/json",)},
    )  # fmt: skip
    return app


# --- Errors ---


def _answer(status: int, sentence: str) -> Response:
    return JSONResponse({"detail": sentence}, status)


async def _bad_input(request: Request, error: Exception) -> Response:
    return _answer(400, page_sentence(strip_paths(str(error))))


async def _wrong_form(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0] if error.errors() else {}
    where = ".".join(str(part) for part in first.get("loc", ())[1:]) or "the request"
    return _answer(422, f"{where} is not possible ({first.get('msg', 'wrong form')}).")


async def _failure(request: Request, error: Exception) -> Response:
    _LOG.error("The studio's page failed", exc_info=error)
    return _answer(500, f"That failed ({type(error).__name__}): the terminal has more.")


# --- The page ---


def _add_page(app: FastAPI, studio: Studio) -> None:
    page = Path(str(files("flowportrait") / "studio" / "page"))
    names = {path.name for path in page.iterdir() if path.suffix in PAGE_TYPES}
    sample_names = {f"{name}.jpg" for name in samples.PORTRAITS} | {samples.SPEECH.name}

    @app.get("/")
    def index() -> FileResponse:
        return FileResponse(page / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})

    @app.get("/research")
    def research() -> FileResponse:
        return FileResponse(page / "research.html", media_type="text/html", headers={"Cache-Control": "no-cache"})

    @app.get("/page/{name}")
    def page_file(name: str) -> FileResponse:
        if name not in names:
            raise HTTPException(404)
        path = page / name
        return FileResponse(path, media_type=PAGE_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})

    @app.get("/samples/{name}")
    def sample(name: str) -> FileResponse:
        if name not in sample_names:
            raise HTTPException(404)
        return FileResponse(samples.FOLDER / name)

    @app.get("/api/choices")
    def choices() -> dict[str, Any]:
        studio.warm_up()
        return page_choices(studio.limits)


# --- Files ---


def _add_files(app: FastAPI, studio: Studio) -> None:
    @app.put("/api/files")
    async def upload(request: Request, kind: Literal["photo", "video", "audio", "motion"], name: str) -> dict[str, Any]:
        from fastapi.concurrency import run_in_threadpool

        token = await studio.uploads.save(name, request.stream())
        try:
            about = await run_in_threadpool(_describe_upload, studio.uploads.path(token), kind)
        except BaseException:
            studio.uploads.remove(token)
            raise
        return {"id": token, "name": studio.uploads.path(token).name, **about}

    @app.get("/api/files/{token}/portrait")
    def portrait(token: str, face: int | None = None) -> dict[str, Any]:
        return _describe_photo(studio.uploads.path(token), face)

    @app.get("/api/files/{token}/picture.jpg")
    def picture(token: str, face: int | None = None, whole: bool = True, video: bool = False) -> Response:
        from flowportrait.studio.portrait import picture_of_photo, picture_of_video

        path = studio.uploads.path(token)
        data = picture_of_video(path) if video else picture_of_photo(path, face, whole)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _describe_upload(path: Path, kind: str) -> dict[str, Any]:
    """Return what the page shows of an upload; what cannot be used is refused at once.

    Raises:
        BadInput: the file cannot be used.
    """
    if kind == "photo":
        return _describe_photo(path, None)
    if kind == "video":
        from flowportrait.studio.portrait import picture_of_video

        picture_of_video(path)
        return {}
    if kind == "audio":
        from flowportrait.studio.draw import read_recording

        sound = read_recording(path)
        return {"seconds": sound.samples.shape[1] / sound.rate}
    from flowportrait.rendering.motion_files import read_motion

    return {"frames": len(read_motion(path))}


def _describe_photo(path: Path, face: int | None) -> dict[str, Any]:
    from flowportrait.studio.portrait import find_portrait

    found = find_portrait(path, face, whole=True)
    return {"faces": found.faces, "notes": list(found.notes)}


# --- Videos ---


def _add_videos(app: FastAPI, studio: Studio) -> None:
    queue = studio.queue

    def check(session: str) -> None:
        if not re.fullmatch(_SESSION, session):
            raise HTTPException(404)

    def own(session: str, name: str) -> RenderJob:
        check(session)
        job = queue.jobs.get(name)
        if job is None or job.owner != session:
            raise HTTPException(404)
        return job

    @app.get("/api/sessions/{session}/videos")
    def videos(session: str) -> list[dict[str, Any]]:
        check(session)
        return [describe_job(job, queue.position(job)) for job in queue.of_owner(session)]

    @app.post("/api/sessions/{session}/videos")
    def make(session: str, form: VideoForm) -> list[dict[str, Any]]:
        check(session)
        requests = form.requests(studio.uploads.path)
        jobs = [queue.submit(request, session, f".{form.format}") for request in requests]
        return [describe_job(job, queue.position(job)) for job in jobs]

    @app.post("/api/sessions/{session}/videos/{name}/stop")
    def stop(session: str, name: str) -> dict[str, Any]:
        job = own(session, name)
        queue.stop(session, name)
        return describe_job(job, queue.position(job))

    @app.post("/api/sessions/{session}/videos/{name}/score")
    def score(session: str, name: str) -> dict[str, Any]:
        return score_job(own(session, name))

    @app.delete("/api/sessions/{session}/videos/{name}")
    def remove(session: str, name: str) -> dict[str, bool]:
        own(session, name)
        queue.remove(name, session)
        return {"removed": True}

    @app.get("/live/{name}.mp4")
    def live(name: str) -> Response:
        job = queue.jobs.get(name)
        if job is None or not job.live:
            raise HTTPException(404)
        if job.done.is_set() and job.path.is_file():
            return FileResponse(job.path, media_type="video/mp4")
        return StreamingResponse(job.follow_async(), media_type="video/mp4", headers={"Cache-Control": "no-store"})

    @app.get("/signed/{name}")
    def signed(name: str, download: bool = True) -> Response:
        path = queue.signed(name)
        if path is None:
            raise HTTPException(404)
        kind = VIDEO_TYPES[path.suffix]
        return FileResponse(path, media_type=kind, filename=f"talking-portrait{path.suffix}" if download else None)


def describe_job(job: RenderJob, position: int) -> dict[str, Any]:
    """Return what the page shows of a job."""
    finished = job.done.is_set() and job.has_video()
    return {
        "id": job.name,
        "state": job.state,
        "status": page_sentence(job.status_text()),
        "stage": job.stage,
        "fraction": job.fraction(),
        "seconds_left": job.seconds_left(),
        "position": position,
        "seconds": job.frames / FPS,
        "total_seconds": (job.total_frames or 0) / FPS,
        "notes": [page_sentence(strip_paths(note)) for note in job.notes],
        "error": job.error and page_sentence(job.error),
        "cut": job.cut.is_set(),
        "live": job.live,
        "finished": finished,
        "format": job.path.suffix[1:],
        "checkpoint": Path(job.request.checkpoint).name,
        "title": _title(job.request),
        "picture": _picture_address(job.request),
    }


def _title(request: AnimateRequest) -> str:
    if request.speakers:
        return "Two people"
    return request.audio.name if request.audio else " ".join((request.text or "").split())[:80]


def _picture_address(request: AnimateRequest) -> str:
    path = request.video or request.image or request.speakers[0].image
    if path.parent == samples.FOLDER:
        return f"/samples/{path.name}"
    return f"/api/files/{path.parent.name}/picture.jpg" + ("?video=true" if request.video else "")


# --- Training and studies ---


class TrainingForm(BaseModel, extra="forbid"):
    """What the page sends to start a training run."""

    name: str
    prompts: str
    recipe: str = "flow-grpo"
    start: str = "sft"
    iterations: int = 10


class StudyForm(BaseModel, extra="forbid"):
    """What the page sends to open a preference study."""

    folder: str


def _add_research(app: FastAPI, studio: Studio) -> None:
    @app.get("/api/recipes")
    def recipes() -> list[str]:
        from flowportrait.rl.recipes import CARDS

        return list(CARDS)

    @app.get("/api/training")
    def training() -> dict[str, Any]:
        run = studio.training
        if run.run is None:
            return {"running": False, "status": "", "rewards": {}}
        rewards: dict[str, list[float | None]] = {}
        for index, record in enumerate(run.records()):
            for key, value in record.items():
                if key.startswith("reward/"):
                    row = rewards.setdefault(key.removeprefix("reward/"), [])
                    row += [None] * (index - len(row)) + [value if _is_finite(value) else None]
        return {"running": run.running, "status": run.status_text(), "rewards": rewards}

    @app.post("/api/training")
    def start(form: TrainingForm) -> dict[str, Any]:
        studio.training.start(form.name, form.prompts, form.recipe, form.start, form.iterations)
        return training()

    @app.delete("/api/training")
    def stop() -> dict[str, Any]:
        studio.training.stop()
        return training()

    @app.post("/api/studies")
    def study(form: StudyForm) -> dict[str, str]:
        return {"address": studio.study(Path(form.folder))}


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and json.dumps(value) not in ("NaN", "Infinity", "-Infinity")

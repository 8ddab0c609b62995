"""The studio as a web application on this machine alone.

    GET /                the page (gradio)
    GET /live/ID.mp4     a video, followed while it is drawn; with byte ranges once it is complete
    GET /signed/ID.mp4   the finished video with its signed manifest, to be kept

Nothing is loaded from elsewhere, and nobody else can reach it: it binds to loopback, answers to loopback names and to
its own page only, and the page may fetch from nowhere but here. Of files it serves what was uploaded and what it drew,
and these go after a while (``Limits``).
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from flowportrait.errors import BadInput
from flowportrait.studio.limits import Limits
from flowportrait.studio.render_queue import RenderQueue
from flowportrait.studio.storage import prune
from flowportrait.studio.training import Training
from flowportrait.web_server import RequestGuard, address_of, bind, make_server, without_paths

HEADERS = {
    # gradio's page needs its own inline scripts; what matters is that none of it comes from or goes elsewhere.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
}
_FETCHES = re.compile(r"/gradio_api/(?:proxy=|file=\s*[a-z][a-z0-9+.-]*:)", re.IGNORECASE)
"""Routes by which gradio would fetch other addresses on behalf of whoever asks."""
_TIDY_SECONDS = 600.0
_LOG = logging.getLogger(__name__)


class Studio:
    """Folders, render queue, training and preference studies behind one page."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self.queue = RenderQueue(folder / "videos", limits)
        self.training = Training(folder / "runs")
        self._studies: dict[Path, str] = {}
        self._closed = threading.Event()
        self.tidy()
        threading.Thread(target=self._keep_tidy, name="studio tidy", daemon=True).start()

    def study(self, folder: Path) -> str:
        """The address of a preference study, served beside the studio.

        Raises:
            BadInput: the folder holds none.
        """
        from flowportrait.study.server import study_app

        folder = folder.resolve()
        if folder not in self._studies:
            app, listener = study_app(folder), bind("127.0.0.1", 0)
            server = make_server(app)
            threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
            self._studies[folder] = f"{address_of(listener)}/"
        return self._studies[folder]

    @property
    def uploads(self) -> Path:
        """Where gradio puts what is uploaded."""
        return self.folder.resolve() / "uploads"

    def tidy(self) -> None:
        """Delete uploads and videos that are too old or too many."""
        self.queue.tidy()
        prune(self.uploads, self.limits.hours, self.limits.kept_megabytes)

    def close(self) -> None:
        """End what is being drawn, and ask a run to save."""
        self._closed.set()
        self.queue.close()
        self.training.stop()

    def _keep_tidy(self) -> None:
        while not self._closed.wait(_TIDY_SECONDS):
            try:
                self.tidy()
            except Exception:
                _LOG.exception("Old files could not be deleted")


def studio_app(studio: Studio) -> FastAPI:
    """The application.

    Raises:
        BadInput: gradio is not installed.
    """
    studio.uploads.mkdir(parents=True, exist_ok=True)
    os.environ.update(GRADIO_TEMP_DIR=str(studio.uploads), GRADIO_ANALYTICS_ENABLED="False")
    try:
        import gradio
    except ImportError as error:
        raise BadInput("The studio needs the package gradio: pip install 'flowportrait[studio]'.") from error
    from flowportrait.studio.page import LOOK, page

    app = FastAPI(openapi_url=None)

    @app.get("/live/{name}.mp4")
    def live(name: str) -> Response:
        job = studio.queue.jobs.get(name)
        if job is None:
            raise HTTPException(404)
        if job.done.is_set() and job.path.is_file():
            return FileResponse(job.path, media_type="video/mp4")
        return StreamingResponse(job.follow_async(), media_type="video/mp4", headers={"Cache-Control": "no-store"})

    @app.get("/signed/{name}.mp4")
    def signed(name: str) -> Response:
        try:
            path = studio.queue.signed(name)
        except BadInput as error:
            raise HTTPException(500, without_paths(str(error))) from None
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type="video/mp4", filename="talking-portrait.mp4")

    mounted = gradio.mount_gradio_app(
        app, page(studio), "/", server_name="127.0.0.1", max_file_size=f"{studio.limits.megabytes}mb", ssr_mode=False,
        enable_monitoring=False, **LOOK,
    )  # fmt: skip

    @mounted.middleware("http")
    async def fetch_nothing(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        return Response(status_code=404) if _FETCHES.match(request.url.path) else await call(request)

    mounted.add_middleware(
        RequestGuard, largest_body=(studio.limits.megabytes + 1) * 2**20, headers=HEADERS,
        content_types={"/": ("application/json", "multipart/form-data")},
    )  # fmt: skip
    return mounted


def serve(studio: Studio, port: int, ready: Callable[[str], None]) -> None:
    """Until Ctrl-C; ``ready`` gets the address.

    Raises:
        BadInput: gradio is not installed, or the port is taken.
    """
    with bind("127.0.0.1", port) as listener:
        server = make_server(studio_app(studio), lambda: ready(f"{address_of(listener)}/"))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    studio.close()

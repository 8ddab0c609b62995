"""The studio as a web application on this machine alone.

    GET /              the page (gradio)
    GET /live/ID.mp4   a video, followed while it is drawn; with byte ranges once it is complete

Nothing is loaded from elsewhere, and nobody else can reach it: it binds to loopback, answers to loopback names only,
and the page may fetch from nowhere but here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, StreamingResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flowportrait.errors import BadInput
from flowportrait.studio.limits import Limits
from flowportrait.studio.live import Theatre
from flowportrait.studio.training import Training
from flowportrait.study.server import LOOPBACK

HEADERS = {
    # gradio's page needs its own inline scripts; what matters is that none of it comes from or goes elsewhere.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class Studio:
    """Folders, theatre, training and preference studies behind one page."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits = folder, limits
        self.theatre = Theatre(folder / "videos", limits)
        self.training = Training(folder / "runs")
        self._studies: dict[Path, str] = {}

    def study(self, folder: Path) -> str:
        """The address of a preference study, served beside the studio.

        Raises:
            BadInput: the folder holds none.
        """
        import socket

        import uvicorn

        from flowportrait.study.server import study_app

        if folder not in self._studies:
            app = study_app(folder)
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
            threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
            self._studies[folder] = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        return self._studies[folder]

    def close(self) -> None:
        """End what is being drawn, and ask a run to save."""
        self.theatre.close()
        self.training.stop()


def studio_app(studio: Studio) -> FastAPI:
    """The application.

    Raises:
        BadInput: gradio is not installed.
    """
    uploads = (studio.folder / "uploads").resolve()
    uploads.mkdir(parents=True, exist_ok=True)
    os.environ.update(GRADIO_TEMP_DIR=str(uploads), GRADIO_ANALYTICS_ENABLED="False")
    try:
        import gradio
    except ImportError as error:
        raise BadInput("The studio needs the package gradio: pip install 'flowportrait[studio]'.") from error
    from flowportrait.studio.page import LOOK, page

    app = FastAPI(openapi_url=None)

    @app.get("/live/{name}.mp4")
    def live(name: str) -> Response:
        show = studio.theatre.shows.get(name)
        if show is None:
            raise HTTPException(404)
        if show.done.is_set() and show.path.is_file():
            return FileResponse(show.path, media_type="video/mp4")
        return StreamingResponse(show.follow(), media_type="video/mp4", headers={"Cache-Control": "no-store"})

    mounted = gradio.mount_gradio_app(
        app, page(studio), "/", server_name="127.0.0.1", max_file_size=f"{studio.limits.megabytes}mb", ssr_mode=False,
        enable_monitoring=False, **LOOK,
    )  # fmt: skip

    @mounted.middleware("http")
    async def with_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        response.headers.update(HEADERS)
        return response

    mounted.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    return mounted


def serve(studio: Studio, port: int, ready: Callable[[str], None]) -> None:
    """Until Ctrl-C; ``ready`` gets the address.

    Raises:
        BadInput: gradio is not installed, or the port is taken.
    """
    import socket

    import uvicorn

    app = studio_app(studio)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise BadInput(f"Cannot listen on port {port} ({error}): choose another --port.") from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[Any] | None = None) -> None:
            await super().startup(sockets)
            ready(f"http://127.0.0.1:{listener.getsockname()[1]}/")

    with suppress(KeyboardInterrupt):
        Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
    studio.close()

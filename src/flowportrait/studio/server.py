"""The studio as a web application on this machine, and its page.

    GET /                the page (gradio)
    GET /live/ID.mp4     a video, followed while it is drawn; with byte ranges once it is complete
    GET /signed/ID.mp4   the finished video with its signed manifest, for download

Nothing is loaded from elsewhere, and nobody else can reach it: it binds to loopback, answers requests for loopback
names from its own page only, and the page may load nothing from other hosts. It serves only files that were uploaded
and videos that it drew, and deletes them after a while (``StudioLimits``).

The page has tabs to speak, compare, train and ask people. Every error appears as a sentence on the page.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from flowportrait.errors import BadInput
from flowportrait.media.video import FPS
from flowportrait.models.checkpoints import SHIPPED_CHECKPOINTS
from flowportrait.pipelines.request import GUIDE_DIMENSIONS, MAX_USEFUL_GUIDE_WEIGHT, AnimateRequest
from flowportrait.speech.voices import DEFAULT_VOICE
from flowportrait.studio.render_queue import RenderJob, RenderQueue, StudioLimits, delete_old_files, find_portrait
from flowportrait.studio.training import Training
from flowportrait.web_server import RequestGuard, bind_listener, listener_url, make_server, strip_paths

# --- Scores of finished videos ---

MIN_SCORED_SECONDS = 1.5
"""Fewest seconds of a scored video; the windows of the judges' networks are a little shorter."""


@lru_cache(maxsize=1)
def _panel() -> Any:
    from flowportrait.judges.build import build_judge

    return build_judge()


def score_jobs(jobs: Mapping[str, RenderJob], names: Sequence[str | None]) -> str:
    """Score finished videos with the judges.

    Args:
        jobs: all jobs by id.
        names: ids of the jobs to score.

    Returns:
        A Markdown table, or a sentence with the reason why there is none.
    """
    from flowportrait.judges.build import grade_files
    from flowportrait.judges.rubric import CLIP_ASPECTS

    chosen = [jobs[name] for name in names if name and name in jobs]
    if not chosen or not all(job.done.is_set() and job.frames for job in chosen):
        return "There is no finished video yet: make one first."
    if any(job.frames < MIN_SCORED_SECONDS * FPS for job in chosen):
        return f"Scoring needs {MIN_SCORED_SECONDS} seconds of video: use a longer text or recording."
    panel = _panel()
    head = (
        f"| {panel.name} ({panel.kind}) | "
        + " | ".join(CLIP_ASPECTS)
        + " |\n"
        + "|---" * (len(CLIP_ASPECTS) + 1)
        + "|\n"
    )
    rows = []
    for job in chosen:
        summary = grade_files(panel, [job.path])["summary"]
        cells = (summary[aspect] for aspect in CLIP_ASPECTS)
        rows.append(
            f"| {job.request.checkpoint} | " + " | ".join("–" if c is None else f"{c:.2f}" for c in cells) + " |"
        )
    return head + "\n".join(rows)


# --- The web application ---

STUDIO_HEADERS = {
    # gradio's page needs its own inline scripts; nothing may be loaded from or sent to other hosts.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'",
}
_FETCH_ROUTES = re.compile(r"/gradio_api/(?:proxy=|file=\s*[a-z][a-z0-9+.-]*:)", re.IGNORECASE)
"""Routes of gradio that would fetch other addresses on behalf of a client."""
_TIDY_SECONDS = 600.0
_LOG = logging.getLogger(__name__)


class Studio:
    """Folders, render queue, training and preference studies behind one page."""

    def __init__(self, folder: Path, limits: StudioLimits) -> None:
        self.folder, self.limits = folder, limits
        self.queue = RenderQueue(folder / "videos", limits)
        self.training = Training(folder / "runs")
        self._studies: dict[Path, str] = {}
        self._closed = threading.Event()
        self.tidy()
        threading.Thread(target=self._keep_tidy, name="studio tidy", daemon=True).start()

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

    @property
    def uploads(self) -> Path:
        """The folder in which gradio stores uploads."""
        return self.folder.resolve() / "uploads"

    def tidy(self) -> None:
        """Delete uploads and videos that are too old or too many."""
        self.queue.tidy()
        delete_old_files(self.uploads, self.limits.hours, self.limits.kept_megabytes)

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


def studio_app(studio: Studio) -> FastAPI:
    """Build the web application of a studio.

    Raises:
        BadInput: gradio is not installed.
    """
    studio.uploads.mkdir(parents=True, exist_ok=True)
    os.environ.update(GRADIO_TEMP_DIR=str(studio.uploads), GRADIO_ANALYTICS_ENABLED="False")
    try:
        import gradio
    except ImportError as error:
        raise BadInput("The studio needs the package gradio: pip install 'flowportrait[studio]'.") from error

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
            raise HTTPException(500, strip_paths(str(error))) from None
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type="video/mp4", filename="talking-portrait.mp4")

    mounted = gradio.mount_gradio_app(
        app, build_page(studio), "/", server_name="127.0.0.1", max_file_size=f"{studio.limits.megabytes}mb",
        ssr_mode=False,
        enable_monitoring=False, **GRADIO_OPTIONS,
    )  # fmt: skip

    @mounted.middleware("http")
    async def block_fetch_routes(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        return Response(status_code=404) if _FETCH_ROUTES.match(request.url.path) else await call(request)

    mounted.add_middleware(
        RequestGuard, largest_body=(studio.limits.megabytes + 1) * 2**20, headers=STUDIO_HEADERS,
        content_types={"/": ("application/json", "multipart/form-data")},
    )  # fmt: skip
    return mounted


def serve_studio(studio: Studio, port: int, ready: Callable[[str], None]) -> None:
    """Serve the studio until Ctrl-C.

    Args:
        studio: the studio.
        port: port on the loopback address; 0 for a free one.
        ready: called with the address.

    Raises:
        BadInput: gradio is not installed, or the port is in use.
    """
    with bind_listener("127.0.0.1", port) as listener:
        server = make_server(studio_app(studio), lambda: ready(f"{listener_url(listener)}/"))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    studio.close()


# --- The page ---

GRADIO_OPTIONS: dict[str, Any] = {
    "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "footer_links": [],
    "css": "video.show {width: 100%; max-height: 70vh; background: #222; border-radius: 8px}",
}
VOICE_CHOICES = [
    DEFAULT_VOICE,
    "espeak:en",
    "espeak:de",
    "espeak:fr",
    "espeak:es",
    "espeak:ru",
    "espeak:ar",
    "espeak:cmn",
]
GUIDANCE_EFFECTS = {"sync": "mouth", "expression": "brows and lids, a little", "motion": "head"}
"""What guidance by a dimension visibly changes; see ``docs/preference_methods.md``."""
LARGEST_FACE = "the largest"
_TABS = 32
"""Number of browser tabs that can wait for their videos at the same time."""
_EMPTY_VIDEO = "<video class='show'></video>"


def uploaded_path(payload: Any) -> str | None:
    """Return the path of an upload; replaces gradio's own decoding, so that errors are our own sentences."""
    return None if payload is None else payload.path


def build_page(studio: Studio) -> gr.Blocks:
    """Build the page with all tabs of a studio."""
    with gr.Blocks(title="FlowPortrait studio", analytics_enabled=False) as blocks:
        gr.Markdown("# FlowPortrait studio\nEverything stays on this machine. Animate only people who agreed to it.")
        with gr.Row():
            with gr.Column(scale=1):
                photo = gr.Image(label="Photo", sources=["upload", "clipboard"], height=260, elem_id="photo")
                text = gr.Textbox(label="Say", lines=3, elem_id="text", placeholder="Type what the portrait says …")
                voice = gr.Dropdown(VOICE_CHOICES, value=DEFAULT_VOICE, label="Voice", allow_custom_value=True)
                audio = gr.Audio(label="… or speak", sources=["upload", "microphone"], elem_id="audio")
                photo.preprocess = audio.preprocess = uploaded_path
                face = gr.Dropdown([LARGEST_FACE], value=LARGEST_FACE, label="Face", visible=False, elem_id="face")
                whole = gr.Checkbox(label="Show the whole photo", elem_id="whole")
                notes = gr.Markdown(elem_id="photo-notes")
                with gr.Accordion("Motion", open=False):
                    expression = gr.Slider(0, 3, 1, label="Expression")
                    head = gr.Slider(0, 3, 1, label="Head motion")
                    blink = gr.Slider(0, 3, 1, label="Blinks")
                    seed = gr.Number(0, label="Seed", precision=0)
                with gr.Accordion("Guidance", open=False):
                    gr.Markdown(
                        "How much a reward changes every chunk: 0 is off, the right end is the largest useful weight."
                    )
                    guide = [gr.Slider(0, MAX_USEFUL_GUIDE_WEIGHT[name], 0, elem_id=f"guide-{name}",
                                       label=f"{name.capitalize()} ({GUIDANCE_EFFECTS[name]})")
                             for name in GUIDE_DIMENSIONS]  # fmt: skip
            with gr.Column(scale=2):
                inputs = [photo, audio, text, voice, seed, expression, head, blink, face, whole, *guide]
                with gr.Tab("Speak"):
                    _speak_tab(studio, inputs)
                with gr.Tab("Compare"):
                    _compare_tab(studio, inputs)
                with gr.Tab("Train"):
                    _train_tab(studio)
                with gr.Tab("Ask people"):
                    _study_tab(studio)
        photo.change(_photo_changed, photo, [face, notes])
        face.input(_face_changed, [photo, face], notes)
    return blocks


def _photo_changed(photo: str | None) -> tuple[Any, str]:
    """Return the choices of faces in a photo, and notes about the photo."""
    faces, notes = 1, ""
    if photo:
        try:
            found = find_portrait(Path(photo))
            faces, notes = found.faces, "\n\n".join(found.notes)
        except Exception as error:
            notes = _error_text(error)
    choices = [LARGEST_FACE, *(f"{number} from the left" for number in range(1, faces + 1))]
    return gr.Dropdown(choices, value=LARGEST_FACE, visible=faces > 1), notes


def _face_changed(photo: str | None, face: str) -> str:
    try:
        return "\n\n".join(find_portrait(Path(photo), _face_number(face)).notes) if photo else ""
    except Exception as error:
        return _error_text(error)


def _face_number(face: str | None) -> int | None:
    return None if not face or face == LARGEST_FACE else int(face.split()[0])


def _speak_tab(studio: Studio, inputs: list[Any]) -> None:
    checkpoint = _checkpoints("Checkpoint", "rl")
    with gr.Row():
        go = gr.Button("Speak", variant="primary", elem_id="go")
        stop = gr.Button("Stop", elem_id="stop")
        judge = gr.Button("Score", elem_id="score")
    status = gr.Markdown(elem_id="said")
    screen = gr.HTML(_EMPTY_VIDEO)
    current: Any = gr.State(None)

    def speak(request: gr.Request, name: str, *values: Any) -> Iterator[tuple[Any, str, str | None]]:
        yield _EMPTY_VIDEO, "Looking at the photo …", None
        try:
            job = studio.queue.submit(_request(name, values), _tab(request))
        except Exception as error:
            yield _EMPTY_VIDEO, _error_text(error), None
            return
        yield _video(job), job.status_text(), job.name
        # The screen is left alone from here on: a video that is set again begins again.
        while not job.done.wait(0.5):
            yield gr.skip(), job.status_text(), job.name
        yield gr.skip(), _final_status(job), job.name

    go.click(speak, [checkpoint, *inputs], [screen, status, current], show_progress="hidden", concurrency_limit=_TABS)
    stop.click(_stop_own_videos(studio), None, None)
    judge.click(_with_error_text(lambda name: score_jobs(studio.queue.jobs, [name])), current, status)


def _compare_tab(studio: Studio, inputs: list[Any]) -> None:
    with gr.Row():
        first, second = _checkpoints("Left", "sft"), _checkpoints("Right", "rl")
    with gr.Row():
        go = gr.Button("Compare", variant="primary", elem_id="compare")
        stop = gr.Button("Stop", elem_id="stop-both")
        judge = gr.Button("Score both", elem_id="score-both")
    status = gr.Markdown(elem_id="compared")
    with gr.Row():
        left, right = gr.HTML(_EMPTY_VIDEO), gr.HTML(_EMPTY_VIDEO)
    current: Any = gr.State([])

    def compare(request: gr.Request, a: str, b: str, *values: Any) -> Iterator[tuple[Any, Any, str, list[str]]]:
        yield _EMPTY_VIDEO, _EMPTY_VIDEO, "Looking at the photo …", []
        try:
            jobs = [studio.queue.submit(_request(name, values), _tab(request)) for name in (a, b)]
        except Exception as error:
            yield _EMPTY_VIDEO, _EMPTY_VIDEO, _error_text(error), []
            return
        names = [job.name for job in jobs]
        yield _video(jobs[0]), _video(jobs[1]), "Beginning …", names
        for job in jobs:
            while not job.done.wait(0.5):
                yield gr.skip(), gr.skip(), _comparison_status(jobs), names
        yield gr.skip(), gr.skip(), _comparison_status(jobs), names

    go.click(compare, [first, second, *inputs], [left, right, status, current], show_progress="hidden",
             concurrency_limit=_TABS)  # fmt: skip
    stop.click(_stop_own_videos(studio), None, None)
    judge.click(_with_error_text(lambda names: score_jobs(studio.queue.jobs, names)), current, status)


def _train_tab(studio: Studio) -> None:
    from flowportrait.rl.recipes import CARDS

    with gr.Row():
        name = gr.Textbox("mine", label="Name of the run", elem_id="run-name")
        recipe = gr.Dropdown(list(CARDS), value="flow-grpo", label="Recipe")
        start = gr.Textbox("sft", label="Start from")
        iterations = gr.Number(10, label="Iterations", precision=0, elem_id="iterations")
    prompts = gr.Textbox(label="Folder of prompts (images and audio files)", elem_id="prompts")
    with gr.Row():
        go, stop = gr.Button("Start", variant="primary", elem_id="train"), gr.Button("Stop and save", elem_id="halt")
    status = gr.Markdown(elem_id="run")
    curves = gr.LinePlot(x="iteration", y="reward", color="name", height=260)

    def begin(run: str, folder: str, recipe_name: str, checkpoint: str, count: int) -> str:
        studio.training.start(run, folder, recipe_name, checkpoint, count)
        return studio.training.status_text()

    go.click(_with_error_text(begin), [name, prompts, recipe, start, iterations], status)
    stop.click(studio.training.stop, None, None)
    gr.Timer(2).tick(lambda: _progress(studio), None, [status, curves])


def _progress(studio: Studio) -> tuple[Any, Any]:
    """Return the state of the run, and its mean rewards by iteration."""
    import pandas

    if studio.training.run is None:
        return gr.skip(), gr.skip()
    points = [
        {"iteration": index, "name": key.removeprefix("reward/"), "reward": value}
        for index, record in enumerate(studio.training.records())
        for key, value in record.items()
        if key.startswith("reward/")
    ]
    return studio.training.status_text(), pandas.DataFrame(points) if points else gr.skip()


def _study_tab(studio: Studio) -> None:
    folder = gr.Textbox(label="Folder that 'flowportrait preferences study make' wrote", elem_id="study")
    go, status = gr.Button("Open", elem_id="open-study"), gr.Markdown(elem_id="opened")

    def open_study(path: str) -> str:
        address = studio.study(Path(path))
        return f"The study is at <a href='{address}' target='_blank'>{address}</a> as long as the studio runs."

    go.click(_with_error_text(open_study), folder, status)


def _with_error_text(function: Callable[..., str]) -> Callable[..., str]:
    """Wrap a function so that it returns the text of an error instead of raising it."""

    def wrapped(*arguments: Any) -> str:
        try:
            return function(*arguments)
        except Exception as error:
            return _error_text(error)

    return wrapped


def _error_text(error: Exception) -> str:
    """Return the text of an error for the page; an unexpected error is also logged."""
    if isinstance(error, BadInput):
        return strip_paths(str(error))
    _LOG.error("The studio's page failed", exc_info=error)
    return f"That failed ({type(error).__name__}): the terminal has more."


def _tab(request: gr.Request | None) -> str:
    return (request.session_hash if request else None) or ""


def _stop_own_videos(studio: Studio) -> Callable[..., None]:
    """Return the action of a Stop button, which stops the videos of its own tab."""

    def stop(request: gr.Request) -> None:
        studio.queue.stop(_tab(request))

    return stop


def _checkpoints(label: str, value: str) -> Any:
    return gr.Dropdown(
        list(SHIPPED_CHECKPOINTS), value=value, label=f"{label} (or the folder of a run)", allow_custom_value=True
    )


def _request(checkpoint: str, values: tuple[Any, ...]) -> AnimateRequest:
    photo, audio, text, voice, seed, expression, head, blink, face, whole, *guide = values
    return AnimateRequest(
        image=Path(photo) if photo else None, audio=Path(audio) if audio else None, text=text or "", voice=voice,
        checkpoint=checkpoint, seed=int(seed or 0), blink=blink, head_motion=head, expression_scale=expression,
        guide=dict(zip(GUIDE_DIMENSIONS, guide, strict=True)), face=_face_number(face), crop=not whole,
    )  # fmt: skip


def _video(job: RenderJob) -> str:
    return f"<video class='show' src='/live/{job.name}.mp4' controls autoplay playsinline></video>"


def _final_status(job: RenderJob) -> str:
    """Return the state of a job, with a download link once it is complete."""
    if not job.done.is_set() or not job.frames:
        return job.status_text()
    return f"{job.status_text()}\n\n[Download the signed mp4](/signed/{job.name}.mp4)"


def _comparison_status(jobs: list[RenderJob]) -> str:
    return "\n\n".join(f"**{job.request.checkpoint}** {_final_status(job)}" for job in jobs)

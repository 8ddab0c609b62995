"""The page: speak, compare, train, ask people. Every mistake is answered with a sentence where one looks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from flowportrait.checkpoints import SHIPPED
from flowportrait.errors import BadInput
from flowportrait.pipelines.request import GUIDE_DIMENSIONS, USEFUL_GUIDE_WEIGHT, AnimateRequest
from flowportrait.studio.photo import find_portrait
from flowportrait.studio.render_queue import RenderJob
from flowportrait.studio.scores import scores
from flowportrait.studio.server import Studio
from flowportrait.voice.voices import DEFAULT
from flowportrait.web_server import without_paths

LOOK: dict[str, Any] = {
    "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "footer_links": [],
    "css": "video.show {width: 100%; max-height: 70vh; background: #222; border-radius: 8px}",
}
VOICES = [DEFAULT, "espeak:en", "espeak:de", "espeak:fr", "espeak:es", "espeak:ru", "espeak:ar", "espeak:cmn"]
MOVES = {"sync": "mouth", "expression": "brows and lids, a little", "motion": "head"}
"""What a weight of guidance is seen to move; see ``docs/preference_methods.md``."""
LARGEST = "the largest"
_TABS = 32
"""Tabs that can wait for their videos at once."""
_LOG = logging.getLogger(__name__)
_EMPTY = "<video class='show'></video>"


def as_uploaded(payload: Any) -> str | None:
    """In place of gradio's own reading of uploads: whether a file can be read is said in our words."""
    return None if payload is None else payload.path


def page(studio: Studio) -> gr.Blocks:
    """All tabs over one studio."""
    with gr.Blocks(title="FlowPortrait studio", analytics_enabled=False) as blocks:
        gr.Markdown("# FlowPortrait studio\nEverything stays on this machine. Animate only people who agreed to it.")
        with gr.Row():
            with gr.Column(scale=1):
                photo = gr.Image(label="Photo", sources=["upload", "clipboard"], height=260, elem_id="photo")
                text = gr.Textbox(label="Say", lines=3, elem_id="text", placeholder="Type what the portrait says …")
                voice = gr.Dropdown(VOICES, value=DEFAULT, label="Voice", allow_custom_value=True)
                audio = gr.Audio(label="… or speak", sources=["upload", "microphone"], elem_id="audio")
                photo.preprocess = audio.preprocess = as_uploaded
                face = gr.Dropdown([LARGEST], value=LARGEST, label="Face", visible=False, elem_id="face")
                whole = gr.Checkbox(label="Show the whole photo", elem_id="whole")
                notes = gr.Markdown(elem_id="photo-notes")
                with gr.Accordion("Performance", open=False):
                    expression = gr.Slider(0, 3, 1, label="Expression")
                    head = gr.Slider(0, 3, 1, label="Head motion")
                    blink = gr.Slider(0, 3, 1, label="Blinks")
                    seed = gr.Number(0, label="Seed", precision=0)
                with gr.Accordion("Guidance", open=False):
                    gr.Markdown("How much a reward bends every chunk: 0 is off, the right end the most that helps.")
                    guide = [gr.Slider(0, USEFUL_GUIDE_WEIGHT[name], 0, label=f"{name.capitalize()} ({MOVES[name]})",
                                       elem_id=f"guide-{name}") for name in GUIDE_DIMENSIONS]  # fmt: skip
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
        photo.change(_look_at_photo, photo, [face, notes])
        face.input(_look_at_face, [photo, face], notes)
    return blocks


def _look_at_photo(photo: str | None) -> tuple[Any, str]:
    """Which faces can be chosen, and what the photo's owner should know."""
    faces, notes = 1, ""
    if photo:
        try:
            found = find_portrait(Path(photo))
            faces, notes = found.faces, "\n\n".join(found.notes)
        except Exception as error:
            notes = _sentence(error)
    choices = [LARGEST, *(f"{number} from the left" for number in range(1, faces + 1))]
    return gr.Dropdown(choices, value=LARGEST, visible=faces > 1), notes


def _look_at_face(photo: str | None, face: str) -> str:
    try:
        return "\n\n".join(find_portrait(Path(photo), _face_number(face)).notes) if photo else ""
    except Exception as error:
        return _sentence(error)


def _face_number(face: str | None) -> int | None:
    return None if not face or face == LARGEST else int(face.split()[0])


def _speak_tab(studio: Studio, inputs: list[Any]) -> None:
    checkpoint = _checkpoints("Checkpoint", "rl")
    with gr.Row():
        go = gr.Button("Speak", variant="primary", elem_id="go")
        stop = gr.Button("Stop", elem_id="stop")
        judge = gr.Button("Score", elem_id="score")
    said = gr.Markdown(elem_id="said")
    screen = gr.HTML(_EMPTY)
    shown: Any = gr.State(None)

    def speak(request: gr.Request, name: str, *values: Any) -> Iterator[tuple[Any, str, str | None]]:
        yield _EMPTY, "Looking at the photo …", None
        try:
            job = studio.queue.submit(_request(name, values), _tab(request))
        except Exception as error:
            yield _EMPTY, _sentence(error), None
            return
        yield _video(job), job.status_text(), job.name
        # The screen is left alone from here on: a video that is set again begins again.
        while not job.done.wait(0.5):
            yield gr.skip(), job.status_text(), job.name
        yield gr.skip(), _final_status(job), job.name

    go.click(speak, [checkpoint, *inputs], [screen, said, shown], show_progress="hidden", concurrency_limit=_TABS)
    stop.click(_stopping(studio), None, None)
    judge.click(_answered(lambda name: scores(studio.queue.jobs, [name])), shown, said)


def _compare_tab(studio: Studio, inputs: list[Any]) -> None:
    with gr.Row():
        first, second = _checkpoints("Left", "sft"), _checkpoints("Right", "rl")
    with gr.Row():
        go = gr.Button("Compare", variant="primary", elem_id="compare")
        stop = gr.Button("Stop", elem_id="stop-both")
        judge = gr.Button("Score both", elem_id="score-both")
    said = gr.Markdown(elem_id="compared")
    with gr.Row():
        left, right = gr.HTML(_EMPTY), gr.HTML(_EMPTY)
    shown: Any = gr.State([])

    def compare(request: gr.Request, a: str, b: str, *values: Any) -> Iterator[tuple[Any, Any, str, list[str]]]:
        yield _EMPTY, _EMPTY, "Looking at the photo …", []
        try:
            jobs = [studio.queue.submit(_request(name, values), _tab(request)) for name in (a, b)]
        except Exception as error:
            yield _EMPTY, _EMPTY, _sentence(error), []
            return
        names = [job.name for job in jobs]
        yield _video(jobs[0]), _video(jobs[1]), "Beginning …", names
        for job in jobs:
            while not job.done.wait(0.5):
                yield gr.skip(), gr.skip(), _comparison_status(jobs), names
        yield gr.skip(), gr.skip(), _comparison_status(jobs), names

    go.click(compare, [first, second, *inputs], [left, right, said, shown], show_progress="hidden",
             concurrency_limit=_TABS)  # fmt: skip
    stop.click(_stopping(studio), None, None)
    judge.click(_answered(lambda names: scores(studio.queue.jobs, names)), shown, said)


def _train_tab(studio: Studio) -> None:
    from flowportrait.posttrain.recipes import CARDS

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

    def begin(*given: Any) -> str:
        named, folder, chosen, checkpoint, count = given
        studio.training.start(named, folder, chosen, checkpoint, count)
        return studio.training.status_text()

    go.click(_answered(begin), [name, prompts, recipe, start, iterations], status)
    stop.click(studio.training.stop, None, None)
    gr.Timer(2).tick(lambda: _progress(studio), None, [status, curves])


def _progress(studio: Studio) -> tuple[Any, Any]:
    """How the run stands, and its mean rewards by iteration."""
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
    folder = gr.Textbox(label="Folder that 'flowportrait study make' wrote", elem_id="study")
    go, said = gr.Button("Open", elem_id="open-study"), gr.Markdown(elem_id="opened")

    def opened(given: str) -> str:
        address = studio.study(Path(given))
        return f"The study is at <a href='{address}' target='_blank'>{address}</a> as long as the studio runs."

    go.click(_answered(opened), folder, said)


def _answered(act: Callable[..., str]) -> Callable[..., str]:
    def answer(*given: Any) -> str:
        try:
            return act(*given)
        except Exception as error:
            return _sentence(error)

    return answer


def _sentence(error: Exception) -> str:
    """What the page says of an error; one that nobody foresaw is logged as well."""
    if isinstance(error, BadInput):
        return without_paths(str(error))
    _LOG.error("The studio's page failed", exc_info=error)
    return f"That failed ({type(error).__name__}): the terminal has more."


def _tab(request: gr.Request | None) -> str:
    return (request.session_hash if request else None) or ""


def _stopping(studio: Studio) -> Callable[..., None]:
    """What a Stop button does: it ends what its own tab asked for."""

    def stop(request: gr.Request) -> None:
        studio.queue.stop(_tab(request))

    return stop


def _checkpoints(label: str, value: str) -> Any:
    return gr.Dropdown(list(SHIPPED), value=value, label=f"{label} (or the folder of a run)", allow_custom_value=True)


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
    """How it stands, and where the file is once it is complete."""
    if not job.done.is_set() or not job.frames:
        return job.status_text()
    return f"{job.status_text()}\n\n[Download the signed mp4](/signed/{job.name}.mp4)"


def _comparison_status(jobs: list[RenderJob]) -> str:
    return "\n\n".join(f"**{job.request.checkpoint}** {_final_status(job)}" for job in jobs)

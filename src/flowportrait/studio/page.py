"""The page: speak, compare, train, ask people. Every mistake is answered with a sentence where one looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from flowportrait.checkpoints import SHIPPED
from flowportrait.codec.controls import Controls
from flowportrait.errors import BadInput
from flowportrait.steered import DIMENSIONS, USEFUL
from flowportrait.studio.live import Show
from flowportrait.studio.scores import scores
from flowportrait.studio.server import Studio
from flowportrait.studio.wish import Wish
from flowportrait.voice.voices import DEFAULT

LOOK: dict[str, Any] = {
    "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    "footer_links": [],
    "css": "video.show {width: 100%; max-height: 70vh; background: #222; border-radius: 8px}",
}
VOICES = [DEFAULT, "espeak:en", "espeak:de", "espeak:fr", "espeak:es", "espeak:ru", "espeak:ar", "espeak:cmn"]
MOVES = {"sync": "mouth", "expression": "brows and lids, a little", "motion": "head"}
"""What a weight of guidance is seen to move; see ``docs/preference_methods.md``."""
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
                with gr.Accordion("Performance", open=False):
                    expression = gr.Slider(0, 3, 1, label="Expression")
                    head = gr.Slider(0, 3, 1, label="Head motion")
                    blink = gr.Slider(0, 3, 1, label="Blinks")
                    seed = gr.Number(0, label="Seed", precision=0)
                with gr.Accordion("Guidance", open=False):
                    gr.Markdown("How much a reward bends every chunk: 0 is off, the right end the most that helps.")
                    guide = [gr.Slider(0, USEFUL[name], 0, label=f"{name.capitalize()} ({MOVES[name]})",
                                       elem_id=f"guide-{name}") for name in DIMENSIONS]  # fmt: skip
            with gr.Column(scale=2):
                inputs = [photo, audio, text, voice, seed, expression, head, blink, *guide]
                with gr.Tab("Speak"):
                    _speak_tab(studio, inputs)
                with gr.Tab("Compare"):
                    _compare_tab(studio, inputs)
                with gr.Tab("Train"):
                    _train_tab(studio)
                with gr.Tab("Ask people"):
                    _study_tab(studio)
    return blocks


def _speak_tab(studio: Studio, inputs: list[Any]) -> None:
    checkpoint = _checkpoints("Checkpoint", "rl")
    with gr.Row():
        go = gr.Button("Speak", variant="primary", elem_id="go")
        stop = gr.Button("Stop")
        judge = gr.Button("Score", elem_id="score")
    said = gr.Markdown(elem_id="said")
    screen = gr.HTML(_EMPTY)
    shown: Any = gr.State(None)

    def speak(name: str, *wished: Any) -> Iterator[tuple[Any, str, str | None]]:
        try:
            show = studio.theatre.put_on(_wish(name, wished))
        except BadInput as error:
            yield _EMPTY, str(error), None
            return
        yield _video(show), show.told(), show.name
        # The screen is left alone from here on: a video that is set again begins again.
        while not show.done.wait(0.5):
            yield gr.skip(), show.told(), show.name
        yield gr.skip(), show.told(), show.name

    go.click(speak, [checkpoint, *inputs], [screen, said, shown], show_progress="hidden")
    stop.click(studio.theatre.stop, None, None)
    judge.click(lambda name: scores(studio.theatre.shows, [name]), shown, said)


def _compare_tab(studio: Studio, inputs: list[Any]) -> None:
    with gr.Row():
        first, second = _checkpoints("Left", "sft"), _checkpoints("Right", "rl")
    with gr.Row():
        go = gr.Button("Compare", variant="primary", elem_id="compare")
        judge = gr.Button("Score both", elem_id="score-both")
    said = gr.Markdown(elem_id="compared")
    with gr.Row():
        left, right = gr.HTML(_EMPTY), gr.HTML(_EMPTY)
    shown: Any = gr.State([])

    def compare(a: str, b: str, *wished: Any) -> Iterator[tuple[Any, Any, str, list[str]]]:
        try:
            shows = [studio.theatre.put_on(_wish(name, wished)) for name in (a, b)]
        except BadInput as error:
            yield _EMPTY, _EMPTY, str(error), []
            return
        names = [show.name for show in shows]
        yield _video(shows[0]), _video(shows[1]), "Beginning …", names
        for show in shows:
            while not show.done.wait(0.5):
                yield gr.skip(), gr.skip(), _told(shows), names
        yield gr.skip(), gr.skip(), _told(shows), names

    go.click(compare, [first, second, *inputs], [left, right, said, shown], show_progress="hidden")
    judge.click(lambda names: scores(studio.theatre.shows, names), shown, said)


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
    told = gr.Markdown(elem_id="run")
    curves = gr.LinePlot(x="iteration", y="reward", color="name", height=260)

    def begin(*given: Any) -> str:
        named, folder, chosen, checkpoint, count = given
        studio.training.start(named, folder, chosen, checkpoint, count)
        return studio.training.told()

    go.click(_answered(begin), [name, prompts, recipe, start, iterations], told)
    stop.click(studio.training.stop, None, None)
    gr.Timer(2).tick(lambda: _progress(studio), None, [told, curves])


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
    return studio.training.told(), pandas.DataFrame(points) if points else gr.skip()


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
        except BadInput as error:
            return str(error)

    return answer


def _checkpoints(label: str, value: str) -> Any:
    return gr.Dropdown(list(SHIPPED), value=value, label=f"{label} (or the folder of a run)", allow_custom_value=True)


def _wish(checkpoint: str, wished: tuple[Any, ...]) -> Wish:
    photo, audio, text, voice, seed, expression, head, blink, *guide = wished
    return Wish(
        Path(photo) if photo else None, Path(audio) if audio else None, text or "", voice, checkpoint, int(seed or 0),
        Controls(blink=blink, head_motion=head, expression_scale=expression), dict(zip(DIMENSIONS, guide, strict=True)),
    )  # fmt: skip


def _video(show: Show) -> str:
    address = f"/live/{show.name}.mp4"
    screen = f"<video class='show' src='{address}' controls autoplay playsinline></video>"
    return f"{screen}<a href='{address}' download>mp4</a>"


def _told(shows: list[Show]) -> str:
    return "\n\n".join(f"**{show.wish.checkpoint}** {show.told()}" for show in shows)

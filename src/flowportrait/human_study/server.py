"""This module serves the web page of a study.

    GET    /api/study                               title, number of screens, and the text to agree to
    POST   /api/participants                        begin; the response has the link token
    GET    /api/participants/TOKEN                  questions, number of screens, the first unfinished screen
    GET    /api/participants/TOKEN/trials/I         the two videos and the answers so far
    PUT    /api/participants/TOKEN/trials/I         one answer: aspect and left | same | right
    DELETE /api/participants/TOKEN/answers          withdraw all answers

The browser receives neutral file names and sides, but neither the systems nor which screens are checks. Requests are
not logged, there are no cookies, and the page loads nothing from other servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse
from pydantic import BaseModel

from flowportrait.human_study.consent import read_consent
from flowportrait.human_study.plan import (
    MAX_PARTICIPANTS,
    MEDIA_FOLDER,
    QUESTIONS,
    AnswerStore,
    Study,
    StudyFull,
    Trial,
)
from flowportrait.preferences.dataset import Aspect, Label
from flowportrait.web_server import LOOPBACK, RequestGuard

PAGE_FILES = {"index.html": "text/html", "study.css": "text/css", "study.js": "text/javascript"}
"""The files of the page and their media types."""
MAX_ANSWER_BYTES = 4096
"""Largest body of a request in bytes."""
STUDY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; media-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
SideChoice = Literal["left", "same", "right"]


class PostedAnswer(BaseModel, extra="forbid"):
    """The body of a request with one answer."""

    aspect: Aspect
    choice: SideChoice


def study_app(
    folder: Path, hosts: Sequence[str] = LOOPBACK, participants: int = MAX_PARTICIPANTS, preview: Path | None = None
) -> FastAPI:
    """Return the web application of a study.

    Args:
        folder: folder of the study.
        hosts: host names under which the server may be called.
        participants: limit of participants.
        preview: show the page to look at it, with answers in this other folder; its consent text may be unfinished.

    Raises:
        BadInput: the folder holds no study, its answers belong to another one, or its consent text has placeholders.
    """
    study = Study.load(folder)
    consent = [section._asdict() for section in read_consent(folder, complete=preview is None)]
    store = AnswerStore(preview or folder, study)
    app = FastAPI(title=study.title, openapi_url=None)
    app.add_middleware(
        RequestGuard, hosts=hosts, largest_body=MAX_ANSWER_BYTES, content_types={"/api/": ("application/json",)},
        headers=STUDY_HEADERS,
    )  # fmt: skip
    page = Path(str(files("flowportrait") / "human_study" / "page"))

    def trials(token: str) -> list[Trial]:
        number = store.number(token)
        if number is None:
            raise HTTPException(404, "Nobody has this link: begin a new session.")
        return study.trials(token, number)

    def trial(token: str, index: int) -> Trial:
        planned = trials(token)
        if not 0 <= index < len(planned):
            raise HTTPException(404, f"There are {len(planned)} screens.")
        return planned[index]

    @app.get("/")
    @app.get("/p/{token}")
    def show(token: str = "") -> FileResponse:
        return FileResponse(page / "index.html", media_type=PAGE_FILES["index.html"])

    @app.get("/page/{name}")
    def part(name: str) -> FileResponse:
        if name not in PAGE_FILES:
            raise HTTPException(404)
        return FileResponse(page / name, media_type=PAGE_FILES[name])

    @app.get("/media/{name}")
    def video(name: str) -> FileResponse:
        # FileResponse supports byte ranges, which browsers need to loop a video.
        if name not in study.files:
            raise HTTPException(404)
        return FileResponse(
            folder / MEDIA_FOLDER / name, media_type="video/mp4", headers={"Cache-Control": "private, max-age=86400"}
        )

    @app.get("/api/study")
    def about() -> dict[str, Any]:
        screens = min(study.share or len(study.pairs), len(study.pairs)) + len(study.checks)
        return {"title": study.title, "screens": screens, "consent": consent, "preview": preview is not None}

    @app.post("/api/participants")
    def add_participant() -> dict[str, str]:
        try:
            return {"token": store.add_participant(participants)}
        except StudyFull:
            raise HTTPException(403, "This study has all the participants that it can take.") from None

    @app.get("/api/participants/{token}")
    def progress(token: str) -> dict[str, Any]:
        planned, answers = trials(token), store.answers(token)
        finished = [answers.get(one.comparison.key, {}).keys() >= QUESTIONS.keys() for one in planned]
        return {
            "questions": [{"aspect": aspect, "text": text} for aspect, text in QUESTIONS.items()],
            "total": len(planned),
            "finished": sum(finished),
            "first": finished.index(False) if False in finished else len(planned),
        }

    @app.get("/api/participants/{token}/trials/{index}")
    def screen(token: str, index: int) -> dict[str, Any]:
        current = trial(token, index)
        sides = [f"/media/{name}" for name in (current.comparison.a, current.comparison.b)]
        left, right = reversed(sides) if current.flipped else sides
        answers = store.answers(token).get(current.comparison.key, {})
        return {
            "left": left,
            "right": right,
            "answers": {aspect: choice_of_label(label, current.flipped) for aspect, label in answers.items()},
        }

    @app.put("/api/participants/{token}/trials/{index}")
    def answer(token: str, index: int, posted: PostedAnswer) -> dict[str, bool]:
        current = trial(token, index)
        store.answer(token, current.comparison.key, posted.aspect, label_of_choice(posted.choice, current.flipped))
        return {"kept": True}

    @app.delete("/api/participants/{token}/answers")
    def withdraw(token: str) -> dict[str, bool]:
        trials(token)
        store.withdraw(token)
        return {"withdrawn": True}

    return app


def label_of_choice(choice: SideChoice, flipped: bool) -> Label:
    """Return the label of a choice.

    Args:
        choice: the side that was chosen, or ``same``.
        flipped: whether the comparison's a, the first clip of the label, was on the right.
    """
    if choice == "same":
        return Label.TIE
    return Label.FIRST if (choice == "left") != flipped else Label.SECOND


def choice_of_label(label: Label, flipped: bool) -> SideChoice:
    """Return the choice that ``label_of_choice`` turns into ``label``."""
    if label is Label.TIE:
        return "same"
    return "left" if (label is Label.FIRST) != flipped else "right"

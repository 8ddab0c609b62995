"""Drawing a job of the studio's queue.

    a photo, mp4      ─► AnimatePipeline.stream ─► a file that is watched while it grows
    anything else     ─► AnimatePipeline, dub, conversation ─► a signed file

``prepare`` checks a request and reads what is cheap to read; what it returns does the work.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.media.audio import Sound, read_sound
from flowportrait.media.mel import frame_count
from flowportrait.media.portrait import Portrait
from flowportrait.media.stream import concatenate_sounds, resample_to_speech
from flowportrait.media.video import FPS
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import (
    ImageInput,
    NoProgressDisplay,
    check_duration,
    describe_quiet_speech,
    synthesize_speech,
)
from flowportrait.pipelines.output import AnimatePipelineOutput
from flowportrait.pipelines.request import AnimateRequest
from flowportrait.speech.text_to_speech import prefetch
from flowportrait.speech.voices import DEFAULT_VOICE, load_voice
from flowportrait.studio.job import DRAWING, JobProgress, RenderJob
from flowportrait.studio.portrait import find_portrait
from flowportrait.studio.storage import StudioLimits

PIECE_SECONDS = 0.5
"""Seconds of the pieces in which recorded speech is passed on."""
MAX_UPLOAD_SECONDS = 3600.0
"""Most seconds of recorded speech that are decoded; otherwise a few bytes could become gigabytes of silence."""
_LETTERS_PER_SECOND = 14.0
"""How fast a voice reads, for the first estimate of the length of a video."""


@lru_cache(maxsize=2)
def load_pipeline(checkpoint: str) -> AnimatePipeline:
    """Load the pipeline of a checkpoint; the two latest ones are cached."""
    return AnimatePipeline.from_pretrained(checkpoint)


def can_be_watched(request: AnimateRequest, suffix: str) -> bool:
    """Return whether a video can be watched while it is drawn: an mp4 of a photo without a choice at its end."""
    chosen_later = request.best_of > 1 and not request.prune
    return bool(request.image and suffix == ".mp4" and not request.motion_in and not chosen_later)


def prepare(job: RenderJob, limits: StudioLimits) -> Callable[[], None]:
    """Check a job's request and return the function that draws it.

    Raises:
        BadInput: the request cannot be drawn.
    """
    request = job.request
    request.check_inputs()
    request.controls()
    job.live = can_be_watched(request, job.path.suffix)
    if request.speakers:
        turns = [(turn.speaker, _cut(read_recording(turn.audio), limits, job)) for turn in request.speakers]
        return lambda: _draw_conversation(job, turns, limits)
    sound = iterate_speech(request, limits, job.cut.set)
    job.total_frames = _expected_frames(request, limits)
    if request.audio is not None:
        sound = iter(_checked(list(sound), job))
    if request.image is None:
        return lambda: _draw_dubbed(job, sound, limits)
    found = find_portrait(request.image, request.face, not request.crop, request.size, request.background)
    job.notes += found.notes
    draw = _draw_live if job.live else _draw_photo
    return lambda: draw(job, found.portrait, sound, limits)


# --- Four kinds of video ---


def _draw_live(job: RenderJob, portrait: Portrait, sound: Iterator[Sound], limits: StudioLimits) -> None:
    progress = JobProgress(job, limits.minutes)
    stream = _pipeline(job, progress).run_stream(job.request, _count_speech(sound, job), portrait)

    def watched(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        job.begin_stage(DRAWING, job.total_frames)
        for frame in frames:
            yield frame
            job.count_frame()
            job.stage_done, job.stage_total = job.frames, job.total_frames
            if job.stop.is_set():
                job.stopped = True  # what was drawn stays a video
                return
            try:
                progress.check()
            except BadInput as error:
                job.error = str(error)
                return

    # Unbuffered, so that everything written can be watched at once.
    with job.path.open("wb", buffering=0) as file:
        stream.save(file, watch=watched)


def _draw_photo(job: RenderJob, portrait: Portrait, sound: Iterator[Sound], limits: StudioLimits) -> None:
    request = job.request
    pipeline, spoken = _pipeline(job, JobProgress(job, limits.minutes)), _spoken(job, sound)
    _save(job, pipeline(portrait, spoken, **_settings(request)))


def _draw_dubbed(job: RenderJob, sound: Iterator[Sound], limits: StudioLimits) -> None:
    request = job.request
    assert request.video is not None
    pipeline, spoken = _pipeline(job, JobProgress(job, limits.minutes)), _spoken(job, sound)
    _save(job, pipeline.dub(request.video, spoken, seed=request.seed, face=request.face, loop=request.loop,
                            denoise=request.denoise))  # fmt: skip


def _draw_conversation(job: RenderJob, turns: list[tuple[int, Sound]], limits: StudioLimits) -> None:
    request = job.request
    photos: list[ImageInput] = [
        next(turn.image for turn in request.speakers if turn.speaker == speaker) for speaker in (0, 1)
    ]
    pipeline = _pipeline(job, JobProgress(job, limits.minutes))
    settings = {name: value for name, value in _settings(request).items() if name not in ("face", "motion_in")}
    _save(job, pipeline.conversation(photos, turns, turns=request.turns, **settings))


def _save(job: RenderJob, video: AnimatePipelineOutput) -> None:
    job.total_frames = len(video.frames)
    job.notes += [note for note in video.notes if note not in job.notes]
    if video.candidates:
        job.notes.append(f"The best of {len(video.candidates)} has the seed {video.seed}.")
    video.save(job.path)


def _settings(request: AnimateRequest) -> dict[str, Any]:
    names = ("seed", "intensity", "denoise", "size", "crop", "background", "face", "blink", "head_motion",
             "expression_scale", "gaze", "emotion", "motion_in", "guide", "best_of", "by", "prune")  # fmt: skip
    return {name: getattr(request, name) for name in names}


def _pipeline(job: RenderJob, progress: JobProgress) -> AnimatePipeline:
    # The networks are small: threads that wait for each other cost far more than they bring.
    torch.set_num_threads(1)
    job.begin_stage("loading the model", None)
    pipeline = load_pipeline(job.request.checkpoint)
    pipeline.display = NoProgressDisplay() if job.live else progress
    job.begin_stage("beginning", None)
    return pipeline


# --- Speech ---


def iterate_speech(request: AnimateRequest, limits: StudioLimits, cut: Callable[[], None]) -> Iterator[Sound]:
    """Yield the speech of a request in pieces, with its own rate and channels, up to the limits.

    Args:
        request: a request with a recording or a text; the recording has precedence.
        limits: limits of the studio.
        cut: called if the speech is longer than a video may be.

    Raises:
        BadInput: there is no speech, the text is too long, or there is no such voice.
    """
    text = request.text or ""
    if request.audio is not None:
        pieces = _split(read_recording(request.audio))
    elif not text.strip():
        raise BadInput("There is nothing to say yet: type a text, or choose or record speech.")
    elif len(text) > limits.letters:
        raise BadInput(f"The text has {len(text)} letters, more than {limits.letters}: shorten it.")
    else:
        load_voice(request.voice or DEFAULT_VOICE)
        pieces = prefetch(synthesize_speech([text], request.voice))
    return _limit_seconds(pieces, limits.seconds, cut)


def read_recording(path: Path) -> Sound:
    """Read a recording of at most an hour.

    Raises:
        BadInput: it cannot be read, or is longer.
    """
    return read_sound(path, longest=MAX_UPLOAD_SECONDS)


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


def _cut(sound: Sound, limits: StudioLimits, job: RenderJob) -> Sound:
    return concatenate_sounds(_limit_seconds(iter([sound]), limits.seconds, job.cut.set))


def _checked(pieces: list[Sound], job: RenderJob) -> list[Sound]:
    """Return the pieces of a recording after checking that they are long and loud enough."""
    speech = np.concatenate(list(resample_to_speech(pieces)))
    if not job.request.motion_in:
        check_duration(speech)
    job.total_frames = frame_count(speech)
    if note := describe_quiet_speech(speech, "The recording"):
        job.notes.append(note)
    return pieces


def _spoken(job: RenderJob, sound: Iterator[Sound]) -> Sound:
    job.begin_stage("reading the speech", None)
    pieces = list(sound)
    if not pieces:
        raise BadInput("There is nothing to say yet: the text has no words.")
    return concatenate_sounds(pieces)


def _expected_frames(request: AnimateRequest, limits: StudioLimits) -> int:
    seconds = limits.seconds
    if request.audio is None:
        seconds = min(seconds, max(1.0, len(request.text or "") / _LETTERS_PER_SECOND))
    return round(seconds * FPS)


def _count_speech(pieces: Iterator[Sound], job: RenderJob) -> Iterator[Sound]:
    """Yield the pieces, and then set how many frames the video will have."""
    seconds = 0.0
    for piece in pieces:
        seconds += piece.samples.shape[1] / piece.rate
        job.total_frames = max(job.total_frames or 0, round(seconds * FPS))
        yield piece
    job.total_frames = max(1, round(seconds * FPS))


# --- Warnings ---

_sink = threading.local()


@contextmanager
def warnings_into(notes: list[str]) -> Iterator[None]:
    """Append the warnings of this thread to ``notes`` while the block runs."""
    show = warnings.showwarning

    def collect(message: Any, category: Any, *rest: Any, **named: Any) -> None:
        found = getattr(_sink, "notes", None)
        if found is None or not issubclass(category, UserWarning):
            show(message, category, *rest, **named)
        elif str(message) not in found:
            found.append(str(message))

    _sink.notes = notes
    warnings.showwarning = collect
    warnings.filterwarnings("always", category=UserWarning, module="flowportrait")
    try:
        yield
    finally:
        _sink.notes = None
        warnings.showwarning = show


def warm_up() -> None:
    """Load what the first video needs, so that it begins at once."""
    from flowportrait import samples

    torch.set_num_threads(1)
    load_pipeline("rl")
    for name in samples.PORTRAITS:
        find_portrait(samples.portrait_path(name), None, whole=True)
        break

"""This module describes a judge's server and encodes pictures, video and sound as chat message parts.

Message parts and the servers that take them:

    image_url   data:image/jpeg     all servers                   input_audio   wav in base64       OpenAI, vLLM
    video_url   data:video/mp4      vLLM, SGLang, this package    audio_url     data:audio/wav      vLLM, SGLang
"""

from __future__ import annotations

import base64
import io
import tempfile
import wave
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.judges.clips import JudgeInput
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.video import FPS
from flowportrait.media.write_video import write_video
from flowportrait.web_client import api_key_for, check_server_address

NO_KEY = "none"
SERVED_PANEL_MODEL = "flowportrait-panel"
"""The model name of the measured panel that ``flowportrait judge serve`` offers."""
NOTHING_SHOWN = "No pictures and no sound are attached: nothing of the clip can be seen or heard."
"""The sentence that takes the place of pictures and sound where a server is sent neither."""
_JPEG = 90


@dataclass(frozen=True)
class MediaFormats:
    """The kinds of message parts that are sent to a server."""

    images: bool = True
    """Send sheets of close-ups, faces and differences as pictures."""
    video: bool = False
    """Send the aspect's close-ups as mp4."""
    audio: Literal["input_audio", "audio_url", "off"] = "input_audio"
    """The message part in which sound is sent."""
    clip: bool = False
    """Send the whole clip with its sound as mp4; the panel of ``flowportrait judge serve`` needs it."""

    @property
    def has_media(self) -> bool:
        """Whether anything of a clip is sent; without pictures and sound a model is a control that must lose."""
        return self.images or self.video or self.clip or self.audio != "off"

    @property
    def key(self) -> str:
        """The formats as a part of the model's id.

        The text is that of version 0.1, because the addresses of cached replies depend on it.
        """
        names = ("images", "video", "audio", "clip")
        return f"Shows({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


@dataclass(frozen=True)
class Endpoint:
    """The address of a judge's server and the settings of requests to it."""

    url: str = "http://127.0.0.1:8000/v1"
    """Base address of an OpenAI-compatible server: vLLM, SGLang, a hosted one, or ``flowportrait judge serve``."""
    model: str = ""
    """The model's name on the server."""
    key_env: str = ""
    """Environment variable that holds the key, ``FLOWPORTRAIT_…_KEY``, with the host it is for in
    ``FLOWPORTRAIT_…_HOST``; empty: OPENAI_API_KEY if ``url`` is OpenAI's, and no key elsewhere."""
    shows: MediaFormats = field(default_factory=MediaFormats)
    """What is sent of a clip or picture."""
    temperature: float = 0.7
    """Temperature of the sampling."""
    max_tokens: int = 700
    """Maximum length of an answer in tokens."""
    top_logprobs: int = 10
    """Number of alternatives to ask for at every token; 0 for a server without log-probabilities."""
    json_schema: bool = True
    """Ask the server to enforce the JSON schema of answers; if it refuses, later requests go without the schema."""
    timeout: float = 120.0
    """Time limit of one request in seconds."""
    attempts: int = 6
    """Requests per question while the server is away, busy or fails."""
    answers: int = 3
    """Answers per question while they are refusals or unusable."""
    first_wait: float = 0.5
    """Seconds before the first repetition; doubled each time."""
    longest_wait: float = 30.0
    """Longest pause before a repetition in seconds."""
    patience: float = 300.0
    """Longest pause that a server may ask for, in seconds; if it asks for more, the question fails."""
    concurrency: int = 8
    """Questions that are asked at the same time."""
    per_minute: float = 0.0
    """Requests begun per minute, 0 for no limit."""
    dollars_in: float = 0.0
    """Price of a million input tokens."""
    dollars_out: float = 0.0
    """Price of a million output tokens."""

    def __post_init__(self) -> None:
        at_least(self, attempts=1, answers=1, concurrency=1, timeout=0.01, max_tokens=16, top_logprobs=0, per_minute=0,
                 first_wait=0, longest_wait=0, patience=0, temperature=0, dollars_in=0, dollars_out=0)  # fmt: skip

    @property
    def model_id(self) -> str:
        """The settings that change answers (model, sampling, formats), without the address of the server."""
        return f"{self.model} {self.temperature:g} {self.max_tokens} {self.top_logprobs} {self.shows.key}"

    def key(self) -> str:
        """Return the key from the environment, ``NO_KEY`` if there is none.

        Raises:
            BadInput: the key is not meant for this server.
        """
        return api_key_for(self.url, self.key_env) or NO_KEY

    def checked(self) -> Endpoint:
        """Return the endpoint itself after checking that it can be used.

        Raises:
            BadInput: no model is named, the address is invalid or not safe, or the key is not meant for it.
        """
        if not self.model:
            raise BadInput("A judge by server needs the model's name: --set endpoint.model=NAME.")
        check_server_address(self.url, "endpoint.url")
        self.key()
        return self


def message_parts(judge_input: JudgeInput, formats: MediaFormats) -> list[dict[str, Any]]:
    """Return a specialist's input as message parts, pictures in order of time.

    Without pictures and sound the only part is a sentence that says so.
    """
    if not formats.has_media:
        return [text_part(NOTHING_SHOWN)]
    parts: list[dict[str, Any]] = []
    if formats.images:
        for caption, picture in judge_input.pictures:
            parts += [text_part(caption), {"type": "image_url", "image_url": {"url": jpeg_url(picture)}}]
    if formats.video:
        caption = f"The same as a video, {judge_input.fps:.3g} frames a second"
        url = mp4_url(judge_input.video, None, judge_input.fps)
        parts += [text_part(caption), {"type": "video_url", "video_url": {"url": url}}]
    if formats.clip:
        url = mp4_url(judge_input.clip.frames, judge_input.clip.audio, FPS)
        parts += [text_part("The whole clip"), {"type": "video_url", "video_url": {"url": url}}]
    if len(judge_input.audio) and formats.audio != "off":
        data = base64.b64encode(wav_bytes(judge_input.audio)).decode()
        if formats.audio == "input_audio":
            audio_part: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        else:
            audio_part = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        parts += [text_part("The sound"), audio_part]
    return parts


def text_part(text: str) -> dict[str, Any]:
    """Return text as a message part."""
    return {"type": "text", "text": text}


def jpeg_url(picture: np.ndarray) -> str:
    """Return a picture ``[H, W, 3]`` uint8 RGB as a data URL."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def wav_bytes(samples: np.ndarray) -> bytes:
    """Return 16 kHz mono samples ``[N]`` as a 16-bit wav file."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).round().clip(-32768, 32767).astype("<i2").tobytes())
    return target.getvalue()


def mp4_url(frames: np.ndarray, audio: np.ndarray | None, fps: float) -> str:
    """Return frames ``[T, H, W, 3]`` uint8 with sound as an mp4 data URL.

    A frame rate that is not a whole number is written as 25 fps with repeated frames.
    """
    if round(fps) != fps:
        moments = (np.arange(round(len(frames) * FPS / fps)) * fps / FPS).astype(int)
        frames, fps = frames[np.minimum(moments, len(frames) - 1)], FPS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, iter(frames), audio, fps=int(fps))
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()

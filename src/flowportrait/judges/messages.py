"""Questions as chat messages with pictures and sound.

image_url   data:image/jpeg     everywhere                    input_audio   wav in base64       OpenAI, vLLM
video_url   data:video/mp4      vLLM, SGLang and ours         audio_url     data:audio/wav      vLLM, SGLang
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
from flowportrait.web_client import check_address, key_for

KEYLESS = "none"
OWN_MODEL = "flowportrait-panel"
"""What ``flowportrait judge serve`` calls its measured panel."""
_JPEG = 90


@dataclass(frozen=True)
class MediaFormats:
    """The message parts that a server can take."""

    images: bool = True
    """Sheets of close-ups, faces and differences as pictures."""
    video: bool = False
    """The aspect's close-ups as mp4."""
    audio: Literal["input_audio", "audio_url", "off"] = "input_audio"
    clip: bool = False
    """The whole clip with its sound as mp4: what the panel served by ``flowportrait judge serve`` wants."""

    @property
    def key(self) -> str:
        """As part of a model's id, in the words of the first version: cached replies are found by it."""
        names = ("images", "video", "audio", "clip")
        return f"Shows({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and how it may be used."""

    url: str = "http://127.0.0.1:8000/v1"
    """Base address of an OpenAI-compatible server: vLLM, SGLang, a hosted one, or ``flowportrait judge serve``."""
    model: str = ""
    key_env: str = ""
    """Environment variable that holds the key, FLOWPORTRAIT_…_KEY, with the host it is for in FLOWPORTRAIT_…_HOST;
    empty: OPENAI_API_KEY where ``url`` is OpenAI's, and no key elsewhere. See ``api_keys``."""
    shows: MediaFormats = field(default_factory=MediaFormats)
    temperature: float = 0.7
    max_tokens: int = 700
    top_logprobs: int = 10
    """Alternatives to ask for at every token; 0: the server has none."""
    json_schema: bool = True
    """Let the server hold answers to their JSON schema; a server that refuses is asked without from then on."""
    timeout: float = 120.0
    """Seconds for one request."""
    attempts: int = 6
    """Requests per question while the server is away, busy or fails."""
    answers: int = 3
    """Answers per question while they are refused or not what was asked for."""
    first_wait: float = 0.5
    """Seconds before the first repetition; doubled each time."""
    longest_wait: float = 30.0
    patience: float = 300.0
    """A server that asks for a longer pause than this many seconds is given up for now."""
    concurrency: int = 8
    per_minute: float = 0.0
    """Requests begun per minute, 0: no limit."""
    dollars_in: float = 0.0
    """Price of a million tokens read."""
    dollars_out: float = 0.0
    """Price of a million tokens written."""

    def __post_init__(self) -> None:
        at_least(self, attempts=1, answers=1, concurrency=1, timeout=0.01, max_tokens=16, top_logprobs=0, per_minute=0,
                 first_wait=0, longest_wait=0, patience=0, temperature=0, dollars_in=0, dollars_out=0)  # fmt: skip

    @property
    def model_id(self) -> str:
        """What changes the answers: model and sampling, not the address of the server."""
        return f"{self.model} {self.temperature:g} {self.max_tokens} {self.top_logprobs} {self.shows.key}"

    def key(self) -> str:
        """Return the key from the environment.

        Raises:
            BadInput: it is not meant for this server.
        """
        return key_for(self.url, self.key_env) or KEYLESS

    def checked(self) -> Endpoint:
        """Return itself if it can be used.

        Raises:
            BadInput: no model is named, the address is none or not safe, or the key is not meant for it.
        """
        if not self.model:
            raise BadInput("A judge by server needs the model's name: --set endpoint.model=NAME.")
        check_address(self.url, "endpoint.url")
        self.key()
        return self


def message_parts(shown: JudgeInput, formats: MediaFormats) -> list[dict[str, Any]]:
    """Return what is shown as message parts, pictures in order of time."""
    parts: list[dict[str, Any]] = []
    if formats.images:
        for caption, picture in shown.pictures:
            parts += [text_part(caption), {"type": "image_url", "image_url": {"url": jpeg_url(picture)}}]
    if formats.video:
        caption = f"The same as a video, {shown.fps:.3g} frames a second"
        url = mp4_url(shown.video, None, shown.fps)
        parts += [text_part(caption), {"type": "video_url", "video_url": {"url": url}}]
    if formats.clip:
        url = mp4_url(shown.clip.frames, shown.clip.audio, FPS)
        parts += [text_part("The whole clip"), {"type": "video_url", "video_url": {"url": url}}]
    if len(shown.audio) and formats.audio != "off":
        data = base64.b64encode(wav_bytes(shown.audio)).decode()
        if formats.audio == "input_audio":
            sound: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        else:
            sound = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        parts += [text_part("The sound"), sound]
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
    """Return frames ``[T, H, W, 3]`` uint8 with sound as a data URL.

    Frame rates that are not whole are shown by repeating frames at 25.
    """
    if round(fps) != fps:
        moments = (np.arange(round(len(frames) * FPS / fps)) * fps / FPS).astype(int)
        frames, fps = frames[np.minimum(moments, len(frames) - 1)], FPS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, iter(frames), audio, fps=int(fps))
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()

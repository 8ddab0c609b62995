"""Evidence as parts of a chat message, in the shapes that OpenAI-compatible servers take.

image_url   data:image/jpeg     everywhere                    input_audio   wav in base64       OpenAI, vLLM
video_url   data:video/mp4      vLLM, SGLang and ours         audio_url     data:audio/wav      vLLM, SGLang
"""

from __future__ import annotations

import base64
import io
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from flowportrait.judge.evidence import Evidence
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.video import FPS
from flowportrait.media.write_video import write_video

_JPEG = 90


@dataclass(frozen=True)
class Shows:
    """Which parts a server can take."""

    images: bool = True
    """Sheets of close-ups, faces and differences as pictures."""
    video: bool = False
    """The aspect's close-ups as mp4."""
    audio: Literal["input_audio", "audio_url", "off"] = "input_audio"
    clip: bool = False
    """The whole clip with its sound as mp4: what the panel served by ``flowportrait judge serve`` wants."""


def content(evidence: Evidence, shows: Shows) -> list[dict[str, Any]]:
    """Message parts, pictures in order of time."""
    parts: list[dict[str, Any]] = []
    if shows.images:
        for caption, picture in evidence.pictures:
            parts += [text_part(caption), {"type": "image_url", "image_url": {"url": jpeg_url(picture)}}]
    if shows.video:
        said = f"The same as a video, {evidence.fps:.3g} frames a second"
        url = mp4_url(evidence.video, None, evidence.fps)
        parts += [text_part(said), {"type": "video_url", "video_url": {"url": url}}]
    if shows.clip:
        url = mp4_url(evidence.clip.frames, evidence.clip.audio, FPS)
        parts += [text_part("The whole clip"), {"type": "video_url", "video_url": {"url": url}}]
    if len(evidence.audio) and shows.audio != "off":
        data = base64.b64encode(wav_bytes(evidence.audio)).decode()
        if shows.audio == "input_audio":
            heard: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        else:
            heard = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}
        parts += [text_part("The sound"), heard]
    return parts


def text_part(text: str) -> dict[str, Any]:
    """Words between the pictures."""
    return {"type": "text", "text": text}


def jpeg_url(picture: np.ndarray) -> str:
    """``[H, W, 3]`` uint8 RGB as a data URL."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def wav_bytes(samples: np.ndarray) -> bytes:
    """16 kHz mono samples ``[N]`` as a 16-bit wav file."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * 32767).round().clip(-32768, 32767).astype("<i2").tobytes())
    return target.getvalue()


def mp4_url(frames: np.ndarray, audio: np.ndarray | None, fps: float) -> str:
    """``[T, H, W, 3]`` uint8 with sound as a data URL. Frame rates that are not whole are shown by repeating frames
    at 25."""
    if round(fps) != fps:
        moments = (np.arange(round(len(frames) * FPS / fps)) * fps / FPS).astype(int)
        frames, fps = frames[np.minimum(moments, len(frames) - 1)], FPS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, iter(frames), audio, fps=int(fps))
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()

"""Speech in: any audio (or the sound of a video) to 16 kHz mono float32 in [-1, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.container import check_length, check_whole, origin

SAMPLE_RATE = 16_000
_COUNTED = ("flac", "mp3")
"""Formats whose header counts the samples and whose length in bytes is nowhere to be read."""


def read_audio(path: str | Path, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode ``path`` to mono samples ``[N]`` at ``rate`` Hz, channels averaged, any source rate resampled.

    Sound that starts after the picture of a video is preceded by silence, so that it stays with its picture.
    Samples that are not numbers become silence, louder ones than full scale are cut to it.

    Raises:
        BadInput: missing, not audio, without an audio stream, cut off, or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"No audio file at {path}: check the path.")
    check_length(path)
    pieces: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise BadInput(f"{path} holds no audio stream: give a file with sound.")
            resampler = av.AudioResampler(format="fltp", rate=rate)
            check_whole(container, path)
            stream = container.streams.audio[0]
            pieces.append(np.zeros(_late(container, stream, rate), np.float32))
            for frame in container.decode(stream):
                frame.pts = None
                pieces += [out.to_ndarray().mean(0) for out in resampler.resample(frame)]
            pieces += [out.to_ndarray().mean(0) for out in resampler.resample(None)]
            promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
            counted = container.format.name in _COUNTED
    except av.FFmpegError as error:
        reason = getattr(error, "strerror", None) or str(error)
        if any(map(len, pieces[1:])):
            reason = f"{reason} at {sum(map(len, pieces)) / rate:.1f} s"
            raise BadInput(f"{path} is damaged ({reason}): copy or download it again.") from error
        raise BadInput(f"{path} cannot be read as audio ({reason}): give a wav, mp3, m4a, flac or ogg file.") from error
    if not any(map(len, pieces[1:])):
        raise BadInput(f"{path} holds no sound samples: give a recording with sound in it.")
    decoded = sum(map(len, pieces)) / rate
    if counted and decoded < 0.98 * promised - 0.1:
        raise BadInput(
            f"{path} is damaged, only {decoded:.1f} s of {promised:.1f} s are there: copy or download it again."
        )
    wave = np.concatenate(pieces).astype(np.float32, copy=False)
    return np.nan_to_num(wave, copy=False, posinf=0.0, neginf=0.0).clip(-1.0, 1.0)


def has_audio(path: str | Path) -> bool:
    """Whether the file opens and carries an audio stream."""
    try:
        with av.open(str(path)) as container:
            return bool(container.streams.audio)
    except (av.FFmpegError, OSError):
        return False


def _late(container: Any, stream: Any, rate: int) -> int:
    """Samples of silence before the sound, none where the file has no moving picture."""
    if stream.start_time is None:
        return 0
    return round((float(stream.start_time * stream.time_base) - origin(container)) * rate)

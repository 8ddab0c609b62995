"""Speech in: any audio (or the sound of a video) to 16 kHz mono float32 in [-1, 1]."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from flowportrait.errors import BadInput

SAMPLE_RATE = 16_000


def read_audio(path: str | Path, rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decode ``path`` to mono samples ``[N]`` at ``rate`` Hz, channels averaged, any source rate resampled.

    Raises:
        BadInput: missing, not audio, without an audio stream, or empty.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"No audio file at {path}: check the path.")
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty: give a recording with sound in it.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise BadInput(f"{path} holds no audio stream: give a file with sound.")
            resampler = av.AudioResampler(format="fltp", rate=rate)
            pieces: list[np.ndarray] = []
            for frame in container.decode(container.streams.audio[0]):
                frame.pts = None
                pieces += [out.to_ndarray().mean(0) for out in resampler.resample(frame)]
            pieces += [out.to_ndarray().mean(0) for out in resampler.resample(None)]
    except av.FFmpegError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{path} cannot be read as audio ({reason}): give a wav, mp3, m4a, flac or ogg file.") from error
    wave = np.concatenate(pieces).astype(np.float32) if pieces else np.zeros(0, np.float32)
    if wave.size == 0:
        raise BadInput(f"{path} holds no sound samples: give a recording with sound in it.")
    return np.nan_to_num(wave)


def has_audio(path: str | Path) -> bool:
    """Whether the file opens and carries an audio stream."""
    try:
        with av.open(str(path)) as container:
            return bool(container.streams.audio)
    except (av.FFmpegError, OSError):
        return False

"""Speech in: any audio (or the sound of a video) to 16 kHz mono float32 in [-1, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.container import check_whole, origin

SAMPLE_RATE = 16_000


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
    if path.stat().st_size == 0:
        raise BadInput(f"{path} is empty: give a recording with sound in it.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise BadInput(f"{path} holds no audio stream: give a file with sound.")
            resampler = av.AudioResampler(format="fltp", rate=rate)
            check_whole(container, path)
            stream = container.streams.audio[0]
            pieces = [np.zeros(_late(container, stream, rate), np.float32)]
            for frame in container.decode(stream):
                frame.pts = None
                pieces += [out.to_ndarray().mean(0) for out in resampler.resample(frame)]
            pieces += [out.to_ndarray().mean(0) for out in resampler.resample(None)]
    except av.FFmpegError as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadInput(f"{path} cannot be read as audio ({reason}): give a wav, mp3, m4a, flac or ogg file.") from error
    if not any(map(len, pieces[1:])):
        raise BadInput(f"{path} holds no sound samples: give a recording with sound in it.")
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

"""Any video as a file that every browser plays and that does not say who made it.

H.264 4:2:0 (+ AAC) ─► copied packet by packet into a fresh mp4: the very same pictures, none of the tags
anything else       ─► decoded and encoded again (CRF 17)
"""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np

from flowportrait.corruption import Footage, corrupt
from flowportrait.errors import BadInput
from flowportrait.media.audio import has_audio, read_audio
from flowportrait.media.bounded import LOCAL, bounded_frames, read_clip
from flowportrait.media.container import open_media, sound_stream, video_stream
from flowportrait.media.remux import remux
from flowportrait.media.video import SAMPLES_PER_FRAME
from flowportrait.media.write_video import write_video

RUINED = (("still", 1.0), ("blur", 6.0), ("colour pumping", 60.0))
"""Damage of the broken check: a still, blurred face that changes colour. Nobody who looks prefers it."""


def make_playable(source: Path, target: Path) -> bool:
    """Write ``target`` (mp4); returns whether it had to be encoded again.

    Raises:
        BadInput: the file is missing, damaged, or holds no video.
    """
    if _copied(source, target):
        return False
    sound = read_audio(source, longest=LOCAL.seconds + 1) if has_audio(source) else None
    write_video(target, bounded_frames(source), sound)
    return True


def make_ruined(source: Path, target: Path) -> None:
    """Write an obviously broken version of a video.

    Raises:
        BadInput: as ``make_playable``.
    """
    clip = load(source)
    for name, strength in RUINED:
        clip = corrupt(clip, name, strength)
    assert clip.frames is not None
    write_video(target, iter(clip.frames), clip.audio)


def load(path: Path) -> Footage:
    """Frames and, where there is sound, audio cut or padded to them.

    Raises:
        BadInput: the file cannot be read, or holds more than ``media.bounded.LOCAL`` allows.
    """
    frames, heard = read_clip(path)
    if heard is None:
        return Footage(frames)
    audio = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    audio[: len(heard)] = heard[: len(audio)]
    return Footage(frames, audio)


def _copied(source: Path, target: Path) -> bool:
    """Packets into a fresh mp4, where browsers can play them as they are."""
    for _ in bounded_frames(source):
        pass  # a file that does not play to its end is found now, not by a participant
    partial = target.with_name(f".{target.name}.partial.mp4")
    try:
        with open_media(source) as given:
            video, sound = video_stream(given), sound_stream(given)
            assert video is not None
            tracks = [video] if sound is None else [video, sound]
            plays = video.codec_context.name == "h264" and video.codec_context.pix_fmt == "yuv420p"
            if not plays or (sound is not None and sound.codec_context.name != "aac") or _turned(video):
                return False
            remux(given, tracks, partial)
        os.replace(partial, target)
        return True
    except (av.FFmpegError, OSError) as error:
        raise BadInput(f"{source} cannot be copied ({error}): give a video that plays to its end.") from error
    finally:
        partial.unlink(missing_ok=True)


def _turned(video: av.VideoStream) -> bool:
    frame = next(video.container.decode(video), None)
    video.container.seek(0)
    return bool(getattr(frame, "rotation", 0))

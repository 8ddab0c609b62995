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
from flowportrait.media.video import SAMPLES_PER_FRAME, iter_frames
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
    footage = load(source)
    assert footage.frames is not None
    write_video(target, iter(footage.frames), footage.audio)
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
    """Frames and, where there is sound, audio cut or padded to them."""
    frames = np.stack(list(iter_frames(path)))
    if not has_audio(path):
        return Footage(frames)
    audio, heard = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32), read_audio(path)
    audio[: len(heard)] = heard[: len(audio)]
    return Footage(frames, audio)


def _copied(source: Path, target: Path) -> bool:
    """Packets into a fresh mp4, where browsers can play them as they are."""
    for _ in iter_frames(source):
        pass  # a file that does not play to its end is found now, not by a participant
    partial = target.with_name(f".{target.name}.partial.mp4")
    try:
        with av.open(str(source)) as given:
            video = given.streams.video[0]
            sound = given.streams.audio[0] if given.streams.audio else None
            tracks = [video] if sound is None else [video, sound]
            plays = video.codec_context.name == "h264" and video.codec_context.pix_fmt == "yuv420p"
            if not plays or (sound is not None and sound.codec_context.name != "aac") or _turned(video):
                return False
            with av.open(str(partial), "w", options={"movflags": "+faststart"}) as fresh:
                streams = {track.index: fresh.add_stream_from_template(track) for track in tracks}
                for stream in streams.values():
                    stream.metadata.clear()
                for packet in given.demux(*tracks):
                    if packet.dts is not None:
                        packet.stream = streams[packet.stream.index]
                        fresh.mux(packet)
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

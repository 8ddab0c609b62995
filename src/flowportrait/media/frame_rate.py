"""How many pictures a second a video file shows, and how many there are, read from its packets without decoding them.

    rate = 1 / mean of the steps from time to time near their median, where most are; else 1 / mean of all steps

Headers are wrong or empty in recordings of browsers and phones; time stamps are what players go by. Where they say what
the header says, to 0.2 %, or a standard rate, that is the rate: time stamps are rounded.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from flowportrait.media.container import open_media, video_stream
from flowportrait.media.video import FPS

LARGEST_RATE = 240
"""Above this a rate is an accident of the file or slow motion, which players show at less."""

_STANDARD = [Fraction(rate) for rate in (24, 25, 30, 48, 50, 60, 100, 120, 240)]
_STANDARD += [Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120)]
_NEAR, _MOST = 0.25, 0.75
_SAME = 0.002
_NAMED = 0.0004


class FrameRate(NamedTuple):
    """Pictures a second, on average where their times are uneven, and how many pictures that makes."""

    fps: Fraction
    frames: int


def frame_rate(path: str | Path) -> FrameRate:
    """Rate and count of a video's pictures; 25 a second and a count of zero where the file does not tell."""
    try:
        with open_media(path) as container:
            stream = video_stream(container)
            if stream is None:
                return FrameRate(Fraction(FPS), 0)
            # Some containers keep the order of decoding only.
            stamps = [packet.dts if packet.pts is None else packet.pts for packet in container.demux(stream)]
            times = sorted(stamp for stamp in stamps if stamp is not None)
            base, declared = stream.time_base, stream.average_rate
    except (av.FFmpegError, OSError):
        # Whoever reads the pictures says what is wrong with the file.
        return FrameRate(Fraction(FPS), 0)
    if len(times) < 2 or times[-1] == times[0]:
        return FrameRate(Fraction(declared or FPS), len(times))
    steps = np.diff(times)
    near = steps[np.abs(steps - np.median(steps)) <= _NEAR * np.median(steps)]
    # A recorder that leaves out a frame now and then has a rate all the same.
    steps = near if len(near) >= _MOST * len(steps) else steps
    measured = 1 / (Fraction(int(steps.sum()), len(steps)) * base)
    return FrameRate(_named(measured, declared), len(times))


def _named(measured: Fraction, declared: Fraction | None) -> Fraction:
    """The rate that a measured one, which time stamps round, stands for."""
    nearest = min(_STANDARD, key=lambda rate: abs(rate - measured))
    if abs(nearest - measured) < _NAMED * measured:
        return nearest
    if declared and abs(declared - measured) < _SAME * measured and declared <= LARGEST_RATE:
        return Fraction(declared)
    return min(measured, Fraction(LARGEST_RATE)).limit_denominator(1001)

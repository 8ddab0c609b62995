"""A session as fragmented mp4 that a browser plays while it arrives (Media Source Extensions).

    picture, sound ─► H.264 without B frames, AAC ─► moof + mdat, every 120 ms ─► bytes of write()

The first bytes are the initial segment (ftyp and moov), known before any frame.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from flowportrait.media.sound_track import EncodedSoundTrack
from flowportrait.media.video import FPS
from flowportrait.media.write_video import VideoTrack

FRAGMENT_SECONDS = 0.12
"""Duration of a fragment: three frames. Shorter ones cost 100 bytes each, longer ones are delay."""
KEY_FRAME_SECONDS = 2
"""Seconds between two pictures that can be decoded alone."""
_AAC_PRIMING = 1024
"""Samples of silence at the beginning of FFmpeg's AAC."""
_CRF = 23
_MAX_RATE = "4M"
"""Largest bit rate, averaged over a buffer of a quarter of a second."""


class _Memory:
    """A target of FFmpeg that holds what was written until it is taken."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: bytes) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


class FragmentEncoder:
    """Encodes one session; a thread at a time may use it."""

    def __init__(self, size: int, rate: int) -> None:
        """Open the encoders.

        Args:
            size: side of the pictures in pixels.
            rate: sample rate in Hz of the sound.
        """
        self._memory, self._rate = _Memory(), rate
        movflags = "empty_moov+default_base_moof+omit_tfhd_offset+skip_trailer"
        self._container = av.open(
            self._memory, "w", format="mp4",
            options={"movflags": movflags, "frag_duration": str(int(FRAGMENT_SECONDS * 1e6)), "flush_packets": "1"},
        )  # fmt: skip
        self._video = VideoTrack(
            self._container, "libx264", Fraction(FPS), _CRF, (size, size, 3),
            {"preset": "superfast", "tune": "zerolatency", "g": str(KEY_FRAME_SECONDS * FPS), "bf": "0", "threads": "1",
             "profile": "main", "maxrate": _MAX_RATE, "bufsize": "1M"},
        )  # fmt: skip
        self._sound = EncodedSoundTrack(self._container, "aac", rate, "mono")
        # AAC begins with its own silence. A fragmented file cannot say so; that silence replaces as much of the first
        # frame, which is silent, and everything after it is in its place.
        self._sound.written, self._skipped = _AAC_PRIMING, _AAC_PRIMING
        self._container.start_encoding()
        self._initial = self._memory.take()

    @property
    def mime(self) -> str:
        """What the stream is, for ``MediaSource.isTypeSupported``."""
        at = self._initial.index(b"avcC") + 4
        # ISO/IEC 14496-15: version, then profile, compatibility and level, as in the parameter of RFC 6381.
        return f'video/mp4; codecs="avc1.{self._initial[at + 1 : at + 4].hex()},mp4a.40.2"'

    @property
    def initial_segment(self) -> bytes:
        """The bytes before the first fragment."""
        return self._initial

    def write(self, picture: np.ndarray, sound: np.ndarray) -> bytes:
        """Encode one frame and return the fragments that it completes, often none.

        Args:
            picture: ``[size, size, 3]`` uint8 RGB.
            sound: ``[1, rate / 25]`` float32.
        """
        self._video.write(picture)
        self._sound.write(sound[:, self._skipped :])
        self._skipped = 0
        return self._memory.take()

    def close(self) -> bytes:
        """Return the rest of the stream."""
        self._video.close()
        self._sound.close()
        self._container.close()
        return self._memory.take()

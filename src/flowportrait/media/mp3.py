"""Whether all of an mp3 is there, from its frames alone.

    11 sync bits │ version │ layer │ bit rate │ sample rate │ padding │ …  ⇒  the frame's length in bytes

Neither the container nor FFmpeg knows how long an mp3 is unless the encoder went back to write it into the first frame
(Xing, Info, VBRI): otherwise the duration is a guess from the first bit rate. So a file is whole if it has as many
frames as it counts, or, where it counts none, if its last frame is complete. What lies between or behind the frames
(tags of files that were joined, padding) is skipped, as players do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KBITS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""By version (2 for 2.5 as well) and layer: ISO 11172-3, 2.4.2.3, and ISO 13818-3, 2.4.2.3."""
_RATES = (44_100, 48_000, 32_000)


@dataclass(frozen=True)
class FrameHeader:
    """What the first four bytes of a frame say: bytes of the frame, samples it gives, their rate in Hz."""

    length: int
    samples: int
    rate: int


def parse_header(data: bytes) -> FrameHeader | None:
    """The header at the beginning of ``data``; None where no frame begins or its length is not said (free format)."""
    if len(data) < 4 or data[0] != 0xFF or data[1] & 0xE0 != 0xE0:
        return None
    version, layer = {3: 1, 2: 2, 0: 2.5}.get(data[1] >> 3 & 3), 4 - (data[1] >> 1 & 3)
    bits, rate = data[2] >> 4, data[2] >> 2 & 3
    if version is None or layer == 4 or not 0 < bits < 15 or rate == 3:
        return None
    old = 1 if version == 1 else 2
    hertz = _RATES[rate] // {1: 1, 2: 2, 2.5: 4}[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and old == 2 else 1152
    slot = 4 if layer == 1 else 1
    slots = samples // 8 // slot * _KBITS[old, layer][bits - 1] * 1000 // hertz + (data[2] >> 1 & 1)
    return FrameHeader(slots * slot, samples, hertz)


@dataclass
class Mp3Check:
    """Shown every packet of the mp3 at ``path`` in turn, says at the end whether all of it was there."""

    path: Path
    _counted: float | None = field(default=None, init=False)
    _last: tuple[int, int] | None = field(default=None, init=False)
    _any: bool = field(default=False, init=False)

    def header(self, packet: Any) -> FrameHeader | None:
        """Note ``packet`` (``av.Packet``); the header of the frame that begins it, which has to decode then."""
        if not self._any and packet.pos is not None:
            self._counted, self._any = counted_seconds(self.path, packet.pos), True
        header = parse_header(bytes(packet)[:4]) if packet.size >= 4 else None
        if header is not None:
            self._last = (packet.size, header.length)
        return header

    def missing(self, decoded: float) -> str | None:
        """What is missing of the file after ``decoded`` seconds of it; None if it is whole."""
        if self._counted is not None:
            short = decoded < 0.999 * self._counted - 0.1
            return f"only {decoded:.1f} s of {self._counted:.1f} s are there" if short else None
        if self._last is not None and self._last[0] < self._last[1]:
            return f"it ends in the middle of a frame at {decoded:.1f} s"
        return None


def counted_seconds(path: Path, first: int) -> float | None:
    """Length that the frame before the first one of sound, at byte ``first``, gives for the file; None without one."""
    with path.open("rb") as file:
        file.seek(max(0, first - 2881))
        before = file.read(min(first, 2881) + 64)
    for mark, place in ((b"Xing", 8), (b"Info", 8), (b"VBRI", 14)):
        at = before.rfind(mark)
        # The mark stands behind the side information, at most 36 bytes after its frame's beginning.
        headers = (parse_header(before[start : start + 4]) for start in range(max(0, at - 36), max(0, at - 12)))
        header = next((found for found in headers if found is not None), None)
        # Bit 0 of the flags: the number of frames is there.
        if header is None or (mark != b"VBRI" and not before[at + 7] & 1):
            continue
        return int.from_bytes(before[at + place : at + place + 4], "big") * header.samples / header.rate
    return None

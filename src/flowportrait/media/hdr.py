"""HDR and wide-gamut video to what an SDR screen shows: BT.2100 (HLG or PQ, BT.2020 colours) to BT.709.

    signal ─► light in cd/m² ─► BT.709 primaries ─► highlights rolled off to 100 cd/m² ─► gamma 1/2.4

    HLG: inverse OETF, system gamma 1.2 (BT.2100-2, table 5)          PQ: EOTF (BT.2100-2, table 4)

The roll-off is the EETF of ITU-R BT.2390-10, section 5.4.1: up to 27 cd/m² the light stays what it is, from there to
the peak of a usual display, 1000 cd/m², it is bent. A white page of 203 cd/m² (BT.2408) comes out at 95 % of full
scale.

All of it is one map from colours to colours, so it is computed once, for the knots of a cube, and FFmpeg looks the
pictures up in it.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

HLG, PQ = 18, 16
"""Transfer characteristics, ITU-T H.273, table 3."""
BT_2020, DISPLAY_P3 = 9, 12
"""Colour primaries, ITU-T H.273, table 2."""
_UNSPECIFIED = 2

PEAK, WHITE = 1000.0, 100.0
"""Brightest light of the footage that is told apart, and of the result, in cd/m²."""

_KNOTS = 49
_TO_709 = {
    BT_2020: np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]),
    DISPLAY_P3: np.array([[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]),
}
"""Linear light of wider primaries to BT.709's (of BT.2020: ITU-R BT.2087-0, annex 2)."""
_LUMA_2020 = np.array([0.2627, 0.6780, 0.0593])
_LUMA_709 = np.array([0.2126, 0.7152, 0.0722])
_M1, _M2, _C1, _C2, _C3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128


def to_sdr(signal: np.ndarray, transfer: int, primaries: int = BT_2020) -> np.ndarray:
    """BT.709 signal ``[..., 3]`` in [0, 1], for a display of gamma 2.4, of another signal in [0, 1].

    Args:
        signal: ``[..., 3]`` red, green, blue.
        transfer: ``HLG`` or ``PQ``; any other value is that of SDR, gamma 2.4.
        primaries: ``BT_2020``, ``DISPLAY_P3``, or any other value for those of BT.709.
    """
    light = _hlg_light(signal) if transfer == HLG else pq_light(signal) if transfer == PQ else WHITE * signal**2.4
    light = light @ _TO_709.get(primaries, np.eye(3)).T
    # What BT.709 cannot show is paled towards its own grey, not cut channel by channel: that would turn its hue.
    grey = (light @ _LUMA_709)[..., None].clip(0)
    low = light.min(-1, keepdims=True)
    light = grey + (light - grey) * np.where(low < 0, grey / np.maximum(grey - low, 1e-9), 1.0)
    if transfer in (HLG, PQ):
        peak = light.max(-1, keepdims=True)
        light = light * (roll_off(peak) / np.maximum(peak, 1e-9))
    return (light / WHITE).clip(0, 1) ** (1 / 2.4)


def roll_off(light: np.ndarray) -> np.ndarray:
    """Light in cd/m², up to ``PEAK``, to at most ``WHITE``: the EETF of BT.2390."""
    source = pq_signal(np.array(PEAK))
    value, most = pq_signal(light.clip(0, PEAK)) / source, float(pq_signal(np.array(WHITE)) / source)
    knee = 1.5 * most - 0.5
    t = ((value - knee) / (1 - knee)).clip(0)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    return pq_light(np.where(value < knee, value, bent) * source)


def pq_light(signal: np.ndarray) -> np.ndarray:
    """PQ signal in [0, 1] to cd/m²."""
    power = signal.clip(0, 1) ** (1 / _M2)
    return 10_000 * ((power - _C1).clip(0) / (_C2 - _C3 * power)) ** (1 / _M1)


def pq_signal(light: np.ndarray) -> np.ndarray:
    """Light in cd/m² to PQ signal."""
    power = (light / 10_000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return PEAK * scene * (scene @ _LUMA_2020)[..., None].clip(0) ** 0.2


class ToneMapper:
    """Frames of one transfer characteristic and set of primaries to SDR in BT.709."""

    def __init__(self, transfer: int, primaries: int) -> None:
        """See ``to_sdr``."""
        self._table = _cube(transfer, primaries)
        self._graph: Any = None
        self._size: tuple[int, int] | None = None

    def __call__(self, frame: Any) -> Any:
        """A decoded ``av.VideoFrame`` to one of planar RGB."""
        # Wide primaries without a stated matrix come with BT.2020's, which has the same number.
        matrix = BT_2020 if frame.colorspace == _UNSPECIFIED else None
        frame = frame.reformat(format="gbrp10le", src_colorspace=matrix)
        if self._size != (frame.width, frame.height):
            self._size = frame.width, frame.height
            self._graph = _lookup(frame.width, frame.height, self._table)
        self._graph.push(frame)
        return self._graph.pull()


def _lookup(width: int, height: int, table: str) -> Any:
    """A filter graph that looks frames of planar RGB up in a table of the .cube format."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("gbrp10le"), time_base=Fraction(1, 25))
    # The filter takes its table from a file, which it has read when it is made.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.cube"
        path.write_text(table, encoding="utf-8")
        graph.link_nodes(source, graph.add("lut3d", file=str(path), interp="tetrahedral"), graph.add("buffersink"))
        graph.configure()
    return graph


@lru_cache(maxsize=4)
def _cube(transfer: int, primaries: int) -> str:
    """The map as a text of the .cube format, red fastest."""
    steps = np.linspace(0, 1, _KNOTS)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    colours = to_sdr(np.stack([red, green, blue], -1).reshape(-1, 3), transfer, primaries)
    return f"LUT_3D_SIZE {_KNOTS}\n" + ("%.5f %.5f %.5f\n" * len(colours)) % tuple(colours.ravel().tolist())

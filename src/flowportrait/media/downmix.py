"""Many channels to one, so that a voice in the centre stays as loud as it is.

    m = C + (L + R) / √2 + (Ls + Rs) / 2                      ITU-R BS.775-4, table 2, mono from 3/2 stereo

One or two channels are averaged. Low-frequency effects take no part.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

_FRONT = {"FL", "FR", "FLC", "FRC", "WL", "WR", "DL", "DR"}
_EFFECTS = {"LFE", "LFE2"}
_DEFAULT = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""What a number of channels usually means where a file does not say."""


def layout_name(layout: Any) -> str:
    """FFmpeg's name of an ``av.AudioLayout``; where a file states no places, of the usual one of as many channels."""
    return _DEFAULT.get(layout.nb_channels, layout.name) if layout.name.endswith(" channels") else layout.name


def to_mono(samples: np.ndarray, layout: Any) -> np.ndarray:
    """Samples ``[N, C]`` in an ``av.AudioLayout`` to ``[N]`` float32; the sum may exceed full scale."""
    channels = samples.shape[1]
    if channels <= 2:
        return samples.mean(1)
    # A channel without signal may hold NaN in files of floats; it must not spoil the others.
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0).clip(-1.0, 1.0) @ mono_weights(layout_name(layout), channels)


@lru_cache(maxsize=32)
def mono_weights(layout: str, channels: int) -> np.ndarray:
    """Weight ``[C]`` float32 of each channel of a layout that FFmpeg names ``layout``.

    Where there is no centre, a voice is in left and right alike: they are averaged and the others stay in proportion.
    A layout without known positions is averaged as a whole.
    """
    import av

    try:
        names = [channel.name for channel in av.AudioLayout(layout).channels]
    except ValueError:
        names = []
    if not {"FC", "FL"} & set(names) or len(names) != channels:
        return np.full(channels, 1 / channels, np.float32)
    scale = 1.0 if "FC" in names else np.sqrt(0.5)
    gains = [
        1.0 if name == "FC" else 0.0 if name in _EFFECTS else np.sqrt(0.5) if name in _FRONT else 0.5 for name in names
    ]
    return (scale * np.array(gains)).astype(np.float32)

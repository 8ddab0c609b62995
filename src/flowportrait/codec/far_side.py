"""The side of the face a half profile does not show, taken from the side that it does: faces are nearly symmetric.

    frame = (1 − h) skin(source) + h gain · skin(source of the mirror partners)

h is one on vertices that face away in the photo, zero on those well in view; gain brings the near side's light to the
far side's, measured where both are seen.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.codec.basis import MotionBasis
from flowportrait.codec.contours import EYES, OUTER_LOWER, OUTER_UPPER
from flowportrait.codec.mesh import N_FACE, HeadMesh, face_triangles, facing_camera
from flowportrait.codec.mirror import partners
from flowportrait.codec.warp import Rasterizer

_OWN = sorted({*OUTER_UPPER, *OUTER_LOWER, *(point for upper, lower, _ in EYES for point in (*upper, *lower))})
_WELL_SEEN = 0.35
_LITTLE, _MUCH = 3, 35
"""Hidden vertices that call for no mirroring, and those that call for it in spite of uneven light."""

_ALIKE = 0.1
_RIM = (0.05, 0.4)
_NOSE = 0.22
"""Half the width of the nose in outer-eye-corner distances; its shadow is not mirrored."""

_BETTER = 0.2
"""A partner must face the camera by this much more to be trusted."""

_LARGEST_GAIN = 1.3


class FarSide:
    """Mirror filling for one portrait: its mesh and skin ``[S, S, 3]`` uint8."""

    def __init__(self, mesh: HeadMesh, skin: np.ndarray) -> None:
        points = mesh.landmarks[:N_FACE]
        canonical = MotionBasis.load().canonical
        other = partners(canonical).numpy()[:N_FACE]
        facing = facing_camera(points)
        away = np.clip(1 - facing / _WELL_SEEN, 0, 1)
        better = np.clip((facing[other] - facing) / _BETTER - 1, 0, 1)
        across = canonical[:N_FACE, 0].numpy()
        aside = np.clip(-across * np.sign((facing * across).sum()) / _NOSE - 1, 0, 1)
        share = away * better * aside
        # Eyes and lips are drawn by themselves, and lashes are not where their mirror image would be.
        share[_OWN] = 0
        self._rasterize = Rasterizer(face_triangles(), points[other, :2], skin.shape[0], share)
        gain, disagreement = _gain(skin, points, other, facing)
        hidden = int((share > 0.5).sum())
        # Where the sides are lit differently the mirror image would be a patch; only much hidden face is worth that.
        alike = 1 / _LARGEST_GAIN < gain < _LARGEST_GAIN and (disagreement < _ALIKE or hidden >= _MUCH)
        self.needed = hidden > _LITTLE and alike
        self._skin = np.round(skin * gain).clip(0, 255).astype(np.uint8)

    def draw(self, frame: np.ndarray, vertices: np.ndarray) -> None:
        """Fill the far side of ``frame`` ``[S, S, 3]`` uint8 in place, for mesh vertices ``[V, 3]`` px."""
        source, share = self._rasterize.with_share(vertices[:N_FACE])
        rows, columns = np.flatnonzero(share.max(1) > 0.01), np.flatnonzero(share.max(0) > 0.01)
        if not len(rows):
            return
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        drawn = cv2.remap(self._skin, source[box], None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        # The rim itself stays the warp's, which knows how to end softly.
        weight = share[box] * np.maximum(2 * cv2.blur((share[box] > 0.01).astype(np.float32), (5, 5)) - 1, 0)
        frame[box] = cv2.blendLinear(drawn, np.ascontiguousarray(frame[box]), weight, 1 - weight)


def _gain(skin: np.ndarray, points: np.ndarray, other: np.ndarray, facing: np.ndarray) -> tuple[float, float]:
    """Light of the far side over the near one's where both are seen, and how much that differs at the rim (log)."""
    better = facing[other] - facing > 0.5 * _BETTER
    both = better & (facing > _WELL_SEEN)
    if both.sum() < 5:
        return 1.0, 0.0
    smooth = cv2.GaussianBlur(skin, (0, 0), 0.01 * skin.shape[0])
    index = np.round(points[:, :2]).astype(int).clip(0, skin.shape[0] - 1)
    light = smooth[index[:, 1], index[:, 0]].mean(1, dtype=np.float64) + 1
    ratio = np.log(light / light[other])
    gain = float(np.median(ratio[both]))
    rim = better & (facing > _RIM[0]) & (facing < _RIM[1])
    return float(np.exp(gain)), float(np.median(np.abs(ratio[rim] - gain))) if rim.any() else 0.0

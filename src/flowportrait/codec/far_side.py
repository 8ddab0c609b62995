"""The side of the face a half profile does not show, taken from the side that it does: faces are nearly symmetric.

    frame = (1 − h) skin(source) + h (light · skin)(source of the mirror partners)

h is one on vertices that face away in the photo, zero on those well in view. light brings the near side's colours to
the far side's: their ratio where both are seen, carried on from there, since one side often lies in shadow.
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

_ALIKE = 0.12
"""How much the light's ratio (log) may differ from a smooth field at the rim before the mirror image is a patch."""

_RIM = (0.05, 0.4)
"""Cosines with the line of sight: less is not seen well enough to tell light, more is not the rim."""

_SMOOTH = 0.15
"""Reach in outer-eye-corner distances of the field's smoothing."""

_DARK = 4.0
"""Added to colours, so that black has a ratio too."""

_FIELD = 64
_NOSE = 0.22
"""Half the width of the nose in outer-eye-corner distances; its shadow is not mirrored."""

_BETTER = 0.2
"""A partner must face the camera by this much more to be trusted."""

_LARGEST = 1.1
"""Of the light's ratio (log): a factor of three."""


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
        light, disagreement = _light(skin, points, other, facing)
        hidden = int((share > 0.5).sum())
        # A cast shadow's mirror image would be a patch; only much hidden face is worth that.
        self.needed = hidden > _LITTLE and (disagreement < _ALIKE or hidden >= _MUCH)
        self._skin = np.round(skin * light).clip(0, 255).astype(np.uint8)

    def draw(self, frame: np.ndarray, vertices: np.ndarray) -> None:
        """Fill the far side of ``frame`` ``[S, S, 3]`` uint8 in place, for mesh vertices ``[V, 3]`` px."""
        part = self._rasterize.with_share(vertices[:N_FACE])
        if part is None:
            return
        box, source, share = part
        drawn = cv2.remap(self._skin, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        frame[box] = cv2.blendLinear(drawn, np.ascontiguousarray(frame[box]), share, 1 - share)


def _light(skin: np.ndarray, points: np.ndarray, other: np.ndarray, facing: np.ndarray) -> tuple[np.ndarray, float]:
    """Factor ``[S, S, 3]`` that gives each place of the near side the light of its partner on the far side, and how
    much the ratio at the rim differs from it (log)."""
    size = skin.shape[0]
    partner = facing[other] - facing > 0.5 * _BETTER
    both = partner & (facing > _RIM[0])
    if both.sum() < 5:
        return np.ones_like(skin, np.float32), 0.0
    smooth = cv2.GaussianBlur(skin, (0, 0), 0.01 * size)
    index = np.round(points[:, :2]).astype(int).clip(0, size - 1)
    colour = np.log(smooth[index[:, 1], index[:, 0]].astype(np.float64) + _DARK)
    ratio = (colour - colour[other])[both].clip(-_LARGEST, _LARGEST)
    place = points[other[both], :2]
    reach = _SMOOTH * float(np.linalg.norm(points[33] - points[263]))
    line = (np.arange(_FIELD) + 0.5) * size / _FIELD - 0.5
    field = _smoothed(place, ratio, np.stack(np.meshgrid(line, line), -1).reshape(-1, 2), reach)
    light = cv2.resize(np.exp(field).reshape(_FIELD, _FIELD, 3).astype(np.float32), (size, size))
    rim = facing[both] < _RIM[1]
    gap = np.abs(ratio - _smoothed(place, ratio, place, reach)).mean(1)
    return light, float(np.median(gap[rim])) if rim.any() else 0.0


def _smoothed(place: np.ndarray, values: np.ndarray, at: np.ndarray, reach: float) -> np.ndarray:
    """Values ``[N, C]`` known at ``place`` ``[N, 2]`` at ``at`` ``[M, 2]``, smooth; far from all, the nearest's."""
    distance = ((at[:, None] - place) ** 2).sum(-1) / (2 * reach**2)
    weight = np.exp(distance.min(1, keepdims=True) - distance)
    return weight @ values / weight.sum(1, keepdims=True)

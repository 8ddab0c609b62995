"""Layers beside the warped face: eyeballs, the side that a half profile hides, and the background.

Eyes under moving lids: the eyeball is a layer of its own, seen through the lids' opening.

Lids are skin and belong to the mesh, but an open lid shows little but lashes: a lid that comes down is
painted with the skin around it and keeps its lash line. The eyeball stays in its place in the head, and
its iris slides with the gaze:

    eye'(x) = eye(p − gaze · exp(−(|p − iris − gaze| / 1.7 r)⁴)),     p = head-aligned x

The side of the face a half profile does not show, taken from the side that it does: faces are nearly symmetric.

    frame = (1 − h) skin(source) + h (light · skin)(source of the mirror partners)

h is one on vertices that face away in the photo, zero on those well in view. light brings the near side's colours to
the far side's: their ratio where both are seen, carried on from there, since one side often lies in shadow.

Two layers: the person moves, what is behind stays.

    photo = P + (1 − a) B           a   share of the person in each pixel
    frame = P(s) + (1 − a(s)) B     B   the photo without the person, guessed from around the outline
                                    P   what the person adds to it;  s  where each pixel of the frame comes from

At rest s is every pixel's own place and the frame is the photo, however well B was guessed.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.rendering.face_regions import EYES, OUTER_LOWER, OUTER_UPPER, fill, opening, smooth_chain
from flowportrait.rendering.mesh import N_FACE, Enlarged, HeadMesh, Rasterizer, face_triangles, facing_camera
from flowportrait.rendering.motion_basis import MotionBasis, partners

_SHADE = 0.45
_LID_SKIN = ((225, 224, 223, 222, 228, 229, 230, 231), (442, 443, 444, 445, 451, 450, 449, 448))
"""Skin between brow and lid fold, then below the eye, each in the order of the lid's landmarks."""

_LASHES = 0.75
_OPACITY = 0.88
_TOUCHING = 1.5


class Eye:
    """One eye (0: the person's right, 1: left) of a portrait crop ``[S, S, 3]`` with landmarks ``[478, 3]``
    px."""

    def __init__(self, crop: np.ndarray, landmarks: np.ndarray, side: int) -> None:
        self._upper, self._lower, self._iris = EYES[side]
        points = landmarks[:, :2].astype(np.float64)
        self._corners = points[[self._upper[0], self._upper[-1]]]
        self._width = float(np.linalg.norm(np.diff(self._corners, axis=0)))
        self._centre = points[self._iris]
        rim = points[self._iris + 1 : self._iris + 5]
        self._radius = float(np.linalg.norm(rim - self._centre, axis=1).mean())
        self._height = self._gap(points)
        self._photo_edge = points[self._upper]
        self.outline = opening(points[self._upper], points[self._lower])
        self._origin, self._ball = self._eyeball(crop)
        self._lid, self._lash = self._lid_colours(crop, points[list(_LID_SKIN[side])])

    def _gap(self, points: np.ndarray) -> float:
        return float(np.linalg.norm(points[self._upper[4]] - points[self._lower[4]]))

    def _eyeball(self, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Crop around the eye with the eyeball continued under the lids, and its corner in the crop."""
        size = crop.shape[0]
        margin = 0.55 * self._width
        low = np.floor(self.outline.min(0) - margin).astype(int).clip(0, size - 2)
        high = np.ceil(self.outline.max(0) + margin).astype(int).clip(2, size)
        patch = crop[low[1] : high[1], low[0] : high[0]]
        inside = fill(patch.shape[:2], self.outline - low)
        unknown = (inside < 0.5).astype(np.uint8)
        ball = cv2.inpaint(np.ascontiguousarray(patch), unknown, 3, cv2.INPAINT_TELEA)
        soft = cv2.GaussianBlur(ball, (0, 0), max(0.02 * self._width, 0.3))
        # The hidden part is smooth; a thin rim of real skin keeps the lash line where it is.
        kept = fill(patch.shape[:2], self.outline - low, 0.012 * self._width)[..., None]
        return low.astype(np.float64), kept * ball + (1 - kept) * soft

    def _lid_colours(self, crop: np.ndarray, skin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lid colour along the eye ``[9, 3]`` and lash colour ``[3]``."""
        smooth = cv2.GaussianBlur(crop, (0, 0), max(0.05 * self._width, 0.5))
        index = np.round(skin).astype(int).clip(0, crop.shape[0] - 1)
        # The brow shades the skin above more than a lid; the skin below catches more light.
        samples = smooth[index[:, 1], index[:, 0]].astype(np.float32).reshape(2, 4, 3).mean(0)
        along = np.linspace(0, 1, 9)
        lid = np.stack([np.interp(along, np.linspace(0, 1, 4), samples[:, c]) for c in range(3)], -1)
        rim = np.round(self.outline[8:25]).astype(int).clip(0, crop.shape[0] - 1)
        dark = crop[rim[:, 1], rim[:, 0]].astype(np.float32)
        lash = dark[np.argsort(dark.sum(1))[: len(dark) // 3]].mean(0)
        return lid.astype(np.float32) * np.float32(0.96), np.minimum(lash, lid.mean(0) * 0.5)

    def _draw_lid(
        self, frame: np.ndarray, upper: np.ndarray, mapping: np.ndarray, shift: np.ndarray, closed: float
    ) -> None:
        """Paint the lid between where its edge is in the photo and where it is now, and its lashes."""
        rest = (self._photo_edge - shift) @ np.linalg.inv(mapping).T
        edge = smooth_chain(upper)
        fold = smooth_chain(rest)
        fold = fold + (fold - edge) * 0.1
        outline = np.concatenate([edge, fold[-2:0:-1]])
        size = frame.shape[0]
        low = np.floor(outline.min(0) - 4).astype(int).clip(0, size - 1)
        high = np.ceil(outline.max(0) + 5).astype(int).clip(1, size)
        region = frame[low[1] : high[1], low[0] : high[0]]
        soft = 0.055 * self._width
        mask = fill(region.shape[:2], outline - low, soft)
        along = np.linspace(edge[0, 0], edge[-1, 0], 9) - low[0]
        xs = np.arange(region.shape[1])
        order = 1 if along[-1] > along[0] else -1
        colour = np.stack([np.interp(xs, along[::order], self._lid[::order, c]) for c in range(3)], -1)
        strength = _OPACITY * min(closed / 0.35, 1.0)
        mixed = region + (mask * np.float32(strength))[..., None] * (colour[None].astype(np.float32) - region)
        thick = np.sin(np.linspace(0, np.pi, len(edge)))[:, None] ** 0.5 * np.array([0.0, 0.018 * self._width])
        lashes = np.concatenate([edge - thick, (edge + 0.6 * thick)[-2:0:-1]])
        dark = fill(region.shape[:2], lashes - low, 0.016 * self._width)[..., None]
        mixed += dark * np.float32(_LASHES * strength) * (self._lash - mixed)
        region[:] = np.round(mixed).clip(0, 255).astype(np.uint8)

    def draw(self, frame: np.ndarray, target: np.ndarray) -> None:
        """Draw the eye into ``frame`` ``[S, S, 3]`` uint8 in place for target landmarks ``[478, 3]`` px."""
        points = target[:, :2].astype(np.float64)
        outline = opening(points[self._upper], points[self._lower])
        # Similarity from the target's eye corners to the portrait's, as complex numbers.
        goal = points[[self._upper[0], self._upper[-1]]]
        turn = complex(*(self._corners[1] - self._corners[0])) / complex(*(goal[1] - goal[0]))
        mapping = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
        shift = self._corners.mean(0) - mapping @ goal.mean(0)
        closed = 1 - min(self._gap(points) * abs(turn) / max(self._height, 1e-3), 1.0)
        if closed > 0.02:
            self._draw_lid(frame, points[self._upper], mapping, shift, closed)
        size = frame.shape[0]
        low = np.floor(outline.min(0) - 3).astype(int).clip(0, size - 1)
        high = np.ceil(outline.max(0) + 4).astype(int).clip(1, size)
        if (high - low).min() < 2:
            return
        gaze = mapping @ points[self._iris] + shift - self._centre
        ys, xs = np.mgrid[low[1] : high[1], low[0] : high[0]].astype(np.float32)
        px = mapping[0, 0] * xs + mapping[0, 1] * ys + shift[0]
        py = mapping[1, 0] * xs + mapping[1, 1] * ys + shift[1]
        reach = ((px - self._centre[0] - gaze[0]) ** 2 + (py - self._centre[1] - gaze[1]) ** 2) / (
            1.7 * self._radius
        ) ** 2
        fade = np.exp(-(reach**2))
        map_x = (px - gaze[0] * fade - self._origin[0]).astype(np.float32)
        map_y = (py - gaze[1] * fade - self._origin[1]).astype(np.float32)
        ball = cv2.remap(self._ball, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mask = fill(ball.shape[:2], outline - low, 0.012 * self._width)[..., None]
        # Lids a fraction of a pixel apart touch.
        mask *= np.float32(min(self._gap(points) / _TOUCHING, 1.0))
        region = frame[low[1] : high[1], low[0] : high[0]]
        # A lid that comes down throws its shadow on the eyeball.
        mixed = region + mask * (ball * (1 - _SHADE * closed) - region)
        region[:] = np.round(mixed).clip(0, 255).astype(np.uint8)


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


_FILLED = 160
"""Side at which the colours behind the person are guessed: only a crescent of them is ever seen."""

_CLEAR = 0.008
"""Share of the side by which the guess begins outside the matte, so that no hair is spread over it."""

_GRAIN, _GRAIN_DEPTH = 0.01, 0.05
"""Finer detail than this share of the side is carried over from the mirror image beyond the outline, this far in."""

_GUESSED = 2.5
"""The guess stands alone where over 1 / 2.5 of a pixel is the person; with less, the photo shows what is behind."""


class Backdrop:
    """A picture ``[S, S, 3]`` uint8 of which the share ``matte`` ``[S, S]`` float32 moves, before what stays."""

    def __init__(self, picture: np.ndarray, matte: np.ndarray) -> None:
        self._behind = _behind(picture, matte)
        through = np.round((1 - _opaque(picture, self._behind, matte)) * 255).astype(np.uint8)
        person = np.round(picture - self._behind * (through[..., None] / 255.0)).clip(0, 255).astype(np.uint8)
        self._person = Enlarged(np.dstack([person, through]))

    def at(self, source: np.ndarray) -> np.ndarray:
        """The frame ``[S, S, 3]`` uint8 whose person comes from ``source`` ``[S, S, 2]`` float32 px."""
        person = self._person.at(source)
        # OpenCV takes slices of channels apart far more slowly than its own functions do.
        through = cv2.cvtColor(cv2.extractChannel(person, 3), cv2.COLOR_GRAY2RGB)
        return cv2.add(cv2.cvtColor(person, cv2.COLOR_RGBA2RGB), cv2.multiply(self._behind, through, scale=1 / 255))


def _opaque(picture: np.ndarray, behind: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """The matte, raised to the least share of a colour in [0, 255] that makes the picture of what is behind: dark hair
    before a bright wall is no thinner than the light the wall lost."""
    picture, behind = picture.astype(np.float32), behind.astype(np.float32)
    darker = (behind - picture) / behind.clip(1)
    brighter = (picture - behind) / (255 - behind).clip(1)
    return np.maximum(matte, np.maximum(darker, brighter).max(-1)).clip(0, 1)


def _behind(picture: np.ndarray, matte: np.ndarray) -> np.ndarray:
    """The picture with its person painted over: colours led in from the outline, with the grain of what is outside."""
    size = picture.shape[0]
    radius = round(_CLEAR * size)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    hidden = cv2.dilate((matte > 0).astype(np.uint8), disc)
    if hidden.all():
        return picture
    small, unknown = (cv2.resize(part, (_FILLED, _FILLED), interpolation=cv2.INTER_AREA) for part in (picture, hidden))
    led_in = cv2.inpaint(small, unknown, 3, cv2.INPAINT_TELEA)
    led_in = cv2.resize(led_in, (size, size), interpolation=cv2.INTER_CUBIC)
    guess = (led_in + _grain(picture, hidden)).clip(0, 255)
    share = np.clip(_GUESSED * matte, 0, 1)[..., None]
    return np.round(picture + share * (guess - picture)).astype(np.uint8)


def _grain(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fine detail ``[S, S, 3]`` float32 for the hidden part, from the mirror image beyond its outline."""
    size = picture.shape[0]
    depth, nearest = cv2.distanceTransformWithLabels(hidden, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    seen = np.argwhere(hidden == 0)
    outline = np.zeros((nearest.max() + 1, 2), np.float32)
    outline[nearest[tuple(seen.T)]] = seen[:, ::-1]
    here = np.dstack(np.meshgrid(*[np.arange(size, dtype=np.float32)] * 2))
    beyond = here + cv2.GaussianBlur(2 * (outline[nearest] - here), (0, 0), _CLEAR * size)
    mirrored = cv2.remap(picture, beyond, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    # Past a narrow bay the mirror image is the person again.
    again = cv2.remap(hidden, beyond, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=1)
    shallow = np.clip(2 - depth / (_GRAIN_DEPTH * size), 0, 1)
    share = shallow * (1 - cv2.GaussianBlur(again.astype(np.float32), (0, 0), 2))
    fine = cv2.subtract(mirrored, cv2.GaussianBlur(mirrored, (0, 0), _GRAIN * size), dtype=cv2.CV_32F)
    return fine * share[..., None]

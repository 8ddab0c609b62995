"""Synthetic occluders in front of a face, on which the occlusion network is trained and evaluated.

    picture ──shadow of the occluder──► ──occluder blended by its alpha──► occluded picture, alpha

Pictures are square-pixel views in canonical units (``media.crop.to_canonical``): the outer eye corners are one unit
apart around the origin. An occluder is a shape (hand, cup, microphone, mask, strands of hair, plate, bar) with a
surface (the skin of the face itself, other skin, one colour, a pattern, a piece of another picture).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from flowportrait.media.crop import CanonicalView

Rng = np.random.Generator

_SHIFT = 4
"""Fractional bits of the coordinates that OpenCV fills polygons with."""


def add_occluder(
    picture: np.ndarray, view: CanonicalView, rng: Rng, others: np.ndarray | None = None, kind: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the picture with an occluder in front of the lower face, and the occluder's alpha ``[H, W]``.

    Args:
        picture: ``[H, W, 3]`` float32 in [0, 255].
        view: the view of the face that the picture shows.
        rng: source of randomness.
        others: another picture ``[H, W, 3]`` from which surfaces may be taken.
        kind: one of ``SHAPES``, by default any.
    """
    shape = kind or str(rng.choice(list(SHAPES)))
    alpha, across = SHAPES[shape](view, rng)
    surface = _surface(picture, view, rng, others, skin=shape == "hand" and rng.random() < 0.85)
    shade = 1 + rng.uniform(-0.35, 0.1) * across[..., None] ** 2 + rng.uniform(-0.2, 0.2) * across[..., None]
    if shape == "hand":
        surface = surface * shade
    elif rng.random() < 0.7:
        surface = np.clip(surface * shade, 0, 255)
    alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.5:
        shadow = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(1.5, 6.0))
        shift = np.array([[1, 0, rng.uniform(-4, 4)], [0, 1, rng.uniform(-2, 5)]], np.float32)
        shadow = cv2.warpAffine(shadow, shift, shadow.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        picture = picture * (1 - rng.uniform(0.1, 0.6) * shadow[..., None])
    return picture + alpha[..., None] * (surface.clip(0, 255) - picture), alpha


def _blank(view: CanonicalView) -> np.ndarray:
    return np.zeros((view.size, view.size), np.float32)


def _polygon(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    cv2.fillPoly(mask, [np.round(points * (1 << _SHIFT)).astype(np.int32)], 1.0, cv2.LINE_8, _SHIFT)
    return mask


def _capsule(mask: np.ndarray, across: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> None:
    """Draw a finger or a handle in place; ``across`` runs from −1 to 1 from one side of it to the other."""
    height, width = mask.shape
    ys, xs = np.mgrid[:height, :width].astype(np.float32)
    along = (end - start).astype(np.float32)
    length = float(np.hypot(*along)) + 1e-6
    along = along / length
    dx, dy = xs - start[0], ys - start[1]
    place = np.clip(dx * along[0] + dy * along[1], 0, length)
    sideways = (-dx * along[1] + dy * along[0]) / radius
    inside = np.hypot(dx - place * along[0], dy - place * along[1]) < radius
    mask[inside] = 1.0
    across[inside] = sideways[inside].clip(-1, 1)


def _centre(rng: Rng) -> np.ndarray:
    """Return a random point ``[2]`` on mouth or chin, in canonical units."""
    return np.array([rng.normal(0, 0.25), rng.uniform(0.6, 1.25)])


def _rotate(points: np.ndarray, degrees: float) -> np.ndarray:
    angle = np.radians(degrees)
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _across(view: CanonicalView, centre: np.ndarray, half: float, degrees: float) -> np.ndarray:
    """Return −1 … 1 ``[H, W]`` across a width of two ``half`` px around ``centre`` px."""
    ys, xs = np.mgrid[: view.size, : view.size].astype(np.float32)
    angle = np.radians(degrees)
    return (((xs - centre[0]) * np.cos(angle) + (ys - centre[1]) * np.sin(angle)) / half).clip(-1, 1)


def _plate(view: CanonicalView, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return a convex shape with a few corners: a book, a phone, a sheet, a flat hand."""
    centre, size = _centre(rng), np.exp(rng.uniform(np.log(0.15), np.log(0.75), 2))
    if rng.random() < 0.5:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size
    elif rng.random() < 0.5:
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        corners = np.column_stack([np.cos(angles), np.sin(angles)]) * size
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(4, 9)))
        corners = np.column_stack([np.cos(angles), np.sin(angles)]) * size * rng.uniform(0.7, 1.2, (len(angles), 1))
    turn = 0.0 if rng.random() < 0.3 else rng.uniform(0, 180)
    points = view.pixels(_rotate(corners, turn) + centre)
    return _polygon(_blank(view), points), _across(view, view.pixels(centre), size[0] * view.scale, turn)


def _hand(view: CanonicalView, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return a palm and one to five fingers side by side, from below or from a side."""
    mask, across = _blank(view), _blank(view)
    tip, turn = _centre(rng), rng.choice([rng.uniform(-40, 40), rng.uniform(60, 120), rng.uniform(-120, -60)])
    radius = rng.uniform(0.07, 0.13)
    fingers = int(rng.integers(1, 6))
    reach = rng.uniform(0.5, 1.0)
    for number in range(fingers):
        side = (number - (fingers - 1) / 2) * radius * rng.uniform(1.8, 2.3)
        start = np.array([side * rng.uniform(0.9, 1.4), -rng.uniform(0, 0.12)])
        end = np.array([side, reach])
        ends = view.pixels(_rotate(np.array([start, end]), turn) + tip)
        _capsule(mask, across, ends[0], ends[1], radius * rng.uniform(0.85, 1.1) * view.scale)
    if rng.random() < 0.7:
        palm = np.array([[0.0, reach * rng.uniform(0.5, 1.0)], [0.0, reach + 0.6]])
        ends = view.pixels(_rotate(palm, turn) + tip)
        _capsule(mask, across, ends[0], ends[1], max(fingers, 3) * radius * rng.uniform(0.9, 1.1) * view.scale)
    return mask, across


def _microphone(view: CanonicalView, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    mask, across = _blank(view), _blank(view)
    top, turn, radius = _centre(rng) + np.array([0, 0.1]), rng.uniform(-60, 60), rng.uniform(0.12, 0.32)
    ends = view.pixels(_rotate(np.array([[0, 0.0], [0, 1.6]]), turn) + top)
    _capsule(mask, across, ends[0], ends[1], rng.uniform(0.4, 0.8) * radius * view.scale)
    ends = view.pixels(_rotate(np.array([[0, 0.0], [0, rng.uniform(0.02, 0.2)]]), turn) + top)
    _capsule(mask, across, ends[0], ends[1], radius * view.scale)
    return mask, across


def _cup(view: CanonicalView, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    centre, wide, high = _centre(rng), rng.uniform(0.2, 0.45), rng.uniform(0.25, 0.6)
    narrow, turn = wide * rng.uniform(0.6, 1.0), rng.uniform(-30, 30)
    corners = np.array([[-wide, -high], [wide, -high], [narrow, high], [-narrow, high]])
    points = view.pixels(_rotate(corners, turn) + centre)
    return _polygon(_blank(view), points), _across(view, view.pixels(centre), wide * view.scale, turn)


def _mask(view: CanonicalView, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return a face mask, a scarf or a veil, from the nose or below it to the chin and beyond."""
    top, bottom, wide = rng.uniform(0.15, 0.65), rng.uniform(1.25, 1.7), rng.uniform(0.55, 0.85)
    half = [[0, top], [0.18, top + 0.05], [wide, top + rng.uniform(0.0, 0.3)], [wide, 0.9], [0.45, bottom - 0.15],
            [0, bottom]]  # fmt: skip
    right = np.array(half)
    points = np.concatenate([right, right[::-1] * [-1, 1]])
    if rng.random() < 0.3:
        points[:, 1] = np.where(points[:, 1] > 0.85, 2.5, points[:, 1])
    points = _rotate(points, rng.uniform(-6, 6))
    return _polygon(_blank(view), view.pixels(points)), _across(
        view, view.pixels(np.array([0, 0.8])), wide * view.scale, 0
    )


def _strands(view: CanonicalView, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return strands of hair across the mouth."""
    mask = _blank(view)
    start, end = np.array([rng.choice([-0.9, 0.9]), rng.uniform(-0.3, 0.7)]), _centre(rng)
    end = end + rng.uniform(0, 0.6) * (end - start)
    for _ in range(int(rng.integers(4, 14))):
        bend = (start + end) / 2 + rng.normal(0, 0.15, 2)
        t = np.linspace(0, 1, 12)[:, None]
        a, b = start + rng.normal(0, 0.12, 2), end + rng.normal(0, 0.15, 2)
        curve = view.pixels((1 - t) ** 2 * a + 2 * t * (1 - t) * bend + t**2 * b)
        points = np.round(curve * (1 << _SHIFT)).astype(np.int32)
        cv2.polylines(mask, [points], False, 1.0, int(rng.integers(1, 4)), cv2.LINE_AA, _SHIFT)
    return mask, np.zeros_like(mask)


def _bar(view: CanonicalView, rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return an arm, a sleeve, a rail or a caption that crosses the picture."""
    mask, across = _blank(view), _blank(view)
    centre, turn = _centre(rng), 0.0 if rng.random() < 0.3 else rng.uniform(-80, 80)
    ends = view.pixels(_rotate(np.array([[-3.0, 0], [3.0 if rng.random() < 0.6 else 0.3, 0]]), turn) + centre)
    _capsule(mask, across, ends[0], ends[1], rng.uniform(0.08, 0.4) * view.scale)
    return mask, across


SHAPES: dict[str, Callable[[CanonicalView, Rng], tuple[np.ndarray, np.ndarray]]] = {
    "hand": _hand, "plate": _plate, "microphone": _microphone, "cup": _cup, "mask": _mask, "strands": _strands,
    "bar": _bar,
}  # fmt: skip
"""Shapes of occluders: functions that return alpha ``[H, W]`` and −1 … 1 across the occluder, for its shading."""


def _surface(picture: np.ndarray, view: CanonicalView, rng: Rng, others: np.ndarray | None, skin: bool) -> np.ndarray:
    """Return the colour of the occluder at each pixel, ``[H, W, 3]``."""
    shape = picture.shape
    pick = rng.random()
    if skin or pick < 0.2:
        # A hand has the skin of the face, lighter or darker.
        source = picture if others is None or rng.random() < 0.7 else others
        x, y = view.pixels(np.array([rng.choice([-0.35, 0.35]), 0.45])).astype(int)
        colour = np.median(source[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3), axis=0)
        colour = colour * np.exp(rng.normal(0, 0.12)) + rng.normal(0, 8, 3)
    elif pick < 0.5:
        colour = rng.uniform(0, 255, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0, 255))
    elif others is not None:
        # A piece of another picture: its cloth, hair, wall or skin.
        zoom = rng.uniform(0.3, 1.5)
        matrix = cv2.getRotationMatrix2D(
            (rng.uniform(0, shape[1]), rng.uniform(0, shape[0])), rng.uniform(0, 360), 1 / zoom
        )
        return cv2.warpAffine(others, matrix, shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
    else:
        colour = rng.uniform(0, 255, 3)
    result = np.broadcast_to(colour, shape).astype(np.float32)
    if rng.random() < 0.3:
        return result
    coarse = rng.normal(0, rng.uniform(2, 25), (int(rng.integers(2, 7)), int(rng.integers(2, 6)), 1)).astype(np.float32)
    result = result + cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)[..., None]
    if rng.random() < 0.3:
        # Folds, knuckles, a knitted or woven surface, the mesh of a microphone.
        ys, xs = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        angle, period = rng.uniform(0, np.pi), rng.uniform(2.5, 14)
        wave = np.sin((np.cos(angle) * xs + np.sin(angle) * ys) * 2 * np.pi / period)
        if rng.random() < 0.4:
            wave = wave * np.sin((-np.sin(angle) * xs + np.cos(angle) * ys) * 2 * np.pi / period)
        result = result + rng.uniform(5, 40) * wave[..., None]
    return result + rng.normal(0, rng.uniform(0, 6), (*shape[:2], 1)).astype(np.float32)

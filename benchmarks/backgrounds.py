"""Generated backgrounds that are hard to continue behind a head: print, shelves, stripes and foliage.

Each is ``[size, size, 3]`` float32 in [0, 255], another one for every seed.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator

_LETTERS = "aabcdeeefghiiklmnnooprrssttuvwxyzABDEFGHKLMNORSTW0123456789"


def make_background(kind: str, size: int, seed: int) -> np.ndarray:
    """Return a background of a kind of ``BACKGROUNDS``."""
    picture = BACKGROUNDS[kind](size, np.random.default_rng(seed))
    # As a camera would have it: a little soft, with a little noise.
    noise = np.random.default_rng(seed).normal(0, 1.5, picture.shape)
    return (
        (cv2.GaussianBlur(picture.astype(np.float32), (0, 0), 0.0008 * size + 0.3) + noise)
        .clip(0, 255)
        .astype(np.float32)
    )


def _colour(rng: Rng, low: float = 0, high: float = 255) -> np.ndarray:
    grey = rng.uniform(low, high)
    return (grey + rng.uniform(-45, 45, 3)).clip(0, 255)


def _two_colours(rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Return two colours of different brightness in random order."""
    dark, bright = _colour(rng, 20, 90), _colour(rng, 150, 235)
    return (dark, bright) if rng.random() < 0.5 else (bright, dark)


def _print(size: int, rng: Rng) -> np.ndarray:
    """Lines of text, as of a poster."""
    paper, ink = _two_colours(rng)
    picture = np.full((size, size, 3), paper, np.uint8)
    y = 0.0
    while y < size * 1.05:
        height = size * rng.choice([0.03, 0.045, 0.07])
        x = -rng.uniform(0, height)
        while x < size:
            word = "".join(rng.choice(list(_LETTERS), rng.integers(2, 9)))
            scale, thick = height / 32, max(1, round(height / 9))
            cv2.putText(
                picture, word, (round(x), round(y + height)), cv2.FONT_HERSHEY_SIMPLEX, scale, ink.tolist(), thick,
                cv2.LINE_AA,
            )  # fmt: skip
            x += cv2.getTextSize(word, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)[0][0] + 0.5 * height
        y += 1.6 * height
    return picture


def _shelves(size: int, rng: Rng) -> np.ndarray:
    """Boards with books between them."""
    picture = np.full((size, size, 3), _colour(rng, 20, 70), np.uint8)
    board = _colour(rng, 90, 200)
    step, thick = rng.uniform(0.18, 0.3) * size, rng.uniform(0.012, 0.03) * size
    y = -rng.uniform(0, step)
    while y < size:
        floor, x = y + step - thick, 0.0
        while x < size:
            width, height = rng.uniform(0.015, 0.06) * size, rng.uniform(0.6, 0.95) * (step - thick)
            if rng.random() < 0.85:
                corners = (round(x), round(floor - height)), (round(x + width) - 1, round(floor))
                cv2.rectangle(picture, *corners, _colour(rng, 30, 220).tolist(), -1)
            x += width
        cv2.rectangle(picture, (0, round(floor)), (size, round(floor + thick)), board.tolist(), -1)
        y += step
    return picture


def _stripes(size: int, rng: Rng) -> np.ndarray:
    """Stripes of two or three colours at any angle, as of a curtain, a blind or a flag."""
    colours = np.array([*_two_colours(rng), _colour(rng)])[: rng.integers(2, 4)]
    period, angle = rng.uniform(0.03, 0.14) * size, rng.choice([0, np.pi / 2, rng.uniform(0, np.pi)])
    # Four samples a pixel, so that edges are smooth.
    ys, xs = np.mgrid[: size * 2, : size * 2] / 2
    phase = (xs * np.cos(angle) + ys * np.sin(angle)) / period + rng.random()
    index = (phase % 1 * len(colours)).astype(int)
    return cv2.resize(colours[index].astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)


def _foliage(size: int, rng: Rng) -> np.ndarray:
    """Leaves of many greens and sizes over one another, out of focus to a random degree, with gaps of sky."""
    picture = np.full((size, size, 3), _colour(rng, 20, 60), np.uint8)
    for scale, count in ((0.05, 500), (0.03, 1400)):
        for _ in range(count):
            centre = rng.uniform(0, size, 2)
            axes = scale * size * rng.uniform(0.4, 1.0) * np.array([1, rng.uniform(0.25, 0.6)])
            green = np.array([rng.uniform(20, 140), rng.uniform(60, 190), rng.uniform(10, 80)])
            if rng.random() < 0.04:
                green = np.array([200, 220, 240.0])
            box = (tuple(centre.tolist()), tuple((2 * axes).tolist()), rng.uniform(0, 180))
            cv2.ellipse(picture, box, (green * rng.uniform(0.5, 1.1)).tolist(), -1, cv2.LINE_AA)
    return cv2.GaussianBlur(picture, (0, 0), size * rng.choice([0.001, 0.003, 0.008]))


BACKGROUNDS: dict[str, Callable[[int, Rng], np.ndarray]] = {
    "print": _print, "shelves": _shelves, "stripes": _stripes, "foliage": _foliage,
}  # fmt: skip
"""Kinds of background and what draws them."""

"""How much of each pixel beside the outline is the person: single hairs, soft edges, and no background.

    mask of the person ──► certain person │ narrow band of doubt │ certain background
                                │                  │                      │
                     colours F of the person       │      colours B of the background, near by
                                └───────────►  photo ≈ a F + (1 − a) B  ◄─┘

Of all pairs of colours the one counts that explains the photo best, and of equals the one with less of the person: a
letter of the print behind is explained by the print. Where colours of both explain a pixel, as dark hair in front of
dark shelves, a is a soft step at the outline.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.rendering.inpainting import inpaint_band

_SOLID, _CLEAR = -3.0, 9.0
"""Signed distances from the outline, in pixels of the 256 px mask (negative: inside), between which there is doubt."""

_STEP = (-1.0, 3.0)
"""Signed distances over which the share falls from one to zero where colours tell nothing."""

_LOWEST, _HIGHEST = (-3.0, 0.5), (4.0, 9.0)
"""Signed distances over which the least and the largest possible share fall from one to zero."""

_SAMPLE = 3.0
"""Distance inside the outline, in pixels of the mask, from which the person's colours are taken."""

_NOISE = 8.0
"""Difference of levels that means nothing."""

_LITTLE = 0.04
"""Share of the person up to which a pixel is background."""

_BESIDE, _COLOURS = 40.0, 12
"""Width of the band outside the doubt in pixels of the mask, and number of typical colours that are taken from it."""

_FARTHER = 0.6
"""How much faster the noise of a pixel grows that is a pixel of the mask further outside."""

_SPREAD, _SAMPLES = 0.035, (5, 16)
"""Share of the side within which colours are sampled; number of samples of the person and of the background."""

_SIDE = 256
"""Side of the picture on which the background is continued for comparison."""

_GUIDED = (0.008, 0.0008)
"""Radius of the guided filter as a share of the side, and its regularisation (colours in [0, 1])."""


def refine_matte(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the share of the person ``[S, S]`` float32 in each pixel.

    Args:
        picture: ``[S, S, 3]`` uint8.
        mask: the person, nonzero inside ``[256, 256]``.
    """
    size = len(picture)
    outside = _signed_distance(mask, size)
    doubt = (outside > _SOLID) & (outside < _CLEAR)
    step = _falling(outside, _STEP)
    if not doubt.any() or (outside < _CLEAR).all():
        return step
    colours = picture.astype(np.float32)
    here = np.nonzero(doubt)
    soft = cv2.GaussianBlur(colours, (0, 0), 0.7)
    rng = np.random.default_rng(0)
    certain = outside <= max(-_SAMPLE, float(outside.min()) + 1)
    person = _colours_nearby(soft, certain, here, _SAMPLES[0], rng)
    behind = _colours_nearby(soft, outside >= _CLEAR, here, _SAMPLES[1], rng)
    behind.append(_continued_background(picture, outside)[here].astype(np.float32))
    palette = _palette(soft[(outside >= _CLEAR) & (outside < _CLEAR + _BESIDE)], rng)
    measured, trust = _explain(colours[here], person, behind, palette, outside[here])
    matte = (outside <= _SOLID).astype(np.float32)
    matte[here] = trust * measured + (1 - trust) * step[here]
    radius, regularisation = _GUIDED
    guide = colours / np.float32(255)
    matte = cv2.ximgproc.guidedFilter(guide, matte, max(round(radius * size), 1), regularisation)
    matte = matte.clip(_falling(outside, _LOWEST), _falling(outside, _HIGHEST))
    # Almost nothing is nothing, and almost everything is everything.
    result: np.ndarray = ((matte - _LITTLE) / (1 - 2 * _LITTLE)).clip(0, 1)
    return _without_specks(result)


def _signed_distance(mask: np.ndarray, size: int) -> np.ndarray:
    """Return the distance from the outline ``[size, size]`` float32 in pixels of the mask; negative inside."""
    person = (mask > 0).astype(np.uint8)
    outside = cv2.distanceTransform(1 - person, cv2.DIST_L2, 5) - cv2.distanceTransform(person, cv2.DIST_L2, 5)
    smooth = cv2.GaussianBlur(outside, (0, 0), 1.0)
    return cv2.resize(smooth, (size, size), interpolation=cv2.INTER_LINEAR)


def _falling(distance: np.ndarray, between: tuple[float, float]) -> np.ndarray:
    """Return one up to the first distance, zero from the second on, and a smooth step between them."""
    x = ((between[1] - distance) / (between[1] - between[0])).clip(0, 1).astype(np.float32)
    return x * x * (3 - 2 * x)


def _continued_background(picture: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Return the picture with certain background continued into the band of doubt."""
    size, side = len(picture), min(_SIDE, len(picture))
    small = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    distance = cv2.resize(outside, (side, side), interpolation=cv2.INTER_LINEAR)
    depth = (_CLEAR - _SOLID + 2) * side / 256
    filled = inpaint_band(small, distance < _CLEAR, depth)
    return cv2.resize(filled, (size, size), interpolation=cv2.INTER_LINEAR)


def _colours_nearby(
    colours: np.ndarray, certain: np.ndarray, here: tuple[np.ndarray, ...], count: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return ``count`` certain colours ``[N, 3]`` near each of the N pixels ``here``: the nearest, and random ones."""
    size = len(colours)
    _, labels = cv2.distanceTransformWithLabels(
        (~certain).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    places = np.argwhere(certain)
    lookup = np.zeros((labels.max() + 1, 2), int)
    lookup[labels[tuple(places.T)]] = places
    nearest = lookup[labels[here]]
    found = [colours[nearest[:, 0], nearest[:, 1]]]
    for _ in range(count - 1):
        shift = rng.normal(0, _SPREAD * size, nearest.shape)
        rows, columns = (nearest + np.round(shift).astype(int)).clip(0, size - 1).T
        # From there to the nearest certain one, so that every sample is certain.
        rows, columns = lookup[labels[rows, columns]].T
        found.append(colours[rows, columns])
    return found


def _palette(colours: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return typical colours ``[12, 3]`` float32 of pixels ``[N, 3]``, or all of few."""
    if len(colours) <= _COLOURS:
        return colours
    some = np.ascontiguousarray(colours[rng.integers(len(colours), size=3000)])
    cv2.setRNGSeed(0)
    end = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 1.0)
    _, _, centres = cv2.kmeans(some, _COLOURS, None, end, 1, cv2.KMEANS_PP_CENTERS)
    return np.asarray(centres, np.float32)


def _without_specks(matte: np.ndarray) -> np.ndarray:
    """Return the matte without parts that are not joined to the person, ``[S, S]``."""
    _, labels = cv2.connectedComponents((matte > 0).astype(np.uint8))
    joined = np.unique(labels[matte > 0.99])
    return np.where(np.isin(labels, joined), matte, 0).astype(np.float32)


def _explain(
    seen: np.ndarray, person: list[np.ndarray], behind: list[np.ndarray], palette: np.ndarray, outside: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the share ``[N]`` with which a mixture explains the colours, and how far that can be trusted ``[N]``.

    Args:
        seen: colours ``[N, 3]``.
        person: possible colours of the person, each ``[N, 3]``.
        behind: possible colours of the background, each ``[N, 3]``.
        palette: typical colours of the background ``[K, 3]``, which are a little less likely.
        outside: distance from the outline ``[N]``; the person is less likely further outside.
    """
    noise = np.float32(_NOISE**2) * (1 + _FARTHER * outside.clip(0))
    best = np.full(len(seen), np.inf, np.float32)
    share = np.zeros_like(best)
    for back in behind:
        difference = seen - back
        for colour in person:
            apart = colour - back
            contrast = np.einsum("nc,nc->n", apart, apart)
            mixed = (np.einsum("nc,nc->n", difference, apart) / contrast.clip(1)).clip(0, 1)
            rest = difference - mixed[:, None] * apart
            misfit = np.einsum("nc,nc->n", rest, rest) + noise * mixed
            better = misfit < best
            best = np.where(better, misfit, best)
            share = np.where(better, mixed, share)
    from_person, from_behind = (
        np.min([np.square(seen - colour).sum(-1) for colour in colours], 0) for colours in (person, behind)
    )
    typical = np.min([np.square(seen - colour).sum(-1) for colour in palette], 0) + 4 * noise
    share = np.where(typical < best, 0, share)
    apart = from_person + np.minimum(from_behind, typical)
    return share.astype(np.float32), (apart / (apart + 6 * noise)).astype(np.float32)

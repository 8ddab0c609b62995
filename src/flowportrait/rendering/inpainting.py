"""Fill the hidden part of a background with patches of its visible part, so that beams, stripes and print continue.

    picture ─► halved until 64 px ─► every hidden patch: most similar visible one (PatchMatch) ⇄ patches vote on colours
                                     └──────────── positions doubled for the next larger picture ◄──┘

This is space-time completion (Wexler et al. 2007) for one picture, with PatchMatch (Barnes et al. 2009) evaluated for
all patches at once. Only a band of limited depth along the visible part is filled this way; what lies deeper is smooth.
Similarity counts visible pixels fully, and hidden ones less the deeper they lie, so structures grow from the outside
inwards; nearby patches are preferred, so that shading continues too.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_RADIUS = 3
"""Patches have 7 x 7 pixels."""

_ROUNDS = {64: 8, 128: 5, 256: 3}
"""Rounds of searching and voting by side of the picture; a larger picture gets one, in which patches move little."""

_LARGEST, _REFINED = 256, 512
"""Sides of the largest pictures in which patches may move far, and in which they may move at all."""

_FADE = 0.85
"""Factor of a hidden pixel's weight for each pixel of depth."""

_LEAST = 0.05
"""Least weight of a hidden pixel."""

_LOCAL = 60.0
"""Mean squared difference of levels that counts as much as a distance of one side of the picture."""

_ALIKE, _SOFT, _MOST_SOFT = 250.0, 0.009, 0.75
"""Mean squared difference of levels of a patch that is half a guess, width of the smoothing of guesses as a share of
the side, and largest share of the smooth colours."""

_FEWEST = 40
"""Fewest visible patches that anything is continued from."""

_SMOOTH_SIDE = 160
"""Side at which colours deep behind the person are inpainted."""


def inpaint_band(
    picture: np.ndarray, hidden: np.ndarray, depth: float, wanted: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Return a picture with its hidden part filled.

    Args:
        picture: ``[S, S, 3]`` uint8.
        hidden: nonzero where the picture is not to be used, ``[S, S]``.
        depth: distance from the visible part in pixels, up to which patches are copied.
        wanted: where else than here, ``[S, S]`` bool, a smooth filling is enough; everywhere by default.
        seed: seed of the random search.

    Returns:
        ``[S, S, 3]`` uint8; visible pixels are unchanged.
    """
    hidden = (hidden > 0).astype(np.uint8)
    if hidden.all() or not hidden.any():
        return picture
    smooth = _smooth_fill(picture, hidden)
    distance = cv2.distanceTransform(hidden, cv2.DIST_L2, 5)
    band = (hidden > 0) & (distance <= depth)
    if wanted is not None:
        band &= wanted
    copied = _copy_patches(picture, smooth, hidden, band, np.random.default_rng(seed))
    if copied is None:
        return np.where(hidden[..., None] > 0, smooth, picture)
    # Patches give way to smooth colours at the inner rim of the band.
    inner = cv2.distanceTransform(np.pad(band | (hidden == 0), 1, mode="edge").astype(np.uint8), cv2.DIST_L2, 5)
    share = np.clip(inner[1:-1, 1:-1] / (0.3 * depth), 0, 1)[..., None]
    mixed = smooth + share * (copied - smooth)
    return np.where(hidden[..., None] > 0, np.round(mixed).clip(0, 255).astype(np.uint8), picture)


def _smooth_fill(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Return the picture with hidden colours inpainted smoothly from around (Telea 2004), ``[S, S, 3]`` uint8."""
    side = min(_SMOOTH_SIDE, len(picture))
    small, unknown = (cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA) for part in (picture, hidden * 255))
    smooth = cv2.inpaint(small, (unknown > 0).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    return cv2.resize(smooth, picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)


@dataclass
class _Level:
    """A picture of the pyramid, with a margin of a patch's radius on every side.

    Attributes:
        colours: ``[n + 6, n + 6, 3]`` float32; hidden ones are estimates.
        visible: which pixels are visible, bool.
        weight: how much a pixel counts in a comparison, float32; 0 outside the band.
        usable: which pixels are centres of wholly visible patches, bool.
        rows: row of the centre of each patch that overlaps the band ``[N]``.
        columns: column of the centre ``[N]``.
        number: the index of each centre, -1 elsewhere, ``[n + 6, n + 6]``.
    """

    colours: np.ndarray
    visible: np.ndarray
    weight: np.ndarray
    usable: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    number: np.ndarray


_SAMPLES = np.array([(i, j) for i in range(-3, 4) for j in range(-3, 4) if (i + j) % 2 == 0]).T
"""The pixels of a patch that are compared: every second one, as on a chessboard."""


def _level(picture: np.ndarray, smooth: np.ndarray, hidden: np.ndarray, band: np.ndarray, side: int) -> _Level:
    size = (side, side)
    known = cv2.resize((1 - hidden).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    sums = cv2.resize(picture * (1 - hidden[..., None]).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    rough = cv2.resize(smooth, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    visible = known > 0.6
    colours = np.where(visible[..., None], sums / known[..., None].clip(1e-3), rough)
    wanted = (cv2.resize(band.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0) & ~visible
    deep = cv2.distanceTransform((~visible).astype(np.uint8), cv2.DIST_L2, 5)
    weight = np.where(visible, 1, np.where(wanted, np.maximum(_FADE**deep, _LEAST), 0)).astype(np.float32)
    pad = [(_RADIUS, _RADIUS)] * 2
    patch = np.ones((2 * _RADIUS + 1,) * 2, np.uint8)
    framed = np.pad(visible, pad, mode="edge")
    usable = cv2.erode(framed.astype(np.uint8), patch, borderType=cv2.BORDER_CONSTANT, borderValue=1) > 0
    touched = cv2.dilate(np.pad(wanted, pad).astype(np.uint8), patch) > 0
    touched &= np.pad(visible | wanted, pad)
    inner = np.zeros_like(touched)
    inner[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS] = True
    usable &= inner
    rows, columns = np.nonzero(touched & inner)
    number = np.full(touched.shape, -1, np.int32)
    number[rows, columns] = np.arange(len(rows))
    return _Level(
        np.pad(colours, [*pad, (0, 0)], mode="edge"), framed, np.pad(weight, pad, mode="edge"), usable, rows, columns,
        number,
    )  # fmt: skip


class _Matches:
    """The most similar visible patch of each patch of a level."""

    def __init__(self, level: _Level, rows: np.ndarray, columns: np.ndarray) -> None:
        self.level = level
        self.rows, self.columns = rows, columns
        width = level.colours.shape[1]
        down, right = _SAMPLES
        self._steps = down * width + right
        self._flat = level.colours.reshape(-1, 3)
        self._centres = level.rows * width + level.columns
        self._width = width
        weight = level.weight.ravel().take(self._centres[:, None] + self._steps)
        self._weight = weight / weight.sum(1, keepdims=True)
        self.refresh()

    def refresh(self) -> None:
        """Compare again after the level's colours have changed."""
        self._patches = self._flat.take(self._centres[:, None] + self._steps, axis=0)
        self.cost = self._compare(np.arange(len(self.rows)), self.rows, self.columns)

    def _compare(self, index: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        found = self._flat.take((rows * self._width + columns)[:, None] + self._steps, axis=0)
        found -= self._patches.take(index, axis=0)
        np.square(found, out=found)
        cost = np.einsum("npc,np->n", found, self._weight.take(index, axis=0))
        away = np.hypot(rows - self.level.rows[index], columns - self.level.columns[index])
        result: np.ndarray = cost + _LOCAL * away / self._width
        return result

    def _offer(self, index: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
        """Take other patches where they are more similar; those that are not wholly visible are ignored."""
        last = self._width - 1
        good = (rows >= 0) & (columns >= 0) & (rows <= last) & (columns <= last)
        good[good] = self.level.usable[rows[good], columns[good]]
        good[good] = (rows[good] != self.rows[index[good]]) | (columns[good] != self.columns[index[good]])
        index, rows, columns = index[good], rows[good], columns[good]
        if not len(index):
            return
        cost = self._compare(index, rows, columns)
        better = cost < self.cost[index]
        index = index[better]
        self.cost[index], self.rows[index], self.columns[index] = cost[better], rows[better], columns[better]

    def propagate(self) -> None:
        """Offer each patch what its neighbours have found, moved along."""
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            neighbour = self.level.number[self.level.rows + down, self.level.columns + right]
            index = np.flatnonzero(neighbour >= 0)
            neighbour = neighbour[index]
            self._offer(index, self.rows[neighbour] - down, self.columns[neighbour] - right)

    def search(self, rng: np.random.Generator, reach: float) -> None:
        """Offer each patch random ones around what it has, at distances halved from ``reach``."""
        everything = np.arange(len(self.rows))
        while reach >= 1:
            shift = np.round(rng.uniform(-reach, reach, (2, len(everything)))).astype(int)
            self._offer(everything, self.rows + shift[0], self.columns + shift[1])
            reach /= 3

    def vote(self, reach: int = 2) -> None:
        """Replace the hidden colours by the mean of what nine patches over each of them have there."""
        level, spread = self.level, np.median(self.cost) + 1.0
        trust = np.exp(-self.cost / (2 * spread)) * level.weight[level.rows, level.columns]
        trust = trust.clip(1e-6)[:, None].astype(np.float32)
        total = np.zeros((*level.number.shape, 4), np.float32)
        votes, every = np.dstack([level.colours, np.ones(level.number.shape, np.float32)]).reshape(-1, 4), self._width
        sums, matched = total.reshape(-1, 4), self.rows * self._width + self.columns
        for down in (-reach, 0, reach):
            for right in (-reach, 0, reach):
                step = down * every + right
                sums[self._centres + step] += trust * votes.take(matched + step, axis=0)
        change = ~level.visible & (total[..., 3] > 0)
        change[:_RADIUS] = change[-_RADIUS:] = change[:, :_RADIUS] = change[:, -_RADIUS:] = False
        level.colours[change] = total[change, :3] / total[change, 3:]
        inner = level.colours[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
        level.colours[:] = np.pad(inner, [(_RADIUS, _RADIUS)] * 2 + [(0, 0)], mode="edge")


def _copy_patches(
    picture: np.ndarray, smooth: np.ndarray, hidden: np.ndarray, band: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Return the picture with its band filled by patches, ``[S, S, 3]`` float32; None if too little is visible."""
    size = len(picture)
    sides = [side for side in (*_ROUNDS, _REFINED) if side < size]
    matches: _Matches | None = None
    for side in [*sides, size]:
        level = _level(picture, smooth, hidden, band, side)
        if level.usable.sum() < _FEWEST or not len(level.rows):
            matches = None
            continue
        start = _nearest_visible(level) if matches is None else _enlarged(matches, level)
        matches = _Matches(level, *start)
        if side > _REFINED:
            break
        if side != [*sides, size][0]:
            matches.vote()
            matches.refresh()
        for _ in range(_ROUNDS.get(side, 1)):
            matches.propagate()
            matches.search(rng, 1.5 if side > _LARGEST else side / 3)
            matches.vote()
            matches.refresh()
    if matches is None:
        return None
    matches.vote(reach=1)
    return _soften_guesses(matches)


def _soften_guesses(matches: _Matches) -> np.ndarray:
    """Return the filled picture ``[S, S, 3]`` float32, softer the less alike the patches are that were copied.

    What nothing around it predicts, as the next leaf or letter, is better out of focus than wrong.
    """
    level = matches.level
    doubt, known = np.zeros((2, *level.number.shape), np.float32)
    doubt[level.rows, level.columns] = matches.cost / (matches.cost + _ALIKE)
    known[level.rows, level.columns] = 1
    sigma = _SOFT * len(doubt)
    doubt = cv2.GaussianBlur(doubt, (0, 0), sigma) / cv2.GaussianBlur(known, (0, 0), sigma).clip(1e-3)
    there = (level.weight > 0).astype(np.float32)
    soft = cv2.GaussianBlur(level.colours * there[..., None], (0, 0), sigma)
    soft /= cv2.GaussianBlur(there, (0, 0), sigma).clip(1e-3)[..., None]
    mixed = level.colours + (_MOST_SOFT * doubt * (known > 0))[..., None] * (soft - level.colours)
    result: np.ndarray = np.where(level.visible[..., None], level.colours, mixed)[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    return result


def _nearest_visible(level: _Level) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the usable patch nearest to each patch."""
    _, labels = cv2.distanceTransformWithLabels(
        (~level.usable).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    places = np.argwhere(level.usable)
    lookup = np.zeros((labels.max() + 1, 2), int)
    lookup[labels[tuple(places.T)]] = places
    found = lookup[labels[level.rows, level.columns]]
    return found[:, 0].copy(), found[:, 1].copy()


def _enlarged(matches: _Matches, level: _Level) -> tuple[np.ndarray, np.ndarray]:
    """Return the matches of the smaller picture in a larger one; the nearest usable patch where there are none."""
    old = matches.level
    times = (len(level.number) - 2 * _RADIUS) / (len(old.number) - 2 * _RADIUS)
    rows, columns = _nearest_visible(level)
    above, left = ((place - _RADIUS + 0.5) / times for place in (level.rows, level.columns))
    number = old.number[above.astype(int) + _RADIUS, left.astype(int) + _RADIUS]
    index = np.flatnonzero(number >= 0)
    number = number[index]
    down = np.round(times * (matches.rows - old.rows)).astype(int)[number]
    right = np.round(times * (matches.columns - old.columns)).astype(int)[number]
    found_rows = (level.rows[index] + down).clip(_RADIUS, len(level.number) - _RADIUS - 1)
    found_columns = (level.columns[index] + right).clip(_RADIUS, len(level.number) - _RADIUS - 1)
    good = level.usable[found_rows, found_columns]
    rows[index[good]], columns[index[good]] = found_rows[good], found_columns[good]
    return rows, columns

"""Two layers: the person moves, what is behind stays.

    photo = P + (1 − a) B           a   share of the person in each pixel
    frame = P(s) + (1 − a(s)) B     B   the photo without the person, guessed from around the outline
                                    P   what the person adds to it;  s  where each pixel of the frame comes from

At rest s is every pixel's own place and the frame is the photo, however well B was guessed.
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.codec.warp import Enlarged

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

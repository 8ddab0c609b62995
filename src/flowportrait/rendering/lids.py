"""The lids of one portrait: how far its eyes open, and blinks that close them, both alike.

Motion says how far lids are from a neutral face that is looking straight ahead with wide eyes; nearly the same one for
everybody, as blendshapes explain most of what distinguishes a photo's lids. Drawn directly, narrow eyes become wide,
and a blink that closes the speaker's eyes stops half way on another face, earlier on one side than on the other. Here
motion is read as a share of the usual opening, and the share is drawn on the opening of this portrait:

    blink [T, 2] ──reference face──► share of the usual opening ──► closed below a third ──► both eyes alike
          ──► share · opening of the photo ──► blink [T, 2] of this face

Eyes that are half closed in the photo are opened half the way to narrow ones; what they show then is in
``layers.EyeLayer``. Eyes that are shut stay shut, because nothing is known of them.
"""

from __future__ import annotations

import torch

from flowportrait.rendering.face_regions import EYES
from flowportrait.rendering.motion_basis import BLINK, Identity, MotionBasis

_NEUTRAL_GAP = torch.tensor([0.128, 0.133])
"""Median opening of the neutral face (person's right and left eye) in eye distances, over 781 photos of training
people."""

_USUAL_BLINK = torch.tensor([0.2, 0.6])
"""Blink coefficients between blinks: median over the training footage."""

_SHUT = 0.35
"""Share of the usual opening at which lids are drawn shut. At the deepest frame of blinks, encoded from 25 frames per
second and smoothed, speakers measure 0 to 0.4."""

_WIDEST = 1.3
"""Largest share of the usual opening."""

_WINK, _CLEAR_WINK = 0.3, 0.6
"""Differences between the shares of the eyes: below the first both are drawn alike, above the second as they are."""

NARROW_OPENING = 0.09
"""Opening in eye distances below which a photo's eyes are opened further. Of people with neutral faces the tenth
percentile is 0.09 among white and 0.075 among East Asian sitters of the London set."""

_OPENED_BY = 0.5
"""Share of the way to ``NARROW_OPENING`` by which half-closed eyes are opened."""

SHUT_OPENING = 0.035
"""Opening in eye distances below which a photo's eyes are shut."""

_UNEQUAL = 0.8
"""Smallest opening of one eye over that of the other; a photo in the middle of a wink is opened that far."""


def lid_opening(shape: torch.Tensor) -> torch.Tensor:
    """Return the opening of both eyes ``[..., 2]`` in eye distances, for pose-free faces ``[..., 478, 3]``."""
    return torch.stack([shape[..., lower[4], 1] - shape[..., upper[4], 1] for upper, lower, _ in EYES], -1)


class LidRange:
    """Converts blink coefficients of motion into those that draw the same movement on one portrait.

    Args:
        basis: the motion basis.
        identity: the portrait's neutral face.
        photo: the pose-free face ``[478, 3]`` as the photo shows it.

    Attributes:
        opening: the usual opening of both eyes, ``[2]`` in eye distances.
        is_shut: whether both eyes are shut in the photo.
    """

    def __init__(self, basis: MotionBasis, identity: Identity, photo: torch.Tensor) -> None:
        self._directions = lid_opening(basis.directions[BLINK])
        self._neutral = lid_opening(identity.neutral)
        photo_opening = lid_opening(photo)
        self.is_shut = bool((photo_opening < SHUT_OPENING).all())
        self.opening = photo_opening.clamp_min(0) if self.is_shut else _opened(photo_opening)
        self._usual = _NEUTRAL_GAP + _USUAL_BLINK @ self._directions
        self._inverse = torch.linalg.inv(self._directions)

    def __call__(self, motion: torch.Tensor) -> torch.Tensor:
        """Return motion ``[T, 30]`` whose blink coefficients are those of this portrait."""
        result = motion.clone()
        share = (_NEUTRAL_GAP + motion[:, BLINK] @ self._directions) / self._usual
        share = _alike(_shut_early(share.clamp_max(_WIDEST)))
        if self.is_shut:
            share = torch.ones_like(share)
        result[:, BLINK] = (share * self.opening - self._neutral) @ self._inverse
        return result


def _opened(opening: torch.Tensor) -> torch.Tensor:
    """Return the usual opening ``[2]`` of eyes for that in a photo ``[2]``."""
    opening = torch.maximum(opening, _UNEQUAL * opening.max())
    return opening + _OPENED_BY * (NARROW_OPENING - opening).clamp_min(0)


def _shut_early(share: torch.Tensor) -> torch.Tensor:
    """Return shares of the opening that are zero below ``_SHUT`` and unchanged from one on, with one slope there."""
    x = ((share - _SHUT) / (1 - _SHUT)).clamp_min(0)
    slope = 1 - _SHUT
    return torch.where(share < 1, (2 - slope) * x - (1 - slope) * x * x, share)


def _alike(share: torch.Tensor) -> torch.Tensor:
    """Return shares ``[T, 2]`` that are the same in both eyes unless one of them winks."""
    difference = share[:, 0] - share[:, 1]
    t = ((difference.abs() - _WINK) / (_CLEAR_WINK - _WINK)).clamp(0, 1)
    half = 0.5 * difference * t * t * (3 - 2 * t)
    return share.mean(1, keepdim=True) + torch.stack([half, -half], 1)

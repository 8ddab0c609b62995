"""What a user should know about a portrait before it is animated: one sentence for each thing that limits the video.

measured in the crop                         sentence
something before the mouth                   lips will be drawn over it
eyes shut or half closed                     they stay shut; they are opened a little
turned aside by 35 degrees and more          the head moves less
very dark                                    little will be seen of eyes and mouth
"""

from __future__ import annotations

import cv2
import numpy as np

from flowportrait.media.faces import face_yaw
from flowportrait.media.occlusion import is_mouth_covered

_LIDS = ((159, 145, 33, 133), (386, 374, 263, 362))
"""Upper lid, lower lid and both corners of each eye."""

_SHUT, _HALF_CLOSED = 0.12, 0.2
"""Height over width below which an eye is shut and half closed. In 781 photos of training people the first percentile
is 0.21; of people with neutral faces 0.27."""

_ASIDE = 35.0
"""Degrees of yaw from which the limits of the head's turn are felt."""

_DARK = 28
"""Median luma of a face, of 255, below which it is very dark. In 781 photos of training people the darkest is 30."""

_OVAL = [10, 297, 284, 389, 454, 361, 397, 378, 152, 149, 172, 132, 234, 162, 54, 67]


def portrait_notes(crop: np.ndarray, landmarks: np.ndarray, name: str) -> list[str]:
    """Return sentences about the face in a crop ``[S, S, 3]`` uint8 with landmarks ``[478, 3]`` px.

    Args:
        crop: the crop.
        landmarks: of the face in it.
        name: of the photo in the sentences.
    """
    notes = []
    if is_mouth_covered(crop, landmarks):
        notes.append(f"The mouth in {name} seems to be covered: lips will be drawn over it.")
    opening = eye_opening(landmarks)
    if opening < _SHUT:
        notes.append(f"The eyes in {name} are shut and stay shut: give a photo with open eyes.")
    elif opening < _HALF_CLOSED:
        notes.append(f"The eyes in {name} are half closed: they are opened a little, and what lids hide is made up.")
    yaw = abs(face_yaw(landmarks))
    if yaw > _ASIDE:
        notes.append(
            f"The face in {name} is turned {yaw:.0f} degrees aside: the head turns less, as one side is hidden."
        )
    luma = face_luma(crop, landmarks)
    if luma < _DARK:
        notes.append(f"The face in {name} is very dark ({luma / 255:.0%} of white): a brighter photo shows more of it.")
    return notes


def eye_opening(landmarks: np.ndarray) -> float:
    """Return the height over the width of the wider open eye, for landmarks ``[478, ≥ 2]``."""
    points = landmarks[:, :2]
    return max(
        float(np.linalg.norm(points[upper] - points[lower]) / np.linalg.norm(points[outer] - points[inner]))
        for upper, lower, outer, inner in _LIDS
    )


def face_luma(picture: np.ndarray, landmarks: np.ndarray) -> float:
    """Return the median luma, 0 to 255, of a face in a picture ``[H, W, 3]`` uint8 with landmarks ``[478, ≥ 2]`` px."""
    inside = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.round(landmarks[_OVAL, :2]).astype(np.int32)), 1)
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[inside > 0]
    return float(np.median(luma)) if luma.size else 0.0

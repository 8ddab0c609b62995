"""Photos of people that nothing was learned from, sorted by what they show and by whom.

celebamask + london, split dev ──tracker──► kinds (open mouth, narrow eyes, glasses, turned, dark, neutral)
                               ──skin pixels──► individual typology angle ──► skin tone
london/info.csv ──► age, gender, ethnicity
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.material import read_dev_names
from flowportrait.errors import BadInput
from flowportrait.media.faces import FaceTracker, face_yaw
from flowportrait.media.image import read_image

SMILE_LEFT, SMILE_RIGHT = 44, 45
"""Places of mouthSmileLeft and mouthSmileRight among MediaPipe's blendshapes."""

OPEN_MOUTH, SMILING, NARROW_EYES, TURNED, DARK = 0.06, 0.4, 0.27, 20.0, 80.0
"""Gap of the lips in eye distances; smile weight; height over width of the eyes; degrees of yaw; luma of the face."""

_SKIN, _NOSE, _GLASSES = 1, 2, 3
"""Classes of CelebAMask-HQ."""

_GLASSES_SHARE = 0.003
"""Least share of glasses in the picture."""

_CHEEKS = [50, 280, 205, 425, 101, 330, 118, 347]
_OVAL = [10, 297, 284, 389, 454, 361, 397, 378, 152, 149, 172, 132, 234, 162, 54, 67]

TONES = ((41.0, "light"), (28.0, "intermediate"), (10.0, "tan"), (-np.inf, "brown or dark"))
"""Lower bounds of the individual typology angle in degrees (Del Bino and Bernerd 2013); very light counts as light, and
brown and dark are one group."""


@dataclass(frozen=True)
class GroupedPhoto:
    """A photo and the groups it belongs to.

    Attributes:
        path: the photo.
        groups: such as ``{"kind": "smile with teeth", "skin tone": "tan"}``.
        neutral: of a smiling sitter of the London set, the neutral photo.
    """

    path: Path
    groups: dict[str, str]
    neutral: Path | None = None


def dev_photos(data: Path) -> list[GroupedPhoto]:
    """Return the photos of the split dev that show a face, in the order of their names.

    Raises:
        BadInput: there are none.
    """
    people = _london_people(data)
    photos = []
    with FaceTracker(still=True, max_faces=1) as tracker:
        for name in sorted(read_dev_names(data)):
            folder, _, stem = name.partition("/")
            if folder == "celebamask":
                photos += _grouped(tracker, data / f"{name}.jpg", {}, data / f"{name}.png")
            if folder == "london":
                neutral, smiling = (data / f"{name}_{kind}.jpg" for kind in ("neutral", "smiling"))
                photos += _grouped(tracker, neutral, people.get(stem, {}))
                photos += _grouped(tracker, smiling, people.get(stem, {}), neutral=neutral)
    if not photos:
        raise BadInput(f"{data} has no photos of celebamask or london that split.tsv lists as dev.")
    return photos


def _london_people(data: Path) -> dict[str, dict[str, str]]:
    path = data / "london" / "info.csv"
    if not path.is_file():
        return {}
    people = {}
    for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()):
        age = float(row["face_age"]) if row["face_age"].replace(".", "", 1).isdigit() else np.nan
        people[row["face_id"]] = {
            "age": "age unknown"
            if np.isnan(age)
            else "under 25"
            if age < 25
            else "25 to 34"
            if age < 35
            else "35 and over",
            "gender": row["face_gender"],
            "ethnicity": row["face_eth"].replace("_", " "),
        }
    return people


def _grouped(
    tracker: FaceTracker, path: Path, groups: dict[str, str], mask: Path | None = None, neutral: Path | None = None
) -> list[GroupedPhoto]:
    picture = read_image(path)
    faces = tracker.detect(picture)
    if not faces:
        return []
    landmarks, shapes = faces[0]
    classes = None if mask is None else np.array(Image.open(mask))
    skin = _skin_mask(picture, landmarks, classes)
    luma = float(np.median(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[skin]))
    found = {
        "kind": _kind(landmarks, shapes, luma, classes),
        "skin tone": _tone(picture[skin]),
        **groups,
    }
    return [GroupedPhoto(path, found, neutral)]


def _kind(landmarks: np.ndarray, shapes: np.ndarray, luma: float, classes: np.ndarray | None) -> str:
    """Return what is unusual about a photo, the first that applies."""
    points = landmarks[:, :2]
    gap = np.linalg.norm(points[14] - points[13]) / np.linalg.norm(points[33] - points[263])
    eyes = np.mean([
        np.linalg.norm(points[upper] - points[lower]) / np.linalg.norm(points[outer] - points[inner])
        for upper, lower, outer, inner in ((159, 145, 33, 133), (386, 374, 263, 362))
    ])  # fmt: skip
    if abs(face_yaw(landmarks)) > TURNED:
        return "turned over 20 degrees"
    if luma < DARK:
        return "dark"
    if classes is not None and (classes == _GLASSES).mean() > _GLASSES_SHARE:
        return "glasses"
    if eyes < NARROW_EYES:
        return "eyes half closed"
    if gap > OPEN_MOUTH:
        return "smile with teeth" if shapes[[SMILE_LEFT, SMILE_RIGHT]].mean() > SMILING else "mouth open"
    return "none of these"


def skin_tone(picture: np.ndarray, landmarks: np.ndarray) -> str:
    """Return the skin tone of a face ``[478, 3]`` px in a picture by the colour of its cheeks; see ``TONES``."""
    return _tone(picture[_skin_mask(picture, landmarks, None)])


def _skin_mask(picture: np.ndarray, landmarks: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Return which pixels ``[H, W]`` are skin of the face: by the mask of the corpus, or around the cheeks."""
    inside = np.zeros(picture.shape[:2], np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.round(landmarks[_OVAL, :2]).astype(np.int32)), 1)
    if classes is not None:
        marked = (inside > 0) & np.isin(classes, (_SKIN, _NOSE))
        if marked.any():
            return marked
    cheeks = np.zeros_like(inside)
    radius = max(2, round(0.06 * float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2]))))
    for x, y in np.round(landmarks[_CHEEKS, :2]).astype(int).tolist():
        cv2.circle(cheeks, (x, y), radius, 1, -1)
    return (inside > 0) & (cheeks > 0)


def _tone(skin: np.ndarray) -> str:
    """Return the skin tone of pixels ``[N, 3]`` uint8 by their individual typology angle.

    It is the angle of (L* − 50, b*), as the photo shows them: light and white balance are not corrected.
    """
    lab = cv2.cvtColor(skin[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    light, yellow = np.median(lab[:, 0]), np.median(lab[:, 2])
    angle = float(np.degrees(np.arctan2(light - 50, max(yellow, 1e-3))))
    return next(name for least, name in TONES if angle > least)

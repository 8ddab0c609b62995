"""This module holds the judge of stills that needs no model, and the real faces that its limits are learned from.

    limit = 99 % quantile of real pictures           spread = their standard deviation
    fitness of a value = 1 / (1 + exp(excess))       excess = (value − limit) / spread
    reward = mean ln fitness      grade = 1 + 4 · mean fitness

The parts in order, with the commands that make their files:

    framed faces      python -m tools.measure_portraits CORPUS FOOTAGE faces.safetensors
    limits            python -m tools.measure_portraits faces.safetensors weights/portraitgen/limits.json
    the judge         ``MeasuredStills``

A value beyond its limit is an artefact, so that about 1 % of real portraits show each artefact: compare rates with
those of real pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.progress import track
from safetensors.numpy import load_file, save_file

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.files import atomic_write, shipped_weights
from flowportrait.judges.questions import JudgeKind
from flowportrait.judges.rubric import Aspect
from flowportrait.judges.verdicts import AspectVerdict, Verdict
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.video import iter_frames
from flowportrait.portraitgen.detectors import (
    ARTEFACTS,
    MIN_EYE_DISTANCES,
    FaceScale,
    FaceView,
    attributes,
    eye_distance,
    face_ratios,
    find_face,
    find_framed_face,
    frame_face,
    jpeg_blockiness,
    picture_quality,
)
from flowportrait.portraitgen.still_flow import STILL_ASPECTS, Still
from flowportrait.rewards.batch import Failure

# --- Framed faces of real footage

SMALL_SIDE, LARGE_SIDE = 48, 115
"""Pixels of the side of the small flow's pictures, and of the larger pictures that limits are learned from."""
FACES_PER_SPEAKER = 180
FACES_PER_CLIP = 6
"""Faces from a clip that is shorter than ten seconds."""


@dataclass(frozen=True)
class FramedFaces:
    """Framed faces of real footage, about equally many of every speaker.

    The small flow and the limits learn from the training speakers. The file holds pictures of people, so it must not
    leave the place of the footage.

    Args:
        small: ``[N, 48, 48, 3]`` uint8.
        large: ``[N, 115, 115, 3]`` uint8.
        landmarks: ``[N, 478, 2]`` px in ``large``.
        native: ``[N]``, pixels between the eye corners in the footage.
        attributes: ``[N, 5]``.
        speaker: ``[N]``, number of the speaker.
        dev: ``[N]`` bool, whether the face belongs to the dev split, which nothing is learned from.
    """

    small: np.ndarray
    large: np.ndarray
    landmarks: np.ndarray
    native: np.ndarray
    attributes: np.ndarray
    speaker: np.ndarray
    dev: np.ndarray

    def __len__(self) -> int:
        return len(self.small)

    def select(self, rows: np.ndarray) -> FramedFaces:
        """Return the faces at these indices, or where a mask is true."""
        return FramedFaces(**{name: value[rows] for name, value in vars(self).items()})

    def unseen_speakers(self) -> FramedFaces:
        """Return the dev faces of unseen speakers; one speaker of GRID is in both splits and is left out."""
        return self.select(self.dev & ~np.isin(self.speaker, self.speaker[~self.dev]))

    def save(self, path: Path) -> None:
        """Write the faces to a safetensors file; an existing file is replaced only when the new one is complete."""
        with atomic_write(path) as partial:
            save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, str(partial))

    @classmethod
    def load(cls, path: Path) -> FramedFaces:
        """Read what ``save`` wrote.

        Raises:
            BadInput: the file is missing or of another kind.
        """
        try:
            return cls(**load_file(str(path)))
        except Exception as error:
            raise BadInput(
                f"{path} holds no framed faces ({error}): make it with python -m tools.measure_portraits."
            ) from error


def frame_corpus_faces(corpus: Path, footage: Path) -> FramedFaces:
    """Return framed faces of every speaker of a prepared corpus.

    Args:
        corpus: folder of the prepared corpus.
        footage: folder of its videos, ``NAME.mp4``.
    """
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    clips = _clips(corpus)
    speakers = sorted({record["speaker"] for record in clips})
    for record in track(clips, "framing"):
        for frame, points, shapes in _frames(corpus, footage, record["name"]):
            _append_face(rows, frame, points, shapes, speakers.index(record["speaker"]), record["split"] == "dev")
    return FramedFaces(**{name: np.stack(values) for name, values in rows.items()})


def frame_photos(folder: Path) -> FramedFaces:
    """Return the framed faces of a folder of photos, for exemplars of your own; every photo counts as one speaker.

    Raises:
        BadInput: the folder is missing or empty, or a photo shows no face that is large enough.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not paths:
        raise BadInput(f"{folder} has no photos: give a folder with pictures of one person each.")
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    for number, path in enumerate(track(paths, "framing")):
        image = read_image(path)
        view = find_face(image)
        if view.landmarks is None or view.blendshapes is None or view.scale is None:
            what = "no face" if view.landmarks is None else "only a face too small to learn from"
            raise BadInput(f"The exemplar {path} shows {what}: give a photo of one clearly visible person.")
        _append_face(rows, image, view.landmarks, view.blendshapes, number, dev=False)
    return FramedFaces(**{name: np.stack(values) for name, values in rows.items()})


def _append_face(
    rows: dict[str, list[np.ndarray]],
    frame: np.ndarray,
    points: np.ndarray,
    shapes: np.ndarray,
    speaker: int,
    dev: bool,
) -> None:
    """Frame a face in both sizes and append it to every column of ``rows``."""
    small, small_points = frame_face(frame, points, SMALL_SIDE)
    large, large_points = frame_face(frame, points, LARGE_SIDE)
    rows["small"].append(small)
    rows["large"].append(large)
    rows["landmarks"].append(large_points[:, :2].astype(np.float32))
    rows["native"].append(np.array(eye_distance(points), np.float32))
    rows["attributes"].append(attributes(small, small_points, shapes))
    rows["speaker"].append(np.array(speaker, np.int32))
    rows["dev"].append(np.array(dev))


def _clips(corpus: Path) -> list[dict[str, str]]:
    by_speaker: dict[tuple[str, bool], list[dict[str, str]]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        by_speaker[record["speaker"], record["split"] == "dev"].append(record)
    most = FACES_PER_SPEAKER // FACES_PER_CLIP
    return [
        records[place]
        for records in by_speaker.values()
        for place in np.linspace(0, len(records) - 1, min(most, len(records))).astype(int)
    ]


def _frames(corpus: Path, footage: Path, name: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    clip = FaceClip.load(corpus / "clips" / f"{name}.safetensors")
    seconds = len(clip) / 25
    count = FACES_PER_CLIP if seconds < 10 else FACES_PER_SPEAKER
    chosen = set(np.linspace(2, min(len(clip), 1500) - 3, count).astype(int).tolist())
    for number, frame in enumerate(iter_frames(footage / f"{name}.mp4")):
        if number in chosen and number < len(clip):
            yield frame, clip.landmarks[number], clip.blendshapes[number]
        if number >= max(chosen):
            return


# --- Limits of real pictures

EXCEEDED_SHARE = 0.01
"""Share of real pictures beyond a limit."""
CLOSED_EYES_LIMIT = -0.10
"""The limit of ``closed_eyes``: minus the lid gap over the eye width. It is fixed, because people blink when they
speak."""
LIMIT_FACES_PER_SPEAKER = 20
"""Faces of each speaker that limits are learned from."""
JPEG_QUALITY = 75
"""Quality of an ordinary JPEG file; the limit of ``jpeg_blockiness`` comes from pictures that are saved with it."""
MISSING_FACE_EXCESS = 3.0
"""Excess over every limit, in spreads, that a picture without a face counts for."""
EXPOSURE_TOLERANCE = 1.5
"""Spreads by which a picture may be darker or brighter than the mean of real pictures."""
_MAX_EXCESS = 6.0
"""Largest excess that counts, in spreads, so that no single value decides a grade."""


class DetectorLimit(NamedTuple):
    """The limit of one value, and its distribution in real pictures.

    Args:
        limit: the value beyond which there is an artefact.
        mean: mean of real pictures.
        spread: standard deviation of real pictures.
    """

    limit: float
    mean: float
    spread: float

    def excess(self, value: float) -> float:
        """Return by how many spreads ``value`` exceeds the limit; negative within the limit."""
        return (value - self.limit) / self.spread


@dataclass(frozen=True)
class DetectorLimits:
    """The limits of all detectors.

    Args:
        table: limits by the size of the framed face and by detector.
        face: mean ``[6]`` and standard deviation ``[6]`` of the log ratios of real faces; see
            ``detectors.face_ratios``.
    """

    table: Mapping[FaceScale, Mapping[str, DetectorLimit]]
    face: tuple[np.ndarray, np.ndarray]

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> DetectorLimits:
        """Return the limits that ship with the package."""
        return cls.read(shipped_weights("portraitgen/limits.json"))

    @classmethod
    def read(cls, path: Path) -> DetectorLimits:
        """Read limits from a JSON file."""
        data = json.loads(path.read_text(encoding="utf-8"))
        table = {
            scale: {name: DetectorLimit(*values) for name, values in limits.items()}
            for scale, limits in data["limits"].items()
        }
        return cls(table, (np.array(data["face"][0]), np.array(data["face"][1])))

    def measure(self, view: FaceView) -> dict[str, float | None]:
        """Return the value of every measured artefact by name, None where the detector does not apply."""
        found: dict[str, float | None] = {
            artefact.name: artefact.detector(view) for artefact in ARTEFACTS if artefact.detector
        }
        found["proportions"] = None
        if view.landmarks is not None and view.scale is not None:
            found["proportions"] = float(np.abs((face_ratios(view.landmarks) - self.face[0]) / self.face[1]).max())
        return found

    def excess(self, view: FaceView) -> dict[str, float | None]:
        """Return by how many spreads every artefact exceeds its limit; ``missing_face`` and ``second_face`` are ±1."""
        scale = view.scale or "small"
        found = {
            name: None if value is None or name not in self.table[scale] else self.table[scale][name].excess(value)
            for name, value in self.measure(view).items()
        }
        found["missing_face"] = 1.0 if view.faces == 0 else -1.0
        found["second_face"] = None if view.faces == 0 else (1.0 if view.faces > 1 else -1.0)
        return found


def artefacts(view: FaceView, limits: DetectorLimits | None = None) -> dict[str, bool | None]:
    """Return for every measured artefact whether a picture has it, None where the detector does not apply."""
    found = (limits or DetectorLimits.load()).excess(view)
    return {name: None if value is None else value > 0 for name, value in found.items()}


def fit_limits(faces: FramedFaces) -> dict[str, object]:
    """Return the limits that the training speakers' faces give, as the plain values of the JSON file."""
    looks: dict[FaceScale, list[FaceView]] = {"large": [], "small": []}
    rng = np.random.default_rng(0)
    with FaceTracker(still=True) as tracker:
        for speaker in np.unique(faces.speaker):
            rows = np.flatnonzero((faces.speaker == speaker) & ~faces.dev)
            for row in rng.choice(rows, min(len(rows), LIMIT_FACES_PER_SPEAKER), replace=False):
                looks["small"].append(find_framed_face(faces.small[row], tracker))
                if faces.native[row] >= MIN_EYE_DISTANCES["large"]:
                    looks["large"].append(find_framed_face(faces.large[row], tracker))
    shapes = np.stack([face_ratios(view.landmarks) for view in looks["large"] if view.landmarks is not None])
    normal = shapes.mean(0), shapes.std(0)
    bare = DetectorLimits({}, normal)
    table = {
        scale: _limits([bare.measure(view) | picture_quality(view) for view in track(of_scale, scale)])
        for scale, of_scale in looks.items()
    }
    compressed = _limit(
        np.array([jpeg_blockiness(FaceView(compress_as_jpeg(view.picture), 0)) for view in looks["large"]], float)
    )
    for limits in table.values():
        limits["blocks"] = compressed
    return {
        "face": [values.tolist() for values in normal],
        "pictures": {scale: len(of_scale) for scale, of_scale in looks.items()},
        "limits": table,
    }


def _limits(rows: list[dict[str, float | None]]) -> dict[str, list[float]]:
    table = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows if row[name] is not None])
        if len(values) < 50:
            continue
        table[name] = _limit(values)
        if name == "closed_eyes":
            table[name][0] = CLOSED_EYES_LIMIT
    return table


def _limit(values: np.ndarray) -> list[float]:
    return [float(np.quantile(values, 1 - EXCEEDED_SHARE)), float(values.mean()), float(values.std())]


def compress_as_jpeg(picture: np.ndarray) -> np.ndarray:
    """Return a picture ``[H, W, 3]`` after JPEG compression of ordinary quality."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


# --- The judge


class MeasuredStills:
    """A judge of stills by detectors, without a model.

    ``ai_portrait`` counts every artefact of the catalogue that has a detector. ``omni_reward`` counts detail, contrast
    and colourfulness, of which there can only be too little, and exposure, of which there can be too little or too
    much; like most general scorers it does not object to strong colours. A picture without a face is graded like one
    with every artefact.
    """

    kind: JudgeKind = "measured panel"
    name = "measured panel"

    def __init__(self, limits: DetectorLimits | None = None) -> None:
        self.limits = limits or DetectorLimits.load()

    @property
    def fingerprint(self) -> str:
        """See ``ItemJudge``."""
        return hashlib.sha256(b"stills 1 " + shipped_weights("portraitgen/limits.json").read_bytes()).hexdigest()[:16]

    def judge(self, stills: Sequence[Still], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """See ``ItemJudge``."""
        graded = STILL_ASPECTS if aspects is None else aspects
        return [
            Verdict(still.name, "", self.name, self.kind, {a: self.measure(still.face, a) for a in graded})
            for still in stills
        ]

    def measure(self, view: FaceView, aspect: Aspect) -> AspectVerdict:
        """Return the verdict on one aspect of a picture with a known face."""
        if aspect == "omni_reward":
            return self._quality(view)
        found = self.limits.excess(view)
        artefacts = {name: None if value is None else value > 0 for name, value in found.items()}
        if view.faces and view.scale is None:
            small = Failure("no_face", "the face is too small to be measured")
            return AspectVerdict(aspect, None, None, "nobody", artefacts=artefacts, failure=small)
        known = {name: value for name, value in found.items() if value is not None and name != "second_face"}
        if not view.faces:
            known = dict.fromkeys(known, MISSING_FACE_EXCESS)
        value, grade = reward_and_grade(known)
        worst = sorted((name for name, has in artefacts.items() if has), key=lambda name: -(found[name] or 0))
        rationale = f"measured: {', '.join(worst) or 'no artefact'}"
        return _measured_verdict(aspect, value, grade, rationale, artefacts=artefacts)

    def _quality(self, view: FaceView) -> AspectVerdict:
        deficits = quality_deficits(picture_quality(view), self.limits.table[view.scale or "small"])
        value, grade = reward_and_grade(deficits)
        rationale = "measured: " + ", ".join(f"{name} {-deficit:+.1f}" for name, deficit in deficits.items())
        dimensions = {name: reward_and_grade({name: deficit})[1] for name, deficit in deficits.items()}
        return _measured_verdict("omni_reward", value, grade, rationale, dimensions=dimensions)


def _measured_verdict(aspect: Aspect, value: float, grade: float, rationale: str, **more: Any) -> AspectVerdict:
    return AspectVerdict(
        aspect, grade, grade, "measurement", (grade,), rationale=rationale, value=value, **more
    )  # fmt: skip


def reward_and_grade(excesses: Mapping[str, float]) -> tuple[float, float]:
    """Return the reward (mean ln fitness) and the grade (1 … 5) of values by how many spreads they exceed limits."""
    excess = np.array(list(excesses.values())).clip(-_MAX_EXCESS, _MAX_EXCESS)
    logs = -np.logaddexp(0, excess)
    return float(logs.mean()), float(1 + 4 * np.exp(logs).mean())


def quality_deficits(found: Mapping[str, float | None], reference: Mapping[str, DetectorLimit]) -> dict[str, float]:
    """Return by how many spreads figures of quality are worse than the mean of real pictures.

    Args:
        found: figures of quality; None, where a face is needed and missing, counts as ``MISSING_FACE_EXCESS`` spreads.
        reference: mean and spread of real pictures, by figure.

    Returns:
        The deficits by figure; brightness becomes ``exposure``, which is too far from the mean on either side.
    """
    deficits: dict[str, float] = {}
    for name, value in found.items():
        deviation = -MISSING_FACE_EXCESS if value is None else (value - reference[name].mean) / reference[name].spread
        if name == "brightness":
            deficits["exposure"] = abs(deviation) - EXPOSURE_TOLERANCE
        else:
            deficits[name] = -deviation
    return deficits

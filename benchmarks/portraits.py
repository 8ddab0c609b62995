"""Whether portraits as people have them close their lips and their eyes, by what the photo shows and whom.

photo ──portrait, codec──► five frames of one motion ──the tracker again──► lips, lids
"""

from __future__ import annotations

import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.material import mean_of_known, spread_evenly, use_one_thread
from benchmarks.portrait_groups import dev_photos
from benchmarks.record import ROOT, Record
from benchmarks.timing import find_source, run_python
from flowportrait.commands.options import OptionalPath
from flowportrait.errors import BadInput
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.motion_basis import BLINK, HEAD, LOWER_FACE, MotionBasis, close_lips, lip_pair_gaps
from flowportrait.rendering.renderer import MotionCodec

SIZE = 256
"""Side of the drawn frames in pixels."""

_CLOSED_LIPS = 0.02
"""Gap of the inner lips, in eye distances, below which the tracker sees closed lips."""

_SHUT = 0.25
"""Opening over the usual one below which an eye is shut; the deepest frames of real blinks reach it."""

_LIDS = ((159, 145), (386, 374))
_UPPER_LIP, _LOWER_LIP = ((0, 13), (37, 82), (267, 312)), ((14, 17), (87, 84), (317, 314))
"""Pairs of landmarks at the upper and the lower edge of each lip."""

METRICS = {
    "lips closed": "%",
    "lip gap at closure": "% of the eye distance",
    "lips over the neutral photo's": "",
    "eyes over the photo's": "",
    "both eyes shut in a blink": "%",
    "difference of the eyes in a blink": "% of the opening",
}


@dataclass(frozen=True)
class PortraitsOptions:
    """Measure closed lips and blinks of unseen people's photos, by what the photo shows and by group.

    Every photo of celebamask and london that is listed as dev is drawn in five moments of the same generated motion:
    silence, two closures of the lips, a blink, eyes between blinks. The frames are tracked again. Lips are closed if
    their gap is below 2 % of the eye distance. Their height in a closure is compared with that in the same person's
    neutral photo (smiling sitters of london), where 1 is right. An eye is shut below a quarter of its opening between
    blinks. Baseline: the version that is given with --against, in a process of its own.
    """

    data: Path
    """Footage with celebamask/, london/ and split.tsv."""
    against: OptionalPath = None
    """Another checkout, or its folder src."""
    photos: int = 0
    """Number of photos, evenly spread; all by default."""
    checkpoint: str = "rl"
    """Generator of the motion."""
    moments: OptionalPath = None
    """Draw only, the motion of this file (.pt), the photos that are listed in --figures; used by --against."""
    figures: OptionalPath = None
    """File (.json) with the photos, to which their figures are written; used by --against."""


def portraits(options: PortraitsOptions, record: Record) -> None:
    """Measure all photos, with each version in a process of its own."""
    use_one_thread()
    if options.moments is not None and options.figures is not None:
        moments = torch.load(options.moments, weights_only=True)
        photos = json.loads(options.figures.read_text())
        options.figures.write_text(json.dumps([_measure(Path(one["path"]), one["neutral"], moments) for one in photos]))
        return
    photos = dev_photos(options.data)
    photos = spread_evenly(photos, options.photos) if options.photos else photos
    versions = {"before": find_source(options.against)} if options.against else {}
    versions["now"] = ROOT / "src"
    listed = [{"path": str(photo.path.resolve()), "neutral": photo.neutral and str(photo.neutral)} for photo in photos]
    with tempfile.TemporaryDirectory() as folder:
        motion, figures = Path(folder) / "motion.pt", Path(folder) / "figures.json"
        torch.save(speech_moments(options.checkpoint), motion)
        for version, source in versions.items():
            figures.write_text(json.dumps(listed))
            files = ["--moments", str(motion), "--figures", str(figures), "--data", str(options.data.resolve())]
            run_python(["-m", "benchmarks", "portraits", *files], source)
            results = json.loads(figures.read_text())
            _add(record, version, "all", results)
            for name in sorted({group for photo in photos for group in photo.groups}):
                for value in sorted({photo.groups[name] for photo in photos if name in photo.groups}):
                    chosen = [r for photo, r in zip(photos, results, strict=True) if photo.groups.get(name) == value]
                    _add(record, version, f"{name}: {value}", chosen)


def speech_moments(checkpoint: str) -> torch.Tensor:
    """Return motion ``[5, 30]`` of the shipped recording: silence, two closures, the deepest blink, eyes between."""
    from flowportrait.media.audio import read_audio
    from flowportrait.pipelines.animator import Animator
    from flowportrait.samples import SPEECH

    motion = torch.cat(list(Animator.from_pretrained(checkpoint).motion(read_audio(SPEECH), seed=0)))
    basis = MotionBasis.load()
    usual = motion.median(0).values
    gaps = lip_pair_gaps(basis.shape(motion, close_lips(basis.canonical))).mean(1)
    closures = gaps.argsort()[[0, len(gaps) // 50]]
    silence = usual.clone()
    silence[LOWER_FACE] = 0
    moments = torch.stack([silence, *motion[closures], motion[motion[:, BLINK].sum(1).argmax()], usual])
    moments[:, HEAD] = 0
    moments[1:3, BLINK] = usual[BLINK]
    return moments


def _measure(path: Path, neutral: str | None, moments: torch.Tensor) -> dict[str, float] | None:
    """Return the figures of one photo, None if it is refused."""
    with warnings.catch_warnings(), FaceTracker(still=True, max_faces=1) as tracker:
        warnings.simplefilter("ignore")
        try:
            codec = MotionCodec(Portrait.from_image(read_image(path), SIZE))
        except BadInput:
            return None
        faces = [tracker.detect(frame) for frame in codec.decode(moments)]
        photo = tracker.detect(codec.portrait.crop)
        true = tracker.detect(read_image(Path(neutral))) if neutral else []
    if not all(faces) or not photo:
        return None
    silence, *closures, blink, usual = (found[0][0] for found in faces)
    gap = float(np.mean([_distance(points, 13, 14) for points in (silence, *closures)]))
    open_eyes, shut = _lids(usual), _lids(blink)
    result = {
        "lips closed": 100.0 * (gap < _CLOSED_LIPS),
        "lip gap at closure": 100 * gap,
        "eyes over the photo's": float((open_eyes / _lids(photo[0][0])).mean()),
        "both eyes shut in a blink": 100.0 * bool((shut / open_eyes < _SHUT).all()),
        "difference of the eyes in a blink": 100 * float(abs(shut[0] - shut[1]) / open_eyes.mean()),
    }
    if true:
        result["lips over the neutral photo's"] = _lip_height(silence) / _lip_height(true[0][0])
    return result


def _distance(points: np.ndarray, a: int, b: int) -> float:
    """Return the distance of two landmarks in distances of the outer eye corners."""
    return float(np.linalg.norm(points[a, :2] - points[b, :2]) / np.linalg.norm(points[33, :2] - points[263, :2]))


def _lids(points: np.ndarray) -> np.ndarray:
    return np.array([_distance(points, upper, lower) for upper, lower in _LIDS])


def _lip_height(points: np.ndarray) -> float:
    return float(np.mean([_distance(points, a, b) for a, b in (*_UPPER_LIP, *_LOWER_LIP)]))


def _add(record: Record, version: str, group: str, results: list[dict[str, float] | None]) -> None:
    drawn = [result for result in results if result is not None]
    record.add(version, "photos", len(results), group=group)
    if len(drawn) < len(results):
        record.add(version, "refused, or no face found in a frame", len(results) - len(drawn), group=group)
    for metric, unit in METRICS.items():
        estimate = mean_of_known([result.get(metric) for result in drawn])
        if estimate is not None:
            record.add(version, metric, estimate, unit=unit, group=group)

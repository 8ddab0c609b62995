"""Whether an emotion that is asked for is seen by a tracker that took no part, and what it costs the lips."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.drawing import draw_and_measure
from benchmarks.material import picture_paths, read_dev_names, speech_paths, spread_evenly, use_one_thread
from benchmarks.paired import metric_value
from benchmarks.record import Record
from flowportrait.evaluation.openseeface import OpenSeeFace
from flowportrait.evaluation.statistics import bootstrap_mean, bootstrap_ratio
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.rendering.emotion import EMOTIONS
from flowportrait.rendering.motion_filters import Controls
from flowportrait.rendering.renderer import MotionCodec

SIGNS: dict[str, dict[str, int]] = {
    "happy": {"mouth corners": 1, "mouth width": 1},
    "sad": {"mouth corners": -1, "inner brows": 1},
    "angry": {"inner brows": -1, "eye opening": -1},
    "surprised": {"inner brows": 1, "outer brows": 1, "eye opening": 1},
    "afraid": {"inner brows": 1, "eye opening": 1, "mouth width": 1},
}
"""Which way each feature should move."""
FEATURES = ("mouth corners", "mouth width", "inner brows", "outer brows", "eye opening")
FRAME_STEP = 5


@dataclass(frozen=True, kw_only=True)
class EmotionOptions:
    """Measure what each emotion moves in drawn faces, by OpenSeeFace, a tracker that nothing here was made with.

    People and photos are those of the split dev of london/. Features are distances between landmarks in distances of
    the outer eye corners; the corners of the mouth are compared with the middle of the lips. A figure is the mean
    difference to the same motion without an emotion, with an interval over people. Control: other motion without an
    emotion (another seed), whose difference should include 0. Ceiling for happy: the photo of the same person smiling,
    against the neutral photo.
    """

    data: Path
    """Footage with london/, speech/ and split.tsv."""
    tracker: Path
    """lm_model0_opt.onnx of OpenSeeFace."""
    people: int = 12
    """Number of people."""
    videos: int = 6
    """Number of people whose videos are measured for sync as well."""
    weight: float = 0.8
    """Weight of each emotion."""
    seconds: float = 5
    """Length of the speech."""
    size: int = 320
    """Side of the drawn square in pixels."""


def face_features(points: np.ndarray) -> np.ndarray:
    """Return the features of ``FEATURES`` of landmarks ``[66, 2]``, in outer-eye-corner distances, upwards positive."""
    unit = points[45] - points[36]
    scale = np.linalg.norm(unit)
    right, down = unit / scale, np.array([-unit[1], unit[0]]) / scale
    height = -(points @ down) / scale
    across = points @ right / scale
    eyes = height[[36, 39, 42, 45]].mean()
    opening = (height[[37, 38, 43, 44]] - height[[41, 40, 47, 46]]).mean()
    return np.array([
        height[[48, 54]].mean() - height[[51, 57]].mean(), across[54] - across[48],
        height[[20, 21, 22, 23]].mean() - eyes, height[[17, 18, 25, 26]].mean() - eyes, opening,
    ])  # fmt: skip


def emotion(options: EmotionOptions, record: Record) -> None:
    use_one_thread()
    track, pipeline = OpenSeeFace(options.tracker), AnimatePipeline.from_pretrained("rl")
    dev = {name.split("/")[1] for name in read_dev_names(options.data) if name.startswith("london/")}
    photos = [
        path
        for path in picture_paths(options.data / "london")
        if path.stem.endswith("_neutral") and path.stem[:3] in dev
    ]
    voices = [read_audio(path)[: round(options.seconds * SAMPLE_RATE)] for path in speech_paths(options.data)]
    chosen = spread_evenly(photos, options.people)
    systems = ("other motion", *EMOTIONS)
    moved: dict[str, list[np.ndarray]] = {name: [] for name in (*systems, "smiling photo")}
    sync: dict[str, list[float]] = {name: [] for name in ("none", *systems)}
    for person, path in enumerate(chosen):
        portrait = Portrait.from_image(read_image(path), options.size, path.name)
        codec, voice = pipeline.codec(portrait), voices[person % len(voices)]
        speech = torch.cat(list(pipeline.motion(voice, seed=person)))
        motions = {"none": speech, "other motion": torch.cat(list(pipeline.motion(voice, seed=person + 1000)))}
        motions |= {name: Controls(emotion={name: options.weight})(speech) for name in EMOTIONS}

        base = _mean_features(codec, speech, track)
        for name in systems:
            moved[name].append(_mean_features(codec, motions[name], track) - base)
        moved["smiling photo"].append(_smile(path, track, options.size))
        if person < options.videos:
            with tempfile.TemporaryDirectory() as folder:
                for name, motion in motions.items():
                    measured = draw_and_measure(Path(folder) / f"{name}.mp4", codec, motion, voice)
                    sync[name].append(metric_value(measured, "LSE-C") or 0.0)
    for name, rows in moved.items():
        values = np.stack(rows)
        for column, feature in enumerate(FEATURES):
            wanted = SIGNS.get(name, {}).get(feature)
            mark = "" if wanted is None else " (should rise)" if wanted > 0 else " (should fall)"
            record.add(name, f"{feature}{mark}", bootstrap_mean(values[:, column]), group="change of the face")
    base_sync = np.array(sync["none"])
    for name in systems:
        record.add(name, "LSE-C by that without", bootstrap_ratio(np.array(sync[name]), base_sync), group="sync")


def _mean_features(codec: MotionCodec, motion: torch.Tensor, track: OpenSeeFace) -> np.ndarray:
    """Return the mean of the features over every fifth frame of drawn motion ``[T, 30]``."""
    frames = codec.landmarks(motion[::FRAME_STEP])
    return np.mean([_features_in_picture(codec.renderer.draw(points), points, track) for points in frames], 0)


def _smile(path: Path, track: OpenSeeFace, size: int) -> np.ndarray:
    """Return how the features of a person's smiling photo differ from those of the neutral one."""
    features = []
    for name in (path, path.with_name(path.name.replace("neutral", "smiling"))):
        portrait = Portrait.from_image(read_image(name), size, name.name)
        features.append(_features_in_picture(portrait.crop, np.asarray(portrait.landmarks), track))
    return features[1] - features[0]


def _features_in_picture(picture: np.ndarray, landmarks: np.ndarray, track: OpenSeeFace) -> np.ndarray:
    """Return the features by the other tracker; landmarks ``[478, 3]`` only say where the face is."""
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    margin = 0.1 * (high - low)
    return face_features(track(picture, (*(low - margin), *(high + margin))))

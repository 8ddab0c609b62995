"""Optical flow by name: DIS (always there) or RAFT (when torchvision and its weights are).

    flow(before, after)[:, y, x] = where the pixel (x, y) of ``after`` came from in ``before``, minus (x, y)
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch

from flowportrait.errors import BadInput

FlowName = Literal["dis", "raft"]


class Flow(Protocol):
    """Backward flow ``[N, H, W, 2]`` in pixels between RGB frames ``[N, 3, H, W]`` in [0, 1]."""

    @property
    def name(self) -> str: ...

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> np.ndarray: ...


class Dis:
    """Dense inverse search (Kroeger et al., 1603.03590), about a millisecond per pair of 128 px."""

    name = "dis"

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
        method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        old, new = ((frames.mean(1) * 255).byte().numpy() for frames in (before, after))
        return np.stack([method.calc(later, earlier, None) for earlier, later in zip(old, new, strict=True)])


class Raft:
    """RAFT-small (Teed and Deng, 2003.12039) of torchvision."""

    name = "raft"

    def __init__(self, weights: Path | None = None) -> None:
        self._net = _raft(weights)

    @torch.no_grad()
    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
        flow = self._net(2 * after - 1, 2 * before - 1, num_flow_updates=8)[-1]
        return flow.permute(0, 2, 3, 1).numpy()


@lru_cache(maxsize=1)
def _raft(weights: Path | None) -> Any:
    try:
        from torchvision.models.optical_flow import Raft_Small_Weights, raft_small
    except (ImportError, RuntimeError) as error:
        raise BadInput(
            f"Flow 'raft' needs a torchvision that fits this torch ({error}): install it, or use 'dis'."
        ) from error
    if weights is None:
        try:
            return raft_small(weights=Raft_Small_Weights.DEFAULT, progress=False).eval()
        except OSError as error:
            raise BadInput(f"RAFT's weights cannot be fetched ({error}): give their file as flow_weights.") from error
    if not weights.is_file():
        raise BadInput(f"No RAFT weights at {weights}: check flow_weights.")
    net = raft_small(weights=None)
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        # The authors' own file has the same tensors in the same order under other names.
        net.load_state_dict(dict(zip(net.state_dict(), stored.values(), strict=True)))
    except (RuntimeError, OSError, ValueError) as error:
        raise BadInput(f"{weights} holds no RAFT-small weights: {str(error).splitlines()[0]}.") from error
    return net.eval().requires_grad_(False)


def flow_named(name: str, weights: Path | None = None) -> Flow:
    """The flow of that name.

    Raises:
        BadInput: unknown, or it cannot be used here.
    """
    if name not in ("dis", "raft"):
        raise BadInput(f"No optical flow named {name!r}: choose dis or raft.")
    return Dis() if name == "dis" else Raft(weights)

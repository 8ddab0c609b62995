"""Optical flow by name: DIS (always there) or RAFT (when torchvision and its weights are).

flow(before, after)[:, y, x] = where the pixel (x, y) of ``after`` came from in ``before``, minus (x, y)
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch

from flowportrait.devices import device_of, once_per_device, place
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
        before, after = (2 * frames.to(device_of(self._net)) - 1 for frames in (before, after))
        flow = self._net(after, before, num_flow_updates=8)[-1]
        return flow.permute(0, 2, 3, 1).cpu().numpy()


@once_per_device
def _raft(weights: Path | None) -> Any:
    try:
        from torchvision.models.optical_flow import Raft_Small_Weights, raft_small
    except (ImportError, RuntimeError) as error:
        raise BadInput(
            f"Flow 'raft' needs a torchvision that fits this torch ({error}): install it, or use 'dis'."
        ) from error
    if weights is None:
        try:
            return place(raft_small(weights=Raft_Small_Weights.DEFAULT, progress=False).eval())
        except OSError as error:
            raise BadInput(f"RAFT's weights cannot be fetched ({error}): give their file as flow_weights.") from error
    if not weights.is_file():
        raise BadInput(f"No RAFT weights at {weights}: check flow_weights.")
    net = raft_small(weights=None)
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise BadInput(f"{weights} holds no RAFT-small weights: {str(error).splitlines()[0]}.") from error
    net.load_state_dict(tensors_by_name(stored, net.state_dict(), weights))
    return place(net.eval().requires_grad_(False))


def tensors_by_name(stored: Any, expected: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of RAFT-small's weights by torchvision's names; ``expected``: the network's own.

    Raises:
        BadInput: the file lacks a tensor, has one too many, or one of another shape.
    """
    if not isinstance(stored, Mapping):
        raise BadInput(f"{path} holds no RAFT-small weights: it is a {type(stored).__name__} and not tensors by name.")
    found = {torchvision_name(str(name)): tensor for name, tensor in stored.items()}
    if different := sorted(found.keys() ^ expected.keys()):
        what = "lacks" if different[0] in expected else "has an unknown"
        raise BadInput(f"{path} holds no RAFT-small weights: it {what} {different[0]}.")
    for name, tensor in expected.items():
        shape = tuple(getattr(found[name], "shape", ()))
        if shape != tuple(tensor.shape):
            raise BadInput(f"{path} holds no RAFT-small weights: {name} is {shape}, not {tuple(tensor.shape)}.")
    return found


AUTHORS_NAMES = (
    (r"^module\.", ""),
    (r"^fnet\.", "feature_encoder."),
    (r"^cnet\.", "context_encoder."),
    (r"^(\w+_encoder)\.conv1\.", r"\1.convnormrelu.0."),
    (r"^(\w+_encoder)\.conv2\.", r"\1.conv."),
    (r"(layer\d\.\d)\.conv(\d)\.", r"\1.convnormrelu\2.0."),
    (r"^update_block\.encoder\.convc1\.", "update_block.motion_encoder.convcorr1.0."),
    (r"^update_block\.encoder\.convf(\d)\.", r"update_block.motion_encoder.convflow\1.0."),
    (r"^update_block\.encoder\.conv\.", "update_block.motion_encoder.conv.0."),
    (r"^update_block\.gru\.", "update_block.recurrent_block.convgru1."),
)
"""Patterns of the names in the authors' file (princeton-vl/RAFT), and what torchvision calls the same."""


def torchvision_name(name: str) -> str:
    """What torchvision calls a weight of the authors' file; torchvision's own names stay as they are."""
    for pattern, replacement in AUTHORS_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def flow_named(name: str, weights: Path | None = None) -> Flow:
    """The flow of that name.

    Raises:
        BadInput: unknown, or it cannot be used here.
    """
    if name not in ("dis", "raft"):
        raise BadInput(f"No optical flow named {name!r}: choose dis or raft.")
    return Dis() if name == "dis" else Raft(weights)

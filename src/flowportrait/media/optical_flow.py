"""Optical flow by name: DIS, or RAFT where it is installed.

    backward:  flow(before, after)[n, y, x] = where the pixel (x, y) of ``after`` came from in ``before``, minus (x, y)
    forward:   flow.between(first, second)[y, x] = where the pixel (x, y) of ``first`` went in ``second``, minus (x, y)

DIS is dense inverse search (Kroeger et al. 2016, 1603.03590), which comes with OpenCV; RAFT is torchvision's RAFT-small
(Teed and Deng 2020, 2003.12039) with published weights, torchvision's or the authors' own.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch

from flowportrait.devices import cached_per_device, device_of, place_network
from flowportrait.errors import BadInput

FlowName = Literal["dis", "raft"]
RAFT_FILE = "raft_small_C_T_V2-01064c6d.pth"
RAFT_SIDE = 192
"""Pixels of a side to which ``between`` enlarges pictures: RAFT needs at least 128."""
RAFT_VIDEO_UPDATES = 8
"""Refinement steps of RAFT for frames in a batch; single pictures get torchvision's usual 12."""


class OpticalFlow(Protocol):
    """Motion in pixels between two pictures: backward for whole batches, or forward for one pair."""

    @property
    def name(self) -> str:
        """The name by which ``build_optical_flow`` finds it."""

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
        """Return the backward flow ``[N, H, W, 2]`` between RGB frames ``[N, 3, H, W]`` in [0, 1]."""

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the forward flow ``[H, W, 2]`` between two grey pictures ``[H, W]`` uint8."""


class DisFlow:
    """Dense inverse search of OpenCV, about a millisecond per pair of 128 px.

    Args:
        preset: ``fast``, or ``medium``, which the evaluation uses.
    """

    name = "dis"

    def __init__(self, preset: Literal["fast", "medium"] = "fast") -> None:
        self.preset = preset

    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
        old, new = ((frames.mean(1) * 255).byte().cpu().numpy() for frames in (before, after))
        return np.stack([self.between(later, earlier) for earlier, later in zip(old, new, strict=True)])

    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the forward flow ``[H, W, 2]`` between two grey pictures ``[H, W]`` uint8."""
        presets = {"fast": cv2.DISOPTICAL_FLOW_PRESET_FAST, "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}
        return cv2.DISOpticalFlow.create(presets[self.preset]).calc(first, second, None)


class RaftFlow:
    """RAFT-small of torchvision, with the weights in a file or, without one, those that torchvision downloads."""

    name = "raft"

    def __init__(self, weights: Path | None = None) -> None:
        self._net = _load_raft(weights)

    @torch.no_grad()
    def __call__(self, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
        before, after = (2 * frames.to(device_of(self._net)) - 1 for frames in (before, after))
        flow = self._net(after, before, num_flow_updates=RAFT_VIDEO_UPDATES)[-1]
        return flow.permute(0, 2, 3, 1).cpu().numpy()

    @torch.no_grad()
    def between(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the forward flow ``[H, W, 2]`` between two square grey pictures ``[H, W]`` uint8."""
        side = first.shape[0]
        pair = [
            torch.from_numpy(cv2.resize(grey, (RAFT_SIDE, RAFT_SIDE), interpolation=cv2.INTER_CUBIC)).float()
            for grey in (first, second)
        ]
        one, two = (picture.to(device_of(self._net)).div(127.5).sub(1).expand(1, 3, -1, -1) for picture in pair)
        field = self._net(one, two)[-1][0].permute(1, 2, 0).cpu().numpy()
        return cv2.resize(field, (side, side), interpolation=cv2.INTER_AREA) * (side / RAFT_SIDE)


def build_optical_flow(name: str, weights: Path | None = None) -> OpticalFlow:
    """Return the optical flow of that name, ``dis`` or ``raft``.

    Raises:
        BadInput: the name is unknown, or the flow cannot be used here.
    """
    if name not in ("dis", "raft"):
        raise BadInput(f"No optical flow named {name!r}: choose dis or raft.")
    return DisFlow() if name == "dis" else RaftFlow(weights)


@cached_per_device
def best_installed_flow() -> OpticalFlow:
    """Return RAFT where torchvision and its weights are on this machine, DIS otherwise; nothing is downloaded.

    The weights are the file that ``FLOWPORTRAIT_RAFT`` names, or the one in torch hub's cache.
    """
    weights = _installed_raft_weights()
    if weights is None:
        return DisFlow("medium")
    try:
        return RaftFlow(weights)
    except (ImportError, RuntimeError, BadInput) as error:
        # A torchvision that was built for another torch fails here and not when its presence is checked.
        warnings.warn(f"RAFT cannot be used, DIS measures the flow ({str(error).splitlines()[0]}).", stacklevel=2)
        return DisFlow("medium")


def _installed_raft_weights() -> Path | None:
    if importlib.util.find_spec("torchvision") is None:
        return None
    configured = os.environ.get("FLOWPORTRAIT_RAFT")
    path = Path(configured) if configured else Path(torch.hub.get_dir()) / "checkpoints" / RAFT_FILE
    return path if path.is_file() else None


@cached_per_device
def _load_raft(weights: Path | None) -> Any:
    try:
        from torchvision.models.optical_flow import Raft_Small_Weights, raft_small
    except (ImportError, RuntimeError) as error:
        raise BadInput(
            f"Flow 'raft' needs a torchvision that fits this torch ({error}): install it, or use 'dis'."
        ) from error
    if weights is None:
        try:
            return place_network(raft_small(weights=Raft_Small_Weights.DEFAULT, progress=False).eval())
        except OSError as error:
            raise BadInput(f"RAFT's weights cannot be fetched ({error}): give their file as flow_weights.") from error
    if not weights.is_file():
        raise BadInput(f"No RAFT weights at {weights}: check flow_weights.")
    net = raft_small(weights=None)
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise BadInput(f"{weights} holds no RAFT-small weights: {str(error).splitlines()[0]}.") from error
    net.load_state_dict(read_raft_tensors(stored, net.state_dict(), weights))
    return place_network(net.eval().requires_grad_(False))


# --- Weights of RAFT --------------------------------------------------------------------


def read_raft_tensors(stored: Any, expected: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of RAFT-small's weights by torchvision's names.

    Args:
        stored: the content of the file.
        expected: the network's own tensors by name.
        path: of the file, for messages.

    Raises:
        BadInput: the file lacks a tensor, has one too many, or one of another shape.
    """
    if not isinstance(stored, Mapping):
        raise BadInput(f"{path} holds no RAFT-small weights: it is a {type(stored).__name__} and not tensors by name.")
    tensors = {torchvision_raft_name(str(name)): tensor for name, tensor in stored.items()}
    if different := sorted(tensors.keys() ^ expected.keys()):
        problem = "lacks" if different[0] in expected else "has an unknown"
        raise BadInput(f"{path} holds no RAFT-small weights: it {problem} {different[0]}.")
    for name, tensor in expected.items():
        shape = tuple(getattr(tensors[name], "shape", ()))
        if shape != tuple(tensor.shape):
            raise BadInput(f"{path} holds no RAFT-small weights: {name} is {shape}, not {tuple(tensor.shape)}.")
    return tensors


RAFT_NAME_PATTERNS = (
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
"""Patterns of the names in the authors' file (princeton-vl/RAFT), and torchvision's names for the same weights."""


def torchvision_raft_name(name: str) -> str:
    """Return torchvision's name of a weight in the authors' file; torchvision's own names are returned unchanged."""
    for pattern, replacement in RAFT_NAME_PATTERNS:
        name = re.sub(pattern, replacement, name)
    return name

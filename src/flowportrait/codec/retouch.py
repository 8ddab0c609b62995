"""Retouch a drawn face with the shipped network: mouth, lips and folds around them, in the portrait's own palette.

    frame ──cut to the window──► network ──► flow, residual ──laid back at the frame's own resolution──► frame

The frame's detail is kept: it is moved by the flow, and only the change is as coarse as the window.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from flowportrait.codec.contours import INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER
from flowportrait.codec.mouth import PHOTO_OPENING
from flowportrait.codec.mouth_frame import MouthFrame, skin_colour
from flowportrait.codec.mouth_look import colourfulness
from flowportrait.codec.mouth_window import HEIGHT, WIDTH, cut, mouth_state, to_window
from flowportrait.codec.retouch_net import RetouchNet, Windows
from flowportrait.codec.retouch_onnx import FOLDER, ExportedNet
from flowportrait.devices import Device, device_of, once_per_device, onnx_providers, place, read_weights

Network = Callable[[Windows], tuple[torch.Tensor, torch.Tensor]]

_LIPS = [*INNER_UPPER, *INNER_LOWER, *OUTER_UPPER, *OUTER_LOWER]

_TRAINED, _UNSEEN = 0.09, 0.17
"""Openings in eye distances between which the network, which has seen few wider mouths, hands over to the drawing."""

_MOVED = 2.0
"""Window pixels, on average, from the photo's own lips at which the network has its full say; the photo needs none."""

_OWN = 0.8

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@once_per_device
def shipped_network() -> Network:
    """The network that comes with the package."""
    return ExportedNet(FOLDER / "model.onnx")


@once_per_device
def _torch_network() -> Network:
    """The shipped network in PyTorch, where no ONNX Runtime of the device's kind is installed."""
    network = RetouchNet().requires_grad_(False).eval()
    network.load_state_dict(read_weights(FOLDER / "model.safetensors"))
    device = device_of(place(network))

    def retouch(windows: Windows) -> tuple[torch.Tensor, torch.Tensor]:
        flow, residual = network(Windows(*(part.to(device) for part in windows)))
        return flow.cpu(), residual.cpu()

    return retouch


def retouch_network(device: Device = "cpu", dtype: torch.dtype = torch.float32) -> Network:
    """The shipped network on a device: with ONNX Runtime where it can compute so, which is faster, or PyTorch."""
    runs_there = torch.device(device).type == "cpu" or len(onnx_providers(device)) > 1
    if runs_there and dtype == torch.float32:
        return shipped_network(device=device)
    return _torch_network(device=device, dtype=dtype)


class Retouch:
    """Retouching of one portrait crop ``[S, S, 3]`` uint8 with landmarks ``[478, 3]`` px.

    keep_own: what is retouched shows the crop's own mouth interior where that is open. skin: colour ``[3]``; measured
    in the crop by default.
    """

    def __init__(
        self,
        crop: np.ndarray,
        landmarks: np.ndarray,
        network: Network | None = None,
        keep_own: bool = True,
        skin: np.ndarray | None = None,
    ) -> None:
        self._network = network or shipped_network()
        self._frame = MouthFrame(landmarks)
        skin = skin_colour(crop, landmarks) if skin is None else skin
        self._skin = (skin / 255).astype(np.float32)
        self._colourful = colourfulness(skin)
        start = to_window(landmarks)
        self._source = _picture(cut(crop, start))
        self._rest = _lips(landmarks, start)
        own = mouth_state(self._frame, landmarks, start)
        self._source_inner = _plane(own.inner)
        self._own_teeth = keep_own and own.height > PHOTO_OPENING

    def draw(self, frame: np.ndarray, target: np.ndarray, own: np.ndarray | None = None) -> None:
        """Retouch ``frame`` ``[S, S, 3]`` uint8, drawn for target landmarks ``[478, 3]`` px, in place.

        own: landmarks of the picture it was drawn from; the portrait's by default.
        """
        matrix = to_window(target)
        rest = self._rest if own is None else _lips(own, to_window(own))
        state = mouth_state(self._frame, target, matrix)
        known = min(max((_UNSEEN - state.height) / (_UNSEEN - _TRAINED), 0.0), 1.0)
        moved = float(np.linalg.norm(_lips(target, matrix) - rest, axis=1).mean())
        say = np.float32(known * min(moved / _MOVED, 1.0))
        if say == 0:
            return
        windows = Windows(
            base=_picture(cut(frame, matrix)),
            source=self._source,
            skin=torch.from_numpy(self._skin)[None],
            inner=_plane(state.inner),
            outer=_plane(state.outer),
            source_inner=self._source_inner,
            place=torch.from_numpy(state.place)[None],
            drop=torch.tensor([[state.jaw, state.height]], dtype=torch.float32),
        )
        with torch.inference_mode():
            flow, residual = (say * change[0].permute(1, 2, 0).numpy() for change in self._network(windows))
        if self._own_teeth:
            # Teeth that the photo shows are as light as they are.
            residual = residual * (1 - _OWN * cv2.GaussianBlur(state.inner, (0, 0), 2.0))[..., None]
        self._lay(frame, matrix, flow, self._painted(residual))

    def _painted(self, residual: np.ndarray) -> np.ndarray:
        """Residual in 8-bit colours; a grey portrait stays grey."""
        colour = residual * (255 * np.maximum(self._skin, 0.06))
        grey = (colour @ _LUMA)[..., None]
        return grey + self._colourful * (colour - grey)

    @staticmethod
    def _lay(frame: np.ndarray, matrix: np.ndarray, flow: np.ndarray, residual: np.ndarray) -> None:
        """Move and repaint ``frame`` under the window."""
        back = cv2.invertAffineTransform(matrix)
        corners = np.array([[0, 0, 1], [WIDTH, 0, 1], [0, HEIGHT, 1], [WIDTH, HEIGHT, 1]]) @ back.T
        size = frame.shape[0]
        low = np.floor(corners.min(0)).astype(int).clip(0, size)
        high = np.ceil(corners.max(0)).astype(int).clip(0, size)
        width, height = (high - low).tolist()
        if width < 2 or height < 2:
            return
        local = matrix.copy()
        local[:, 2] += matrix[:, :2] @ low
        shape = (width, height)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(np.ascontiguousarray(flow), local, shape, flags=flags)
        painted = cv2.warpAffine(np.ascontiguousarray(residual), local, shape, flags=flags)
        place = cv2.transform(moved, back[:, :2])
        place[..., 0] += np.arange(low[0], high[0], dtype=np.float32)
        place[..., 1] += np.arange(low[1], high[1], dtype=np.float32)[:, None]
        drawn = cv2.remap(frame, place, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        mixed = np.round(drawn + painted).clip(0, 255).astype(np.uint8)
        frame[low[1] : high[1], low[0] : high[0]] = mixed


def _lips(landmarks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Lip points ``[40, 2]`` in the window."""
    return landmarks[_LIPS, :2] @ matrix[:, :2].T + matrix[:, 2]


def _picture(window: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(window).permute(2, 0, 1)[None].float() / 255


def _plane(share: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(share)[None, None]

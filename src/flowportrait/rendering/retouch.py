"""Retouching: a small network that corrects mouth, lips and folds of a drawn face.

    frame ──cut to the mouth window──► network ──► flow, residual ──applied at the frame's own resolution──► frame
    out(x) = base(x + flow(x)) + skin · residual(x)

base is what the warp and the mouth model drew. The flow corrects the shape of lips and folds and keeps the photo's own
detail; the residual adds the light of an open mouth. Colours are relative to the skin, so a painting or a grey photo is
retouched in its own palette. An untrained network changes nothing.

``retouch_network`` describes the network; ``Retouch`` applies it to one portrait. Trained and stored are the weights
``model.safetensors``; after training, export them again:

    python -m flowportrait.rendering.retouch        model.safetensors ─► model.onnx, both in weights/retouch
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from flowportrait.devices import Device, cached_per_device, device_of, onnx_providers, place_network, read_weights
from flowportrait.files import shipped_weights
from flowportrait.media.colour import LUMA_601
from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER
from flowportrait.rendering.mouth import PHOTO_OPENING, colourfulness
from flowportrait.rendering.mouth_geometry import (
    WINDOW_HEIGHT,
    WINDOW_WIDTH,
    MouthFrame,
    MouthOpening,
    cut_mouth_window,
    mouth_state,
    mouth_window_transform,
    skin_colour,
)
from flowportrait.rendering.retouch_network import (
    DARKEST,
    FULL_LIMITS,
    MouthWindows,
    OnnxRetouchNet,
    RetouchLimits,
    RetouchNet,
    export_onnx,
)

# --- The shipped network ---------------------------------------------------------------------------------------------

RetouchFunction = Callable[[MouthWindows], tuple[torch.Tensor, torch.Tensor]]
"""``Windows -> (flow, residual)``, as ``RetouchNet`` returns them."""


@cached_per_device
def shipped_retouch_network() -> RetouchFunction:
    """Return the network that comes with the package, run by ONNX Runtime."""
    return OnnxRetouchNet(shipped_weights("retouch/model.safetensors"), shipped_weights("retouch/model.onnx"))


@cached_per_device
def _torch_network() -> RetouchFunction:
    """Return the shipped network in PyTorch, for devices that the installed ONNX Runtime does not support."""
    return _PlacedRetouchNet(_shipped_weights_in_torch())


class _PlacedRetouchNet:
    """A network on the device of networks, for windows on the CPU."""

    def __init__(self, network: RetouchNet) -> None:
        self._network, self.limits = network, network.limits
        self._device = device_of(place_network(network))

    def __call__(self, windows: MouthWindows) -> tuple[torch.Tensor, torch.Tensor]:
        flow, residual = self._network(MouthWindows(*(part.to(self._device) for part in windows)))
        return flow.cpu(), residual.cpu()


def _shipped_weights_in_torch() -> RetouchNet:
    weights = read_weights(shipped_weights("retouch/model.safetensors"))
    return RetouchNet.from_weights(weights).requires_grad_(False).eval()


def retouch_network(device: Device = "cpu", dtype: torch.dtype = torch.float32) -> RetouchFunction:
    """Return the shipped network on a device.

    ONNX Runtime runs it where it supports the device and type, which is faster; otherwise PyTorch does.
    """
    supported = torch.device(device).type == "cpu" or len(onnx_providers(device)) > 1
    if supported and dtype == torch.float32:
        return shipped_retouch_network(device=device)
    return _torch_network(device=device, dtype=dtype)


# --- Retouching of one portrait --------------------------------------------------------------------------------------

_LIPS = [*INNER_UPPER, *INNER_LOWER, *OUTER_UPPER, *OUTER_LOWER]

_FULL_EFFECT = 2.0
"""Mean distance in window pixels from the photo's own lips at which the network has its full effect; the photo itself
needs none."""

_BEYOND = 6
"""Pixels around the window in the frame that the flow can reach."""

_LUMA = LUMA_601.astype(np.float32)


class Retouch:
    """Retouches frames that were drawn from one portrait.

    Args:
        crop: the portrait crop ``[S, S, 3]`` uint8.
        landmarks: its landmarks ``[478, 3]`` px.
        network: the network; by default the shipped one.
        keep_photo_interior: whether the frames show the crop's own mouth interior where that is open.
        skin: skin colour ``[3]``; by default measured in the crop.
    """

    def __init__(
        self,
        crop: np.ndarray,
        landmarks: np.ndarray,
        network: RetouchFunction | None = None,
        keep_photo_interior: bool = True,
        skin: np.ndarray | None = None,
    ) -> None:
        self._network = network or shipped_retouch_network()
        self._limits: RetouchLimits = getattr(self._network, "limits", FULL_LIMITS)
        self._frame = MouthFrame(landmarks)
        skin = skin_colour(crop, landmarks) if skin is None else skin
        self._skin = (skin / 255).astype(np.float32)
        self._skin_tensor = torch.from_numpy(self._skin)[None]
        self._colourful = colourfulness(skin)
        start = mouth_window_transform(landmarks)
        self._source = _picture(cut_mouth_window(crop, start))
        self._photo_lips = _lips(landmarks, start)
        photo_state = mouth_state(self._frame, landmarks, start)
        self._source_inner = _plane(photo_state.inner)
        self._photo_shows_teeth = keep_photo_interior and photo_state.height > PHOTO_OPENING

    def draw(
        self,
        frame: np.ndarray,
        target: np.ndarray,
        source: np.ndarray | None = None,
        opening: MouthOpening | None = None,
    ) -> None:
        """Retouch a frame in place.

        Args:
            frame: ``[S, S, 3]`` uint8.
            target: the landmarks ``[478, 3]`` px for which it was drawn.
            source: landmarks of the picture from which it was drawn; by default those of the portrait.
            opening: that of the portrait's mouth for ``target``, where it is known already.
        """
        matrix = mouth_window_transform(target)
        photo_lips = self._photo_lips if source is None else _lips(source, mouth_window_transform(source))
        state = mouth_state(self._frame, target, matrix, opening)
        known, unknown = self._limits.known, self._limits.unknown
        trained = min(max((unknown - state.height) / (unknown - known), 0.0), 1.0)
        moved = float(np.linalg.norm(_lips(target, matrix) - photo_lips, axis=1).mean())
        strength = np.float32(trained * min(moved / _FULL_EFFECT, 1.0))
        if strength == 0:
            return
        windows = MouthWindows(
            base=_picture(cut_mouth_window(frame, matrix)),
            source=self._source,
            skin=self._skin_tensor,
            inner=_plane(state.inner),
            outer=_plane(state.outer),
            source_inner=self._source_inner,
            place=torch.from_numpy(state.place)[None],
            drop=torch.tensor([[state.jaw, state.height]], dtype=torch.float32),
        )
        with torch.inference_mode():
            flow, residual = (strength * change[0].numpy() for change in self._network(windows))
        if self._photo_shows_teeth and self._limits.photo < 1:
            # Teeth that the photo shows keep their own brightness.
            residual *= 1 - (1 - self._limits.photo) * cv2.GaussianBlur(state.inner, (0, 0), 2.0)
        self._apply(frame, matrix, flow, self._to_colours(residual))

    def _to_colours(self, residual: np.ndarray) -> np.ndarray:
        """Return the residual ``[3, h, w]`` in 8-bit colours; a grey portrait stays grey."""
        colour = residual * (255 * np.maximum(self._skin, DARKEST))[:, None, None]
        if self._colourful == 1:
            return colour
        grey = np.tensordot(_LUMA, colour, 1)
        return grey + np.float32(self._colourful) * (colour - grey)

    @staticmethod
    def _apply(frame: np.ndarray, matrix: np.ndarray, flow: np.ndarray, residual: np.ndarray) -> None:
        """Apply flow ``[2, h, w]`` and residual ``[3, h, w]`` to the part of ``frame`` under the window, in place."""
        back = cv2.invertAffineTransform(matrix)
        corners = (
            np.array([[0, 0, 1], [WINDOW_WIDTH, 0, 1], [0, WINDOW_HEIGHT, 1], [WINDOW_WIDTH, WINDOW_HEIGHT, 1]])
            @ back.T
        )
        size = frame.shape[0]
        left, top = np.floor(corners.min(0)).astype(int).clip(0, size).tolist()
        right, bottom = np.ceil(corners.max(0)).astype(int).clip(0, size).tolist()
        width, height = right - left, bottom - top
        if width < 2 or height < 2:
            return
        local = matrix.copy()
        local[:, 2] += matrix[:, :2] @ (left, top)
        shape, flags = (width, height), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        (xx, xy), (yx, yy) = back[:, :2].astype(np.float32)
        # Four channels are warped in a third of the time that two or three take.
        packed = cv2.merge([xx * flow[0] + xy * flow[1], yx * flow[0] + yy * flow[1], residual[0], residual[1]])
        x, y, red, green = cv2.split(cv2.warpAffine(packed, local, shape, flags=flags))
        blue = cv2.warpAffine(residual[2], local, shape, flags=flags)
        # The flow fades out at the border of the window, so that little beyond it is ever read.
        first_x, first_y = max(left - _BEYOND, 0), max(top - _BEYOND, 0)
        around = frame[first_y : bottom + _BEYOND, first_x : right + _BEYOND].astype(np.float32)
        x += np.arange(left - first_x, right - first_x, dtype=np.float32)
        y += np.arange(top - first_y, bottom - first_y, dtype=np.float32)[:, None]
        drawn = cv2.remap(around, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        cv2.add(drawn, cv2.merge([red, green, blue]), frame[top:bottom, left:right], dtype=cv2.CV_8U)


def _lips(landmarks: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the lip landmarks ``[44, 2]`` in the window."""
    return landmarks[_LIPS, :2] @ matrix[:, :2].T + matrix[:, 2]


def _picture(window: np.ndarray) -> torch.Tensor:
    """Return a window ``[H, W, 3]`` uint8 as ``[1, 3, H, W]`` in [0, 1]."""
    return torch.from_numpy(window).permute(2, 0, 1)[None].float() / 255


def _plane(share: np.ndarray) -> torch.Tensor:
    """Return shares ``[H, W]`` as ``[1, 1, H, W]``."""
    return torch.from_numpy(share)[None, None]


if __name__ == "__main__":
    export_onnx(_shipped_weights_in_torch(), shipped_weights("retouch/model.onnx"))

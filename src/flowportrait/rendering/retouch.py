"""Retouching: a small network that corrects mouth, lips and folds of a drawn face.

    frame ──cut to the mouth window──► network ──► flow, residual ──applied at the frame's own resolution──► frame
    out(x) = base(x + flow(x)) + skin · residual(x)

base is what the warp and the mouth model drew. The flow corrects the shape of lips and folds and keeps the photo's own
detail; the blurred residual adds the light of an open mouth. Colours are relative to the skin, so a painting or a grey
photo is retouched in its own palette. An untrained network changes nothing.

``RetouchNet`` is the network, ``OnnxRetouchNet`` the same as ONNX, and ``Retouch`` applies it to one portrait. Trained
and stored are the weights ``model.safetensors``; after training, export them again:

    python -m flowportrait.rendering.retouch        model.safetensors ─► model.onnx, both in weights/retouch
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

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
    shuffle_pixels,
    skin_colour,
    unshuffle_pixels,
)

# --- The network -----------------------------------------------------------------------------------------------------

_WIDTHS = (32, 64, 96)
_INPUTS = 13
"""Input planes; see ``RetouchNet.inputs``."""

_LARGEST_FLOW = 6.0
"""Largest flow in pixels of the window."""

_FADE = 10
"""Pixels over which the change fades to zero at the border of the window."""

_SOFTNESS, _REACH = 2.0, 5
"""Standard deviation and radius in pixels of the blur of the residual. Without the blur, a network this small paints
the average of all teeth in its training data, which resembles none."""

_DARKEST = 0.06
"""Least colour of the skin that others are divided by."""


class MouthWindows(NamedTuple):
    """A batch of mouth windows; colours are in [0, 1].

    Attributes:
        base: the drawn windows ``[B, 3, H, W]``.
        source: the portrait's own windows ``[B, 3, H, W]``.
        skin: skin colours ``[B, 3]``.
        inner: share of each pixel inside the opening ``[B, 1, H, W]``.
        outer: share of each pixel inside the outer lips ``[B, 1, H, W]``.
        source_inner: share of each pixel inside the portrait's own opening ``[B, 1, H, W]``.
        place: linear map from window pixels to mouth coordinates (u, s) ``[B, 2, 3]``.
        drop: drop of the jaw and height of the opening ``[B, 2]``.
    """

    base: Tensor
    source: Tensor
    skin: Tensor
    inner: Tensor
    outer: Tensor
    source_inner: Tensor
    place: Tensor
    drop: Tensor


class ResidualBlock(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` ``[B, C, h, w]`` plus the convolutions' output."""
        return x + self.second(F.relu(self.first(F.relu(x))))


def _border_fade() -> Tensor:
    """Return the weight of the change ``[H, W]``, zero at the border of the window."""
    ramps = []
    for size in (WINDOW_HEIGHT, WINDOW_WIDTH):
        place = torch.arange(size).float()
        ramp = (torch.minimum(place, size - 1 - place) / _FADE).clamp(max=1)
        ramps.append(ramp * ramp * (3 - 2 * ramp))
    return ramps[0][:, None] * ramps[1]


class RetouchNet(nn.Module):
    """A U-Net that maps ``MouthWindows`` to a flow and a residual.

    The flow ``[B, 2, H, W]`` is in window pixels, the residual ``[B, 3, H, W]`` in skin colours.
    """

    fade: Tensor
    taps: Tensor
    grid: Tensor

    def __init__(self, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * _INPUTS, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(w) for _ in range(1 + (w > widths[0]))]) for w in widths
        )
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(ResidualBlock(a) for a, _ in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 4 * 5, 3, padding=1)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.zero_()
        ys, xs = torch.meshgrid(torch.arange(WINDOW_HEIGHT), torch.arange(WINDOW_WIDTH), indexing="ij")
        self.register_buffer("fade", _border_fade(), persistent=False)
        taps = torch.exp(-0.5 * (torch.arange(-_REACH, _REACH + 1) / _SOFTNESS) ** 2)
        self.register_buffer("taps", taps / taps.sum(), persistent=False)
        self.register_buffer("grid", torch.stack([xs, ys, torch.ones_like(xs)]).float(), persistent=False)

    def inputs(self, windows: MouthWindows) -> Tensor:
        """Return the input planes ``[B, 13, H, W]`` of the network.

        They are two pictures relative to the skin (6), three shares (3), the coordinates u, s and j (3), and the
        opening (1).
        """
        skin = windows.skin.clamp_min(_DARKEST)[..., None, None]
        place = torch.einsum("bij,jhw->bihw", windows.place, self.grid)
        drop = windows.drop[..., None, None].expand(-1, -1, *place.shape[2:])
        jaw = place[:, 1:] - drop[:, :1]
        pictures = [(windows.base / skin - 1).clamp(max=2), (windows.source / skin - 1).clamp(max=2)]
        shares = [windows.inner, windows.outer, windows.source_inner]
        return torch.cat([*pictures, *shares, 2 * place[:, :1], 4 * place[:, 1:], 4 * jaw, 4 * drop[:, 1:]], 1)

    def forward(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return flow and residual."""
        x = F.pixel_unshuffle(self.inputs(windows), 2).contiguous(memory_format=torch.channels_last)
        out = F.pixel_shuffle(self.body(self.stem(x)), 2) * self.fade
        return _LARGEST_FLOW * torch.tanh(out[:, :2] / _LARGEST_FLOW), self._blur(out[:, 2:])

    def body(self, x: Tensor) -> Tensor:
        """Return flow and residual ``[B, 20, h, w]`` in halved windows, for the response of the first convolution."""
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        for level in reversed(range(len(self.downs))):
            x = F.interpolate(self.ups[level](x), scale_factor=2.0) + skips[level]
            x = self.decoders[level](x)
        result: Tensor = self.head(F.relu(x))
        return result

    def _blur(self, residual: Tensor) -> Tensor:
        """Return the blurred residual: it carries light and colour, while edges remain those that were drawn."""
        taps = self.taps.expand(3, 1, 1, -1)
        across = F.conv2d(F.pad(residual, (_REACH, _REACH, 0, 0)), taps, groups=3)
        return F.conv2d(F.pad(across, (0, 0, _REACH, _REACH)), taps.transpose(2, 3), groups=3)

    def retouched(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return the retouched windows ``[B, 3, H, W]`` and the flow, differentiably."""
        flow, residual = self(windows)
        place = (self.grid[:2] + flow).permute(0, 2, 3, 1)
        last = torch.tensor([WINDOW_WIDTH - 1, WINDOW_HEIGHT - 1], dtype=place.dtype)
        moved = F.grid_sample(windows.base, 2 * place / last - 1, align_corners=True, padding_mode="border")
        return moved + windows.skin.clamp_min(_DARKEST)[..., None, None] * residual, flow


# --- The network as ONNX ---------------------------------------------------------------------------------------------
#
# ONNX Runtime runs the same weights in half the time: the window is so small that much of PyTorch's time is spent
# between the convolutions, which the runtime fuses. The first convolution is linear, and only the drawn window and its
# shares differ freely between frames; its response to everything else is put together from responses known before:
#
#     stem(x) = conv(moving planes) + response(portrait) + Σ_k coordinates_k · response_k

_MOVING, _COORDINATES = [0, 1, 2, 6, 7], slice(9, 13)
"""The input planes that differ freely between frames, which are the drawn window and the shares inside the lips; those
that are linear in the map and the drop of ``MouthWindows``."""


class OnnxRetouchNet:
    """``RetouchNet`` from its weights and its core as ONNX, one window at a time; several threads may call it."""

    def __init__(self, weights: Path, core: Path, device: Device | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # frames are drawn in parallel; threads within one would only wait
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(core), options, providers=onnx_providers(device))
        self._network = RetouchNet().requires_grad_(False).eval()
        self._network.load_state_dict(read_weights(weights))
        nothing, one = torch.zeros(8), torch.eye(8)
        self._offset = self._coordinate_response(nothing)
        self._coordinates = np.stack([self._coordinate_response(axis) - self._offset for axis in one])
        self._portraits = WeakTensorKeyDictionary()
        self._taps = self._network.taps.numpy()

    def __call__(self, windows: MouthWindows) -> tuple[Tensor, Tensor]:
        """Return flow and residual; see ``RetouchNet``."""
        skin = windows.skin[0].clamp_min(_DARKEST).numpy()
        moving = np.empty((len(_MOVING), WINDOW_HEIGHT, WINDOW_WIDTH), np.float32)
        np.divide(windows.base[0].numpy(), skin[:, None, None], out=moving[:3])
        moving[:3] -= 1
        np.minimum(moving[:3], 2, out=moving[:3])
        moving[3], moving[4] = windows.inner[0, 0].numpy(), windows.outer[0, 0].numpy()
        place = np.concatenate([windows.place.numpy().ravel(), windows.drop.numpy().ravel()])
        stem = place @ self._coordinates
        stem += self._portrait_response(windows)
        response = stem.reshape(1, -1, WINDOW_HEIGHT // 2, WINDOW_WIDTH // 2)
        feed = {"moving": unshuffle_pixels(moving)[None], "stem": response}
        flow, residual = (shuffle_pixels(part[0]) for part in self._session.run(None, feed))
        for plane in residual:
            # As in ``RetouchNet``, the window is surrounded by no change.
            cv2.sepFilter2D(plane, -1, self._taps, self._taps, plane, borderType=cv2.BORDER_CONSTANT)
        return torch.from_numpy(flow)[None], torch.from_numpy(residual)[None]

    def _coordinate_response(self, values: Tensor) -> np.ndarray:
        """Return the response of the first convolution ``[C h w]`` to map and drop of ``MouthWindows`` alone."""
        shares = torch.zeros(1, 1, WINDOW_HEIGHT, WINDOW_WIDTH)
        picture, skin = shares.expand(1, 3, -1, -1), torch.ones(1, 3)
        place, drop = values[:6].reshape(1, 2, 3), values[None, 6:]
        alone = MouthWindows(picture, picture, skin, shares, shares, shares, place, drop)
        planes = self._network.inputs(alone)
        planes[:, : _COORDINATES.start] = 0
        return self._network.stem(F.pixel_unshuffle(planes, 2)).numpy().ravel()

    def _portrait_response(self, windows: MouthWindows) -> np.ndarray:
        """Return the response ``[C h w]`` to the portrait's own window, computed once for each portrait."""
        skin, inner, response = self._portraits.get(windows.source, (None, None, None))
        if response is None or skin is not windows.skin or inner is not windows.source_inner:
            with torch.inference_mode():
                planes = self._network.inputs(windows)
                planes[:, _MOVING] = 0
                planes[:, _COORDINATES] = 0
                response = self._network.stem(F.pixel_unshuffle(planes, 2)).numpy().ravel()
            self._portraits[windows.source] = windows.skin, windows.source_inner, response
        return response


def example_windows() -> MouthWindows:
    """Return one window of random values, as an example of the shapes."""
    window, plane = (3, WINDOW_HEIGHT, WINDOW_WIDTH), (1, WINDOW_HEIGHT, WINDOW_WIDTH)
    return MouthWindows(*(torch.rand(1, *shape) for shape in (window, window, (3,), plane, plane, plane, (2, 3), (2,))))


def export_onnx(network: RetouchNet, path: Path) -> None:
    """Write the core of ``network``, as ``OnnxRetouchNet`` runs it, atomically as ONNX."""
    partial = path.with_suffix(".partial")
    half = (WINDOW_HEIGHT // 2, WINDOW_WIDTH // 2)
    example = torch.rand(1, 4 * len(_MOVING), *half), torch.rand(1, network.stem.out_channels, *half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Core(network.eval()), example, str(partial), input_names=["moving", "stem"],
            output_names=["flow", "residual"], opset_version=17, dynamo=False,
        )  # fmt: skip
    os.replace(partial, path)


class _Core(nn.Module):
    """``RetouchNet`` between the two rearrangements of pixels, which NumPy does faster than ONNX Runtime.

    The first convolution sees only the planes that differ freely between frames; the other input is its response to the
    others. The residual is not blurred yet.
    """

    kernel: Tensor
    fade: Tensor

    def __init__(self, network: RetouchNet) -> None:
        super().__init__()
        self.network = network
        channels = [4 * plane + part for plane in _MOVING for part in range(4)]
        self.register_buffer("kernel", network.stem.weight[:, channels].detach().clone())
        self.register_buffer("fade", F.pixel_unshuffle(network.fade.expand(1, 5, -1, -1), 2).clone())

    def forward(self, moving: Tensor, stem: Tensor) -> tuple[Tensor, Tensor]:
        """Return flow ``[1, 8, h, w]`` and residual ``[1, 12, h, w]``."""
        out = self.network.body(F.conv2d(moving, self.kernel, padding=1) + stem) * self.fade
        return _LARGEST_FLOW * torch.tanh(out[:, :8] / _LARGEST_FLOW), out[:, 8:]


# --- Retouching of one portrait --------------------------------------------------------------------------------------

RetouchFunction = Callable[[MouthWindows], tuple[torch.Tensor, torch.Tensor]]
"""``Windows -> (flow, residual)``, as ``RetouchNet`` returns them."""

_LIPS = [*INNER_UPPER, *INNER_LOWER, *OUTER_UPPER, *OUTER_LOWER]

_KNOWN_OPENING, _UNKNOWN_OPENING = 0.09, 0.17
"""Openings in eye distances between which the effect of the network fades out, as it was trained on few wider
mouths."""

_FULL_EFFECT = 2.0
"""Mean distance in window pixels from the photo's own lips at which the network has its full effect; the photo itself
needs none."""

_OWN = 0.8
"""Share of the residual that is suppressed on teeth that the photo shows."""

_BEYOND = 6
"""Pixels around the window in the frame that the flow can reach."""

_LUMA = LUMA_601.astype(np.float32)


@cached_per_device
def shipped_retouch_network() -> RetouchFunction:
    """Return the network that comes with the package, run by ONNX Runtime."""
    return OnnxRetouchNet(shipped_weights("retouch/model.safetensors"), shipped_weights("retouch/model.onnx"))


@cached_per_device
def _torch_network() -> RetouchFunction:
    """Return the shipped network in PyTorch, for devices that the installed ONNX Runtime does not support."""
    network = _shipped_weights_in_torch()
    device = device_of(place_network(network))

    def retouch(windows: MouthWindows) -> tuple[torch.Tensor, torch.Tensor]:
        flow, residual = network(MouthWindows(*(part.to(device) for part in windows)))
        return flow.cpu(), residual.cpu()

    return retouch


def _shipped_weights_in_torch() -> RetouchNet:
    network = RetouchNet().requires_grad_(False).eval()
    network.load_state_dict(read_weights(shipped_weights("retouch/model.safetensors")))
    return network


def retouch_network(device: Device = "cpu", dtype: torch.dtype = torch.float32) -> RetouchFunction:
    """Return the shipped network on a device.

    ONNX Runtime runs it where it supports the device and type, which is faster; otherwise PyTorch does.
    """
    supported = torch.device(device).type == "cpu" or len(onnx_providers(device)) > 1
    if supported and dtype == torch.float32:
        return shipped_retouch_network(device=device)
    return _torch_network(device=device, dtype=dtype)


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
        trained = min(max((_UNKNOWN_OPENING - state.height) / (_UNKNOWN_OPENING - _KNOWN_OPENING), 0.0), 1.0)
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
        if self._photo_shows_teeth:
            # Teeth that the photo shows keep their own brightness.
            residual *= 1 - _OWN * cv2.GaussianBlur(state.inner, (0, 0), 2.0)
        self._apply(frame, matrix, flow, self._to_colours(residual))

    def _to_colours(self, residual: np.ndarray) -> np.ndarray:
        """Return the residual ``[3, h, w]`` in 8-bit colours; a grey portrait stays grey."""
        colour = residual * (255 * np.maximum(self._skin, _DARKEST))[:, None, None]
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

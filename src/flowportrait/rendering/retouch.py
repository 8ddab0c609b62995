"""The network that retouches mouth, lips and folds of a drawn face.

The network that retouches a warped lower face: a small U-Net over the mouth window.

    out(x) = base(x + flow(x)) + skin · residual(x)

base is what the warp and the mouth model drew. The flow mends where lips and folds are and keeps the photo's own
detail; the residual, kept soft, brings the light of an open mouth. Colours go in and out relative to the skin, so a
painting or a grey photo is retouched in its own palette. Untrained, the network changes nothing.

The retouching network as ONNX Runtime runs it: the same weights, drawn in two thirds of the time.

    python -m flowportrait.rendering.retouch        model.safetensors ─► model.onnx, both in weights/retouch

A window is so small that much of PyTorch's time goes between the convolutions; the runtime fuses
what lies there. What is trained and kept is ``model.safetensors``.

Retouch a drawn face with the shipped network: mouth, lips and folds around them, in the portrait's own palette.

    frame ──cut to the window──► network ──► flow, residual ──laid back at the frame's own resolution──► frame

The frame's detail is kept: it is moved by the flow, and only the change is as coarse as the window.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from flowportrait.devices import Device, device_of, once_per_device, onnx_providers, place, read_weights
from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER, OUTER_LOWER, OUTER_UPPER
from flowportrait.rendering.mouth import PHOTO_OPENING, colourfulness
from flowportrait.rendering.mouth_geometry import HEIGHT, WIDTH, MouthFrame, cut, mouth_state, skin_colour, to_window

_WIDTHS = (32, 64, 96)
_INPUTS = 13
_LARGEST_FLOW = 6.0
"""Pixels of the window the flow can reach."""

_FADE = 10
"""Pixels over which the network's say fades towards the window's border."""

_SOFTNESS, _REACH = 2.0, 5
"""Standard deviation and reach in pixels of the blur over the residual: free to paint edges, a network this small
paints the mean of all the teeth it has seen, which is none."""

_DARKEST = 0.06


class Windows(NamedTuple):
    """A batch of windows, colours in [0, 1]: base and source ``[B, 3, H, W]`` (source: the portrait's own window),
    skin ``[B, 3]``, shares inner, outer and source_inner ``[B, 1, H, W]``, place ``[B, 2, 3]``, drop ``[B, 2]``
    (jaw, opening)."""

    base: Tensor
    source: Tensor
    skin: Tensor
    inner: Tensor
    outer: Tensor
    source_inner: Tensor
    place: Tensor
    drop: Tensor


class Block(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))


def _fade() -> Tensor:
    """``[H, W]``: nothing changes at the window's border."""
    ramps = []
    for size in (HEIGHT, WIDTH):
        place = torch.arange(size).float()
        ramp = (torch.minimum(place, size - 1 - place) / _FADE).clamp(max=1)
        ramps.append(ramp * ramp * (3 - 2 * ramp))
    return ramps[0][:, None] * ramps[1]


class RetouchNet(nn.Module):
    """``flow [B, 2, H, W]`` in window pixels and ``residual [B, 3, H, W]`` in skin colours for ``Windows``."""

    fade: Tensor
    taps: Tensor
    grid: Tensor

    def __init__(self, widths: tuple[int, ...] = _WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4 * _INPUTS, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(nn.Sequential(*[Block(w) for _ in range(1 + (w > widths[0]))]) for w in widths)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.decoders = nn.ModuleList(Block(a) for a, _ in pairwise(widths))
        self.head = nn.Conv2d(widths[0], 4 * 5, 3, padding=1)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.zero_()
        ys, xs = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
        self.register_buffer("fade", _fade(), persistent=False)
        taps = torch.exp(-0.5 * (torch.arange(-_REACH, _REACH + 1) / _SOFTNESS) ** 2)
        self.register_buffer("taps", taps / taps.sum(), persistent=False)
        self.register_buffer("grid", torch.stack([xs, ys, torch.ones_like(xs)]).float(), persistent=False)

    def inputs(self, windows: Windows) -> Tensor:
        """Planes ``[B, 13, H, W]``: two pictures relative to the skin, three shares, u, s, j, opening."""
        skin = windows.skin.clamp_min(_DARKEST)[..., None, None]
        place = torch.einsum("bij,jhw->bihw", windows.place, self.grid)
        drop = windows.drop[..., None, None].expand(-1, -1, *place.shape[2:])
        jaw = place[:, 1:] - drop[:, :1]
        pictures = [(windows.base / skin - 1).clamp(max=2), (windows.source / skin - 1).clamp(max=2)]
        shares = [windows.inner, windows.outer, windows.source_inner]
        return torch.cat([*pictures, *shares, 2 * place[:, :1], 4 * place[:, 1:], 4 * jaw, 4 * drop[:, 1:]], 1)

    def forward(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """Flow and residual."""
        x = F.pixel_unshuffle(self.inputs(windows), 2).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        skips = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        for level in reversed(range(len(self.downs))):
            x = F.interpolate(self.ups[level](x), scale_factor=2.0) + skips[level]
            x = self.decoders[level](x)
        out = F.pixel_shuffle(self.head(F.relu(x)), 2) * self.fade
        return _LARGEST_FLOW * torch.tanh(out[:, :2] / _LARGEST_FLOW), self._softened(out[:, 2:])

    def _softened(self, residual: Tensor) -> Tensor:
        """Gaussian blur: light and colour pass, edges stay what the warp and the mouth model drew."""
        taps = self.taps.expand(3, 1, 1, -1)
        across = F.conv2d(F.pad(residual, (_REACH, _REACH, 0, 0)), taps, groups=3)
        return F.conv2d(F.pad(across, (0, 0, _REACH, _REACH)), taps.transpose(2, 3), groups=3)

    def retouched(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """The retouched windows ``[B, 3, H, W]`` and the flow, differentiably."""
        flow, residual = self(windows)
        place = (self.grid[:2] + flow).permute(0, 2, 3, 1)
        last = torch.tensor([WIDTH - 1, HEIGHT - 1], dtype=place.dtype)
        moved = F.grid_sample(windows.base, 2 * place / last - 1, align_corners=True, padding_mode="border")
        return moved + windows.skin.clamp_min(_DARKEST)[..., None, None] * residual, flow


FOLDER = Path(str(files("flowportrait") / "weights" / "retouch"))


class ExportedNet:
    """``RetouchNet`` from an ONNX file, for one window at a time; may be called from several threads at once."""

    def __init__(self, path: Path, device: Device | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # frames are drawn side by side; threads within one would only wait
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=onnx_providers(device))

    def __call__(self, windows: Windows) -> tuple[Tensor, Tensor]:
        """Flow and residual; see ``RetouchNet``."""
        feed = {name: tensor.numpy() for name, tensor in windows._asdict().items()}
        flow, residual = self._session.run(None, feed)
        return torch.from_numpy(flow), torch.from_numpy(residual)


def blank_windows() -> Windows:
    """One window of nothing, as an example of the shapes."""
    picture, share = torch.rand(1, 3, HEIGHT, WIDTH), torch.rand(1, 1, HEIGHT, WIDTH)
    return Windows(picture, picture.clone(), torch.rand(1, 3), share, share.clone(), share.clone(), torch.rand(1, 2, 3),
                   torch.rand(1, 2))  # fmt: skip


def export(network: RetouchNet, path: Path) -> None:
    """Write ``network`` as ONNX, under a temporary name first."""
    partial = path.with_suffix(".partial")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Positional(network.eval()), tuple(blank_windows()), str(partial), input_names=list(Windows._fields),
            output_names=["flow", "residual"], opset_version=17, dynamo=False,
        )  # fmt: skip
    os.replace(partial, path)


class _Positional(nn.Module):
    """The exporter hands over tensors, not a named tuple of them."""

    def __init__(self, network: RetouchNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, *windows: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(Windows(*windows))


if __name__ == "__main__":
    trained = RetouchNet()
    trained.load_state_dict(load_file(str(FOLDER / "model.safetensors")))
    export(trained, FOLDER / "model.onnx")


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

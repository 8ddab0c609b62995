"""The pretrained networks of the evaluation, and their features of a clip.

| purpose    | default                                                                | file of other weights          |
| identity   | ResNet-29 of dlib (package face-recognition-models)                    | FLOWPORTRAIT_ARCFACE (.onnx)   |
| image      | MobileNetV2, ImageNet (``weights/image_features``)                     | FLOWPORTRAIT_INCEPTION (.pt)   |
| video      | spread and change of MobileNetV2's early features over 16 frames       | FLOWPORTRAIT_I3D (.pt)         |

The environment variables name files; ``field_networks.py`` lists all of them, and the names by which a folder of files
is searched. The .pt files are the TorchScript networks with which FID and FVD are usually
measured (inception-2015-12-05.pt, i3d_torchscript.pt); ArcFace is the usual 112 × 112 ONNX. Without dlib and ArcFace
identity is not measured, which the report lists. The parts in order: MobileNetV2, the networks, features of a clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import (
    cached_per_device,
    default_device,
    device_of,
    onnx_providers,
    place_network,
    read_weights,
)
from flowportrait.errors import BadInput
from flowportrait.evaluation.field_networks import FieldNetworks, find_network_files
from flowportrait.evaluation.tracking import VideoTracks, dlib_model_path, load_or_compute
from flowportrait.files import shipped_weights

# --- MobileNetV2 (Sandler et al. 2018, table 2), without its classifier; weights are laid out as torchvision's ---

MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion factor, output channels, number of blocks and stride of the first block of every stage."""


class InvertedResidual(nn.Module):
    """An inverted residual block: expand, filter each channel, project, and add the input if the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden_channels = in_channels * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv_block(in_channels, hidden_channels, 1)]
        self.conv = nn.Sequential(
            *layers,
            _conv_block(hidden_channels, hidden_channels, 3, stride, hidden_channels),
            nn.Conv2d(hidden_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        result = self.conv(picture)
        return picture + result if self.is_residual else result


def mobilenet_v2(stages: int = 19) -> nn.Sequential:
    """Build the first ``stages`` of the 19 feature stages."""
    layers: list[nn.Module] = [_conv_block(3, 32, 3, 2)]
    channels = 32
    for expansion, out_channels, repeats, stride in MOBILENET_STAGES:
        for index in range(repeats):
            layers.append(InvertedResidual(channels, out_channels, stride if index == 0 else 1, expansion))
            channels = out_channels
    return nn.Sequential(*[*layers, _conv_block(channels, 1280, 1)][:stages])


def _conv_block(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


# --- The networks ---

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CropNetwork(Protocol):
    """Interface of a network that turns crops ``[K, 128, 128, 3]`` uint8 RGB into features ``[K, D]``."""

    name: str

    def __call__(self, crops: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class EvaluationNetworks:
    """The networks of one evaluation; ``None`` for one that is not installed."""

    identity: CropNetwork | None
    image: CropNetwork | None
    texture: CropNetwork | None
    video: TorchScriptNetwork | None
    field: FieldNetworks | None = None

    def names(self) -> dict[str, str]:
        """Return the names of the networks by their purpose, for the report."""
        return {
            "identity (CSIM)": self.identity.name if self.identity else "not installed",
            "image features (FID)": self.image.name if self.image else "not installed",
            "video features (FVD)": self.video.name
            if self.video
            else f"{self.texture.name}, spread and change over 16 frames"
            if self.texture
            else "not installed",
        } | (self.field.names() if self.field else {})


class DlibIdentity:
    """Identity features of dlib's face recognition ResNet: 128 numbers of unit length per face."""

    name = "dlib ResNet"

    def __init__(self) -> None:
        import dlib

        self._net: Any = dlib.face_recognition_model_v1(
            str(dlib_model_path("dlib_face_recognition_resnet_model_v1.dat"))
        )

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        # dlib expects a margin of a quarter around the face, 1.9 of our eye distances: our crop is nearly that.
        chips = [np.ascontiguousarray(cv2.resize(crop, (150, 150), interpolation=cv2.INTER_CUBIC)) for crop in crops]
        features = np.array([self._net.compute_face_descriptor(chip) for chip in chips], np.float32)
        return features / np.linalg.norm(features, axis=1, keepdims=True)


class ArcFace:
    """Identity features of an ArcFace network in ONNX: 512 numbers of unit length per face."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.name = f"ArcFace ({path.name})"
        self._session = onnxruntime.InferenceSession(str(path), providers=onnx_providers())
        self._input = self._session.get_inputs()[0].name

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        # ArcFace's template has the eye centres 35.2 of 112 pixels apart at height 51.6; our crops have the outer eye
        # corners 64 of 128 pixels apart at height 35.2.
        matrix = np.array([[0.79, 0.0, 56.0 - 0.79 * 64], [0.0, 0.79, 51.6 - 0.79 * 35.2]])
        chips = np.stack([cv2.warpAffine(crop, matrix, (112, 112), flags=cv2.INTER_AREA) for crop in crops])
        batch = ((chips.astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)
        features = np.concatenate([self._session.run(None, {self._input: row[None]})[0] for row in batch])
        return features / np.linalg.norm(features, axis=1, keepdims=True)


class MobileNetFeatures:
    """Channel means of one stage of MobileNetV2 at 128 × 128.

    Stage 14 (96 numbers) describes the content, stage 4 (24 numbers) sharpness and artefacts.
    """

    def __init__(self, stage: int) -> None:
        self.name = f"MobileNetV2 stage {stage}"
        self._layers = _mobilenet()[:stage]

    @torch.no_grad()
    def __call__(self, crops: np.ndarray) -> np.ndarray:
        picture = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float() / 255
        return self._layers(_normalize(picture).to(device_of(self._layers))).mean((2, 3)).cpu().numpy()


class TorchScriptNetwork:
    """A TorchScript feature network: Inception (``[K, 3, H, W]`` uint8) or I3D (``[1, 3, 16, 224, 224]`` float)."""

    def __init__(self, path: Path) -> None:
        try:
            self._device, _ = default_device()
            self._net = torch.jit.load(str(path), map_location=self._device).eval()
        except (RuntimeError, OSError, ValueError) as error:
            raise BadInput(
                f"{path} is not a TorchScript network: give the file FID or FVD is measured with."
            ) from error
        self.name = path.name

    @torch.no_grad()
    def __call__(self, crops: np.ndarray) -> np.ndarray:
        picture = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2)
        return self._net(picture.to(self._device), return_features=True).cpu().numpy()

    @torch.no_grad()
    def clip(self, crops: np.ndarray) -> np.ndarray:
        """Return the features ``[1, D]`` of 16 consecutive crops ``[16, H, W, 3]`` uint8."""
        picture = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float()
        picture = F.interpolate(picture, size=(224, 224), mode="bilinear", align_corners=False)
        frames = (picture / 127.5 - 1).permute(1, 0, 2, 3)[None]
        return self._net(frames.to(self._device), rescale=False, resize=False, return_features=True).cpu().numpy()


@cached_per_device
def load_evaluation_networks(folder: Path | None = None) -> EvaluationNetworks:
    """Load the best network of each kind that is installed.

    Args:
        folder: folder with the networks of the field, see ``field_networks.py``; by default those that environment
            variables name.

    Raises:
        BadInput: a file is missing or is another kind of network.
    """
    files = find_network_files(folder)
    arcface, inception, i3d = (files.get(key) for key in ("arcface", "inception", "i3d"))
    has_dlib = dlib_model_path("dlib_face_recognition_resnet_model_v1.dat") is not None
    identity: CropNetwork | None = ArcFace(arcface) if arcface else DlibIdentity() if has_dlib else None
    image: CropNetwork = TorchScriptNetwork(inception) if inception else MobileNetFeatures(14)
    video = TorchScriptNetwork(i3d) if i3d else None
    return EvaluationNetworks(identity, image, MobileNetFeatures(4), video, FieldNetworks.load(files))


PERCEPTUAL_STAGES = (2, 4, 7, 14)


def load_perceptual_stages() -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Return a function that computes feature maps of pictures ``[K, 3, H, W]`` in [0, 1] at four depths."""
    layers = _mobilenet()

    def stages(picture: torch.Tensor) -> list[torch.Tensor]:
        features = _normalize(picture).to(device_of(layers))
        maps = []
        for index, layer in enumerate(layers, 1):
            features = layer(features)
            if index in PERCEPTUAL_STAGES:
                maps.append(features.cpu())
        return maps

    return stages


def _normalize(picture: torch.Tensor) -> torch.Tensor:
    return (picture - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


@cached_per_device
def _mobilenet() -> torch.nn.Sequential:
    net = mobilenet_v2(PERCEPTUAL_STAGES[-1])
    state = read_weights(shipped_weights("image_features/model.safetensors"))
    # The file lacks only the batch counters of the normalisation layers, which are not used here.
    net.load_state_dict(net.state_dict() | state)
    return place_network(net.eval().requires_grad_(False))


# --- Features of a clip, cached beside its tracks ---

IDENTITY_CROPS = 3
"""Crops per clip for the identity network."""
IMAGE_CROPS = 12
"""Crops per clip for the image network."""
VIDEO_CROPS = 16
"""Consecutive crops per clip for the video network."""


@dataclass(frozen=True)
class NetworkFeatures:
    """Network features of one clip; an array is empty if the network is not installed or no frame shows a face.

    Attributes:
        identity: ``[≤3, D]`` of unit length; row 0 is the first frame.
        image: ``[≤12, D]`` of evenly spaced frames.
        video: ``[1, D]`` of the first 16 crops.
    """

    identity: np.ndarray
    image: np.ndarray
    video: np.ndarray


def compute_network_features(
    tracked: VideoTracks, nets: EvaluationNetworks, cache: Path | None = None
) -> NetworkFeatures:
    """Compute the network features of one clip, or read them from the cache.

    Args:
        tracked: tracks of the clip.
        nets: the networks.
        cache: beginning of the cache file's path, to which a hash of the networks' names is added.
    """
    if cache is None:
        return _compute_features(tracked.crops, nets)
    names = hashlib.sha256("|".join(nets.names().values()).encode()).hexdigest()[:8]
    file = cache.with_name(f"{cache.name}-{names}.npz")
    return load_or_compute(NetworkFeatures, file, lambda: _compute_features(tracked.crops, nets))


def _compute_features(crops: np.ndarray, nets: EvaluationNetworks) -> NetworkFeatures:
    nothing = np.zeros((0, 0), np.float32)
    if not len(crops):
        return NetworkFeatures(nothing, nothing, nothing)
    identity = nets.identity(crops[_evenly_spaced(len(crops), IDENTITY_CROPS)]) if nets.identity else nothing
    image = nets.image(crops[_evenly_spaced(len(crops), IMAGE_CROPS)]) if nets.image else nothing
    video = nothing
    if nets.video and len(crops) >= VIDEO_CROPS:
        video = nets.video.clip(crops[:VIDEO_CROPS])
    elif nets.texture and len(crops) > 3:
        series = nets.texture(crops[:VIDEO_CROPS])
        change = np.sqrt((np.diff(series, axis=0) ** 2).mean(0))
        video = np.log(np.concatenate([series.std(0), change]) + 1e-3)[None]
    return NetworkFeatures(identity, image, video)


def _evenly_spaced(count: int, limit: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int))

"""How alike two pictures are, by name. All give 1 for equal pictures and less for others.

ssim    structural similarity                      always there, fastest          (Wang 2004)
face    cosine of a face network's feature maps    ships with the package
lpips   1 − LPIPS                                  torchmetrics + torchvision     (Zhang, 1801.03924)
clip, dino   cosine of image embeddings            transformers, a model folder or hub name
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F

from flowportrait.devices import device_of, place
from flowportrait.errors import BadInput
from flowportrait.reward.face_net import AT_ONCE, FaceNet
from flowportrait.reward.pixels import structural_similarity

BackboneName = Literal["ssim", "face", "lpips", "clip", "dino"]
HUB = {"clip": "openai/clip-vit-base-patch32", "dino": "facebook/dinov2-small"}


class Backbone(Protocol):
    """Similarity ``[N]`` of RGB pictures ``[N, 3, H, W]`` in [0, 1]."""

    @property
    def name(self) -> str: ...

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor: ...


class Structural:
    """Box-window SSIM."""

    name = "ssim"

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return structural_similarity(a, b)


class FaceFeatures:
    """Mean over three feature maps of the cosine at each place: like LPIPS, without weights learned for it."""

    name = "face"

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        net, found = FaceNet.load(), []
        for some, others in zip(a.split(AT_ONCE), b.split(AT_ONCE), strict=True):
            maps = zip(net.features(some), net.features(others), strict=True)
            found.append(torch.stack([F.cosine_similarity(x, y, dim=1).mean((1, 2)) for x, y in maps]).mean(0))
        return torch.cat(found).cpu()


class Lpips:
    """Learned perceptual similarity by torchmetrics."""

    name = "lpips"

    def __init__(self, net: str = "squeeze") -> None:
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            distance = LearnedPerceptualImagePatchSimilarity(net, reduction="none", normalize=True)
            self._distance: Any = place(distance)
        except (ImportError, ModuleNotFoundError, RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"Backbone 'lpips' cannot be loaded ({reason}): use ssim or face.") from error

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = (2 * picture.to(device_of(self._distance)) - 1 for picture in (a, b))
        return 1 - self._distance.net(a, b).flatten().cpu()


class Embedding:
    """Cosine of one image model's embeddings (CLIP's projected one, DINO's class token)."""

    def __init__(self, name: str, model: str) -> None:
        self.name = name
        net, self._side, self._mean, self._std = _image_model(model)
        self._net: Any = place(net)

    @torch.no_grad()
    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.cosine_similarity(self._embed(a), self._embed(b), dim=-1).cpu()

    def _embed(self, pictures: torch.Tensor) -> torch.Tensor:
        sized = F.interpolate(pictures, size=(self._side, self._side), mode="bicubic", antialias=True).clamp(0, 1)
        normed = ((sized - self._mean) / self._std).to(device_of(self._net))
        if hasattr(self._net, "get_image_features"):
            found = self._net.get_image_features(pixel_values=normed)
            return found if isinstance(found, torch.Tensor) else found.pooler_output
        return self._net(pixel_values=normed).last_hidden_state[:, 0]


@lru_cache(maxsize=4)
def _image_model(model: str) -> tuple[Any, int, torch.Tensor, torch.Tensor]:
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(model)
        net = AutoModel.from_pretrained(model).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"The image model {model!r} cannot be loaded ({reason}): give a folder or hub name.") from error
    vision = getattr(config, "vision_config", config)
    # The published statistics: OpenAI's for CLIP, ImageNet's for DINO.
    clip = hasattr(net, "get_image_features")
    mean = (0.4815, 0.4578, 0.4082) if clip else (0.485, 0.456, 0.406)
    std = (0.2686, 0.2613, 0.2758) if clip else (0.229, 0.224, 0.225)
    return net, int(vision.image_size), torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]


def backbone_named(name: str, model: str | None = None) -> Backbone:
    """The backbone of that name; ``model`` overrides the hub name of clip and dino.

    Raises:
        BadInput: unknown, or it cannot be loaded here.
    """
    if name == "ssim":
        return Structural()
    if name == "face":
        return FaceFeatures()
    if name == "lpips":
        return Lpips()
    if name in HUB:
        return Embedding(name, model or HUB[name])
    raise BadInput(f"No backbone named {name!r}: choose one of ssim, face, lpips, clip, dino.")

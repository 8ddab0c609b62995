"""Train the retouching network on pairs of ``tools.make_retouch_pairs``.

    python -m tools.train_retouch PAIRS

    loss = |out − truth|_1 (mouth weighted) + gradients + features + change between frames + small flow

Features are those of a network trained for optical flow (RAFT-small's first stages, Teed & Deng 2020), which resolve
small structures; the benchmark uses another network. Pictures are recoloured at random, all of a pair alike, as
portraits may be paintings or grey photos.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH
from flowportrait.rendering.retouch import MouthWindows, RetouchNet
from flowportrait.training.optimize import GuardedStep

# --- Loss ------------------------------------------------------------------------------------------------------------

_WEIGHTS = {
    "colours": {"colour": 1.0, "edges": 0.5, "features": 0.15, "look": 0.0, "change": 0.6, "bend": 0.004},
    "look": {"colour": 0.3, "edges": 0.15, "features": 0.05, "look": 1.0, "change": 0.2, "bend": 0.001},
}
"""Weights of the loss terms by objective: mostly colours, or mostly the distance that the benchmark measures (with
other features)."""

_INSIDE = 2.0
_LIPS = 1.0
"""Additional weight of pixels inside the opening and inside the outer lips."""

Objective = Literal["colours", "look"]


class Misfit(NamedTuple):
    """Mean distances between retouched and true windows.

    Attributes:
        colour: colours in [0, 1].
        edges: differences of neighbouring pixels.
        features: features of RAFT.
        look: squared distance of the features as unit vectors (the formula of LPIPS without learned weights).
        change: change of the error from one frame to the next.
        bend: roughness and size of the flow.
    """

    colour: Tensor
    edges: Tensor
    features: Tensor
    look: Tensor
    change: Tensor
    bend: Tensor

    def total(self, objective: Objective = "colours") -> Tensor:
        """Return the weighted sum for an objective."""
        return torch.stack([_WEIGHTS[objective][name] * value for name, value in self._asdict().items()]).sum()


class RaftFeatures:
    """First stages of RAFT-small's feature encoder (Teed & Deng 2020), from its authors' published weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        prefix = "module.fnet."
        self._w = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}

    @classmethod
    def load(cls, path: Path) -> RaftFeatures:
        """Return the features with the weights of ``raft-small.pth``."""
        return cls(torch.load(path, map_location="cpu", weights_only=True))

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Return features of ``images`` ``[B, 3, H, W]`` in [0, 1], at 1/2, 1/2 and 1/4 of their size."""
        x = F.relu(self._norm(self._conv("conv1", 2 * images - 1, 2, 3)))
        stages = [x]
        for layer, stride in (("layer1", 1), ("layer2", 2)):
            for block in range(2):
                x = self._bottleneck(f"{layer}.{block}", x, stride if block == 0 else 1)
            stages.append(x)
        return stages

    def _conv(self, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        return F.conv2d(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"], stride, padding)

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return F.instance_norm(x)

    def _bottleneck(self, name: str, x: Tensor, stride: int) -> Tensor:
        y = F.relu(self._norm(self._conv(f"{name}.conv1", x)))
        y = F.relu(self._norm(self._conv(f"{name}.conv2", y, stride, 1)))
        y = F.relu(self._norm(self._conv(f"{name}.conv3", y)))
        if stride > 1:
            x = self._norm(self._conv(f"{name}.downsample.0", x, stride))
        return F.relu(x + y)


def misfit(out: Tensor, flow: Tensor, windows: MouthWindows, truth: Tensor, features: RaftFeatures) -> Misfit:
    """Return the distances of retouched windows from the truth.

    Args:
        out: retouched windows ``[2 N, 3, H, W]``: N first frames, then their successors.
        flow: their flow ``[2 N, 2, H, W]``.
        windows: the inputs.
        truth: true windows ``[2 N, 3, H, W]``.
        features: the features that are compared.
    """
    weight = 1 + _INSIDE * windows.inner + _LIPS * windows.outer
    weight = weight / weight.mean()
    gap = weight * (out - truth)
    out_features, true_features = features(out), features(truth)
    deep = torch.stack([(a - b).abs().mean() for a, b in zip(out_features, true_features, strict=True)]).sum()
    unit = [F.normalize(a, dim=1) - F.normalize(b, dim=1) for a, b in zip(out_features, true_features, strict=True)]
    look = torch.stack([part.square().sum(1).mean() for part in unit]).mean()
    first, second = gap.chunk(2)
    bend = flow.diff(dim=-1).abs().mean() + flow.diff(dim=-2).abs().mean() + 0.1 * flow.abs().mean()
    edges = gap.diff(dim=-1).abs().mean() + gap.diff(dim=-2).abs().mean()
    return Misfit(gap.abs().mean(), edges, deep, look, (second - first).abs().mean(), bend)


# --- Training --------------------------------------------------------------------------------------------------------

_EMA = 0.998
"""Decay of the averaged weights."""
_IMAGES = ("base", "source", "truth")


@dataclass(frozen=True)
class Config:
    """How the network is trained."""

    pairs: tyro.conf.Positional[Path]
    # folder written by tools.make_retouch_pairs
    features: Path = Path("raft-small.pth")
    # RAFT-small weights, as its authors publish them
    output: Path = Path("weights/flowportrait_weights/retouch/model.safetensors")
    minutes: float = 55.0
    # training time; the learning rate decays with it
    batch: int = 8
    learning_rate: float = 1.2e-3
    start: Path | None = None
    # weights to continue from
    objective: Objective = "colours"
    # or "look": mostly the distance of features as unit vectors
    seed: int = 0


def load_pairs(folder: Path, pattern: str) -> dict[str, Tensor]:
    """Return all columns of all parts of a folder, concatenated."""
    parts = [load_file(str(path)) for path in sorted(folder.glob(pattern))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def draw(data: dict[str, Tensor], rows: Tensor, recolour: bool = True) -> tuple[MouthWindows, Tensor]:
    """Return the windows of ``2 len(rows)`` frames (first frames, then their successors) and the true windows."""
    values = {name: column[rows] for name, column in data.items()}
    for name in ("source", "source_inner", "skin"):
        values[name] = values[name][:, None].expand(-1, 2, *values[name].shape[1:])
    flat = {name: value.transpose(0, 1).flatten(0, 1).float() for name, value in values.items()}
    for name in _IMAGES:
        flat[name] = flat[name].permute(0, 3, 1, 2) / 255
    for name in ("inner", "outer", "source_inner"):
        flat[name] = flat[name][:, None] / 255
    flat["skin"] = flat["skin"] / 255
    if recolour:
        _recolour(flat, len(rows))
        _mirror(flat, torch.rand(len(rows)).lt(0.5).repeat(2))
    truth = flat.pop("truth")
    return MouthWindows(**flat), truth


def _recolour(flat: dict[str, Tensor], pairs: int) -> None:
    """Change light, colour, contrast and sharpness at random in place, the same within a pair."""

    def each(*shape: int) -> Tensor:
        return torch.randn(pairs, *shape).repeat(2, *[1] * len(shape))

    gain, gamma = torch.exp(0.2 * each(1) + 0.1 * each(3)), torch.exp(0.2 * each(1))
    grey = (torch.rand(pairs) < 0.2).repeat(2)
    crisp = torch.rand(pairs).repeat(2)[:, None, None, None]
    luma = torch.tensor([0.299, 0.587, 0.114])

    def shade(colour: Tensor) -> Tensor:
        """Return recoloured values; channels are last."""
        shape = (-1, *[1] * (colour.dim() - 2), colour.shape[-1])
        colour = torch.where(grey.view(-1, *[1] * (colour.dim() - 1)), (colour @ luma)[..., None], colour)
        return (colour.clamp_min(1e-3) ** gamma.expand(-1, 3).reshape(shape)) * gain.reshape(shape)

    for name in _IMAGES:
        image = shade(flat[name].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
        flat[name] = image + crisp * (image - soft)
    flat["skin"] = shade(flat["skin"])


def _mirror(flat: dict[str, Tensor], chosen: Tensor) -> None:
    """Mirror the ``chosen`` rows ``[2 N]`` in place."""
    for name in (*_IMAGES, "inner", "outer", "source_inner"):
        flat[name] = torch.where(chosen[:, None, None, None], flat[name].flip(-1), flat[name])
    place = flat["place"].clone()
    place[..., 2] += (WINDOW_WIDTH - 1) * place[..., 0]
    place[..., 0] *= -1
    place[:, 0] *= -1
    flat["place"] = torch.where(chosen[:, None, None], place, flat["place"])


def train(config: Config) -> None:
    """Train for ``config.minutes``, write the averaged network and print its held-out misfit relative to the base."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(config.seed)
    data, dev = load_pairs(config.pairs, "pairs-*"), load_pairs(config.pairs, "dev-*")
    network = RetouchNet()
    if config.start:
        network.load_state_dict({name: value.float() for name, value in load_file(str(config.start)).items()})
    features = RaftFeatures.load(config.features)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=1e-3)
    guarded_step = GuardedStep(network.parameters(), optimiser)
    print(f"{len(data['base'])} pairs, {len(dev['base'])} held out", flush=True)
    started, step, spent = time.monotonic(), 0, 0.0
    while spent < 1:
        spent = (time.monotonic() - started) / 60 / config.minutes
        rate = min((step + 1) / 200, 1.0) * max(1 - spent, 0.02)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate
        windows, truth = draw(data, torch.randint(len(data["base"]), (config.batch,)))
        out, flow = network.retouched(windows)
        loss = misfit(out, flow, windows, truth, features).total(config.objective)
        optimiser.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        with torch.no_grad():
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - min(_EMA, step / (step + 10)))
        step += 1
        if step % 250 == 0 or spent >= 1:
            report(average, dev, features, step, spent)
            save(average, config.output)


def report(weights: dict[str, Tensor], dev: dict[str, Tensor], features: RaftFeatures, step: int, spent: float) -> None:
    """Print each part of the held-out misfit as a share of that of the base."""
    network = RetouchNet()
    network.load_state_dict(weights)
    sums: list[Tensor] = []
    with torch.no_grad():
        for rows in torch.arange(0, len(dev["base"]), max(1, len(dev["base"]) // 128)).split(16):
            windows, truth = draw(dev, rows, recolour=False)
            retouched = misfit(*network.retouched(windows), windows, truth, features)
            base = misfit(
                windows.base, torch.zeros(len(truth), 2, WINDOW_HEIGHT, WINDOW_WIDTH), windows, truth, features
            )
            sums.append(torch.tensor([retouched[:5], base[:5]]))
    retouched_sum, base_sum = torch.stack(sums).mean(0)
    shares = " ".join(
        f"{name} {share:.3f}" for name, share in zip(retouched._fields, retouched_sum / base_sum, strict=False)
    )
    print(f"{step} ({spent:.0%}): held-out share of the base's misfit: {shares}", flush=True)


def save(weights: dict[str, Tensor], path: Path) -> None:
    """Write the weights atomically as float16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: value.half().contiguous() for name, value in weights.items()}, str(partial))
    os.replace(partial, path)


if __name__ == "__main__":
    train(tyro.cli(Config))

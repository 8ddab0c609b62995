"""Train the retouching network on pairs of ``tools.make_retouch_pairs``.

    python -m tools.train_retouch PAIRS

    loss = |out − truth|_1 (mouth weighted) + gradients + features + change between frames + small flow
           + between the lips: features as unit vectors + where teeth are + how strong edges are

Features are those of a network trained for optical flow (RAFT-small's first stages, Teed & Deng 2020), which resolve
small structures; the benchmark uses another network. The mean of all possible teeth is grey and blurred: the terms of
teeth (bright and unsaturated as ``benchmarks.teeth`` has it, but with soft thresholds) and of edges make it lose.
Pictures are recoloured at random, all of a pair alike, as portraits may be paintings or grey photos.

``--minutes`` are of processor time, so a process may be paused (``kill -STOP``) and continued. Beside the weights lies
``….state.pt`` with everything that training needs; ``--resume`` continues from it.
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
from benchmarks.teeth import BRIGHT, UNSATURATED
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowportrait.files import shipped_weights
from flowportrait.media.colour import LUMA_601
from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH
from flowportrait.rendering.retouch_network import COMPACT, MouthWindows, RetouchNet
from flowportrait.training.optimize import GuardedStep

# --- Loss ------------------------------------------------------------------------------------------------------------

_WEIGHTS = {
    "mouth": {
        "colour": 0.5, "edges": 0.25, "features": 0.08, "look": 0.3, "change": 0.5, "bend": 0.003,
        "inside": 0.5, "teeth": 0.15, "tint": 1.0, "strength": 0.5,
    },
    "colours": {"colour": 1.0, "edges": 0.5, "features": 0.15, "change": 0.6, "bend": 0.004},
    "look": {"colour": 0.3, "edges": 0.15, "features": 0.05, "look": 1.0, "change": 0.2, "bend": 0.001},
}  # fmt: skip
"""Weights of the loss terms by objective: the inside of the mouth, mostly colours (the full network was trained so), or
mostly features as unit vectors."""

_SOFT_LUMA, _SOFT_SATURATION = 0.08, 0.06
"""Softness of the two thresholds of teeth."""

_INSIDE = 2.0
_LIPS = 1.0
"""Additional weight of pixels inside the opening and inside the outer lips."""

_MIDDLE = (..., slice(4, 60), slice(8, 88))
"""Part of the window in which features are compared: they cost most of a step, and mouths are there."""

Objective = Literal["mouth", "colours", "look"]


class Misfit(NamedTuple):
    """Mean distances between retouched and true windows.

    Attributes:
        colour: colours in [0, 1].
        edges: differences of neighbouring pixels.
        features: features of RAFT.
        look: squared distance of the features as unit vectors (the formula of LPIPS without learned weights).
        change: change of the error from one frame to the next.
        bend: roughness and size of the flow.
        inside: ``look`` between the lips.
        teeth: where teeth are between the lips.
        tint: hue and saturation between the lips, blurred by a pixel or two.
        strength: mean strength of edges between the lips.
    """

    colour: Tensor
    edges: Tensor
    features: Tensor
    look: Tensor
    change: Tensor
    bend: Tensor
    inside: Tensor
    teeth: Tensor
    tint: Tensor
    strength: Tensor

    def total(self, objective: Objective = "mouth") -> Tensor:
        """Return the weighted sum for an objective."""
        return torch.stack([weight * getattr(self, name) for name, weight in _WEIGHTS[objective].items()]).sum()


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
    out_features, true_features = features(out[_MIDDLE]), features(truth[_MIDDLE])
    deep = torch.stack([(a - b).abs().mean() for a, b in zip(out_features, true_features, strict=True)]).sum()
    unit = [F.normalize(a, dim=1) - F.normalize(b, dim=1) for a, b in zip(out_features, true_features, strict=True)]
    look = torch.stack([part.square().sum(1).mean() for part in unit]).mean()
    inner = windows.inner[_MIDDLE]
    inside = torch.stack([_mean_inside(part.square().sum(1, keepdim=True), inner) for part in unit]).mean()
    ours, theirs = (_soft_teeth(picture, windows.skin) for picture in (out, truth))
    # By place, tolerant of a pixel or two, and by their share.
    near = F.avg_pool2d(ours - theirs, 5, 1, 2).abs()
    teeth = _mean_inside(near, windows.inner) + _mean_inside(ours - theirs, windows.inner, each=True).abs().mean()
    tinted = F.avg_pool2d(out - truth, 5, 1, 2)
    tint = _mean_inside((tinted - tinted.mean(1, keepdim=True)).abs().mean(1, keepdim=True), windows.inner)
    strength = _mean_inside(_edge_strength(out) - _edge_strength(truth), windows.inner, each=True).abs().mean()
    first, second = gap.chunk(2)
    bend = flow.diff(dim=-1).abs().mean() + flow.diff(dim=-2).abs().mean() + 0.1 * flow.abs().mean()
    edges = gap.diff(dim=-1).abs().mean() + gap.diff(dim=-2).abs().mean()
    change = (second - first).abs().mean()
    return Misfit(gap.abs().mean(), edges, deep, look, change, bend, inside, teeth, tint, strength)


def _mean_inside(values: Tensor, inner: Tensor, each: bool = False) -> Tensor:
    """Return the mean of ``[B, 1, h, w]`` between the lips (``inner`` ``[B, 1, H, W]``); of ``each`` window ``[B]``.

    A window counts as much as its opening is large, up to a fiftieth of the window.
    """
    weight = F.adaptive_avg_pool2d(inner, (values.shape[2], values.shape[3]))
    area = weight.mean((1, 2, 3))
    means = (values * weight).mean((1, 2, 3)) / area.clamp_min(0.02)
    return means if each else means.mean()


def _soft_teeth(picture: Tensor, skin: Tensor) -> Tensor:
    """Return how much each pixel of ``[B, 3, H, W]`` is a tooth ``[B, 1, H, W]``, for skin colours ``[B, 3]``."""
    luma = torch.einsum("bchw,c->bhw", picture, picture.new_tensor(LUMA_601))
    ratio = luma / (skin @ skin.new_tensor(LUMA_601)).clamp_min(0.02)[:, None, None]
    high = picture.amax(1).clamp_min(0.02)
    saturation = (high - picture.amin(1)) / high
    bright = torch.sigmoid((ratio - BRIGHT) / _SOFT_LUMA)
    return (bright * torch.sigmoid((UNSATURATED - saturation) / _SOFT_SATURATION))[:, None]


def _edge_strength(picture: Tensor) -> Tensor:
    """Return the mean size of the differences of neighbouring pixels of ``[B, 3, H, W]``, ``[B, 1, H, W]``."""
    across = F.pad(picture.diff(dim=-1).abs().mean(1, keepdim=True), (0, 1))
    return across + F.pad(picture.diff(dim=-2).abs().mean(1, keepdim=True), (0, 0, 0, 1))


# --- Training --------------------------------------------------------------------------------------------------------

_EMA = 0.998
"""Decay of the averaged weights."""
_IMAGES = ("base", "source", "truth")
_SHUT, _OPENING = 0.3, 0.08
"""Chance of a shut mouth, and the opening in eye distances from which on mouths have all of one more."""
_MOST_GAIN = 2.0
"""Largest change of light between two frames that is undone."""
_REPORT = 250
_SHIPPED = "retouch/model.safetensors"


@dataclass(frozen=True)
class Config:
    """How the network is trained."""

    pairs: tyro.conf.Positional[Path]
    # folder written by tools.make_retouch_pairs and tools.make_mouth_pairs
    features: Path = Path("raft-small.pth")
    # RAFT-small weights, as its authors publish them
    output: Path = Path("weights/flowportrait_weights/retouch/model.safetensors")
    minutes: float = 120.0
    # processor time of training; the learning rate decays with it
    batch: int = 8
    learning_rate: float = 1.2e-3
    start: Path | None = None
    # weights to continue from
    resume: bool = False
    # continue from the state beside the output
    objective: Objective = "mouth"
    # what the loss weighs most
    kind: Literal["compact", "full"] = "compact"
    # kind of the network
    held_out: str = "held-*"
    # files of the pairs that are only measured
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
    flat["truth"] = _in_the_light_of(flat["base"], flat["truth"], 1 - flat["outer"])
    if recolour:
        _recolour(flat, len(rows))
        _mirror(flat, torch.rand(len(rows)).lt(0.5).repeat(2))
    truth = flat.pop("truth")
    return MouthWindows(**flat), truth


def _in_the_light_of(base: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Return true windows with the mean colour of the drawn ones around the lips, as lamps may change in a clip.

    Args:
        base: drawn windows ``[2 N, 3, H, W]``.
        truth: true windows ``[2 N, 3, H, W]``.
        weight: share of each pixel outside of the lips ``[2 N, 1, H, W]``.
    """
    ours, theirs = ((picture * weight).mean((2, 3), keepdim=True) for picture in (base, truth))
    gain = (ours / theirs.clamp_min(1e-3)).clamp(1 / _MOST_GAIN, _MOST_GAIN)
    # Both frames of a pair alike, so that no flicker comes from it.
    gain = gain.unflatten(0, (2, -1)).mean(0).repeat(2, 1, 1, 1)
    return (truth * gain).clamp(0, 1)


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
    data, held_out = load_pairs(config.pairs, "pairs-*"), load_pairs(config.pairs, config.held_out)
    network = RetouchNet(COMPACT, compact=True) if config.kind == "compact" else RetouchNet()
    if config.start:
        network = RetouchNet.from_weights(load_file(str(config.start)))
    features = RaftFeatures.load(config.features)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimiser = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=1e-3)
    guarded_step = GuardedStep(network.parameters(), optimiser)
    step, before = 0, 0.0
    state = config.output.with_suffix(".state.pt")
    if config.resume:
        kept = torch.load(state, weights_only=True)
        network.load_state_dict(kept["network"])
        optimiser.load_state_dict(kept["optimiser"])
        average, step, before = kept["average"], kept["step"], kept["minutes"]
        torch.manual_seed(config.seed + step)
    # Open mouths are seen more often.
    chance = _SHUT + (data["drop"][:, 0, 1].float() / _OPENING).clamp(max=1)
    print(f"{len(data['base'])} pairs, {len(held_out['base'])} held out", flush=True)
    report(RetouchNet.from_weights(load_file(str(shipped_weights(_SHIPPED)))), held_out, features, "as it ships")
    started, minutes = time.process_time(), before
    while minutes < config.minutes:
        minutes = before + (time.process_time() - started) / 60
        rate = min((step + 1) / 200, 1.0) * max(1 - minutes / config.minutes, 0.02)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate
        windows, truth = draw(data, torch.multinomial(chance, config.batch))
        out, flow = network.retouched(windows)
        loss = misfit(out, flow, windows, truth, features).total(config.objective)
        optimiser.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        with torch.no_grad():
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - min(_EMA, step / (step + 10)))
        step += 1
        if step % _REPORT == 0 or minutes >= config.minutes:
            report(RetouchNet.from_weights(average), held_out, features, f"{step} ({minutes:.1f} min)")
            save(average, config.output)
            partial = state.with_suffix(".partial")
            torch.save({
                "network": network.state_dict(), "optimiser": optimiser.state_dict(), "average": average,
                "step": step, "minutes": minutes,
            }, partial)  # fmt: skip
            os.replace(partial, state)


def report(network: RetouchNet, held_out: dict[str, Tensor], features: RaftFeatures, name: str) -> None:
    """Print each part of the held-out misfit as a share of that of the base."""
    sums: list[Tensor] = []
    with torch.no_grad():
        for rows in torch.arange(0, len(held_out["base"]), max(1, len(held_out["base"]) // 96)).split(16):
            windows, truth = draw(held_out, rows, recolour=False)
            retouched = misfit(*network.retouched(windows), windows, truth, features)
            still = torch.zeros(len(truth), 2, WINDOW_HEIGHT, WINDOW_WIDTH)
            base = misfit(windows.base, still, windows, truth, features)
            sums.append(torch.tensor([retouched, base]))
    retouched_sum, base_sum = torch.stack(sums).mean(0)
    shares = " ".join(
        f"{part} {share:.3f}"
        for part, share in zip(Misfit._fields, retouched_sum / base_sum, strict=True)
        if part != "bend"
    )
    print(f"{name}: held-out share of the base's misfit: {shares}", flush=True)


def save(weights: dict[str, Tensor], path: Path) -> None:
    """Write the weights atomically as float16 safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: value.half().contiguous() for name, value in weights.items()}, str(partial))
    os.replace(partial, path)


if __name__ == "__main__":
    train(tyro.cli(Config))

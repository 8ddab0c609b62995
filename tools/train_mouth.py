"""Fit the mouth model to footage of open mouths.

    python -m tools.train_mouth CORPUS

Frames of open mouths are cut from the videos below ``$FLOWPORTRAIT_DATA`` that the corpus indexes (all splits except
``dev``). The model is ``rendering.mouth.MouthModel``; every clip has its own tooth lines and brightness, which are
fitted along with it and left out of the result.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.progress import track
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch
from torch import Tensor, nn

from flowportrait.data.corpus import FaceClip
from flowportrait.files import atomic_write
from flowportrait.media.video import iter_frames
from flowportrait.rendering.face_regions import outline_mask
from flowportrait.rendering.mouth import FEATURE_COUNT, HIDDEN_UNITS, LAYER_COUNT, MouthModel, mouth_features
from flowportrait.rendering.mouth_geometry import MouthFrame, skin_colour
from flowportrait.training.optimize import GuardedStep

_MIN_OPENING = 0.035
"""Opening in eye distances from which on a mouth is used."""

_SHARP = 0.006
"""Final softness of the tooth lines in eye distances."""

_FRAMES_PER_CLIP = 6
_PIXELS_PER_FRAME = 400


@dataclass(frozen=True)
class Config:
    """How the mouth model is trained."""

    corpus: tyro.conf.Positional[Path]
    # prepared corpus: clips.jsonl and clips/
    output: Path = Path("weights/flowportrait_weights/mouth/interior.safetensors")
    samples: Path = Path("mouth_samples.safetensors")
    # pixels cut from the footage; the file is reused if it exists
    steps: int = 6000
    batch: int = 8192
    learning_rate: float = 2e-3
    seed: int = 0


def collect(corpus: Path, footage: Path) -> dict[str, np.ndarray]:
    """Return pixels inside open mouths, by column.

    Returns:
        place: coordinates ``[N, 5]``; shape: height and width of the opening ``[N, 2]``; ratio: colour relative to the
        skin ``[N, 3]``; clip: number of the clip ``[N]``; dev: whether its speaker is held out ``[N]``.
    """
    rng = np.random.default_rng(0)
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines()]
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("place", "shape", "ratio", "clip", "dev")}
    for number, record in enumerate(track(records, description="cutting mouths")):
        clip = FaceClip.load(corpus / "clips" / f"{record['name']}.safetensors")
        video = footage / f"{record['name']}.mp4"
        if not video.is_file():
            continue
        points = clip.landmarks.astype(np.float64)
        eyes = np.linalg.norm(points[:, 33] - points[:, 263], axis=1)
        gap = (points[:, 14, 1] - points[:, 13, 1]) / eyes
        frame = MouthFrame(points[int(gap.argmin())])
        open_frames = np.flatnonzero(gap > _MIN_OPENING)
        count = _FRAMES_PER_CLIP * (1 if len(clip) < 200 else 20)
        chosen = set(rng.permutation(open_frames)[:count].tolist())
        if not chosen:
            continue
        for index, image in enumerate(islice(iter_frames(video), max(chosen) + 1)):
            if index not in chosen:
                continue
            shape = frame.opening(points[index])
            inside = np.argwhere(outline_mask(image.shape[:2], shape.outline) > 0.9)[:, ::-1]
            if len(inside) < 20:
                continue
            inside = rng.permutation(inside)[:_PIXELS_PER_FRAME]
            colour = image[inside[:, 1], inside[:, 0]] / skin_colour(image, points[index])
            columns["place"].append(shape.coordinates(inside.astype(np.float64)))
            columns["shape"].append(np.tile([shape.height, shape.width], (len(inside), 1)).astype(np.float32))
            columns["ratio"].append(colour.astype(np.float32))
            columns["clip"].append(np.full(len(inside), number, np.int32))
            columns["dev"].append(np.full(len(inside), record["split"] == "dev"))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


class ClipwiseMouth(nn.Module):
    """The mouth model with tooth lines and brightness of each clip."""

    def __init__(self, clips: int) -> None:
        super().__init__()
        sizes = [FEATURE_COUNT] + [HIDDEN_UNITS] * (LAYER_COUNT - 1) + [9]
        self.linear = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.network = nn.ModuleList(self.linear)
        with torch.no_grad():
            self.linear[-1].weight.mul_(0.1)
            self.linear[-1].bias.copy_(torch.tensor([-1.2] * 3 + [0.3] * 3 + [0.2] * 3))
        self.line = nn.Parameter(torch.tensor([0.03, 0.02]))
        self.curve = nn.Parameter(torch.tensor([-0.2, -0.2]))
        self.clip_line = nn.Embedding(clips, 2)
        self.clip_gain = nn.Embedding(clips, 3)
        nn.init.zeros_(self.clip_line.weight)
        nn.init.zeros_(self.clip_gain.weight)

    def forward(self, place: Tensor, shape: Tensor, clip: Tensor, softness: float) -> Tensor:
        """Return colour ratios ``[N, 3]`` at coordinates ``[N, 5]`` of openings ``[N, 2]`` in clips ``[N]``."""
        x = torch.stack(mouth_features(place, shape), -1)
        for layer in self.linear[:-1]:
            x = F.relu(layer(x))
        gain = self.clip_gain(clip)
        cavity, upper, lower = torch.exp(self.linear[-1](x)).split(3, -1)
        u, s, j = place[:, 0], place[:, 1], place[:, 2]
        line = self.line + self.clip_line(clip)
        on_upper = torch.sigmoid((line[:, 0] + self.curve[0] * u.square() - s) / softness)[:, None]
        on_lower = torch.sigmoid((j - line[:, 1] - self.curve[1] * u.square()) / softness)[:, None]
        cavity = cavity * torch.exp(gain[:, :1])
        teeth = cavity + on_lower * (lower * torch.exp(gain[:, 2:]) - cavity)
        return teeth + on_upper * (upper * torch.exp(gain[:, 1:2]) - teeth)


def train(config: Config) -> None:
    """Collect pixels (once), fit the model and write it."""
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    if not config.samples.is_file():
        columns = collect(config.corpus, Path(os.environ["FLOWPORTRAIT_DATA"]))
        with atomic_write(config.samples) as partial:
            save_file(columns, str(partial))
    samples = load_torch(str(config.samples))
    held_out = samples.pop("dev")
    dev = {name: value[held_out] for name, value in samples.items()}
    data = {name: value[~held_out] for name, value in samples.items()}
    numbers, data["clip"] = torch.unique(data["clip"], return_inverse=True)
    print(f"{len(data['clip'])} pixels of {len(numbers)} clips, {len(dev['clip'])} held out")
    model = ClipwiseMouth(len(numbers))
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate)
    guarded_step = GuardedStep(model.parameters(), optimiser, math.inf)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.learning_rate * 2, total_steps=config.steps)
    for step in range(config.steps):
        rows = torch.randint(len(data["clip"]), (config.batch,))
        # Tooth lines start soft, so that distant pixels give gradients, and end sharp.
        softness = 0.03 * (1 - step / config.steps) + _SHARP
        drawn = model(data["place"][rows], data["shape"][rows], data["clip"][rows], softness)
        misfit = F.smooth_l1_loss(drawn, data["ratio"][rows], beta=0.1)
        prior = 2.0 * model.clip_line.weight.square().mean() + 0.02 * model.clip_gain.weight.square().mean()
        optimiser.zero_grad()
        (misfit + prior).backward()
        guarded_step(step + 1)
        schedule.step()
        if step % 500 == 0 or step == config.steps - 1:
            print(f"{step}: misfit {misfit.item():.4f}, tooth lines {model.line.tolist()}")
    report(model, dev, data["ratio"].median(0).values)
    MouthModel(
        [(layer.weight.detach().numpy().T, layer.bias.detach().numpy()) for layer in model.linear],
        model.line.detach().numpy(),
        model.curve.detach().numpy(),
    ).save(config.output)


def report(model: ClipwiseMouth, dev: dict[str, Tensor], constant: Tensor) -> None:
    """Print the mean absolute error of colour ratios on held-out speakers, compared with one constant colour.

    Their own tooth lines and brightness are unknown, so the mean ones are used.
    """
    with torch.no_grad():
        model.clip_line.weight.zero_()
        model.clip_gain.weight.zero_()
        no_clip = torch.zeros(len(dev["place"]), dtype=torch.long)
        drawn = model(dev["place"], dev["shape"], no_clip, _SHARP)
    error, flat = ((guess - dev["ratio"]).abs().mean().item() for guess in (drawn, constant))
    print(f"held-out speakers: mean absolute error {error:.3f}, a constant colour {flat:.3f}")


if __name__ == "__main__":
    train(tyro.cli(Config))

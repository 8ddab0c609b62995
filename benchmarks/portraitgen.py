"""PortraitGen's claim on a flow that is trained here: does GRPO with real faces in its groups, and with a reward that
knows artefacts, leave fewer of them than GRPO alone?

    python -m tools.measure_portraits CORPUS FOOTAGE faces.safetensors
    python -m tools.train_portrait_flow faces.safetensors FLOW
    python benchmarks/portraitgen.py run   --faces faces.safetensors --flow FLOW --output DIR
    python benchmarks/portraitgen.py table --output DIR

Every system starts from FLOW/spoilt (faces smoothed and over-coloured on purpose) and has the same rollouts. Measured
on prompts of held-out speakers' attributes with the same noise for all: the artefact detectors, which
``ai_portrait`` is made of, and two judges that took part in no training: the realness density (m, lower is more usual)
and the Fréchet distance of the evaluation side's image network to faces of speakers nobody trained on. Ceilings: the
clean flow, and held-out real faces through the flow's picture space. Per picture against GRPO alone, and against GRPO
with the dual reward: exact McNemar test per artefact, signed-rank test of the number of artefacts and of m, Holm-
corrected. Finished runs are kept; a stopped command goes on.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flowportrait.errors import BadInput
from flowportrait.evaluation.comparison import frechet_distance
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.evaluation.statistics import bootstrap_mean, holm_correction, mcnemar_test, signed_rank_p
from flowportrait.portraitgen.measured_judge import DetectorLimits, FramedFaces, MeasuredStills
from flowportrait.portraitgen.still_flow import (
    PortraitFlow,
    find_framed_faces,
    frames_to_pictures,
    pictures_to_frames,
)
from flowportrait.portraitgen.task import PortraitTask
from flowportrait.rewards.face import STATISTICS_SIDE, FaceDensity, align_faces
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.plan import AllSteps, OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.trainer import Trainer

OMNI = {"omni_reward": 1.0}
DUAL = {"omni_reward": 0.5, "ai_portrait": 0.5}
STEPS = 8
BASELINES = ("grpo", "grpo + dual")


@dataclass(frozen=True)
class System:
    """A recipe, what it is paid for, and how many real faces it may see."""

    recipe: str
    rewards: dict[str, float]
    exemplars: int = 0
    baseline: Literal["rollouts", "all"] = "rollouts"
    push: float = 1.5


SYSTEMS: dict[str, System] = {
    "grpo": System("flow-grpo", OMNI),
    "grpo + exemplars": System("exemplar-ratio", OMNI, 1000),
    "grpo + dual": System("flow-grpo", DUAL),
    "grpo + exemplars + dual": System("exemplar-ratio", DUAL, 1000),
    "same, 8 exemplars": System("exemplar-ratio", DUAL, 8),
    "same, in the mean": System("exemplar-ratio", DUAL, 1000, "all"),
    "awm + exemplars + dual": System("exemplar-awm", DUAL, 1000),
    "dpo + exemplars + dual": System("exemplar-dpo", DUAL, 1000),
    "grpo + exemplars + dual, never away": System("exemplar-ratio", DUAL, 1000, push=0.0),
    "same, 8 exemplars, never away": System("exemplar-ratio", DUAL, 8, push=0.0),
    "awm + exemplars + dual, never away": System("exemplar-awm", DUAL, 1000, push=0.0),
}


@dataclass(frozen=True)
class Options:
    """What is run, or where its results are."""

    what: tyro.conf.Positional[Literal["run", "table"]]
    output: Path
    faces: Path | None = None
    flow: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    systems: tuple[str, ...] = tuple(SYSTEMS)
    iterations: int = 60
    pictures: int = 96
    # per system, for measuring
    sheet: Path | None = None
    # folder for contact sheets, outside of the project: they show people


def recipe_of(system: System, seed: int, iterations: int) -> Recipe:
    """The named recipe at this size: the same groups, rollouts and learning rate for all."""
    found = find_recipe(system.recipe)
    plan = OdePlan(steps=STEPS) if isinstance(found.plan, OdePlan) else AllSteps(steps=STEPS)
    exemplars = found.exemplars and replace(
        found.exemplars, inversion="two_step", baseline=system.baseline, negative_limit=system.push
    )
    return replace(
        found, plan=plan, eta=0.7, groups=4, group_size=8, rollout_chunks=1, learning_rate=3e-4, exemplars=exemplars,
        iterations=iterations, seed=seed,
    )  # fmt: skip


def train(name: str, seed: int, options: Options, faces: FramedFaces) -> PortraitFlow:
    """The post-trained flow, from an earlier call or now; the averaged weights."""
    system, folder = SYSTEMS[name], options.output / f"{name.replace(' ', '_')}-{seed}"
    assert options.flow is not None
    if (folder / "log.json").is_file():
        return PortraitFlow.from_pretrained(folder)
    policy = PortraitFlow.from_pretrained(options.flow / "spoilt")
    task = PortraitTask(faces.select(~faces.dev), system.exemplars, seed)
    recipe = recipe_of(system, seed, options.iterations)
    trainer = Trainer(policy, task, recipe, CompositeReward.of(system.rewards))
    log = [trainer.step() for _ in track(range(options.iterations), f"{name}, seed {seed}")]
    with trainer.roles.use("ema"):
        policy.save_pretrained(folder)
    partial = folder / "log.partial"
    partial.write_text(json.dumps(log) + "\n")
    os.replace(partial, folder / "log.json")
    return PortraitFlow.from_pretrained(folder)


def measure(pictures: torch.Tensor, held_out: np.ndarray) -> dict[str, Any]:
    """Artefacts and grades per picture ``[N, 3, S, S]``, and the distance to held-out features ``[M, D]``."""
    limits, judge = DetectorLimits.load(), MeasuredStills()
    looks = find_framed_faces(pictures)
    beyond = [limits.beyond(look) for look in looks]
    return {
        "artefacts": {
            name: [None if row[name] is None else bool(row[name] > 0) for row in beyond]
            for name in beyond[0]
            if any(row[name] is not None for row in beyond)
        },
        "ai_portrait": [judge.measure(look, "ai_portrait").reward for look in looks],
        "omni_reward": [judge.measure(look, "omni_reward").reward for look in looks],
        "realness": unusual(pictures, [look.landmarks for look in looks]),
        "frechet": frechet_distance(features(pictures), held_out),
    }


def unusual(pictures: torch.Tensor, landmarks: Sequence[np.ndarray | None]) -> list[float | None]:
    """The realness density's m of each picture with a face."""
    density, found = FaceDensity.load(), []
    for picture, points in zip(pictures, landmarks, strict=True):
        if points is None:
            found.append(None)
            continue
        face = align_faces(picture[None], torch.from_numpy(points[None, :, :2]).float(), STATISTICS_SIDE)
        found.append(float(density.unusual(density.describe(face))[0]))
    return found


def features(pictures: torch.Tensor) -> np.ndarray:
    """The evaluation side's image features of pictures enlarged to its crops."""
    image = load_evaluation_networks().image
    if image is None:
        raise BadInput("No image network is installed: see docs/evaluation.md for those that can be.")
    crops = [cv2.resize(frame, (128, 128), interpolation=cv2.INTER_CUBIC) for frame in pictures_to_frames(pictures)]
    return image(np.stack(crops))


def sheet(pictures: torch.Tensor, path: Path) -> None:
    """The first 32 as a contact sheet."""
    frames = pictures_to_frames(pictures[:32])
    rows = [np.concatenate(list(frames[start : start + 16]), 1) for start in range(0, len(frames), 16)]
    large = cv2.resize(np.concatenate(rows), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(path), large[..., ::-1])


def run(options: Options) -> None:
    """Train what is not trained and measure what is not measured."""
    if options.faces is None or options.flow is None:
        raise BadInput("run needs --faces and --flow: see the head of benchmarks/portraitgen.py.")
    options.output.mkdir(parents=True, exist_ok=True)
    faces = FramedFaces.load(options.faces)
    dev = faces.unseen_speakers()
    rows = np.random.default_rng(0).choice(len(dev), options.pictures, replace=False)
    other = np.setdiff1d(np.arange(len(dev)), rows)
    told, truth = torch.from_numpy(dev.attributes[rows]), frames_to_pictures(dev.small[rows])
    held_out = features(frames_to_pictures(dev.small[other]))
    clean = PortraitFlow.from_pretrained(options.flow / "clean")
    jobs = {
        "start": lambda: PortraitFlow.from_pretrained(options.flow / "spoilt").draw(told, 0, STEPS),
        "clean flow": lambda: clean.draw(told, 0, STEPS),
        "real, encoded": lambda: clean.space.decode(clean.space.encode(truth)),
        "real": lambda: truth,
    }
    for seed in options.seeds:
        for name in options.systems:
            jobs[f"{name}/{seed}"] = lambda name=name, seed=seed: train(name, seed, options, faces).draw(told, 0, STEPS)
    for name, pictures_of in jobs.items():
        path = options.output / f"{name.replace('/', '-').replace(' ', '_')}.json"
        if path.is_file():
            continue
        pictures = pictures_of()
        if options.sheet:
            options.sheet.mkdir(parents=True, exist_ok=True)
            sheet(pictures, options.sheet / f"{path.stem}.png")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"name": name, **measure(pictures, held_out)}) + "\n")
        os.replace(partial, path)


def table(options: Options) -> None:
    """Print what was measured, seeds together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(options.output.glob("*.json")):
        data = json.loads(path.read_text())
        found.setdefault(data["name"].split("/")[0], []).append(data)
    order = [name for name in ("real", "real, encoded", "clean flow", "start", *SYSTEMS) if name in found]
    shown = Table(title="artefacts per picture, rates of the commonest, rewards, and judges that trained nothing")
    kinds = ("over_saturated", "over_smooth", "skin_hue", "oily", "blur")
    for head in ("system", "seeds", "per picture", *kinds, "ai_portrait", "omni_reward", "realness m", "Fréchet"):
        shown.add_column(head, justify="left" if head == "system" else "right")
    for name in order:
        sets = found[name]
        total = bootstrap_mean(np.concatenate([_count(data) for data in sets]))
        rates = [_rate([value for data in sets for value in data["artefacts"].get(kind, [])]) for kind in kinds]
        figures = [_mean([v for data in sets for v in data[k]]) for k in ("ai_portrait", "omni_reward", "realness")]
        distance = float(np.mean([data["frechet"] for data in sets]))
        shown.add_row(
            name, str(len(sets)), f"{total.mean:.2f} [{total.low:.2f}, {total.high:.2f}]", *rates, *figures,
            f"{distance:.2f}",
        )  # fmt: skip
    console = Console(width=190)
    console.print(shown)
    for baseline in BASELINES:
        if baseline in found:
            _against(found, baseline, [name for name in order if name in SYSTEMS and name != baseline], kinds, console)
    _groups(options.output, console)


def _against(
    found: dict[str, list[dict[str, Any]]], baseline: str, names: list[str], kinds: Sequence[str], console: Console
) -> None:
    """Paired tests against a baseline, picture by picture: same prompt, same noise, same seed of training."""
    tests: dict[tuple[str, str], float] = {}
    gaps: dict[tuple[str, str], float] = {}
    same_seed = {_seed(data): data for data in found[baseline]}
    for name in names:
        pairs = [(data, same_seed[_seed(data)]) for data in found[name] if _seed(data) in same_seed]
        columns = {"artefacts": _count, "realness": lambda data: np.array(data["realness"], float)}
        for key, column in columns.items():
            gap = np.concatenate([column(mine) - column(theirs) for mine, theirs in pairs])
            gap = gap[np.isfinite(gap)]
            p = signed_rank_p(gap)
            tests[name, key], gaps[name, key] = 1.0 if p is None else p, float(gap.mean())
        for kind in kinds:
            a, b = ([v for pair in pairs for v in pair[side]["artefacts"].get(kind, [])] for side in (0, 1))
            tests[name, kind], gaps[name, kind] = mcnemar_test(a, b)
    corrected = dict(zip(tests, holm_correction(list(tests.values())), strict=True))
    shown = Table(title=f"against {baseline}: change per picture (Holm-corrected p)")
    keys = ("artefacts", *kinds, "realness")
    for head in ("system", *keys):
        shown.add_column(head, justify="left" if head == "system" else "right")
    for name in names:
        shown.add_row(name, *(f"{gaps[name, key]:+.2f} ({corrected[name, key]:.2g})" for key in keys))
    console.print(shown)


def _seed(data: dict[str, Any]) -> str:
    return str(data["name"]).partition("/")[2]


def _groups(output: Path, console: Console) -> None:
    """What the groups looked like: share of own samples pushed away from, exemplars' advantage and residual."""
    shown = Table(title="in the groups, means over the last ten iterations")
    for head in ("system", "own samples with negative advantage", "exemplar's advantage", "its residual"):
        shown.add_column(head, justify="left" if head == "system" else "right")
    logs: dict[str, list[list[dict[str, float]]]] = {}
    for path in sorted(output.glob("*/log.json")):
        logs.setdefault(path.parent.name.rpartition("-")[0].replace("_", " "), []).append(json.loads(path.read_text()))
    for name, runs in logs.items():
        last = [record for run in runs for record in run[-10:]]
        keys = ("exemplar/negative", "exemplar/advantage", "exemplar/residual")
        shown.add_row(name, *(_mean([record.get(key) for record in last]) for key in keys))
    console.print(shown)


def _count(data: dict[str, Any]) -> np.ndarray:
    """Artefacts of every picture."""
    return np.sum([[bool(value) for value in values] for values in data["artefacts"].values()], 0).astype(float)


def _rate(values: Sequence[bool | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.0%}" if known else "–"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else "–"


if __name__ == "__main__":
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    chosen = tyro.cli(Options)
    (run if chosen.what == "run" else table)(chosen)

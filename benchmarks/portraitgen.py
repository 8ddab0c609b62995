"""Still portraits: post-training with exemplars and a dual reward, artefact detectors, and inversion to noise.

python -m tools.measure_portraits CORPUS FOOTAGE faces.safetensors
python -m tools.train_portrait_flow faces.safetensors FLOW
python -m benchmarks portraitgen --faces faces.safetensors --flow FLOW --output DIR
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from benchmarks.material import mean_of_known, picture_paths, use_one_thread, write_picture
from benchmarks.record import Record
from flowportrait.commands.options import OptionalPath
from flowportrait.corruption import corruptions
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.evaluation.comparison import frechet_distance
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.evaluation.statistics import holm_correction, mcnemar_test, signed_rank_p
from flowportrait.files import write_json
from flowportrait.flow import guidance as inversions
from flowportrait.flow.kernels import flow_sde_kernel
from flowportrait.flow.schedules import VelocityField, noise_schedule, solve_ode
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.models.arflow import load_generator
from flowportrait.portraitgen.detectors import FaceView, find_face, find_framed_face
from flowportrait.portraitgen.measured_judge import DetectorLimits, FramedFaces, MeasuredStills
from flowportrait.portraitgen.still_flow import PortraitFlow, find_framed_faces, frames_to_pictures, pictures_to_frames
from flowportrait.portraitgen.task import PortraitTask
from flowportrait.rewards.face import STATISTICS_SIDE, FaceDensity, align_faces
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import Recipe
from flowportrait.rl.plan import AllSteps, OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import SpeechItem, SpeechPrompts, TalkingTask, draw_prompts
from flowportrait.rl.trainer import Trainer
from flowportrait.terminal import progress

# --- Exemplars and the dual reward ------------------------------------------------------

OMNI = {"omni_reward": 1.0}
DUAL = {"omni_reward": 0.5, "ai_portrait": 0.5}
STEPS = 8
BASELINES = ("grpo", "grpo + dual")
ARTEFACTS = ("over_saturated", "over_smooth", "skin_hue", "oily", "blur")
"""The commonest artefacts, which have figures of their own."""
CEILINGS = ("real", "real, encoded", "clean flow", "start")


@dataclass(frozen=True)
class Contestant:
    """A recipe, its rewards, and the number of real faces that it may see."""

    recipe: str
    rewards: dict[str, float]
    exemplars: int = 0
    baseline: Literal["rollouts", "all"] = "rollouts"
    push: float = 1.5
    """Limit of the push away from samples that are worse than the exemplar."""


CONTESTANTS: dict[str, Contestant] = {
    "grpo": Contestant("flow-grpo", OMNI),
    "grpo + exemplars": Contestant("exemplar-ratio", OMNI, 1000),
    "grpo + dual": Contestant("flow-grpo", DUAL),
    "grpo + exemplars + dual": Contestant("exemplar-ratio", DUAL, 1000),
    "same, 8 exemplars": Contestant("exemplar-ratio", DUAL, 8),
    "same, in the mean": Contestant("exemplar-ratio", DUAL, 1000, "all"),
    "awm + exemplars + dual": Contestant("exemplar-awm", DUAL, 1000),
    "dpo + exemplars + dual": Contestant("exemplar-dpo", DUAL, 1000),
    "grpo + exemplars + dual, never away": Contestant("exemplar-ratio", DUAL, 1000, push=0.0),
    "same, 8 exemplars, never away": Contestant("exemplar-ratio", DUAL, 8, push=0.0),
    "awm + exemplars + dual, never away": Contestant("exemplar-awm", DUAL, 1000, push=0.0),
}


@dataclass(frozen=True)
class PortraitgenOptions:
    """Measure whether GRPO with real faces in its groups and a reward that knows artefacts leaves fewer of them.

    Every system starts from FLOW/spoilt (faces smoothed and over-coloured on purpose) and has the same rollouts. On
    prompts of unseen speakers, with the same noise: artefacts, the two rewards, and two judges that took part in no
    training, realness m (lower is more usual) and the Fréchet distance. Ceilings: the clean flow, real faces. Tests are
    paired by picture and corrected after Holm. A stopped command continues from what is in the output folder.
    """

    output: Path
    """Folder of runs and figures."""
    faces: OptionalPath = None
    """What ``tools.measure_portraits`` wrote; by default only what is in the output folder is added up."""
    flow: OptionalPath = None
    """What ``tools.train_portrait_flow`` wrote."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training."""
    systems: tuple[str, ...] = tuple(CONTESTANTS)
    """Systems to train."""
    iterations: int = 60
    """Iterations of each run."""
    pictures: int = 96
    """Pictures of each system."""
    sheet: OptionalPath = None
    """Folder for contact sheets: they show people."""


def portraitgen(options: PortraitgenOptions, record: Record) -> None:
    """Train and measure what is missing in the output folder, then add up all of it."""
    use_one_thread()
    if unknown := [name for name in options.systems if name not in CONTESTANTS]:
        raise BadInput(f"There is no system {unknown[0]!r}: choose from {', '.join(CONTESTANTS)}.")
    if options.faces and options.flow:
        measure_missing(options, options.faces, options.flow)
    elif options.faces or options.flow:
        raise BadInput("Training needs both --faces and --flow; give neither to add up what was measured.")
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(options.output.glob("*.json")):
        data = json.loads(path.read_text())
        found.setdefault(data["name"].split("/")[0], []).append(data)
    if not found:
        raise BadInput(f"Nothing was measured in {options.output}: give --faces and --flow.")
    found = {name: found[name] for name in (*CEILINGS, *CONTESTANTS) if name in found}
    for name, sets in found.items():
        record.add(name, "artefacts", mean_of_known(np.concatenate([count_artefacts(data) for data in sets])))
        for kind in ARTEFACTS:
            known = [v for data in sets for v in data["artefacts"].get(kind, []) if v is not None]
            record.add(name, kind, mean_of_known(100 * np.array(known, float)), unit="%")
        for metric in ("ai_portrait", "omni_reward", "realness"):
            record.add(name, metric, mean_of_known([value for data in sets for value in data[metric]]))
        record.add(name, "Fréchet", float(np.mean([data["frechet"] for data in sets])), n=len(sets))
    for baseline in BASELINES:
        if baseline in found:
            add_paired_tests(record, found, baseline)
    add_groups(record, options.output)


def measure_missing(options: PortraitgenOptions, faces_path: Path, flow: Path) -> None:
    """Train what is not trained and measure what is not measured."""
    options.output.mkdir(parents=True, exist_ok=True)
    faces, clean = FramedFaces.load(faces_path), PortraitFlow.from_pretrained(flow / "clean")
    dev = faces.unseen_speakers()
    if len(dev) <= options.pictures:
        raise BadInput(f"{faces_path} has {len(dev)} faces of unseen speakers: set --pictures lower than that.")
    rows = np.random.default_rng(0).choice(len(dev), options.pictures, replace=False)
    attributes, truth = torch.from_numpy(dev.attributes[rows]), frames_to_pictures(dev.small[rows])
    held_out = image_features(frames_to_pictures(dev.small[np.setdiff1d(np.arange(len(dev)), rows)]))

    def draw(policy: PortraitFlow) -> torch.Tensor:
        return policy.draw(attributes, 0, STEPS)

    def draw_trained(name: str, seed: int) -> torch.Tensor:
        return draw(train(name, seed, options, faces, flow))

    jobs: dict[str, Callable[[], torch.Tensor]] = {
        "start": lambda: draw(PortraitFlow.from_pretrained(flow / "spoilt")),
        "clean flow": lambda: draw(clean),
        "real, encoded": lambda: clean.space.decode(clean.space.encode(truth)),
        "real": lambda: truth,
    }
    for seed in options.seeds:
        for name in options.systems:
            jobs[f"{name}/{seed}"] = partial(draw_trained, name, seed)
    for name, make_pictures in jobs.items():
        path = options.output / f"{name.replace('/', '-').replace(' ', '_')}.json"
        if not path.is_file():
            pictures = make_pictures()
            if options.sheet:
                write_sheet(pictures, options.sheet / f"{path.stem}.png")
            write_json(path, {"name": name, **measure_pictures(pictures, held_out)}, indent=None)


def sized_recipe(system: Contestant, seed: int, iterations: int) -> Recipe:
    """Return the recipe at this size: the same groups, rollouts and learning rate for all."""
    recipe = find_recipe(system.recipe)
    plan = OdePlan(steps=STEPS) if isinstance(recipe.plan, OdePlan) else AllSteps(steps=STEPS)
    exemplars = recipe.exemplars and replace(
        recipe.exemplars, inversion="two_step", baseline=system.baseline, negative_limit=system.push
    )
    return replace(
        recipe, plan=plan, eta=0.7, groups=4, group_size=8, rollout_chunks=1, learning_rate=3e-4, exemplars=exemplars,
        iterations=iterations, seed=seed,
    )  # fmt: skip


def train(name: str, seed: int, options: PortraitgenOptions, faces: FramedFaces, flow: Path) -> PortraitFlow:
    """Return the averaged weights of a post-trained flow, from an earlier call or now."""
    system, folder = CONTESTANTS[name], options.output / f"{name.replace(' ', '_')}-{seed}"
    if not (folder / "log.json").is_file():
        policy = PortraitFlow.from_pretrained(flow / "spoilt")
        task = PortraitTask(faces.select(~faces.dev), system.exemplars, seed)
        recipe = sized_recipe(system, seed, options.iterations)
        trainer = Trainer(policy, task, recipe, CompositeReward.of(system.rewards))
        log = [trainer.step() for _ in progress(range(options.iterations), options.iterations, f"{name}, seed {seed}")]
        with trainer.roles.use("ema"):
            policy.save_pretrained(folder)
        write_json(folder / "log.json", log, indent=None)
    return PortraitFlow.from_pretrained(folder)


def measure_pictures(pictures: torch.Tensor, held_out: np.ndarray) -> dict[str, Any]:
    """Return artefacts and grades by picture ``[N, 3, S, S]``, and the distance to held-out features ``[M, D]``."""
    limits, judge = DetectorLimits.load(), MeasuredStills()
    views = find_framed_faces(pictures)
    beyond = [limits.excess(view) for view in views]
    return {
        "artefacts": {
            name: [None if (value := row[name]) is None else bool(value > 0) for row in beyond]
            for name in beyond[0]
            if any(row[name] is not None for row in beyond)
        },
        "ai_portrait": [judge.measure(view, "ai_portrait").reward for view in views],
        "omni_reward": [judge.measure(view, "omni_reward").reward for view in views],
        "realness": realness_of(pictures, [view.landmarks for view in views]),
        "frechet": frechet_distance(image_features(pictures), held_out),
    }


def realness_of(pictures: torch.Tensor, landmarks: Sequence[np.ndarray | None]) -> list[float | None]:
    """Return the realness density's m of each picture; None where it shows no face."""
    density, found = FaceDensity.load(), list[float | None]()
    for picture, points in zip(pictures, landmarks, strict=True):
        if points is None:
            found.append(None)
            continue
        face = align_faces(picture[None], torch.from_numpy(points[None, :, :2]).float(), STATISTICS_SIDE)
        found.append(float(density.unusual(density.describe(face))[0]))
    return found


def image_features(pictures: torch.Tensor) -> np.ndarray:
    """Return features of the evaluation's image network.

    Raises:
        BadInput: none is installed.
    """
    image = load_evaluation_networks().image
    if image is None:
        raise BadInput("No image network is installed: the evaluation page of the manual names those that can be.")
    crops = [cv2.resize(frame, (128, 128), interpolation=cv2.INTER_CUBIC) for frame in pictures_to_frames(pictures)]
    return image(np.stack(crops))


def write_sheet(pictures: torch.Tensor, path: Path) -> None:
    """Write the first 32 pictures as a contact sheet."""
    frames = pictures_to_frames(pictures[: min(32, len(pictures) // 16 * 16 or len(pictures))])
    rows = [np.concatenate(list(frames[start : start + 16]), 1) for start in range(0, len(frames), 16)]
    large = cv2.resize(np.concatenate(rows), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    write_picture(path, large)


def add_paired_tests(record: Record, found: dict[str, list[dict[str, Any]]], baseline: str) -> None:
    """Add changes by picture (same prompt, noise and seed) from a baseline, with p corrected after Holm."""

    def seed_of(data: dict[str, Any]) -> str:
        return str(data["name"]).partition("/")[2]

    tests: dict[tuple[str, str], tuple[float, float]] = {}
    same_seed = {seed_of(data): data for data in found[baseline]}
    for name in (name for name in found if name in CONTESTANTS and name != baseline):
        pairs = [(data, same_seed[seed_of(data)]) for data in found[name] if seed_of(data) in same_seed]
        if not pairs:
            continue
        columns = {"artefacts": count_artefacts, "realness": lambda data: np.array(data["realness"], float)}
        for metric, column in columns.items():
            changes = np.concatenate([column(own) - column(other) for own, other in pairs])
            changes = changes[np.isfinite(changes)]
            p = signed_rank_p(changes)
            tests[name, metric] = (1.0 if p is None else p, float(changes.mean()) if len(changes) else float("nan"))
        for kind in ARTEFACTS:
            a, b = ([v for pair in pairs for v in pair[side]["artefacts"].get(kind, [])] for side in (0, 1))
            tests[name, kind] = mcnemar_test(a, b)
    for ((name, metric), (_, change)), p in zip(
        tests.items(), holm_correction([p for p, _ in tests.values()]), strict=True
    ):
        record.add(name, metric, change, group=f"change from {baseline}")
        record.add(name, f"{metric}, p", p, group=f"change from {baseline}")


def add_groups(record: Record, output: Path) -> None:
    """Add what groups looked like, means over the last ten iterations: share of samples pushed away from, …"""
    logs: dict[str, list[dict[str, float]]] = {}
    for path in sorted(output.glob("*/log.json")):
        name = path.parent.name.rpartition("-")[0].replace("_", " ")
        logs.setdefault(name, []).extend(json.loads(path.read_text())[-10:])
    for name, iterations in logs.items():
        for key in ("exemplar/negative", "exemplar/advantage", "exemplar/residual"):
            if value := mean_of_known([record.get(key) for record in iterations]):
                record.add(name, key, value.mean, n=value.clips, group="in the groups")


def count_artefacts(data: dict[str, Any]) -> np.ndarray:
    """Return the number of artefacts of every picture."""
    return np.sum([[bool(value) for value in values] for values in data["artefacts"].values()], 0).astype(float)


# --- What the detectors see -------------------------------------------------------------

DAMAGE = ("chroma", "airbrush", "tint", "shine", "blur", "jpeg")
"""Each hurts what one detector looks for."""


@dataclass(frozen=True)
class ArtefactsOptions:
    """Measure what the artefact detectors accuse real pictures of, and what damage they see.

    Faces of unseen speakers, framed at 115 px, with landmarks of the undamaged picture. By damage and strength, the
    share of pictures in which each detector fires: its own should rise to all, the others should stay.
    """

    faces: Path
    """What ``tools.measure_portraits`` wrote."""
    photos: OptionalPath = None
    """Folder of portraits as people upload them; each is listed with what it is accused of."""
    pictures: int = 60
    """Faces that are damaged."""


def artefacts(options: ArtefactsOptions, record: Record) -> None:
    """Measure real pictures, then each damage at each strength."""
    use_one_thread()
    unseen = FramedFaces.load(options.faces).unseen_speakers()
    large = np.flatnonzero(unseen.native >= 40)
    rows = np.random.default_rng(0).choice(large, min(options.pictures, len(large)), replace=False)
    with FaceTracker(still=True) as tracker:
        views = [view for row in rows if (view := find_framed_face(unseen.large[row], tracker)).landmarks is not None]
    if not views:
        raise BadInput(f"{options.faces} has no face of an unseen speaker of 40 px or more.")
    kinds = add_detections(record, "as filmed", [view.picture for view in views], views)
    for damage in (corruptions("still")[name] for name in DAMAGE):
        own = next((kind for kind in damage.hurts if kind in kinds), None)
        for strength in damage.strengths:
            name = f"{damage.name} {strength:g}" + (f" ({own})" if own else "")
            add_detections(record, name, [damage.damage(view, strength) for view in views], views)
    for path in picture_paths(options.photos) if options.photos else ():
        found = DetectorLimits.load().excess(find_face(read_image(path)))
        accused = [f"{name} {value:.1f}" for name, value in found.items() if value is not None and value > 0]
        record.note(f"{path.name}: {', '.join(accused) or 'nothing'}.")


def add_detections(record: Record, system: str, pictures: list[np.ndarray], views: list[FaceView]) -> list[str]:
    """Add the share of pictures beyond each limit, with their faces where they were; returns the detectors' names."""
    limits, rows = DetectorLimits.load(), []
    for picture, view in zip(pictures, views, strict=True):
        assert view.landmarks is not None, "only pictures with a face are measured"
        assert view.blendshapes is not None, "a face has both"
        rows.append(limits.excess(FaceView.at(picture, [(view.landmarks, view.blendshapes)])))
    for kind in rows[0]:
        known = [value > 0 for row in rows if (value := row[kind]) is not None]
        if known:
            record.add(system, kind, 100 * float(np.mean(known)), n=len(known), unit="%")
    return list(rows[0])


# --- Inversion to noise -----------------------------------------------------------------


@dataclass(frozen=True)
class InversionOptions:
    """Measure real samples inverted to noise and drawn again, by three schemes and numbers of steps.

    Error: rms difference over the rms of the sample. Noise: rms of the inverted noise, 1 if the flow takes real samples
    for its own. Path: rms of (x' − mean) / s under Flow-SDE, 1 if the transitions were the policy's own. ``straight``
    (one drawn noise) should lose: it says how far the policy would go from there to something else. Fields: a portrait
    flow on faces of unseen speakers, AR-Flow on clips of dev speakers.
    """

    flow: OptionalPath = None
    """Folder of a portrait flow."""
    faces: OptionalPath = None
    """What ``tools.measure_portraits`` wrote, for the portrait flow."""
    corpus: OptionalPath = None
    """Prepared corpus, for AR-Flow."""
    generator: str = "sft"
    """Checkpoint of AR-Flow."""
    steps: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32, 64)
    """Numbers of denoising steps."""
    shift: float = 1.0
    """Shift of the schedule."""
    samples: int = 64
    """Real samples."""


@torch.no_grad()
def inversion(options: InversionOptions, record: Record) -> None:
    """Measure round trips in every velocity field that there is material for."""
    use_one_thread()
    if not (options.corpus or (options.flow and options.faces)):
        raise BadInput("Inversion needs --corpus, or --flow and --faces.")
    for field, velocity, samples in velocity_fields(options):
        for steps in options.steps:
            found = round_trips(velocity, samples, noise_schedule(steps, options.shift))
            for scheme, figures in found.items():
                for metric, value in figures.items():
                    record.add(f"{scheme}, {steps} steps", metric, value, n=len(samples), group=field)


def velocity_fields(options: InversionOptions) -> Iterator[tuple[str, VelocityField, torch.Tensor]]:
    """Yield the name of a velocity field, the field, and real samples of it."""
    if options.flow and options.faces:
        flow, faces = PortraitFlow.from_pretrained(options.flow), FramedFaces.load(options.faces).unseen_speakers()
        chosen = np.random.default_rng(0).choice(len(faces), min(options.samples, len(faces)), replace=False)
        samples = flow.space.encode(frames_to_pictures(faces.small[chosen]))
        context = flow.attributes_in(flow.standardise(torch.from_numpy(faces.attributes[chosen])))
        yield "portrait flow", partial(flow.velocity, context=context), samples
    if options.corpus:
        policy = load_generator(options.generator)
        clips = [clip for clip in load_motion_clips(options.corpus, ("dev",)) if len(clip.motion) > 28]
        items = [SpeechItem(clip.mel, 0, clip.motion) for clip in clips]
        task = TalkingTask(items, 28, None, policy.config.chunk)
        prompts = SpeechPrompts(*draw_prompts(items, options.samples // 4, 28, 0, 0))
        latents = task.real(policy, prompts)
        assert latents is not None, "clips of a corpus have motion"
        context = policy.contexts(task.condition(policy, prompts), latents)
        yield "AR-Flow", partial(policy.velocity, context=context), latents


def round_trips(velocity: VelocityField, samples: torch.Tensor, sigmas: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return error, noise and path of each scheme."""
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))
    straight = inversions.straight_path_states(samples, noise, sigmas)
    euler = inversions.invert_euler(velocity, samples, sigmas)
    two = inversions.invert_two_step(velocity, samples, sigmas)
    second = two[0] + (sigmas[1] - sigmas[0]) * velocity(two[0], sigmas[0])
    schemes = {
        "straight": (straight, solve_ode(velocity, straight[0], sigmas)),
        "Euler": (euler, solve_ode(velocity, euler[0], sigmas)),
        "two-step": (two, inversions.sample_two_step(velocity, two[0], two[1], sigmas)),
        "two-step, noise alone": (two, inversions.sample_two_step(velocity, two[0], second, sigmas)),
    }
    kernel, found = flow_sde_kernel(0.5), {}
    for name, (states, again) in schemes.items():
        residuals = []
        for k in range(len(sigmas) - 2):
            step = kernel(sigmas[k], sigmas[k + 1])
            residuals.append(rms(step.noise(states[k], states[k + 1], velocity(states[k], sigmas[k]))))
        path = float(np.sqrt(np.mean(np.square(residuals))))
        found[name] = {"error": rms(again - samples) / rms(samples), "noise": rms(states[0]), "path": path}
    return found


def rms(values: torch.Tensor) -> float:
    """Return the root mean square."""
    return float(values.square().mean().sqrt())

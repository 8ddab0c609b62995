"""The inside of drawn mouths against the true one, at the size that a portrait is drawn at.

    clip of an unseen speaker ──first frame──► portrait ──the clip's own motion──► drawn frames
                              ──the portrait's crop─────────────────────────────► true frames
    both ──mouth window, twice as fine as the network's──► error, teeth, grey, flicker between the lips

error     mean squared distance of FaceNet's unit features (the formula of LPIPS without its learned weights), weighted
          with the true opening; frames whose opening is at least 0.03 eye distances
teeth     whether a frame shows teeth (``benchmarks.teeth``): balanced accuracy over all frames and over the open ones
grey      share of the interior that is neither enamel, nor flesh, nor dark, drawn less true, open frames
flicker   change from frame to frame between the lips, drawn over true
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
import torch

from benchmarks.material import read_split, use_one_thread, write_picture
from benchmarks.record import Record
from benchmarks.scenes import Scene, track_scene
from benchmarks.teeth import PRESENT, balanced_accuracy, grey_share, teeth_share
from benchmarks.timing import find_source, median_in_turns, run_python
from flowportrait.commands.options import OptionalPath
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import bootstrap_mean, bootstrap_ratio
from flowportrait.media.crop import apply_affine, sample_crop
from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER, opening_outline, outline_mask
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.mouth_geometry import (
    WINDOW_HEIGHT,
    WINDOW_WIDTH,
    MouthOpening,
    mouth_window_transform,
    skin_colour,
)
from flowportrait.rendering.renderer import Renderer
from flowportrait.rendering.self_reenactment import portrait_from_frame, self_reenactment_motion
from flowportrait.rewards.face import FaceNet

if TYPE_CHECKING:
    from flowportrait.rendering.retouch import RetouchFunction
    from flowportrait.rendering.retouch_network import RetouchNet

FINER = 2
SHAPE = (FINER * WINDOW_HEIGHT, FINER * WINDOW_WIDTH)
OPEN = 0.03
"""Opening in eye distances from which on the inside of a mouth is compared."""
INSIDE = 0.9
"""Share of a pixel inside the opening from which on its colour counts."""
CANDIDATE = "with the other weights"
SYSTEMS = ("still portrait", "mouth layers", "as it ships", "true interior")


@dataclass(frozen=True)
class MouthInteriorOptions:
    """Measure the inside of drawn mouths on clips of unseen speakers, frame by frame against the true one.

    Must lose: the still portrait. Then the mouth layers without the retouching network, all as it ships, and as a
    ceiling the true inside pasted between the drawn lips. With --weights the same with other weights of the retouching
    network, and what both networks cost. With --against another version draws the same clips in a process of its own,
    and errors are shares of its.
    """

    data: Path
    """Footage with split.tsv and the folders of clips."""
    folders: tuple[str, ...] = ("talkvid", "hdtf", "celebv")
    """Folders whose clips are measured."""
    split: Literal["dev", "training"] = "dev"
    """Speakers: those that nothing is learned from, or the others, to choose settings on."""
    clips: int = 1000
    """Largest number of clips."""
    frames: int = 50
    """Frames of each, from its first on."""
    size: int = 512
    """Side of the portraits in pixels."""
    systems: tuple[str, ...] = SYSTEMS
    """What is drawn."""
    weights: OptionalPath = None
    """Other weights of the retouching network (.safetensors), measured beside those that ship."""
    against: OptionalPath = None
    """Another checkout, or its folder src."""
    sheet: OptionalPath = None
    """Write a sheet of the most open frames: true, and each system below."""
    figures: OptionalPath = None
    """Keep the figures of every clip in this file (.json)."""
    tracks: OptionalPath = None
    """Folder that keeps the tracks of the clips for later calls."""


class TrueInterior:
    """A mouth model that knows the truth: the true frame's interior, stretched to the drawn opening."""

    def __init__(self) -> None:
        self.frame, self.landmarks = np.zeros((1, 1, 3), np.uint8), np.zeros((478, 3))

    def draw(self, frame: np.ndarray, target: np.ndarray, opening: MouthOpening | None = None) -> None:
        """Draw the interior of ``self.frame`` with its ``self.landmarks`` into the opening of ``target``."""
        chains = [INNER_UPPER, INNER_LOWER[1:-1]]
        ends = [np.concatenate([points[chain, :2] for chain in chains]) for points in (self.landmarks, target)]
        outline = opening_outline(target[INNER_UPPER, :2], target[INNER_LOWER, :2])
        mask = outline_mask(frame.shape[:2], outline, 0.6)
        if mask.max() < 0.1:
            return
        away = thin_plate_map(ends[1], ends[0], frame.shape[:2], mask > 0)
        moved = cv2.remap(self.frame, *away, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        frame[:] = np.round(frame + mask[..., None] * (moved.astype(np.float32) - frame)).astype(np.uint8)


def thin_plate_map(
    at: np.ndarray, values: np.ndarray, shape: tuple[int, int], where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return maps x and y ``[H, W]`` float32 of the smooth function with ``values`` ``[N, 2]`` at points ``[N, 2]``."""
    from scipy.interpolate import RBFInterpolator

    ys, xs = np.nonzero(where)
    maps = np.zeros((2, *shape), np.float32)
    maps[:, ys, xs] = RBFInterpolator(at, values, smoothing=1.0)(np.column_stack([xs, ys]).astype(float)).T
    return maps[0], maps[1]


# --- Clips ------------------------------------------------------------------------------


def clip_paths(options: MouthInteriorOptions) -> list[Path]:
    """Return the clips of the folders and split.

    Raises:
        BadInput: there are none, or split.tsv is missing.
    """
    names = [
        name for name, split in read_split(options.data).items()
        if name.split("/")[0] in options.folders and (split == "dev") == (options.split == "dev")
    ]  # fmt: skip
    paths = [options.data / name for name in names if (options.data / name).is_file()]
    if not paths:
        raise BadInput(f"No clips of {options.split} speakers in {options.data}: give other --folders.")
    return paths[: options.clips]


def tracked_clip(path: Path, options: MouthInteriorOptions) -> Scene:
    """Return the clip, with its tracks from ``options.tracks`` where they are there."""
    if options.tracks is None:
        return track_scene(path, options.frames)
    kept = options.tracks / f"{path.parent.name}-{path.stem}-{options.frames}.npz"
    if kept.is_file():
        from flowportrait.media.video import iter_frames

        with np.load(kept) as file:
            first, points, shapes = int(file["first"]), file["landmarks"], file["blendshapes"]
        frames = [frame for _, frame in zip(range(first + len(points)), iter_frames(path), strict=False)][first:]
        return Scene(path.stem, frames, points, shapes)
    scene = track_scene(path, options.frames)
    options.tracks.mkdir(parents=True, exist_ok=True)
    np.savez(kept, first=options.frames - len(scene.frames), landmarks=scene.landmarks, blendshapes=scene.blendshapes)
    return scene


# --- Measuring one clip -----------------------------------------------------------------


class InteriorTruth:
    """The true frames of a clip in the crop of its portrait, and what drawn frames have of them between the lips."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.portrait = portrait_from_frame(scene.frames[0], scene.landmarks[0], scene.blendshapes[0], size)
        self.points = apply_affine(self.portrait.to_crop, scene.landmarks).astype(np.float64)
        self.frames = [sample_crop(frame, self.portrait.to_crop, size) for frame in scene.frames]
        self._matrices = [fine_window(points) for points in self.points]
        self.windows = self.cut(self.frames)
        self._inside = [interior(p, m) for p, m in zip(self.points, self._matrices, strict=True)]
        gap = np.linalg.norm(self.points[:, 14, :2] - self.points[:, 13, :2], axis=-1)
        self.opening = gap / np.linalg.norm(self.points[:, 33, :2] - self.points[:, 263, :2], axis=-1)
        self._maps = interior_features(self.windows)
        self._skin = [skin_colour(f, p) for f, p in zip(self.frames, self.points, strict=True)]
        self.shares = self._shares(self.windows, self._inside, teeth_share)

    def cut(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        """Return the windows of frames, each where the true frame has its mouth."""
        return [cut_fine(frame, m) for frame, m in zip(frames, self._matrices, strict=True)]

    def compare(self, frames: list[np.ndarray], targets: np.ndarray) -> dict[str, list[float]]:
        """Return, for each frame, the error and the shares of teeth and grey, and the flicker over all.

        Args:
            frames: drawn frames.
            targets: the landmarks for which they were drawn ``[T, 478, 3]``.
        """
        windows = self.cut(frames)
        drawn_inside = [interior(p, m) for p, m in zip(targets, self._matrices, strict=True)]
        gaps = []
        for ours, theirs in zip(interior_features(windows), self._maps, strict=True):
            size = (ours.shape[3], ours.shape[2])
            weight = np.stack([cv2.resize(w, size, interpolation=cv2.INTER_AREA) for w in self._inside])
            gap = (ours - theirs).square().sum(1).numpy()
            gaps.append((gap * weight).sum((1, 2)) / weight.sum((1, 2)).clip(1e-6))
        union = [np.maximum(a, b) for a, b in zip(drawn_inside, self._inside, strict=True)]
        change, true_change = (self._change(w, union) for w in (windows, self.windows))
        return {
            "error": np.mean(gaps, 0).tolist(),
            "teeth": self._shares(windows, drawn_inside, teeth_share),
            "true teeth": self.shares,
            "grey": self._shares(windows, drawn_inside, grey_share),
            "true grey": self._shares(self.windows, self._inside, grey_share),
            "opening": self.opening.tolist(),
            "flicker": [change / max(true_change, 1e-6)],
        }

    def _shares(
        self, windows: list[np.ndarray], inside: list[np.ndarray], share: Callable[[np.ndarray, np.ndarray], float]
    ) -> list[float]:
        return [share(w[i > INSIDE], skin) for w, i, skin in zip(windows, inside, self._skin, strict=True)]

    @staticmethod
    def _change(windows: list[np.ndarray], inside: list[np.ndarray]) -> float:
        weight = np.stack(inside)[1:, ..., None]
        return float((np.abs(np.diff(np.stack(windows).astype(np.float32), axis=0)) * weight).sum() / weight.sum())


def fine_window(points: np.ndarray) -> np.ndarray:
    """Return the map ``[2, 3]`` from pixels to the finer mouth window, for landmarks ``[478, 3]`` px."""
    matrix = mouth_window_transform(points) * FINER
    matrix[:, 2] += (FINER - 1) / 2
    return matrix


def cut_fine(frame: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the finer mouth window ``[144, 192, 3]`` uint8."""
    return cv2.warpAffine(frame, matrix, SHAPE[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def interior(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the share ``[144, 192]`` of each pixel of the finer window that lies between the inner lips."""
    lips = (points[chain, :2] @ matrix[:, :2].T + matrix[:, 2] for chain in (INNER_UPPER, INNER_LOWER))
    return outline_mask(SHAPE, opening_outline(*lips))


def interior_features(windows: list[np.ndarray]) -> list[torch.Tensor]:
    """Return three maps of unit vectors of finer windows."""
    images = torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return [torch.nn.functional.normalize(m, dim=1) for m in FaceNet.load().features(images)]


def draw_system(
    system: str, truth: InteriorTruth, targets: np.ndarray, weights: Path | None = None
) -> list[np.ndarray]:
    """Return the frames that a system draws for target landmarks ``[T, 478, 3]``."""
    if system == "still portrait":
        return [truth.frames[0]] * len(targets)
    network = read_network(weights) if weights is not None and system == CANDIDATE else None
    retouch = system in ("as it ships", CANDIDATE)
    renderer = Renderer(truth.portrait, retouch=retouch, workers=1, network=network)
    if system != "true interior":
        return list(renderer(targets))
    renderer.mouth = knowing = TrueInterior()
    frames = []
    for points, knowing.frame, knowing.landmarks in zip(targets, truth.frames, truth.points, strict=True):
        frames.append(renderer.draw(points))
    return frames


def read_network(weights: Path) -> RetouchNet:
    """Return the retouching network with the weights of a file."""
    from safetensors.torch import load_file

    from flowportrait.rendering.retouch_network import RetouchNet

    return RetouchNet.from_weights(load_file(str(weights))).requires_grad_(False).eval()


def add_network_cost(weights: Path, record: Record) -> None:
    """Add what the shipped network and the other one cost for a frame, run as the product runs them."""
    from flowportrait.rendering.retouch import shipped_retouch_network
    from flowportrait.rendering.retouch_network import OnnxRetouchNet, example_windows, export_onnx

    with tempfile.TemporaryDirectory() as folder:
        export_onnx(read_network(weights), Path(folder) / "model.onnx")
        networks: dict[str, RetouchFunction] = {"as it ships": shipped_retouch_network()}
        networks[CANDIDATE] = OnnxRetouchNet(weights, Path(folder) / "model.onnx")
        windows = example_windows()
        variants = {name: functools.partial(network, windows) for name, network in networks.items()}
        for run in variants.values():
            run()
        times = median_in_turns(variants, 200)
    for name, seconds in times.items():
        record.add(name, "processor", 1000 * seconds, unit="ms/frame", group="cost of the network")
        record.add(name, "share", seconds / times["as it ships"], group="cost of the network")


def drawn_systems(options: MouthInteriorOptions) -> tuple[str, ...]:
    """Return what is drawn: the systems, and that with the other weights where there are some."""
    return options.systems if options.weights is None else (*options.systems, CANDIDATE)


def measure_clip(scene: Scene, options: MouthInteriorOptions) -> tuple[dict[str, dict[str, list[float]]], np.ndarray]:
    """Return the figures of every system on a clip, and a column of the sheet: true and drawn, at the widest mouth."""
    truth = InteriorTruth(scene, options.size)
    basis = MotionBasis.load()
    _, identity = basis.encode(truth.portrait.landmarks[None], truth.portrait.blendshapes[None], smooth=False)
    targets = basis.decode(self_reenactment_motion(scene.landmarks, scene.blendshapes), identity).numpy()
    figures: dict[str, dict[str, list[float]]] = {}
    # The frame that shows most teeth; where none does, the widest.
    shown = int((np.array(truth.shares) * (truth.opening > OPEN) + 0.01 * truth.opening).argmax())
    pictures = [truth.windows[0], truth.windows[shown]]
    for system in drawn_systems(options):
        places = np.tile(truth.points[:1], (len(targets), 1, 1)) if system == "still portrait" else targets
        frames = draw_system(system, truth, targets, options.weights)
        figures[system] = truth.compare(frames, places)
        pictures.append(truth.cut(frames)[shown])
    return figures, np.vstack(pictures)


# --- Everything -------------------------------------------------------------------------

Clips = dict[str, dict[str, dict[str, list[float]]]]
"""Clip → system → metric → a value for each frame."""


def mouth_interior(options: MouthInteriorOptions, record: Record) -> None:
    """Measure the clips, and those of another version beside them."""
    use_one_thread()
    clips: Clips = {}
    before = _figures_of(options) if options.against is not None else {}
    columns = []
    for path in clip_paths(options):
        clips[f"{path.parent.name}/{path.stem}"], column = measure_clip(tracked_clip(path, options), options)
        columns.append(column)
    if options.sheet is not None:
        write_picture(options.sheet, np.hstack(columns))
    if options.figures is not None:
        options.figures.write_text(json.dumps(clips))
    drawn = {f"{system}, before": {n: c[system] for n, c in before.items()} for system in _compared(options)}
    drawn |= {system: {n: c[system] for n, c in clips.items()} for system in drawn_systems(options)}
    drawn = {system: figures for system, figures in drawn.items() if figures}
    base = next((name for name in ("as it ships, before", "as it ships") if name in drawn), None)
    for system, figures in drawn.items():
        _add(record, system, figures, drawn[base] if base else figures, base)
    if options.weights is not None:
        add_network_cost(options.weights, record)


def _compared(options: MouthInteriorOptions) -> tuple[str, ...]:
    return tuple(system for system in options.systems if system in ("mouth layers", "as it ships"))


def _figures_of(options: MouthInteriorOptions) -> Clips:
    """Return the figures of the version ``options.against``, measured by a process of its own."""
    assert options.against is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        words = ["-m", "benchmarks", "mouth-interior", "--figures", str(path)]
        for field in dataclasses.fields(options):
            value = getattr(options, field.name)
            if field.name in ("against", "sheet", "figures", "systems", "weights") or value is None:
                continue
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{field.name}", *(str(v.resolve() if isinstance(v, Path) else v) for v in values)]
        run_python([*words, "--systems", *_compared(options)], find_source(options.against))
        result: Clips = json.loads(path.read_text())
        return result


def _add(
    record: Record,
    system: str,
    figures: dict[str, dict[str, list[float]]],
    reference: dict[str, dict[str, list[float]]],
    base: str | None,
) -> None:
    """Add the figures of a system over clips."""
    used = [name for name, clip in figures.items() if (np.array(clip["opening"]) > OPEN).any()]

    def means(clips: dict[str, dict[str, list[float]]], metric: str) -> np.ndarray:
        return np.array([np.mean(np.array(clips[n][metric])[np.array(clips[n]["opening"]) > OPEN]) for n in used])

    error = means(figures, "error")
    record.add(system, "error", bootstrap_mean(error))
    if base:
        record.add(system, f"share of {base}", bootstrap_ratio(error, means(reference, "error"), 1000))
    for part in ("all frames", "open frames"):
        chosen = [np.array(clip["opening"]) > (OPEN if part == "open frames" else -1.0) for clip in figures.values()]
        true, found = (
            np.concatenate([np.array(c[m])[k] > PRESENT for c, k in zip(figures.values(), chosen, strict=True)])
            for m in ("true teeth", "teeth")
        )
        record.add(system, "balanced accuracy", balanced_accuracy(true, found), n=len(true), group=f"teeth, {part}")
        record.add(system, "true frames with teeth", float(true.mean()), n=len(true), group=f"teeth, {part}")
        record.add(system, "drawn frames with teeth", float(found.mean()), n=len(true), group=f"teeth, {part}")
    grey = means(figures, "grey")
    record.add(system, "grey", bootstrap_mean(grey))
    record.add(system, "grey of true frames", float(means(figures, "true grey").mean()))
    flicker = np.array([figures[name]["flicker"][0] for name in used])
    record.add(system, "flicker over real", bootstrap_mean(flicker))

"""What a head uncovers when it turns, against what is really behind it.

    cut-out person over a generated background ──► portrait ──► head turned by ±12° ──► uncovered pixels
    the same background                                                                    against these

A pixel is uncovered if the person covers it in the photo and no longer once the person's true share is moved by the
mesh. Every version is measured on the same pixels, so hair that is taken for background, and stays, is an error too.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from tools.cutouts import Cutout, cut_out_by_mask, cut_out_by_wall

from benchmarks.backgrounds import BACKGROUNDS, make_background
from benchmarks.material import mean_of_known, read_split, spread_evenly, use_one_thread, write_picture
from benchmarks.picture import arkit_motion
from benchmarks.record import Record
from benchmarks.timing import find_source, run_python
from flowportrait.commands.options import OptionalPath
from flowportrait.errors import BadInput
from flowportrait.evaluation.networks import load_perceptual_stages
from flowportrait.evaluation.statistics import bootstrap_ratio
from flowportrait.media.crop import sample_crop
from flowportrait.media.portrait import Portrait
from flowportrait.rendering.face_regions import head_weight, segment_person, skin_without_openings
from flowportrait.rendering.layers import Backdrop
from flowportrait.rendering.mesh import HeadMesh, Rasterizer
from flowportrait.rendering.renderer import MotionCodec

_PERSON, _GONE = 0.1, 0.02
"""Least share of a person who covers a pixel, and largest share of one who does not."""

_MARGIN = 3
"""Pixels around the moved person that are not counted, as versions may differ by a fraction of a pixel there."""

_EDGE = 12
"""Pixels around the outline, before and after, of the region that is measured as "hair border"."""

_LOOK, _LARGEST = 256, 600
"""Side at which features are compared, and largest side of the composites."""

_SHEET_ROWS, _SHEET_SIDE = 8, 384
BEFORE, NOW, BLURRED, TRUE = "before", "now", "blurred surroundings", "true background"


@dataclass(frozen=True)
class UncoveredOptions:
    """Measure the error of the pixels that a turning head uncovers.

    People of london/ and celebamask/ are cut out and put over print, shelves, stripes and foliage. Colour is the mean
    difference of the uncovered pixels; perceptual is the formula of LPIPS on the image features over them; border is
    the colour difference of everything beside the outline, to the true person, moved by the same mesh, before the true
    background. Below: surroundings that are blurred into the hole. Ceiling: the true background, with this version's
    matte.
    """

    data: Path
    """Footage with london/, celebamask/ and split.tsv."""
    against: OptionalPath = None
    """Another checkout, or its folder src."""
    people: int = 24
    """Number of people, half of each folder; each over every kind of background."""
    split: str = "dev"
    """Split of the people; settings are chosen on renderer."""
    yaw: float = 12.0
    """Degrees by which heads turn to either side."""
    sheets: OptionalPath = None
    """Folder of contact sheets: photo, before, now, true."""
    frames: OptionalPath = None
    """Only draw the portraits of this file (.npz), and write their frames over it."""


@dataclass(frozen=True)
class Case:
    """A person over a background.

    Attributes:
        name: the photo's name.
        kind: kind of the background.
        portrait: the composite as a portrait.
        cutout: the person, in the portrait's crop.
        background: what is behind, in the portrait's crop ``[S, S, 3]`` float32.
        inside: pixels of the crop that the photo has ``[S, S]`` bool.
    """

    name: str
    kind: str
    portrait: Portrait
    cutout: Cutout
    background: np.ndarray
    inside: np.ndarray


def uncovered(options: UncoveredOptions, record: Record) -> None:
    """Measure this version, the one it is compared with, the baseline and the ceiling."""
    use_one_thread()
    if options.frames is not None:
        _draw_file(options.frames, options.yaw)
        return
    cases = list(read_cases(options))
    before = _frames_of(options, cases) if options.against is not None else []
    errors: dict[str, dict[str, list[dict[str, float]]]] = {}
    sheet: list[np.ndarray] = []
    for number, case in enumerate(cases):
        codec = MotionCodec(case.portrait, retouch=False)
        truth = TrueFrames(case, codec, options.yaw)
        # Not imported above: the version that is compared with has no such module.
        from flowportrait.rendering.matting import refine_matte

        systems = {NOW: draw_turned(codec, options.yaw)}
        if before:
            systems = {BEFORE: before[number]} | systems
        for name, behind in ((BLURRED, blurred_surroundings(case)), (TRUE, case.background)):
            skin = skin_without_openings(case.portrait.crop, case.portrait.landmarks)
            matte = refine_matte(skin, segment_person(case.portrait.crop, case.portrait.landmarks))
            codec.renderer.show(Backdrop(skin, matte, np.round(behind).astype(np.uint8)))
            systems[name] = draw_turned(codec, options.yaw)
        for name, frames in systems.items():
            errors.setdefault(case.kind, {}).setdefault(name, []).append(truth.errors(frames))
        if options.sheets is not None:
            shown = [case.portrait.crop, *(systems[name][1] for name in (BEFORE, NOW) if name in systems)]
            sheet.append(np.hstack([cv2.resize(p, (_SHEET_SIDE, _SHEET_SIDE), interpolation=cv2.INTER_AREA)
                                    for p in (*shown, truth.frames[1])]))  # fmt: skip
            if len(sheet) == _SHEET_ROWS:
                write_picture(options.sheets / f"sheet_{number // _SHEET_ROWS:02d}.png", np.vstack(sheet))
                sheet = []
    for kind, systems_of_kind in errors.items():
        _add_rows(record, systems_of_kind, kind)
    together = {name: [row for kind in errors.values() for row in kind[name]] for name in next(iter(errors.values()))}
    _add_rows(record, together, "all")


def _add_rows(record: Record, systems: dict[str, list[dict[str, float]]], group: str) -> None:
    for name, rows in systems.items():
        for metric in rows[0]:
            values = np.array([row[metric] for row in rows])
            record.add(name, metric, mean_of_known(values), group=group)
            if name == NOW and BEFORE in systems:
                known = np.array([row[metric] for row in systems[BEFORE]])
                both = np.isfinite(values) & np.isfinite(known)
                record.add("now / before", metric, bootstrap_ratio(values[both], known[both]), group=group)


def read_cases(options: UncoveredOptions) -> Iterator[Case]:
    """Yield every person over every background."""
    for number, path in enumerate(people_of(options.data, options.split, options.people)):
        cutout = (cut_out_by_wall if path.parent.name == "london" else cut_out_by_mask)(path)
        size = min(len(cutout.share), _LARGEST)
        cutout = Cutout(*(cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
                          for part in (cutout.colours, cutout.share)))  # fmt: skip
        for kind in BACKGROUNDS:
            background = make_background(kind, size, number)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    portrait = Portrait.from_image(cutout.before(background))
                except BadInput:
                    continue

            def cut(picture: np.ndarray, portrait: Portrait = portrait) -> np.ndarray:
                return sample_crop(picture.astype(np.float32), portrait.to_crop, len(portrait.crop))

            inside = sample_crop(np.ones((size, size), np.float32), portrait.to_crop, len(portrait.crop),
                                 border=cv2.BORDER_CONSTANT) > 0.99  # fmt: skip
            moved = Cutout(cut(cutout.colours), cut(cutout.share).clip(0, 1))
            yield Case(path.stem, kind, portrait, moved, cut(background).clip(0, 255), inside)


def people_of(data: Path, split: str, count: int) -> list[Path]:
    """Return photos of people of a split, half from each folder, spread evenly."""
    names = sorted(name for name, part in read_split(data).items() if part == split)
    london = [data / f"{name}_neutral.jpg" for name in names if name.startswith("london/")]
    masked = [data / name for name in names if name.startswith("celebamask/")]
    masked = [path if path.suffix == ".jpg" else path.with_suffix(".jpg") for path in masked]
    return [*spread_evenly(london, count // 2), *spread_evenly(masked, count - count // 2)]


def draw_turned(codec: MotionCodec, yaw: float) -> np.ndarray:
    """Return the head turned to either side ``[2, S, S, 3]`` uint8."""
    motion = torch.cat([arkit_motion({"headYaw": turn}) for turn in (-yaw, yaw)])
    return np.stack(list(codec.decode(motion)))


def blurred_surroundings(case: Case) -> np.ndarray:
    """Return the background with what the person hides blurred into it from around: the baseline."""
    known = (case.cutout.share < _GONE).astype(np.float32)
    sigma = 0.04 * len(known)
    weight = cv2.GaussianBlur(known, (0, 0), sigma)[..., None]
    smooth = cv2.GaussianBlur(case.background * known[..., None], (0, 0), sigma) / weight.clip(1e-4)
    smooth = np.where(weight > 1e-3, smooth, cv2.blur(case.background, (9, 9)))
    return np.where(known[..., None] > 0, case.background, smooth)


class TrueFrames:
    """What the frames of a case should look like beside the head.

    Attributes:
        frames: the true person, moved by the true person's mesh, before the true background ``[2, S, S, 3]`` uint8.
    """

    def __init__(self, case: Case, codec: MotionCodec, yaw: float) -> None:
        crop, landmarks = case.portrait.crop, case.portrait.landmarks
        size = len(crop)
        mask = (cv2.resize(case.cutout.share, (256, 256), interpolation=cv2.INTER_AREA) > 0.5).astype(np.uint8)
        mesh = HeadMesh(crop, landmarks, head_weight(mask, landmarks, size))
        rasterizer = Rasterizer(mesh.triangles, mesh.source, size)
        motion = torch.cat([arkit_motion({"headYaw": turn}) for turn in (-yaw, yaw)])
        share, colours, background = case.cutout.share, case.cutout.colours, case.background
        self._background, frames, self._uncovered, self._border = background, [], [], []
        spread = np.ones((2 * _EDGE + 1, 2 * _EDGE + 1), np.uint8)
        for points in codec.landmarks(motion):
            source = rasterizer(mesh(points.astype(np.float64)))
            moved = cv2.remap(share, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            drawn = cv2.remap(colours, source, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            frames.append(np.round(moved[..., None] * drawn + (1 - moved[..., None]) * background).clip(0, 255))
            near = cv2.dilate(moved, np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8))
            self._uncovered.append((share > _PERSON) & (near < _GONE) & case.inside)
            either = np.maximum(cv2.dilate(np.maximum(share, moved), spread), 0)
            both = cv2.erode(np.minimum(share, moved), spread)
            self._border.append((either > _PERSON) & (both < 1 - _PERSON) & case.inside)
        self.frames = np.stack(frames).astype(np.uint8)

    def errors(self, frames: np.ndarray) -> dict[str, float]:
        """Return the errors of frames ``[2, S, S, 3]``, means over both turns."""
        found: dict[str, list[float]] = {"colour": [], "perceptual": [], "border": []}
        for frame, true, hole, border in zip(frames, self.frames, self._uncovered, self._border, strict=True):
            if hole.sum() < _EDGE**2:
                continue
            found["colour"].append(float(np.abs(frame[hole] - self._background[hole]).mean()))
            found["border"].append(float(np.abs(frame[border].astype(float) - true[border]).mean()))
            found["perceptual"].append(_perceptual(frame, self._background, hole))
        return {metric: float(np.mean(values)) if values else np.nan for metric, values in found.items()}


def _perceptual(frame: np.ndarray, background: np.ndarray, hole: np.ndarray) -> float:
    """Return the distance of image features over the hole, of the background with and without the frame in it."""
    filled = np.where(hole[..., None], frame, background).astype(np.float32)
    pair = [cv2.resize(part, (_LOOK, _LOOK), interpolation=cv2.INTER_AREA) for part in (filled, background)]
    with torch.inference_mode():
        maps = _stages()(torch.from_numpy(np.stack(pair)).permute(0, 3, 1, 2) / 255)
    distances = []
    for features in maps:
        unit = torch.nn.functional.normalize(features, dim=1)
        gap = (unit[0] - unit[1]).square().sum(0).numpy()
        share = cv2.resize(hole.astype(np.float32), gap.shape[::-1], interpolation=cv2.INTER_AREA)
        distances.append(float((gap * share).sum() / share.sum()))
    return float(np.mean(distances))


_stages = lru_cache(maxsize=1)(load_perceptual_stages)


def _frames_of(options: UncoveredOptions, cases: list[Case]) -> list[np.ndarray]:
    """Return what another version draws of the cases, in a process of its own."""
    assert options.against is not None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "frames.npz"
        arrays = {f"{number} {name}": getattr(case.portrait, name)
                  for number, case in enumerate(cases) for name in _PORTRAIT}  # fmt: skip
        np.savez(target, **arrays)
        words = ["-m", "benchmarks", "uncovered", "--data", str(options.data.resolve()), "--yaw", str(options.yaw)]
        run_python([*words, "--frames", str(target)], find_source(options.against))
        with np.load(target) as drawn:
            return [drawn[str(number)] for number in range(len(cases))]


_PORTRAIT = ("crop", "landmarks", "blendshapes", "to_crop")


def _draw_file(path: Path, yaw: float) -> None:
    """Replace the portraits in a file by what is drawn of them."""
    with np.load(path) as arrays:
        count = 1 + max(int(name.split()[0]) for name in arrays)
        parts = [[arrays[f"{number} {name}"] for name in _PORTRAIT] for number in range(count)]
    drawn = {str(number): draw_turned(MotionCodec(Portrait(part[0], *part), retouch=False), yaw)
             for number, part in enumerate(parts)}  # fmt: skip
    np.savez(path, **drawn)  # type: ignore[arg-type]

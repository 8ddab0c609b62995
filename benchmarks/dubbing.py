"""Mouths that are redrawn in videos: what it costs the picture, and what is seen to be before the mouth."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.material import picture_paths, read_dev_names, use_one_thread, write_picture
from benchmarks.picture import arkit_motion
from benchmarks.record import Record
from benchmarks.scenes import (
    Scene,
    add_drawings,
    frame_change,
    mouth_error,
    mouth_features,
    mouth_interior,
    read_scenes,
)
from flowportrait.commands.options import OptionalPath
from flowportrait.errors import BadInput
from flowportrait.media.crop import apply_affine
from flowportrait.media.faces import FaceTracker, face_yaw, interpolate_missing_frames
from flowportrait.media.image import read_image
from flowportrait.media.occlusion import COVERED_THRESHOLD, OCCLUSION_VIEW, OcclusionDetector, covered_lower_face_share
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.rendering.dubbing import DubbedVideo, MouthMemory, redraw_mouth
from flowportrait.rendering.footage import OCCLUDED_SHARE, occluded_frames, track_face_in_video
from flowportrait.rendering.motion_basis import LOWER_FACE, MotionBasis
from flowportrait.rendering.mouth_geometry import WINDOW_HEIGHT, WINDOW_WIDTH, cut_mouth_window, mouth_window_transform
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.retouch import MouthWindows

# --- Redrawn mouths ---------------------------------------------------------------------

LATER = 8
"""Frames (0.32 s): by then lips say something else, while head and light are about the same."""
NEAR_CUT = 4
"""Frames before and after a cut that have figures of their own."""
SIDE_VIEW = 15.0
"""Degrees of yaw from which a portrait is seen from the side."""


@dataclass(frozen=True)
class DubbingOptions:
    """Measure what redrawing the mouth in a video costs the picture.

    Each frame of an unseen speaker gets the lips of a later frame of the clip, which shows what should come out. Must
    lose: the unchanged frame. Then the warp with mouth layers, and with retouching, as it ships. With cuts: videos of
    two speakers, as one shot (must lose), shot by shot, and each part alone (ceiling), also within four frames of the
    cut. With portraits: photos seen from the side that turn by 20 degrees, over the video before dubbing.
    """

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage that it was prepared from."""
    clips: int = 8
    """Clips of dev speakers."""
    frames: int = 20
    """Frames of each that are redrawn."""
    cuts: int = 0
    """Videos of two speakers with a cut between them."""
    portraits: OptionalPath = None
    """Folder of photos; those seen from the side are turned."""
    sheet: OptionalPath = None
    """PNG of the middle frame of every clip: truth, unchanged and redrawn, to look at."""


class LaterLips:
    """The frames of a scene, and what they should become: the same frames with the lips of later ones."""

    def __init__(self, scene: Scene) -> None:
        self.frames, self.landmarks = scene.frames[:-LATER], scene.landmarks[:-LATER]
        basis = MotionBasis.load()
        motion, identity = basis.encode(scene.landmarks, scene.blendshapes)
        spoken = motion[:-LATER].clone()
        spoken[:, LOWER_FACE] = motion[LATER:, LOWER_FACE]
        moved = basis.decode(spoken, identity) - basis.decode(motion[:-LATER], identity)
        self.target = self.landmarks + moved.numpy()
        self._matrices = [mouth_window_transform(points) for points in self.target]
        self._inside = [mouth_interior(p, m) for p, m in zip(self.target, self._matrices, strict=True)]
        later = [mouth_window_transform(points) for points in scene.landmarks[LATER:]]
        self.true = [cut_mouth_window(frame, m) for frame, m in zip(scene.frames[LATER:], later, strict=True)]
        inside = [mouth_interior(p, m) for p, m in zip(scene.landmarks[LATER:], later, strict=True)]
        self._true_change = frame_change(self.true, inside)

    def windows(self, drawn: list[np.ndarray]) -> list[np.ndarray]:
        """Return the lower faces of drawn frames."""
        return [cut_mouth_window(frame, m) for frame, m in zip(drawn, self._matrices, strict=True)]

    def compare(self, drawn: list[np.ndarray], near: slice | None = None) -> dict[str, float]:
        """Return figures; ``near``: the frames that also have figures of their own."""
        windows = self.windows(drawn)
        figures = {
            "mouth error": mouth_error(mouth_features(windows), mouth_features(self.true)),
            "flicker": frame_change(windows, self._inside) / self._true_change,
            "seam": redrawn_seam(drawn, self.frames),
        }
        if near is not None:
            figures["mouth error near cut"] = mouth_error(
                mouth_features(windows[near]), mouth_features(self.true[near])
            )
            figures["flicker near cut"] = frame_change(windows[near], self._inside[near]) / self._true_change
        return figures


def redrawn_seam(drawn: list[np.ndarray], frames: list[np.ndarray]) -> float:
    """Return the step between neighbouring pixels where the redrawn region ends, over that in the unchanged frames."""
    sums = np.zeros(2)
    for new, old in zip(drawn, frames, strict=True):
        touched = (np.abs(new.astype(int) - old).max(2) > 1).astype(np.uint8)
        whole = cv2.morphologyEx(touched, cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        band = cv2.morphologyEx(whole, cv2.MORPH_GRADIENT, np.ones((5, 5), np.uint8)) > 0
        for place, image in enumerate((new, old)):
            step = np.abs(np.diff(image.astype(int), axis=0)).mean(2)[:, :-1]
            step = step + np.abs(np.diff(image.astype(int), axis=1)).mean(2)[:-1]
            sums[place] += step[band[:-1, :-1]].sum()
    return float(sums[0] / sums[1]) if sums[1] else 1.0


def dubbing(options: DubbingOptions, record: Record) -> None:
    """Measure single shots, then cuts, then turned heads."""
    use_one_thread()
    length = options.frames + LATER
    results, pictures = [], []
    for scene in read_scenes(options.corpus, options.data, options.clips, length):
        figures, picture = redraw_scene(scene)
        results.append(figures)
        pictures.append(picture)
    if results:
        add_drawings(record, results, "warp, mouth layers", f"{len(results)} clips", median=True)
    if options.sheet and pictures:
        write_picture(options.sheet, np.vstack(pictures))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.cuts:
            scenes = list(map(to_square, read_scenes(options.corpus, options.data, 2 * options.cuts, length)))
            results = []
            for pair in zip(scenes[::2], scenes[1::2], strict=True):
                try:
                    results.append(dub_cut(pair, folder, record))
                except BadInput as error:
                    record.note(f"{pair[0].name} and {pair[1].name} are left out: {error}")
            if results:
                add_drawings(record, results, "each part alone", f"{len(results)} cuts", median=True)
        if options.portraits:
            scene = next(read_scenes(options.corpus, options.data, 1, length))
            spoken, _ = MotionBasis.load().encode(scene.landmarks, scene.blendshapes)
            for path in picture_paths(options.portraits):
                portrait = Portrait.from_image(read_image(path))
                yaw = float(face_yaw(portrait.landmarks))
                if abs(yaw) > SIDE_VIEW:
                    for metric, value in dub_turning_head(portrait, spoken, folder).items():
                        record.add(f"{path.stem}, {yaw:.0f} degrees", metric, value, group="turned heads")


def redraw_scene(scene: Scene) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Return the figures of each way of redrawing, and a picture of the middle frame in each."""
    goal = LaterLips(scene)

    def no_retouching(windows: MouthWindows) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros_like(windows.base[:, :2]), torch.zeros_like(windows.base)

    def redraw(memory: MouthMemory) -> list[np.ndarray]:
        return [redraw_mouth(*each, memory) for each in zip(goal.frames, goal.landmarks, goal.target, strict=True)]

    systems = {
        "unchanged frame": goal.frames,
        "warp, mouth layers": redraw(MouthMemory.from_video(goal.frames, goal.landmarks, no_retouching)),
        "retouched, as it ships": redraw(MouthMemory.from_video(goal.frames, goal.landmarks, None)),
    }
    middle = len(goal.frames) // 2
    picture = np.hstack([goal.true[middle], *(goal.windows(drawn)[middle] for drawn in systems.values())])
    figures = {name: goal.compare(drawn) for name, drawn in systems.items()}
    return figures, cv2.resize(picture, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC)


def to_square(scene: Scene) -> Scene:
    """Return the scene at 256 x 256 px, so that any two fit into one video."""
    scale = np.array([256 / scene.frames[0].shape[1], 256 / scene.frames[0].shape[0]])
    frames = [cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA) for frame in scene.frames]
    matrix = np.column_stack([np.diag(scale), (scale - 1) / 2])
    return replace(scene, frames=frames, landmarks=apply_affine(matrix, scene.landmarks))


def dub_cut(pair: tuple[Scene, Scene], folder: Path, record: Record) -> dict[str, dict[str, float]]:
    """Return the figures of one video of two speakers, tracked and dubbed from its file."""
    goals, basis = [LaterLips(scene) for scene in pair], MotionBasis.load()
    lips = [basis.encode(scene.landmarks, scene.blendshapes)[0][LATER:] for scene in pair]
    both, cut = [*goals[0].frames, *goals[1].frames], len(goals[0].frames)

    def dub(frames: list[np.ndarray], spoken: torch.Tensor, one_shot: bool = False) -> list[np.ndarray]:
        write_video(folder / "video.mp4", frames, None, crf=8)
        footage = track_face_in_video(folder / "video.mp4")
        if frames is both and footage.starts != [0, cut]:
            record.note(f"{pair[0].name} and {pair[1].name}: shots begin at {footage.starts}, not at {[0, cut]}.")
        return list(DubbedVideo(replace(footage, starts=[0]) if one_shot else footage, [spoken]))

    systems = {
        "unchanged frame": both,
        "as one shot": dub(both, torch.cat(lips), one_shot=True),
        "shot by shot, as it ships": dub(both, torch.cat(lips)),
        "each part alone": [f for goal, part in zip(goals, lips, strict=True) for f in dub(goal.frames, part)],
    }
    result = {}
    for name, drawn in systems.items():
        parts = [
            goals[0].compare(drawn[:cut], slice(cut - NEAR_CUT, None)),
            goals[1].compare(drawn[cut:], slice(0, NEAR_CUT)),
        ]
        result[name] = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
    return result


def dub_turning_head(portrait: Portrait, spoken: torch.Tensor, folder: Path) -> dict[str, float]:
    """Return the figures of a video in which a portrait turns by 20 degrees to either side, dubbed."""
    codec, path = MotionCodec(portrait), folder / "turning.mp4"
    turns = [arkit_motion({"headYaw": 20 * np.sin(2 * np.pi * t / len(spoken))}) for t in range(len(spoken))]
    write_video(path, codec.decode(torch.cat(turns)), None, crf=8)
    frames, footage = list(iter_frames(path)), track_face_in_video(path)
    drawn = list(DubbedVideo(footage, [spoken]))
    landmarks = interpolate_missing_frames(footage.faces.landmarks, footage.faces.valid)
    matrices = [mouth_window_transform(points) for points in landmarks]
    whole = [np.ones((WINDOW_HEIGHT, WINDOW_WIDTH), np.float32)] * len(frames)
    old, new = ([cut_mouth_window(f, m) for f, m in zip(each, matrices, strict=True)] for each in (frames, drawn))
    return {
        "flicker": frame_change(new, whole) / frame_change(old, whole),
        "seam": redrawn_seam(drawn, frames),
        "faces found": float(footage.faces.valid.mean()),
    }


# --- What is before a mouth -------------------------------------------------------------

FOLDERS, PHOTO_FOLDERS = ("talkvid", "hdtf", "celebv", "clips", "anchors", "grid"), ("celebamask", "london")
SHARES = {"15 to 30 %": (0.15, 0.3), "30 to 60 %": (0.3, 0.6), "over 60 %": (0.6, 1.01)}
"""Share of mouth and jaw that a drawn thing covers; what covers less is hardly before them."""
STEP = 3
DRAWN_THINGS = 400


@dataclass(frozen=True)
class OcclusionOptions:
    """Measure whether what is before a mouth is found, and nothing else.

    People whom the network has not seen (dev). First the clips and photos as they are, where an alarm is false unless
    the sheet shows that something is there. Then drawn things before the same mouths, by how much they cover.
    """

    data: Path
    """Footage with split.tsv."""
    clips: int = 60
    """Clips of each folder; those of GRID are other sentences of a man whom the network has seen."""
    photos: int = 170
    """Photos of each folder."""
    sheet: OptionalPath = None
    """PNG of the 96 faces that look covered most."""
    seed: int = 0
    """Seed of the drawn things."""


@dataclass(frozen=True)
class Face:
    """A face as the network is shown it, and the share of it that is covered."""

    view: np.ndarray
    landmarks: np.ndarray
    covered: float


def find_faces(pictures: Iterable[np.ndarray], tracker: FaceTracker, detector: OcclusionDetector) -> list[Face]:
    """Return the largest face of each picture that shows one."""
    faces = []
    for picture in pictures:
        if found := tracker.detect(picture):
            points = found[0][0]
            faces.append(Face(OCCLUSION_VIEW.cut(picture, points), points, detector.covered_share(picture, points)))
    return faces


def occlusion(options: OcclusionOptions, record: Record) -> None:
    """Measure false alarms, then what is found of drawn things."""
    use_one_thread()
    detector, everything, dev = OcclusionDetector(), list[Face](), set(read_dev_names(options.data))

    def dev_files(folder: str) -> list[Path]:
        files = [path for path in sorted((options.data / folder).iterdir()) if path.suffix in (".jpg", ".mp4", ".mpg")]
        names = {path: (path.name, path.stem, path.stem.partition("_")[0]) for path in files}
        return [path for path in files if any(f"{folder}/{name}" in dev for name in names[path])]

    for folder in (name for name in FOLDERS if (options.data / name).is_dir()):
        paths = dev_files(folder)
        alarms, names = list[np.ndarray](), list[str]()
        for path in paths[:: max(1, -(-len(paths) // options.clips))]:
            with FaceTracker() as tracker:
                faces = find_faces((f for i, f in enumerate(iter_frames(path)) if i % STEP == 0), tracker, detector)
            if faces:
                alarms.append(occluded_frames(np.array([face.covered for face in faces])))
                names += [path.name] if alarms[-1].any() else []
                everything += faces
        if not alarms:
            continue
        add_alarms(record, folder, np.concatenate(alarms))
        record.add(folder, "clips with an alarm", len(names), n=len(alarms), group="as they are")
        if names:
            record.note(f"{folder}: alarms in {', '.join(names)}.")
    with FaceTracker(still=True) as tracker:
        for folder in (name for name in ("portraits", *PHOTO_FOLDERS) if (options.data / name).is_dir()):
            photo_folder = options.data / folder
            paths = picture_paths(photo_folder) if folder == "portraits" else dev_files(folder)
            faces = find_faces(map(read_image, paths[: options.photos]), tracker, detector)
            add_alarms(record, f"{folder}, photos", np.array([face.covered > COVERED_THRESHOLD for face in faces]))
            everything += faces
    if not everything:
        raise BadInput(f"{options.data} shows no face of a dev speaker: give footage with the folders of split.tsv.")
    add_detection(record, everything, detector, options.seed)
    if options.sheet:
        worst = sorted(everything, key=lambda face: -face.covered)[:96]
        views = [cv2.resize(face.view, (128, 128), interpolation=cv2.INTER_CUBIC) for face in worst]
        for view, face in zip(views, worst, strict=True):
            cv2.putText(view, f"{face.covered:.2f}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 0))
        views += [np.zeros_like(views[0])] * (-len(views) % 12)
        rows = [np.hstack(views[start : start + 12]) for start in range(0, len(views), 12)]
        write_picture(options.sheet, np.vstack(rows))


def add_alarms(record: Record, system: str, alarms: np.ndarray) -> None:
    """Add the share of faces that count as covered."""
    if len(alarms):
        share = 100 * float(alarms.mean())
        record.add(system, "faces with an alarm", share, n=len(alarms), unit="%", group="as they are")


def add_detection(record: Record, faces: list[Face], detector: OcclusionDetector, seed: int) -> None:
    """Add the shares of drawn things that are found, by kind and by how much they cover."""
    from tools.occluders import SHAPES, add_occluder

    rng = np.random.default_rng(seed)
    for kind in SHAPES:
        found: dict[str, list[bool]] = defaultdict(list)
        for _ in range(DRAWN_THINGS):
            face, other = (faces[i] for i in rng.integers(len(faces), size=2))
            picture, alpha = add_occluder(
                face.view.astype(np.float32), OCCLUSION_VIEW, rng, other.view.astype(np.float32), kind
            )
            covers = covered_lower_face_share(alpha, face.landmarks)
            share = detector.covered_share_of_view(picture.clip(0, 255).astype(np.uint8), face.landmarks)
            for name, (low, high) in SHARES.items():
                if low < covers <= high:
                    found[name].append(share > OCCLUDED_SHARE)
        for name in SHARES:
            rate = 100 * float(np.mean(found[name])) if found[name] else None
            record.add(kind, f"covers {name}", rate, n=len(found[name]), unit="%", group="drawn things that are found")

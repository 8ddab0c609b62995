"""Drawn pictures against true ones: self-reenactment, identity, the background, and contact sheets to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from benchmarks.drawing import draw_and_measure, generate_motion
from benchmarks.material import mean_of_known, picture_paths, speech_paths, use_one_thread, write_picture
from benchmarks.paired import metric_value
from benchmarks.record import Record
from benchmarks.scenes import (
    Scene,
    add_drawings,
    frame_change,
    mouth_error,
    mouth_features,
    mouth_interior,
    read_scenes,
    track_scene,
)
from flowportrait.commands.options import Flag, OptionalPair, OptionalPath
from flowportrait.errors import BadInput
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.crop import paste_back
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.face_regions import (
    INNER_LOWER,
    INNER_UPPER,
    OUTER_LOWER,
    OUTER_UPPER,
    head_weight,
    opening_outline,
    outline_mask,
    person_matte,
    segment_person,
    skin_without_openings,
)
from flowportrait.rendering.layers import Backdrop
from flowportrait.rendering.mesh import HeadMesh, Rasterizer
from flowportrait.rendering.motion_basis import LOWER_FACE, MotionBasis
from flowportrait.rendering.motion_files import ARKIT_SHAPES, blendshapes_to_motion
from flowportrait.rendering.mouth_geometry import (
    WINDOW_HEIGHT,
    WINDOW_WIDTH,
    MouthOpening,
    cut_mouth_window,
    mouth_window_transform,
    skin_colour,
)
from flowportrait.rendering.renderer import MotionCodec, Renderer
from flowportrait.rendering.self_reenactment import self_reenactment_motion
from flowportrait.rendering.vae_codec import TinyAutoencoder, VaeCodec
from flowportrait.rewards.face import FaceNet, align_faces

# --- Self-reenactment -------------------------------------------------------------------

MOUTH = sorted({*INNER_LOWER, *INNER_UPPER, *OUTER_LOWER, *OUTER_UPPER})
CAVITIES = ((0.2, 0.15, 0.15), (0.35, 0.25, 0.25), (0.5, 0.38, 0.38))
AMPLITUDES = (0.85, 1.15)


@dataclass(frozen=True)
class ReenactOptions:
    """Measure self-reenactment of unseen speakers: the first frame is the portrait, the clip's motion drives it.

    Must lose: the still portrait; the mesh warp with one colour in its mouth, whose colour and amplitude are tuned on
    training speakers. Then the learned mouth layers and the retouching network. Ceiling: the true lower face through a
    tiny autoencoder. Landmarks are in % of the distance of the outer eye corners; amplitude and flicker are over the
    true ones.
    """

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage that it was prepared from."""
    autoencoder: OptionalPair = None
    """Encoder and decoder of the ceiling (taef2)."""
    clips: int = 16
    """Clips of dev speakers."""
    frames: int = 20
    """Frames of each."""
    large: OptionalPath = None
    """A video of high resolution that is measured as well, twice as many frames of it."""
    tuned: tuple[float, float, float, float] | None = None
    """Colour in the mouth, as shares of the skin's, and amplitude; tuned anew by default."""


class FlatMouth:
    """A mouth model without anything learned: one colour relative to the skin's."""

    def __init__(self, portrait: Portrait, ratio: tuple[float, float, float]) -> None:
        self._colour = skin_colour(portrait.crop, portrait.landmarks) * np.array(ratio)

    def draw(self, frame: np.ndarray, target: np.ndarray, opening: MouthOpening | None = None) -> None:
        """Fill the opening between the lips."""
        points = target[:, :2].astype(np.float64)
        mask = outline_mask(frame.shape[:2], opening_outline(points[INNER_UPPER], points[INNER_LOWER]), 0.6)[..., None]
        frame[:] = np.round(frame + mask * (self._colour - frame)).astype(np.uint8)


class TrueFrames:
    """The true frames of a scene, which drawn ones are compared with."""

    def __init__(self, scene: Scene, portrait: Portrait) -> None:
        self._from_crop = np.linalg.inv(np.vstack([portrait.to_crop, [0, 0, 1]]))
        self._scene = scene
        self._matrices = [mouth_window_transform(points) for points in scene.landmarks]
        self._true = [cut_mouth_window(f, m) for f, m in zip(scene.frames, self._matrices, strict=True)]
        self._inside = [mouth_interior(p, m) for p, m in zip(scene.landmarks, self._matrices, strict=True)]
        self._maps = mouth_features(self._true)

    def compare(self, drawn: list[np.ndarray], in_crop: bool = True) -> dict[str, float]:
        """Return the figures of frames that are drawn in the portrait's crop, or in the video's own pixels."""
        back = self._from_crop if in_crop else np.eye(3)
        matrices = [(np.vstack([m, [0, 0, 1]]) @ back)[:2] for m in self._matrices]
        windows = [cut_mouth_window(frame, m) for frame, m in zip(drawn, matrices, strict=True)]
        colour = [np.abs(a.astype(float) - b).mean() / 255 for a, b in zip(windows, self._true, strict=True)]
        with FaceTracker() as tracker:
            faces = tracker.track(drawn)
        result = {"mouth error": mouth_error(mouth_features(windows), self._maps)}
        if faces.valid.sum() > 2:
            points = faces.landmarks[faces.valid][..., :2] @ back[:2, :2].T + back[:2, 2]
            true = self._scene.landmarks[faces.valid][..., :2]
            eyes = np.linalg.norm(true[:, 33] - true[:, 263], axis=-1)
            off = np.linalg.norm(points[:, MOUTH] - true[:, MOUTH], axis=-1).mean(1)
            result["landmarks"] = float((off / eyes).mean() * 100)
            result["amplitude"] = lip_opening(points).std() / lip_opening(true).std()
        result["colour"] = float(np.mean(colour))
        result["flicker"] = frame_change(windows, self._inside) / frame_change(self._true, self._inside)
        result["faces found"] = float(faces.valid.mean())
        return result


def lip_opening(points: np.ndarray) -> np.ndarray:
    """Return the gap of the inner lips over the distance of the outer eye corners ``[T]``."""
    gap, eyes = (np.linalg.norm(points[:, a, :2] - points[:, b, :2], axis=-1) for a, b in ((14, 13), (33, 263)))
    return gap / eyes


def redraw(
    scene: Scene, portrait: Portrait, retouch: bool, cavity: tuple[float, float, float] | None, amplitude: float = 1.0
) -> list[np.ndarray]:
    """Draw the scene's motion on its portrait."""
    basis = MotionBasis.load()
    _, identity = basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
    motion = self_reenactment_motion(scene.landmarks, scene.blendshapes)
    motion[:, LOWER_FACE] *= amplitude
    renderer = Renderer(portrait, retouch=retouch, workers=1)
    if cavity:
        renderer.mouth = FlatMouth(portrait, cavity)
    return list(renderer(basis.decode(motion, identity).numpy()))


def tune_warp(scenes: list[Scene]) -> tuple[tuple[float, float, float], float]:
    """Return the mouth colour and the amplitude of the plain warp with the least mouth error."""

    def error(cavity: tuple[float, float, float], amplitude: float) -> float:
        found = []
        for scene in scenes:
            portrait = scene.portrait()
            drawn = redraw(scene, portrait, False, cavity, amplitude)
            found.append(TrueFrames(scene, portrait).compare(drawn)["mouth error"])
        return float(np.mean(found))

    errors = {(cavity, 1.0): error(cavity, 1.0) for cavity in CAVITIES}
    best = min(errors, key=lambda key: errors[key])[0]
    errors |= {(best, amplitude): error(best, amplitude) for amplitude in AMPLITUDES}
    return min(errors, key=lambda key: errors[key])


def through_autoencoder(codec: VaeCodec, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Return the frame with the mouth window, and as much again around it, sent through the autoencoder."""
    back = cv2.invertAffineTransform(mouth_window_transform(landmarks))
    corners = np.array([[0, 0], [WINDOW_WIDTH, 0], [0, WINDOW_HEIGHT], [WINDOW_WIDTH, WINDOW_HEIGHT]])
    corners = corners @ back[:, :2].T + back[:, 2]
    low, high = corners.min(0), corners.max(0)
    left, top = np.floor(low - (high - low) / 2).astype(int).clip(0)
    right, bottom = np.ceil(high + (high - low) / 2).astype(int)
    result = frame.copy()
    result[top:bottom, left:right] = next(codec.decode(codec.encode(frame[None, top:bottom, left:right])))
    return result


def reenact(options: ReenactOptions, record: Record) -> None:
    """Measure self-reenactment, from what must lose to the ceiling."""
    use_one_thread()
    if options.tuned:
        cavity, amplitude = options.tuned[:3], options.tuned[3]
    else:
        tuning = read_scenes(options.corpus, options.data, 6, options.frames, dev=False)
        cavity, amplitude = tune_warp([scene.every_fourth() for scene in tuning])
    record.note(f"Tuned on training speakers: mouth colour {cavity} of the skin's, amplitude {amplitude}.")
    codec = VaeCodec(TinyAutoencoder.read(*options.autoencoder)) if options.autoencoder else None

    def measure(scene: Scene) -> dict[str, dict[str, float]]:
        portrait = scene.portrait()
        true = TrueFrames(scene, portrait)
        result = {
            "still portrait": true.compare([scene.frames[0]] * len(scene.frames), in_crop=False),
            "tuned warp": true.compare(redraw(scene, portrait, False, cavity, amplitude)),
            "warp, mouth layers": true.compare(redraw(scene, portrait, False, None)),
            "warp, mouth layers, retouching": true.compare(redraw(scene, portrait, True, None)),
        }
        if codec is not None:
            # The autoencoder is slow, and every fourth frame says as much.
            few = scene.every_fourth()
            drawn = [through_autoencoder(codec, *each) for each in zip(few.frames, few.landmarks, strict=True)]
            result["true frames, autoencoder"] = TrueFrames(few, portrait).compare(drawn, in_crop=False)
        return result

    results = [measure(scene) for scene in read_scenes(options.corpus, options.data, options.clips, options.frames)]
    if results:
        add_drawings(record, results, "tuned warp", f"{len(results)} clips of unseen speakers")
    if options.large:
        scene = track_scene(options.large, 2 * options.frames)
        add_drawings(record, [measure(scene)], "tuned warp", options.large.name)


# --- Identity and seam ------------------------------------------------------------------

_BAND = range(4, 9)
"""Pixels outside of the pasted square whose change the seam is compared with."""


@dataclass(frozen=True)
class LikenessOptions:
    """Measure whether it is still the same person, and whether the paste-back shows.

    Identity: cosine of FaceNet's embeddings of the photo and of frames drawn with another person's motion; the mark to
    meet is what frames of one real clip have with its own first frame. Seam: change across the border of the pasted
    square over the change just outside, 1 where nothing shows; beside it the photo, which has no seam.
    """

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage that it was prepared from, with portraits/."""
    frames: int = 12
    """Frames of each portrait and clip, evenly spread."""


def face_embeddings(frames: list[np.ndarray], landmarks: np.ndarray) -> torch.Tensor:
    """Return unit embeddings ``[T, 1024]``."""
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return FaceNet.load()(align_faces(images, torch.as_tensor(np.asarray(landmarks)[..., :2], dtype=torch.float32)))


def border_seam(image: np.ndarray, to_crop: np.ndarray, size: int) -> float:
    """Return the change across the square's border over the change just outside; NaN at the edge of the picture."""
    corners = np.array([[-0.5, -0.5, 1], [size - 0.5, size - 0.5, 1]]) @ cv2.invertAffineTransform(to_crop).T
    (left, top), (right, bottom) = np.round(corners).astype(int)
    grey = image.astype(np.float64).mean(2)
    across, down = np.abs(np.diff(grey, axis=1)).T[:, max(top, 0) : bottom], np.abs(np.diff(grey, axis=0))
    down = down[:, max(left, 0) : right]
    here, beside = [], []
    for change, place, step in ((across, left, -1), (across, right, 1), (down, top, -1), (down, bottom, 1)):
        outermost = place + step * _BAND[-1]
        if min(place - 2, outermost) >= 0 and max(place + 2, outermost) < len(change):
            here.append(np.mean([change[place + k].mean() for k in (-1, 0, 1)]))
            beside.append(np.mean([change[place + step * k].mean() for k in _BAND]))
    return float(np.sum(here) / np.sum(beside)) if here else float("nan")


def likeness(options: LikenessOptions, record: Record) -> None:
    """Measure identity and seam, portrait by portrait and together."""
    use_one_thread()
    scenes = list(read_scenes(options.corpus, options.data, 9, 20))[1:]
    if not scenes:
        raise BadInput(f"{options.corpus} needs at least two clips of dev speakers.")

    def evenly(length: int) -> np.ndarray:
        return np.linspace(0, length - 1, options.frames).round().astype(int)

    real = []
    for scene in scenes:
        chosen = evenly(len(scene.frames))
        vectors = face_embeddings([scene.frames[i] for i in chosen], scene.landmarks[chosen])
        real.append(float((vectors[1:] @ vectors[0]).mean()))
    record.add("real clips", "identity", bootstrap_mean(np.array(real)))
    record.add("real clips", "worst identity", min(real))
    found: list[tuple[float, float, float]] = []
    for number, path in enumerate(picture_paths(options.data / "portraits")):
        image, scene = read_image(path), scenes[number % len(scenes)]
        codec = MotionCodec(Portrait.from_image(image, None))
        motion = self_reenactment_motion(scene.landmarks, scene.blendshapes)
        motion = motion[evenly(len(motion))]
        frames = list(codec.decode(motion))
        points = np.concatenate([codec.portrait.landmarks[None], codec.landmarks(motion)])
        vectors = face_embeddings([codec.portrait.crop, *frames], points)
        to_crop, size = codec.portrait.to_crop, frames[0].shape[0]
        seams = [border_seam(paste_back(image, frame, to_crop), to_crop, size) for frame in frames[::4]]
        photo = border_seam(image, to_crop, size)
        found.append((float((vectors[1:] @ vectors[0]).mean()), float(np.mean(seams)), photo))
        for metric, value in zip(("identity", "seam", "seam of the photo"), found[-1], strict=True):
            record.add(path.stem, metric, value, group="portraits")
    for metric, values in zip(("identity", "seam", "seam of the photo"), zip(*found, strict=True), strict=True):
        record.add("drawn", metric, mean_of_known(values))


# --- The background ---------------------------------------------------------------------

_MOVED, _EVERY = 8, 5
_BACKDROP_METRICS = {
    "sync_in_time": "LSE-C", "tfi": "TFI", "flicker": "flicker", "identity_kept": "identity", "sharpness": "sharpness",
    "mouth_amplitude": "mouth amplitude", "head_range": "head range",
}  # fmt: skip


@dataclass(frozen=True)
class BackdropOptions:
    """Measure whether what is behind the person stays still, and what that costs.

    Every portrait is drawn twice with the same motion: as one layer, where what is near the head bends along, and with
    the person before a backdrop. Behind: pixels that the person covers neither in the photo nor in the frame, against
    the photo. The other figures are the evaluation's, of finished files.
    """

    data: Path
    """Footage with portraits/ and speech/."""
    output: Path
    """Folder of the videos; those that are there already are measured as they are."""
    seconds: float = 4
    """Seconds of speech for each portrait."""
    checkpoint: str = "rl"
    """Generator."""


def backdrop(options: BackdropOptions, record: Record) -> None:
    """Measure one layer against two."""
    use_one_thread()
    animator = Animator.from_pretrained(options.checkpoint)
    sounds = [read_audio(path) for path in speech_paths(options.data)]
    behind: dict[str, list[tuple[float, float]]] = {"one layer": [], "two layers": []}
    found: dict[str, list[MetricRow]] = {"one layer": [], "two layers": []}
    for index, path in enumerate(picture_paths(options.data / "portraits")):
        sound = sounds[index % len(sounds)][: int(options.seconds * SAMPLE_RATE)]
        motion = generate_motion(animator, sound, index)
        codec = MotionCodec(Portrait.from_image(read_image(path), name=path.name))
        uncovered = uncovered_pixels(codec, motion)
        skin = skin_without_openings(codec.portrait.crop, codec.portrait.landmarks)
        whole = Backdrop(skin, np.ones(skin.shape[:2], np.float32))
        for system, layers in {"one layer": whole, "two layers": codec.renderer.picture}.items():
            codec.renderer.show(layers)
            frames = list(codec.decode(motion[::_EVERY]))
            behind[system].append(background_change(frames, codec.portrait.crop, uncovered))
            video = options.output / system.replace(" ", "_") / f"{path.stem}.mp4"
            found[system].append(draw_and_measure(video, codec, motion, sound))
    for system, rows in behind.items():
        share, mean = np.array(rows).T
        record.add(system, f"pixels behind that differ by over {_MOVED}", mean_of_known(100 * share), unit="%")
        record.add(system, "mean difference behind", mean_of_known(mean), unit="of 255")
    for key, name in _BACKDROP_METRICS.items():
        one, two = (np.array([metric_value(row, key) for row in rows], float) for rows in found.values())
        for system, values in (("one layer", one), ("two layers", two), ("change", two - one)):
            record.add(system, name, mean_of_known(values))


def uncovered_pixels(codec: MotionCodec, motion: torch.Tensor) -> list[np.ndarray]:
    """Return masks ``[S, S]`` of every fifth frame: pixels that the person covers neither here nor in the photo."""
    crop, landmarks = codec.portrait.crop, codec.portrait.landmarks
    mask = segment_person(crop, landmarks)
    share = person_matte(mask, len(crop))
    mesh = HeadMesh(crop, landmarks, head_weight(mask, landmarks, len(crop)))
    rasterizer = Rasterizer(mesh.triangles, mesh.source, len(crop))
    masks = []
    for points in codec.landmarks(motion[::_EVERY]):
        moved = cv2.remap(share, rasterizer(mesh(points.astype(np.float64))), None, cv2.INTER_LINEAR)
        masks.append((share == 0) & (moved == 0))
    return masks


def background_change(frames: list[np.ndarray], photo: np.ndarray, masks: list[np.ndarray]) -> tuple[float, float]:
    """Return the share of masked pixels that differ from the photo, and their mean difference."""
    change = np.concatenate([
        np.abs(frame.astype(int) - photo).max(-1)[mask] for frame, mask in zip(frames, masks, strict=True)
    ])  # fmt: skip
    return float((change > _MOVED).mean()), float(change.mean())


# --- Contact sheets ---------------------------------------------------------------------

_PER_SHEET = 4
STATES: dict[str, dict[str, float]] = {
    "silence": {},
    "a": {"jawOpen": 0.45, "mouthLowerDownLeft": 0.2, "mouthLowerDownRight": 0.2},
    "m": {"mouthPressLeft": 0.3, "mouthPressRight": 0.3, "mouthClose": 0.1},
    "i": {"jawOpen": 0.1, "mouthSmileLeft": 0.3, "mouthSmileRight": 0.3, "mouthUpperUpLeft": 0.3,
          "mouthUpperUpRight": 0.3},
    "smile": {"mouthSmileLeft": 0.8, "mouthSmileRight": 0.8},
    "blink": {"eyeBlinkLeft": 1.0, "eyeBlinkRight": 1.0},
    "left": {"headYaw": -20.0, "jawOpen": 0.2},
    "right": {"headYaw": 20.0, "jawOpen": 0.2},
    "up": {"headPitch": 15.0},
    "down": {"headPitch": -15.0},
}  # fmt: skip
LOOPS = {name: [name] for name in ("silence", "a", "m", "smile", "blink")} | {
    "turn": ["right", "silence", "left", "silence"], "nod": ["up", "silence", "down", "silence"]
}  # fmt: skip
LOOP_FRAMES, LOOP_SHEET = 24, 8
"""Frames of a loop, and how many of them its sheet shows."""


@dataclass(frozen=True)
class ContactSheetsOptions:
    """Draw every portrait of a folder in nine states made of ARKit shapes, to look at; nothing is measured.

    The states: the photo, silence, /a/, /m/, /i/, a smile, a blink, and the head turned 20 degrees to either side.
    """

    portraits: Path
    """Folder of photos."""
    output: Path = Path("sheets")
    """Folder of the sheets, a PNG for every four portraits."""
    size: int = 512
    """Pixels at which portraits are drawn."""
    tile: int = 320
    """Pixels of a picture of the sheet."""
    part: Literal["all", "mouth", "eyes", "hair", "top", "left", "right"] = "all"
    """Part of the picture that is shown, larger."""
    loops: Flag = False
    """Also a looping video of each portrait, in which the states come and go, with a sheet of its frames."""
    only: tuple[str, ...] = ()
    """Names of the portraits to draw; all by default."""


def arkit_motion(shapes: dict[str, float]) -> torch.Tensor:
    """Return the motion ``[1, 30]`` of ARKit shapes, headYaw and headPitch in degrees."""
    motion = blendshapes_to_motion(np.array([[shapes.get(name, 0.0) for name in ARKIT_SHAPES]]))
    head, std = torch.zeros(1, 6), MotionBasis.load().head_std
    for number, name in enumerate(("headPitch", "headYaw")):
        head[0, number] = -np.radians(shapes.get(name, 0.0)) / std[number]
    return torch.cat([motion, head], 1)


def loop_motion(names: list[str]) -> torch.Tensor:
    """Return motion ``[24, 30]`` from the neutral pose to each state and back, without a jump where it starts again."""
    neutral, span = arkit_motion({}), LOOP_FRAMES // len(names)
    swell = (0.5 - 0.5 * torch.cos(torch.arange(span) / span * 2 * np.pi))[:, None]
    return torch.cat([neutral + swell * (arkit_motion(STATES[name]) - neutral) for name in names])


def contact_sheets(options: ContactSheetsOptions, record: Record) -> None:
    """Draw and write the sheets."""
    options.output.mkdir(parents=True, exist_ok=True)
    paths = [path for path in picture_paths(options.portraits) if path.stem in options.only or not options.only]
    codecs = {path.stem: MotionCodec(Portrait.from_image(read_image(path), options.size)) for path in paths}
    names = list(codecs)

    def tiles(codec: MotionCodec, frames: Iterator[np.ndarray]) -> list[np.ndarray]:
        return [cut_part(frame, codec.portrait.landmarks, options) for frame in frames]

    states = torch.cat([arkit_motion(shapes) for name, shapes in STATES.items() if name not in ("up", "down")])
    for start in range(0, len(names), _PER_SHEET):
        sheet_codecs = [codecs[name] for name in names[start : start + _PER_SHEET]]
        rows = [np.hstack(tiles(codec, iter([codec.portrait.crop, *codec.decode(states)]))) for codec in sheet_codecs]
        target = options.output / f"sheet_{start // _PER_SHEET}.png"
        write_picture(target, np.vstack(rows))
        record.note(f"{target}: {', '.join(names[start : start + _PER_SHEET])}")
    for name, codec in codecs.items() if options.loops else ():
        loops = [tiles(codec, codec.decode(loop_motion(states))) for states in LOOPS.values()]
        frames = [np.hstack(list(at_once)) for at_once in zip(*loops, strict=True)]
        write_video(options.output / f"{name}.mp4", frames, None)
        sheet = np.vstack([np.hstack(loop[:: LOOP_FRAMES // LOOP_SHEET]) for loop in loops])
        write_picture(options.output / f"{name}.png", sheet)


def cut_part(frame: np.ndarray, points: np.ndarray, options: ContactSheetsOptions) -> np.ndarray:
    """Return the wanted part of a frame of a portrait with landmarks ``[478, 3]`` px, at the size of a tile."""
    last, eyes = frame.shape[0], float(np.linalg.norm(points[33] - points[263]))
    centres = {
        "mouth": points[13, :2], "eyes": points[168, :2], "hair": points[10, :2], "top": (points[10, 0], 0.65 * eyes),
        "left": (0.65 * eyes, points[4, 1]), "right": (last - 0.65 * eyes, points[4, 1]),
    }  # fmt: skip
    if options.part in centres:
        centre = np.array(centres[options.part])
        low, high = (centre - 0.65 * eyes).astype(int).clip(0), (centre + 0.65 * eyes).astype(int)
        frame = frame[low[1] : high[1], low[0] : high[0]]
    return cv2.resize(frame, (options.tile, options.tile), interpolation=cv2.INTER_AREA)

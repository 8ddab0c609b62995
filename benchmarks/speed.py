"""Costs of making videos: the stages of ``animate``, the start of the program, the renderer."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import torch
from PIL import Image
from scipy.io import wavfile
from skimage.data import astronaut

from benchmarks.material import use_one_thread
from benchmarks.record import ROOT, Record
from benchmarks.timing import (
    add_comparison,
    find_source,
    peak_memory,
    processor_seconds,
    run_python,
    stopwatch,
)
from flowportrait.commands.options import Flag, OptionalPath
from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS, iter_frames

MS = 1000.0


def babble(seconds: float) -> np.ndarray:
    """Return noise in syllables of a quarter of a second, 16 kHz."""
    time_ = np.arange(round(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    noise = np.random.default_rng(0).normal(size=len(time_))
    return (noise * 0.05 * (1 + np.sin(8 * np.pi * time_))).astype(np.float32)


# --- Stages of animate ------------------------------------------------------------------


@dataclass(frozen=True)
class SpeedOptions:
    """Measure what a frame of video costs, stage by stage, in processor time of one core.

    Stages are timed alone. "everything" is one call as ``animate`` makes it, in processor time of all its threads and
    by the clock. With --against, another version of the package takes turns with this one in processes of their own;
    then the bit rates and the pictures before encoding are compared too. The videos have the watermark.
    """

    image: OptionalPath = None
    """Photo; a picture that comes with scikit-image by default."""
    checkpoint: str = "rl"
    """Generator: a name, or a folder."""
    seconds: float = 8
    """Length of the speech."""
    size: int = 512
    """Side of the face square in pixels."""
    crop: Flag = False
    """The face square alone, not pasted back."""
    video: OptionalPath = None
    """Measure instead how fast this clip becomes motion: decoding, tracking, the 30 numbers."""
    live: Flag = False
    """Measure instead a frame of the live avatar, drawn and encoded as for WebRTC, while it idles and speaks."""
    pictures: OptionalPath = None
    """Keep every fifth picture before encoding in this file (.npy)."""
    against: OptionalPath = None
    """Another checkout, or its folder src."""
    repeats: int = 3
    """Rounds with --against."""


EVERYTHING, CLOCK, BIT_RATE = "everything", "everything, by the clock", "bit rate"
LIVE_START = "start of the avatar"
_KEPT_PICTURES = 5


def speed(options: SpeedOptions, record: Record) -> None:
    use_one_thread()
    if options.video is not None:
        _measure_tracking(options.video, record)
        return
    if options.against is not None:
        _compare_stages(options, record)
        return
    if options.live:
        _measure_live(options, record)
        return
    stages = _time_stages(options, record)
    for stage, ms in stages.items():
        record.add(stage, "processor", ms, unit="ms/frame")
    total = sum(ms for stage, ms in stages.items() if stage not in (EVERYTHING, CLOCK))
    drawing = stages["rendering"] + stages["retouch"]
    record.add("all stages", "two cores", 2 * MS / total, unit="frames/s", group="frames per second")
    record.add("drawing alone", "two cores", 2 * MS / drawing, unit="frames/s", group="frames per second")
    record.add(CLOCK, "as measured", MS / stages[CLOCK], unit="frames/s", group="frames per second")
    share = (stages["watermark"] + stages["signing"]) / total
    record.add("watermark and signing", "share of all stages", 100 * share, unit="%", group="provenance")


def _time_stages(options: SpeedOptions, record: Record) -> dict[str, float]:
    """Return milliseconds per frame by stage, and record the bit rate of the pictures."""
    from flowportrait.media.crop import FramePaster
    from flowportrait.media.write_video import write_video
    from flowportrait.pipelines.animator import Animator
    from flowportrait.provenance.manifest import VideoOrigin, self_signed, sign_video
    from flowportrait.provenance.publish import Provenance, write_video_with_provenance
    from flowportrait.provenance.watermark import Watermark
    from flowportrait.rendering.renderer import MotionCodec

    animator, image = Animator.from_pretrained(options.checkpoint), _photo(options.image)
    sound = babble(options.seconds)
    frames, table = len(sound) // SAMPLES_PER_FRAME, dict[str, float]()

    def time_stage(name: str, work: Callable[[], Any]) -> Any:
        with stopwatch() as spent:
            result = work()
        table[name] = MS * spent.processor / frames
        return result

    list(animator.motion(sound[: 2 * SAMPLE_RATE]))
    motion = time_stage("features and generation", lambda: torch.cat(list(animator.motion(sound))))
    portrait = Portrait.from_image(image, options.size)
    renderer, plain = MotionCodec(portrait).renderer, MotionCodec(portrait, retouch=False)
    landmarks = plain.landmarks(motion)
    renderer.draw(landmarks[0])
    time_stage("rendering", lambda: [plain.renderer.draw(points) for points in landmarks])
    drawn = time_stage("retouch", lambda: [renderer.draw(points) for points in landmarks])
    table["retouch"] = max(0.0, table["retouch"] - table["rendering"])
    if not options.crop:
        paste = FramePaster(portrait.image, portrait.to_crop, len(portrait.crop))
        height, width = (side // 2 * 2 for side in portrait.image.shape[:2])
        drawn = time_stage("paste-back", lambda: [paste(frame)[:height, :width] for frame in drawn])
    mark = Watermark(*drawn[0].shape[:2])
    marked = time_stage("watermark", lambda: [mark(frame) for frame in drawn])
    if options.pictures is not None:
        np.save(options.pictures, np.stack(marked[::_KEPT_PICTURES]))
    origin, credential = VideoOrigin("portrait"), self_signed()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        time_stage("encoding", lambda: write_video(path, marked, sound, tags=origin.tags()))
        time_stage("signing", lambda: sign_video(path, origin, credential))
        with stopwatch() as spent:
            frames_of_video = animator.animate(image, sound, size=options.size, crop=options.crop)
            write_video_with_provenance(path, frames_of_video, sound, Provenance(origin, credential))
        record.add("pictures of the video", BIT_RATE, _picture_bits(path) / frames * FPS / 1000, unit="kbit/s")
    return table | {EVERYTHING: MS * spent.processor / frames, CLOCK: MS * spent.clock / frames}


def _picture_bits(path: Path) -> int:
    """Return the bits of a file's pictures, without sound and container."""
    with av.open(str(path)) as container:
        return 8 * sum(packet.size for packet in container.demux(video=0))


def _compare_stages(options: SpeedOptions, record: Record) -> None:
    assert options.against is not None
    words = ["-m", "benchmarks", "speed"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in ("against", "video", "pictures", "repeats") or value in (None, False):
            continue
        text = str(value.resolve() if isinstance(value, Path) else value)
        words += [f"--{field.name}"] if value is True else [f"--{field.name}", text]
    versions = {"before": find_source(options.against), "now": ROOT / "src"}
    rows: dict[str, list[dict[tuple[str, str], float]]] = {name: [] for name in versions}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "speed.json"
        pictures = {name: Path(folder) / f"{name}.npy" for name in versions}
        for number in range(options.repeats):
            for name in sorted(versions, reverse=number % 2 == 1):  # neither version is always the first
                kept = [] if options.live else ["--pictures", str(pictures[name])]
                run_python([*words, *kept, "--record", str(result)], versions[name])
                measured = json.loads(result.read_text())["rows"]
                rows[name].append({(row["system"], row["metric"]): row["value"] for row in measured})
        if not options.live:
            mean, least = _picture_psnr(*(np.load(pictures[name]) for name in ("before", "now")))
            group = "pictures before encoding, now against before"
            record.add("PSNR of all", "PSNR", mean, unit="dB", group=group)
            record.add("PSNR of the one that differs most", "PSNR", least, unit="dB", group=group)
    for (stage, metric), value in rows["now"][0].items():
        if metric == "processor":
            own = ([row[stage, metric] for row in rows[name]] for name in ("now", "before"))
            add_comparison(record, stage, "ms" if stage == LIVE_START else "ms/frame", *own)
        elif metric == "late frames":
            for name in versions:
                record.add(f"{stage}, {name}", metric, max(row[stage, metric] for row in rows[name]), unit="%")
        elif metric == BIT_RATE:
            before = rows["before"][0][stage, metric]
            record.add("now", BIT_RATE, value, unit="kbit/s", group=BIT_RATE)
            record.add("before", BIT_RATE, before, unit="kbit/s", group=BIT_RATE)
            record.add("now / before", BIT_RATE, value / before, group=BIT_RATE)


def _picture_psnr(before: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """Return the PSNR of all pictures ``[N, H, W, 3]`` and of the one that differs most, in dB; at most 99."""
    errors = [float(np.square(one.astype(np.float32) - other).mean()) for one, other in zip(now, before, strict=True)]
    return _psnr(sum(errors) / len(errors)), _psnr(max(errors))


def _psnr(error: float) -> float:
    """Return the PSNR of a mean squared error of levels, at most 99 dB."""
    return min(99.0, -10 * float(np.log10(max(error, 1e-12) / 255**2)))


# --- The live avatar --------------------------------------------------------------------

_LIVE_SLOWNESS = 4.0
"""Seconds that a second of the avatar's clock takes."""


def _measure_live(options: SpeedOptions, record: Record) -> None:
    """Record what a frame of the live avatar costs: drawn, with watermark, and encoded.

    The avatar's clock runs slowly, so that other work on the machine makes no frame late: what is left out costs
    nothing. Late frames are recorded all the same.
    """
    from flowportrait.live import LiveAvatar

    with stopwatch() as spent:
        avatar = LiveAvatar(
            _photo(options.image), checkpoint=options.checkpoint, size=options.size,
            clock=lambda: time.monotonic() / _LIVE_SLOWNESS,
        )  # fmt: skip
    encode, count = _webrtc_encoder(), round(options.seconds * FPS)
    sound = babble(options.seconds + 1)

    async def run() -> None:
        number, frames = 0, avatar.frames()
        for system, speaks in (("idle", False), ("speaking", True)):
            late, began = avatar.late_frames, time.process_time()
            for place in range(count):
                if speaks:
                    avatar.push(sound[place * SAMPLES_PER_FRAME :][:SAMPLES_PER_FRAME], SAMPLE_RATE)
                picture, _ = await anext(frames)
                encode(picture, number)
                number += 1
            ms, late = MS * (time.process_time() - began) / count, avatar.late_frames - late
            record.add(f"live, {system}", "processor", ms, unit="ms/frame", n=count)
            record.add(f"live, {system}", "late frames", 100 * late / count, unit="%", group="late")
        avatar.close()

    asyncio.run(run())
    record.add(LIVE_START, "processor", MS * spent.processor, unit="ms")


def _webrtc_encoder() -> Callable[[np.ndarray, int], object]:
    """Return a function that encodes a picture with its number as aiortc does: H.264, no delay, 1 Mbit/s."""
    try:
        from aiortc.codecs.h264 import H264Encoder
    except ImportError as error:
        raise BadInput("--live needs aiortc: pip install 'flowportrait[live]'.") from error
    encoder = H264Encoder()

    def encode(picture: np.ndarray, number: int) -> object:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        return encoder.encode(frame, force_keyframe=False)

    return encode


def _measure_tracking(video: Path, record: Record) -> None:
    from flowportrait.media.faces import FaceTracker
    from flowportrait.rendering.motion_basis import MotionBasis

    began = time.process_time()
    with FaceTracker() as tracker:
        opened = time.process_time()
        faces = tracker.track(iter_frames(video))
    MotionBasis.load().encode(faces.landmarks, faces.blendshapes)
    ms = MS * (time.process_time() - opened) / len(faces.valid)
    record.add("video to motion", "processor", ms, unit="ms/frame", n=len(faces.valid))
    record.add("video to motion", "one core", MS / ms, unit="frames/s")
    record.add("start of the tracker", "processor", MS * (opened - began), unit="ms")


def _photo(path: Path | None) -> np.ndarray:
    return read_image(path) if path else np.asarray(astronaut())


# --- Start-up ---------------------------------------------------------------------------


@dataclass(frozen=True)
class StartupOptions:
    """Measure the cost of starting the program: processor seconds of fresh processes, and of one short video.

    Every row is a process of its own, started --repeats times, in turn with the same row of --against; the least
    counts, user and system time of all its threads.
    """

    against: OptionalPath = None
    """Another checkout, or its folder src."""
    repeats: int = 3
    """Processes of each row."""
    seconds: float = 7.5
    """Length of the speech of the video."""
    quick: Flag = False
    """Leave out the video."""


_COMMAND = "import sys; from flowportrait.cli import main; sys.exit(main(sys.argv[1:]))"
_PREPARE = """
import sys
from pathlib import Path
from flowportrait import Animator
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
Animator.from_pretrained("rl")
Portrait.from_image(read_image(Path(sys.argv[1])), None)
"""


def startup(options: StartupOptions, record: Record) -> None:
    versions = [ROOT / "src", *([find_source(options.against)] if options.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        photo, speech, video = (str(Path(folder) / name) for name in ("photo.png", "speech.wav", "video.mp4"))
        Image.fromarray(astronaut()).save(photo)
        wavfile.write(speech, SAMPLE_RATE, (32767 * _hum(options.seconds)).astype(np.int16))
        command = ["-c", _COMMAND]
        processes = {
            "import torch (for comparison)": ["-c", "import torch"],
            "import flowportrait": ["-c", "import flowportrait"],
            "flowportrait --help": [*command, "--help"],
            "flowportrait animate --help": [*command, "animate", "--help"],
            "flowportrait posttrain recipes": [*command, "posttrain", "recipes"],
            "flowportrait posttrain policies": [*command, "posttrain", "policies"],
            "from flowportrait import Animator": ["-c", "from flowportrait import Animator"],
            "an Animator and a portrait": ["-c", _PREPARE, photo],
        }
        if not options.quick:
            words = ["animate", "--image", photo, "--audio", speech, "--output", video]
            processes[f"animate, {options.seconds:g} s of speech"] = [*command, *words]
        for name, process in processes.items():
            rounds = [[run_python(process, source).processor for source in versions] for _ in range(options.repeats)]
            add_comparison(record, name, "s", *zip(*rounds, strict=True))


def _hum(seconds: float) -> np.ndarray:
    """Return a tone of 150 Hz that swells three times a second, with a little noise."""
    time_ = np.arange(int(SAMPLE_RATE * seconds)) / SAMPLE_RATE
    voice = 0.2 * np.sin(300 * np.pi * time_) * (1 + np.sin(6 * np.pi * time_))
    return np.asarray(voice + 0.01 * np.random.default_rng(0).standard_normal(len(time_))).clip(-1, 1)


# --- The renderer -----------------------------------------------------------------------


@dataclass(frozen=True)
class RenderOptions:
    """Measure what a drawn frame costs at several sizes, with and without the retouching network.

    At 512 px it is held against the textbook piecewise-affine warp of the same mesh (one cv2.warpAffine and one mask
    per triangle, without eyes or mouth), which should lose.
    """

    size: tuple[int, ...] = (256, 512, 768, 1024)
    """Sides in pixels."""
    frames: int = 60
    """Frames that are drawn at each size."""


def render(options: RenderOptions, record: Record) -> None:
    from flowportrait.rendering.mesh import HeadMesh
    from flowportrait.rendering.renderer import Renderer

    use_one_thread()
    for size in options.size:
        portrait, system = Portrait.from_image(astronaut(), size), f"{size} px"
        with stopwatch() as preparation:
            renderer = Renderer(portrait)
        poses = _nodding(portrait.landmarks, options.frames)
        renderer.draw(poses[0])
        warp = _median_ms(Renderer(portrait, retouch=False).draw, poses)
        record.add(system, "warp", warp, unit="ms")
        record.add(system, "with retouching", _median_ms(renderer.draw, poses), unit="ms")
        with stopwatch() as spent:
            count = sum(1 for _ in renderer(poses))
        record.add(system, "two threads", count / spent.clock, unit="frames/s")
        record.add(system, "two cores alone", 2 * count / spent.processor, unit="frames/s")
        record.add(system, "preparation", preparation.clock, unit="s")
        record.add(system, "peak memory", peak_memory(), unit="MB")
        if size == 512:
            mesh = HeadMesh(portrait.crop, portrait.landmarks)

            def loop(pose: np.ndarray, mesh: HeadMesh = mesh, image: np.ndarray = portrait.crop) -> None:
                _warp_by_triangles(image, mesh.source, mesh(pose), mesh.triangles)

            naive = _median_ms(loop, poses[:8])
            record.add("warp, one triangle at a time", "processor", naive, unit="ms", group="512 px")
            record.add("warp, one triangle at a time", "times the warp", naive / warp, group="512 px")


def _median_ms(draw: Callable[[np.ndarray], object], poses: np.ndarray) -> float:
    """Return the median processor time of a call in milliseconds."""
    return MS * float(np.median([processor_seconds(partial(draw, pose)) for pose in poses]))


def _nodding(landmarks: np.ndarray, frames: int) -> np.ndarray:
    """Return a nodding head with lips that open and close, ``[T, 478, 3]`` px."""
    from scipy.spatial.transform import Rotation

    from flowportrait.rendering.face_regions import INNER_LOWER, INNER_UPPER

    centre = landmarks.mean(0) + np.array([0, 40, 90])
    poses = []
    for t in range(frames):
        points = landmarks.astype(np.float64)
        points[INNER_LOWER[1:-1], 1] += 12 * np.sin(t) ** 2
        points[INNER_UPPER[1:-1], 1] -= 3 * np.sin(t) ** 2
        angles = [8 * np.sin(0.3 * t), 5 * np.sin(0.2 * t), 3 * np.sin(0.1 * t)]
        turn = Rotation.from_euler("yxz", angles, degrees=True).as_matrix()
        poses.append((points - centre) @ turn.T + centre)
    return np.array(poses)


def _warp_by_triangles(image: np.ndarray, source: np.ndarray, target: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Return the piecewise-affine warp, one triangle at a time."""
    result = image.copy()
    for triangle in triangles:
        here, there = source[triangle].astype(np.float32), target[triangle, :2].astype(np.float32)
        x, y, w, h = cv2.boundingRect(there)
        x, y, w, h = max(x, 0), max(y, 0), min(x + w, image.shape[1]), min(y + h, image.shape[0])
        if w <= x or h <= y:
            continue
        matrix = cv2.getAffineTransform(here, there - np.array([x, y], np.float32))
        patch = cv2.warpAffine(image, matrix, (w - x, h - y), borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros((h - y, w - x), np.uint8)
        cv2.fillConvexPoly(mask, np.round(there - [x, y]).astype(np.int32), 1)
        region = result[y:h, x:w]
        region[mask > 0] = patch[mask > 0]
    return result

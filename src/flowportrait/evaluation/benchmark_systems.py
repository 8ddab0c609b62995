"""The benchmark's protocol, its cases, and the videos of its systems.

    cases (portrait, speech, seed)  ─►  real footage in its crop, its motion drawn, checkpoints, negative controls

The protocol is fixed, so that results of two machines or two years can be compared; any change here changes
``PROTOCOL_VERSION``. The parts in order: protocol and cases, motion of the systems, writing of the videos.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from flowportrait.corruption.motion import delayed_motion, loudness_driven_jaw, motion_of_other_sentence, still_motion
from flowportrait.data.prompts import read_prompts
from flowportrait.errors import BadInput
from flowportrait.evaluation.tracking import content_hash
from flowportrait.files import write_json
from flowportrait.media.audio import SAMPLE_RATE, has_audio, read_audio
from flowportrait.media.crop import crop_transform, sample_crop
from flowportrait.media.faces import FaceTracker, interpolate_missing_frames
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.prompt_videos import RENDER_RECORD_FILE, RenderStopwatch
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.samples import SPEECH

# --- Protocol and cases ---

PROTOCOL_VERSION = "1"


@dataclass(frozen=True)
class BenchmarkProtocol:
    """The settings of the benchmark."""

    version: str = PROTOCOL_VERSION
    size: int = 512
    """Side in pixels of the square face crop of every video, including real footage."""
    crf: int = 17
    """H.264 quality; videos have 25 frames per second and AAC at 16 kHz mono."""
    piece: float = 4.0
    """Seconds of speech in a clip; longer recordings are cut into pieces."""
    step: float = 2.0
    """Seconds between the starts of two pieces."""
    seeds: int = 2
    """Videos per portrait and piece; the n-th clip has the same seed in every system."""
    late: int = 5
    """Frames by which the negative control 'shifted' is late."""
    clips: int = 24
    """Largest number of real clips, evenly spread over those given."""


@dataclass(frozen=True)
class BenchmarkCase:
    """One clip that every system makes.

    Attributes:
        id: name of the clip.
        portrait: ``[H, W, 3]`` uint8 RGB.
        audio: speech ``[N]`` at 16 kHz.
        seed: random seed of the motion.
        footage: real video of this speech, if there is one.
    """

    id: str
    portrait: np.ndarray
    audio: np.ndarray
    seed: int
    footage: Path | None = None


def benchmark_cases(protocol: BenchmarkProtocol, prompts: Path | None, real: list[Path]) -> list[BenchmarkCase]:
    """Return the cases of a benchmark.

    Without real clips, they are pieces of the prompts' speech with every portrait. With real clips, they are the speech
    of those clips, and portraits alternate.

    Args:
        protocol: the settings.
        prompts: folder of portraits and recordings; a built-in portrait and recording by default.
        real: real clips.

    Raises:
        BadInput: the prompts cannot be read, or no real clip has sound.
    """
    portraits, voices = _read_portraits_and_speech(prompts)
    if real:
        audible = [path for path in real if has_audio(path)]
        if not audible:
            raise BadInput(f"None of the {len(real)} real clips has sound: give clips of speech.")
        chosen = [audible[i] for i in np.unique(np.linspace(0, len(audible) - 1, protocol.clips).astype(int))]
        return [
            BenchmarkCase(path.stem, portraits[index % len(portraits)], read_audio(path), index, path)
            for index, path in enumerate(chosen)
        ]
    length, step = round(protocol.piece * SAMPLE_RATE), round(protocol.step * SAMPLE_RATE)
    pieces = [
        (f"{name}_{start // step}", audio[start : start + length])
        for name, audio in voices
        for start in range(0, max(1, len(audio) - length + 1), step)
    ]
    return [
        BenchmarkCase(f"{name}_p{face}_s{seed}", portrait, audio, seed + 100 * index)
        for index, (name, audio) in enumerate(pieces)
        for face, portrait in enumerate(portraits)
        for seed in range(protocol.seeds)
    ]


def _read_portraits_and_speech(folder: Path | None) -> tuple[list[np.ndarray], list[tuple[str, np.ndarray]]]:
    if folder is not None:
        all_prompts = read_prompts(folder)
        images, sounds = (dict.fromkeys(p.image for p in all_prompts), dict.fromkeys(p.audio for p in all_prompts))
        return [read_image(path) for path in images], [(path.stem, read_audio(path)) for path in sounds]
    from skimage.data import astronaut

    return [astronaut()], [(SPEECH.stem, read_audio(SPEECH))]


def protocol_fingerprint(protocol: BenchmarkProtocol, all_cases: list[BenchmarkCase]) -> dict[str, object]:
    """Return what comparable runs have in common: the settings, and one hash over all pictures and sounds."""
    total = hashlib.sha256()
    for case in all_cases:
        total.update(case.id.encode())
        total.update(np.ascontiguousarray(case.portrait).tobytes())
        total.update(case.audio.tobytes())
        total.update(str(case.seed).encode())
        if case.footage is not None:
            total.update(content_hash(case.footage).encode())
    return asdict(protocol) | {"cases": len(all_cases), "inputs": total.hexdigest()[:16]}


def quick_protocol(protocol: BenchmarkProtocol) -> BenchmarkProtocol:
    """Return the settings of a short test run, with a version of its own."""
    return replace(protocol, version=f"{protocol.version}-quick", size=256, seeds=1, clips=6)


# --- Motion of the systems ---

FOOTAGE_SYSTEM, REAL = "footage", "real"
"""Names of the two ceilings: real footage in the common crop, and its motion drawn on the portraits."""
NEGATIVE_CONTROLS = ("shifted", "other sentence", "loudness jaw", "still")
"""Negative controls, which every good system must beat."""

VideoFactory = Callable[[], tuple[Iterator[np.ndarray], np.ndarray]]
"""A function that returns the frames and the sound of one clip."""


def build_codecs(all_cases: list[BenchmarkCase], size: int) -> list[MotionCodec]:
    """Build the codec of every case; cases with the same portrait share one. They draw squares of ``size`` pixels."""
    codecs: dict[int, MotionCodec] = {}
    for case in all_cases:
        if id(case.portrait) not in codecs:
            portrait = Portrait.from_image(case.portrait, size, name=f"the portrait of {case.id}")
            codecs[id(case.portrait)] = MotionCodec(portrait, size)
    return [codecs[id(case.portrait)] for case in all_cases]


def generate_motions(checkpoints: dict[str, str], all_cases: list[BenchmarkCase]) -> dict[str, list[torch.Tensor]]:
    """Generate the motion ``[T, 30]`` of every case with every checkpoint, by the name of its system."""
    motions = {}
    for name, checkpoint in checkpoints.items():
        pipeline = AnimatePipeline.from_pretrained(checkpoint)
        bar = track(all_cases, description=f"{name}: motion", console=Console(stderr=True))
        motions[name] = [torch.cat(list(pipeline.motion(case.audio, seed=case.seed))) for case in bar]
    return motions


def extract_real_motions(all_cases: list[BenchmarkCase]) -> list[torch.Tensor]:
    """Extract the motion ``[T, 30]`` of the real clips; an empty list without them.

    Raises:
        BadInput: a clip shows no face.
    """
    if all_cases[0].footage is None:
        return []
    motions = []
    for case in track(all_cases, description="real clips: motion", console=Console(stderr=True)):
        assert case.footage is not None
        with FaceTracker() as tracker:
            faces = tracker.track(iter_frames(case.footage))
        if not faces.valid.any():
            raise BadInput(f"{case.footage} shows no face: leave it out of --real.")
        points, shapes = (
            interpolate_missing_frames(values, faces.valid) for values in (faces.landmarks, faces.blendshapes)
        )
        motions.append(MotionBasis.load().encode(points, shapes)[0])
    return motions


def negative_control_motion(
    name: str,
    source_motions: list[torch.Tensor],
    all_cases: list[BenchmarkCase],
    index: int,
    protocol: BenchmarkProtocol,
) -> torch.Tensor:
    """Return the motion ``[T, 30]`` of a negative control.

    Args:
        name: one of the negative controls.
        source_motions: motion from which the controls are made, by case.
        all_cases: the cases.
        index: the case.
        protocol: the settings.
    """
    motion, audio = source_motions[index], all_cases[index].audio
    if name == "still":
        return still_motion(motion, audio)
    if name == "loudness jaw":
        return loudness_driven_jaw(motion, audio)
    if name == "shifted":
        return delayed_motion(motion, audio, min(protocol.late, len(motion) - 1))
    other = next(
        (m for c, m in zip(all_cases, source_motions, strict=True) if not np.array_equal(c.audio, audio)),
        motion.flip(0),
    )
    following = [
        m
        for c, m in zip(all_cases[index + 1 :], source_motions[index + 1 :], strict=True)
        if not np.array_equal(c.audio, audio)
    ]
    return motion_of_other_sentence(motion, following[0] if following else other)


# --- Videos ---


def decode_motion(codec: MotionCodec, motion: torch.Tensor, audio: np.ndarray) -> VideoFactory:
    """Return a function that draws motion ``[T, 30]`` with a codec."""
    return lambda: (codec.decode(motion), audio)


def crop_footage(case: BenchmarkCase, size: int) -> Iterator[np.ndarray]:
    """Yield the frames of a real clip, cropped to a fixed square around its first face.

    Raises:
        BadInput: the first frame shows no face.
    """
    to_crop = None
    assert case.footage is not None
    with FaceTracker(still=True) as tracker:
        for frame in iter_frames(case.footage):
            if to_crop is None:
                faces = tracker.detect(frame)
                if not faces:
                    raise BadInput(f"{case.footage} shows no face in its first frame: leave it out of --real.")
                to_crop = crop_transform(faces[0][0], (frame.shape[0], frame.shape[1]), size)
            yield sample_crop(frame, to_crop, size)


def write_videos(
    folder: Path,
    name: str,
    prepare_video: Callable[[int], VideoFactory],
    all_cases: list[BenchmarkCase],
    protocol: BenchmarkProtocol,
    origin: str,
) -> list[Path]:
    """Write the videos of a system, and return their files.

    Args:
        folder: output folder; videos of the same origin that are there are kept.
        name: name of the system.
        prepare_video: function that prepares the video of the i-th case.
        all_cases: the cases.
        protocol: the settings.
        origin: everything from which the videos are made, as text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RENDER_RECORD_FILE
    recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    files = []
    for index, case in enumerate(track(all_cases, description=f"{name}: drawing", console=Console(stderr=True))):
        path = folder / f"{case.id}.mp4"
        files.append(path)
        if path.is_file() and recorded.get(case.id, {}).get("origin") == origin:
            continue
        watch = RenderStopwatch()
        frames, audio = prepare_video(index)()
        write_video(path, watch(frames), audio, crf=protocol.crf)
        recorded[case.id] = {"origin": origin, "cost": watch.cost()}
        write_json(record, recorded, indent=None)
    return files


def weights_digest(checkpoints: dict[str, str], name: str) -> str:
    """Return the hash of a checkpoint's weights; for other systems their name."""
    return content_hash(checkpoint_folder(checkpoints[name]) / "model.safetensors") if name in checkpoints else name


def match_cases(name: str, files: list[Path], all_cases: list[BenchmarkCase]) -> list[Path]:
    """Return those of another tool's videos that are named like cases.

    Raises:
        BadInput: no video has the name of a case.
    """
    ids = {case.id for case in all_cases}
    matches = [file for file in files if file.stem in ids]
    if not matches:
        raise BadInput(
            f"No video of system '{name}' is named like a case of the benchmark: name them like {all_cases[0].id}.mp4."
        )
    return matches

"""The benchmark's protocol, its systems, negative controls and ceiling.

The benchmark's protocol: portraits, speech, and how clips are cut, drawn and written.

It is fixed, so that figures of two machines or two years can be compared; whatever changes here changes ``VERSION``.

The videos of the benchmark: real footage in its crop, its motion drawn, checkpoints, and what must lose.
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

from flowportrait.corruption.motion import late_motion, loudness_driven_jaw, other_sentence, still_motion
from flowportrait.data.prompts import read_prompts
from flowportrait.errors import BadInput
from flowportrait.evaluation.tracking import content_hash
from flowportrait.files import write_json
from flowportrait.media.audio import SAMPLE_RATE, has_audio, read_audio
from flowportrait.media.crop import crop_transform, sample_crop
from flowportrait.media.faces import FaceTracker, bridge
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.arflow import checkpoint_folder
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.prompt_videos import RECORD, Stopwatch
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.samples import SPEECH

VERSION = "1"


@dataclass(frozen=True)
class Protocol:
    """How the benchmark is run."""

    version: str = VERSION
    size: int = 512
    """Pixels of the square face crop that every video shows, footage too."""
    crf: int = 17
    """H.264 quality; 25 frames a second, AAC at 16 kHz mono."""
    piece: float = 4.0
    """Seconds of speech in a clip; longer recordings are cut."""
    step: float = 2.0
    """Seconds between the beginnings of two pieces."""
    seeds: int = 2
    """Videos per portrait and piece; the n-th clip has the same seed in every system."""
    late: int = 5
    """Frames by which the baseline 'shifted' is late."""
    clips: int = 24
    """At most so many real clips, evenly spread over those given."""


@dataclass(frozen=True)
class Case:
    """One clip to make: portrait ``[H, W, 3]`` uint8, audio ``[N]`` at 16 kHz; footage: real video of this speech."""

    id: str
    portrait: np.ndarray
    audio: np.ndarray
    seed: int
    footage: Path | None = None


def cases(protocol: Protocol, prompts: Path | None, real: list[Path]) -> list[Case]:
    """What is to be made: pieces of the prompts' speech, or with real clips, their speech; portraits in turn.

    Raises:
        BadInput: the prompts cannot be read, or no real clip has sound.
    """
    portraits, voices = _prompted(prompts)
    if real:
        audible = [path for path in real if has_audio(path)]
        if not audible:
            raise BadInput(f"None of the {len(real)} real clips has sound: give clips of speech.")
        chosen = [audible[i] for i in np.unique(np.linspace(0, len(audible) - 1, protocol.clips).astype(int))]
        return [
            Case(path.stem, portraits[index % len(portraits)], read_audio(path), index, path)
            for index, path in enumerate(chosen)
        ]
    length, step = round(protocol.piece * SAMPLE_RATE), round(protocol.step * SAMPLE_RATE)
    pieces = [
        (f"{name}_{start // step}", audio[start : start + length])
        for name, audio in voices
        for start in range(0, max(1, len(audio) - length + 1), step)
    ]
    return [
        Case(f"{name}_p{face}_s{seed}", portrait, audio, seed + 100 * index)
        for index, (name, audio) in enumerate(pieces)
        for face, portrait in enumerate(portraits)
        for seed in range(protocol.seeds)
    ]


def _prompted(folder: Path | None) -> tuple[list[np.ndarray], list[tuple[str, np.ndarray]]]:
    if folder is not None:
        found = read_prompts(folder)
        images, sounds = (dict.fromkeys(p.image for p in found), dict.fromkeys(p.audio for p in found))
        return [read_image(path) for path in images], [(path.stem, read_audio(path)) for path in sounds]
    from skimage.data import astronaut

    return [astronaut()], [(SPEECH.stem, read_audio(SPEECH))]


def fingerprint(protocol: Protocol, made: list[Case]) -> dict[str, object]:
    """What two runs must have in common to be compared: the settings, and one hash over every picture and sound."""
    total = hashlib.sha256()
    for case in made:
        total.update(case.id.encode())
        total.update(np.ascontiguousarray(case.portrait).tobytes())
        total.update(case.audio.tobytes())
        total.update(str(case.seed).encode())
        if case.footage is not None:
            total.update(content_hash(case.footage).encode())
    return asdict(protocol) | {"cases": len(made), "inputs": total.hexdigest()[:16]}


def quick(protocol: Protocol) -> Protocol:
    """A short run, to see whether everything works; its version says so."""
    return replace(protocol, version=f"{protocol.version}-quick", size=256, seeds=1, clips=6)


FOOTAGE, REAL = "footage", "real"
LOSERS = ("shifted", "other sentence", "loudness jaw", "still")

Draw = Callable[[], tuple[Iterator[np.ndarray], np.ndarray]]
"""Frames and sound of one clip, made when called."""


def codecs_of(made: list[Case], size: int) -> list[MotionCodec]:
    """One per portrait, shared by its cases, drawing squares of ``size`` pixels."""
    found: dict[int, MotionCodec] = {}
    for case in made:
        if id(case.portrait) not in found:
            portrait = Portrait.from_image(case.portrait, size, name=f"the portrait of {case.id}")
            found[id(case.portrait)] = MotionCodec(portrait, size)
    return [found[id(case.portrait)] for case in made]


def motions_of(checkpoints: dict[str, str], made: list[Case]) -> dict[str, list[torch.Tensor]]:
    found = {}
    for name, where in checkpoints.items():
        pipeline = AnimatePipeline.from_pretrained(where)
        bar = track(made, description=f"{name}: motion", console=Console(stderr=True))
        found[name] = [torch.cat(list(pipeline.motion(case.audio, seed=case.seed))) for case in bar]
    return found


def real_motion(made: list[Case]) -> list[torch.Tensor]:
    """Motion of the real clips, empty without them.

    Raises:
        BadInput: a clip shows no face.
    """
    if made[0].footage is None:
        return []
    found = []
    for case in track(made, description="real clips: motion", console=Console(stderr=True)):
        assert case.footage is not None
        with FaceTracker() as tracker:
            faces = tracker.track(iter_frames(case.footage))
        if not faces.valid.any():
            raise BadInput(f"{case.footage} shows no face: leave it out of --real.")
        points, shapes = (bridge(values, faces.valid) for values in (faces.landmarks, faces.blendshapes))
        found.append(MotionBasis.load().encode(points, shapes)[0])
    return found


def losing_motion(
    name: str, driven: list[torch.Tensor], made: list[Case], index: int, protocol: Protocol
) -> torch.Tensor:
    motion, audio = driven[index], made[index].audio
    if name == "still":
        return still_motion(motion, audio)
    if name == "loudness jaw":
        return loudness_driven_jaw(motion, audio)
    if name == "shifted":
        return late_motion(motion, audio, min(protocol.late, len(motion) - 1))
    other = next((m for c, m in zip(made, driven, strict=True) if not np.array_equal(c.audio, audio)), motion.flip(0))
    following = [
        m for c, m in zip(made[index + 1 :], driven[index + 1 :], strict=True) if not np.array_equal(c.audio, audio)
    ]
    return other_sentence(motion, following[0] if following else other)


def drawn(codec: MotionCodec, motion: torch.Tensor, audio: np.ndarray) -> Draw:
    return lambda: (codec.decode(motion), audio)


def cropped(case: Case, size: int) -> Iterator[np.ndarray]:
    """The real clip through a fixed square around its first face."""
    matrix = None
    assert case.footage is not None
    with FaceTracker(still=True) as tracker:
        for frame in iter_frames(case.footage):
            if matrix is None:
                faces = tracker.detect(frame)
                if not faces:
                    raise BadInput(f"{case.footage} shows no face in its first frame: leave it out of --real.")
                matrix = crop_transform(faces[0][0], (frame.shape[0], frame.shape[1]), size)
            yield sample_crop(frame, matrix, size)


def written(
    folder: Path, name: str, job: Callable[[int], Draw], made: list[Case], protocol: Protocol, origin: str
) -> list[Path]:
    """A system's videos; those that are there from the same origin are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    known: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    files = []
    for index, case in enumerate(track(made, description=f"{name}: drawing", console=Console(stderr=True))):
        path = folder / f"{case.id}.mp4"
        files.append(path)
        if path.is_file() and known.get(case.id, {}).get("origin") == origin:
            continue
        watch = Stopwatch()
        frames, audio = job(index)()
        write_video(path, watch(frames), audio, crf=protocol.crf)
        known[case.id] = {"origin": origin, "cost": watch.cost()}
        write_json(record, known, indent=None)
    return files


def weights_of(checkpoints: dict[str, str], name: str) -> str:
    return content_hash(checkpoint_folder(checkpoints[name]) / "model.safetensors") if name in checkpoints else name


def matching(name: str, files: list[Path], made: list[Case]) -> list[Path]:
    """Another tool's videos of these cases.

    Raises:
        BadInput: none has the name of a case.
    """
    ids = {case.id for case in made}
    found = [file for file in files if file.stem in ids]
    if not found:
        raise BadInput(
            f"No video of system '{name}' is named like a case of the benchmark: name them like {made[0].id}.mp4."
        )
    return found

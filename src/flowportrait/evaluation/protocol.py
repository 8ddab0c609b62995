"""The benchmark's protocol: portraits, speech, and how clips are cut, drawn and written.

It is fixed, so that figures of two machines or two years can be compared; whatever changes here changes ``VERSION``.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluation.tracking import content_hash
from flowportrait.media.audio import SAMPLE_RATE, has_audio, read_audio
from flowportrait.media.image import read_image
from flowportrait.prompts import read_prompts
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

"""Make training pairs for the retouching network.

    python -m tools.make_retouch_pairs CORPUS OUTPUT

    frame s of a clip ──warped to the motion of frames t, t+1──► base        frames t, t+1 ──► truth

Both are cut to the mouth window by their own landmarks, so a pair differs by what the warp cannot draw and not by the
position of the head. Pairs have two consecutive frames so that training can penalise flicker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tyro
from rich.progress import track
from safetensors.numpy import save_file

from flowportrait.data.corpus import FaceClip
from flowportrait.files import atomic_write
from flowportrait.media.crop import apply_affine
from flowportrait.media.video import iter_frames
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.mouth_geometry import (
    MouthFrame,
    cut_mouth_window,
    mouth_state,
    mouth_window_transform,
    skin_colour,
)
from flowportrait.rendering.renderer import Renderer
from flowportrait.rendering.self_reenactment import portrait_from_frame, self_reenactment_motion

_SIZE = 384
"""Side of the crop at which faces in the footage have about the resolution of the window."""

_TRUE_SHARE = 0.7
"""How far every second pair is warped from the basis's approximation towards the tracked landmarks, so that the network
also learns from pairs in which the lips agree with the truth."""


@dataclass(frozen=True)
class Config:
    """Which footage is used for pairs."""

    corpus: tyro.conf.Positional[Path]
    # prepared corpus; its videos lie below $FLOWPORTRAIT_DATA
    output: tyro.conf.Positional[Path]
    # folder for pairs-K.safetensors
    part: int = 0
    parts: int = 1
    # this process takes every ``parts``-th clip, starting at ``part``
    per_source: int = 6
    # pairs for each portrait frame
    longest_speaker: int = 70
    # largest number of clips of one speaker
    dev: bool = False
    # use the held-out speakers instead of the training speakers, for monitoring


def main(config: Config) -> None:
    """Cut the pairs and write them."""
    cv2.setNumThreads(1)
    footage = Path(os.environ["FLOWPORTRAIT_DATA"])
    clip_count: dict[str, int] = {}
    chosen = []
    for line in (config.corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        clip_count[record["speaker"]] = clip_count.get(record["speaker"], 0) + 1
        if (record["split"] == "dev") == config.dev and clip_count[record["speaker"]] <= config.longest_speaker:
            chosen.append(record)
    columns: dict[str, list[Any]] = {}
    chosen = chosen[config.part :: config.parts]
    for number, record in enumerate(track(chosen, description="cutting pairs")):
        video = footage / f"{record['name']}.mp4"
        if not video.is_file():
            continue
        clip = FaceClip.load(config.corpus / "clips" / f"{record['name']}.safetensors")
        for row in clip_pairs(clip, video, config.per_source, np.random.default_rng([number, config.part])):
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    name = f"{'dev' if config.dev else 'pairs'}-{config.part}.safetensors"
    save_pairs(columns, config.output / name)


def save_pairs(columns: dict[str, list[Any]], path: Path) -> None:
    """Write pairs, column by column, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        save_file({name: np.stack(values) for name, values in columns.items()}, str(partial))


def clip_pairs(
    clip: FaceClip, video: Path, per_source: int, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """Yield pairs of one clip; its portraits are random frames, one for every three seconds."""
    frames = list(iter_frames(video))
    length = min(len(frames), len(clip))
    for _ in range(1 + length // 75):
        source = int(rng.integers(length))
        firsts = rng.permutation(length - 1)[:per_source]
        yield from portrait_pairs(frames, clip.landmarks, clip.blendshapes, source, [(t, t + 1) for t in firsts])


def portrait_pairs(
    frames: Sequence[np.ndarray],
    landmarks: np.ndarray,
    blendshapes: np.ndarray,
    source: int,
    chosen: Sequence[tuple[int, int]],
    size: int = _SIZE,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the pairs of one portrait.

    Args:
        frames: pictures of one person, ``T`` times ``[H, W, 3]`` uint8.
        landmarks: their landmarks ``[T, 478, 3]`` px.
        blendshapes: their blendshapes ``[T, 52]``.
        source: number of the picture that is the portrait.
        chosen: numbers of the two pictures of each pair.
        size: side of the portrait's crop in px.
    """
    portrait = portrait_from_frame(frames[source], landmarks[source], blendshapes[source], size)
    basis = MotionBasis.load()
    _, identity = basis.encode(portrait.landmarks[None], portrait.blendshapes[None], smooth=False)
    decoded = basis.decode(self_reenactment_motion(landmarks, blendshapes, source), identity).numpy()
    tracked = apply_affine(portrait.to_crop, landmarks)
    renderer = Renderer(portrait, retouch=False)
    mouth = MouthFrame(portrait.landmarks)
    start = mouth_window_transform(portrait.landmarks)
    common = {
        "source": cut_mouth_window(portrait.crop, start),
        "source_inner": to_byte(mouth_state(mouth, portrait.landmarks, start).inner),
        "skin": skin_colour(portrait.crop, portrait.landmarks).astype(np.float32),
    }
    for number, both in enumerate(chosen):
        share = _TRUE_SHARE * (number % 2)
        rows = []
        for t in both:
            target = decoded[t] + share * (tracked[t] - decoded[t])
            truth = cut_mouth_window(frames[t], mouth_window_transform(landmarks[t]))
            rows.append(drawn_row(renderer.draw(target), target, mouth) | {"truth": truth})
        yield common | {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def drawn_row(drawn: np.ndarray, target: np.ndarray, mouth: MouthFrame) -> dict[str, np.ndarray]:
    """Return the window of a drawn frame ``[S, S, 3]`` uint8 for landmarks ``[478, 3]`` px, and where its mouth is."""
    matrix = mouth_window_transform(target)
    state = mouth_state(mouth, target, matrix)
    return {
        "base": cut_mouth_window(drawn, matrix),
        "inner": to_byte(state.inner),
        "outer": to_byte(state.outer),
        "place": state.place,
        "drop": np.array([state.jaw, state.height], np.float32),
    }


def to_byte(share: np.ndarray) -> np.ndarray:
    """Return shares as uint8."""
    return np.round(share * 255).astype(np.uint8)


if __name__ == "__main__":
    main(tyro.cli(Config))

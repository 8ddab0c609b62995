"""Training and test data of sync experts: augmentation, clips and batches.

A batch has several clips of few speakers, so that the sound of another clip cannot be told apart by the voice or the
microphone, only by the motion of the mouth. Augmentation changes what may differ between footage and renderings without
affecting sync: light, lens, codec, framing, microphone. It changes all frames of a clip in the same way, so that motion
is kept.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import MOUTH_CROP
from flowportrait.evaluation.motion_metrics import frame_rms, mouth_opening
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.rendering.motion_basis import LOWER_FACE, MotionBasis, mirror_matrix

# --- Augmentation ----------------------------------------------------------------------------------------------------


def reencode_patches(mouth: np.ndarray, crf: int) -> np.ndarray:
    """Return patches ``[T, 48, 64]`` encoded and decoded as H.264 at ``crf``: same shape, blocky and softer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "patch.mp4"
        write_video(path, (np.repeat(patch[..., None], 3, -1) for patch in mouth), None, crf=crf)
        frames = np.array([frame[..., 1] for frame in iter_frames(path)])
    return frames[: len(mouth)]


def jitter_patches(mouth: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return augmented patches ``[B, T, 40, 56]`` float in [0, 255] of uint8 patches ``[B, T, 48, 64]``.

    Flip, framing, exposure, gamma, side light, blur, noise and frame blending are random.
    """
    batch = len(mouth)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(low, high, (batch, 1, 1, 1))).float()

    def some(share: float) -> torch.Tensor:
        return torch.from_numpy(rng.random((batch, 1, 1, 1)) < share)

    image = _reframe(mouth.float(), rng)
    image = torch.where(some(0.5), _soften(image, rng), image)
    blended = image.clone()
    blended[:, 1:-1] = 0.25 * image[:, :-2] + 0.5 * image[:, 1:-1] + 0.25 * image[:, 2:]
    image = torch.where(some(0.15), blended, image)
    image = 255 * (image.clamp(0, 255) / 255) ** torch.exp(uniform(-0.5, 0.5))
    across = torch.linspace(-1, 1, MOUTH_CROP[1]) * uniform(-0.5, 0.5) + torch.linspace(-1, 1, MOUTH_CROP[0])[
        :, None
    ] * uniform(-0.4, 0.4)
    image = (image - 128) * uniform(0.6, 1.3) + 128 + uniform(-40, 40)
    image = image * (1 + across)
    noise = torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
    return (image + noise * uniform(0, 6)).clamp(0, 255)


def _reframe(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    batch, _, height, width = image.shape
    angle, scale = rng.normal(0, 0.07, batch), np.exp(rng.normal(0, 0.08, batch))
    flip = rng.choice([-1.0, 1.0], batch)
    squeeze = np.exp(rng.normal(0, 0.05, batch))
    theta = np.zeros((batch, 2, 3))
    y, x = MOUTH_CROP[0] / height, MOUTH_CROP[1] / width
    theta[:, 0, 0], theta[:, 0, 1] = flip * scale * np.cos(angle) * x, -scale * np.sin(angle) * y
    theta[:, 1, 0], theta[:, 1, 1] = flip * scale * np.sin(angle) * x, scale * squeeze * np.cos(angle) * y
    theta[:, :, 2] = rng.normal(0, 0.05, (batch, 2))
    grid = F.affine_grid(torch.from_numpy(theta).float(), [batch, 1, *MOUTH_CROP], align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def _soften(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return the images blurred, or reduced and enlarged, with one strength for the batch."""
    if rng.random() < 0.5:
        small = F.interpolate(image, scale_factor=float(rng.uniform(0.35, 0.8)), mode="area")
        return F.interpolate(small, size=image.shape[-2:], mode="bilinear", align_corners=False)
    sigma = float(rng.uniform(0.4, 1.8))
    tap = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
    tap = tap / tap.sum()
    flat = F.pad(image.flatten(0, 1)[:, None], (4, 4, 4, 4), mode="replicate")
    return F.conv2d(F.conv2d(flat, tap.view(1, 1, 1, 9)), tap.view(1, 1, 9, 1)).view(image.shape)


def jitter_mel(mel: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return log-mel ``[B, 4T, 80]`` with random gain, smooth equalisation, steady coloured noise and a masked band."""
    batch, _, bands = mel.shape
    position = torch.linspace(0, math.pi, bands)
    ripple = sum(
        torch.from_numpy(rng.normal(0, 0.12 / k, (batch, 1))).float() * torch.cos(k * position) for k in (1, 2, 3)
    )
    gain = torch.from_numpy(rng.normal(0, 0.18, (batch, 1))).float()
    energy = torch.exp(4 * (mel + (ripple + gain)[:, None]) - 9.5)
    colour = torch.from_numpy(rng.normal(0, 0.8, (batch, 1))).float() * torch.cos(position)
    floor = torch.from_numpy(rng.uniform(-13.5, -6.0, (batch, 1))).float() + colour
    noisy = (torch.log(energy + torch.exp(floor)[:, None]) + 9.5) / 4
    for row, width, start in zip(noisy, rng.integers(0, 13, batch), rng.integers(0, bands - 12, batch), strict=True):
        row[:, start : start + width] = row[:, start : start + width].mean()
    return noisy


@lru_cache(maxsize=1)
def _mirror() -> torch.Tensor:
    return mirror_matrix(MotionBasis.load())[LOWER_FACE, LOWER_FACE]


def jitter_motion(motion: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return augmented lower-face motion ``[B, T, 16]``.

    Mirroring, overall and per-coefficient gain, and tracking noise are random.
    """
    batch, _, size = motion.shape
    mirrored = torch.from_numpy(rng.random((batch, 1, 1)) < 0.5)
    motion = torch.where(mirrored, motion @ _mirror(), motion)

    def draw(std: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(0, std, shape)).float()

    gain = torch.exp(draw(0.2, batch, 1, 1) + draw(0.12, batch, 1, size))
    noise = draw(0.08, *motion.shape) * torch.from_numpy(rng.uniform(0, 1.5, (batch, 1, 1))).float()
    return motion * gain + noise


# --- Clips -----------------------------------------------------------------------------------------------------------

PIECE = 28
"""Number of frames of a clip in a batch."""
SPEAKERS = 4
"""Speakers in a batch."""
LONGEST = 75
"""Longer clips are cut into items of this many frames."""


@dataclass
class ExpertClip:
    """One clip of T frames for a sync expert.

    Attributes:
        name: the clip and its first frame.
        speaker: who speaks.
        views: equivalent inputs ``[T, …]``: the original and a re-encoded one.
        mel: ``[4T, 80]``.
        driven: numbers of the frames that a mouth driven by loudness would show, ``[T]``.
        delay: estimated delay of the sound in frames.
        included: whether training uses the clip.
    """

    name: str
    speaker: str
    views: list[torch.Tensor]
    mel: torch.Tensor
    driven: torch.Tensor
    delay: int = 0
    included: bool = True

    def __len__(self) -> int:
        return len(self.views[0])


def loudness_driven_frames(clip: FaceClip, smooth: float = 1.0) -> np.ndarray:
    """Return frame numbers ``[T]`` of the clip with which its mouth follows loudness.

    The rank of the mouth opening equals the rank of loudness.
    """
    openness = mouth_opening(clip.landmarks)
    loud = frame_rms(clip.audio, len(clip), smooth)
    order = np.empty(len(clip), np.int64)
    order[np.argsort(loud, kind="stable")] = np.argsort(openness, kind="stable")
    return order


def load_expert_clips(
    corpus: Path, splits: Sequence[str], views: Callable[[FaceClip], list[torch.Tensor]]
) -> list[ExpertClip]:
    """Return all clips of ``splits`` in a prepared corpus.

    Raises:
        BadInput: if there is no corpus, or no clip of these splits in it.
    """
    index = corpus / "clips.jsonl"
    if not index.is_file():
        raise BadInput(f"No corpus at {corpus}: prepare one first (clips.jsonl is missing).")
    records = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]
    selected = [r for r in records if r["split"] in splits and r["frames"] >= PIECE]
    if not selected:
        raise BadInput(f"{index} lists no clip of split {' or '.join(splits)}: prepare a corpus with a split.tsv.")
    return [
        item
        for record in track(selected, description=f"reading {'/'.join(splits)}")
        for item in _split_clip(record, FaceClip.load(corpus / "clips" / f"{record['name']}.safetensors"), views)
    ]


def _split_clip(
    record: dict[str, str], clip: FaceClip, views: Callable[[FaceClip], list[torch.Tensor]]
) -> list[ExpertClip]:
    """Return a clip as items; a long one gives several, so that a single long video still gives distinct windows."""
    faces, mel = views(clip), log_mel(normalize_loudness(clip.audio))
    items = []
    for start in range(0, max(1, len(clip) - PIECE + 1), LONGEST):
        stop = min(start + LONGEST, len(clip))
        part = FaceClip(
            clip.landmarks[start:stop],
            clip.blendshapes[start:stop],
            clip.mouth[start:stop],
            clip.size,
            clip.audio[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME],
        )
        items.append(
            ExpertClip(
                f"{record['name']}@{start}",
                record["speaker"],
                [face[start:stop] for face in faces],
                mel[MELS_PER_FRAME * start : MELS_PER_FRAME * stop],
                torch.from_numpy(loudness_driven_frames(part, 1.5)),
            )
        )
    return items


# --- Batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpertBatch:
    """Windows of L frames of B clips.

    Attributes:
        face: ``[B, L, …]``.
        mel: ``[B, 4L, 80]`` at the same times.
        driven: ``[P, L, …]`` loudness-driven mouths for the first P clips' sound.
    """

    face: torch.Tensor
    mel: torch.Tensor
    driven: torch.Tensor


def draw_batch(items: list[ExpertClip], rng: np.random.Generator, clips: int, driven: int) -> ExpertBatch:
    """Return a random batch of windows of ``PIECE`` frames, with known delays compensated.

    Args:
        items: clips to draw from.
        rng: source of randomness.
        clips: number of clips, from up to four speakers.
        driven: for how many of them a loudness-driven mouth is returned as well.
    """
    by_speaker: dict[str, list[ExpertClip]] = {}
    for item in items:
        if item.included and len(item) - abs(item.delay) >= PIECE:
            by_speaker.setdefault(item.speaker, []).append(item)
    names = sorted(by_speaker)
    weight = np.sqrt([sum(map(len, by_speaker[name])) for name in names])
    speakers = rng.choice(len(names), size=min(SPEAKERS, len(names)), replace=False, p=weight / weight.sum())
    chosen = []
    for speaker in speakers:
        pool = by_speaker[names[speaker]]
        chosen += [pool[i] for i in rng.permutation(len(pool))[: clips // len(speakers)]]
    face, mel = [], []
    fake: list[torch.Tensor] = []
    for item in rng.permutation(np.array(chosen, object)):
        view = item.views[rng.integers(len(item.views))]
        start = max(0, -item.delay) + int(rng.integers(len(item) - abs(item.delay) - PIECE + 1))
        sound = start + item.delay
        face.append(view[start : start + PIECE])
        mel.append(item.mel[MELS_PER_FRAME * sound : MELS_PER_FRAME * (sound + PIECE)])
        if len(fake) < driven:
            fake.append(view[item.driven[sound : sound + PIECE]])
    return ExpertBatch(torch.stack(face), torch.stack(mel), torch.stack(fake))

"""Measure real motion and real pictures as references of the rewards, on training speakers only.

    python -m tools.measure_reward_constants CORPUS OUTPUT.json

writes the constants of real motion to OUTPUT.json and the quantiles that ``rewards.motion`` compares with beside its
weights, and prints how often these speakers blink (``habits.BLINKS_PER_SECOND``).

    python -m tools.measure_reward_constants CORPUS FOOTAGE weights/flowportrait_weights/reward

writes three files:

``face_density.safetensors``  statistics of the faces of training speakers (``realness``)
``real.json``   mean and deviation of every measurement, on footage (``filmed``) and on real motion rendered at the
                small size of post-training (``drawn``)
``noise.json``  standard deviation of every reward when one clip is framed and encoded again, tracked and scored again

The dev speakers that ``python -m benchmarks reward-matrix`` uses are unseen speakers for all of these.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track
from skimage.data import astronaut

from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.files import write_json
from flowportrait.media.audio import read_audio
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS, iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.arflow import load_generator
from flowportrait.rendering.motion_basis import BLINK
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards import motion_distribution as crowd
from flowportrait.rewards.batch import REWARD_CROP_SIDE as RENDERED
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.consistency import FaceFeatureSimilarity, PerceptualReward, SharpnessReward, TemporalReward
from flowportrait.rewards.face import (
    STATISTICS_SIDE,
    FaceDensity,
    RealnessReward,
    align_faces,
    aligned_portrait_face,
    face_statistics,
    frame_pair_indices,
)
from flowportrait.rewards.interface import Reward, score_batch
from flowportrait.rewards.motion import RealMotionStatistics, count_lid_closures
from flowportrait.rewards.registry import WEIGHTED_REWARDS, RewardOptions, build_reward, reward_noise_key
from flowportrait.rewards.relative import SelfConfidenceReward
from flowportrait.rl.task import PortraitRenderer

# --- Motion ----------------------------------------------------------------------------------------------------------

FRAMES = crowd.CROWD_WINDOW_FRAMES
PER_SPEAKER = 12


def real_windows(corpus: Path) -> torch.Tensor:
    """Return windows ``[N, 28, 30]`` of motion, the same number from every training speaker."""
    tracks: dict[str, list[torch.Tensor]] = {}
    count, seconds = 0, 0.0
    for clip in load_motion_clips(corpus, ("reward", "evaluation")):
        if len(clip.motion) >= FRAMES:
            tracks.setdefault(clip.speaker, []).append(clip.motion.unfold(0, FRAMES, FRAMES).mT)
            count += count_lid_closures(clip.motion[:, BLINK].mean(-1).numpy())
            seconds += len(clip.motion) / FPS
    print(f"{count / seconds:.2f} blinks a second")
    by_speaker = [torch.cat(parts) for parts in tracks.values()]
    return torch.cat([w[torch.linspace(0, len(w) - 1, PER_SPEAKER).long()] for w in by_speaker])


def measure_motion(corpus: Path, output: Path) -> None:
    """Write the constants of real motion, and the quantiles that ``rewards.motion`` compares with."""
    real = real_windows(corpus)
    output.write_text(RealMotionStatistics.measure(real).to_json() + "\n", encoding="utf-8")
    crowd.save_real_quantiles(real)


# --- Pictures --------------------------------------------------------------------------------------------------------

PICTURE_FRAMES = 29
CLIPS = 4
"""Clips per training speaker."""
REPEATED = 20
"""Number of clips that are scored twice."""
PORTRAITS = 6
"""Portraits on which real motion is rendered."""


def training_clips(corpus: Path, footage: Path) -> Iterator[tuple[str, Path]]:
    """Yield speaker and video of up to ``CLIPS`` clips of every training speaker."""
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["split"] != "dev" and record["frames"] >= PICTURE_FRAMES:
            by_speaker[record["speaker"]].append(record["name"])
    for speaker, names in sorted(by_speaker.items()):
        for place in np.linspace(0, len(names) - 1, min(CLIPS, len(names))).astype(int):
            yield speaker, footage / f"{names[place]}.mp4"


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the first frames of a video ``[T, H, W, 3]`` and its sound."""
    frames = [frame for frame, _ in zip(iter_frames(path), range(PICTURE_FRAMES), strict=False)]
    return np.stack(frames), read_audio(path)


def filmed_again(frames: np.ndarray, seed: int) -> np.ndarray:
    """Return the clip framed slightly differently and encoded again, which no reward should react to."""
    rng = np.random.default_rng(seed)
    scale, (x, y) = float(np.exp(rng.normal(0, 0.02))), rng.normal(0, 2.0, 2)
    centre = np.array(frames.shape[2:0:-1]) / 2
    matrix = np.array([[scale, 0, x + (1 - scale) * centre[0]], [0, scale, y + (1 - scale) * centre[1]]])
    moved = [cv2.warpAffine(f, matrix, f.shape[1::-1], borderMode=cv2.BORDER_REPLICATE) for f in frames]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "again.mp4"
        write_video(path, moved, None, crf=int(rng.integers(19, 26)))
        return np.stack(list(iter_frames(path)))[: len(frames)]


def drawn(batch: RewardBatch, portraits: Sequence[Portrait]) -> RewardBatch:
    """Return the batch with its real motion rendered on other faces."""
    codecs = [MotionCodec(portrait, RENDERED, retouch=False) for portrait in portraits]
    rows = [row % len(codecs) for row in range(len(batch))]
    return RewardBatch(batch.motion, batch.mel, PortraitRenderer(codecs, rows, RENDERED))


def measure(corpus: Path, footage: Path, output: Path) -> None:
    """Write the three files of picture constants into ``output``."""
    clips = [(speaker, *read(path)) for speaker, path in track(list(training_clips(corpus, footage)), "reading")]
    portraits = [Portrait.from_image(frames[0]) for _, frames, _ in track(clips, "portraits")]
    batch = RewardBatch.from_frames([frames for _, frames, _ in clips], [audio for _, _, audio in clips])
    tracked = torch.tensor([row for row in range(len(batch)) if row not in batch.tracking_failures])
    batch, own_portraits = batch.select(tracked), [portraits[row] for row in tracked.tolist()]
    output.mkdir(parents=True, exist_ok=True)
    indices = frame_pair_indices(PICTURE_FRAMES)
    faces = align_faces(batch.frames(indices).flatten(0, 1), batch.places(indices).flatten(0, 1), STATISTICS_SIDE)
    statistics = face_statistics(faces).unflatten(0, (len(batch), -1))
    photos = torch.cat([face_statistics(aligned_portrait_face(portrait, RENDERED)) for portrait in own_portraits])[
        :, None
    ]
    photos = photos.expand_as(statistics)
    density = FaceDensity.fit(statistics.flatten(0, 1), photos.flatten(0, 1))
    density.save(output / "face_density.safetensors")
    real: dict[str, list[float]] = {}
    faces_drawn = [Portrait.from_image(astronaut()), *own_portraits[:: len(own_portraits) // (PORTRAITS - 1)]][
        :PORTRAITS
    ]
    batch.portraits = None
    rendered = drawn(batch, faces_drawn)
    for domain, clips_of_domain in (("filmed", batch), ("drawn", rendered)):
        references = own_portraits if domain == "filmed" else rendered.portraits
        for reference in (None, references):
            clips_of_domain.portraits = reference
            found: dict[str, torch.Tensor] = {}
            for scorer in (
                TemporalReward({}),
                PerceptualReward({}),
                PerceptualReward({}, FaceFeatureSimilarity()),
                SharpnessReward({}),
            ):
                found |= scorer.measure(clips_of_domain)
            if domain == "drawn":
                found |= RealnessReward(density, {}).measure(clips_of_domain)
            else:
                found |= realness_of_unseen(clips_of_domain, statistics, photos)
            for name, value in found.items():
                real[f"{name}/{domain}"] = [float(value.mean()), float(value.std())]
    write_json(output / "real.json", real)
    write_json(output / "noise.json", {})
    rewards = [
        *(build_reward(name) for name in WEIGHTED_REWARDS),
        build_reward("perceptual", RewardOptions(backbone="face")),
    ]
    noise = repeatability(rewards, clips, portraits) | {"self_confidence": seed_noise(batch)}
    write_json(output / "noise.json", noise)


def realness_of_unseen(batch: RewardBatch, statistics: torch.Tensor, photos: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the measurements of ``RealnessReward`` on unseen speakers.

    Each half of the speakers is measured with the density of the other half.
    """
    clips = torch.arange(len(batch))
    found: dict[str, list[torch.Tensor]] = defaultdict(list)
    for half in clips.tensor_split(2):
        rest = ~torch.isin(clips, half)
        others = FaceDensity.fit(statistics[rest].flatten(0, 1), photos[rest].flatten(0, 1))
        for name, value in RealnessReward(others, {}).measure(batch.select(half)).items():
            found[name].append(value)
    return {name: torch.cat(values) for name, values in found.items()}


def repeatability(
    rewards: Sequence[Reward], clips: Sequence[tuple[str, np.ndarray, np.ndarray]], portraits: Sequence[Portrait]
) -> dict[str, float]:
    """Return the standard deviation of each reward over framings and encodings of one clip.

    The estimate is robust: 1.48 × median absolute difference / √2.
    """
    chosen = np.linspace(0, len(clips) - 1, REPEATED).astype(int)
    batches = []
    for repeat in range(2):
        frames = [filmed_again(clips[place][1], 2 * int(place) + repeat) for place in track(chosen, "filmed again")]
        batches.append(
            RewardBatch.from_frames(
                frames, [clips[place][2] for place in chosen], portraits=[portraits[place] for place in chosen]
            )
        )
    result = {}
    for reward in rewards:
        if not reward.needs <= batches[0].has:
            continue
        first, second = (score_batch(reward, batch) for batch in batches)
        both = first.valid & second.valid
        difference = (first.value - second.value)[both].abs()
        if len(difference):
            result[reward_noise_key(reward)] = round(1.4826 * float(difference.median()) / 2**0.5, 5)
    return result


@torch.no_grad()
def seed_noise(batch: RewardBatch) -> float:
    """Return the standard deviation of the policy's confidence in real motion over seeds of the noise added to it."""
    policy = load_generator("sft").eval()
    frames = batch.motion.shape[1] // policy.config.chunk * policy.config.chunk
    motion, mel = batch.motion[:, :frames], batch.mel[:, : frames * MELS_PER_FRAME]
    chunks = motion.unflatten(1, (-1, policy.config.chunk))
    before = torch.cat([torch.zeros_like(chunks[:, :1, -1]), chunks[:, :-1, -1]], 1)
    known = RewardBatch(
        motion, mel, policy=policy, condition=policy.condition(mel), latents=policy.space.encode(chunks, before)
    )
    first, second = (SelfConfidenceReward(seed=seed)(known).value for seed in (0, 1))
    # Samples of one group share their noise, so a constant shift of all of them does not count.
    difference = first - second
    return round(1.4826 * float((difference - difference.median()).abs().median()) / 2**0.5, 5)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure_motion(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        measure(*(Path(argument) for argument in sys.argv[1:4]))

"""What every reward notices in damaged footage and motion and what it costs, and tests of the sync experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from scipy.stats import mannwhitneyu
from skimage.data import astronaut

from benchmarks.material import dev_records, load_clip, spread_evenly, use_one_thread
from benchmarks.record import Record
from benchmarks.timing import processor_seconds, stopwatch
from flowportrait.commands.options import Flag, OptionalPath
from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import PixelSyncExpert
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.crop import apply_affine, canonical_transform, crop_transform
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.models.arflow import load_generator
from flowportrait.rendering.motion_basis import BLINK, GAZE, HEAD, LOWER_FACE, MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import REWARD_CROP_SIDE, RecordedFrames, RewardBatch, crop_frame
from flowportrait.rewards.face import FaceNet, align_faces, frame_pair_indices
from flowportrait.rewards.interface import Reward, score_batch
from flowportrait.rewards.motion import find_silent_frames
from flowportrait.rewards.registry import WEIGHTED_REWARDS, CompositeReward, RewardOptions, build_reward
from flowportrait.rewards.sync import MotionSyncExpert, lower_face_motion
from flowportrait.rl.task import PortraitRenderer
from flowportrait.terminal import progress

FOOTAGE_FRAMES = 29
FOOTAGE_CLIPS = 4
"""Clips of a speaker whose footage is damaged."""
MOTION_CLIPS = 16
"""Clips of a speaker whose motion is damaged, at most."""
MOTION_REWARDS = ("sync", "silent_lip", "expressiveness", "eyes", "head", "smoothness", "self_confidence")
Scores = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RewardMatrixOptions:
    """Measure which damage every reward notices, and what a reward costs.

    matrix: footage of dev speakers is damaged, and motion: their motion, each at three strengths. The figure is the
    mean change of the score in standard deviations of undamaged clips. people: whether the face network tells people
    apart, by the size of the face. cost: scores per second. A reward should fall for the damage that it is about, and
    not move for the rest.
    """

    corpus: OptionalPath = None
    """Prepared corpus with dev speakers; not needed for cost."""
    data: OptionalPath = None
    """Footage folder, for matrix and people."""
    part: tuple[Literal["matrix", "motion", "people", "cost"], ...] = ("matrix", "motion", "people", "cost")
    """What to measure, of matrix, motion, people, cost."""
    known: Flag = False
    """Take landmarks as they were damaged instead of tracking damaged footage, which is faster."""
    frames: int = 28
    """Length of the clips whose motion is damaged, a multiple of 4."""
    rewards: tuple[str, ...] = ()
    """Names of rewards; by default all that a recipe can weight."""
    damages: tuple[str, ...] = ()
    """Kinds of damage; all by default."""


def reward_matrix(options: RewardMatrixOptions, record: Record) -> None:
    """Do the parts that are asked for."""
    if unknown := set(options.rewards) - set(WEIGHTED_REWARDS):
        raise BadInput(f"--rewards {sorted(unknown)[0]} is none of {', '.join(WEIGHTED_REWARDS)}.")
    work: dict[str, Callable[[RewardMatrixOptions, Record], None]] = {
        "matrix": damage_footage, "motion": damage_motion, "people": tell_people_apart, "cost": time_rewards,
    }  # fmt: skip
    for part in options.part:
        if part != "cost" and (options.corpus is None or (part != "motion" and options.data is None)):
            raise BadInput(f"The part {part} needs {'--corpus' if part == 'motion' else '--corpus and --data'}.")
    for part in options.part:
        work[part](options, record)


# ── damaged footage ────────────────────────────────────────────────────────────────────────────────────────────────

FootageDamage = Callable[[Footage, float, int], Footage]


def blur_mouth(clip: Footage, sigma: float, seed: int = 0) -> Footage:
    """Blur the mouth alone."""
    frames = clip.pictures("soft mouth").copy()
    for frame, points in zip(frames, clip.points("soft mouth"), strict=True):
        mouth = points[[61, 291, 0, 17, 13, 14], :2]
        (left, top), (right, bottom) = mouth.min(0).astype(int) - 6, mouth.max(0).astype(int) + 6
        frame[top:bottom, left:right] = cv2.GaussianBlur(frame, (0, 0), sigma)[top:bottom, left:right]
    return Footage(frames, clip.audio, clip.landmarks)


def mix_in_face(clip: Footage, other: Footage, share: float) -> Footage:
    """Let the face fade into another person's."""
    frames = clip.pictures("another face").copy()
    theirs = canonical_transform(other.points("another face")[0])
    for frame, points in zip(frames, clip.points("another face"), strict=True):
        back = np.vstack([cv2.invertAffineTransform(canonical_transform(points)), [0, 0, 1]])
        matrix = (back @ np.vstack([theirs, [0, 0, 1]]))[:2]
        face = cv2.warpAffine(other.pictures("another face")[0], matrix, frame.shape[1::-1])
        mask = np.zeros(frame.shape[:2], np.float32)
        cv2.fillConvexPoly(mask, cv2.convexHull(points[:468, :2].astype(np.float32)).astype(np.int32), 1.0)
        weight = share * cv2.GaussianBlur(mask, (0, 0), 3)[..., None]
        frame[:] = (weight * face + (1 - weight) * frame).round().astype(np.uint8)
    return Footage(frames, clip.audio, clip.landmarks)


def unseen_footage(options: RewardMatrixOptions) -> Iterator[tuple[str, Footage, np.ndarray]]:
    """Yield speaker, footage and blendshapes of short clips of dev speakers."""
    assert options.corpus is not None
    assert options.data is not None
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for found in dev_records(options.corpus):
        if found["frames"] >= FOOTAGE_FRAMES and found["name"].startswith("anchors"):
            by_speaker[found["speaker"]].append(found["name"])
    for speaker, names in sorted(by_speaker.items()):
        for name in spread_evenly(names, FOOTAGE_CLIPS):
            clip = load_clip(options.corpus, name)
            frames = np.stack(list(islice(iter_frames(options.data / f"{name}.mp4"), FOOTAGE_FRAMES)))
            footage = Footage(frames, clip.audio[: FOOTAGE_FRAMES * 640], clip.landmarks[:FOOTAGE_FRAMES])
            yield speaker, footage, clip.blendshapes[:FOOTAGE_FRAMES]


def damage_footage(options: RewardMatrixOptions, record: Record) -> None:
    """Damage footage by the catalogue, track it and score it."""
    speakers, clips, shapes = zip(*unseen_footage(options), strict=True)
    portraits = [Portrait.from_image(clip.frames[0]) for clip in clips]
    rewards = [build_reward(name) for name in options.rewards or WEIGHTED_REWARDS if name != "self_confidence"]
    damages: dict[str, tuple[FootageDamage, Sequence[float]]] = {
        name: (catalogue_damage(name), found.strengths) for name, found in CORRUPTIONS.items()
    }
    damages["soft mouth"] = (blur_mouth, (1.0, 2.0, 4.0))
    damages["another face"] = (
        lambda clip, share, seed: mix_in_face(clip, clips[(seed + FOOTAGE_CLIPS) % len(clips)], share), (0.2, 0.4, 0.8),
    )  # fmt: skip

    def score(damaged: Sequence[Footage]) -> Scores:
        if options.known:
            batch = batch_of_known_tracks(damaged, shapes, portraits)
        else:
            frames, sounds = zip(*map(pictures_and_sound, damaged), strict=True)
            batch = RewardBatch.from_frames(frames, sounds, portraits=portraits)
        return {reward.name: score_batch(reward, batch).value for reward in rewards}

    jobs = {
        (name, strength): damage
        for name, (damage, strengths) in damages.items()
        for strength in strengths
        if not options.damages or name in options.damages
    }
    found = {
        job: score([damage(clip, job[1], seed) for seed, clip in enumerate(clips)])
        for job, damage in progress(jobs.items(), len(jobs), "damaging and scoring")
    }
    add_changes(record, "damaged footage", score(clips), found)
    how = "tracks as damaged" if options.known else "tracked anew"
    record.note(f"Damaged footage: {len(clips)} clips of {len(set(speakers))} dev speakers, {how}.")


def catalogue_damage(name: str) -> FootageDamage:
    """Return the damage of the catalogue with a name."""
    return lambda clip, strength, seed: corrupt(clip, name, strength, seed)


def pictures_and_sound(clip: Footage) -> tuple[np.ndarray, np.ndarray]:
    """Return frames and sound of footage that has both."""
    assert clip.audio is not None
    return clip.pictures("scoring"), clip.audio


def batch_of_known_tracks(
    damaged: Sequence[Footage], shapes: Sequence[np.ndarray], portraits: Sequence[Portrait]
) -> RewardBatch:
    """Return what ``RewardBatch.from_frames`` returns, with the landmarks of the damage instead of tracked ones."""
    motions, mels, crops, points = [], [], [], []
    for clip, shape in zip(damaged, shapes, strict=True):
        (frames, sound), landmarks = pictures_and_sound(clip), clip.points("scoring")
        to_crop = crop_transform(np.median(landmarks, 0), frames.shape[1:3], REWARD_CROP_SIDE)
        motions.append(MotionBasis.load().encode(landmarks, shape)[0])
        mels.append(log_mel(normalize_loudness(sound)))
        crops.append(np.stack([crop_frame(frame, to_crop, REWARD_CROP_SIDE) for frame in frames]))
        points.append(apply_affine(to_crop, landmarks)[..., :2])
    recorded = RecordedFrames(np.stack(crops), np.stack(points))
    return RewardBatch(torch.stack(motions), torch.stack(mels), recorded, portraits=portraits, domain="filmed")


def add_changes(record: Record, group: str, clean: Scores, found: dict[tuple[str, float], Scores]) -> None:
    """Add the mean change of every reward, in standard deviations of undamaged clips, and which rewards fall."""
    changes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (damage, _), scores in found.items():
        for name, value in scores.items():
            both = torch.isfinite(value) & torch.isfinite(clean[name])
            change = (value - clean[name])[both] / clean[name][both].std()
            changes[name, damage].append(float(change.mean()))
            strength = len(changes[name, damage])
            estimate = bootstrap_mean(change.double().numpy()) if both.any() else None
            record.add(name, damage, estimate, group=f"{group}, strength {strength} of 3")
    for (name, damage), values in changes.items():
        falls = bool((np.diff([0.0, *values]) < 0.1).all() and values[-1] <= -0.5)
        record.add(name, damage, float(falls), group=f"{group}: falls with the strength, by half a deviation (1: yes)")


# ── damaged motion ─────────────────────────────────────────────────────────────────────────────────────────────────


def damage_motion(options: RewardMatrixOptions, record: Record) -> None:
    """Damage motion itself, which is exact, and the only way to score the policy's own confidence."""
    assert options.corpus is not None
    policy, frames = load_generator("sft").eval(), options.frames
    by_speaker: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in load_motion_clips(options.corpus, ("dev",)):
        if len(clip.motion) >= frames and len(by_speaker[clip.speaker]) < MOTION_CLIPS:
            by_speaker[clip.speaker].append(clip)
    clips = [clip for own in by_speaker.values() for clip in own]
    tracks = torch.stack([clip.motion[:frames] for clip in clips])
    mel = torch.stack([clip.mel[: 4 * frames].float() for clip in clips])
    rewards = [build_reward(name) for name in options.rewards or MOTION_REWARDS]

    @torch.no_grad()
    def score(changed: torch.Tensor) -> Scores:
        chunks = changed.unflatten(1, (-1, policy.config.chunk))
        before = torch.cat([torch.zeros_like(chunks[:, :1, -1]), chunks[:, :-1, -1]], 1)
        latents = policy.space.encode(chunks, before)
        batch = RewardBatch(changed, mel, policy=policy, condition=policy.condition(mel), latents=latents)
        return {reward.name: score_batch(reward, batch).value for reward in rewards}

    damages = {
        name: own for name, own in motion_damages(tracks, mel).items() if not options.damages or name in options.damages
    }
    found = {(name, s): score(damage(s)) for name, (damage, strengths) in damages.items() for s in strengths}
    add_changes(record, "damaged motion", score(tracks), found)
    record.note(f"Damaged motion: {len(clips)} clips of {frames} frames, {len(by_speaker)} dev speakers.")


def motion_damages(
    tracks: torch.Tensor, mel: torch.Tensor
) -> dict[str, tuple[Callable[[float], torch.Tensor], Sequence[float]]]:
    """Return damage to motion ``[B, T, 30]`` by name, as a function of its strength, with three strengths."""
    frames = tracks.shape[1]
    silent = find_silent_frames(mel)[..., None].float()
    noise = torch.randn(tracks.shape, generator=torch.Generator().manual_seed(0))

    def scaled(part: slice, factor: float) -> torch.Tensor:
        changed = tracks.clone()
        middle = changed[..., part].mean(1, keepdim=True)
        changed[..., part] = middle + factor * (changed[..., part] - middle)
        return changed

    def mumbling(share: float) -> torch.Tensor:
        changed = tracks.clone()
        changed[..., LOWER_FACE] += share * silent * tracks[..., LOWER_FACE].roll(frames // 3, 1)
        return changed

    return {
        "late lips": (lambda n: torch.cat([tracks[:, :1].expand(-1, int(n), -1), tracks], 1)[:, :frames], (2, 5, 10)),
        "tremor": (lambda s: tracks + s * noise, (0.1, 0.2, 0.4)),
        "lips damped": (lambda f: scaled(LOWER_FACE, f), (0.7, 0.4, 0.1)),
        "lips exaggerated": (lambda f: scaled(LOWER_FACE, f), (1.5, 2.2, 3.5)),
        "mumbling in silence": (mumbling, (0.3, 0.6, 1.2)),
        "eyes stare": (lambda f: scaled(slice(BLINK.start, GAZE.stop), f), (0.5, 0.2, 0.0)),
        "stiff neck": (lambda f: scaled(HEAD, f), (0.5, 0.2, 0.05)),
        "lolling head": (lambda f: scaled(HEAD, f), (2.0, 4.0, 8.0)),
        "still": (lambda f: scaled(slice(0, 30), f), (0.5, 0.2, 0.02)),
    }


# ── people and cost ────────────────────────────────────────────────────────────────────────────────────────────────


def tell_people_apart(options: RewardMatrixOptions, record: Record) -> None:
    """Add the AUC of same against different speakers by the cosine of embeddings, by the side of the aligned face."""
    speakers, clips, _ = zip(*unseen_footage(options), strict=True)
    frames = [torch.from_numpy(clip.frames[0]).permute(2, 0, 1).float() / 255 for clip in clips]
    points = [torch.from_numpy(clip.landmarks[0, :, :2]) for clip in clips]
    upper = np.triu_indices(len(clips), 1)
    same = np.array([[one == other for one in speakers] for other in speakers])[upper]
    net = FaceNet.load()
    for side in (224, 128, 96, 64):
        faces = torch.cat([align_faces(f[None], p[None], side) for f, p in zip(frames, points, strict=True)])
        with torch.no_grad():
            net(faces[:2])
            with stopwatch() as spent:
                embeddings = net(faces)
        cosine = (embeddings @ embeddings.T).numpy()[upper]
        auc = mannwhitneyu(cosine[same], cosine[~same]).statistic / (same.sum() * (~same).sum())
        figures = {
            "AUC": (auc, ""), "cosine, same": (cosine[same].mean(), ""),
            "cosine, different": (cosine[~same].mean(), ""),
            "cost": (1e3 * spent.processor / len(faces), "ms a face"),
        }  # fmt: skip
        for metric, (value, unit) in figures.items():
            record.add(f"{side} px", metric, float(value), unit=unit, n=len(same), group="people")


def time_rewards(options: RewardMatrixOptions, record: Record) -> None:
    """Time every reward on a rollout of 6 × 16 samples of 72 frames.

    Drawing is timed apart, since rewards share it. Seconds are processor seconds of one core.
    """
    use_one_thread()
    codec = MotionCodec(Portrait.from_image(astronaut()), 128, retouch=False)
    policy = load_generator("sft").eval()
    tracks = 0.5 * torch.randn(96, 72, 30, generator=torch.Generator().manual_seed(0)).cumsum(1) / 8
    sound = torch.randn(640 * 72, generator=torch.Generator().manual_seed(1)) * 0.05
    sound[640 * 40 : 640 * 52] = 0
    mel, drawn = log_mel(sound).expand(96, -1, -1), frame_pair_indices(72)

    def make_batch() -> RewardBatch:
        renderer, latents = PortraitRenderer([codec], [0] * 96, 128), torch.randn(96, 18, policy.latent_dim)
        return RewardBatch(tracks, mel, renderer, policy=policy, condition=policy.condition(mel), latents=latents)

    whole = make_batch()
    drawing = processor_seconds(lambda: whole.frames(drawn))
    record.add("drawing 4 frames", "at once", 96 / drawing, unit="samples/s", group="cost")
    whole.places(drawn)
    single = [whole.select(torch.tensor([row])) for row in range(0, 96, 12)]
    for part in single:
        part.frames(drawn), part.places(drawn)
    rewards: list[tuple[str, Reward]] = [(name, build_reward(name)) for name in options.rewards or WEIGHTED_REWARDS]
    if not options.rewards:
        rewards.append(("perceptual (face)", build_reward("perceptual", RewardOptions(backbone="face"))))
    for name, reward in rewards:
        score_batch(reward, single[0])
        score = partial(score_batch, reward)
        at_once = 96 / processor_seconds(partial(score, whole))
        alone = len(single) / sum(processor_seconds(partial(score, part)) for part in single)
        record.add(name, "at once", at_once, unit="samples/s", group="cost")
        record.add(name, "one by one", alone, unit="samples/s", group="cost")
        record.add(name, "ratio", at_once / alone, group="cost")
    composite, fresh = CompositeReward.default(), make_batch()
    whole_cost = processor_seconds(lambda: composite(fresh))
    record.add("default composite, with drawing", "at once", 96 / whole_cost, unit="samples/s", group="cost")


# ── sync experts ───────────────────────────────────────────────────────────────────────────────────────────────────

VIEWS: dict[str, Callable[[FaceClip], list[torch.Tensor]]] = {
    "evaluation": lambda clip: [torch.from_numpy(clip.mouth)],
    "reward": lambda clip: [lower_face_motion(clip.landmarks, clip.blendshapes)],
}
EXPERTS: dict[str, type[PixelSyncExpert] | type[MotionSyncExpert]] = {
    "evaluation": PixelSyncExpert,
    "reward": MotionSyncExpert,
}
MAX_SHIFT = 12
MIN_WINDOWS = 8


@dataclass(frozen=True)
class SyncExpertsOptions:
    """Test both sync experts on speakers that neither learned from.

    The right sound should score higher than the same sound shifted, another sentence, a still face and a jaw that is
    driven by loudness; the score by shift should peak at zero.
    """

    corpus: Path
    """Prepared corpus with dev speakers."""
    without: tuple[str, ...] = ("grid_s1",)
    """Speakers to leave out: by default the one whose other sentences both experts learned from."""


def sync_experts(options: SyncExpertsOptions, record: Record) -> None:
    """Add the acceptance table of each expert, and its mean score by shift."""
    from tools.sync_expert_data import load_expert_clips
    from tools.train_sync_expert import acceptance_table

    for name in VIEWS:
        clips = [
            clip
            for clip in load_expert_clips(options.corpus, ["dev"], VIEWS[name])
            if clip.speaker not in options.without
        ]
        if not clips:
            raise BadInput(f"{options.corpus} has no clips of dev speakers beside {', '.join(options.without)}.")
        net = EXPERTS[name].load()
        for test, row in acceptance_table(net, clips)["tests"].items():
            record.add(test, "accuracy", row["accuracy"], n=row["pairs"], group=f"{name} expert")
            record.add(test, "right sound", row["right"], group=f"{name} expert")
            record.add(test, "other", row["wrong"], group=f"{name} expert")
        add_shift_curve(net, clips, f"{name} expert: score by shift", record)
        speakers = len({clip.speaker for clip in clips})
        record.note(f"{name} expert: {len(clips)} clips of {speakers} unseen speakers.")


def add_shift_curve(net: Any, clips: Sequence[Any], group: str, record: Record) -> None:
    """Add the mean score by shift; a clip counts at every shift for which it leaves enough windows."""
    from tools.train_sync_expert import embed_clip, shifted_score

    pairs = [embed_clip(net, clip.views[0], clip.mel) for clip in clips]
    for shift in range(-MAX_SHIFT, MAX_SHIFT + 1):
        scores = [shifted_score(*pair, shift) for pair in pairs if len(pair[0]) - abs(shift) >= MIN_WINDOWS]
        if scores:
            record.add(f"sound {shift:+d} frames", "cosine", bootstrap_mean(np.array(scores)), group=group)

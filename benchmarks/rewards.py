"""What every reward notices, what it does not, and what it costs.

    python benchmarks/rewards.py matrix --corpus CORPUS --data FOOTAGE --output DIR   damaged footage of dev speakers
    python benchmarks/rewards.py motion --corpus CORPUS --output DIR                  damaged motion of dev speakers
    python benchmarks/rewards.py people --corpus CORPUS --data FOOTAGE                are people told apart, by size
    python benchmarks/rewards.py cost                                                 scores per second

``matrix`` and ``motion`` print, per reward and damage, the mean change of the score from the undamaged clip at the
three strengths, in standard deviations of undamaged clips' scores; ``*`` marks those that fall at every step (or do not
rise by more than a tenth of a deviation and end at least half a deviation down).
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track
from scipy.stats import mannwhitneyu
from skimage.data import astronaut

from flowportrait.corruption import CORRUPTIONS, Footage, corrupt
from flowportrait.data.corpus import FaceClip
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.media.crop import apply_affine, canonical_transform, crop_transform
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.models.arflow import load_generator
from flowportrait.rendering.motion_basis import BLINK, GAZE, HEAD, LOWER_FACE, MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import REWARD_CROP_SIDE, RecordedFrames, RewardBatch, crop_frame
from flowportrait.rewards.face import FaceNet, align_faces
from flowportrait.rewards.interface import Reward, score_batch
from flowportrait.rewards.motion import find_silent_frames
from flowportrait.rewards.registry import WEIGHTED_REWARDS, CompositeReward, RewardOptions, build_reward
from flowportrait.rl.task import PortraitRenderer

FRAMES = 29
PER_SPEAKER = 4
MOST = 16
"""Clips per speaker whose motion is damaged."""
Scores = dict[str, torch.Tensor]
Table = dict[str, dict[str, list[float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("matrix", "motion", "people", "cost"))
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--known", action="store_true", help="matrix: landmarks as damaged, not tracked anew (faster)")
    parser.add_argument("--frames", type=int, default=28, help="length of the clips of motion, a multiple of 4")
    parser.add_argument("--rewards", nargs="+", choices=tuple(WEIGHTED_REWARDS))
    given = parser.parse_args()
    {"matrix": matrix, "motion": motion, "people": people, "cost": cost}[given.what](given)


# ── damaged footage ────────────────────────────────────────────────────────────────────────────────────────────────


def soft_mouth(clip: Footage, sigma: float, seed: int = 0) -> Footage:
    """Only the mouth is blurred."""
    frames = clip.pictures("soft mouth").copy()
    for frame, points in zip(frames, clip.points("soft mouth"), strict=True):
        mouth = points[[61, 291, 0, 17, 13, 14], :2]
        (left, top), (right, bottom) = mouth.min(0).astype(int) - 6, mouth.max(0).astype(int) + 6
        frame[top:bottom, left:right] = cv2.GaussianBlur(frame, (0, 0), sigma)[top:bottom, left:right]
    return Footage(frames, clip.audio, clip.landmarks)


def stranger(other: Footage) -> Callable[[Footage, float, int], Footage]:
    """The face fades into somebody else's."""

    def damage(clip: Footage, share: float, seed: int = 0) -> Footage:
        frames = clip.pictures("stranger").copy()
        theirs = canonical_transform(other.points("stranger")[0])
        for frame, points in zip(frames, clip.points("stranger"), strict=True):
            back = np.vstack([cv2.invertAffineTransform(canonical_transform(points)), [0, 0, 1]])
            matrix = (back @ np.vstack([theirs, [0, 0, 1]]))[:2]
            face = cv2.warpAffine(other.pictures("stranger")[0], matrix, frame.shape[1::-1])
            mask = np.zeros(frame.shape[:2], np.float32)
            cv2.fillConvexPoly(mask, cv2.convexHull(points[:468, :2].astype(np.float32)).astype(np.int32), 1.0)
            weight = share * cv2.GaussianBlur(mask, (0, 0), 3)[..., None]
            frame[:] = (weight * face + (1 - weight) * frame).round().astype(np.uint8)
        return Footage(frames, clip.audio, clip.landmarks)

    return damage


def dev_clips(corpus: Path, footage: Path) -> Iterator[tuple[str, Footage, np.ndarray]]:
    """Speaker, footage and blendshapes of clips of speakers that nothing was trained or fitted on."""
    by_speaker: dict[str, list[str]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["split"] == "dev" and record["frames"] >= FRAMES and record["name"].startswith("anchors"):
            by_speaker[record["speaker"]].append(record["name"])
    for speaker, names in sorted(by_speaker.items()):
        for place in np.linspace(0, len(names) - 1, PER_SPEAKER).astype(int):
            clip = FaceClip.load(corpus / "clips" / f"{names[place]}.safetensors")
            frames = [f for f, _ in zip(iter_frames(footage / f"{names[place]}.mp4"), range(FRAMES), strict=False)]
            shapes = clip.blendshapes[:FRAMES]
            yield speaker, Footage(np.stack(frames), clip.audio[: FRAMES * 640], clip.landmarks[:FRAMES]), shapes


def matrix(given: argparse.Namespace) -> None:
    """Footage damaged by the catalogue, tracked and scored anew."""
    found_clips = list(dev_clips(given.corpus, given.data))
    clips = [(speaker, clip) for speaker, clip, _ in found_clips]
    shapes = [shape for _, _, shape in found_clips]
    portraits = [Portrait.from_image(clip.frames[0]) for _, clip in clips]
    rewards = [build_reward(name) for name in given.rewards or WEIGHTED_REWARDS if name != "self_confidence"]
    damages: dict[str, tuple[Callable[..., Footage], Sequence[float]]] = {
        name: (lambda clip, strength, seed, name=name: corrupt(clip, name, strength, seed), found.strengths)
        for name, found in CORRUPTIONS.items()
    }
    damages["soft mouth"] = (soft_mouth, (1.0, 2.0, 4.0))

    def another(clip: Footage, share: float, seed: int) -> Footage:
        return stranger(clips[(seed + PER_SPEAKER) % len(clips)][1])(clip, share, 0)

    damages["stranger"] = (another, (0.2, 0.4, 0.8))

    def scores(damaged: Sequence[Footage]) -> Scores:
        if given.known:
            batch = known_tracks(damaged, shapes, portraits)
        else:
            frames, sound = [clip.frames for clip in damaged], [clip.audio for clip in damaged]
            batch = RewardBatch.from_frames(frames, sound, portraits=portraits)
        return {reward.name: score_batch(reward, batch).value for reward in rewards}

    clean = scores([clip for _, clip in clips])
    jobs = [(name, strength) for name, (_, strengths) in damages.items() for strength in strengths]
    found = {
        (name, strength): scores([damages[name][0](clip, strength, seed) for seed, (_, clip) in enumerate(clips)])
        for name, strength in track(jobs, "damaging and scoring")
    }
    how = "tracks as damaged" if given.known else "tracked anew"
    what = f"{len(clips)} clips of {len({s for s, _ in clips})} dev speakers, {how}"
    report("matrix", clean, found, given.output, what)


def known_tracks(
    damaged: Sequence[Footage], shapes: Sequence[np.ndarray], portraits: Sequence[Portrait]
) -> RewardBatch:
    """As ``from_frames``, with the landmarks that came out of the damage instead of tracking the pictures anew."""
    motions, crops, points = [], [], []
    for clip, shape in zip(damaged, shapes, strict=True):
        motion, _ = MotionBasis.load().encode(clip.landmarks, shape)
        to_crop = crop_transform(np.median(clip.landmarks, 0), clip.frames.shape[1:3], REWARD_CROP_SIDE)
        motions.append(motion)
        crops.append(np.stack([crop_frame(frame, to_crop, REWARD_CROP_SIDE) for frame in clip.frames]))
        points.append(apply_affine(to_crop, clip.landmarks)[..., :2])
    sound = np.stack([clip.audio for clip in damaged])
    return RewardBatch(
        torch.stack(motions), torch.stack([log_mel(normalize_loudness(wave)) for wave in sound]),
        RecordedFrames(np.stack(crops), np.stack(points)), portraits=portraits, domain="filmed",
    )  # fmt: skip


# ── damaged motion ─────────────────────────────────────────────────────────────────────────────────────────────────


def motion(given: argparse.Namespace) -> None:
    """Motion damaged directly: exact, and the only way to ask the policy itself."""
    policy = load_generator("sft").eval()
    frames = given.frames
    by_speaker: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in load_motion_clips(given.corpus, ("dev",)):
        if len(clip.motion) >= frames and len(by_speaker[clip.speaker]) < MOST:
            by_speaker[clip.speaker].append(clip)
    clips = [clip for own in by_speaker.values() for clip in own]
    tracks = torch.stack([clip.motion[:frames] for clip in clips])
    mel = torch.stack([clip.mel[: 4 * frames] for clip in clips])
    quiet = find_silent_frames(mel)[..., None].float()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(tracks.shape, generator=generator)

    def scaled(part: slice, factor: float) -> torch.Tensor:
        changed = tracks.clone()
        middle = changed[..., part].mean(1, keepdim=True)
        changed[..., part] = middle + factor * (changed[..., part] - middle)
        return changed

    def mumbling(share: float) -> torch.Tensor:
        changed = tracks.clone()
        changed[..., LOWER_FACE] += share * quiet * tracks[..., LOWER_FACE].roll(frames // 3, 1)
        return changed

    damages: dict[str, tuple[Callable[[float], torch.Tensor], Sequence[float]]] = {
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
    names = given.rewards or ("sync", "silent_lip", "expressiveness", "eyes", "head", "smoothness", "self_confidence")
    rewards = [build_reward(name) for name in names]

    @torch.no_grad()
    def scores(changed: torch.Tensor) -> Scores:
        chunks = changed.unflatten(1, (-1, policy.config.chunk))
        before = torch.cat([torch.zeros_like(chunks[:, :1, -1]), chunks[:, :-1, -1]], 1)
        batch = RewardBatch(changed, mel, policy=policy, condition=policy.condition(mel),
                            latents=policy.space.encode(chunks, before))  # fmt: skip
        return {reward.name: score_batch(reward, batch).value for reward in rewards}

    clean = scores(tracks)
    found = {(name, s): scores(damage(s)) for name, (damage, strengths) in damages.items() for s in strengths}
    speakers = sum(1 for own in by_speaker.values() if own)
    what = f"{len(tracks)} clips of {frames} frames, {speakers} dev speakers"
    report(f"motion_{frames}", clean, found, given.output, what)


def report(title: str, clean: Scores, found: dict[tuple[str, float], Scores], folder: Path | None, of: str) -> None:
    """Print the table of standardised changes and keep it as JSON and Markdown."""
    table: Table = defaultdict(lambda: defaultdict(list))
    for (damage, _), scores in found.items():
        for name, value in scores.items():
            both = torch.isfinite(value) & torch.isfinite(clean[name])
            change = (value - clean[name])[both].mean() / clean[name][both].std()
            table[name][damage].append(float(change))
    damages = list(dict.fromkeys(damage for damage, _ in found))
    lines = [f"{title}: {of}; change in standard deviations of undamaged clips", ""]
    lines += ["| | " + " | ".join(damages) + " |", "|---" * (len(damages) + 1) + "|"]
    for name, row in table.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row[damage]) for damage in damages) + " |")
    print("\n".join(lines))
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rewards_{title}.md").write_text("\n".join(lines) + "\n")
        (folder / f"rewards_{title}.json").write_text(json.dumps(table, indent=1) + "\n")


def _cell(changes: Sequence[float]) -> str:
    steps = np.diff([0.0, *changes])
    falls = bool((steps < 0.1).all() and changes[-1] <= -0.5)
    return " ".join(f"{change:+.1f}" for change in changes) + ("*" if falls else "")


# ── people and cost ────────────────────────────────────────────────────────────────────────────────────────────────


def people(given: argparse.Namespace) -> None:
    """AUC of same against different speaker by embedding cosine, dev speakers, by the side of the aligned face."""
    clips = [(speaker, clip) for speaker, clip, _ in dev_clips(given.corpus, given.data)]
    frames = [torch.from_numpy(clip.frames[0]).permute(2, 0, 1).float() / 255 for _, clip in clips]
    places = [torch.from_numpy(clip.landmarks[0, :, :2]) for _, clip in clips]
    same = np.array([[a == b for a, _ in clips] for b, _ in clips])[np.triu_indices(len(clips), 1)]
    for side in (224, 128, 96, 64):
        faces = torch.cat([align_faces(f[None], p[None], side) for f, p in zip(frames, places, strict=True)])
        with torch.no_grad():
            FaceNet.load()(faces[:2])
            started = time.process_time()
            found = FaceNet.load()(faces)
            spent = (time.process_time() - started) / len(faces)
        cosine = (found @ found.T).numpy()[np.triu_indices(len(clips), 1)]
        auc = mannwhitneyu(cosine[same], cosine[~same]).statistic / (same.sum() * (~same).sum())
        print(f"{side} px: AUC {auc:.3f}, same {cosine[same].mean():.2f}, different {cosine[~same].mean():.2f}, "
              f"{1000 * spent:.1f} ms a face")  # fmt: skip


def cost(given: argparse.Namespace) -> None:
    """Every reward on a rollout of 6 × 16 samples of 72 frames; drawing is timed apart, since rewards share it. Seconds
    are those of one core (process time), so that a busy machine does not change them."""
    codec = MotionCodec(Portrait.from_image(astronaut()), 128, retouch=False)
    policy = load_generator("sft").eval()
    tracks = 0.5 * torch.randn(96, 72, 30, generator=torch.Generator().manual_seed(0)).cumsum(1) / 8
    sound = torch.randn(640 * 72, generator=torch.Generator().manual_seed(1)) * 0.05
    sound[640 * 40 : 640 * 52] = 0
    mel = log_mel(sound).expand(96, -1, -1)

    def batch(rows: slice) -> RewardBatch:
        own = tracks[rows]
        condition = policy.condition(mel[rows])
        return RewardBatch(
            own, mel[rows], PortraitRenderer([codec], [0] * len(own), 128), policy=policy, condition=condition,
            latents=torch.randn(len(own), 18, policy.latent_dim),
        )  # fmt: skip

    whole = batch(slice(0, 96))
    started = time.process_time()
    frames = whole.frames(_all_indices())
    drawing = time.process_time() - started
    whole.places(_all_indices())
    print(f"drawing 4 frames of 96 samples at 128 px: {drawing:.2f} s ({frames.shape[0] / drawing:.0f} samples/s)\n")
    print("| reward | samples/s, 96 at once | samples/s, one by one | ratio |\n|---|---|---|---|")
    rewards: list[tuple[str, Reward]] = [(name, build_reward(name)) for name in given.rewards or WEIGHTED_REWARDS]
    if not given.rewards:
        rewards.append(("perceptual (face)", build_reward("perceptual", RewardOptions(backbone="face"))))
    for name, reward in rewards:
        single = [whole.select(torch.tensor([row])) for row in range(0, 96, 12)]
        for part in single:
            part.frames(_all_indices()), part.places(_all_indices())
        score_batch(reward, single[0])
        started = time.process_time()
        score_batch(reward, whole)
        at_once = 96 / (time.process_time() - started)
        started = time.process_time()
        for part in single:
            score_batch(reward, part)
        apart = len(single) / (time.process_time() - started)
        print(f"| {name} | {at_once:.0f} | {apart:.0f} | {at_once / apart:.1f} |")
    composite, fresh = CompositeReward.default(), batch(slice(0, 96))
    started = time.process_time()
    composite(fresh)
    print(f"\ndefault composite on 96 fresh samples, drawing included: {time.process_time() - started:.2f} s")


def _all_indices() -> tuple[int, ...]:
    from flowportrait.rewards.face import frame_pair_indices

    return frame_pair_indices(72)


if __name__ == "__main__":
    main()

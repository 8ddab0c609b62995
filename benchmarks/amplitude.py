"""Whether lips open as far as the speaker's, and whether brows, cheeks, smile and head follow the voice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.material import spread_evenly, use_one_thread
from benchmarks.record import Record
from flowportrait.data.corpus import read_corpus_clips
from flowportrait.errors import BadInput
from flowportrait.evaluation.pair_judge import EvaluationPreference
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.prosody_motion import voice_follower
from flowportrait.models.sampler import sample_motion
from flowportrait.preferences.dataset import DIMENSIONS
from flowportrait.rendering.motion_basis import EXPRESSION, HEAD, MotionBasis, close_lips
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.concordance import ConcordanceReward
from flowportrait.rewards.sync import MotionSyncExpert

SETS = {"anchors": "news"}
"""Names of sources in tables, where they differ from the folder."""
CHEEKS, CORNERS, BROW_POINTS = [50, 280], [61, 291], [105, 334, 107, 336]
"""Landmarks of the cheeks, the corners of the mouth, and the brows."""
LIKENESS = ("opening", "true_lips", "true_brows", "true_head")
"""Correlation of the lip opening, and the concordances that rewards use."""


@dataclass(frozen=True)
class AmplitudeOptions:
    """Measure amplitude and expression of generated motion on dev speakers against their own motion.

    Opening: distance of the inner-lip points 13 and 14 after pose normalisation, in distances of the outer eye corners;
    amplitude: its standard deviation over a clip, mean of the seeds. Error: mean |ln(ours / true)|, by clip and by
    speaker (mean amplitudes). Correlation of ln amplitude with the true one over clips, and with that of another
    sentence as control. Expression: correlation with the true motion in time, of the mean of the seeds, less that of
    the motion for another sentence, with an interval over speakers. Likeness: of single samples to the true motion, by
    the correlation of the lip opening and by the concordances that rewards use, and the paired difference to the first
    system. Preferred: share of pairs with the same seed, by the evaluation's judge of pairs, which no reward uses. Sync
    is by the expert of the rewards. Systems are CHECKPOINT/STYLE; the style plain is the generator alone.
    """

    corpora: tuple[Path, ...]
    """Prepared corpora."""
    checkpoints: tuple[str, ...] = ("rl",)
    """Generators."""
    styles: tuple[str, ...] = ("plain", "auto")
    """Manners of speaking; errors are compared with those of the first."""
    seeds: int = 8
    """Samples of each clip."""
    clips: int = 10
    """Clips of a speaker, evenly spaced."""
    splits: tuple[str, ...] = ("dev",)
    """Whose clips: dev for figures; reward and evaluation, the speakers that generators learn from, for choices."""


@dataclass
class DevClip:
    """A clip of a dev speaker: its source, sound, and real motion."""

    speaker: str
    source: str
    sound: np.ndarray
    motion: torch.Tensor


def amplitude(options: AmplitudeOptions, record: Record) -> None:
    """Measure every system on all clips, and add the figures by set."""
    use_one_thread()
    clips = load_dev_clips(options.corpora, options.clips, options.splits)
    true = np.array([opening_amplitude(clip.motion) for clip in clips])
    expert = MotionSyncExpert.load()
    compared: dict[str, np.ndarray] = {}
    against: list[np.ndarray] | None = None
    record.add("real", "sync", bootstrap_mean(np.array([_sync(expert, clip, clip.motion[None]) for clip in clips])))
    for checkpoint in options.checkpoints:
        model, first = load_generator(checkpoint).requires_grad_(False), dict[str, float]()
        for style in options.styles:
            tracks = [_sample(model, clip, style, options.seeds) for clip in clips]
            ours = np.array([np.mean([opening_amplitude(track) for track in own]) for own in tracks])
            name = f"{checkpoint}/{style}"
            errors = add_amplitudes(record, name, clips, ours, true)
            for key, value in errors.items():
                if key in first:
                    record.add(name, f"{key} over that of {options.styles[0]}", value / first[key], group="amplitude")
            first = first or errors
            sync = np.array([_sync(expert, clip, own) for clip, own in zip(clips, tracks, strict=True)])
            record.add(name, "sync", bootstrap_mean(sync))
            add_expression(record, name, clips, [own.mean(0) for own in tracks])
            likeness = {part: likeness_to_true(part, clips, tracks) for part in LIKENESS}
            compared = compared or likeness
            for part, values in likeness.items():
                record.add(name, part, bootstrap_mean(values), group="likeness to the true motion")
                difference = bootstrap_mean(values - compared[part])
                record.add(name, part, difference, group=f"likeness, less that of {options.checkpoints[0]}")
            judged = judge_scores(clips, tracks)
            against = judged if against is None else against
            for column, dimension in enumerate(DIMENSIONS):
                won = [(0.5 + 0.5 * np.sign(a - b)).mean(0)[column] for a, b in zip(judged, against, strict=True)]
                share = mean_of_speakers(clips, won)
                record.add(name, dimension, share, group=f"preferred to {options.checkpoints[0]} by the judge of pairs")


def load_dev_clips(corpora: Sequence[Path], most: int, splits: Sequence[str] = ("dev",)) -> list[DevClip]:
    """Return clips of the speakers of some splits, so many of each.

    Raises:
        BadInput: there are none.
    """
    basis, by_speaker = MotionBasis.load(), defaultdict[str, list[DevClip]](list)
    for corpus in corpora:
        for row, clip in read_corpus_clips(corpus, splits):
            if row["frames"] < 24:
                continue
            source = row["name"].split("/")[0]
            motion, _ = basis.encode(clip.landmarks, clip.blendshapes)
            sound = np.asarray(clip.audio, np.float32)
            by_speaker[row["speaker"]].append(DevClip(row["speaker"], SETS.get(source, source), sound, motion))
    if not by_speaker:
        where = ", ".join(map(str, corpora))
        raise BadInput(f"No clips of the splits {', '.join(splits)} in {where}: check clips.jsonl.")
    return [clip for own in by_speaker.values() for clip in spread_evenly(own, most)]


def lip_opening(motion: torch.Tensor) -> torch.Tensor:
    """Return the opening of the lips ``[T]`` of motion ``[T, 30]``, in outer-eye-corner distances."""
    basis = MotionBasis.load()
    shape = basis.shape(motion, close_lips(basis.canonical))
    return (shape[:, 14] - shape[:, 13]).norm(dim=-1)


def opening_amplitude(motion: torch.Tensor) -> float:
    """Return the standard deviation of the opening of the lips."""
    return float(lip_opening(motion).std())


def expression_signals(motion: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what of a face is compared ``[T, n]``, for motion ``[T, 30]``."""
    directions = MotionBasis.load().directions

    def moved(points: list[int]) -> torch.Tensor:
        return torch.einsum("te,enc->tnc", motion[:, EXPRESSION], directions[:, points])

    corners = moved(CORNERS)
    width, height = corners[:, 1, 0] - corners[:, 0, 0], -corners[..., 1].mean(1)
    return {
        "brows": -moved(BROW_POINTS)[..., 1].mean(1, keepdim=True),
        "cheeks": -moved(CHEEKS)[..., 1].mean(1, keepdim=True),
        "smile": torch.stack([width, height], 1), "head": motion[:, HEAD], "nod": motion[:, HEAD][:, :1],
    }  # fmt: skip


def _sample(model: ARFlow, clip: DevClip, style: str, seeds: int) -> torch.Tensor:
    sound = np.repeat(clip.sound[None], seeds, 0)
    tracks = sample_motion(model, sound, list(range(seeds)), follower=voice_follower(style, clip.sound))
    return tracks[:, : len(clip.motion)]


def _sync(expert: MotionSyncExpert, clip: DevClip, tracks: torch.Tensor) -> float:
    frames = tracks.shape[1]
    mel = log_mel(normalize_loudness(clip.sound))[: 4 * frames]
    with torch.no_grad():
        return float(expert.score(tracks[:, : len(mel) // 4], mel[None].expand(len(tracks), -1, -1))[1].mean())


def judge_scores(clips: Sequence[DevClip], tracks: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Return what the evaluation's judge of pairs gives every sample of a clip ``[seeds, 3]``."""
    judge, found = EvaluationPreference.load(), []
    for clip, own in zip(clips, tracks, strict=True):
        mel = log_mel(normalize_loudness(clip.sound))[: MELS_PER_FRAME * own.shape[1]]
        frames = len(mel) // MELS_PER_FRAME
        found.append(judge.score_motion(own[:, :frames], mel[None].expand(len(own), -1, -1)).numpy())
    return found


def mean_of_speakers(clips: Sequence[DevClip], values: Sequence[float]) -> Estimate:
    """Return the mean over speakers of their clips' values, with its interval."""
    by_speaker = defaultdict[str, list[float]](list)
    for clip, value in zip(clips, values, strict=True):
        by_speaker[clip.speaker].append(float(value))
    return bootstrap_mean(np.array([np.mean(own) for own in by_speaker.values()]))


def likeness_to_true(part: str, clips: Sequence[DevClip], tracks: Sequence[torch.Tensor]) -> np.ndarray:
    """Return the mean likeness of every speaker's samples to the true motion ``[speakers]``."""
    by_speaker = defaultdict[str, list[float]](list)
    for clip, own in zip(clips, tracks, strict=True):
        true = clip.motion[None, : own.shape[1]].expand(len(own), -1, -1)
        if part == "opening":
            values = [_correlation(lip_opening(true[0])[:, None], lip_opening(track)[:, None]) for track in own]
        else:
            empty = torch.zeros(len(own), 4 * own.shape[1], 80)
            values = ConcordanceReward(part)(RewardBatch(own, empty, reference=true)).value.tolist()
        by_speaker[clip.speaker].append(float(np.mean(values)))
    return np.array([np.mean(values) for values in by_speaker.values()])


def add_amplitudes(
    record: Record, name: str, clips: Sequence[DevClip], ours: np.ndarray, true: np.ndarray
) -> dict[str, float]:
    """Add ratios by set and errors, and return the errors by name."""
    sources, speakers = np.array([clip.source for clip in clips]), np.array([clip.speaker for clip in clips])
    for source in dict.fromkeys(sources.tolist()):
        own = sources == source
        count = len(set(speakers[own]))
        record.add(name, "true", true[own].mean(), group=f"amplitude, {source} ({count} speakers)", n=int(own.sum()))
        record.add(name, "ours", ours[own].mean(), group=f"amplitude, {source} ({count} speakers)")
        record.add(name, "ours / true", ours[own].mean() / true[own].mean(),
                   group=f"amplitude, {source} ({count} speakers)")  # fmt: skip
    error = np.abs(np.log(ours / true))
    by_speaker = [error[speakers == speaker].mean() for speaker in dict.fromkeys(speakers.tolist())]
    means = [(ours[speakers == s].mean(), true[speakers == s].mean()) for s in dict.fromkeys(speakers.tolist())]
    of_means = np.array([abs(np.log(a / b)) for a, b in means])
    record.add(name, "error of clips", bootstrap_mean(np.array(by_speaker)), group="amplitude")
    record.add(name, "error of speakers", bootstrap_mean(of_means), group="amplitude")
    r = np.corrcoef(np.log(ours), np.log(true))[0, 1]
    rng = np.random.default_rng(0)
    others = []
    for _ in range(200):
        order = np.arange(len(clips))
        for source in set(sources.tolist()):
            order[sources == source] = rng.permutation(order[sources == source])
        others.append(np.corrcoef(np.log(ours[order]), np.log(true))[0, 1])
    record.add(name, "correlation over clips", r, group="amplitude")
    record.add(name, "of other sentences of the set: mean", float(np.mean(others)), group="amplitude")
    record.add(name, "of other sentences of the set: 95 %", float(np.quantile(others, 0.95)), group="amplitude")
    return {"error of clips": float(np.mean(by_speaker)), "error of speakers": float(of_means.mean())}


def add_expression(record: Record, name: str, clips: Sequence[DevClip], tracks: Sequence[torch.Tensor]) -> None:
    """Add the correlations with the true motion and their differences to those of another sentence."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for index, (clip, track) in enumerate(zip(clips, tracks, strict=True)):
        frames = min(len(track), len(clip.motion))
        true, own = expression_signals(clip.motion[:frames]), expression_signals(track[:frames])
        controls = [
            expression_signals(torch.cat([other] * (1 + frames // len(other)))[:frames])
            for other in (tracks[(index + step) % len(clips)] for step in (1, 2, 3))
        ]
        for part, values in true.items():
            control = np.mean([_correlation(values, other[part]) for other in controls])
            found[part][clip.speaker].append((_correlation(values, own[part]), float(control)))
    for part, speakers in found.items():
        rows = np.array([np.mean(values, 0) for values in speakers.values()])
        record.add(name, part, bootstrap_mean(rows[:, 0]), group="expression: correlation with the true motion")
        record.add(
            name, part, bootstrap_mean(rows[:, 0] - rows[:, 1]), group="expression: less that of other sentences"
        )


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a - a.mean(0), b - b.mean(0)
    return float(((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp_min(1e-6)).mean())

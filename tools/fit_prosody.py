"""Fit the motion that follows prosody: what lively speech is, how far it opens the lips, and what accents move.

    python -m tools.fit_prosody CORPUS [CORPUS ...] --output weights/flowportrait_weights/prosody

    manner      logistic regression of window features: speech that is read (news, GRID) against free speech
    amplitude   ln(real / generated opening in windows of 1.2 s) on liveliness, which each speaker is given by a
                regression that has not heard this speaker
    accents     ridge regression from frame features to brows and head, as much earlier as the filters of delivery are
                late; its size is what generated motion lacks of the real one

Only training speakers are read. Printed figures are of speakers that were left out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowportrait.data.corpus import read_corpus_clips
from flowportrait.data.motion_dataset import TRAINING_SPLITS
from flowportrait.media.mel import normalize_loudness
from flowportrait.models.arflow import load_generator
from flowportrait.models.prosody import FRAME_FEATURES, ProsodyTracker, track_prosody
from flowportrait.models.prosody_motion import LAGS, ProsodyMotion
from flowportrait.models.sampler import sample_motion
from flowportrait.rendering.motion_basis import BROWS, HEAD, MOTION_DIM, MotionBasis, close_lips, fit_pose

READ = ("anchors", "grid")
"""Sources in which speech is read."""
SHARES = {"anchors": 0.35, "grid": 0.15, "free": 0.5}
"""Weight of each kind of source in the regression of manner."""
CLIPS_PER_SPEAKER = 16
DELAYS = (1, 2, 2, 2)
"""Frames by which the filters of delivery make brows and head late, see ``accent_directions``."""
BROW_POINTS = [105, 334, 107, 336]
FEATURES = FRAME_FEATURES * len(LAGS)
WINDOW = 30
PENALTY, RIDGE, LARGEST_SHARE = 0.02, 100.0, 0.6


@dataclass
class Sample:
    """A clip with its prosody, its real motion and what the generator makes of its sound."""

    speaker: str
    kind: str
    features: np.ndarray
    tracker: ProsodyTracker
    motion: torch.Tensor
    generated: torch.Tensor
    ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpora", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--checkpoint", default="rl")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    samples = read_samples(arguments.corpora, arguments.checkpoint)
    manner = fit_manner(samples)
    amplitude = fit_amplitude(samples)
    accents, size = fit_accents(samples)
    arguments.output.mkdir(parents=True, exist_ok=True)
    ProsodyMotion(manner, amplitude, accents, size).save(arguments.output / "model.safetensors")


def read_samples(corpora: list[Path], checkpoint: str) -> list[Sample]:
    """Return up to sixteen clips of each training speaker."""
    basis, count, clips, sounds = MotionBasis.load(), defaultdict[str, int](int), [], []
    for corpus in corpora:
        for record, clip in read_corpus_clips(corpus, TRAINING_SPLITS):
            count[record["speaker"]] += 1
            if count[record["speaker"]] <= CLIPS_PER_SPEAKER and record["frames"] >= WINDOW - 6:
                clips.append((record, clip))
                sounds.append(np.asarray(clip.audio, np.float32))
    samples = []
    for (record, clip), sound, generated in zip(clips, sounds, sample_many(checkpoint, sounds), strict=True):
        source = record["name"].split("/")[0]
        motion, _ = basis.encode(clip.landmarks, clip.blendshapes)
        points = torch.as_tensor(np.asarray(clip.landmarks), dtype=torch.float32)
        shape = fit_pose(points, basis.canonical).remove(points)
        features, tracker = track_prosody(normalize_loudness(sound))
        frames = min(len(motion), len(generated), len(features))
        closed = close_lips(basis.canonical)
        faces = (shape, basis.shape(motion, closed), basis.shape(generated, closed))
        tracked, encoded, drawn = (lip_opening(face)[:frames] for face in faces)
        starts = range(0, max(1, frames - WINDOW + 7), WINDOW)
        # Tracked faces have the noise of the tracker, encoded ones are smoothed: the truth is in between.
        ratios = [
            torch.stack(
                [(real[i : i + WINDOW].std() / drawn[i : i + WINDOW].std()).log() for real in (tracked, encoded)]
            )
            for i in starts
        ]
        kind = source if source in READ else "free"
        samples.append(
            Sample(record["speaker"], kind, features[:frames], tracker, motion[:frames], generated[:frames],
                   float(torch.stack(ratios).mean()))
        )  # fmt: skip
    kinds = {kind: sum(sample.kind == kind for sample in samples) for kind in SHARES}
    print(f"{len(samples)} clips of {len({sample.speaker for sample in samples})} speakers: {kinds}")
    return samples


def sample_many(checkpoint: str, sounds: list[np.ndarray]) -> list[torch.Tensor]:
    """Return motion ``[T, 30]`` of every sound; sounds of one length are sampled together."""
    model = load_generator(checkpoint).requires_grad_(False)
    result: list[torch.Tensor] = [torch.zeros(0)] * len(sounds)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, sound in enumerate(sounds):
        by_length[len(sound)].append(index)
    for rows in by_length.values():
        for index, motion in zip(rows, sample_motion(model, np.stack([sounds[i] for i in rows]), rows), strict=True):
            result[index] = motion
    return result


def lip_opening(shape: torch.Tensor) -> torch.Tensor:
    """Return the distance ``[T]`` of the middle points of the inner lips of pose-free faces ``[T, 478, 3]``."""
    return (shape[:, 14] - shape[:, 13]).norm(dim=-1)


def sample_weights(samples: list[Sample]) -> np.ndarray:
    """Return weights with mean 1: speakers by the root of their footage, kinds by their shares."""
    lengths = np.array([len(sample.motion) for sample in samples], float)
    kinds, speakers = np.array([s.kind for s in samples]), np.array([s.speaker for s in samples])
    weights = lengths.copy()
    for speaker in set(speakers):
        weights[speakers == speaker] /= np.sqrt(lengths[speakers == speaker].sum())
    for kind in set(kinds):
        weights[kinds == kind] *= SHARES[kind] / weights[kinds == kind].sum()
    return weights / weights.mean()


def fit_manner(samples: list[Sample], left_out: str | None = None) -> torch.Tensor:
    """Return the logistic regression ``[9]`` of free against read speech, without a speaker.

    GRID's one man is never left out: without him nothing says that slow reading is reading.
    """
    used = [s for s in samples if s.tracker.windows and (s.speaker != left_out or s.kind == "grid")]
    inputs, weights = np.array([s.tracker.mean for s in used]), sample_weights(used)
    target = np.array([s.kind == "free" for s in used], float)
    mean, deviation = np.average(inputs, 0, weights=weights), inputs.std(0) + 1e-6
    table = np.c_[(inputs - mean) / deviation, np.ones(len(inputs))]
    penalty = PENALTY * len(used) * np.eye(table.shape[1])
    penalty[-1, -1] = 0
    solution = np.zeros(table.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-table @ solution))
        gradient = table.T @ (weights * (p - target)) + penalty @ solution
        solution -= np.linalg.solve((table * (weights * p * (1 - p))[:, None]).T @ table + penalty, gradient)
    slopes = solution[:-1] / deviation
    return torch.tensor([*slopes, solution[-1] - slopes @ mean]).float()


def fit_amplitude(samples: list[Sample]) -> torch.Tensor:
    """Return intercept and slope of the log ratio of amplitudes on liveliness, and print what is left.

    Liveliness is heard with errors, which flatten a least-squares slope; a line through the means of read and of free
    speech is unbiased, and adds those errors to every clip. The slope is the geometric mean of both.
    """
    empty = torch.zeros(FEATURES + 1, MOTION_DIM), torch.zeros(2, MOTION_DIM)
    models = {s.speaker: ProsodyMotion(fit_manner(samples, s.speaker), torch.zeros(2), *empty) for s in samples}
    lively = np.array([models[s.speaker].liveliness(s.tracker) for s in samples])
    ratio, weights = np.array([s.ratio for s in samples]), sample_weights(samples)
    kinds, speakers = np.array([s.kind for s in samples]), np.array([s.speaker for s in samples])
    free = kinds == "free"
    (x0, y0), (x1, y1) = (
        [np.average(values[part], weights=weights[part]) for values in (lively, ratio)] for part in (~free, free)
    )
    centre, level = np.average(lively, weights=weights), np.average(ratio, weights=weights)
    least = np.average((lively - centre) * (ratio - level), weights=weights)
    least /= np.average((lively - centre) ** 2, weights=weights)
    slope = float(np.sqrt(max(least, 0.0) * max((y1 - y0) / (x1 - x0), 0.0)))
    intercept = level - slope * centre
    rest = ratio - intercept - slope * lively
    for kind in SHARES:
        if (chosen := kinds == kind).any():
            means = [np.average(values[chosen], weights=weights[chosen]) for values in (lively, ratio, rest)]
            print(f"{kind}: liveliness {means[0]:+.2f}, ln(real / ours) {means[1]:+.3f} before, {means[2]:+.3f} after")
    for name, values in (("before", ratio), ("after", rest)):
        by_speaker = np.mean([abs(values[speakers == speaker].mean()) for speaker in set(speakers)])
        by_clip = np.average(abs(values), weights=weights)
        print(f"mean |ln ratio| {name}: {by_clip:.3f} a clip, {by_speaker:.3f} a speaker")
    print(f"amplitude {intercept:+.3f} {slope:+.3f}")
    return torch.tensor([intercept, slope]).float()


def fit_accents(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the filter ``[51, 30]`` of unit size, and its size in calm and lively speech ``[2, 30]``."""
    directions = accent_directions()
    used = [sample for sample in samples if sample.kind != "grid"]
    signals = [(sample.motion @ directions.T).numpy() for sample in used]
    tables = []
    for sample in used:
        steps = np.clip(np.arange(len(sample.features))[:, None] + np.array(LAGS), 0, len(sample.features) - 1)
        tables.append(sample.features[steps].reshape(len(steps), -1))
    by_speaker: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(used):
        by_speaker[sample.speaker].append(index)
    filters = np.zeros((FEATURES, len(directions)))
    for column, delay in enumerate(DELAYS):
        late = [signal[delay:, column] for signal in signals]
        early = [table[: len(table) - delay] for table in tables]
        filters[:, column], found = _fit_filter(early, late, by_speaker)
        error = np.std(found) / np.sqrt(len(found))
        print(f"accent {column}: r of speakers left out {np.mean(found):+.3f} ± {error:.3f}")
    drawn = np.concatenate(tables) @ filters
    mean, deviation = drawn.mean(0), drawn.std(0)
    weights = torch.from_numpy(np.concatenate([filters / deviation, (-mean / deviation)[None]])).float()
    # Each signal is moved along its own direction, by the least motion.
    lifts = directions / directions.square().sum(1, keepdim=True)
    sizes = []
    for kind in ("anchors", "free"):
        lacking = np.mean([
            signal.var(0) - (sample.generated @ directions.T).numpy().var(0)
            for sample, signal in zip(used, signals, strict=True) if sample.kind == kind
        ], 0)  # fmt: skip
        real = np.mean([signal.std(0) for sample, signal in zip(used, signals, strict=True) if sample.kind == kind], 0)
        sizes.append(np.sqrt(lacking.clip(0)).clip(0.2 * real, LARGEST_SHARE * real))
        print(f"{kind}: size {sizes[-1].round(3)} of real {real.round(3)}")
    accents, size = torch.zeros(FEATURES + 1, MOTION_DIM), torch.zeros(2, MOTION_DIM)
    for column, lift in enumerate(lifts):
        for number in torch.nonzero(lift).flatten().tolist():
            accents[:, number] = weights[:, column] * torch.sign(lift[number])
            size[:, number] = torch.tensor([row[column] for row in sizes]).float() * lift[number].abs()
    return accents, size


def accent_directions() -> torch.Tensor:
    """Return what of motion accents move ``[4, 30]``: height of the brows, nod, height and size of the head."""
    rows = torch.zeros(4, MOTION_DIM)
    rows[0, BROWS] = -MotionBasis.load().directions[BROWS][:, BROW_POINTS, 1].mean(1)
    for row, number in enumerate((HEAD.start, HEAD.start + 4, HEAD.start + 5), start=1):
        rows[row, number] = 1.0
    return rows


def _fit_filter(
    tables: list[np.ndarray], signals: list[np.ndarray], by_speaker: dict[str, list[int]]
) -> tuple[np.ndarray, list[float]]:
    """Return a filter ``[50]``, and for every speaker the correlation of one that was fitted without this speaker."""
    inner, cross = {}, {}
    for speaker, rows in by_speaker.items():
        centred = [tables[i] - tables[i].mean(0) for i in rows]
        outer = [signals[i] - signals[i].mean() for i in rows]
        weight = 1 / np.sqrt(sum(map(len, centred)))
        deviation = np.concatenate(outer).std() + 1e-9
        inner[speaker] = weight * sum(a.T @ a for a in centred)
        cross[speaker] = weight * sum(a.T @ b / deviation for a, b in zip(centred, outer, strict=True))
    ridge, total, found = RIDGE * np.eye(FEATURES), (sum(inner.values()), sum(cross.values())), []
    for speaker, rows in by_speaker.items():
        own = np.linalg.solve(total[0] - inner[speaker] + ridge, total[1] - cross[speaker])
        found.append(float(np.mean([np.corrcoef(tables[i] @ own, signals[i])[0, 1] for i in rows])))
    return np.linalg.solve(total[0] + ridge, total[1]), found


if __name__ == "__main__":
    main()

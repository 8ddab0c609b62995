"""Fit the motion basis to a prepared corpus.

    python -m tools.fit_motion_basis CORPUS OUTPUT.safetensors

1. canonical head: generalised Procrustes mean over speakers;
2. blendshape → displacement: ridge regression on deviations from each clip's mean, so that identity cancels;
3. lower face: principal components with the lips weighted up; brows: principal components of what remains after lids
   and gaze; blink and gaze: regressions on the eyelid scores and the iris position.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from flowportrait.data.corpus import FaceClip
from flowportrait.rendering.motion_basis import (
    LOWER_LIP_PAIRS,
    UPPER_LIP_PAIRS,
    MotionBasis,
    fit_pose,
    lip_pair_gaps,
    median_pose,
    pose_to_vector,
)

LIPS = sorted(
    {61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 146, 91, 181, 84, 17, 314, 405, 321, 375, 78, 308}
    | set(UPPER_LIP_PAIRS)
    | set(LOWER_LIP_PAIRS)
)
LIP_WEIGHT = 3.0
FRAMES_PER_SPEAKER = 1500
BLINK_SHAPES = (9, 10)
IRISES = (slice(468, 473), slice(473, 478))
EYES = ([33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7],
        [263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249])  # fmt: skip


def lower_share(canonical: torch.Tensor) -> torch.Tensor:
    """Return how much of each landmark's motion belongs to the lower face ``[478]``.

    It is 1 below the base of the nose and 0 above its middle.
    """
    y = canonical[:, 1]
    top, bottom = y[195].item(), y[2].item()
    return ((y - top) / (bottom - top)).clamp(0, 1)


def load_clips(corpus: Path) -> dict[str, list[FaceClip]]:
    """Return the clips of every speaker outside the dev split."""
    clips: dict[str, list[FaceClip]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["split"] != "dev":
            clips[record["speaker"]].append(FaceClip.load(corpus / "clips" / f"{record['name']}.safetensors"))
    return clips


def canonical_head(clips: dict[str, list[FaceClip]], rounds: int = 4) -> torch.Tensor:
    """Return the mean head over speakers ``[478, 3]``, with the outer eye corners at (±½, 0, 0)."""
    heads = [
        torch.from_numpy(np.stack([c.landmarks[len(c) // 2] for c in speaker_clips[:20]]))
        for speaker_clips in clips.values()
    ]
    mean = heads[0][0]
    for _ in range(rounds):
        mean = torch.stack([fit_pose(head, mean).remove(head).mean(0) for head in heads]).mean(0)
        left, right = mean[33], mean[263]
        mean = (mean - (left + right) / 2) / (right - left).norm()
    # Symmetric about x = 0 up to asymmetry of the landmark set: turn the eye line onto x and the face frontal.
    x = mean[263] - mean[33]
    y = mean[152] - mean[10]
    x = x / x.norm()
    y = y - (y @ x) * x
    y = y / y.norm()
    return mean @ torch.stack([x, y, torch.linalg.cross(x, y)], 1)


def fit(corpus: Path) -> MotionBasis:
    """Return the fitted basis and print the share of variance that it explains."""
    clips = load_clips(corpus)
    canonical = canonical_head(clips)
    share = lower_share(canonical)
    deviations, scores, heads = [], [], []
    shapes: list[tuple[torch.Tensor, torch.Tensor]] = []
    for speaker_clips in clips.values():
        frames = 0
        for clip in speaker_clips:
            if frames > FRAMES_PER_SPEAKER:
                break
            points = torch.from_numpy(clip.landmarks)
            pose = fit_pose(points, canonical)
            shape, weights = pose.remove(points), torch.from_numpy(clip.blendshapes)
            heads.append(pose_to_vector(pose, median_pose(pose)))
            deviations.append((shape - shape.mean(0)).flatten(1))
            scores.append(weights - weights.mean(0))
            shapes.append((shape, weights))
            frames += len(clip)
    x, b = torch.cat(scores), torch.cat(deviations)
    ridge = 0.01 * x.square().sum(0).mean()
    from_blendshapes = torch.linalg.solve(x.T @ x + ridge * torch.eye(52), x.T @ b)

    draft = MotionBasis(canonical, share, torch.empty(0), torch.empty(0), from_blendshapes, torch.empty(0))
    displacement = torch.cat([shape - draft.neutral(shape, weights) for shape, weights in shapes])
    blink = torch.cat([weights[:, list(BLINK_SHAPES)] for _, weights in shapes])

    lower = displacement * share[None, :, None]
    emphasis = torch.ones(478)
    emphasis[LIPS] = LIP_WEIGHT
    lower_dirs, lower_read = _components(lower * emphasis[:, None], 16)
    lower_dirs = lower_dirs / emphasis[None, :, None]
    lower_read = lower_read * (emphasis * share)[None, :, None]

    upper = displacement * (1 - share)[None, :, None]
    lids, gaze = _regions()
    gaze_xy = torch.stack([displacement[:, eye, :2].mean(1) for eye in IRISES]).mean(0)
    basis = [_regress(upper * lids[:, None], blink), _regress(upper * gaze[:, None], gaze_xy)]
    eye_dirs = torch.cat(basis)
    brow_dirs, _ = _components(upper * (1 - lids - gaze).clamp_min(0)[:, None], 4)
    upper_dirs = torch.cat([brow_dirs, eye_dirs])
    upper_read = torch.linalg.pinv(upper_dirs.flatten(1).T).reshape(8, 478, 3) * (1 - share)[None, :, None]

    directions, readout = torch.cat([lower_dirs, upper_dirs]), torch.cat([lower_read, upper_read]).flatten(1)
    coefficients = displacement.flatten(1) @ readout.T
    std = coefficients.std(0)
    rebuilt = (coefficients @ directions.flatten(1)).reshape_as(displacement)
    centred = displacement - displacement.mean(0)
    for name, region in (("lips", LIPS), ("all", list(range(478)))):
        missed = (rebuilt - displacement)[:, region]
        print(f"variance held, {name}: {1 - missed.var(0).sum() / centred[:, region].var(0).sum():.4f}")
    print(
        "lip gap percentiles 5/10/25/50:",
        np.percentile(torch.cat([lip_pair_gaps(shape)[:, 4] for shape, _ in shapes]).numpy(), [5, 10, 25, 50]).round(4),
    )
    return MotionBasis(
        canonical,
        share,
        directions * std[:, None, None],
        readout / std[:, None],
        from_blendshapes,
        torch.cat(heads).std(0),
    )


def _components(data: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return principal directions ``[count, 478, 3]`` about zero, the neutral face, and their readout."""
    flat = data.flatten(1).double()
    _, vectors = torch.linalg.eigh(flat.T @ flat)
    directions = vectors.flip(1)[:, :count].T.float().reshape(count, 478, 3)
    return directions, directions.clone()


def _regress(data: torch.Tensor, predictors: torch.Tensor) -> torch.Tensor:
    """Return the slopes ``[P, 478, 3]`` of landmarks ``[N, 478, 3]`` on predictors ``[N, P]``."""
    predictors = predictors - predictors.mean(0)
    slope = torch.linalg.lstsq(predictors, (data - data.mean(0)).flatten(1)).solution
    return slope.reshape(-1, 478, 3)


def _regions() -> tuple[torch.Tensor, torch.Tensor]:
    """Return how much each landmark belongs to the lids and to the gaze, ``[478]`` each."""
    lids, gaze = torch.zeros(478), torch.zeros(478)
    for eye in EYES:
        lids[eye] = 1.0
    # Second and third ring around each eye follow the lid part of the way.
    for around, weight in ((EYE_RING_2, 0.6), (EYE_RING_3, 0.25)):
        lids[around] = weight
    for iris in IRISES:
        gaze[iris] = 1.0
    return lids, gaze


EYE_RING_2 = [247, 30, 29, 27, 28, 56, 190, 243, 112, 26, 22, 23, 24, 110, 25, 130,
              467, 260, 259, 257, 258, 286, 414, 463, 341, 256, 252, 253, 254, 339, 255, 359]  # fmt: skip
EYE_RING_3 = [113, 225, 224, 223, 222, 221, 189, 244, 233, 232, 231, 230, 229, 228, 31, 226,
              342, 445, 444, 443, 442, 441, 413, 464, 453, 452, 451, 450, 449, 448, 261, 446]  # fmt: skip


if __name__ == "__main__":
    fit(Path(sys.argv[1])).save(Path(sys.argv[2]))

"""Pairs that somebody stated about finished videos, as the reward model reads them: motion and log-mel of both."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from flowportrait.errors import BadInput
from flowportrait.media.bounded import read_clip
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.preference.made_pairs import CODES, DIMENSIONS, NOT_JUDGED, PairBatch
from flowportrait.preference.pairs import Pair
from flowportrait.preference.reward_model import LEAST_FRAMES
from flowportrait.reward.batch import RewardBatch

SIDES: tuple[Literal["a"], Literal["b"]] = ("a", "b")
Features = tuple[torch.Tensor, torch.Tensor]


def load_stated(pairs: Sequence[Pair], folder: Path) -> tuple[list[PairBatch], dict[str, str]]:
    """One batch of one row per pair, both clips cut to the shorter, each with its sound; and clips that cannot be used,
    with the reason."""
    features: dict[str, Features] = {}
    unread: dict[str, str] = {}
    for name in dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)):
        try:
            features[name] = clip_features(folder / name)
        except BadInput as error:
            unread[name] = str(error)
    return [_row(pair, features) for pair in pairs if {pair.a, pair.b} <= features.keys()], unread


def clip_features(path: Path) -> Features:
    """Motion ``[T, 30]`` and log-mel ``[4T, 80]`` of a video.

    Raises:
        BadInput: unreadable, silent, too short, too large (``media.bounded.LOCAL``), or without a face.
    """
    frames, audio = read_clip(path)
    if audio is None:
        raise BadInput(f"{path} has no sound: lip sync cannot be told.")
    batch = RewardBatch.from_frames([frames], [audio])
    if batch.unseen:
        raise BadInput(f"{path}: {batch.unseen[0].detail}.")
    if len(frames) < LEAST_FRAMES:
        raise BadInput(f"{path} has {len(frames)} frames: {LEAST_FRAMES} are needed.")
    return batch.motion[0], batch.mel[0]


def _row(pair: Pair, features: dict[str, Features]) -> PairBatch:
    (a, mel), (b, other_mel) = features[pair.a], features[pair.b]
    frames = min(len(a), len(b))
    cut = partial(torch.narrow, dim=0, start=0)
    labels = [CODES[pair.aspects[d]] if d in pair.aspects else NOT_JUDGED for d in DIMENSIONS]
    points = [[pair.points.get(side, {}).get(d, float("nan")) for d in DIMENSIONS] for side in SIDES]
    sound = torch.stack([cut(mel, length=MELS_PER_FRAME * frames), cut(other_mel, length=MELS_PER_FRAME * frames)])
    return PairBatch(
        cut(a, length=frames)[None], cut(b, length=frames)[None], sound[:1], torch.tensor([labels]),
        torch.tensor([points]), ("stated",), sound[1:],
    )  # fmt: skip

"""``flowportrait score``: what the rewards of post-training say about finished videos of any generator."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("score", help="score finished videos with the rewards of post-training")
    add.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="finished videos, of any generator")
    add.add_argument("--portrait", type=Path, help="the photo they were made from: allows identity, sharpens others")
    add.add_argument("--rewards", help="names, separated by commas (default: all that can be measured)")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every reward's score of every video, or why there is none."""
    import numpy as np

    from flowportrait.media.audio import read_audio
    from flowportrait.media.image import read_image
    from flowportrait.media.portrait import Portrait
    from flowportrait.media.video import iter_frames
    from flowportrait.reward.interface import RewardBatch
    from flowportrait.reward.registry import BUILT_IN, build
    from flowportrait.reward.scoring import score

    rewards = [build(name.strip()) for name in (options.rewards.split(",") if options.rewards else BUILT_IN)]
    people = None
    if options.portrait:
        people = [Portrait.from_image(read_image(options.portrait), name=str(options.portrait))]
    found: dict[str, Any] = {}
    for video in options.videos:
        batch = RewardBatch.from_frames([np.stack(list(iter_frames(video)))], [read_audio(video)], portraits=people)
        chosen = rewards if options.rewards else [reward for reward in rewards if reward.needs <= batch.has]
        found[str(video)] = {}
        for reward in chosen:
            own = score(reward, batch)
            why = own.reasons.get(0)
            found[str(video)][reward.name] = why.detail if why else round(float(own.value), 4)
    if options.json:
        return found
    return {video: _line(scores) for video, scores in found.items()}


def _line(scores: dict[str, Any]) -> str:
    return " · ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} – ({value})"
                      for name, value in scores.items())  # fmt: skip

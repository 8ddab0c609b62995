"""``flowportrait score``: what the rewards of post-training say about finished videos of any generator."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.terminal import print_table, say

if TYPE_CHECKING:
    from rich.table import Table

    from flowportrait.evaluation.api import RewardScores

MEANINGS = {
    "sync": ("lips fit this moment of the speech better than the seconds around it", "−2 … 2, 0 is chance"),
    "silent_lip": ("the mouth is shut in pauses: minus the gap in eye distances", "−2 … 0"),
    "expressiveness": ("lips, brows, lids and head move as much as real people's", "… 0, 0 as real people"),
    "eyes": ("blinks and glances are as many and as wide as real people's", "… 0, 0 as real people"),
    "head": ("the head moves as much as real people's and stays in its place", "… 0, 0 as real people"),
    "smoothness": ("no tremor above 6 Hz in the face", "… 0, −0.7 as real people"),
    "temporal": ("pictures follow from each other without flicker", "… 0, −0.7 as real footage"),
    "perceptual": ("frames are as alike as those of real footage", "… 0, 0 as real footage"),
    "identity": ("the face is that of the portrait: cosine of face features", "−1 … 1"),
    "sharpness": ("mouth and eyes have the detail of the portrait or of real footage", "… 0, −0.7 as real footage"),
    "realness": ("pixel statistics of the face are those of cameras", "… 0, −0.7 as real footage"),
}
"""What a reward measures, and its scale. Higher is better for every reward."""
MOST_COLUMNS = 4
"""Videos with a column of their own."""


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("score", help="score finished videos with the rewards of post-training")
    add.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="videos of any generator, or folders")
    add.add_argument("--portrait", type=Path, help="the photo they were made from: allows identity, sharpens others")
    add.add_argument("--rewards", help="names, separated by commas (default: all that can be measured)")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every reward's score of every video, or why there is none.

    Raises:
        BadInput: a video that cannot be read, or none of several.
    """
    from flowportrait.evaluation.api import score_videos

    names = options.rewards.split(",") if options.rewards else None
    found, left_out = score_videos(options.videos, names, options.portrait)
    for reason in left_out.values():
        say(f"Left out: {reason}")
    if not found:
        raise BadInput(f"None of {len(left_out)} videos can be scored.")
    if options.json:
        return found
    print_table(score_table(found))
    return {
        f"{Path(video).name}, {name}": f"not measured: {value}"
        for video, scores in found.items()
        for name, value in scores.items()
        if isinstance(value, str)
    }


def score_table(found: Mapping[str, RewardScores]) -> Table:
    """A row for each reward: the videos' scores, or mean and worst of many; what it measures, and its scale."""
    from rich.markup import escape
    from rich.table import Table

    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    table = Table(box=None, pad_edge=False, title="Higher is better in every row", title_justify="left")
    table.add_column("reward")
    columns = [Path(video).name for video in found] if len(found) <= MOST_COLUMNS else ["mean", "worst", "of"]
    for column in columns:
        table.add_column(escape(column), justify="right", overflow="fold")
    table.add_column("scale")
    table.add_column("what it measures")
    for name in names:
        meaning, scale = MEANINGS.get(name, ("", ""))
        table.add_row(name, *map(escape, _cells(found, name)), scale, meaning)
    return table


def _cells(found: Mapping[str, RewardScores], name: str) -> list[str]:
    values = {video: value for video, scores in found.items() if isinstance(value := scores.get(name), float)}
    if len(found) <= MOST_COLUMNS:
        return [_number(values.get(video)) for video in found]
    if not values:
        return ["–", "–", "–"]
    worst = min(values, key=values.__getitem__)
    return [_number(statistics.fmean(values.values())), _number(values[worst]), Path(worst).name]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")

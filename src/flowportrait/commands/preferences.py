"""``flowportrait preferences``: look at preference pairs, or make them: from the judge's scores, or by damage."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.files import check_output_folder
from flowportrait.terminal import say


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("preferences", help="look at preference pairs, or make them")
    steps = add.add_subparsers(dest="step", required=True, metavar="STEP")
    inspect = steps.add_parser("inspect", help="counts, ties, agreement, contradictions, leaks between splits")
    inspect.add_argument("pairs", type=Path, nargs="+", metavar="PAIRS.JSONL", help="files of pairs")
    inspect.add_argument("--output", type=Path, help="write the pairs that can be learned from to this file")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=run_inspect)
    judged = steps.add_parser("from-judge", help="pairs from the judge's scores of two systems on the same clips")
    judged.add_argument("a", type=Path, metavar="A.JSON", help="what judge score wrote of one system")
    judged.add_argument("b", type=Path, metavar="B.JSON", help="and of the other, on clips of the same names")
    judged.add_argument("--folders", nargs=2, metavar=("A", "B"), default=("a", "b"), help="where their clips lie")
    judged.add_argument("--tie-band", type=float, default=0.5, help="points within which it is a tie (default 0.5)")
    judged.add_argument("--judge", default="judge", help="name of the judge")
    judged.add_argument("--output", type=Path, required=True, metavar="PAIRS.JSONL", help="file to write")
    judged.add_argument("--json", action="store_true", help="print one JSON object")
    judged.set_defaults(run=run_judged)
    make = steps.add_parser("make", help="pairs of finished videos: intact against damaged, coarse to subtle")
    make.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="files or folders, people who speak")
    make.add_argument("--output", type=Path, required=True, help="folder of media and pairs.jsonl")
    make.add_argument("--per-video", type=int, default=3, help="pairs of each video (default 3)")
    make.add_argument("--damage", nargs="+", metavar="NAME", help="corruptions to take in turn (default: all)")
    make.add_argument("--split", default="", help="what to call them, for example train")
    make.add_argument("--seed", type=int, default=0, help="another number damages otherwise")
    make.add_argument("--json", action="store_true", help="print one JSON object")
    make.set_defaults(run=run_make)


def run_inspect(options: argparse.Namespace) -> dict[str, Any]:
    """What is in the files, and what of it can be learned from."""
    from flowportrait.preferences.dataset import PreferenceDataset
    from flowportrait.preferences.inspection import inspect_pairs

    inspection = inspect_pairs(PreferenceDataset.load(*options.pairs))
    if options.output:
        inspection.usable.save(options.output)
    result = {
        **inspection.counts,
        "kept": len(inspection.usable),
        "excluded": inspection.excluded,
        "sentences": inspection.sentences,
    }
    if options.json:
        return result
    for sentence in inspection.sentences:
        say(sentence)
    for reason, count in inspection.excluded.items():
        say(f"Left out: {count} of {inspection.counts['pairs']}: {reason}.")
    lines = {key: value for key, value in result.items() if key not in ("aspects", "excluded", "sentences")}
    for aspect, row in inspection.counts["aspects"].items():
        alpha = "cannot be said" if row["alpha"] is None else f"{row['alpha']:.2f}"
        lines[aspect] = (
            f"{row['first']} first, {row['second']} second, {row['tie']} ties ({row['ties']:.0%}); alpha {alpha} "
            f"on {row['judged_twice']} judged more than once, {row['disputed']} disputed"
        )
    return lines


def run_judged(options: argparse.Namespace) -> dict[str, Any]:
    """Two score tables to pairs."""
    from flowportrait.preferences.build_pairs import pairs_from_scores, read_scores
    from flowportrait.preferences.dataset import write_pairs

    tables = read_scores(options.a), read_scores(options.b)
    pairs, alone = pairs_from_scores(*tables, options.tie_band, options.judge, tuple(options.folders))
    if alone:
        say(f"{len(alone)} clips are in one table only and left out: {', '.join(alone[:5])}{' …' * (len(alone) > 5)}")
    write_pairs(options.output, pairs)
    return {"pairs": len(pairs), "left_out": len(alone), "output": str(options.output)}


def run_make(options: argparse.Namespace) -> dict[str, Any]:
    """Videos to pairs."""
    check_output_folder(options.output)
    from flowportrait.corruption.catalogue import CORRUPTIONS
    from flowportrait.data.prompts import find_videos
    from flowportrait.preferences.build_pairs import pairs_from_damage
    from flowportrait.preferences.dataset import PAIRS_FILE, read_pairs

    videos = find_videos(options.videos)
    names = options.damage or list(CORRUPTIONS)
    left_out = pairs_from_damage(videos, options.output, options.per_video, names, options.split, options.seed, say)
    for name, why in left_out.items():
        say(f"Left out: {name}: {why}")
    path = options.output / PAIRS_FILE
    return {"pairs": len(read_pairs(path)), "left_out": len(left_out), "output": str(path)}

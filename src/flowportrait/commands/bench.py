"""``flowportrait bench``: the benchmark with a fixed protocol, and the comparison of two of its results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.data.prompts import find_videos
from flowportrait.errors import BadInput
from flowportrait.extras import require
from flowportrait.files import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("bench", help="benchmark with negative controls and a ground-truth ceiling")
    add.add_argument("--output", type=Path, help="folder for videos, results.json and report.html")
    add.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="NAME=WHERE",
        help="a checkpoint, or a folder of another tool's videos of the same cases (default: sft and rl)",
    )
    add.add_argument("--prompts", type=Path, help="folder of portraits and speech (default: from installed packages)")
    add.add_argument("--real", type=Path, help="folder of real clips with sound: ceiling and negative controls")
    add.add_argument("--quick", action="store_true", help="few and small videos, to see whether everything works")
    add.add_argument("--cache", type=Path, help="folder of what was measured before (default: the user's cache)")
    add.add_argument("--workers", type=int, default=1, help="processes that look at videos")
    add.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two results.json instead of a run")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark, or compare two results."""
    from flowportrait.evaluation.benchmark import compare_results

    if options.compare:
        found = compare_results(*options.compare)
        return found if options.json else _readable(found)
    if options.output is None:
        raise BadInput("flowportrait bench needs --output FOLDER, or --compare with two results.json.")
    check_output_folder(options.output)
    require("report", "matplotlib")
    from flowportrait.evaluation.benchmark import run_benchmark
    from flowportrait.evaluation.benchmark_systems import Protocol, cases, quick

    checkpoints, others = _systems(options.system or ["sft=sft", "rl=rl"])
    protocol = quick(Protocol()) if options.quick else Protocol()
    made = cases(protocol, options.prompts, find_videos([options.real]) if options.real else [])
    found = run_benchmark(checkpoints, others, made, protocol, options.output, options.cache, options.workers)
    if options.json:
        return found
    return found | {_claim(check): _outcome(check) for check in found.pop("checks")}


def _claim(check: dict[str, Any]) -> str:
    return f"{check['winner']} > {check['loser']} by {check['metric']}"


def _outcome(check: dict[str, Any]) -> str:
    return f"{'yes' if check['holds'] else 'NO'} ({check['advantage']['mean']:+.3f})"


def _systems(given: list[str]) -> tuple[dict[str, str], dict[str, list[Path]]]:
    """Checkpoints and folders of videos by name."""
    from flowportrait.commands.evaluate import named_systems
    from flowportrait.evaluation.benchmark import FOOTAGE, LOSERS

    checkpoints: dict[str, str] = {}
    others: dict[str, list[Path]] = {}
    for name, where in named_systems(given, prompts=Path(".")).items():
        if name in (FOOTAGE, *LOSERS):
            raise BadInput(f"--system {name}=… has the name of one of the benchmark's own rows: choose another.")
        if isinstance(where, str):
            checkpoints[name] = where
        else:
            others[name] = find_videos([where])
    return checkpoints, others


def _readable(found: dict[str, Any]) -> dict[str, Any]:
    """Without the single rows, except those that differ."""
    apart = [row for row in found.pop("rows") if row["verdict"] == "different"]
    lines = {f"{r['system']} {r['metric']}": f"{r['first']:.4f} and {r['second']:.4f}" for r in apart}
    return {key: value for key, value in found.items() if value != []} | lines

"""``flowportrait doctor``: what is wrong with a post-training run, in words."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("doctor", help="say what is wrong with a post-training run")
    add.add_argument("folder", type=Path, metavar="RUN", help="folder that posttrain wrote")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Findings of a run folder, finished or under way.

    Raises:
        BadInput: the folder holds no run, or its files are damaged.
    """
    from flowportrait.posttrain.doctor import examine

    metrics, recipe = options.folder / "metrics.jsonl", options.folder / "recipe.json"
    for path in (metrics, recipe):
        if not path.is_file():
            raise BadInput(f"{options.folder} holds no run: it has no {path.name}.")
    try:
        records = [json.loads(line) for line in metrics.read_text().splitlines() if line.strip()]
        findings = examine(records, json.loads(recipe.read_text()))
    except ValueError as error:
        raise BadInput(f"A file of {options.folder} is damaged: {error}.") from error
    if options.json:
        return {"iterations": len(records), "findings": [finding._asdict() for finding in findings]}
    if not findings:
        return {"healthy": f"nothing found in {len(records)} iterations"}
    return {finding.kind: f"{finding.seen}; {finding.advice}" for finding in findings}

"""``flowportrait doctor``: what is wrong with a post-training run, in words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowportrait.commands.options import Json
from flowportrait.errors import BadInput

if TYPE_CHECKING:
    from flowportrait.rl.doctor import RunFinding

METRICS, RECIPE = FILES = ("metrics.jsonl", "recipe.json")
"""What makes a folder a run of post-training."""


@dataclass(frozen=True)
class DoctorOptions:
    """Say what is wrong with a post-training run."""

    folder: conf.Positional[Annotated[Path, conf.arg(metavar="RUN")]]
    """Folder that posttrain or demo wrote."""
    json: Json = False


def run(options: DoctorOptions) -> dict[str, Any]:
    """Return the findings about the runs in a folder, finished or still going on.

    Raises:
        BadInput: the folder holds no run, or its files are damaged.
    """
    runs = find_runs(options.folder)
    found = {str(run): examine_run(run) for run in runs}
    if len(runs) == 1:
        (count, findings), together = found[str(runs[0])], options.folder != runs[0]
        if options.json:
            return {"iterations": count, "findings": [finding._asdict() for finding in findings]}
        return ({"run": str(runs[0])} if together else {}) | _readable(count, findings)
    if options.json:
        return {
            run: {"iterations": count, "findings": [finding._asdict() for finding in findings]}
            for run, (count, findings) in found.items()
        }
    return {
        run: "".join(f"\n    {kind}: {text}" for kind, text in _readable(count, findings).items())
        for run, (count, findings) in found.items()
    }


def find_runs(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run, otherwise the runs in it.

    Raises:
        BadInput: there is none.
    """
    if not folder.is_dir():
        raise BadInput(f"No folder at {folder}: give one that 'flowportrait posttrain' or 'flowportrait demo' wrote.")
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    found = [path for path in candidates if all((path / name).is_file() for name in FILES)]
    if found:
        return found[:1] if found[0] == folder else found
    if (folder / METRICS).is_file():
        raise BadInput(f"{folder} holds no post-training run, it has no {RECIPE}: pretraining is not examined.")
    raise BadInput(f"{folder} holds no run, neither itself nor in its folders: a run has {METRICS} and {RECIPE}.")


def examine_run(run: Path) -> tuple[int, list[RunFinding]]:
    """Return the number of iterations and the findings of one run."""
    from flowportrait.rl.control import find_control, has_random_rewards, is_run
    from flowportrait.rl.doctor import diagnose_run

    needs: dict[str, list[str]] = {}
    control: list[dict[str, float]] | None = None
    try:
        records = _read_metrics(run)
        recipe = json.loads((run / RECIPE).read_text(encoding="utf-8"))
        if is_run(run):
            needs = json.loads((run / "run.json").read_text(encoding="utf-8")).get("needs", {})
            folder = None if has_random_rewards(run) else find_control(run)
            control = None if folder is None else _read_metrics(folder)
        return len(records), diagnose_run(records, recipe, needs, control)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"A file of {run} is damaged: {error}.") from error


def _read_metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines() if line.strip()]


def _readable(count: int, findings: list[RunFinding]) -> dict[str, str]:
    if not findings:
        return {"healthy": f"nothing found in {count} iterations"}
    return {finding.kind: f"{finding.seen}; {finding.advice}" for finding in findings}

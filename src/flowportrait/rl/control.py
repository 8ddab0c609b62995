"""The random-reward control of a post-training run: which folder holds it, and which command makes it.

    run/            recipe.json  run.json  metrics.jsonl  checkpoint/
    run-chance/     the same settings, prompts, start and seed; every reward is random (``rewards.random``)

The control may have any name, as long as it lies beside the run.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.rewards.random import CHANCE, is_random_reward

RECIPE_FILE, MANIFEST_FILE, METRICS_FILE = "recipe.json", "run.json", "metrics.jsonl"
_MAY_DIFFER = frozenset({
    "rewards", "allocation", "checkpoint_every", "evaluate_every", "patience", "give_up", "micro_batch",
    "checkpointing", "offload",
})  # fmt: skip
"""Settings in which a control may differ: its rewards and where they count, and what does not change an iteration."""
_SAME_INPUTS = ("start", "prompts", "files")


def is_run(folder: Path) -> bool:
    """Return whether a folder was written by post-training."""
    return all((folder / name).is_file() for name in (RECIPE_FILE, MANIFEST_FILE, METRICS_FILE))


def has_random_rewards(run: Path) -> bool:
    """Return whether a run is itself a random-reward control.

    Raises:
        BadInput: its recipe cannot be read.
    """
    weights = _read(run / RECIPE_FILE).get("rewards", {})
    own = [name for name, weight in weights.items() if isinstance(weight, (int, float)) and weight > 0]
    other = [name for name, weight in weights.get("other", {}).items() if weight > 0]
    return bool(other) and set(own) <= {"sync_share"} and all(map(is_random_reward, other))


def find_control(run: Path) -> Path | None:
    """Return the folder beside a run with its random-reward control, or None if there is none.

    Raises:
        BadInput: the files of the run itself cannot be read.
    """
    run = run.resolve()
    settings, inputs = _settings(run), _inputs(run)
    beside = sorted((path for path in run.parent.iterdir() if path != run), key=lambda path: path.name)
    for folder in [default_control(run), *beside]:
        if not is_run(folder):
            continue
        try:
            if has_random_rewards(folder) and _settings(folder) == settings and _inputs(folder) == inputs:
                return folder
        except BadInput:  # some other run, which is damaged
            continue
    return None


def default_control(run: Path) -> Path:
    """Return the folder that ``control_command`` writes."""
    return run.parent / f"{run.name}-{CHANCE}"


def control_command(run: Path) -> str:
    """Return the command line that trains the random-reward control of a run, beside it.

    What the run did not record, as runs of earlier versions and those started from Python objects, is in capitals.
    """
    manifest = _read(run / MANIFEST_FILE)
    start, inputs = manifest.get("start", {}), manifest.get("inputs", {})
    words = ["flowportrait", "posttrain", "--recipe", str(run), "--random-rewards"]
    if "sha256" not in start and start:
        words += ["--policy", start["name"]]
    elif start.get("name", "sft") != "sft":
        words += ["--start", start["name"]]
    if pairs := inputs.get("pairs"):
        words += ["--pairs", *pairs]
    else:
        words += ["--prompts", inputs.get("prompts") or "PROMPTS"]
    if inputs.get("exemplars"):
        words += ["--exemplars", inputs["exemplars"]]
    if inputs.get("held_out"):
        words += ["--held-out", inputs["held_out"]]
    if inputs.get("policy_set"):
        words += ["--policy-set", *inputs["policy_set"]]
    words += ["--bf16"] if inputs.get("bf16") else []
    return shlex.join([*words, "--output", str(default_control(run))])


def run_start(run: Path) -> str:
    """Return the name or folder of the checkpoint that a run started from.

    Raises:
        BadInput: it started from another kind of generator.
    """
    start = _read(run / MANIFEST_FILE).get("start", {})
    if "sha256" not in start:
        raise BadInput(f"{run} trained the generator {start.get('name')}, which evaluate cannot draw: give videos.")
    return str(start["name"])


def require_control(run: Path) -> Path:
    """Return the folder of the random-reward control of a run.

    Raises:
        BadInput: the folder is no run, it is a control itself, or there is no control beside it; the message has the
            command that trains one.
    """
    if not is_run(run):
        raise BadInput(f"{run} is no post-training run: give the folder that 'flowportrait posttrain' wrote.")
    if has_random_rewards(run):
        raise BadInput(f"{run} was itself trained with random rewards: give the run that it is the control of.")
    found = find_control(run)
    if found is None:
        raise BadInput(f"There is no random-reward control beside {run}: train it with: {control_command(run)}")
    return found


def _settings(run: Path) -> dict[str, Any]:
    return {name: value for name, value in _read(run / RECIPE_FILE).items() if name not in _MAY_DIFFER}


def _inputs(run: Path) -> dict[str, Any]:
    manifest = _read(run / MANIFEST_FILE)
    return {name: manifest.get(name) for name in _SAME_INPUTS}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read: {error}.") from error
    return found if isinstance(found, dict) else {}

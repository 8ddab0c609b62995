"""``flowportrait posttrain``: reinforcement learning on portraits and speech."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.outputs import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("posttrain", help="reinforcement learning on portraits and speech")
    add.add_argument("--recipe", default="flow-grpo", help="a name, or the folder of a run to do again")
    add.add_argument("--prompts", type=Path, help="folder of images and audio files")
    add.add_argument(
        "--pairs", type=Path, nargs="+", default=[], metavar="PAIRS.JSONL",
        help="learn from stated pairs (flow-dpo, flow-rwr, …) or rated clips (threshold) instead of prompts",
    )  # fmt: skip
    add.add_argument("--held-out", type=Path, help="prompts to look at now and then and never train on")
    add.add_argument("--exemplars", type=Path, help="prepared corpus whose clips join the samples, or are damaged")
    add.add_argument("--output", type=Path, required=True)
    add.add_argument("--iterations", type=int)
    add.add_argument("--start", default="sft", help="checkpoint to start from (default sft)")
    add.add_argument("--resume", action="store_true")
    add.add_argument("--track", help="also write curves for tensorboard or wandb")
    add.add_argument("--set", nargs="+", action="extend", default=[], metavar="a.b=c", dest="changes")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reinforcement learning."""
    check_output_folder(options.output)
    from flowportrait.posttrain.run import Job, posttrain
    from flowportrait.prompts import read_prompts

    held_out = read_prompts(options.held_out) if options.held_out else ()
    job = Job(
        options.output, options.start, options.resume, held_out, options.exemplars, options.pairs, options.track
    )
    folder = posttrain(options.recipe, options.prompts, job, options.iterations, options.changes)
    return {"checkpoint": str(folder)}

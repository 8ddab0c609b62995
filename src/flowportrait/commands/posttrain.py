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
    add.add_argument("--output", type=Path, required=True, help="folder of the run")
    add.add_argument("--iterations", type=int, help="how many (default: the recipe's)")
    add.add_argument("--policy", help="another generator: a diffusers pipeline (folder or hub), or MODULE:CLASS")
    add.add_argument(
        "--policy-set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="arguments of that pipeline's calls (height, num_frames, guidance_scale, …) or of the class",
    )
    add.add_argument("--bf16", action="store_true", help="load that pipeline's weights in bfloat16")
    add.add_argument("--start", default="sft", help="checkpoint to start from (default sft)")
    add.add_argument("--resume", action="store_true", help="go on with the run in --output")
    add.add_argument("--track", metavar="TRACKER", help="also write curves for tensorboard or wandb")
    add.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="a.b=c",
        dest="changes",
        help="settings of the recipe, as 'flowportrait recipes show NAME' lists them",
    )
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Reinforcement learning."""
    check_output_folder(options.output)
    if options.policy:
        return _another(options)
    from flowportrait.posttrain.run import Job, posttrain
    from flowportrait.prompts import read_prompts

    held_out = read_prompts(options.held_out) if options.held_out else ()
    job = Job(options.output, options.start, options.resume, held_out, options.exemplars, options.pairs, options.track)
    folder = posttrain(options.recipe, options.prompts, job, options.iterations, options.changes)
    return {"checkpoint": str(folder)}


def _another(options: argparse.Namespace) -> dict[str, Any]:
    """A generator that is not ours.

    Raises:
        BadInput: without prompts, or with what only our own generator learns from.
    """
    from flowportrait.errors import BadInput
    from flowportrait.policies.items import read_items
    from flowportrait.policies.loading import load_policy_generator
    from flowportrait.policies.run import check_fits, train_generator
    from flowportrait.posttrain.run import Job, resolve

    if options.prompts is None or options.pairs or options.held_out or options.exemplars:
        raise BadInput("--policy needs --prompts and goes without --pairs, --held-out and --exemplars.")
    items = read_items(options.prompts)
    # Half-precision weights round as autocast does: replayed noise is compared accordingly.
    changes = [*(["autocast=bf16"] if options.bf16 else []), *options.changes]
    recipe = resolve(options.recipe, options.iterations, changes)
    check_fits(recipe)  # a model may take minutes to load
    generator = load_policy_generator(options.policy, options.policy_set, options.bf16)
    job = Job(options.output, options.policy, options.resume, track=options.track)
    return {"checkpoint": str(train_generator(generator, recipe, items, job))}

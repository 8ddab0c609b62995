"""``flowportrait posttrain``: reinforcement learning on portraits and speech."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.files import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("posttrain", help="reinforcement learning on portraits and speech")
    add.add_argument("--recipe", default="flow-grpo", help="a name, or the folder of a run to do again")
    add.add_argument("--prompts", type=Path, help="folder of images and audio files")
    add.add_argument(
        "--pairs", type=Path, nargs="+", default=[], metavar="PAIRS.JSONL",
        help="learn from stated pairs (flow-dpo, flow-rwr, …) or rated clips (threshold) instead of prompts",
    )  # fmt: skip
    add.add_argument("--held-out", type=Path, help="prompts to evaluate on now and then and never train on")
    add.add_argument("--exemplars", type=Path, help="prepared corpus whose clips join the samples, or are damaged")
    add.add_argument("--output", type=Path, required=True, help="folder of the run")
    add.add_argument("--iterations", type=int, help="how many (default: the recipe's)")
    add.add_argument(
        "--policy", help="another generator: a diffusers pipeline (folder or hub), a plugin's name, or MODULE:CLASS"
    )
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
    from flowportrait.models.arflow import checkpoint_folder
    from flowportrait.rl.post_trainer import PostTrainer, resolve_recipe

    if not options.policy:
        checkpoint_folder(options.start)
    iterations = [] if options.iterations is None else [f"iterations={options.iterations}"]
    trainer = PostTrainer(
        options.policy or options.start,
        config=resolve_recipe(options.recipe, [*options.changes, *iterations]),
        train_prompts=options.prompts,
        eval_prompts=options.held_out,
        output_dir=options.output,
        pairs=options.pairs,
        exemplars=options.exemplars,
        policy_arguments=options.policy_set,
        bf16=options.bf16,
        report_to=options.track,
    )
    return {"checkpoint": str(trainer.train(options.resume))}

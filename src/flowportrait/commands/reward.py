"""``flowportrait reward``: train the reward model on preference pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.outputs import check_output_folder
from flowportrait.terminal import say


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("reward", help="train the reward model on preference pairs")
    steps = add.add_subparsers(dest="step", required=True, metavar="STEP")
    train = steps.add_parser("train", help="sync, expression and motion, Bradley–Terry with ties")
    train.add_argument("--corpus", type=Path, required=True, help="prepared corpus that pairs are made from")
    train.add_argument("--pairs", type=Path, nargs="+", default=[], metavar="PAIRS.JSONL", help="what people stated")
    train.add_argument("--output", type=Path, required=True, help="folder of model.safetensors and plan.json")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example objective=plain")
    train.add_argument("--json", action="store_true", help="print one JSON object")
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Made pairs, stated pairs, or both, to a model."""
    check_output_folder(options.output)
    from flowportrait.config import override, save
    from flowportrait.corpus.motion_set import load_motion
    from flowportrait.preference.inspection import TRAIN, inspect_pairs, require_lesson
    from flowportrait.preference.made_pairs import DIMENSIONS, PairBatch
    from flowportrait.preference.pairs import read_together
    from flowportrait.preference.stated_pairs import load_stated
    from flowportrait.preference.train_reward import Plan, train_reward

    plan = override(Plan(), options.set)
    stated: list[PairBatch] = []
    if options.pairs:
        pairs, folder = read_together(options.pairs)
        found = inspect_pairs(pairs, folder)
        for reason, count in found.excluded.items():
            say(f"Left out: {count} pairs: {reason}.")
        lesson = [pair for pair in require_lesson(found, DIMENSIONS) if pair.split in ("", TRAIN)]
        stated, unread = load_stated(lesson, folder)
        for name, why in unread.items():
            say(f"Left out: {name}: {why}")
        if not stated:
            raise BadInput(f"No clip of {len(found.kept)} pairs shows a face and is long enough: look at the videos.")
    model = train_reward(
        plan,
        load_motion(options.corpus, ("reward",)),
        stated,
        lambda step, loss, left: say(f"step {step}: loss {loss:.3f}, {left:.0f} s left"),
    )
    options.output.mkdir(parents=True, exist_ok=True)
    model.save(options.output / "model.safetensors")
    save(plan, options.output / "plan.json")
    return {"model": str(options.output / "model.safetensors"), "stated_pairs": sum(len(b.a) for b in stated)}

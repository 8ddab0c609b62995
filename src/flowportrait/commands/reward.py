"""``flowportrait reward``: train the reward model on preference pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.outputs import check_output_folder
from flowportrait.terminal import say

if TYPE_CHECKING:
    from flowportrait.preference.pairs import Pair


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("reward", help="train the reward model on preference pairs")
    steps = add.add_subparsers(dest="step", required=True, metavar="STEP")
    train = steps.add_parser("train", help="sync, expression and motion, Bradley–Terry with ties")
    train.add_argument("--corpus", type=Path, help="prepared corpus that pairs are made from")
    train.add_argument("--pairs", type=Path, nargs="+", default=[], metavar="PAIRS.JSONL", help="what people stated")
    train.add_argument(
        "--model", metavar="NAME",
        help="a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Omni by folder or hub name, in place of the small network",
    )  # fmt: skip
    train.add_argument("--output", type=Path, required=True, help="folder to write")
    train.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for example objective=plain"
    )
    train.add_argument("--json", action="store_true", help="print one JSON object")
    train.set_defaults(run=run)
    latent = steps.add_parser("train-latent", help="the same three scores of noisy latents, for guidance and pruning")
    latent.add_argument("--corpus", type=Path, required=True, help="prepared corpus that pairs are made from")
    latent.add_argument("--checkpoint", default="sft", help="generator whose latents and hearing are meant")
    latent.add_argument("--output", type=Path, required=True, help="folder to write")
    latent.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="for example steps=1000"
    )
    latent.add_argument("--json", action="store_true", help="print one JSON object")
    latent.set_defaults(run=run_latent)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Made pairs, stated pairs, or both, to a model."""
    check_output_folder(options.output)
    if options.model:
        return _train_llm(options)
    if options.corpus is None:
        raise BadInput("Give --corpus to make pairs from, or --model to train an LLM on --pairs alone.")
    from flowportrait.config import override, save
    from flowportrait.corpus.motion_set import load_motion
    from flowportrait.preference.made_pairs import PairBatch
    from flowportrait.preference.stated_pairs import load_stated
    from flowportrait.preference.train_reward import Plan, train_reward

    plan = override(Plan(), options.set)
    stated: list[PairBatch] = []
    if options.pairs:
        lesson, folder = _lesson(options.pairs)
        stated, unread = load_stated(lesson, folder)
        _say_unread(unread)
        if not stated:
            raise BadInput(f"No clip of {len(lesson)} pairs shows a face and is long enough: look at the videos.")
    model = train_reward(plan, load_motion(options.corpus, ("reward",)), stated, _say_step)
    options.output.mkdir(parents=True, exist_ok=True)
    model.save(options.output / "model.safetensors")
    save(plan, options.output / "plan.json")
    return {"model": str(options.output / "model.safetensors"), "stated_pairs": sum(len(b.a) for b in stated)}


def run_latent(options: argparse.Namespace) -> dict[str, Any]:
    """Made pairs, as a generator hears them, to a latent reward."""
    check_output_folder(options.output)
    from flowportrait.checkpoints import load_generator
    from flowportrait.config import override, save
    from flowportrait.corpus.motion_set import load_motion
    from flowportrait.preference.heard_clips import listen, rehearse
    from flowportrait.preference.train_latent import LatentPlan, train_latent

    plan = override(LatentPlan(), options.set)
    generator = load_generator(options.checkpoint)
    real = listen(generator, load_motion(options.corpus, ("reward",)), plan.voices, plan.seed)
    model = train_latent(plan, generator, real + rehearse(generator, real, plan.seed), _say_step)
    model.save_pretrained(options.output)
    save(plan, options.output / "plan.json")
    return {"model": str(options.output), "checkpoint": str(options.checkpoint)}


def _train_llm(options: argparse.Namespace) -> dict[str, Any]:
    from flowportrait.config import override, save
    from flowportrait.preference.train_vlm import VlmPlan, train_vlm
    from flowportrait.preference.vlm_reward import VlmReward

    if not options.pairs:
        raise BadInput("--model learns from finished videos: give --pairs.")
    plan = override(VlmPlan(), [*options.set, f"settings.model={options.model}"])
    lesson, folder = _lesson(options.pairs)
    reward = VlmReward.from_name(plan.settings)
    _say_unread(train_vlm(plan, reward, lesson, folder, _say_step))
    reward.save(options.output)
    save(plan, options.output / "plan.json")
    return {"model": str(options.output), "stated_pairs": len(lesson)}


def _lesson(paths: list[Path]) -> tuple[list[Pair], Path]:
    """The pairs to learn from, and where their clips lie; what is left out is said."""
    from flowportrait.preference.inspection import TRAIN, inspect_pairs, require_lesson
    from flowportrait.preference.made_pairs import DIMENSIONS
    from flowportrait.preference.pairs import read_together

    pairs, folder = read_together(paths)
    found = inspect_pairs(pairs, folder)
    for sentence in found.sentences:
        say(sentence)
    for reason, count in found.excluded.items():
        say(f"Left out: {count} pairs: {reason}.")
    lesson = [pair for pair in require_lesson(found, DIMENSIONS) if pair.split in ("", TRAIN)]
    if not lesson:
        raise BadInput(f"None of {len(found.kept)} pairs is of the split '{TRAIN}': there is nothing to learn from.")
    return lesson, folder


def _say_unread(unread: dict[str, str]) -> None:
    for name, why in unread.items():
        say(f"Left out: {name}: {why}")


def _say_step(step: int, loss: float, left: float) -> None:
    say(f"step {step}: loss {loss:.3f}, {left:.0f} s left")

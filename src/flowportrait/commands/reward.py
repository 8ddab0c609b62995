"""``flowportrait reward``: train the reward model on preference pairs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder
from flowportrait.terminal import say

if TYPE_CHECKING:
    from flowportrait.preferences.dataset import PreferenceDataset


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
    """Damaged pairs, stated pairs, or both, to a model."""
    check_output_folder(options.output)
    if options.model:
        return _train_vlm(options)
    if options.corpus is None:
        raise BadInput("Give --corpus to make pairs from, or --model to train an LLM on --pairs alone.")
    from flowportrait.config import override, save
    from flowportrait.data.motion_dataset import load_motion
    from flowportrait.preferences.clips import PreferenceBatch
    from flowportrait.preferences.reward_model import RewardTrainingConfig, load_batches, train_reward

    config = override(RewardTrainingConfig(), options.set)
    stated: list[PreferenceBatch] = []
    if options.pairs:
        dataset = _load_training_pairs(options.pairs)
        stated, unreadable = load_batches(dataset)
        _log_unreadable(unreadable)
        if not stated:
            raise BadInput(f"No clip of {len(dataset)} pairs shows a face and is long enough: look at the videos.")
    model = train_reward(config, load_motion(options.corpus, ("reward",)), stated, _log_step)
    options.output.mkdir(parents=True, exist_ok=True)
    model.save(options.output / "model.safetensors")
    save(config, options.output / "plan.json")
    return {"model": str(options.output / "model.safetensors"), "stated_pairs": len(stated)}


def run_latent(options: argparse.Namespace) -> dict[str, Any]:
    """Damaged pairs, with a generator's audio condition, to a latent reward."""
    check_output_folder(options.output)
    from flowportrait.config import override, save
    from flowportrait.data.motion_dataset import load_motion
    from flowportrait.models.arflow import load_generator
    from flowportrait.preferences.latent_reward import LatentTrainingConfig, train_latent
    from flowportrait.preferences.synthetic_pairs import condition_clips, generated_clips

    config = override(LatentTrainingConfig(), options.set)
    generator = load_generator(options.checkpoint)
    real = condition_clips(generator, load_motion(options.corpus, ("reward",)), config.voices, config.seed)
    model = train_latent(config, generator, real + generated_clips(generator, real, config.seed), _log_step)
    model.save_pretrained(options.output)
    save(config, options.output / "plan.json")
    return {"model": str(options.output), "checkpoint": str(options.checkpoint)}


def _train_vlm(options: argparse.Namespace) -> dict[str, Any]:
    from flowportrait.config import override, save
    from flowportrait.preferences.vlm_reward import VlmReward, VlmTrainingConfig, train_vlm

    if not options.pairs:
        raise BadInput("--model learns from finished videos: give --pairs.")
    config = override(VlmTrainingConfig(), [*options.set, f"settings.model={options.model}"])
    dataset = _load_training_pairs(options.pairs)
    reward = VlmReward.from_name(config.settings)
    _log_unreadable(train_vlm(config, reward, dataset, _log_step))
    reward.save(options.output)
    save(config, options.output / "plan.json")
    return {"model": str(options.output), "stated_pairs": len(dataset)}


def _load_training_pairs(paths: list[Path]) -> PreferenceDataset:
    """The pairs to learn from; what is left out is logged."""
    from flowportrait.preferences.dataset import DIMENSIONS, PreferenceDataset
    from flowportrait.preferences.inspection import TRAIN, training_pairs

    dataset = training_pairs(PreferenceDataset.load(*paths), lambda found: DIMENSIONS, explain=True)
    if not dataset:
        raise BadInput(f"None of the pairs is of the split '{TRAIN}': there is nothing to learn from.")
    return dataset


def _log_unreadable(unreadable: dict[str, str]) -> None:
    for name, why in unreadable.items():
        say(f"Left out: {name}: {why}")


def _log_step(step: int, loss: float, left: float) -> None:
    say(f"step {step}: loss {loss:.3f}, {left:.0f} s left")

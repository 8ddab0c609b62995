"""Post-training of a published model in one command, for a person with one GPU: curve, table, clips, environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.record import Record, describe_machine
from flowportrait.adapters.loading import GeneratorAdapter, read_items
from flowportrait.adapters.policy import Item
from flowportrait.commands.doctor import examine_run
from flowportrait.commands.options import Flag, Repeated
from flowportrait.config import override
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder, write_json
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.controlled_training import CONTROL, TRAINED, ControlledResult, train_with_control
from flowportrait.rl.loop import Callback
from flowportrait.rl.post_trainer import build_policy_adapter
from flowportrait.rl.trainer import Trainer

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "flowportrait")
REWARDS = ("sync=1",)
LORA = ("lora.targets=to_q,to_k,to_v,to_out.0",)


@dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """Post-train a published model with LoRA beside its random-reward control, and write what came of it.

    By default LTX-2, whose picture is driven by the clean sound of a recording, learns to move its lips with it. Both
    runs have the same recipe and prompts. OUTPUT gets before/ and after/ (a video of every held-out prompt, from the
    same noise), curve.svg (rewards by iteration), table.md, doctor.json, environment.json, and the runs trained/ and
    control/, whose checkpoints diffusers loads. The same command continues an interrupted run. It was tested with the
    real classes of diffusers in miniature, and never with the published weights.
    """

    prompts: Path
    """Folder of portraits and recordings, or prompts.jsonl."""
    output: Path
    """Folder of the results."""
    policy: str = "Lightricks/LTX-2"
    """Pipeline of diffusers: its name on the Hub, or a folder; or MODULE:NAME of a generator."""
    policy_set: Repeated = ()
    """Argument of the pipeline's calls as KEY=VALUE; repeat for more."""
    recipe: str = "nft"
    """Recipe of both runs."""
    set: Repeated = ("groups=4", "group_size=8", "micro_batch=1", "checkpointing=true", "lora.rank=32", *LORA)
    """Setting of the recipe as KEY=VALUE; repeat for more."""
    reward: Repeated = ()
    """Reward as NAME=WEIGHT or MODULE:NAME=WEIGHT; repeat for more. By default sync=1."""
    iterations: int = 200
    """Iterations of each run."""
    held_out: int = 4
    """Prompts, evenly spaced, that are never trained on."""
    samples: int = 4
    """Samples of each held-out prompt that are scored before and after."""
    full_precision: Flag = False
    """Load the weights in float32 instead of bfloat16."""


def published(options: PublishedOptions, record: Record) -> None:
    """Train both runs, and write everything.

    Raises:
        BadInput: prompts, model or settings cannot be used.
    """
    check_output_folder(options.output)
    train, held_out = split_prompts(read_items(options.prompts), options.held_out)
    weights = read_weights(options.reward or REWARDS)
    config = PostTrainConfig.from_recipe(options.recipe, iterations=options.iterations)
    config = override(config, options.set)
    adapter = build_policy_adapter(options.policy, options.policy_set, not options.full_precision)
    if not isinstance(adapter, GeneratorAdapter):
        raise BadInput(f"{options.policy} is the built-in generator: use flowportrait posttrain for it.")
    options.output.mkdir(parents=True, exist_ok=True)
    write_json(options.output / "environment.json", describe_environment(options))
    found = train_with_control(
        options.policy, weights, config, train, held_out, options.output, options.samples, resume=True,
        policy_arguments=options.policy_set, bf16=not options.full_precision,
        callbacks=[HeldOutClips(adapter, held_out, options.output)],
    )  # fmt: skip
    add_scores(record, found)
    (options.output / "table.md").write_text(found.table() + "\n", encoding="utf-8")
    histories = {name: read_history(options.output / name) for name in (TRAINED, CONTROL)}
    draw_curves(histories, list(weights), options.output / "curve.svg")
    findings = {name: examine_run(options.output / name)[1] for name in histories}
    write_json(options.output / "doctor.json", {name: [one._asdict() for one in own] for name, own in findings.items()})
    for name, own in findings.items():
        for finding in own:
            record.note(f"{name}: {finding.kind}: {finding.seen}; {finding.advice}")


def split_prompts(items: Sequence[Item], count: int) -> tuple[list[Item], list[Item]]:
    """Return prompts to train on, and ``count`` evenly spaced ones that are held out.

    Raises:
        BadInput: there are too few.
    """
    if not 1 <= count < len(items):
        raise BadInput(
            f"--held-out {count} of {len(items)} prompts leaves nothing: give more prompts, or hold out fewer."
        )
    places = {round((number + 0.5) * len(items) / count - 0.5) for number in range(count)}
    held_out = [item for place, item in enumerate(items) if place in places]
    return [item for place, item in enumerate(items) if place not in places], held_out


def read_weights(words: Sequence[str]) -> dict[str, float]:
    """Return weights by reward.

    Raises:
        BadInput: a word is not NAME=WEIGHT.
    """
    weights = {}
    for word in words:
        name, _, weight = word.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            name = ""
        if not name:
            raise BadInput(f"--reward {word} is not NAME=WEIGHT: write for example --reward sync=1.")
    return weights


class HeldOutClips(Callback):
    """Writes a video of every held-out prompt before the first iteration and after the last, from the same noise."""

    def __init__(self, adapter: GeneratorAdapter, prompts: Sequence[Item], folder: Path) -> None:
        self.adapter, self.prompts, self.folder = adapter, prompts, folder
        self.trainer: Trainer | None = None

    def on_train_begin(self, trainer: Trainer) -> None:
        self.trainer = trainer
        if trainer.iteration == 0:
            self._write(trainer, "before")

    def on_train_end(self, reason: str) -> None:
        assert self.trainer is not None, "a run begins before it ends"
        with self.trainer.rollout_mode("ema"):
            self._write(self.trainer, "after")

    def _write(self, trainer: Trainer, name: str) -> None:
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        for item in self.prompts:
            self.adapter.write_sample(trainer, item, self.folder / name / f"{item.id}.mp4")


def describe_environment(options: PublishedOptions) -> dict[str, Any]:
    """Return machine, versions and settings, so that a figure can be placed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    settings = {name: str(value) for name, value in vars(options).items()}
    return {"machine": describe_machine(), "versions": versions, "settings": settings}


def add_scores(record: Record, found: ControlledResult) -> None:
    """Add the scores of held-out prompts."""
    for name, before in found.before.items():
        for title, value in (("before", before), ("trained", found.trained[name]), ("control", found.control[name])):
            record.add(title, name, value, group="held-out prompts")


def read_history(run: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]


def draw_curves(histories: dict[str, list[dict[str, float]]], rewards: Sequence[str], path: Path) -> None:
    """Draw the rewards of a run by iteration; the control is scored with random rewards and has none of them."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(rewards), 1, figsize=(7, 2.6 * len(rewards)), squeeze=False)
    for axis, reward in zip(axes[:, 0], rewards, strict=True):
        for name, records in histories.items():
            points = [(one["iteration"], one[key]) for one in records if (key := f"reward/{reward}") in one]
            if points:
                axis.plot(*zip(*points, strict=True), label=name)
        axis.set(xlabel="iteration", ylabel=reward)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)

"""The stages of a pipeline: which command each of them runs, and what it takes from the stages before it.

    prepare ─► pretrain ─┬─► posttrain ─► distil ─┬─► evaluate
    corpus     checkpoint│   checkpoint   checkpoint  report
                         └─► control ─────────────┘
                             checkpoint of the same training with random rewards

A stage has the options of its command. What a run file leaves out is filled in here: the corpus of ``prepare`` for
``pretrain``, the checkpoint of the last training stage for the next one, and all checkpoints for ``evaluate``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flowportrait.plugins import load_reference

OptionText = str | list[str]
"""The value of an option as text, or several of them."""
StageOptions = Mapping[str, OptionText]
"""Options of a stage by name, those that were filled in included."""
EarlierStages = Mapping[str, StageOptions]
"""Options of the stages before one, by stage, in their order."""

DEFAULT_START = "sft"
"""Checkpoint that post-training starts from without a stage before it."""


@dataclass(frozen=True)
class StageKind:
    """One of the stages that a run file can have.

    Attributes:
        name: its key in the run file.
        command: the command that it runs.
        options_class: ``MODULE:CLASS`` of the command's options.
        fill_in: returns the options that follow from the stages before it.
        resumes_by_option: whether the command needs ``--resume`` to continue; the others continue by themselves.
        trains: whether it makes a checkpoint, and may be started by a launcher of several processes.
    """

    name: str
    command: str
    options_class: str
    fill_in: Callable[[EarlierStages, StageOptions], dict[str, OptionText]]
    resumes_by_option: bool = False
    trains: bool = False

    def load_options_class(self) -> type[Any]:
        """Import and return the dataclass of the command's options."""
        found: type[Any] = load_reference(self.options_class)
        return found


def _fill_in_nothing(earlier: EarlierStages, own: StageOptions) -> dict[str, OptionText]:
    return {}


def _fill_in_pretrain(earlier: EarlierStages, own: StageOptions) -> dict[str, OptionText]:
    return _outputs_as(earlier, {"prepare": "corpus"})


def _fill_in_posttrain(earlier: EarlierStages, own: StageOptions) -> dict[str, OptionText]:
    return {} if "policy" in own else _outputs_as(earlier, {"pretrain": "start"})


def _fill_in_control(earlier: EarlierStages, own: StageOptions) -> dict[str, OptionText]:
    """Repeat the post-training with random rewards."""
    repeated = {name: value for name, value in earlier.get("posttrain", {}).items() if name != "output"}
    return repeated | {"random_rewards": "true"}


def _fill_in_distil(earlier: EarlierStages, own: StageOptions) -> dict[str, OptionText]:
    filled: dict[str, OptionText] = {"recipe": "distil"}
    for name in ("prompts", "held_out"):
        if (value := earlier.get("posttrain", {}).get(name)) is not None:
            filled[name] = value
    return filled | _outputs_as(earlier, {"pretrain": "start", "posttrain": "start"})


def _fill_in_evaluate(earlier: EarlierStages, own: StageOptions) -> dict[str, OptionText]:
    """Compare the checkpoints of all training stages with the first of them, on the prompts that were held out."""
    filled: dict[str, OptionText] = {}
    training = {kind.name for kind in STAGES if kind.trains}
    trained = {name: options for name, options in earlier.items() if name in training}
    for options in trained.values():
        if (prompts := options.get("held_out")) is not None:
            filled["prompts"] = prompts
    if {"system", "videos", "checkpoint"} & own.keys() or not trained or any("policy" in o for o in trained.values()):
        return filled
    first = next(iter(trained.values()))
    systems = {} if "pretrain" in trained else {"start": first.get("start", DEFAULT_START)}
    systems |= {name: options["output"] for name, options in trained.items()}
    filled["system"] = [f"{name}={where}" for name, where in systems.items()]
    if len(systems) > 1:
        filled["against"] = next(iter(systems))
    return filled


def _outputs_as(earlier: EarlierStages, uses: Mapping[str, str]) -> dict[str, OptionText]:
    """Return the outputs of earlier stages under the option that uses them; a later stage replaces an earlier one."""
    return {option: earlier[stage]["output"] for stage, option in uses.items() if stage in earlier}


STAGES: tuple[StageKind, ...] = (
    StageKind("prepare", "prepare", "flowportrait.commands.prepare:PrepareOptions", _fill_in_nothing),
    StageKind("pretrain", "pretrain", "flowportrait.commands.pretrain:PretrainOptions", _fill_in_pretrain, True, True),
    StageKind(
        "posttrain", "posttrain", "flowportrait.commands.posttrain:PostTrainOptions", _fill_in_posttrain, True, True
    ),
    StageKind("control", "posttrain", "flowportrait.commands.posttrain:PostTrainOptions", _fill_in_control, True, True),
    StageKind("distil", "posttrain", "flowportrait.commands.posttrain:PostTrainOptions", _fill_in_distil, True, True),
    StageKind("evaluate", "evaluate", "flowportrait.commands.evaluate:EvaluateOptions", _fill_in_evaluate),
)
"""All stages, in the order in which they run."""

"""``flowportrait policies``: which generators can be post-trained, what each needs, and whether one of yours can.

policies                    families of diffusers pipelines and what their prompts have
policies memory [NAME …]    parameters and peak memory of the published models, counted
policy check NAME           a pipeline's folder or hub name, or MODULE:CLASS
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.terminal import progress, waiting


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("policies", aliases=["policy"], help="other generators that can be post-trained")
    add.add_argument(
        "action",
        nargs="?",
        choices=("list", "memory", "check"),
        default="list",
        help="families (default), what published models need, or whether one can be trained",
    )
    add.add_argument("name", nargs="*", help="what to check, or the models to count")
    add.add_argument(
        "--prompts", type=Path, help="check: items to try it on, as for posttrain (two are best; default: two texts)"
    )
    add.add_argument(
        "--policy-set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="check: arguments of the pipeline's calls, or of the class",
    )
    add.add_argument("--bf16", action="store_true", help="load weights in bfloat16")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The families, their memory, or a check.

    Raises:
        BadInput: no such model, or a check that does not hold, with what is wrong.
    """
    from flowportrait.errors import BadInput

    if options.action == "check":
        if len(options.name) != 1:
            raise BadInput("flowportrait policy check needs one name: a pipeline (folder or hub), or MODULE:CLASS.")
        return _check(options)
    if options.action == "memory":
        return _memory(options)
    from flowportrait.adapters.families import FAMILIES

    return {
        family.name: {"pipelines": list(family.pipelines), "prompts need": sorted(family.needs),
                      "may have": sorted(family.takes - family.needs)} if options.json
        else f"{', '.join(family.pipelines)}; prompts need {', '.join(sorted(family.needs))}"
        + (f", may have {', '.join(sorted(family.takes - family.needs))}" if family.takes - family.needs else "")
        for family in FAMILIES
    }  # fmt: skip


def _check(options: argparse.Namespace) -> dict[str, Any]:
    from flowportrait.adapters.check import check
    from flowportrait.adapters.loading import load_policy_generator, read_items
    from flowportrait.adapters.policy import Item
    from flowportrait.errors import BadInput

    items = read_items(options.prompts)[:2] if options.prompts else [Item("one", "A face."), Item("two", "A street.")]
    found = check(load_policy_generator(options.name[0], options.policy_set, options.bf16), items)
    last = found[-1]
    if not last.passed and last.name == "encode" and not options.prompts:
        raise BadInput(
            f"{options.name[0]}: {last.message.removesuffix('.')}; it was tried on two texts alone: if it needs "
            "images or speech, give some with --prompts."
        )
    if not last.passed:
        raise BadInput(f"{options.name[0]}: {last.message}")
    return {result.name: result.message for result in found}


def _memory(options: argparse.Namespace) -> dict[str, Any]:
    with waiting("loading diffusers"):
        from flowportrait.adapters.memory import count_memory
    from flowportrait.adapters.memory import MODELS, model_named

    chosen = [model_named(name) for name in options.name or MODELS]
    needs = {model.name: count_memory(model) for model in progress(chosen, len(chosen), "counting")}
    return {name: own.as_dict() if options.json else str(own) for name, own in needs.items()}

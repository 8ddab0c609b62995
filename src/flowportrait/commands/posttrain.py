"""``flowportrait posttrain``: reinforcement learning on portraits and speech, its recipes, and other generators.

posttrain --recipe nft --help        the settings of a recipe with their meaning
posttrain recipes [show NAME]        the methods, or one of them in full
posttrain policies                   families of diffusers pipelines and what their prompts have
posttrain policies memory [NAME …]   parameters and peak memory of the published models, counted
posttrain policies check NAME        a pipeline's folder or hub name, or MODULE:CLASS
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro import conf

from flowportrait.commands.options import (
    Files,
    Flag,
    Json,
    OptionalInt,
    OptionalPath,
    OptionalText,
    RayAddress,
    Settings,
)
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder
from flowportrait.terminal import progress, waiting


@dataclass(frozen=True)
class PostTrainOptions:
    """Post-train a generator with reinforcement learning on portraits and speech.

    Settings of the recipe are options too: --objective.kl-weight 0.1, or --set objective.kl_weight=0.1.
    --recipe NAME --help lists them.
    """

    configuration: ClassVar[str] = "flowportrait.rl.post_trainer:resolve_recipe"
    output: Path
    """Folder of the run."""
    recipe: str = "flow-grpo"
    """Name of a recipe, or the folder of a run whose settings are used again."""
    prompts: OptionalPath = None
    """Folder of images and audio files."""
    pairs: Files = ()
    """Files of preference pairs (flow-dpo, flow-rwr, …) or rated clips (threshold) to learn from; no prompts."""
    held_out: OptionalPath = None
    """Prompts for the held-out evaluation; they are never trained on."""
    exemplars: OptionalPath = None
    """Prepared corpus of real clips that are added to the samples, or damaged."""
    iterations: OptionalInt = None
    """Number of iterations; by default that of the recipe."""
    policy: OptionalText = None
    """Generator to train: a diffusers pipeline (folder or hub name), the name of a plugin, or MODULE:CLASS."""
    policy_set: Settings = ()
    """Arguments of the pipeline's calls (height, num_frames, guidance_scale, …) or of the class."""
    bf16: bool = False
    """Load the weights of the pipeline in bfloat16."""
    start: str = "sft"
    """Checkpoint to start from: sft, rl, a folder, or org/name on the Hugging Face Hub."""
    random_rewards: Flag = False
    """Control: replace every reward by random scores, to see what the method changes by itself."""
    resume: Flag = False
    """Continue the run in --output."""
    track: OptionalText = None
    """Also log the metrics to tensorboard or wandb."""
    ray: RayAddress = None
    """Score the rollouts on the machines of a Ray cluster: auto, HOST:PORT, or ray://HOST:PORT."""
    set: Settings = ()
    """Settings of the recipe."""


@dataclass(frozen=True)
class RecipeOptions:
    """List the recipes of post-training, or show one."""

    action: conf.Positional[Literal["list", "show"]] = "list"
    """List all recipes, or show one in full."""
    name: conf.Positional[OptionalText] = None
    """Recipe to show."""
    json: Json = False


@dataclass(frozen=True)
class PolicyOptions:
    """List the generators that can be post-trained, count their memory, or check one of your own."""

    action: conf.Positional[Literal["list", "memory", "check"]] = "list"
    """List families of pipelines, count the memory of published models, or check a generator."""
    name: conf.Positional[Annotated[tuple[str, ...], conf.arg(metavar="NAME …")]] = ()
    """Generator to check, or models to count."""
    prompts: OptionalPath = None
    """With check: prompts as for posttrain, two are best; by default two texts."""
    policy_set: Settings = ()
    """With check: arguments of the pipeline's calls, or of the class."""
    bf16: bool = False
    """Load weights in bfloat16."""
    json: Json = False


def run(options: PostTrainOptions) -> dict[str, Any]:
    """Post-train a generator by reinforcement learning."""
    check_output_folder(options.output)
    from flowportrait.models.checkpoints import checkpoint_folder
    from flowportrait.parallel import check_cluster
    from flowportrait.rl.post_trainer import PostTrainer, resolve_recipe

    check_cluster(options.ray)
    if not options.policy:
        checkpoint_folder(options.start)
    iterations = [] if options.iterations is None else [f"iterations={options.iterations}"]
    config = resolve_recipe(options.recipe, [*options.set, *iterations])
    trainer = PostTrainer(
        options.policy or options.start,
        config=config.with_random_rewards() if options.random_rewards else config,
        train_prompts=options.prompts,
        eval_prompts=options.held_out,
        output_dir=options.output,
        pairs=options.pairs,
        exemplars=options.exemplars,
        policy_arguments=options.policy_set,
        bf16=options.bf16,
        report_to=options.track,
        ray=options.ray,
    )
    return {"checkpoint": str(trainer.train(options.resume))}


def run_recipes(options: RecipeOptions) -> dict[str, Any]:
    """Print all recipes with their sources, or one with its equation and the reason for each setting.

    Raises:
        BadInput: no such recipe, or ``show`` without a name.
    """
    from flowportrait.rl.recipes import EARLIER_NAMES, recipe_texts

    texts = recipe_texts()
    if options.action == "list":
        listed = {
            name: {"source": text["source"], "verified": text["verified"], "our reading": text["reading"]}
            for name, text in texts.items()
        }
        for earlier, name in EARLIER_NAMES.items():
            listed[earlier] = {"source": f"an earlier name of {name}, which is {texts[name]['source']}"}
        return listed if options.json else {name: _indented(parts) for name, parts in listed.items()}
    if options.name is None:
        raise BadInput(f"flowportrait posttrain recipes show needs a name: {', '.join(texts)}.")
    from flowportrait.config import to_dict
    from flowportrait.rl.recipes import find_card
    from flowportrait.rl.recipes.figures import expected_figure

    card = find_card(options.name)
    settings = to_dict(card.recipe)
    why = {name: _setting_prefix(card.settings, name) + because for name, because in card.why.items()}
    return {
        "name": card.name,
        "source": card.source,
        "equation": card.equation if options.json else "\n    " + card.equation.strip().replace("\n", "\n    "),
        "from the paper": card.paper,
        "verified": card.verified,
        "our reading": card.reading,
        "to expect": expected_figure(card.name),
        "why": dict(card.why) if options.json else _indented(why),
        "settings": settings if options.json else "\n" + json.dumps(settings, indent=2),
    }


def _indented(parts: dict[str, str]) -> str:
    return "".join(f"\n    {name}: {text}" for name, text in parts.items())


def _setting_prefix(settings: dict[str, Any], name: str) -> str:
    """Return the value of a setting, which is printed before its reason; empty for a part with settings of its own."""
    return f"{settings[name]}, " if name in settings else ""


def run_policies(options: PolicyOptions) -> dict[str, Any]:
    """Print the supported families, count the memory of models, or check a generator.

    Raises:
        BadInput: no such model, or a check that does not hold, with what is wrong.
    """
    if options.action == "check":
        if len(options.name) != 1:
            raise BadInput(
                "flowportrait posttrain policies check needs one name: a pipeline (folder or hub), or MODULE:CLASS."
            )
        return _check_policy(options)
    if options.action == "memory":
        return _count_memory(options)
    from flowportrait.adapters.families import FAMILIES

    return {
        family.name: {"pipelines": list(family.pipelines), "prompts need": sorted(family.needs),
                      "may have": sorted(family.takes - family.needs)} if options.json
        else f"{', '.join(family.pipelines)}; prompts need {', '.join(sorted(family.needs))}"
        + (f", may have {', '.join(sorted(family.takes - family.needs))}" if family.takes - family.needs else "")
        for family in FAMILIES
    }  # fmt: skip


def _check_policy(options: PolicyOptions) -> dict[str, Any]:
    from flowportrait.adapters.check import check_generator
    from flowportrait.adapters.loading import load_policy_generator, read_items
    from flowportrait.adapters.policy import Item

    items = read_items(options.prompts)[:2] if options.prompts else [Item("one", "A face."), Item("two", "A street.")]
    found = check_generator(load_policy_generator(options.name[0], options.policy_set, options.bf16), items)
    last = found[-1]
    if not last.passed and last.name == "encode" and not options.prompts:
        raise BadInput(
            f"{options.name[0]}: {last.message.removesuffix('.')}; it was tried on two texts alone: if it needs "
            "images or speech, give some with --prompts."
        )
    if not last.passed:
        raise BadInput(f"{options.name[0]}: {last.message}")
    return {result.name: result.message for result in found}


def _count_memory(options: PolicyOptions) -> dict[str, Any]:
    with waiting("loading diffusers"):
        from flowportrait.adapters.memory import count_memory
    from flowportrait.adapters.memory import PUBLISHED_MODELS, published_model

    chosen = [published_model(name) for name in options.name or PUBLISHED_MODELS]
    needs = {model.name: count_memory(model) for model in progress(chosen, len(chosen), "counting")}
    return {name: own.as_dict() if options.json else str(own) for name, own in needs.items()}

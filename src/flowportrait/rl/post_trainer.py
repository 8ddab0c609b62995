"""This module post-trains any generator: it is the public entry point of reinforcement learning.

    policy ─► adapter (built-in or third-party generator) ─► task, rewards ─► Trainer ─► Loop ─► checkpoint/

A run writes to its folder:

    recipe.json     the resolved recipe                    metrics.jsonl   one line per iteration
    run.json        versions, seed, hashes of all inputs   samples/        held-out videos every k iterations
    state/          the state to resume from               checkpoint/     the best: ``animate --checkpoint RUN``
    events.jsonl    unusual events                         latest/         the last averaged weights, if there is a
                                                                           held-out evaluation
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Unpack

from accelerate import Accelerator

from flowportrait.adapters.loading import GeneratorAdapter, as_generator, load_policy_generator
from flowportrait.config import override, save, to_dict
from flowportrait.errors import BadInput
from flowportrait.files import current_path
from flowportrait.hub import UploadSettings, is_hub_id, read_hub_config, upload_folder
from flowportrait.models.arflow import ARFlow
from flowportrait.models.checkpoints import SHIPPED_CHECKPOINTS
from flowportrait.models.model_card import CARD_FILE, set_card_section
from flowportrait.plugins import is_reference, plugin_names
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.loop import Callback, HeldOutEvaluation, TrainingLoop, is_best_checkpoint
from flowportrait.rl.manifest import describe_run, flatten_settings, write_or_compare_manifest
from flowportrait.rl.offline_data import OfflineDataConfig
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.policy_adapter import ARFlowAdapter, PolicyAdapter, TrainingData
from flowportrait.rl.prompt_scores import mean_scores
from flowportrait.rl.recipes import CARDS, find_recipe
from flowportrait.rl.remote_scoring import RayScorer
from flowportrait.rl.trainer import Trainer
from flowportrait.terminal import is_main_process, log
from flowportrait.training.distributed import (
    all_gather_object,
    create_tracking_accelerator,
    finish_trackers,
    report_errors_on_main,
    run_on_main,
)
from flowportrait.training.state import latest_state, read_state

PromptsLike = str | Path | Sequence[Any]
"""Prompts as ``PostTrainer`` takes them: a path, or objects of the type that the policy's adapter reads."""
RewardLike = str | type | Reward | Callable[[RewardBatch], Any]
"""A reward as ``PostTrainer`` takes it: a name, MODULE:NAME, a class, an object, or a function of a batch."""
RewardsLike = CompositeReward | Sequence[RewardLike] | Mapping[str, float]
"""Rewards as ``PostTrainer`` takes them: a composite, rewards of equal weight, or weights by name."""


class PostTrainer:
    """Trains a generator by reinforcement learning on portraits, speech or texts.

    For example:

        trainer = PostTrainer(
            "sft",
            rewards=["sync", my_reward],
            config=PostTrainConfig.from_recipe("nft", groups=4),
            train_prompts="mine/",
            eval_prompts="held_out/",
            output_dir="runs/nft",
        )
        trainer.train(resume=True)
        trainer.save_pretrained("out/")

    Several processes (``accelerate launch``) train together.

    Args:
        policy: the generator to train. The built-in generator is named by a shipped checkpoint (``sft``, ``rl``), the
            folder of a checkpoint or of a run, ``org/name`` on the Hub, or an ``ARFlow`` object. Other generators are
            a pipeline of diffusers (the object, its folder or its name on the Hub), ``MODULE:NAME``, an entry point
            of the group ``flowportrait.policies``, or an object with the methods of ``adapters.policy.Generator``.
        rewards: names, ``MODULE:NAME``, classes, objects or plain functions of a batch, with equal weights; or a
            mapping from names to weights. The default is the rewards of the config.
        config: the recipe with its settings, or the name of a recipe.
        train_prompts: a folder of images and audio files, a ``prompts.jsonl``, or ``Prompt`` or ``Item`` objects.
        eval_prompts: prompts of the same type that are never trained on. They are sampled and measured every
            ``config.evaluate_every`` iterations, select the best checkpoint, and stop a run in which only the rewards
            improve.
        callbacks: user code that is called during the run; see ``Callback``.
        output_dir: folder of the run.
        pairs: files of preference pairs or rated clips to learn from instead of prompts.
        exemplars: a prepared corpus of real clips, for recipes that need them.
        policy_arguments: arguments of a pipeline's calls (``height``, ``num_frames``, …) or of a class.
        bf16: load the weights of a pipeline in bfloat16.
        report_to: ``tensorboard`` or ``wandb``.
        ray: address of a Ray cluster whose machines score the rollouts.

    Raises:
        BadInput: the recipe does not fit the policy or the data, or a name is not known.
    """

    def __init__(
        self,
        policy: Any = "sft",
        rewards: RewardsLike | None = None,
        config: PostTrainConfig | str = "flow-grpo",
        train_prompts: PromptsLike | None = None,
        eval_prompts: PromptsLike | None = None,
        callbacks: Sequence[Callback] = (),
        output_dir: str | Path | None = None,
        *,
        pairs: Sequence[str | Path] = (),
        exemplars: str | Path | None = None,
        policy_arguments: Mapping[str, Any] | Sequence[str] = (),
        bf16: bool = False,
        report_to: str | None = None,
        ray: str | None = None,
    ) -> None:
        config = resolve_recipe(config) if isinstance(config, str) else config
        if bf16 and config.autocast == "no":
            # Half-precision weights round as autocast does: replayed noise is compared accordingly.
            config = replace(config, autocast="bf16")
        self.config = recipe_for_pairs(config) if pairs else config
        self.adapter = build_policy_adapter(policy, policy_arguments, bf16)
        self.rewards = rewards
        self.train_prompts, self.eval_prompts = train_prompts, eval_prompts
        self.callbacks = list(callbacks)
        self.output_dir = Path(output_dir or f"runs/{self.config.name}")
        self.pairs = [Path(path) for path in pairs]
        self.exemplars = None if exemplars is None else Path(exemplars)
        self.report_to, self.ray = report_to, ray
        self.policy_arguments, self.bf16 = policy_arguments, bf16
        self._trainer: Trainer | None = None
        self.adapter.check(self.config, TrainingData(() if train_prompts else None, self.pairs, self.exemplars))

    def train(self, resume: bool = False) -> Path:
        """Train to the config's last iteration, or until there is a reason to stop.

        Args:
            resume: continue the run in ``output_dir``, if there is one.

        Returns:
            The folder of the best checkpoint.

        Raises:
            BadInput: prompts or settings cannot be used, ``output_dir`` has a run that is not to be resumed or that has
                other data, or nothing could be learned or saved.
        """
        accelerator = create_tracking_accelerator(self.report_to, self.output_dir)
        with report_errors_on_main(accelerator, self.output_dir), ExitStack() as stack:
            self._train(resume, accelerator, stack)
        return self.output_dir / "checkpoint"

    @property
    def history(self) -> list[dict[str, float]]:
        """Return the records of all iterations so far, as in ``metrics.jsonl``."""
        path = self.output_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []

    def score_prompts(
        self, prompts: PromptsLike, rewards: RewardsLike | None = None, samples: int = 4
    ) -> dict[str, float]:
        """Return the mean score of every reward over samples of prompts, which are not trained on.

        Before ``train`` these are samples of the policy as it is, afterwards of its averaged weights. They are sampled
        without stochastic steps, from the same initial noise each time, so that figures of one seed can be compared.

        Args:
            prompts: a folder, a ``prompts.jsonl``, or ``Prompt`` or ``Item`` objects.
            rewards: what to measure; by default the rewards of the run.
            samples: samples of each prompt.

        Raises:
            BadInput: prompts or rewards cannot be used.
        """
        config = replace(self.config, offline_data=None)
        chosen = rewards if rewards is not None else self.rewards
        composite = CompositeReward.default(config.rewards) if chosen is None else build_composite(chosen)
        items = self._read(prompts) or ()
        data = TrainingData(items, exemplars=self.exemplars)
        policy, task, _, _ = self.adapter.prepare(config, data, composite)
        trainer = self._trainer
        if trainer is None:
            return mean_scores(policy, task, composite, config, len(items), samples)
        with trainer.rollout_mode("ema"):
            return mean_scores(trainer.policy, task, composite, config, len(items), samples)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Copy the best checkpoint and its recipe to a folder. Of several processes only the main one copies.

        ``AnimatePipeline`` loads a built-in generator from it, and diffusers loads the adapters of a pipeline.

        Raises:
            BadInput: nothing has been trained yet, or the folder cannot be written.
        """
        source, target = self.output_dir / "checkpoint", Path(folder)
        if not source.is_dir():
            raise BadInput(f"There is no checkpoint in {self.output_dir} yet: call train first.")
        if not is_main_process():
            return target
        try:
            shutil.copytree(source, target, dirs_exist_ok=True)
            shutil.copy(self.output_dir / "recipe.json", target / "recipe.json")
        except (OSError, shutil.Error) as error:
            raise BadInput(f"Cannot write {target} ({error}).") from error
        return target

    def push_to_hub(self, name: str, **settings: Unpack[UploadSettings]) -> str:
        """Upload what ``save_pretrained`` writes, and return its address on the Hub; see ``hub.upload_folder``.

        Raises:
            BadInput: nothing has been trained yet, or the upload failed.
        """
        with TemporaryDirectory() as folder:
            return upload_folder(self.save_pretrained(folder), name, **settings)

    def _train(self, resume: bool, accelerator: Accelerator, stack: ExitStack) -> None:
        config, output, state = self.config, self.output_dir, self.output_dir / "state"
        if any(all_gather_object(accelerator, latest_state(state) is not None)) and not resume:
            raise BadInput(f"{output} already holds a run: add --resume to continue it or choose another --output.")
        # With offline data the run learns from existing clips instead of prompts.
        train_prompts = None if config.offline_data else self._read(self.train_prompts)
        eval_prompts = self._read(self.eval_prompts)
        data = TrainingData(train_prompts, self.pairs, self.exemplars)
        rewards = None if self.rewards is None else build_composite(self.rewards)
        policy, task, own_rewards, files = self.adapter.prepare(config, data, rewards)
        rewards = own_rewards or rewards or CompositeReward.default(config.rewards)

        def describe() -> dict[str, Any]:
            start = self.adapter.start(policy, config)
            needs = {reward.name: sorted(reward.needs) for reward in rewards.rewards}
            weights = dict(rewards.weights)
            return describe_run(
                start, train_prompts or (), config.seed, files, rewards=weights, needs=needs, inputs=self._inputs()
            )

        description = run_on_main(accelerator, describe)
        scorer = stack.enter_context(RayScorer(rewards, self.ray)) if self.ray else None
        trainer = self._trainer = Trainer(policy, task, config, rewards, accelerator, scorer)

        def open_folder() -> list[str]:
            output.mkdir(parents=True, exist_ok=True)
            return write_or_compare_manifest(output / "run.json", description)

        for change in run_on_main(accelerator, open_folder):
            if accelerator.is_main_process:
                log(f"Warning: {change}; a resumed run may differ in its last bits.")
        if latest_state(state):
            read_state(trainer, state)
        run_on_main(accelerator, lambda: save(trainer.recipe, output / "recipe.json"))
        if self.report_to:
            accelerator.init_trackers("flowportrait", flatten_settings(to_dict(config)))
        evaluation = None
        if eval_prompts:
            evaluation = HeldOutEvaluation(eval_prompts, output / "samples", self.adapter.write_sample)
        TrainingLoop(trainer, output, evaluation, self.callbacks).run()
        if isinstance(self.adapter, ARFlowAdapter) and (output / "checkpoint" / CARD_FILE).is_file():
            run_on_main(accelerator, lambda: self._describe_checkpoint(rewards))
        finish_trackers(accelerator)

    def _describe_checkpoint(self, rewards: CompositeReward) -> None:
        """Write into the card of the checkpoint what it was trained with, and what was measured."""
        folder, config = self.output_dir / "checkpoint", self.config
        weights = ", ".join(f"`{name}` {weight:g}" for name, weight in rewards.weights.items())
        data = [f"* Start: `{self.adapter.name}`; recipe `{config.name}` of `recipe.json`, seed {config.seed}."]
        data += [f"* Rewards and their weights: {weights}."] if weights else []
        if isinstance(self.train_prompts, (str, Path)):
            data.append(f"* Prompts: `{Path(self.train_prompts).name}`. Write here who speaks in them, and who agreed.")
        set_card_section(folder, "Training data", "\n".join(data))
        evaluations = [record for record in self.history if any(key.startswith("evaluation/") for key in record)]
        best = [index for index in range(len(evaluations)) if is_best_checkpoint(evaluations[: index + 1])]
        if best:
            first, last = evaluations[0], evaluations[best[-1]]
            rows = [
                f"| {key.removeprefix('evaluation/')} | {first[key]:.4g} | {last[key]:.4g} |"
                for key in last
                if key.startswith("evaluation/") and key in first
            ]
            head = f"| on held-out prompts | start | iteration {last['iteration']:.0f} |\n|---|---|---|\n"
            set_card_section(folder, "Figures", head + "\n".join(rows))

    def _inputs(self) -> dict[str, Any]:
        """Return what was given as paths and names, for ``rl.control``, which repeats it; other objects are None."""

        def path(value: Any) -> str | None:
            return str(value) if isinstance(value, (str, Path)) else None

        arguments = self.policy_arguments
        pairs = [f"{key}={value}" for key, value in arguments.items()] if isinstance(arguments, Mapping) else arguments
        return {
            "prompts": path(self.train_prompts), "held_out": path(self.eval_prompts), "exemplars": path(self.exemplars),
            "pairs": [str(pair) for pair in self.pairs], "policy_set": list(pairs), "bf16": self.bf16,
        }  # fmt: skip

    def _read(self, prompts: PromptsLike | None) -> Sequence[Any] | None:
        return self.adapter.read_prompts(Path(prompts)) if isinstance(prompts, (str, Path)) else prompts


def build_policy_adapter(
    policy: Any, arguments: Mapping[str, Any] | Sequence[str] = (), bf16: bool = False
) -> PolicyAdapter:
    """Return the adapter for anything that ``PostTrainer`` takes as a policy.

    Raises:
        BadInput: there is no policy of that name, or the object is not a generator.
    """
    if isinstance(policy, ARFlow):
        return ARFlowAdapter(policy)
    if not isinstance(policy, (str, Path)):
        generator = as_generator(policy, dict(arguments) if isinstance(arguments, Mapping) else None)
        return GeneratorAdapter(getattr(policy, "__name__", type(policy).__name__), lambda: generator)
    name, plugins = str(policy), plugin_names("policies")
    if not is_reference(name) and name not in plugins:
        is_checkpoint = any(
            (folder / "model.safetensors").is_file() for folder in (Path(name), Path(name, "checkpoint"))
        )
        if name in SHIPPED_CHECKPOINTS or is_checkpoint:
            return ARFlowAdapter(name)
        if is_hub_id(name) and "chunk" in read_hub_config(name):
            return ARFlowAdapter(name)
        if not Path(name).is_dir() and not is_hub_id(name):
            raise BadInput(
                f"No policy named {name!r}: choose from {', '.join([*SHIPPED_CHECKPOINTS, *plugins])}, a folder, a "
                "pipeline of diffusers by its hub name, or MODULE:NAME."
            )
    return GeneratorAdapter(name, lambda: load_policy_generator(name, arguments, bf16))


def build_composite(rewards: RewardsLike) -> CompositeReward:
    """Return rewards in any form that ``PostTrainer`` takes as a composite.

    Raises:
        BadInput: there is no reward of that name.
    """
    return rewards if isinstance(rewards, CompositeReward) else CompositeReward.of(rewards)


def resolve_recipe(recipe: str | Path, changes: Sequence[str] = ()) -> PostTrainConfig:
    """Return a recipe by name, or by the folder of a run that used it, with ``key=value`` changes applied.

    Raises:
        BadInput: unknown recipe, key or value.
    """
    path = current_path(Path(recipe))
    file = path / "recipe.json" if path.is_dir() else path
    config = PostTrainConfig.from_json(file) if path.exists() else find_recipe(str(recipe))
    return override(config, changes)


def recipe_for_pairs(recipe: PostTrainConfig) -> PostTrainConfig:
    """Return the recipe changed to learn from preference pairs, or from single rated clips.

    It learns from rated clips if it compares every sample with the whole batch.

    Raises:
        BadInput: the recipe makes its own pairs, or needs the steps of a sample, which an existing clip does not have.
    """
    if not _needs_final_samples_only(recipe):
        choices = [name for name in CARDS if _needs_final_samples_only(find_recipe(name))]
        raise BadInput(f"The recipe {recipe.name} does not go with --pairs: choose one of {', '.join(choices)}.")
    clips: Literal["pairs", "rated"] = "rated" if recipe.credit.baseline_scope == "batch" else "pairs"
    offline_data = replace(recipe.offline_data or OfflineDataConfig(), clips=clips)
    return replace(recipe, offline_data=offline_data, group_size=offline_data.group_size)


def _needs_final_samples_only(recipe: PostTrainConfig) -> bool:
    """Return whether the recipe can learn from clips without recorded steps and does not make clips of its own."""
    samples_without_path = isinstance(recipe.plan, OdePlan) and not recipe.plan.keep_path
    damages_clips = recipe.offline_data and recipe.offline_data.clips == "damaged"
    return samples_without_path and not (recipe.exemplars or recipe.exploration or damages_clips)

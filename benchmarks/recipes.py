"""Recipes and their controls after equal processor time, on speakers that nothing was trained on.

Every contestant starts from ``sft`` and gets the same number of processor seconds for rollouts, scoring and updates.
Processor time is counted, not wall-clock time, which on a shared machine measures the other programs. Looks at
held-out prompts are not counted. Seed by seed, so that an interrupted call leaves all contestants with as many runs.

    OUTPUT/NAME/SEED/   checkpoint/   curve.jsonl: rewards on held-out prompts by processor seconds
                        held.json: the same for every sample, at the end
                        videos/       rows.json: the evaluation's metrics of finished mp4 files
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from benchmarks.drawing import codecs, draw_and_measure, generate_motion, named_checkpoints, real_motion
from benchmarks.material import choice_clips, use_one_thread
from benchmarks.paired import Rows, compare_runs
from benchmarks.recipe_controls import Sampling, best_of, train_longer, tune_sampling
from benchmarks.record import Record
from benchmarks.timing import stopwatch
from flowportrait.config import override
from flowportrait.data.corpus import FaceClip
from flowportrait.data.prompts import read_prompts
from flowportrait.evaluation.metrics import REAL, MetricRow
from flowportrait.files import write_json, write_text
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.sampler import sample_from_mel
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import HEAD, LOWER_FACE
from flowportrait.rendering.motion_filters import MotionLowPass
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import CompositeReward, RewardWeights
from flowportrait.rl.policy_adapter import load_speech_items
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.task import PortraitRenderer, SpeechPrompts, TalkingTask, draw_prompts
from flowportrait.rl.trainer import Trainer
from flowportrait.terminal import log

SMALL = ("groups=4", "group_size=8", "frames=48", "rollout_chunks=1", "render_size=96")
"""Rollouts that are small enough for many iterations a minute on one core; the same for all."""
LOOKS = 2
"""Looks at held-out prompts during a run, evenly in its time."""
HELD_OUT_SAMPLES = 16
METRIC_KEYS = (
    "sync_in_time_short", "ler", "ecs", "tfi", "mouth_amplitude", "head_range", "gaze_std", "lid_motion",
    "silent_lip", "jerk", "sharpness",
)  # fmt: skip
"""Metrics that are compared and corrected together."""
UNTESTED_KEYS = ("identity_kept", "spread_lips", "spread_head")
"""Identity, and the standard deviation between two samples of the same speech."""
BASELINE, COMPOSITE = "sft", "composite"


class Contestant(NamedTuple):
    """A recipe and what is changed in it."""

    recipe: str
    settings: tuple[str, ...] = ()


ALONE = ("rewards.judge=0", "rewards.perceptual=0", "rewards.temporal=0", "objective.kl_weight=0", "learning_rate=2e-4")
RANDOM = ("rewards.judge=0", "rewards.perceptual=0", "rewards.temporal=0", "rewards.other.random=1")
ONLINE = (
    "flow-grpo", "dance-grpo", "mix-grpo", "flash-grpo", "longcat-grpo", "cps", "guard", "dppo", "branch-grpo",
    "tempflow", "step-credit", "region-credit", "solace", "kvpo", "gspo", "nft", "nft-regions", "awm", "flow-rwr",
    "exemplar-ratio", "exemplar-awm",
)  # fmt: skip
"""The recipes that need neither pairs nor a teacher."""
CONTESTANTS: dict[str, Contestant] = {
    **{name: Contestant(name) for name in ONLINE},
    "branch-grpo": Contestant("branch-grpo", ("plan.forks=3",)),  # three forks give eight samples
    **{f"{recipe}, random reward": Contestant(recipe, RANDOM) for recipe in ("flow-grpo", "nft")},
    **{f"eta {eta}": Contestant("flow-grpo", (f"eta={eta}",)) for eta in (0.1, 0.3, 0.7, 1.0)},
    **{
        f"{recipe}, no {group}": Contestant(recipe, (f"rewards.{group}=0",))
        for recipe in ("flow-grpo", "nft")
        for group in ("judge", "perceptual", "temporal")
    },
    "flow-grpo, win rates": Contestant("flow-grpo", ("credit.win_rate=all",)),
    "flow-rwr, slower": Contestant("flow-rwr", ("learning_rate=2e-5",)),
    "credit per clip": Contestant("nft-regions", ("credit.dense=0",)),
    "credit per window": Contestant("nft-regions", ("credit.dense=1",)),
    "sync alone": Contestant("nft", (*ALONE, "rewards.sync=1")),
    "temporal alone": Contestant("nft", (*ALONE, "rewards.temporal=1")),
    "random reward alone": Contestant("nft", (*ALONE, "rewards.other.random=1")),
}
LONGER, TUNED = "more supervised training", "tuned sampling"
RANDOM_CONTROLS = ("flow-grpo, random reward", "nft, random reward")
Study = Literal["recipes", "leaders", "noise", "groups", "credit", "hacks"]
STUDIES: dict[Study, tuple[str, ...]] = {
    "recipes": (LONGER, TUNED, *RANDOM_CONTROLS, *ONLINE, "flow-grpo, win rates", "flow-rwr, slower"),
    "leaders": ("flow-grpo", "gspo", "region-credit", "dppo", "kvpo", "nft", "awm", *RANDOM_CONTROLS),
    "noise": ("eta 0.1", "eta 0.3", "flow-grpo", "eta 0.7", "eta 1.0"),
    "groups": (
        "flow-grpo", "flow-grpo, no judge", "flow-grpo, no perceptual", "flow-grpo, no temporal", "nft",
        "nft, no judge", "nft, no perceptual", "nft, no temporal",
    ),
    "credit": ("credit per clip", "nft-regions", "credit per window"),
    "hacks": ("sync alone", "temporal alone", "random reward alone"),
}  # fmt: skip
"""Contestants that stand in one table, beside ``sft`` and real motion."""


@dataclass(frozen=True)
class RecipesOptions:
    """Compare recipes after equal processor time, on held-out prompts and on finished videos of unseen speakers.

    Random rewards, more supervised training and the sampling of sft tuned on the training reward should lose; the
    speakers' own motion drawn again should win. What is there from an earlier call is not done again.
    """

    corpus: Path
    """Prepared corpus: dev speakers are measured on, training speakers give exemplars."""
    data: Path
    """Footage folder with portraits/."""
    prompts: Path
    """Folder of prompts to train on."""
    held_out: Path
    """Folder of prompts for the looks during training."""
    output: Path
    """Folder of the runs."""
    study: tuple[Study, ...] = ("recipes",)
    """Groups of contestants: recipes, leaders, noise, groups, credit, hacks."""
    only: tuple[str, ...] = ()
    """Contestants of the studies; all by default."""
    checkpoints: tuple[str, ...] = ()
    """Further checkpoints to measure, NAME=FOLDER, or NAME@SEED=FOLDER for one of several runs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of training, a run each."""
    seconds: float = 120
    """Processor seconds of a run."""
    clips: int = 24
    """Clips of unseen speakers."""
    stage: Literal["train", "evaluate", "both"] = "both"
    """Whether to train, to make and measure videos, or both."""


def recipes(options: RecipesOptions, record: Record) -> None:
    """Train and measure contestants, and compare them with ``sft``."""
    use_one_thread()
    setup = Setup(options)
    names = [name for study in options.study for name in STUDIES[study]]
    wanted = [name for name in dict.fromkeys(names) if not options.only or name in options.only]
    for seed in options.seeds:
        for name in wanted:
            if options.stage != "evaluate":
                train(setup, name, seed)
            if options.stage != "train" and (setup.folder(name, seed) / "checkpoint").is_dir():
                evaluate(setup, name, seed)
    add_held_out_rewards(setup, wanted, record)
    if options.stage == "train":
        return
    for name in (REAL, BASELINE):
        evaluate(setup, name, 0)
    for name, checkpoint in named_checkpoints(options.checkpoints).items():
        system, _, seed_text = name.partition("@")
        evaluate(setup, system, int(seed_text or 0), checkpoint)
        wanted.append(system)
    rows: dict[str, Rows] = {}
    for name in dict.fromkeys((REAL, BASELINE, *wanted)):
        for path in sorted(setup.folder(name).glob("*/rows.json")):
            rows[f"{name}@{path.parent.name}"] = json.loads(path.read_text())
    keys = (*METRIC_KEYS, *UNTESTED_KEYS)
    compare_runs(record, rows, keys, baseline=BASELINE, group="finished videos", untested=UNTESTED_KEYS)


class Setup:
    """Prompts, portraits and clips that all contestants have in common."""

    def __init__(self, options: RecipesOptions) -> None:
        self.options = options

    @cached_property
    def rewards(self) -> CompositeReward:
        """The rewards by which all are watched, whatever they were trained on."""
        return CompositeReward.default()

    @cached_property
    def codecs(self) -> list[MotionCodec]:
        """The portraits of the videos, in turn."""
        return codecs(self.options.data, self.options.clips)

    @cached_property
    def clips(self) -> dict[str, FaceClip]:
        """The speech of the videos."""
        return choice_clips(self.options.corpus, self.options.clips)

    @cached_property
    def held_out_task(self) -> TalkingTask:
        """The prompts on which all are watched."""
        return self._task(self.options.held_out)

    @cached_property
    def training_task(self) -> TalkingTask:
        """The prompts from which all learn."""
        return self._task(self.options.prompts)

    @cached_property
    def exemplar_task(self) -> TalkingTask:
        """The clips from which those learn that are shown real ones."""
        return self._task(self.options.prompts, "exemplar-awm", self.options.corpus)

    def folder(self, name: str, seed: int | None = None) -> Path:
        """Return the folder of a contestant, or of one of its runs."""
        folder = self.options.output / name.replace(" ", "_")
        return folder if seed is None else folder / str(seed)

    def watch(self, policy: ARFlow) -> dict[str, list[float]]:
        """Return all rewards of held-out samples as delivered; prompts and noise are the same every time."""
        task = self.held_out_task
        prompts = SpeechPrompts(*draw_prompts(task.items, HELD_OUT_SAMPLES, task.frames, 0, 0))
        motion = MotionLowPass()(sample_from_mel(policy, prompts.mel, list(range(HELD_OUT_SAMPLES))))
        scores = self.rewards(RewardBatch(motion, prompts.mel, task.renderer_for(prompts.portraits)))  # type: ignore[misc]
        return {name: [round(value, 6) for value in score.value.tolist()] for name, score in scores.items()}

    def watch_at_start(self, policy: ARFlow) -> dict[str, list[float]]:
        """Return what is watched before anything is learned, which is the same for all and computed once."""
        path = self.folder(BASELINE, 0) / "held.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.watch(policy))
        found: dict[str, list[float]] = json.loads(path.read_text())
        return found

    def _task(self, folder: Path, recipe: str = "flow-grpo", exemplars: Path | None = None) -> TalkingTask:
        config = override(find_recipe(recipe), SMALL)
        items, portraits = load_speech_items(read_prompts(folder), config, exemplars)

        def renderer(rows: Sequence[int]) -> PortraitRenderer:
            return PortraitRenderer(portraits, rows, config.render_size)

        return TalkingTask(items, config.frames, renderer, chunk=4)


def train(setup: Setup, name: str, seed: int) -> None:
    """Leave a contestant's checkpoint in its folder, unless it is there."""
    folder, seconds = setup.folder(name, seed), setup.options.seconds
    if (folder / "checkpoint" / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    log(f"Training {name}, seed {seed}")
    if name == LONGER:
        model = train_longer(setup.options.corpus, setup.options.output / "features.pt", seconds, seed)
        model.save_pretrained(folder / "checkpoint")
    elif name == TUNED:
        task = setup.training_task
        assert task.renderer_for is not None, "these tasks draw"
        prompts = task.draw(8, seed, 0)
        sampling = tune_sampling(load_generator("sft"), prompts, setup.rewards, task.renderer_for)
        write_json(folder / "sampling.json", asdict(sampling))
        load_generator("sft").save_pretrained(folder / "checkpoint")
    else:
        post_train(setup, CONTESTANTS[name], folder, seed)


def post_train(setup: Setup, contestant: Contestant, folder: Path, seed: int) -> None:
    """Train with a recipe until its processor seconds are spent."""
    recipe = override(find_recipe(contestant.recipe), [*SMALL, *contestant.settings, f"seed={seed}"])
    task = setup.exemplar_task if recipe.exemplars else setup.training_task
    trainer = Trainer(load_generator("sft"), task, recipe, CompositeReward.default(recipe.rewards))
    held_out_rewards, seconds = setup.watch_at_start(trainer.policy), setup.options.seconds
    records = [{"iteration": 0.0, "seconds": 0.0, **held_out_means(held_out_rewards)}]
    spent, next_look = 0.0, seconds / LOOKS
    while spent < seconds:
        with stopwatch() as step:
            metrics = trainer.step()
        spent += step.processor
        metrics["seconds"] = spent
        if spent >= next_look:
            with trainer.rollout_mode("ema"):
                held_out_rewards = setup.watch(trainer.policy)
            metrics |= held_out_means(held_out_rewards)
            next_look += seconds / LOOKS
        records.append(metrics)
    with trainer.roles.use("ema"):
        trainer.policy.save_pretrained(folder / "checkpoint")
    write_json(folder / "held.json", held_out_rewards, indent=None)
    write_text(folder / "curve.jsonl", "".join(json.dumps(metrics) + "\n" for metrics in records))


def held_out_means(seen: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of every watched reward, under its key in curves."""
    return {f"held/{name}": sum(values) / len(values) for name, values in seen.items()}


def evaluate(setup: Setup, name: str, seed: int, checkpoint: str | None = None) -> None:
    """Leave the evaluation's metrics of a run's videos in its folder, unless they are there."""
    folder = setup.folder(name, seed)
    if (folder / "rows.json").is_file():
        return
    log(f"Measuring {name}, seed {seed}")
    generate = None if name == REAL else RunMotion(setup, folder, "sft" if name == BASELINE else checkpoint)
    rows: dict[str, MetricRow] = {}
    for index, (stem, clip) in enumerate(setup.clips.items()):
        motion = real_motion(clip) if generate is None else generate(clip.audio, index, 0)
        codec = setup.codecs[index % len(setup.codecs)]
        rows[stem] = draw_and_measure(folder / "videos" / f"{stem}.mp4", codec, motion, clip.audio)
        if generate is not None:
            spread = torch.stack([motion, generate(clip.audio, index, 1)]).std(0).mean(0)
            rows[stem] |= {"spread_lips": float(spread[LOWER_FACE].mean()), "spread_head": float(spread[HEAD].mean())}
    write_json(folder / "rows.json", rows)


class RunMotion:
    """The motion of a run for the speech of a clip."""

    def __init__(self, setup: Setup, folder: Path, checkpoint: str | None) -> None:
        self.setup, self.sampling = setup, None
        self.model = load_generator(checkpoint or folder / "checkpoint")
        if (folder / "sampling.json").is_file():
            self.sampling = Sampling(**json.loads((folder / "sampling.json").read_text()))
            self.small = [MotionCodec(codec.portrait, 96, retouch=False) for codec in setup.codecs]

    def __call__(self, audio: np.ndarray, index: int, sample: int) -> torch.Tensor:
        """Return motion ``[T, 30]``. The noise depends on the clip and the number of the sample alone."""
        seed = index + 500 * sample
        if self.sampling is None:
            return generate_motion(Animator(self.model), audio, seed)

        def renderer(rows: Sequence[int]) -> PortraitRenderer:
            return PortraitRenderer(self.small, rows, 96)

        portrait = index % len(self.small)
        return best_of(self.model, self.sampling, audio, seed, portrait, self.setup.rewards, renderer)


def add_held_out_rewards(setup: Setup, names: Sequence[str], record: Record) -> None:
    """Compare the rewards on held-out prompts at the end of the runs, sample by sample."""
    start = setup.folder(BASELINE, 0) / "held.json"
    if not start.is_file():
        return
    rows = {BASELINE: held_out_rows(start, start)}
    for name in names:
        paths = sorted(setup.folder(name).glob("*/held.json"))
        rows |= {f"{name}@{path.parent.name}": held_out_rows(path, start) for path in paths}
        lines = [(path.parent / "curve.jsonl").read_text().splitlines()[-1] for path in paths]
        if lines:
            record.add(name, "iterations", float(np.mean([json.loads(line)["iteration"] for line in lines])),
                       n=len(lines), group="runs")  # fmt: skip
    keys = list(rows[BASELINE]["0"])
    compare_runs(record, rows, keys, baseline=BASELINE, group="rewards on held-out prompts")


def held_out_rows(path: Path, start: Path) -> dict[str, MetricRow]:
    """Return the rewards of every held-out sample by its number.

    ``composite`` is their weighted sum, each in standard deviations of the rewards before training.
    """
    rewards, first = ({k: np.array(v) for k, v in json.loads(one.read_text()).items()} for one in (path, start))
    weights = RewardWeights().by_name()
    total = sum(weights[name] * (rewards[name] - first[name].mean()) / first[name].std() for name in weights)
    columns = {COMPOSITE: np.asarray(total), **rewards}
    samples = range(len(columns[COMPOSITE]))
    return {str(sample): {name: float(values[sample]) for name, values in columns.items()} for sample in samples}

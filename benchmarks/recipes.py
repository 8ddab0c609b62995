"""Recipes and controls after equal processor time, on speakers that nothing was trained on.

    python benchmarks/recipes.py --corpus CORPUS --data FOOTAGE --prompts DIR --held-out DIR2 --output RUNS
        [--study recipes hacks …] [--seeds 0 1 2] [--seconds 120] [--only NAME ...]

    RUNS/NAME/SEED/   checkpoint/   curve.jsonl: rewards on held-out prompts by processor seconds
                      videos/       rows.json: the evaluation's figures of finished mp4, unseen speakers

Every contestant starts from ``sft`` and gets the same number of processor seconds for acting, scoring and learning.
Processor time and not wall-clock: on a machine that does other things, wall-clock measures those. Held-out looks are
not counted. Seed by seed, so that an evening cut short leaves every contestant with as many; what is there already is
not done again. ``results.py`` makes the page from the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from contestants import CONTESTANTS, PARTS, SMALL, STUDIES
from controls import Sampling, best_of, continued, tuned
from rich.console import Console
from unseen import test_clips

from flowportrait.animator import Animator
from flowportrait.checkpoints import load_generator
from flowportrait.codec.basis import HEAD, LOWER, MotionBasis
from flowportrait.codec.calm import Calm
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.config import override
from flowportrait.corpus.clip import Clip
from flowportrait.evaluate.measure import measure
from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.sample import generate_motion
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import write_video
from flowportrait.posttrain.drawing import Drawing
from flowportrait.posttrain.items import draw_items
from flowportrait.posttrain.recipe import Recipe
from flowportrait.posttrain.recipes import named
from flowportrait.posttrain.run import stage
from flowportrait.posttrain.task import Prompts, TalkingTask
from flowportrait.posttrain.trainer import Trainer
from flowportrait.prompts import read_prompts
from flowportrait.reward.composite import Composite
from flowportrait.reward.interface import RewardBatch

SIZE = 256
LOOKS = 3
WATCHED = 16
"""Held-out performances per look."""
_OUT = Console(stderr=True)


@dataclass(frozen=True)
class Bench:
    """Where everything is."""

    corpus: Path
    data: Path
    prompts: Path
    held_out: Path
    output: Path
    seconds: float
    clips: int

    @cached_property
    def everything(self) -> Composite:
        """The composite that all are watched with, whatever they were trained on."""
        return Composite.default()

    @cached_property
    def portraits(self) -> list[MotionCodec]:
        """Who speaks in the videos, in turn."""
        images = sorted(path for path in (self.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
        used = images[: self.clips]
        return [MotionCodec(Portrait.from_image(read_image(path), SIZE, path.name)) for path in used]

    @cached_property
    def test(self) -> dict[str, Clip]:
        """What is spoken in the videos."""
        return test_clips(self.corpus, self.clips)

    def small(self, recipe: Recipe) -> tuple[TalkingTask, TalkingTask]:
        """Training and held-out prompts as tasks."""
        tasks = []
        for folder in (self.prompts, self.held_out):
            items, codecs = stage(read_prompts(folder), recipe)

            def draw(rows: Sequence[int], codecs: list[MotionCodec] = codecs) -> Drawing:
                return Drawing(codecs, rows, recipe.render_size)

            tasks.append(TalkingTask(items, recipe.frames, draw, chunk=4))
        return tasks[0], tasks[1]

    def watch(self, policy: ARFlow, held: TalkingTask) -> dict[str, float]:
        """All rewards on held-out prompts, performances as delivered; the same prompts and noise every time."""
        prompts = Prompts(*draw_items(held.items, WATCHED, held.frames, 0, 0))
        assert held.draw_for is not None, "these tasks draw"
        motion = Calm()(generate_motion(policy, prompts.mel, list(range(WATCHED))))
        scores = self.everything(RewardBatch(motion, prompts.mel, held.draw_for(prompts.portraits)))
        return {f"held/{name}": float(score.value.mean()) for name, score in scores.items()}

    def folder(self, name: str, seed: int) -> Path:
        return self.output / name.replace(" ", "_") / str(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "data", "prompts", "held-out", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--study", choices=tuple(STUDIES), nargs="+", default=["recipes"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--only", nargs="+", help="of the study's contestants")
    parser.add_argument("--stage", choices=("train", "evaluate", "both"), default="both")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(
        given.corpus, given.data, given.prompts, given.held_out, given.output, given.seconds, given.clips
    )
    names = dict.fromkeys(name for study in given.study for name in STUDIES[study])
    wanted = [name for name in names if not given.only or name in given.only]
    for seed in given.seeds:
        for name in wanted:
            if given.stage != "evaluate":
                train(bench, name, seed)
            if given.stage != "train":
                evaluate(bench, name, seed)
    if given.stage != "train":
        evaluate(bench, "real", 0)


def train(bench: Bench, name: str, seed: int) -> None:
    """Leave a contestant's checkpoint and curve in its folder, unless they are there."""
    folder = bench.folder(name, seed)
    if (folder / "checkpoint" / "config.json").is_file() or name in ("sft", *PARTS):
        return
    folder.mkdir(parents=True, exist_ok=True)
    _OUT.print(f"{name}, seed {seed}")
    if name == "supervised on":
        model = continued(bench.corpus, bench.output / "heard.pt", bench.seconds, seed)
        model.save_pretrained(folder / "checkpoint")
    elif name == "sft tuned":
        tune(bench, folder, seed)
    else:
        post_train(bench, name, folder, seed)


def post_train(bench: Bench, name: str, folder: Path, seed: int) -> None:
    """Iterations of a recipe until its processor seconds are spent."""
    contestant = CONTESTANTS[name]
    recipe = override(named(contestant.recipe), [*SMALL, *contestant.settings, f"seed={seed}"])
    task, held = bench.small(recipe)
    trainer = Trainer(load_generator("sft"), task, recipe, Composite.default(recipe.rewards))
    records: list[dict[str, float]] = []

    def look() -> dict[str, float]:
        with trainer.acting("ema"):
            return bench.watch(trainer.policy, held)

    spent, due = 0.0, bench.seconds / LOOKS
    records.append({"iteration": 0, "seconds": 0.0, **look()})
    while spent < bench.seconds:
        begun = time.process_time()
        record = trainer.step()
        spent += time.process_time() - begun
        record["seconds"] = spent
        if spent >= due:
            record |= look()
            due += bench.seconds / LOOKS
        records.append(record)
    with trainer.roles.use("ema"):
        trainer.policy.save_pretrained(folder / "checkpoint")
    (folder / "curve.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def tune(bench: Bench, folder: Path, seed: int) -> None:
    """Sampling settings for ``sft`` by the training reward on training prompts."""
    recipe = override(named("flow-grpo"), list(SMALL))
    task, _ = bench.small(recipe)
    assert task.draw_for is not None, "these tasks draw"
    model = load_generator("sft")
    sampling = tuned(model, task.draw(8, seed, 0), bench.everything, task.draw_for, _OUT.print)
    (folder / "sampling.json").write_text(json.dumps(asdict(sampling), indent=1) + "\n")
    load_generator("sft").save_pretrained(folder / "checkpoint")


def evaluate(bench: Bench, name: str, seed: int) -> None:
    """Finished videos of unseen speakers' speech and the evaluation's figures of them; ``real``: their own motion."""
    folder, codecs = bench.folder(name, seed), bench.portraits
    if (folder / "rows.json").is_file() or not (name in ("real", "sft") or (folder / "checkpoint").is_dir()):
        return
    _OUT.print(f"measuring {name}, seed {seed}")
    act, rows = Act(bench, name, folder, seed), {}
    for index, (stem, clip) in enumerate(bench.test.items()):
        if name == "real":
            motion, spread = MotionBasis.load().encode(clip.landmarks, clip.blendshapes)[0], None
        else:
            motion = act(clip.audio, index)
            spread = torch.stack([motion, act(clip.audio, index, again=True)]).std(0).mean(0)
        path = folder / "videos" / f"{stem}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, codecs[index % len(codecs)].decode(motion), clip.audio)
        rows[stem] = measure(path).row
        if spread is not None:
            rows[stem] |= {"spread_lips": float(spread[LOWER].mean()), "spread_head": float(spread[HEAD].mean())}
    (folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")


class Act:
    """A contestant's performance of one clip's speech."""

    def __init__(self, bench: Bench, name: str, folder: Path, seed: int) -> None:
        self.bench, self.seed, self.sampling = bench, seed, None
        if name == "real":
            return
        self.model = load_generator("sft" if name == "sft" else folder / "checkpoint")
        if (folder / "sampling.json").is_file():
            self.sampling = Sampling(**json.loads((folder / "sampling.json").read_text()))
            self.small = [MotionCodec(codec.portrait, 96, retouch=False) for codec in bench.portraits]

    def __call__(self, audio: np.ndarray, index: int, again: bool = False) -> torch.Tensor:
        """Motion ``[T, 30]``; ``again``: with other noise."""
        seed = index + 1000 * self.seed + 500 * again
        if self.sampling is None:
            return torch.cat(list(Animator(self.model).motion(audio, seed=seed)))
        return best_of(
            self.model, self.sampling, audio, seed, index % len(self.small), self.bench.everything,
            lambda rows: Drawing(self.small, rows, 96),
        )  # fmt: skip


if __name__ == "__main__":
    main()

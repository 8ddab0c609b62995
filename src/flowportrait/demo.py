"""The demo: ten minutes of post-training on one portrait and one recording, beside its random-reward control.

    photo + speech ─► sft ─┬─► post-training on the first seconds of the speech ─► trained ─┐
                           ├─► the same with random rewards ─────────────────────► control ─┼─► report.html
                           └─► (shipped) rl ────────────────────────────────────────────────┘

The portrait comes with scikit-image. Training uses only the first six seconds of the speech; all four checkpoints are
measured on the rest, over several seeds. The first line of the result says whether training made a difference that the
control does not make; if it did not, the report shows the shipped checkpoints instead.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from flowportrait.data.prompts import Prompt
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.metrics import METRIC_BY_KEY, MetricRow
from flowportrait.evaluation.report import draw_contact_sheet, write_animated_webp
from flowportrait.evaluation.statistics import holm_correction, signed_rank_p
from flowportrait.files import write_json
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.rl.config import PostTrainConfig
from flowportrait.rl.post_trainer import PostTrainer
from flowportrait.samples import SPEECH

TRAINING_SECONDS = 6.0
DEMO_RECIPE = "nft-regions"
DEMO_ITERATIONS = 16
DEMO_SEEDS = 8
TESTED_METRICS = ("sync_in_time", "lid_motion", "head_range")
"""What the recipe rewards, as the evaluation measures it: lip sync, eyes and head. Only these are tested."""
BEFORE, TRAINED, CONTROL, SHIPPED = "sft", "trained", "random rewards", "rl (shipped)"


def run_demo(output: Path, iterations: int | None = None) -> dict[str, Any]:
    """Run the demo.

    Args:
        output: folder for videos, runs, report and ``summary.json``; runs that are there are replaced.
        iterations: number of post-training iterations of the run and of its control.

    Returns:
        What training changed, in a sentence; the paths of report and summary; the seconds that each stage took.
    """
    console, seconds = Console(stderr=True), {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        console.print(f"[bold]{name}")
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)

    output.mkdir(parents=True, exist_ok=True)
    inputs = output / "inputs"
    photo, speech = write_demo_inputs(inputs)
    prompt = Prompt("demo", inputs / "portrait.png", inputs / "training_speech.wav")
    config = replace(PostTrainConfig.from_recipe(DEMO_RECIPE), iterations=iterations or DEMO_ITERATIONS)
    checkpoints: dict[str, str | Path] = {BEFORE: "sft"}
    curves: list[dict[str, float]] = []
    for system, run_config in ((TRAINED, config), (CONTROL, config.with_random_rewards())):
        with stage(f"{system}: {config.name}, {config.iterations} iterations"):
            folder = output / ("control" if system == CONTROL else "run")
            shutil.rmtree(folder, ignore_errors=True)
            trainer = PostTrainer("sft", config=run_config, train_prompts=[prompt], output_dir=folder)
            checkpoints[system] = trainer.train()
            curves = curves or trainer.history
    checkpoints[SHIPPED] = "rl"
    with stage("a signed video of each, with the same seed"):
        examples = {
            system: render_demo_video(source, photo, speech, output / f"{system.split()[0]}.mp4", sign=True)
            for system, source in checkpoints.items()
        }
    with stage(f"{DEMO_SEEDS} seeds of each on speech that was not trained on"):
        held_out = speech[round(TRAINING_SECONDS * SAMPLE_RATE) :]
        systems = {
            system: [
                render_demo_video(
                    source, photo, held_out, output / "measured" / system.split()[0] / f"{seed}.mp4", seed
                )
                for seed in range(DEMO_SEEDS)
            ]
            for system, source in checkpoints.items()
        }
    with stage("evaluation"):
        measured = evaluate(systems, baseline=BEFORE)
        verdict = judge_training(measured.rows)
        shown = (BEFORE, TRAINED if verdict.changed else SHIPPED)
        summary = replace(
            measured, title=verdict.sentence, curves=curves, examples={system: examples[system] for system in shown},
            notes=[
                *verdict.tests,
                f"Training used the first {TRAINING_SECONDS:.0f} s of {SPEECH.name} (from useful-moonshine-onnx) "
                f"on skimage.data.astronaut(). All figures are measured on the rest, with {DEMO_SEEDS} seeds per "
                "checkpoint, by networks that training did not use. The curves are those of the run.",
                "One portrait and one voice show how it works; they are no benchmark.",
            ],
        ).write(output)  # fmt: skip
        sheets = [draw_contact_sheet(examples[system]) for system in shown]
        cv2.imwrite(str(output / "sheet.jpg"), np.vstack(sheets)[..., ::-1])
        write_animated_webp([examples[system] for system in shown], output / "moving.webp")
    result = {"result": verdict.sentence, "tests": verdict.tests, "seconds": seconds, "iterations": config.iterations}
    write_json(output / "summary.json", result | {"rewards": reward_change(curves)} | summary, indent=2)
    paths = {"report": str(output / "report.html"), "summary": str(output / "summary.json")}
    return {"result": verdict.sentence, **paths, "seconds": seconds}


@dataclass(frozen=True)
class TrainingVerdict:
    """What training changed beyond its random-reward control."""

    changed: tuple[str, ...]
    """The metrics that differ both from the start and from the control, in the same direction."""
    tests: list[str]
    """A sentence per metric."""

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        if not self.changed:
            return (
                "This short training made no difference that can be seen or measured beyond its random-reward control; "
                "the pictures show the shipped sft and rl instead."
            )
        titles = " and ".join(METRIC_BY_KEY[key].title for key in self.changed)
        return f"This short training changed {titles} beyond its random-reward control, on speech it did not train on."


def judge_training(rows: Mapping[str, Mapping[str, MetricRow]]) -> TrainingVerdict:
    """Test what training changed, seed by seed, against the start and against the random-reward control.

    Args:
        rows: metrics by system and seed, of the systems ``BEFORE``, ``TRAINED`` and ``CONTROL``.

    Returns:
        The metrics of ``TESTED_METRICS`` that differ from both with p < 0.05 (Wilcoxon's signed-rank test,
        Holm-corrected over all of these tests), and a sentence about each.
    """
    values = {
        system: np.array([[row[key] for key in TESTED_METRICS] for _, row in sorted(rows[system].items())], float)
        for system in (BEFORE, TRAINED, CONTROL)
    }
    differences = [values[TRAINED] - values[other] for other in (BEFORE, CONTROL)]
    p_values = holm_correction([signed_rank_p(column) for difference in differences for column in difference.T])
    tests = np.array([1.0 if p is None else p for p in p_values]).reshape(2, -1)
    changed, sentences = [], []
    for index, key in enumerate(TESTED_METRICS):
        before, trained, control = (values[system][:, index].mean() for system in (BEFORE, TRAINED, CONTROL))
        digits = METRIC_BY_KEY[key].digits
        sentences.append(
            f"{METRIC_BY_KEY[key].title}: {before:.{digits}f} before, {trained:.{digits}f} after training "
            f"(p = {tests[0, index]:.3f}), {control:.{digits}f} with random rewards (p = {tests[1, index]:.3f} against "
            "training)."
        )
        if tests[:, index].max() < 0.05 and (trained - before) * (trained - control) > 0:
            changed.append(key)
    return TrainingVerdict(tuple(changed), sentences)


def write_demo_inputs(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write portrait and speech to files and return them as arrays: ``[512, 512, 3]`` uint8, ``[N]`` at 16 kHz."""
    from scipy.io import wavfile
    from skimage.data import astronaut

    folder.mkdir(parents=True, exist_ok=True)
    photo, speech = astronaut(), read_audio(SPEECH)
    cv2.imwrite(str(folder / "portrait.png"), photo[..., ::-1])
    for name, part in (("speech", speech), ("training_speech", speech[: round(TRAINING_SECONDS * SAMPLE_RATE)])):
        wavfile.write(folder / f"{name}.wav", SAMPLE_RATE, part)
    return photo, speech


def render_demo_video(
    checkpoint: str | Path, photo: np.ndarray, speech: np.ndarray, path: Path, seed: int = 0, sign: bool = False
) -> Path:
    """Render one video and return its path.

    Videos for people are signed and watermarked (``sign``); videos that are only measured are not, because the
    watermark would be measured with them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    video = AnimatePipeline.from_pretrained(checkpoint)(photo, speech, seed=seed, size=512, crop=True)
    video.save(path, sign=sign, watermark=sign)
    return path


def reward_change(curves: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the mean of every reward over the first and the last quarter of the iterations."""
    quarter = max(1, len(curves) // 4)

    def mean(part: list[dict[str, float]], key: str) -> float:
        return sum(record[key] for record in part) / len(part)

    names = [key for key in curves[0] if key.startswith("reward/")]
    return {
        key.removeprefix("reward/"): {"first": mean(curves[:quarter], key), "last": mean(curves[-quarter:], key)}
        for key in names
    }

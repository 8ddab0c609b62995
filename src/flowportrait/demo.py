"""The demo: post-training on one portrait and one recording, evaluated before and after.

    photo + speech ─► before.mp4 ─► GRPO on the first seconds of the speech ─► after.mp4 ─► report.html

The portrait comes with scikit-image. Post-training uses only the first six seconds of the speech; the table compares
both models on the rest, over several seeds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console

from flowportrait.data.prompts import Prompt
from flowportrait.evaluation.api import evaluate
from flowportrait.evaluation.report import draw_contact_sheet, write_animated_webp
from flowportrait.files import write_json
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.rl.post_trainer import PostTrainer
from flowportrait.rl.recipes import find_recipe
from flowportrait.samples import SPEECH

TRAINING_SECONDS = 6.0
DEMO_ITERATIONS = 24
DEMO_SEEDS = 8


def run_demo(output: Path, iterations: int | None = None) -> dict[str, Any]:
    """Run the demo.

    Args:
        output: folder for videos, run, report and ``summary.json``; a run that is there is replaced.
        iterations: number of post-training iterations.

    Returns:
        The paths of report and summary, and the seconds that each stage took.
    """
    console, seconds = Console(stderr=True), {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        console.print(f"[bold]{name}")
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)

    output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(output / "run", ignore_errors=True)
    inputs = output / "inputs"
    photo, speech = write_demo_inputs(inputs)
    training_samples = round(TRAINING_SECONDS * SAMPLE_RATE)
    recipe = replace(find_recipe("flow-grpo"), groups=4, iterations=iterations or DEMO_ITERATIONS)
    with stage("before: the supervised checkpoint"):
        render_demo_video("sft", photo, speech, output / "before.mp4", sign=True)
    with stage(f"post-training: {recipe.name}, {recipe.iterations} iterations"):
        prompt = Prompt("demo", inputs / "portrait.png", inputs / "training_speech.wav")
        trainer = PostTrainer("sft", config=recipe, train_prompts=[prompt], output_dir=output / "run")
        checkpoint = trainer.train()
    with stage("after: the same seed"):
        render_demo_video(checkpoint, photo, speech, output / "after.mp4", sign=True)
    with stage(f"{DEMO_SEEDS} seeds of each on held-out speech"):
        systems = {
            name: [
                render_demo_video(source, photo, speech[training_samples:], output / name / f"seed{seed}.mp4", seed)
                for seed in range(DEMO_SEEDS)
            ]
            for name, source in (("before", "sft"), ("after", checkpoint))
        }
    with stage("evaluation"):
        summary = evaluate(
            systems,
            baseline="before",
            title="Before and after post-training",
            curves=trainer.history,
            notes=[
                f"Portrait: skimage.data.astronaut(). Speech: {SPEECH.name} of useful-moonshine-onnx.",
                f"Post-training used the first {TRAINING_SECONDS:.0f} s of the speech; every figure in the table is "
                f"measured on the rest, {DEMO_SEEDS} seeds per model, by networks that were not used in training.",
                "One portrait and one voice: an illustration of the machinery, not a benchmark.",
            ],
            examples={"before": output / "before.mp4", "after": output / "after.mp4"},
        ).write(output)
        sheets = [draw_contact_sheet(output / f"{name}.mp4") for name in ("before", "after")]
        cv2.imwrite(str(output / "sheet.jpg"), np.vstack(sheets)[..., ::-1])
        write_animated_webp([output / "before.mp4", output / "after.mp4"], output / "moving.webp")
    result = {"seconds": seconds, "iterations": recipe.iterations, "rewards": reward_change(trainer.history), **summary}
    write_json(output / "summary.json", result, indent=2)
    return {"report": str(output / "report.html"), "summary": str(output / "summary.json"), "seconds": seconds}


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

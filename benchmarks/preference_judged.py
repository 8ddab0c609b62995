"""Performances of every system on speakers nobody trained on, drawn, and judged by the evaluation side.

A system is ``sft``, an arm that was trained, ``guide sync=3`` (any weights), ``best of 8`` or ``pruned 8``. The same
clip has the same seed and portrait in every system; pictures are 256 px and not retouched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from preference_arms import CHOSEN, is_trained, several, trained

from flowportrait.data.corpus import FaceClip
from flowportrait.evaluation.comparison import metric_values
from flowportrait.evaluation.measure import measure_video
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.write_video import write_video
from flowportrait.models.conditioning import RewardSteering, ordered_weights
from flowportrait.pipelines.animator import Animator
from flowportrait.pipelines.guidance import best_candidate, score_candidates
from flowportrait.pipelines.request import GUIDE_DIMENSIONS, parse_guide
from flowportrait.preferences.latent_reward import HISTORY_CHUNKS, LatentReward
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.registry import build_reward

SIZE, FOLD, PORTRAITS = 256, 100, 3
READ = ("sync_in_time_short", "lse_d_short", "ecs", "amplitude", "tfi", "jerk")
MOVED = ("sync_in_time_short", "mouth_amplitude", "ecs_brows", "theval_brow_dynamics", "lid_motion", "gaze_std",
         "head_range", "tfi", "jerk")  # fmt: skip
"""The evaluation's figures of ways to learn, and those that a weight of guidance may move."""
Perform = Callable[[np.ndarray, int], torch.Tensor]


def performer(system: str, output: Path, by: str) -> Perform:
    """Motion ``[T, 30]`` of 16 kHz sound and a seed."""
    animator = Animator.from_pretrained(trained(output, system) / "checkpoint" if is_trained(system) else "sft")
    steering = None
    if system.startswith("guide "):
        weights = ordered_weights(parse_guide(system.removeprefix("guide ")), GUIDE_DIMENSIONS)
        steering = RewardSteering(LatentReward.load(), weights, history_chunks=HISTORY_CHUNKS)
    if system.startswith("pruned"):
        steering = RewardSteering(
            LatentReward.load(), choose=(1.0, 1.0, 1.0), candidates=several(system), history_chunks=HISTORY_CHUNKS
        )

    def once(audio: np.ndarray, seed: int) -> torch.Tensor:
        return torch.cat(list(animator.motion(audio, seed=seed, steering=steering)))

    if not system.startswith("best of"):
        return once
    reward = build_reward(by)

    def chosen(audio: np.ndarray, seed: int) -> torch.Tensor:
        seeds = [seed + FOLD * take for take in range(several(system))]
        return best_candidate(score_candidates(lambda own: [once(audio, own)], seeds, audio, reward)).motion

    return chosen


def videos(output: Path, system: str) -> Path:
    """Where a system's files lie."""
    return output / "videos" / system.replace(" ", "_").replace(",", "_")


@lru_cache(maxsize=1)
def codecs(footage: Path) -> list[MotionCodec]:
    """Whom to draw, in turn."""
    paths = sorted(path for path in (footage / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    return [
        MotionCodec(Portrait.from_image(read_image(path), SIZE), SIZE, retouch=False) for path in paths[-PORTRAITS:]
    ]


@torch.no_grad()
def draw(corpus: Path, footage: Path, output: Path, count: int, system: str, by: str) -> None:
    """Draw and measure a system's clips that are not there yet."""
    faces = codecs(footage)
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text().splitlines()]
    found = [record["name"] for record in records if record["split"] == "dev" and record["frames"] < 60]
    names = [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]
    perform = performer(system, output, by)
    for index, name in enumerate(names):
        path = videos(output, system) / f"{Path(name).stem}.mp4"
        if not path.is_file():
            clip = FaceClip.load(corpus / "clips" / f"{name}.safetensors")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, faces[index % len(faces)].decode(perform(clip.audio, index)), clip.audio)
        measure_video(path, output / "seen")


@torch.no_grad()
def cost(corpus: Path, output: Path, by: str) -> None:
    """Processor seconds of motion per second of speech, and over that of ``sft``: OUTPUT/cost.json."""
    name = next(
        record["name"]
        for record in map(json.loads, (corpus / "clips.jsonl").read_text().splitlines())
        if record["split"] == "dev" and record["frames"] >= 60
    )
    audio = FaceClip.load(corpus / "clips" / f"{name}.safetensors").audio
    found: dict[str, float] = {}
    for system in ("sft", "guide sync=3,expression=1,motion=1", *CHOSEN):
        perform = performer(system, output, by)
        perform(audio, 0)
        began = time.process_time()
        perform(audio, 1)
        found[system] = (time.process_time() - began) / (len(audio) / SAMPLE_RATE)
        print(f"{system:36} {found[system]:.3f} s/s, {found[system] / found['sft']:.1f} times sft", flush=True)
    (output / "cost.json").write_text(json.dumps(found, indent=1) + "\n")


def table(output: Path, systems: Sequence[str], keys: Sequence[str], percent: bool) -> None:
    """What is drawn beside sft, clip by clip: a row per system, of an arm over all its seeds; the arm's own interval is
    over seeds and clips. ``percent``: of sft's mean."""
    drawn = {system: sorted(videos(output, system).glob("*.mp4")) for system in dict.fromkeys(("sft", *systems))}
    rows = {
        system: {path.stem: measure_video(path, output / "seen").row for path in files}
        for system, files in drawn.items()
    }
    families: dict[str, list[str]] = {}
    for system in systems:
        if drawn[system] and system != "sft":
            families.setdefault(system.split("@")[0], []).append(system)
    print("| | seeds | " + " | ".join(keys) + " |\n" + "|---" * (len(keys) + 2) + "|")
    own = {key: float(metric_values(rows["sft"], key)[1].mean()) for key in keys}
    print("| `sft` itself | | " + " | ".join(f"{mean:.3g}" for mean in own.values()) + " |")
    for family, runs in families.items():
        found = {key: gaps([rows[run] for run in runs], rows["sft"], key) for key in keys}
        cells = [
            interval(bootstrap_mean(100 / own[key] * gap), 0) if percent else interval(bootstrap_mean(gap), 3)
            for key, gap in found.items()
        ]
        print(f"| `{family}` | {len(runs)} | " + " | ".join(cells) + " |")


def gaps(runs: Sequence[dict[str, MetricRow]], start: dict[str, MetricRow], key: str) -> np.ndarray:
    """Figure of every run minus that of ``start`` ``[runs, clips]``, for clips that all have it."""
    found = [dict(zip(*metric_values(rows, key), strict=True)) for rows in (*runs, start)]
    common = sorted(set.intersection(*(set(own) for own in found)))
    values = np.array([[own[clip] for clip in common] for own in found])
    return values[:-1] - values[-1]


def interval(found: Estimate, digits: int) -> str:
    """Mean with its interval, bold where that does not hold 0."""
    if found.low is None or found.high is None:
        return f"{found.mean:+.{digits}f}"
    text = f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    return f"**{text}**" if found.low * found.high > 0 else text

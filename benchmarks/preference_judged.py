"""Performances of every system on speakers nobody trained on, drawn, and judged by the evaluation side.

A system is ``sft``, an arm that was trained, ``guide sync=3`` (any weights), ``best of 8`` or ``pruned 8``. The same
clip has the same seed and portrait in every system; pictures are 256 px and not retouched.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from preference_arms import TRAINED

from flowportrait.animator import Animator
from flowportrait.best_of import best, takes
from flowportrait.codec.motion_codec import MotionCodec
from flowportrait.commands.animate_reward import DIMENSIONS, parse_weights
from flowportrait.corpus.clip import Clip
from flowportrait.evaluate.measure import measure
from flowportrait.evaluate.run import evaluate_videos
from flowportrait.generator.steering import Steering, in_order
from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import write_video
from flowportrait.preference.latent_reward import REACH, LatentReward
from flowportrait.reward.registry import build

SIZE, TAKES, FOLD, PORTRAITS = 256, 8, 100, 3
READ = {
    "sync": ("sync_in_time_short", "lse_d_short"), "expression": ("ecs", "amplitude"), "motion": ("tfi", "jerk"),
}  # fmt: skip
"""Dimension → the evaluation's figures that a weight on it should move."""
Perform = Callable[[np.ndarray, int], torch.Tensor]


def performer(system: str, output: Path, by: str) -> Perform:
    """Motion ``[T, 30]`` of 16 kHz sound and a seed."""
    trained = output / "arms" / system.replace(" ", "_")
    animator = Animator.from_pretrained(trained / "checkpoint" if system in TRAINED else "sft")
    steering = None
    if system.startswith("guide "):
        weights = in_order(parse_weights(system.removeprefix("guide ")), DIMENSIONS)
        steering = Steering(LatentReward.load(), weights, reach=REACH)
    if system.startswith("pruned"):
        steering = Steering(LatentReward.load(), choose=(1.0, 1.0, 1.0), candidates=TAKES, reach=REACH)

    def once(audio: np.ndarray, seed: int) -> torch.Tensor:
        return torch.cat(list(animator.motion(audio, seed=seed, steering=steering)))

    if not system.startswith("best of"):
        return once
    reward = build(by)

    def chosen(audio: np.ndarray, seed: int) -> torch.Tensor:
        seeds = [seed + FOLD * take for take in range(TAKES)]
        return best(takes(lambda own: once(audio, own), seeds, audio, reward)).motion

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
            clip = Clip.load(corpus / "clips" / f"{name}.safetensors")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, faces[index % len(faces)].decode(perform(clip.audio, index)), clip.audio)
        measure(path, output / "seen")


@torch.no_grad()
def cost(corpus: Path, output: Path, by: str) -> None:
    """Processor seconds of motion per second of speech, and over that of ``sft``: OUTPUT/cost.json."""
    name = next(
        record["name"]
        for record in map(json.loads, (corpus / "clips.jsonl").read_text().splitlines())
        if record["split"] == "dev" and record["frames"] >= 60
    )
    audio = Clip.load(corpus / "clips" / f"{name}.safetensors").audio
    found: dict[str, float] = {}
    for system in ("sft", "guide sync=3,expression=1,motion=1", "pruned 8", "best of 8"):
        perform = performer(system, output, by)
        perform(audio, 0)
        began = time.process_time()
        perform(audio, 1)
        found[system] = (time.process_time() - began) / (len(audio) / SAMPLE_RATE)
        print(f"{system:36} {found[system]:.3f} s/s, {found[system] / found['sft']:.1f} times sft", flush=True)
    (output / "cost.json").write_text(json.dumps(found, indent=1) + "\n")


def table(output: Path, systems: Sequence[str]) -> None:
    """Compare what is drawn with sft, clip by clip, into OUTPUT/judged; the figures that are named above are printed
    as rows of a table."""
    drawn = {system: sorted(videos(output, system).glob("*.mp4")) for system in systems}
    drawn = {system: files for system, files in drawn.items() if files}
    evaluate_videos(drawn, output / "judged", "sft", cache=output / "seen", title="Preference methods")
    found = json.loads((output / "judged" / "metrics.json").read_text())
    keys = [key for own in READ.values() for key in own]
    print("| | " + " | ".join(keys) + " |\n" + "|---" * (len(keys) + 1) + "|")
    print("| `sft` itself | " + " | ".join(interval(found["metrics"]["sft"][key], "") for key in keys) + " |")
    gaps = {(gap["system"], gap["metric"]): gap for gap in found["differences"]}
    for system in drawn:
        own = [gaps.get((system, key)) for key in keys]
        if any(own):
            cells = [f"{interval(gap['difference'])}{stars(gap['p'])}" if gap else "–" for gap in own]
            print(f"| `{system}` | " + " | ".join(cells) + " |")


def interval(estimate: Mapping[str, float], sign: str = "+") -> str:
    """Mean with its interval."""
    return f"{estimate['mean']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def stars(p: float | None) -> str:
    """One where the corrected p is below 0.05."""
    return " *" if p is not None and p < 0.05 else ""

"""Fit what real expression is: quantiles of facial-action dynamics of the training speakers.

python -m flowportrait.evaluate.fit_reference --corpus DIR --output expression_reference.json
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tyro
from rich.progress import track

from flowportrait.corpus.clip import Clip
from flowportrait.evaluate.expression import dynamics, ecs, quantiles
from flowportrait.evaluate.signals import GROUPS, actions, pose_free

FITTED_ON = ("reward", "evaluation")


def fit(corpus: Path, output: Path) -> None:
    """Write the reference and, beside it in the same file, what dev speakers, noise and stillness score."""
    records = [json.loads(line) for line in (corpus / "clips.jsonl").read_text().splitlines()]
    signals: dict[str, list[dict[str, np.ndarray]]] = {"train": [], "dev": []}
    speakers = {r["speaker"] for r in records if r["split"] in FITTED_ON}
    for record in track(records, description="reading"):
        clip = Clip.load(corpus / "clips" / f"{record['name']}.safetensors")
        part = "train" if record["split"] in FITTED_ON else "dev"
        signals[part].append(actions(pose_free(clip.landmarks)[0]))
    reference = {g: quantiles([dynamics(clip[g]) for clip in signals["train"]]) for g in GROUPS}
    rng = np.random.default_rng(0)
    check = {
        "real, other speakers": signals["dev"],
        "noise with the same marginals": [
            {g: rng.permuted(x, axis=0) for g, x in clip.items()} for clip in signals["dev"]
        ],
        "still with tracking noise": [
            {g: _still(x, rng) for g, x in clip.items()} for clip in signals["dev"]
        ],
        "half as lively": [{g: 0.5 * x for g, x in clip.items()} for clip in signals["dev"]],
    }
    scores: dict[str, dict[str, float]] = {}
    for name, clips in check.items():
        rows = [row for row in (ecs(clip, reference) for clip in clips) if row]
        scores[name] = {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}
    output.write_text(
        json.dumps(
            {"speakers": len(speakers), "clips": len(signals["train"]), "check": scores, "groups": reference}
        )
        + "\n"
    )
    print(json.dumps(scores, indent=1))


def _still(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noise = 0.1 * np.diff(signal, axis=0).std(0)
    return signal.mean(0) + noise * rng.standard_normal(signal.shape)


if __name__ == "__main__":
    tyro.cli(fit)

"""PortraitBench: pictures for known prompts, judged; artefact rates and scores with their intervals.

    prompts ─► pictures, of a folder or a generator ─► OmniReward · AI-Portrait · agreement ─► results.json

Rates have Wilson's interval over pictures, scores a bootstrap interval; counts say over how many. ``results.json``
holds no path and no machine: two of them are comparable if prompts, version and judge agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from scipy.stats import binomtest

from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.image import read_image
from flowportrait.portraitgen.agreement import agreement
from flowportrait.portraitgen.detectors import CATALOGUE
from flowportrait.portraitgen.judging import StillJudge
from flowportrait.portraitgen.stills import Still
from flowportrait.portraitgen.taxonomy import TAXONOMY, VERSION, BenchPrompt, digest
from flowportrait.prompts import IMAGE_SUFFIXES
from flowportrait.terminal import progress
from flowportrait.written import complete, write_json

Draw = Callable[[BenchPrompt, int], np.ndarray]
"""``(prompt, seed) -> picture [H, W, 3] uint8 RGB``."""


def pictures_in(folder: Path, prompts: Sequence[BenchPrompt]) -> list[tuple[BenchPrompt, str, Path]]:
    """Pictures of a folder with their prompts: ``ID.png``, or ``ID_0.png``, ``ID_1.png``, … for several of a prompt.

    Raises:
        BadInput: no such folder, or no picture in it that belongs to a prompt.
    """
    if not folder.is_dir():
        raise BadInput(f"No folder at {folder}: give the folder with the pictures to be judged.")
    by_id = {prompt.id: prompt for prompt in prompts}
    found = []
    for path in sorted(folder.iterdir()):
        name = path.stem if path.stem in by_id else path.stem.rpartition("_")[0]
        if path.suffix.lower() in IMAGE_SUFFIXES and name in by_id:
            found.append((by_id[name], path.stem, path))
    if not found:
        raise BadInput(f"{folder} has no picture named after a prompt: name them {prompts[0].id}.png and so on.")
    return found


def drawn(draw: Draw, prompts: Sequence[BenchPrompt], per_prompt: int, folder: Path) -> None:
    """Draw what is not there yet, into ``folder``."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    todo = [(p, seed, folder / f"{p.id}_{seed}.png") for p in prompts for seed in range(per_prompt)]
    for prompt, seed, path in progress((job for job in todo if not job[2].is_file()), len(todo)):
        with complete(path) as partial:
            Image.fromarray(draw(prompt, seed)).save(partial, "PNG")


def run(
    named: Iterable[tuple[BenchPrompt, str, Path]], judge: StillJudge, prompts: Sequence[BenchPrompt], total: int
) -> dict[str, Any]:
    """Judge pictures; see the module for what comes back."""
    rows: dict[str, dict[str, Any]] = {}
    for prompt, name, path in progress(named, total, "judging"):
        still = Still(read_image(path), prompt.text, name)
        verdicts = judge.judge([still])[0].aspects
        scores: dict[str, float | None] = {rubric: verdict.score for rubric, verdict in verdicts.items()}
        scores |= {f"omni_reward/{key}": value for key, value in verdicts["omni_reward"].dimensions.items()}
        met = agreement(still.look, prompt.terms)
        scores |= {f"agreement/{key}": float(value) for key, value in met.items()}
        why = {rubric: verdict.failure.detail for rubric, verdict in verdicts.items() if verdict.failure}
        rows[name] = {
            "terms": prompt.terms,
            "artefacts": dict(verdicts["ai_portrait"].artefacts),
            "scores": scores,
            "failures": why,
            "rationale": {rubric: verdict.rationale for rubric, verdict in verdicts.items()},
        }
    return {
        "benchmark": "PortraitBench",
        "version": VERSION,
        "prompts": digest(list(prompts)),
        "judge": {"name": judge.name, "kind": judge.kind, "fingerprint": judge.fingerprint},
        "covered": {"prompts": len({name_of(n, prompts) for n in rows}), "of": len(prompts), "pictures": len(rows)},
        **summary(rows),
        "by_term": by_term(rows),
        "pictures": rows,
    }


def name_of(picture: str, prompts: Sequence[BenchPrompt]) -> str:
    """The prompt's id in a picture's name."""
    return picture if any(prompt.id == picture for prompt in prompts) else picture.rpartition("_")[0]


def summary(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rates of artefacts and means of scores over pictures."""
    rates = {}
    for artefact in CATALOGUE:
        told = [row["artefacts"].get(artefact.name) for row in rows.values()]
        known = [bool(value) for value in told if value is not None]
        if known:
            rates[artefact.name] = {"part": artefact.part, **rate(sum(known), len(known))}
    scores = {}
    for key in sorted({key for row in rows.values() for key in row["scores"]}):
        values = np.array([row["scores"][key] for row in rows.values() if row["scores"].get(key) is not None], float)
        if len(values):
            found = bootstrap_mean(values)
            scores[key] = {"mean": found.mean, "low": found.low, "high": found.high, "pictures": found.clips}
    free = [sum(bool(v) for v in row["artefacts"].values()) == 0 for row in rows.values() if row["artefacts"]]
    clean = rate(sum(free), len(free)) if free else None
    return {"artefacts": rates, "free_of_artefacts": clean, "scores": scores}


def rate(count: int, total: int) -> dict[str, float]:
    """A share with Wilson's 95 % interval."""
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return {
        "count": count, "of": total, "rate": count / total, "low": float(interval.low), "high": float(interval.high),
    }  # fmt: skip


def by_term(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """AI-Portrait's score and the mean number of artefacts per value of every dimension: where a generator is weak."""
    table: dict[str, dict[str, Any]] = {}
    for dimension, values in TAXONOMY.items():
        for value in values:
            own = [row for row in rows.values() if row["terms"].get(dimension) == value]
            scores = [row["scores"]["ai_portrait"] for row in own if row["scores"].get("ai_portrait") is not None]
            if scores:
                counts = [sum(bool(v) for v in row["artefacts"].values()) for row in own]
                table[f"{dimension}/{value}"] = {
                    "pictures": len(own), "ai_portrait": float(np.mean(scores)), "artefacts": float(np.mean(counts)),
                }  # fmt: skip
    return table


def tables(found: Mapping[str, Any]) -> list[Table]:
    """For the terminal."""
    judge, covered = found["judge"], found["covered"]
    rates = Table(title=f"artefacts, {judge['kind']}: {covered['pictures']} pictures of {covered['prompts']} prompts")
    for head in ("part", "artefact", "pictures", "rate", "95 %"):
        rates.add_column(head)
    for name, own in found["artefacts"].items():
        interval = f"{own['low']:.1%} … {own['high']:.1%}"
        rates.add_row(own["part"], name, f"{own['count']} of {own['of']}", f"{own['rate']:.1%}", interval)
    scores = Table(title="scores: 1 to 5, agreement 0 to 1")
    for head in ("score", "mean", "95 %", "pictures"):
        scores.add_column(head)
    for name, own in found["scores"].items():
        interval = "–" if own["low"] is None else f"{own['low']:.2f} … {own['high']:.2f}"
        scores.add_row(name, f"{own['mean']:.2f}", interval, str(own["pictures"]))
    return [rates, scores]


def write(found: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)

"""This module holds PortraitBench: pictures for known prompts are judged, and two results are compared.

    prompts ─► pictures, of a folder or a generator ─► OmniReward · AI-Portrait · agreement ─► results.json

The parts in order: generating pictures, judging them (``judge_pictures``), tables for the terminal, the comparison of
two results (``compare_bench_results``), and the generators that ``--policy`` can name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from scipy.stats import binomtest

from flowportrait.data.prompts import IMAGE_SUFFIXES
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import bootstrap_mean, holm_correction, mcnemar_test, signed_rank_p
from flowportrait.files import atomic_write, write_json
from flowportrait.hub import is_hub_id, model_folder
from flowportrait.media.image import read_image
from flowportrait.plugins import is_reference, load_reference
from flowportrait.portraitgen.detectors import ARTEFACTS, ATTRIBUTES, prompt_agreement
from flowportrait.portraitgen.judging import StillJudge
from flowportrait.portraitgen.still_flow import PortraitFlow, Still, pictures_to_frames
from flowportrait.portraitgen.taxonomy import PROMPT_SET_VERSION, TAXONOMY, BenchPrompt, prompts_digest
from flowportrait.terminal import progress

# --- Pictures

PictureGenerator = Callable[[BenchPrompt, int], np.ndarray]
"""A generator: ``(prompt, seed) -> picture [H, W, 3] uint8 RGB``."""


def find_prompt_pictures(folder: Path, prompts: Sequence[BenchPrompt]) -> list[tuple[BenchPrompt, str, Path]]:
    """Return the pictures of a folder with their prompts, each as (prompt, name, path).

    Pictures are named ``ID.png``, or ``ID_0.png``, ``ID_1.png``, … for several of one prompt.

    Raises:
        BadInput: the folder is missing, or has no picture that belongs to a prompt.
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


def generate_missing_pictures(
    draw: PictureGenerator, prompts: Sequence[BenchPrompt], per_prompt: int, folder: Path
) -> None:
    """Generate the pictures that are missing in a folder.

    Args:
        draw: the generator.
        prompts: the prompts.
        per_prompt: pictures per prompt, with the seeds 0, 1, …
        folder: folder of the pictures ``ID_SEED.png``.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    todo = [(p, seed, folder / f"{p.id}_{seed}.png") for p in prompts for seed in range(per_prompt)]
    for prompt, seed, path in progress((job for job in todo if not job[2].is_file()), len(todo)):
        with atomic_write(path) as partial:
            Image.fromarray(draw(prompt, seed)).save(partial, "PNG")


# --- Judging


def judge_pictures(
    named: Iterable[tuple[BenchPrompt, str, Path]], judge: StillJudge, prompts: Sequence[BenchPrompt], total: int
) -> dict[str, Any]:
    """Judge pictures and return the content of ``results.json``.

    Rates of artefacts have Wilson's interval over pictures, scores a bootstrap interval, and counts give the number of
    pictures. The result has no path and no name of a machine; two results are comparable if their prompts, version and
    judge are equal.

    Args:
        named: the pictures, each as (prompt, name, path).
        judge: the judge of stills.
        prompts: the whole set of prompts.
        total: number of pictures, for the progress bar.
    """
    rows: dict[str, dict[str, Any]] = {}
    for prompt, name, path in progress(named, total, "judging"):
        still = Still(read_image(path), prompt.text, name)
        verdicts = judge.judge([still])[0].aspects
        scores: dict[str, float | None] = {rubric: verdict.score for rubric, verdict in verdicts.items()}
        scores |= {f"omni_reward/{key}": value for key, value in verdicts["omni_reward"].dimensions.items()}
        agreement = prompt_agreement(still.face, prompt.terms)
        scores |= {f"agreement/{key}": float(value) for key, value in agreement.items()}
        failures = {rubric: verdict.failure.detail for rubric, verdict in verdicts.items() if verdict.failure}
        rows[name] = {
            "terms": prompt.terms,
            "artefacts": dict(verdicts["ai_portrait"].artefacts),
            "scores": scores,
            "failures": failures,
            "rationale": {rubric: verdict.rationale for rubric, verdict in verdicts.items()},
        }
    return {
        "benchmark": "PortraitBench",
        "version": PROMPT_SET_VERSION,
        "prompts": prompts_digest(list(prompts)),
        "judge": {"name": judge.name, "kind": judge.kind, "fingerprint": judge.fingerprint},
        "covered": {
            "prompts": len({prompt_id_of(n, prompts) for n in rows}),
            "of": len(prompts),
            "pictures": len(rows),
        },
        **summarize_pictures(rows),
        "by_term": scores_by_term(rows),
        "pictures": rows,
    }


def prompt_id_of(picture: str, prompts: Sequence[BenchPrompt]) -> str:
    """Return the prompt's id in a picture's name."""
    return picture if any(prompt.id == picture for prompt in prompts) else picture.rpartition("_")[0]


def summarize_pictures(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rates of artefacts, the rate of pictures without any, and the means of scores over pictures."""
    rates = {}
    for artefact in ARTEFACTS:
        values = [row["artefacts"].get(artefact.name) for row in rows.values()]
        known = [bool(value) for value in values if value is not None]
        if known:
            rates[artefact.name] = {"part": artefact.part, **rate_with_interval(sum(known), len(known))}
    scores = {}
    for key in sorted({key for row in rows.values() for key in row["scores"]}):
        numbers = np.array([row["scores"][key] for row in rows.values() if row["scores"].get(key) is not None], float)
        if len(numbers):
            found = bootstrap_mean(numbers)
            scores[key] = {"mean": found.mean, "low": found.low, "high": found.high, "pictures": found.clips}
    free = [sum(bool(v) for v in row["artefacts"].values()) == 0 for row in rows.values() if row["artefacts"]]
    clean = rate_with_interval(sum(free), len(free)) if free else None
    return {"artefacts": rates, "free_of_artefacts": clean, "scores": scores}


def rate_with_interval(count: int, total: int) -> dict[str, float]:
    """Return a rate with Wilson's 95 % confidence interval."""
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return {
        "count": count, "of": total, "rate": count / total, "low": float(interval.low), "high": float(interval.high),
    }  # fmt: skip


def scores_by_term(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return AI-Portrait's mean score and the mean number of artefacts for every value of every dimension.

    The table shows with which prompts a generator is weak.
    """
    table: dict[str, dict[str, Any]] = {}
    for dimension, values in TAXONOMY.items():
        for value in values:
            matching = [row for row in rows.values() if row["terms"].get(dimension) == value]
            scores = [row["scores"]["ai_portrait"] for row in matching if row["scores"].get("ai_portrait") is not None]
            if scores:
                counts = [sum(bool(v) for v in row["artefacts"].values()) for row in matching]
                table[f"{dimension}/{value}"] = {
                    "pictures": len(matching), "ai_portrait": float(np.mean(scores)),
                    "artefacts": float(np.mean(counts)),
                }  # fmt: skip
    return table


def result_tables(found: Mapping[str, Any]) -> list[Table]:
    """Return the tables of artefacts and scores of a result, for the terminal."""
    judge, covered = found["judge"], found["covered"]
    rates = Table(title=f"artefacts, {judge['kind']}: {covered['pictures']} pictures of {covered['prompts']} prompts")
    for head in ("part", "artefact", "pictures", "rate", "95 %"):
        rates.add_column(head)
    for name, row in found["artefacts"].items():
        interval = f"{row['low']:.1%} … {row['high']:.1%}"
        rates.add_row(row["part"], name, f"{row['count']} of {row['of']}", f"{row['rate']:.1%}", interval)
    scores = Table(title="scores: 1 to 5, agreement 0 to 1")
    for head in ("score", "mean", "95 %", "pictures"):
        scores.add_column(head)
    for name, row in found["scores"].items():
        interval = "–" if row["low"] is None else f"{row['low']:.2f} … {row['high']:.2f}"
        scores.add_row(name, f"{row['mean']:.2f}", interval, str(row["pictures"]))
    return [rates, scores]


def write_bench_result(found: Mapping[str, Any], path: Path) -> None:
    """Write a result to a JSON file; an existing file is replaced only when the new one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)


# --- Comparison of two results

COMPARABLE_KEYS = {"version": "version of the benchmark", "prompts": "set of prompts", "judge": "judge"}
"""Keys of a result that must be equal for a comparison, and their descriptions."""


def compare_bench_results(first: Path, second: Path) -> list[dict[str, Any]]:
    """Return the differences between two results, first minus second, on the pictures that both have.

    Artefacts are compared by McNemar's test, scores by the signed-rank test, and p values are Holm-corrected.

    Raises:
        BadInput: a file is not a result, the results have another version, prompt set or judge, or no common picture.
    """
    one, other = _read(first), _read(second)
    for key, what in COMPARABLE_KEYS.items():
        if one[key] != other[key]:
            raise BadInput(f"{first} and {second} are by another {what}: run both with the same.")
    shared = [name for name in one["pictures"] if name in other["pictures"]]
    if not shared:
        raise BadInput(f"{first} and {second} have no picture of the same name: nothing can be compared.")
    tests: dict[str, float] = {}
    rows: dict[str, dict[str, Any]] = {}
    mine, theirs = ([found["pictures"][name] for name in shared] for found in (one, other))
    for kind in one["artefacts"]:
        a, b = ([row["artefacts"].get(kind) for row in side] for side in (mine, theirs))
        tests[kind], gap = mcnemar_test(a, b)
        rows[kind] = {"what": kind, "difference": gap}
    for score in one["scores"]:
        a, b = ([row["scores"].get(score) for row in side] for side in (mine, theirs))
        gaps = np.array([x - y for x, y in zip(a, b, strict=True) if x is not None and y is not None])
        if len(gaps):
            p = signed_rank_p(gaps)
            tests[score] = 1.0 if p is None else p
            rows[score] = {"what": score, "difference": float(gaps.mean())}
    corrected = dict(zip(tests, holm_correction(list(tests.values())), strict=True))
    return [row | {"pictures": len(shared), "p": corrected[name]} for name, row in rows.items()]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data["pictures"], data["artefacts"], data["scores"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no result of portraitbench: give a results.json that it wrote.") from error
    return data


# --- Generators

FLOW_STEPS = 20
"""Euler steps of a portrait flow."""
_TERM_DEVIATIONS: dict[tuple[str, str], dict[str, float]] = {
    ("pose", "three-quarter"): {"yaw": 2.0},
    ("pose", "profile"): {"yaw": 2.5},
    ("skin_tone", "very light"): {"tone": 1.5},
    ("skin_tone", "light"): {"tone": 0.8},
    ("skin_tone", "brown"): {"tone": -0.8},
    ("skin_tone", "dark"): {"tone": -1.5},
    ("light", "hard sun"): {"light": 1.5},
    ("light", "golden hour"): {"light": 0.5},
    ("light", "neon"): {"light": -1.0},
    ("light", "dim indoor"): {"light": -1.5},
    ("expression", "closed smile"): {"smile": 2.0, "opening": -1.0},
    ("expression", "open smile"): {"smile": 2.0, "opening": 1.0},
    ("expression", "surprised"): {"opening": 2.0},
    ("expression", "neutral"): {"opening": -1.0},
    ("expression", "serious"): {"opening": -1.0, "smile": -0.5},
}
"""The attributes that a term asks a flow for, in standard deviations from the mean of its training portraits."""


def load_picture_generator(policy: str) -> PictureGenerator:
    """Return the generator that ``--policy`` names.

    Args:
        policy: the folder of a ``PortraitFlow``, or its ``org/name`` on the Hub; it follows the prompt's pose,
            tone, light and expression; or
            ``package.module:function``, a function ``(text, seed) -> [H, W, 3] uint8 RGB``.

    Raises:
        BadInput: the folder, the module or the function does not exist.
    """
    if Path(policy).is_dir() or is_hub_id(policy):
        return _by_flow(PortraitFlow.from_pretrained(model_folder(policy)))
    if not is_reference(policy):
        raise BadInput(f"--policy {policy} is neither a folder nor PACKAGE.MODULE:FUNCTION: give one of them.")
    return _by_function(policy, load_reference(policy))


def _by_function(policy: str, draw: Callable[[str, int], np.ndarray]) -> PictureGenerator:
    def checked(prompt: BenchPrompt, seed: int) -> np.ndarray:
        picture = np.asarray(draw(prompt.text, seed))
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            raise BadInput(f"--policy {policy} gave {picture.dtype} {picture.shape}: return RGB uint8 [H, W, 3].")
        return picture

    return checked


def _by_flow(flow: PortraitFlow) -> PictureGenerator:
    def draw(prompt: BenchPrompt, seed: int) -> np.ndarray:
        deviations = torch.zeros(1, len(ATTRIBUTES))
        for term in prompt.terms.items():
            for name, deviation in _TERM_DEVIATIONS.get(term, {}).items():
                deviations[0, ATTRIBUTES.index(name)] = deviation
        attributes = flow.attribute_statistics[0] + deviations * flow.attribute_statistics[1]
        number = int.from_bytes(prompt.id.encode()[-6:], "big")
        return pictures_to_frames(flow.draw(attributes, seed=number * 1000 + seed, steps=FLOW_STEPS))[0]

    return draw

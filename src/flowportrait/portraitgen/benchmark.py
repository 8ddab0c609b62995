"""The portrait benchmark: pictures for known prompts, their artefacts and scores.

PortraitBench: pictures for known prompts, judged; artefact rates and scores with their intervals.

    prompts ─► pictures, of a folder or a generator ─► OmniReward · AI-Portrait · agreement ─► results.json

Rates have Wilson's interval over pictures, scores a bootstrap interval; counts say over how many. ``results.json``
holds no path and no machine: two of them are comparable if prompts, version and judge agree.

Two results of PortraitBench, picture by picture, and the tests that this takes.

Generators that PortraitBench can call: a portrait flow, or a function of the user's own.

--policy FOLDER                      a flow of ``portrait_flow``: of a prompt it knows pose, tone, light, expression
--policy package.module:function     function(text, seed) -> [H, W, 3] uint8 RGB
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
from flowportrait.evaluation.statistics import bootstrap_mean, holm_correction, mcnemar, signed_rank_p
from flowportrait.files import complete, write_json
from flowportrait.media.image import read_image
from flowportrait.plugins import is_reference, load_reference
from flowportrait.portraitgen.detectors import ATTRIBUTES, CATALOGUE, agreement
from flowportrait.portraitgen.judging import StillJudge
from flowportrait.portraitgen.portrait_flow import PortraitFlow, Still, as_frames
from flowportrait.portraitgen.taxonomy import TAXONOMY, VERSION, BenchPrompt, digest
from flowportrait.terminal import progress

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


SAME = {"version": "version of the benchmark", "prompts": "set of prompts", "judge": "judge"}


def compare(first: Path, second: Path) -> list[dict[str, Any]]:
    """Differences of two results, first minus second, on the pictures both have.

    Raises:
        BadInput: a file that is no result, or results by another version, prompt set or judge.
    """
    one, other = _read(first), _read(second)
    for key, what in SAME.items():
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
        tests[kind], gap = mcnemar(a, b)
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


STEPS = 20
_ASKED: dict[tuple[str, str], dict[str, float]] = {
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
"""Terms as deviations from what the flow's training portraits had."""


def drawing(policy: str) -> Draw:
    """What draws the pictures.

    Raises:
        BadInput: no such folder, module or function.
    """
    if Path(policy).is_dir():
        return _by_flow(PortraitFlow.from_pretrained(Path(policy)))
    if not is_reference(policy):
        raise BadInput(f"--policy {policy} is neither a folder nor PACKAGE.MODULE:FUNCTION: give one of them.")
    return _by_function(policy, load_reference(policy))


def _by_function(policy: str, draw: Callable[[str, int], np.ndarray]) -> Draw:
    def checked(prompt: BenchPrompt, seed: int) -> np.ndarray:
        picture = np.asarray(draw(prompt.text, seed))
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            raise BadInput(f"--policy {policy} gave {picture.dtype} {picture.shape}: return RGB uint8 [H, W, 3].")
        return picture

    return checked


def _by_flow(flow: PortraitFlow) -> Draw:
    def draw(prompt: BenchPrompt, seed: int) -> np.ndarray:
        asked = torch.zeros(1, len(ATTRIBUTES))
        for term in prompt.terms.items():
            for name, deviation in _ASKED.get(term, {}).items():
                asked[0, ATTRIBUTES.index(name)] = deviation
        wanted = flow.usual[0] + asked * flow.usual[1]
        number = int.from_bytes(prompt.id.encode()[-6:], "big")
        return as_frames(flow.draw(wanted, seed=number * 1000 + seed, steps=STEPS))[0]

    return draw

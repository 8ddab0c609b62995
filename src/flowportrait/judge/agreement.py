"""How far a judge agrees with people, per aspect and by who made the video.

    Spearman ρ, Kendall τ-b       order                    ICC(2,1)      absolute agreement of judge and mean human
    bias = mean(judge − human)    error = |judge − human| ≥ 1 grade, with counts        histograms over 1 … 5

    ICC(2,1) = (MS_rows − MS_rest) / (MS_rows + (k − 1) MS_rest + k (MS_columns − MS_rest) / n)     Shrout & Fleiss 1979

What calibration brings is measured on clips that it was not learned on (five folds).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from flowportrait.errors import BadInput
from flowportrait.judge.calibration import FEWEST, Calibration, learn
from flowportrait.judge.rubric import ASPECTS, HIGHEST, LOWEST, Aspect

ERROR = 1.0
FOLDS = 5


@dataclass(frozen=True)
class Human:
    """What people gave one file: ratings ``[raters]`` per aspect."""

    file: str
    generator: str
    ratings: dict[Aspect, list[float]]

    def mean(self, aspect: Aspect) -> float:
        """Their mean, NaN without any."""
        given = self.ratings[aspect]
        return float(np.mean(given)) if given else float("nan")


def read_human(path: Path) -> list[Human]:
    """A table with the columns ``file``, the aspects (1 … 5, empty allowed) and, where known, ``generator`` and one
    line per rater.

    Raises:
        BadInput: missing file or column, or a rating that is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}): give a csv file with human scores.") from error
    lacking = [name for name in ("file", *ASPECTS) if not rows or name not in rows[0]]
    if lacking:
        raise BadInput(f"{path} has no column {', '.join(lacking)}: it needs file, {', '.join(ASPECTS)}.")
    found: dict[str, Human] = {}
    for line, row in enumerate(rows, 2):
        person = found.setdefault(
            row["file"], Human(row["file"], row.get("generator") or "unknown", {aspect: [] for aspect in ASPECTS})
        )
        for aspect in ASPECTS:
            text = (row[aspect] or "").strip()
            if not text:
                continue
            try:
                rating = float(text)
            except ValueError:
                rating = float("nan")
            if not LOWEST <= rating <= HIGHEST:
                raise BadInput(f"{path}, line {line}: {aspect} is {text!r}, not a score from {LOWEST} to {HIGHEST}.")
            person.ratings[aspect].append(rating)
    return list(found.values())


def compare(judged: dict[str, dict[Aspect, float | None]], human: Sequence[Human], judge: str) -> tuple[
    Calibration, dict[str, Any]
]:  # fmt: skip
    """The calibration of ``judge`` (raw scores by file and aspect) and the report on its agreement.

    Raises:
        BadInput: not one aspect has enough clips with both scores.
    """
    knots: dict[str, list[tuple[float, float]]] = {}
    report: dict[str, Any] = {}
    for aspect in ASPECTS:
        known = [(person, judged.get(person.file, {}).get(aspect)) for person in human]
        pairs = [(p, float(s)) for p, s in known if s is not None and np.isfinite(p.mean(aspect))]
        lost = sum(s is None and p.file in judged for p, s in known)
        if len(pairs) < FEWEST:
            report[aspect] = {"clips": len(pairs), "without_score": lost, "calibrated": False}
            continue
        x = np.array([score for _, score in pairs])
        y = np.array([person.mean(aspect) for person, _ in pairs])
        makers = [person.generator for person, _ in pairs]
        knots[aspect] = learn(x, y)
        report[aspect] = {
            "clips": len(pairs),
            "without_score": lost,
            "calibrated": True,
            "raters": rater_agreement([person.ratings[aspect] for person, _ in pairs]),
            "before": _figures(x, y, makers),
            "after_on_unseen_clips": _figures(_out_of_fold(x, y), y, makers),
        }
    if not knots:
        raise BadInput(f"No aspect has {FEWEST} clips with a human and a judge's score: check that file names agree.")
    return Calibration(judge, knots), report


def _figures(x: np.ndarray, y: np.ndarray, makers: Sequence[str]) -> dict[str, Any]:
    by = {}
    for maker in sorted(set(makers)):
        rows = np.array([name == maker for name in makers])
        off = x[rows] - y[rows]
        wrong = int((np.abs(off) >= ERROR).sum())
        by[maker] = {"clips": int(rows.sum()), "bias": float(off.mean()), "errors": wrong,
                     "error_rate": wrong / int(rows.sum())}  # fmt: skip
    return {
        "spearman": _order(spearmanr(x, y).statistic),
        "kendall": _order(kendalltau(x, y).statistic),
        "icc": icc(np.stack([x, y], 1)),
        "mean_error": float(np.abs(x - y).mean()),
        "bias": float((x - y).mean()),
        "judge_histogram": histogram(x),
        "human_histogram": histogram(y),
        "by_generator": by,
    }


def icc(ratings: np.ndarray) -> float:
    """ICC(2,1) of ``[clips, raters]``; 0 where nothing varies."""
    n, k = ratings.shape
    mean = ratings.mean()
    rows = k * ((ratings.mean(1) - mean) ** 2).sum() / (n - 1)
    columns = n * ((ratings.mean(0) - mean) ** 2).sum() / (k - 1)
    rest = ((ratings - ratings.mean(1, keepdims=True) - ratings.mean(0) + mean) ** 2).sum() / ((n - 1) * (k - 1))
    whole = rows + (k - 1) * rest + k * (columns - rest) / n
    return float((rows - rest) / whole) if whole > 0 else 0.0


def rater_agreement(ratings: Sequence[Sequence[float]]) -> dict[str, Any]:
    """ICC among people on the clips that the same number of them rated: what no judge can be expected to exceed."""
    most = max(map(len, ratings))
    full = np.array([given for given in ratings if len(given) == most])
    enough = most >= 2 and len(full) >= 3
    return {"most": most, "icc": icc(full) if enough else None}


def histogram(scores: np.ndarray) -> list[int]:
    """How many round to each of 1 … 5."""
    grades = np.floor(scores + 0.5).clip(LOWEST, HIGHEST).astype(int)
    return [int((grades == grade).sum()) for grade in range(LOWEST, HIGHEST + 1)]


def _out_of_fold(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each clip through a map that was learned without its fold."""
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    mapped = np.empty_like(x)
    for held in range(FOLDS):
        rest = fold != held
        if rest.sum() < FEWEST:
            mapped[~rest] = x[~rest]
            continue
        a, b = np.array(learn(x[rest], y[rest])).T
        mapped[~rest] = np.interp(x[~rest], a, b)
    return mapped


def _order(value: float) -> float | None:
    """A correlation, None where one side does not vary."""
    return float(value) if np.isfinite(value) else None

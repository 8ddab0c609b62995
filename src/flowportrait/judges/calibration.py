"""This module calibrates a judge: it maps the judge's scores to human ones and reports how far both agree.

    map = argmin_{m non-decreasing} Σ (m(judge_i) − human_i)²          (isotonic regression, scipy)

    Spearman ρ, Kendall τ-b       order                    ICC(2,1)      absolute agreement of judge and mean human
    bias = mean(judge − human)    error = |judge − human| ≥ 1 grade, with counts        histograms over 1 … 5

    ICC(2,1) = (MS_rows − MS_rest) / (MS_rows + (k − 1) MS_rest + k (MS_columns − MS_rest) / n)     Shrout & Fleiss 1979

The map never reverses an order, it only changes ties and distances; outside the scores that it was fitted to it is
constant. Its effect is reported on clips that it was not fitted to (five-fold cross-validation). ``Calibration`` is the
map; ``compare_with_humans`` fits it and makes the report.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import kendalltau, spearmanr

from flowportrait.errors import BadInput
from flowportrait.files import atomic_write, write_json
from flowportrait.judges.rubric import CLIP_ASPECTS, HIGHEST_GRADE, LOWEST_GRADE, Aspect

MIN_CALIBRATION_CLIPS = 8
"""Least number of clips with both scores for a map to be fitted."""
ERROR_SIZE = 1.0
"""Smallest difference in grades that counts as an error of the judge."""
FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """A monotone map per aspect from a judge's scores to human ones.

    Args:
        judge: the name of the judge.
        knots: by aspect the knots (judge, human), both rising, with straight lines between them.
    """

    judge: str
    knots: dict[str, list[tuple[float, float]]]

    def apply(self, aspect: Aspect, score: float) -> float:
        """Return the human score that corresponds to ``score``; for an aspect without a map ``score`` itself."""
        knots = self.knots.get(aspect)
        if not knots:
            return score
        x, y = zip(*knots, strict=True)
        return float(np.clip(np.interp(score, x, y), LOWEST_GRADE, HIGHEST_GRADE))

    @property
    def digest(self) -> str:
        """A hash of 12 hexadecimal digits that changes with the map."""
        return hashlib.sha256(json.dumps([self.judge, self.knots], sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as they are written to a file."""
        return {"judge": self.judge, "knots": self.knots}

    def save(self, path: Path, report: dict[str, Any]) -> None:
        """Write the map to a JSON file, with the report of how it was fitted."""
        write_json(path, {**self.to_dict(), "report": report})

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what ``save`` wrote.

        Raises:
            BadInput: the file is missing, is not a calibration, or its map is not monotone.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            knots = {str(a): [(float(x), float(y)) for x, y in k] for a, k in data["knots"].items()}
            found = cls(str(data["judge"]), knots)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} is no calibration ({error}): make one with judge calibrate.") from error
        for aspect, points in found.knots.items():
            x, y = np.array(points).T
            if aspect not in CLIP_ASPECTS or (np.diff(x) <= 0).any() or (np.diff(y) < 0).any():
                raise BadInput(f"{path} is no calibration: {aspect} is unknown or its map does not rise.")
        return found


def fit_monotone(judge: Sequence[float] | np.ndarray, human: Sequence[float] | np.ndarray) -> list[tuple[float, float]]:
    """Return the knots of the monotone map from ``judge`` to ``human`` scores ``[N]``.

    Equal scores of the judge share one knot.

    Raises:
        BadInput: fewer than ``MIN_CALIBRATION_CLIPS`` pairs.
    """
    if len(judge) < MIN_CALIBRATION_CLIPS:
        raise BadInput(f"{len(judge)} clips have both scores: calibrating takes at least {MIN_CALIBRATION_CLIPS}.")
    x, place = np.unique(np.asarray(judge, float), return_inverse=True)
    count = np.bincount(place).astype(float)
    mean = np.bincount(place, np.asarray(human, float)) / count
    fitted = isotonic_regression(mean, weights=count)
    # Only the ends of a constant stretch are knots; the map is linear between stretches.
    keep = [0, *[i for i in range(1, len(x) - 1) if not fitted.x[i - 1] == fitted.x[i] == fitted.x[i + 1]]]
    keep += [len(x) - 1] if len(x) > 1 else []
    return [(float(x[i]), float(fitted.x[i])) for i in keep]


# --- Agreement with human scores


@dataclass(frozen=True)
class HumanScores:
    """The ratings that people gave one file, ``[raters]`` by aspect."""

    file: str
    generator: str
    ratings: dict[Aspect, list[float]]

    def mean(self, aspect: Aspect) -> float:
        """Return the mean rating, NaN if there is none."""
        ratings = self.ratings[aspect]
        return float(np.mean(ratings)) if ratings else float("nan")


def read_human_scores(path: Path) -> list[HumanScores]:
    """Read a table of human scores.

    Args:
        path: csv file with the columns ``file``, the aspects (1 … 5, empty allowed) and optionally ``generator``; one
            line per file and rater.

    Raises:
        BadInput: the file or a column is missing, or a rating is not a number from 1 to 5.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}): give a csv file with human scores.") from error
    lacking = [name for name in ("file", *CLIP_ASPECTS) if not rows or name not in rows[0]]
    if lacking:
        raise BadInput(f"{path} has no column {', '.join(lacking)}: it needs file, {', '.join(CLIP_ASPECTS)}.")
    found: dict[str, HumanScores] = {}
    for line, row in enumerate(rows, 2):
        person = found.setdefault(
            row["file"],
            HumanScores(row["file"], row.get("generator") or "unknown", {aspect: [] for aspect in CLIP_ASPECTS}),
        )
        for aspect in CLIP_ASPECTS:
            text = (row[aspect] or "").strip()
            if not text:
                continue
            try:
                rating = float(text)
            except ValueError:
                rating = float("nan")
            if not LOWEST_GRADE <= rating <= HIGHEST_GRADE:
                raise BadInput(
                    f"{path}, line {line}: {aspect} is {text!r}, not a score from {LOWEST_GRADE} to {HIGHEST_GRADE}."
                )
            person.ratings[aspect].append(rating)
    return list(found.values())


def compare_with_humans(
    judged: dict[str, dict[Aspect, float | None]], human: Sequence[HumanScores], judge: str
) -> tuple[Calibration, dict[str, Any]]:
    """Fit the calibration of a judge and report how far it agrees with people.

    Args:
        judged: raw scores by file and aspect.
        human: ratings by people.
        judge: the judge's name.

    Returns:
        The calibration, and by aspect the agreement before and after it.

    Raises:
        BadInput: no aspect has enough clips with both scores.
    """
    knots: dict[str, list[tuple[float, float]]] = {}
    report: dict[str, Any] = {}
    for aspect in CLIP_ASPECTS:
        known = [(person, judged.get(person.file, {}).get(aspect)) for person in human]
        pairs = [(p, float(s)) for p, s in known if s is not None and np.isfinite(p.mean(aspect))]
        without_score = sum(s is None and p.file in judged for p, s in known)
        if len(pairs) < MIN_CALIBRATION_CLIPS:
            report[aspect] = {"clips": len(pairs), "without_score": without_score, "calibrated": False}
            continue
        x = np.array([score for _, score in pairs])
        y = np.array([person.mean(aspect) for person, _ in pairs])
        generators = [person.generator for person, _ in pairs]
        knots[aspect] = fit_monotone(x, y)
        report[aspect] = {
            "clips": len(pairs),
            "without_score": without_score,
            "calibrated": True,
            "raters": rater_agreement([person.ratings[aspect] for person, _ in pairs]),
            "before": _agreement_statistics(x, y, generators),
            "after_on_unseen_clips": _agreement_statistics(_out_of_fold(x, y), y, generators),
        }
    if not knots:
        raise BadInput(
            f"No aspect has {MIN_CALIBRATION_CLIPS} clips with a human and a judge's score: "
            "check that file names agree."
        )
    return Calibration(judge, knots), report


def _agreement_statistics(x: np.ndarray, y: np.ndarray, generators: Sequence[str]) -> dict[str, Any]:
    by = {}
    for maker in sorted(set(generators)):
        rows = np.array([name == maker for name in generators])
        off = x[rows] - y[rows]
        wrong = int((np.abs(off) >= ERROR_SIZE).sum())
        by[maker] = {"clips": int(rows.sum()), "bias": float(off.mean()), "errors": wrong,
                     "error_rate": wrong / int(rows.sum())}  # fmt: skip
    return {
        "spearman": _finite_or_none(spearmanr(x, y).statistic),
        "kendall": _finite_or_none(kendalltau(x, y).statistic),
        "icc": intraclass_correlation(np.stack([x, y], 1)),
        "mean_error": float(np.abs(x - y).mean()),
        "bias": float((x - y).mean()),
        "judge_histogram": grade_histogram(x),
        "human_histogram": grade_histogram(y),
        "by_generator": by,
    }


def intraclass_correlation(ratings: np.ndarray) -> float:
    """Return ICC(2,1) of ratings ``[clips, raters]``; 0 where nothing varies."""
    n, k = ratings.shape
    mean = ratings.mean()
    rows = k * ((ratings.mean(1) - mean) ** 2).sum() / (n - 1)
    columns = n * ((ratings.mean(0) - mean) ** 2).sum() / (k - 1)
    rest = ((ratings - ratings.mean(1, keepdims=True) - ratings.mean(0) + mean) ** 2).sum() / ((n - 1) * (k - 1))
    total = rows + (k - 1) * rest + k * (columns - rest) / n
    return float((rows - rest) / total) if total > 0 else 0.0


def rater_agreement(ratings: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the ICC among people on the clips with the most ratings; a judge cannot be expected to exceed it.

    Returns:
        ``most``: ratings of such a clip; ``intraclass_correlation``: None with fewer than two raters or three clips.
    """
    most = max(map(len, ratings))
    full = np.array([row for row in ratings if len(row) == most])
    enough = most >= 2 and len(full) >= 3
    return {"most": most, "icc": intraclass_correlation(full) if enough else None}


def grade_histogram(scores: np.ndarray) -> list[int]:
    """Return how many scores round to each of the grades 1 … 5."""
    grades = np.floor(scores + 0.5).clip(LOWEST_GRADE, HIGHEST_GRADE).astype(int)
    return [int((grades == grade).sum()) for grade in range(LOWEST_GRADE, HIGHEST_GRADE + 1)]


def _out_of_fold(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Map the score of each clip by the map that was fitted without the clip's fold."""
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS
    mapped = np.empty_like(x)
    for fold_index in range(FOLDS):
        rest = fold != fold_index
        if rest.sum() < MIN_CALIBRATION_CLIPS:
            mapped[~rest] = x[~rest]
            continue
        a, b = np.array(fit_monotone(x[rest], y[rest])).T
        mapped[~rest] = np.interp(x[~rest], a, b)
    return mapped


def _finite_or_none(value: float) -> float | None:
    """Return a correlation, None if one of the two sides is constant."""
    return float(value) if np.isfinite(value) else None


def draw_histograms(report: dict[str, Any], path: Path) -> None:
    """Write a PNG with histograms of human, judge and calibrated scores, for every calibrated aspect of a report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = [aspect for aspect in CLIP_ASPECTS if report[aspect]["calibrated"]]
    figure = Figure((4 * len(known), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    grades = np.arange(LOWEST_GRADE, HIGHEST_GRADE + 1)
    for place, aspect in enumerate(known):
        axes = figure.add_subplot(1, len(known), place + 1)
        before, after = report[aspect]["before"], report[aspect]["after_on_unseen_clips"]
        bars = {"human": before["human_histogram"], "judge": before["judge_histogram"],
                "calibrated": after["judge_histogram"]}  # fmt: skip
        for shift, (name, counts) in enumerate(bars.items()):
            axes.bar(grades + 0.27 * (shift - 1), counts, 0.25, label=name)
        rho = before["spearman"]
        axes.set_title(f"{aspect.replace('_', ' ')}, ρ = {rho:.2f}" if rho is not None else aspect.replace("_", " "))
        axes.set_xlabel("score")
        axes.set_ylabel("clips")
        axes.legend()
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")

"""Judges that need no model, beside each other: known damage put in order, agreement with known preferences, cost.

    python benchmarks/judges.py FOOTAGE [--library FILE]        FOOTAGE as in split.tsv; only speakers of ``dev``

    measured               the panel that ships
    … , pose               a head that cannot be caps the grade of motion (``--set pose=true``)
    … , library            experts asked as preferences taught (FILE, or what docs/judge.md reports)
    … , pose and library
    sync for everything    one expert for all aspects: what must lose

Order: share of pairs of one clip at two strengths that are graded the right way, with its interval over clips; the
sanity set's seven kinds of damage by aspect, and heads that cannot be. Agreement: the pairs of ``judge.py learning``.
Every damaged clip is made and tracked once for all judges: seconds are of judging alone (tracking: judge.py asking).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from judge import HEADS, preferences
from tools.fit_judge_scales import damage_head, speakers_clips

from flowportrait.corruption import CORRUPTIONS
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.judges.clips import JudgedClip
from flowportrait.judges.learning import measure_agreement
from flowportrait.judges.measured_panel import EXPERTS, Experts, MeasuredPanel, PoseCappedJudge
from flowportrait.judges.rubric import CLIP_ASPECTS, Aspect, RubricLibrary
from flowportrait.judges.sanity import CLIP_CASES, corrupt_clip
from flowportrait.judges.verdicts import Judge

LEARNED = RubricLibrary(
    {**EXPERTS, "expressiveness": ("expressiveness", "sync"), "motion": ("steadiness", "temporal", "pose")}
)
COLUMNS: dict[str, tuple[Aspect, tuple[str, ...]]] = {
    **{aspect: (aspect, CLIP_CASES[aspect]) for aspect in CLIP_ASPECTS}, "heads": ("motion", tuple(HEADS)),
}  # fmt: skip
"""Column → what is graded under which damage."""
Levels = list[list[JudgedClip]]
"""Strength by strength the same clips."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("footage", type=Path)
    parser.add_argument("--library", type=Path, help="what `flowportrait judge learn` wrote")
    given = parser.parse_args()
    torch.set_num_threads(1)
    clips = [seen(clip) for clip in speakers_clips(given.footage, split="dev", per_speaker=2)]
    panels = judges(RubricLibrary.load(given.library) if given.library else LEARNED)
    shares: dict[str, dict[str, list[np.ndarray]]] = {name: {column: [] for column in COLUMNS} for name in panels}
    seconds, shown = dict.fromkeys(panels, 0.0), 0
    for column, (aspect, damages) in COLUMNS.items():
        for damage in damages:
            levels = damaged(clips, damage)
            shown += sum(map(len, levels))
            for name, judge in panels.items():
                began = time.process_time()
                shares[name][column] += order(judge, aspect, levels)
                seconds[name] += time.process_time() - began
    stated = preferences(clips)
    print("| | " + " | ".join(COLUMNS) + " | agreement | seconds a clip |\n" + "|---" * (len(COLUMNS) + 3) + "|")
    for name, judge in panels.items():
        found = [bootstrap_mean(np.mean(own, 0)) for own in shares[name].values()]
        cells = [f"{one.mean:.0%} ({one.low or 0:.0%}–{one.high or 0:.0%})" for one in found]
        said = measure_agreement(judge, stated)[0]
        low, high = said.interval
        cells += [f"{said.accuracy:.0%} ({low:.0%}–{high:.0%})", f"{seconds[name] / shown:.3f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def judges(library: RubricLibrary) -> dict[str, Judge]:
    """Those of the module."""
    experts = Experts.load()
    taught = MeasuredPanel(experts.with_library(library))
    alone = MeasuredPanel(experts.with_library(RubricLibrary(dict.fromkeys(CLIP_ASPECTS, ("sync",)))))
    return {
        "measured": MeasuredPanel(), "measured, pose": PoseCappedJudge(MeasuredPanel()), "measured, library": taught,
        "measured, pose and library": PoseCappedJudge(taught), "sync for everything": alone,
    }  # fmt: skip


def damaged(clips: Sequence[JudgedClip], damage: str) -> Levels:
    """Clean, and at three strengths."""
    if damage in HEADS:
        hurt, strengths = HEADS[damage]
        return [list(clips), *([seen(damage_head(clip, hurt, level)) for clip in clips] for level in strengths)]
    bare, strengths = [replace(clip, known_landmarks=None) for clip in clips], CORRUPTIONS[damage].strengths
    return [list(clips), *([seen(corrupt_clip(clip, damage, level)) for clip in bare] for level in strengths)]


def seen(clip: JudgedClip) -> JudgedClip:
    """With its face found, once for everybody."""
    batch = clip.batch
    places = batch.places(tuple(range(len(clip))))[0].numpy() if clip.known_landmarks is None else clip.known_landmarks
    return replace(clip, known_batch=batch, known_landmarks=places)


def order(judge: Judge, aspect: Aspect, levels: Levels) -> list[np.ndarray]:
    """Whether each two strengths of each clip ``[N]`` are graded the right way; no grade stands at one half."""
    verdicts = [judge.judge(clips) for clips in levels]
    scores = np.array([[one.aspects[aspect].score or np.nan for one in level] for level in verdicts])
    pairs = [np.sign(scores[a] - scores[b]) / 2 + 0.5 for a, b in combinations(range(len(scores)), 2)]
    return [np.nan_to_num(pair, nan=0.5) for pair in pairs]


if __name__ == "__main__":
    main()

"""Are the two sync experts to be believed? Acceptance tables and score against shift, on speakers neither ever saw.

    python benchmarks/experts.py --corpus CORPUS --output DIR [--speakers spk008 …]

By default every ``dev`` speaker except GRID's one man, whose other sentences both experts learned from. Writes
experts.json and experts.svg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tools.sync_expert_data import load_expert_clips
from tools.train_sync_expert import SIDES, acceptance_table, embed_clip, expert_side, shifted_score

from flowportrait.data.corpus import FaceClip
from flowportrait.evaluation.figures import PLOT_STYLE, SERIES_COLOURS, to_svg
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.rewards.sync import lower_face_motion

VIEWS: dict[str, Callable[[FaceClip], list[torch.Tensor]]] = {
    "evaluation": lambda clip: [torch.from_numpy(clip.mouth)],
    "reward": lambda clip: [lower_face_motion(clip.landmarks, clip.blendshapes)],
}
REACH = 12
MIN_WINDOWS = 8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--corpus", type=Path, required=True)
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--without", nargs="*", default=["grid_s1"], help="speakers to leave out")
    given = options.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name in SIDES:
        side = expert_side(name)
        items = [i for i in load_expert_clips(given.corpus, ["dev"], VIEWS[name]) if i.speaker not in given.without]
        net = side.network.load()
        table = acceptance_table(net, items)
        found[name] = {"clips": len(items), "speakers": len({i.speaker for i in items}), "tests": table["tests"],
                       "curve": curve(net, items)}  # fmt: skip
        show(name, found[name])
    (given.output / "experts.json").write_text(json.dumps(found, indent=1) + "\n")
    (given.output / "experts.svg").write_text(drawn(found))


def curve(net: Any, items: list[Any]) -> dict[str, list[float]]:
    """Mean score with its 95 % interval over clips per shift −REACH … REACH; every clip counts at every shift it
    leaves enough windows for."""
    pairs = [embed_clip(net, item.views[0], item.mel) for item in items]
    result = {}
    for shift in range(-REACH, REACH + 1):
        scores = np.array([shifted_score(*p, shift) for p in pairs if len(p[0]) - abs(shift) >= MIN_WINDOWS])
        estimate = bootstrap_mean(scores)
        result[f"{shift:+d}"] = [round(float(v), 3) for v in (estimate.mean, estimate.low or 0, estimate.high or 0)]
    return result


def show(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name} expert, {found['clips']} clips of {found['speakers']} unseen speakers")
    for test, row in found["tests"].items():
        print(f"  {test:38s} {100 * row['accuracy']:5.1f} %   own {row['right']:.2f}   other {row['wrong']:.2f}   "
              f"{row['pairs']} pairs")  # fmt: skip
    print("  score by shift:", " ".join(f"{k}:{v[0]:.2f}" for k, v in found["curve"].items()))


def drawn(found: dict[str, Any]) -> str:
    import matplotlib.pyplot as plt

    with plt.rc_context(PLOT_STYLE):
        figure, axis = plt.subplots(figsize=(6.4, 3.0))
        for colour, (name, table) in zip(SERIES_COLOURS, found.items(), strict=False):
            shifts = [int(k) for k in table["curve"]]
            mean, low, high = np.array(list(table["curve"].values())).T
            axis.plot(shifts, mean, color=colour, lw=1.8, label=f"{name} expert")
            axis.fill_between(shifts, low, high, color=colour, alpha=0.18, lw=0)
        axis.set_xlabel("sound late by … frames (40 ms)")
        axis.set_ylabel("score (cosine)")
        axis.legend(frameon=False)
        axis.grid(alpha=0.15)
        return to_svg(figure)


if __name__ == "__main__":
    main()

"""What real footage scores, as it ships with the package: the ground-truth row where a run has no real clips.

python -m flowportrait.evaluate.reference VIDEO_OR_FOLDER … --output real_footage.json
"""

from __future__ import annotations

import argparse
import json
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from flowportrait.evaluate.compare import Estimate, compare
from flowportrait.evaluate.metrics import METRICS
from flowportrait.written import write_json

SHIPPED = "real footage (shipped)"


@lru_cache(maxsize=1)
def real_footage() -> dict[str, Any]:
    """``{"about": …, "metrics": {key: [mean, low, high, clips]}}``; empty where it was not made yet."""
    source = files("flowportrait") / "weights" / "sync_eval" / "real_footage.json"
    return json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {"about": "", "metrics": {}}


def real_estimates() -> dict[str, Estimate]:
    """The shipped row of every metric."""
    return {key: Estimate(*values) for key, values in real_footage()["metrics"].items()}


def real_means(prefix: str) -> dict[str, float]:
    """Shipped means of the metrics whose key begins with ``prefix``, without it."""
    found = real_footage()["metrics"].items()
    return {key.removeprefix(prefix): values[0] for key, values in found if key.startswith(prefix)}


def fit(videos: list[Path], output: Path, about: str) -> dict[str, Any]:
    """Measure real videos and write their row."""
    from flowportrait.evaluate.run import measure_all
    from flowportrait.evaluate.tracked import default_cache

    measured = measure_all({"real": videos}, default_cache(), workers=1)
    comparison = compare({"real": {clip: found.row for clip, found in measured.findings["real"].items()}})
    row = {
        metric.key: [e.mean, e.low, e.high, e.clips]
        for metric in METRICS
        if metric.key != "tfi_guarded" and (e := comparison.estimates["real"].get(metric.key)) is not None
    }
    write_json(output, {"about": about, "metrics": row})
    return row


def main() -> None:
    """Command line."""
    from flowportrait.commands.evaluate import find_videos

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("videos", type=Path, nargs="+")
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--about", default="", help="one sentence: whose footage, how many clips")
    options.add_argument("--every", type=int, default=1)
    given = options.parse_args()
    print(json.dumps(fit(find_videos(given.videos)[:: given.every], given.output, given.about), indent=1))


if __name__ == "__main__":
    main()

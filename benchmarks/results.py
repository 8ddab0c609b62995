"""The results page: ``docs/results.md`` with its pictures, from run folders or from the figures kept in the repository.

    python benchmarks/results.py                                                   docs/results/figures.json ─► page
    python benchmarks/results.py --runs RUNS --headline HELDOUT --noisy NOISY      run folders ─► figures.json ─► page

The prose, and which command measured what, is ``docs/results/template.md``; the tables and curves are filled in.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contestants import STUDIES
from curves import draw_curves, draw_looks
from figures import collect, headline, looks
from over_runs import headline_runs
from tables import (
    controls_table,
    headline_table,
    held_table,
    noisy_table,
    preferred_table,
    proxy_table,
    runs_table,
    study_table,
)

FOLDER = Path(__file__).parents[1] / "docs" / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], help="folders of recipes.py")
    parser.add_argument("--studies", nargs="+", choices=tuple(STUDIES), default=list(STUDIES), help="of those folders")
    parser.add_argument("--posttrained", type=Path, nargs="+", default=[], help="run folders of flowportrait posttrain")
    parser.add_argument("--headline", type=Path, help="folder of heldout.py")
    parser.add_argument("--seeds", type=Path, help="folder of heldout.py with every run and the controls")
    parser.add_argument("--noisy", type=Path, help="noisy.json of noisy.py")
    parser.add_argument("--proxy", type=Path, help="proxy.json of proxy.py")
    parser.add_argument("--preferred", type=Path, help="what preferred.py wrote")
    parser.add_argument("--output", type=Path, default=FOLDER.parent, help="folder of results.md (default docs)")
    given = parser.parse_args()
    kept = FOLDER / "figures.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    for runs in given.runs:
        for part, own in collect(runs, given.studies).items():
            found[part] = {**found.get(part, {}), **own}
    if given.posttrained:
        found["looks"] = looks(given.posttrained)
    if given.headline:
        found["headline"] = headline(given.headline)
    if given.seeds:
        found["seeds"] = headline_runs(given.seeds)
    if given.noisy:
        found["noisy"] = {**found.get("noisy", {}), **json.loads(given.noisy.read_text())}
    if given.proxy:
        found["proxy"] = json.loads(given.proxy.read_text())
    if given.preferred:
        found["preferred"] = json.loads(given.preferred.read_text())["shares"]
    if any((given.runs, given.headline, given.seeds, given.noisy, given.posttrained, given.proxy, given.preferred)):
        found = rounded(found)
        write(kept, json.dumps(found, indent=1) + "\n")
    template, pictures = (FOLDER / "template.md").read_text(), given.output / "results"
    for study, curves in found.get("curves", {}).items():
        if f"results/{study}.svg" in template:
            draw_curves(pictures / f"{study}.svg", curves)
    if "looks" in found:
        draw_looks(pictures / "looks.svg", found["looks"])
    write(given.output / "results.md", page(found, template))


def rounded(found: Any) -> Any:
    """Floats to six digits, all the way down."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    if isinstance(found, list):
        return [rounded(value) for value in found]
    return float(f"{found:.6g}") if isinstance(found, float) else found


def page(found: Mapping[str, Any], template: str) -> str:
    """The template with its ``{{places}}`` filled: ``{{study NAME}}``, ``{{held NAME}}``, ``{{headline PART}}``,
    ``{{seeds PART}}``, ``{{controls PART}}``, ``{{noisy}}``, ``{{proxy}}``,
    ``{{preferred}}``.

    Raises:
        KeyError: the template asks for what has not been measured.
    """
    whole = {"noisy": noisy_table, "proxy": proxy_table, "preferred": preferred_table}
    named = {"study": ("studies", study_table), "held": ("held", held_table), "headline": ("headline", headline_table),
             "seeds": ("seeds", runs_table), "controls": ("seeds", controls_table)}  # fmt: skip

    def fill(place: re.Match[str]) -> str:
        kind, _, name = place[1].partition(" ")
        if kind in whole:
            return whole[kind](found[kind])
        part, table = named[kind]
        return table(found[part][name])

    return re.sub(r"\{\{([^}]+)\}\}", fill, template)


def write(path: Path, text: str) -> None:
    """Under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    main()

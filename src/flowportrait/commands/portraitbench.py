"""``flowportrait portraitbench``: pictures of people for known prompts, their artefacts counted and their scores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("portraitbench", help="artefact rates and scores of generated portraits")
    add.add_argument("--images", type=Path, help="folder of pictures named after the prompts: pb1-000.png, pb1-001.png")
    add.add_argument("--policy", help="what draws them: the folder of a portrait flow, or PACKAGE.MODULE:FUNCTION, "
                     "called with the prompt's text and a seed, returning RGB uint8 [H, W, 3]")  # fmt: skip
    add.add_argument("--prompts", type=Path, help="another prompt set: one JSON object with id and text a line")
    add.add_argument("--output", type=Path, help="folder for results.json and the pictures that are drawn")
    add.add_argument("--per-prompt", type=int, default=1, help="pictures drawn of each prompt")
    add.add_argument("--judge", type=Path, help="settings of a judge by server or model (default: measured)")
    add.add_argument("--list", action="store_true", help="print the prompts, for a generator elsewhere")
    add.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two results.json instead of a run")
    add.add_argument("--json", action="store_true", help="print one JSON object")
    add.set_defaults(run=run)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Judge, compare or list."""
    from flowportrait.portraitgen import taxonomy

    if options.compare:
        from flowportrait.portraitgen.benchmark import compare

        rows = compare(*options.compare)
        if options.json:
            return {"differences": rows}
        return {row["what"]: f"{row['difference']:+.3f}, p = {row['p']:.2g}" for row in rows}
    prompts = taxonomy.read(options.prompts)
    if options.list:
        return {prompt.id: prompt.text for prompt in prompts}
    if (options.images is None) == (options.policy is None):
        raise BadInput("flowportrait portraitbench needs either --images FOLDER or --policy, or --compare or --list.")
    if options.policy and options.output is None:
        raise BadInput("flowportrait portraitbench --policy needs --output FOLDER for what is drawn.")
    if options.per_prompt < 1:
        raise BadInput(f"--per-prompt {options.per_prompt} is not possible: it must be at least 1.")
    if options.output:
        check_output_folder(options.output)
    from flowportrait.judges.build import read_settings
    from flowportrait.portraitgen import benchmark as bench
    from flowportrait.portraitgen.judging import build_still_judge

    judge = build_still_judge(read_settings(options.judge))
    folder = options.images
    if options.policy:
        from flowportrait.portraitgen.benchmark import drawing

        folder = options.output / "pictures"
        bench.drawn(drawing(options.policy), prompts, options.per_prompt, folder)
    named = bench.pictures_in(folder, prompts)
    found = bench.run(named, judge, prompts, len(named))
    if options.output:
        bench.write(found, options.output / "results.json")
    if options.json:
        return found
    from rich.console import Console

    for table in bench.tables(found):
        Console().print(table)
    free = found["free_of_artefacts"]
    return {"free of artefacts": f"{free['count']} of {free['of']}"} if free else {}

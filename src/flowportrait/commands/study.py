"""``flowportrait study``: which system do people prefer? make a study, serve it, analyse the answers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder
from flowportrait.study.plan import MOST_PARTICIPANTS
from flowportrait.terminal import say


def register(commands: Commands) -> None:
    """Add the command and its options."""
    add = commands.add_parser("study", help="ask people which system they prefer: make, serve, analyse")
    steps = add.add_subparsers(dest="step", required=True, metavar="STEP")
    make = steps.add_parser("make", help="pair videos of the same name")
    make.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="one folder of videos per system")
    make.add_argument("--output", type=Path, required=True, help="folder of the study")
    make.add_argument("--title", default="Which video is better?", help="heading of the page")
    make.add_argument("--checks", type=int, default=2, help="attention checks of each kind (default 2)")
    make.add_argument("--pairs-per-participant", type=int, default=0, help="0 (default) for all")
    make.add_argument("--seed", help="what order and sides are drawn from (default: drawn itself)")
    make.add_argument("--about", type=Path, help="JSON lines: name, and any of prompt, speaker, portrait, split")
    make.add_argument("--json", action="store_true", help="print one JSON object")
    make.set_defaults(run=run_make)
    serve = steps.add_parser("serve", help="show the page")
    serve.add_argument("study", type=Path, help="folder that make wrote")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    serve.add_argument("--port", type=int, default=8000, help="0 for a free one")
    serve.add_argument(
        "--public-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which others reach this computer; its own names and addresses are known",
    )
    serve.add_argument("--participants", type=int, default=MOST_PARTICIPANTS, metavar="N",
                       help=f"how many may take part (default {MOST_PARTICIPANTS})")  # fmt: skip
    serve.set_defaults(run=run_serve)
    analyse = steps.add_parser("analyse", help="who is preferred, and how sure is that")
    analyse.add_argument("study", type=Path, help="folder that make wrote")
    analyse.add_argument("--output", type=Path, help="folder of analysis.json and analysis.html (default: the study's)")
    analyse.add_argument("--json", action="store_true", help="print one JSON object")
    analyse.set_defaults(run=run_analyse, updates=("study",))


def run_make(options: argparse.Namespace) -> dict[str, Any]:
    """Folders to a study."""
    check_output_folder(options.output)
    from flowportrait.study.make import make_study

    done: list[str] = []
    study = make_study(
        options.folders,
        options.output,
        title=options.title,
        checks=options.checks,
        share=options.pairs_per_participant,
        seed=options.seed,
        about=options.about,
        report=done.append,
    )
    for name, why in (study.excluded or {}).items():
        say(f"Left out: {name}: {why}")
    screens = min(study.share or len(study.pairs), len(study.pairs)) + len(study.checks)
    if not options.json:
        return {
            "study": str(options.output),
            "systems": ", ".join(study.systems),
            "comparisons": f"{len(study.pairs)} of two systems on one of {len({p.clip for p in study.pairs})} clips",
            "attention checks": f"{len(study.checks)}: a video that is broken, or the same video on both sides",
            "screens per participant": f"{screens}, checks included",
            "left out": f"{len(study.excluded or {})} videos" if study.excluded else "nothing",
            "next": f"flowportrait study serve {options.output}",
        }
    return {
        "study": str(options.output),
        "systems": list(study.systems),
        "clips": len({one.clip for one in study.pairs}),
        "pairs": len(study.pairs),
        "checks": len(study.checks),
        "screens_per_participant": screens,
        "left_out": len(study.excluded or {}),
    }


def run_serve(options: argparse.Namespace) -> dict[str, Any]:
    """The page, until Ctrl-C."""
    from flowportrait.study.server import study_app
    from flowportrait.web_server import LOOPBACK, address_of, bind, make_server, public_names

    if options.participants < 1:
        raise BadInput(f"--participants {options.participants} is not possible: somebody must be able to take part.")
    names = public_names(options.host, options.public_name)
    app = study_app(options.study, names, options.participants)
    with bind(options.host, options.port) as listener:

        def ready() -> None:
            say(f"The study is at {address_of(listener)}/ (Ctrl-C ends it; every answer is saved at once).")
            if options.host not in LOOPBACK:
                known = ", ".join(dict.fromkeys(name for name in names if name not in LOOPBACK))
                say(f"Others on the network can reach it, by its address or as {known}. Requests are not logged.")

        # No access log: it would hold addresses.
        make_server(app, ready).run(sockets=[listener])
    return {}


def run_analyse(options: argparse.Namespace) -> dict[str, Any]:
    """Answers to a table, files and pairs."""
    output = options.output or options.study
    check_output_folder(output)
    from flowportrait.preferences.dataset import PAIRS_FILE
    from flowportrait.study.analysis import analyse_study

    analysis = analyse_study(options.study, output)
    if options.json:
        return analysis
    _print_table(analysis)
    for why, count in analysis["left_out"].items():
        say(f"Left out: {count} participant{'s' * (count > 1)}: {why}.")
    return {
        "participants": f"{analysis['kept']} of {analysis['participants']}",
        "report": str(output / "analysis.html"),
        "pairs": str(options.study / PAIRS_FILE),
    }


def _print_table(analysis: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from flowportrait.study.analysis import TITLES, probability

    table = Table(box=None, pad_edge=False)
    for name in ("", "A", "B", "won / same / lost", "A preferred", "p", "p by person", "p Holm", "alpha"):
        table.add_column(name, justify="left" if name in ("", "A", "B") else "right")
    for row in analysis["preferences"]:
        alpha = analysis["agreement"][row["aspect"]]
        share = "–" if row["preferred"] is None else f"{row['preferred']:.0%} ({row['low']:.0%}–{row['high']:.0%})"
        table.add_row(
            TITLES[row["aspect"]], row["system_a"], row["system_b"],
            f"{row['wins']} / {row['ties']} / {row['losses']}", share, probability(row["p"]),
            probability(row["p_person"]), probability(row["p_holm"]), "–" if alpha is None else f"{alpha:.2f}",
        )  # fmt: skip
    strengths = Table(box=None, pad_edge=False)
    for name in ("Bradley–Terry with ties", *analysis["systems"]):
        strengths.add_column(name, justify="left" if name.startswith("Bradley") else "right")
    for aspect, estimate in analysis["strengths"].items():
        half = estimate["half_width_95"]
        cells = [f"{t:+.2f} ± {half[n]:.2f}" if half[n] is not None else "–" for n, t in estimate["theta"].items()]
        strengths.add_row(TITLES[aspect], *cells)
    console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 140)
    console.print(table, "\n", strengths)

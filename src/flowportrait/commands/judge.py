"""``flowportrait judge``: grade videos, examine and calibrate a judge, or serve one."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands import Commands
from flowportrait.errors import BadInput
from flowportrait.extras import require

if TYPE_CHECKING:
    from flowportrait.judges.build import JudgeSettings
    from flowportrait.judges.sanity import Certificate
    from flowportrait.judges.verdicts import Judge

KEY_ENV = "FLOWPORTRAIT_SERVE_KEY"


def register(commands: Commands) -> None:
    """Add the command and what it can do."""
    add = commands.add_parser("judge", help="grade videos 1 to 5, examine or calibrate a judge, or serve one")
    verbs = add.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=type(add))

    score = verbs.add_parser("score", help="grade finished videos")
    score.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="files or folders of mp4")
    score.add_argument("--output", type=Path, required=True, help="the report, a json file")
    score.set_defaults(run=run_score)

    check = verbs.add_parser("check", help="show a judge damage of known strength; only who passes is trained on")
    check.add_argument("videos", type=Path, nargs="+", metavar="FILE", help="real clips of people speaking")
    check.add_argument("--stills", action="store_true", help="the files are portraits: examine the judge of stills")
    check.set_defaults(run=run_check)

    calibrate = verbs.add_parser("calibrate", help="compare with human scores and learn a map to them")
    calibrate.add_argument("--human", type=Path, required=True, help="csv: file, generator, lip_sync, expressiveness, "
                           "motion")  # fmt: skip
    calibrate.add_argument("--scores", type=Path, help="a report of judge score")
    calibrate.add_argument("--videos", type=Path, help="folder of the files, to be graded now")
    calibrate.add_argument("--output", type=Path, required=True, help="the calibration, a json file")
    calibrate.set_defaults(run=run_calibrate)

    agree = verbs.add_parser("agree", help="how often a judge says what people said about two clips")
    agree.add_argument("pairs", type=Path, metavar="PAIRS.JSONL", help="what people said")
    agree.set_defaults(run=run_agree)

    learn = verbs.add_parser("learn", help="let preferences improve what a judge goes by")
    learn.add_argument("pairs", type=Path, metavar="PAIRS.JSONL", help="about a hundred preferences")
    learn.add_argument("--rounds", type=int, default=10, help="revisions to try (default 10)")
    learn.add_argument("--output", type=Path, required=True, help="the library, a json file for --set library=FILE")
    learn.set_defaults(run=run_learn)

    serve = verbs.add_parser("serve", help="offer the panel and scorers over HTTP")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this computer only)")
    serve.add_argument("--port", type=int, default=8300, help="(default 8300)")
    serve.add_argument(
        "--public-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which others reach this computer; its own names and addresses are known",
    )
    serve.add_argument("--certificate", type=Path, help="PEM file, to serve https")
    serve.add_argument("--private-key", type=Path, help="its private key")
    serve.add_argument("--scorers", nargs="*", default=[], metavar="NAME", help="rewards to offer (default: all)")
    serve.set_defaults(run=run_serve)
    for verb in (agree, learn):
        verb.add_argument("--band", type=float, default=0.1, help="margin under which it cannot tell (default 0.1)")
    for verb in (score, check, calibrate, agree, learn, serve):
        verb.add_argument("--judge", type=Path, help="file of judge settings (default: the measured panel)")
        verb.add_argument(
            "--set",
            nargs="+",
            action="extend",
            default=[],
            metavar="a.b=c",
            dest="changes",
            help="judge settings, over those of the file",
        )
        verb.add_argument("--json", action="store_true", help="print one JSON object")


def run_score(options: argparse.Namespace) -> dict[str, Any]:
    """Grade files into a report."""
    _check_json(options.output)
    from flowportrait.data.prompts import find_videos
    from flowportrait.judges.build import grade_files, write_report

    paths = find_videos(options.videos)
    judge = _judge(options)
    report = grade_files(judge, paths)
    write_report(report, options.output)
    return {"report": str(options.output), **report["summary"]}


def run_check(options: argparse.Namespace) -> dict[str, Any]:
    """Examine a judge; what it did is kept where training looks."""
    from flowportrait.judges.sanity import save_certificate

    settings = _settings(options)
    certificate = (_examine_stills if options.stills else _examine_clips)(settings, options.videos)
    path = save_certificate(certificate, settings.kept_in / "checked")
    cases = {
        f"{result.aspect} / {result.damage}": " → ".join(f"{mean:.2f}" for mean in result.means)
        + f"  order {result.order:.0%}{'' if result.passed else '  FAILED'}"
        for result in certificate.results
    }
    verdict = "passed" if certificate.passed else f"failed: {certificate.failed()}; it is not trained on"
    told: dict[str, Any] = certificate.to_dict() if options.json else cases
    return {**told, "judge": f"{certificate.judge} ({certificate.kind})", "result": verdict, "certificate": str(path)}


def _examine_clips(settings: JudgeSettings, paths: list[Path]) -> Certificate:
    from flowportrait.data.prompts import find_videos
    from flowportrait.terminal import progress, waiting

    found = find_videos(paths)
    with waiting("loading the judge"):
        from flowportrait.judges.build import build_judge
        from flowportrait.judges.clips import JudgedClip
        from flowportrait.judges.sanity import CLIP_SANITY, examine

        judge = build_judge(settings)
    clips = [JudgedClip.from_video(path) for path in progress(found, len(found), "reading clips")]
    return examine(judge, clips, CLIP_SANITY)


def _examine_stills(settings: JudgeSettings, paths: list[Path]) -> Certificate:
    from flowportrait.terminal import waiting

    with waiting("loading the judge"):
        from flowportrait.judges.sanity import examine
        from flowportrait.portraitgen.judging import STILL_SANITY, build_still_judge, read_stills

        judge = build_still_judge(settings)
    return examine(judge, read_stills(paths), STILL_SANITY)


def run_calibrate(options: argparse.Namespace) -> dict[str, Any]:
    """Learn the map from a judge's scores to human ones."""
    if (options.scores is None) == (options.videos is None):
        raise BadInput("flowportrait judge calibrate needs either --scores with a report or --videos with a folder.")
    _check_json(options.output)
    require("report", "matplotlib")  # for the histograms, which are drawn after all grading
    from flowportrait.judges.build import grade_files, raw_scores, read_report
    from flowportrait.judges.calibration import compare_with_humans, draw_histograms, read_human_scores

    human = read_human_scores(options.human)
    if options.scores:
        report = read_report(options.scores)
    else:
        paths = [options.videos / person.file for person in human]
        report = grade_files(_judge(options), paths, [person.generator for person in human])
    calibration, agreement = compare_with_humans(raw_scores(report), human, report["judge"])
    calibration.save(options.output, agreement)
    picture = options.output.with_suffix(".png")
    draw_histograms(agreement, picture)
    return {"calibration": str(options.output), "histograms": str(picture), **agreement}


def run_agree(options: argparse.Namespace) -> dict[str, Any]:
    """A judge beside stated preferences."""
    from flowportrait.judges.learning import agreement, read_labelled_pairs
    from flowportrait.preferences.dataset import PreferenceDataset
    from flowportrait.terminal import waiting

    judge = _judge(options)
    with waiting("judging the clips of the pairs"):
        found = agreement(judge, read_labelled_pairs(PreferenceDataset.load(options.pairs)), options.band)[0]
    return {"judge": f"{judge.name} ({judge.kind})", **found.to_dict()}


def run_learn(options: argparse.Namespace) -> dict[str, Any]:
    """Revise a library as long as held-out preferences are better agreed with."""
    _check_json(options.output)
    from flowportrait.judges.build import build_backend, build_with_library
    from flowportrait.judges.learning import ExpertToggles, Proposer, RuleEditor, improve, read_labelled_pairs
    from flowportrait.judges.questions import ReplyCache
    from flowportrait.judges.rubric import Library
    from flowportrait.preferences.dataset import PreferenceDataset
    from flowportrait.terminal import waiting

    settings = _settings(options)
    stated = read_labelled_pairs(PreferenceDataset.load(options.pairs))
    start = Library.load(settings.library) if settings.library else None
    propose: Proposer
    if settings.by == "measured":
        from flowportrait.judges.measured import EXPERTS, Experts

        backend, start = None, start or Library(EXPERTS)
        propose = ExpertToggles(tuple(Experts.load().scales))
    else:
        backend = build_backend(settings)
        propose = RuleEditor(backend, ReplyCache(settings.kept_in / "answers"))
    with waiting(f"judging the clips of {len(stated)} pairs with up to {options.rounds} revisions"):
        learned = improve(
            lambda library: build_with_library(settings, library, backend),
            stated,
            propose,
            options.rounds,
            start,
            options.band,
        )
    report = learned.to_dict()
    learned.library.save(options.output, report)
    return {"library": str(options.output), "entries": dict(learned.library.entries), **report}


def run_serve(options: argparse.Namespace) -> dict[str, Any]:
    """Serve until stopped."""
    from flowportrait.terminal import say
    from flowportrait.web_server import LOOPBACK, address_of, bind, check_certificate, make_server, public_names

    key, local = os.environ.get(KEY_ENV), options.host in LOOPBACK
    if not local and not key:
        raise BadInput(f"--host {options.host} can be reached from outside: set a key in {KEY_ENV} first.")
    check_certificate(options.certificate, options.private_key)
    names = public_names(options.host, options.public_name)
    with bind(options.host, options.port) as listener:
        from flowportrait.judges.build import build_judge
        from flowportrait.judges.server import MODEL, create_app, servable_rewards

        app = create_app(build_judge(_settings(options)), servable_rewards(options.scorers), key, names)
        address = address_of(listener, "https" if options.certificate else "http")

        def ready() -> None:
            say(f"{MODEL} at {address}/v1, scorers at {address}/score/NAME (Ctrl-C ends it)")
            if not local and options.certificate is None:
                say("Clients send no key over an unencrypted network: give --certificate and --private-key, or let "
                    "them come through an SSH tunnel.")  # fmt: skip

        make_server(app, ready, options.certificate, options.private_key).run(sockets=[listener])
    return {}


def _judge(options: argparse.Namespace) -> Judge:
    """The judge of the options, ready."""
    from flowportrait.terminal import waiting

    with waiting("loading the judge"):
        from flowportrait.judges.build import build_judge

        return build_judge(_settings(options))


def _settings(options: argparse.Namespace) -> JudgeSettings:
    from flowportrait.config import load, override
    from flowportrait.judges.build import JudgeSettings

    settings = load(JudgeSettings, options.judge) if options.judge else JudgeSettings()
    return override(settings, options.changes)


def _check_json(path: Path) -> None:
    if path.suffix != ".json":
        raise BadInput(f"--output {path} must end in .json.")
    if not path.parent.is_dir():
        raise BadInput(f"Cannot write {path}: the folder {path.parent} does not exist; create it first.")

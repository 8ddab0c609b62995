"""``flowportrait judge``: grade videos, examine and calibrate a judge, or serve one."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro import conf

from flowportrait.commands.options import Flag, Inputs, Json, OptionalPath, Pairs, Repeated, Settings
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra
from flowportrait.files import check_parent_folder

if TYPE_CHECKING:
    from flowportrait.judges.build import JudgeSettings
    from flowportrait.judges.examination import Examination
    from flowportrait.judges.verdicts import Judge

KEY_ENV = "FLOWPORTRAIT_SERVE_KEY"


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """The choice and the settings of a judge."""

    configuration: ClassVar[str] = "flowportrait.judges.build:JudgeSettings"
    judge: OptionalPath = None
    """File of judge settings; by default those of the measured panel."""
    set: Settings = ()
    """Judge settings that replace those of the file; --help-settings lists them."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class JudgeScoreOptions(JudgeOptions):
    """Grade finished videos from 1 to 5."""

    videos: Inputs
    """Files or folders of mp4."""
    output: Path
    """The report, a JSON file."""


@dataclass(frozen=True, kw_only=True)
class JudgeCheckOptions(JudgeOptions):
    """Test whether a judge notices damage of known strength, and measure how far it repeats itself and what it costs.

    Only a judge that notices the damage can be a reward.
    """

    videos: Inputs
    """Real clips of people speaking."""
    pairs: OptionalPath = None
    """File of preference pairs, to measure the agreement with them as well."""
    rounds: int = 2
    """Number of times that the intact clips are judged for the repetition and the cost; 0 leaves both out."""
    stills: Flag = False
    """The files are portraits: test the judge of still pictures."""


@dataclass(frozen=True, kw_only=True)
class JudgeCalibrateOptions(JudgeOptions):
    """Compare a judge with human scores, and fit a map from its scores to theirs."""

    human: Path
    """CSV file of human scores: file, generator, lip_sync, expressiveness, motion."""
    output: Path
    """The calibration, a JSON file."""
    scores: OptionalPath = None
    """Report that judge score wrote."""
    videos: OptionalPath = None
    """Folder of the videos, which are then graded now."""


@dataclass(frozen=True, kw_only=True)
class JudgeAgreeOptions(JudgeOptions):
    """Measure how often a judge prefers the clip that people prefer."""

    pairs: Pairs
    """Files of preference pairs of people."""
    band: float = 0.1
    """Smallest difference of scores that counts as an opinion."""


@dataclass(frozen=True, kw_only=True)
class JudgeLearnOptions(JudgeOptions):
    """Improve the rubric of a judge with preferences of people."""

    pairs: Pairs
    """Files of preference pairs, about a hundred pairs."""
    output: Path
    """The library, a JSON file for --set library=FILE."""
    rounds: int = 10
    """Number of revisions to try."""
    band: float = 0.1
    """Smallest difference of scores that counts as an opinion."""


@dataclass(frozen=True, kw_only=True)
class JudgeServeOptions(JudgeOptions):
    """Serve a judge and rewards over HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on; by default this computer only."""
    port: int = 8300
    """Port to listen on."""
    public_name: Repeated = ()
    """Further name by which others reach this computer, besides its own names and addresses."""
    certificate: OptionalPath = None
    """PEM certificate, to serve https."""
    private_key: OptionalPath = None
    """PEM private key of --certificate."""
    scorers: Annotated[tuple[str, ...], conf.arg(metavar="NAME …")] = ()
    """Rewards to serve; by default all."""


def run_score(options: JudgeScoreOptions) -> dict[str, Any]:
    """Grade files into a report."""
    _check_json(options.output)
    from flowportrait.data.prompts import find_videos
    from flowportrait.judges.build import grade_files, write_judge_report

    paths = find_videos(options.videos)
    judge = _judge(options)
    report = grade_files(judge, paths)
    write_judge_report(report, options.output)
    return {"report": str(options.output), **report["summary"]}


def run_check(options: JudgeCheckOptions) -> dict[str, Any]:
    """Test a judge with damage of known strength, save the certificate that training requires, and measure the rest."""
    from flowportrait.judges.sanity import save_certificate

    if options.stills and options.pairs is not None:
        raise BadInput("--pairs are of clips and do not go with --stills: leave one of them out.")
    settings = _settings(options)
    found = (_examine_stills if options.stills else _examine_clips)(settings, options)
    certificate = found.certificate
    path = save_certificate(certificate, settings.storage_folder / "checked")
    verdict = "passed" if certificate.passed else f"failed: {certificate.failed()}; it is not trained on"
    lines: dict[str, Any] = found.to_dict() if options.json else found.to_lines("stills" if options.stills else "clips")
    return {**lines, "judge": f"{certificate.judge} ({certificate.kind})", "result": verdict, "certificate": str(path)}


def _examine_clips(settings: JudgeSettings, options: JudgeCheckOptions) -> Examination:
    from flowportrait.data.prompts import find_videos
    from flowportrait.preferences.dataset import PreferenceDataset
    from flowportrait.terminal import progress, waiting

    found = find_videos(options.videos)
    pairs = PreferenceDataset.load(options.pairs) if options.pairs else None
    with waiting("loading the judge"):
        from flowportrait.judges.build import build_judge
        from flowportrait.judges.clips import JudgedClip
        from flowportrait.judges.examination import examine_judge
        from flowportrait.judges.learning import measure_agreement, read_labelled_pairs
        from flowportrait.judges.sanity import CLIP_SANITY

        judge = build_judge(settings)
    clips = [JudgedClip.from_video(path) for path in progress(found, len(found), "reading clips")]
    examination = examine_judge(judge, clips, CLIP_SANITY, options.rounds)
    if pairs is None:
        return examination
    with waiting("judging the clips of the pairs"):
        return replace(examination, agreement=measure_agreement(judge, read_labelled_pairs(pairs))[0])


def _examine_stills(settings: JudgeSettings, options: JudgeCheckOptions) -> Examination:
    from flowportrait.terminal import waiting

    with waiting("loading the judge"):
        from flowportrait.judges.examination import examine_judge
        from flowportrait.portraitgen.judging import STILL_SANITY, build_still_judge, read_stills

        judge = build_still_judge(settings)
    return examine_judge(judge, read_stills(options.videos), STILL_SANITY, options.rounds)


def run_calibrate(options: JudgeCalibrateOptions) -> dict[str, Any]:
    """Learn the map from a judge's scores to human ones."""
    if (options.scores is None) == (options.videos is None):
        raise BadInput("flowportrait judge calibrate needs either --scores with a report or --videos with a folder.")
    _check_json(options.output)
    require_extra("report", "matplotlib")  # for the histograms, which are drawn after all grading
    from flowportrait.judges.build import grade_files, read_judge_report, scores_before_calibration
    from flowportrait.judges.calibration import compare_with_humans, draw_histograms, read_human_scores

    human = read_human_scores(options.human)
    if options.videos is None:
        assert options.scores is not None
        report = read_judge_report(options.scores)
    else:
        paths = [options.videos / person.file for person in human]
        report = grade_files(_judge(options), paths, [person.generator for person in human])
    calibration, agreement = compare_with_humans(scores_before_calibration(report), human, report["judge"])
    calibration.save(options.output, agreement)
    picture = options.output.with_suffix(".png")
    draw_histograms(agreement, picture)
    return {"calibration": str(options.output), "histograms": str(picture), **agreement}


def run_agree(options: JudgeAgreeOptions) -> dict[str, Any]:
    """Measure how far a judge agrees with preferences of people."""
    from flowportrait.judges.learning import measure_agreement, read_labelled_pairs
    from flowportrait.preferences.dataset import PreferenceDataset
    from flowportrait.terminal import waiting

    judge = _judge(options)
    with waiting("judging the clips of the pairs"):
        found = measure_agreement(judge, read_labelled_pairs(PreferenceDataset.load(options.pairs)), options.band)[0]
    return {"judge": f"{judge.name} ({judge.kind})", **found.to_dict()}


def run_learn(options: JudgeLearnOptions) -> dict[str, Any]:
    """Revise a library of rubrics and keep the revisions that raise the agreement with held-out preferences."""
    _check_json(options.output)
    from flowportrait.judges.build import build_judge_backend, build_judge_with_library
    from flowportrait.judges.learning import ExpertToggles, Proposer, RuleEditor, learn_library, read_labelled_pairs
    from flowportrait.judges.questions import ReplyCache
    from flowportrait.judges.rubric import RubricLibrary
    from flowportrait.preferences.dataset import PreferenceDataset
    from flowportrait.terminal import waiting

    settings = _settings(options)
    stated = read_labelled_pairs(PreferenceDataset.load(options.pairs))
    start = RubricLibrary.load(settings.library) if settings.library else None
    propose: Proposer
    if settings.by == "measured":
        from flowportrait.judges.measured_panel import EXPERTS, Experts

        backend, start = None, start or RubricLibrary(EXPERTS)
        propose = ExpertToggles(tuple(Experts.load().scales))
    else:
        backend = build_judge_backend(settings)
        propose = RuleEditor(backend, ReplyCache(settings.storage_folder / "answers"))
    with waiting(f"judging the clips of {len(stated)} pairs with up to {options.rounds} revisions"):
        learned = learn_library(
            lambda library: build_judge_with_library(settings, library, backend),
            stated,
            propose,
            options.rounds,
            start,
            options.band,
        )
    report = learned.to_dict()
    learned.library.save(options.output, report)
    return {"library": str(options.output), "entries": dict(learned.library.entries), **report}


def run_serve(options: JudgeServeOptions) -> dict[str, Any]:
    """Serve until stopped."""
    from flowportrait.extras import require_extra
    from flowportrait.terminal import log
    from flowportrait.web_server import (
        LOOPBACK,
        allowed_host_names,
        bind_listener,
        check_tls_certificate,
        listener_url,
        make_server,
    )

    require_extra("serve", "uvicorn")
    key, local = os.environ.get(KEY_ENV), options.host in LOOPBACK
    if not local and not key:
        raise BadInput(f"--host {options.host} can be reached from outside: set a key in {KEY_ENV} first.")
    check_tls_certificate(options.certificate, options.private_key)
    names = allowed_host_names(options.host, options.public_name)
    with bind_listener(options.host, options.port) as listener:
        from flowportrait.judges.build import build_judge
        from flowportrait.judges.server import SERVED_MODEL, judge_app, servable_rewards

        app = judge_app(build_judge(_settings(options)), servable_rewards(options.scorers), key, names)
        address = listener_url(listener, "https" if options.certificate else "http")

        def ready() -> None:
            log(f"{SERVED_MODEL} at {address}/v1, scorers at {address}/score/NAME (Ctrl-C ends it)")
            if not local and options.certificate is None:
                log("Clients send no key over an unencrypted network: give --certificate and --private-key, or let "
                    "them come through an SSH tunnel.")  # fmt: skip

        make_server(app, ready, options.certificate, options.private_key).run(sockets=[listener])
    return {}


def _judge(options: JudgeOptions) -> Judge:
    """Return the judge that the options describe."""
    from flowportrait.terminal import waiting

    with waiting("loading the judge"):
        from flowportrait.judges.build import build_judge

        return build_judge(_settings(options))


def _settings(options: JudgeOptions) -> JudgeSettings:
    from flowportrait.config import load, override
    from flowportrait.judges.build import JudgeSettings

    settings = load(JudgeSettings, options.judge) if options.judge else JudgeSettings()
    return override(settings, options.set)


def _check_json(path: Path) -> None:
    if path.suffix != ".json":
        raise BadInput(f"--output {path} must end in .json.")
    check_parent_folder(path)

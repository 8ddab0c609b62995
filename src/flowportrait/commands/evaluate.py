"""``flowportrait evaluate``: measure finished videos, or checkpoints on prompts, side by side.

evaluate             metrics of systems with their intervals, and a report
evaluate score       what the rewards of post-training say about finished videos of any generator
evaluate bench       the benchmark with a fixed protocol, and the comparison of two of its results
evaluate portraits   pictures of people for known prompts: their artefacts counted, and their scores
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowportrait.commands.options import (
    Flag,
    Inputs,
    Json,
    OptionalPair,
    OptionalPath,
    OptionalText,
    RayAddress,
    Repeated,
)
from flowportrait.data.prompts import find_videos
from flowportrait.errors import BadInput
from flowportrait.extras import require_extra
from flowportrait.files import check_output_folder
from flowportrait.rewards.random import CHANCE
from flowportrait.terminal import log, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from flowportrait.evaluation.api import RewardScores

MOST_REMARKS = 5
"""Remarks that are printed; the report has all."""
MEANINGS = {
    "sync": ("lips fit this moment of the speech better than the seconds around it", "−2 … 2, 0 is chance"),
    "silent_lip": ("the mouth is shut in pauses: minus the gap in eye distances", "−2 … 0"),
    "expressiveness": ("lips, brows, lids and head move as much as real people's", "… 0, 0 as real people"),
    "eyes": ("blinks and glances are as many and as wide as real people's", "… 0, 0 as real people"),
    "head": ("the head moves as much as real people's and stays in its place", "… 0, 0 as real people"),
    "smoothness": ("no tremor above 6 Hz in the face", "… 0, −0.7 as real people"),
    "temporal": ("pictures follow from each other without flicker", "… 0, −0.7 as real footage"),
    "perceptual": ("frames are as alike as those of real footage", "… 0, 0 as real footage"),
    "identity": ("the face is that of the portrait: cosine of face features", "−1 … 1"),
    "sharpness": ("mouth and eyes have the detail of the portrait or of real footage", "… 0, −0.7 as real footage"),
    "realness": ("pixel statistics of the face are those of cameras", "… 0, −0.7 as real footage"),
    "true_lips": ("lips move as the speaker's did with the same words", "−1 … 1, 0 is a still face"),
    "true_brows": ("brows move as the speaker's did with the same words", "−1 … 1, 0 is a still face"),
    "true_head": ("the head moves as the speaker's did with the same words", "−1 … 1, 0 is a still face"),
    "clip_text": ("frames fit the text, by CLIP", "−1 … 1"),
    "clip_portrait": ("frames look like the portrait as a whole, by CLIP", "−1 … 1"),
    "pickscore": ("people would pick the frames for the text", "no limits"),
    "hpsv3": ("people would prefer the frames for the text", "no limits"),
    "videoalign": ("quality of pictures and motion, and how well the text fits", "no limits"),
    "videoalign_vq": ("quality of the pictures", "no limits"),
    "videoalign_mq": ("quality of the motion", "no limits"),
    "videoalign_ta": ("how well the text fits", "no limits"),
    CHANCE: ("nothing: a random number, the control of post-training", "0 … 1"),
}
"""What a reward measures, and its scale. Higher is better for every reward."""
MOST_COLUMNS = 4
"""Videos with a column of their own."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure finished videos, or checkpoints on prompts."""

    output: Path
    """Folder of the report and the videos."""
    videos: Inputs = ()
    """Files or folders of videos."""
    system: Repeated = ()
    """A system to compare: a folder of videos (any tool's) or a checkpoint; repeat for more."""
    real: OptionalPath = None
    """Folder of the real clips, named like the systems' videos."""
    against: OptionalText = None
    """System that the others are compared with. With --checkpoint RUN, 'chance' or the folder of a run trained with
    random rewards: the gain of RUN over its start beside the gain of that control."""
    checkpoint: OptionalText = None
    """Checkpoint that makes videos of the prompts, which are measured."""
    baseline: OptionalText = None
    """A second checkpoint to compare with."""
    prompts: OptionalPath = None
    """Folder of images and audio files."""
    seed: int = 0
    """Random seed of the videos of checkpoints."""
    groups: OptionalPath = None
    """CSV file with clip and labels (language, skin tone …); results are reported for each label. Intervals are over
    speakers if a column speaker names them."""
    networks: OptionalPath = None
    """Folder with the networks of the field: syncnet_v2.model, inception-2015-12-05.pt, i3d_torchscript.pt,
    arcface.onnx, topiq_iaa.pt, musiq.pt, topiq_face.pt."""
    title: str = "Talking portraits, measured"
    """Heading of the report."""
    cache: OptionalPath = None
    """Folder with cached measurements; by default the user's cache."""
    workers: int = 1
    """Number of processes that measure videos."""
    ray: RayAddress = None
    """Measure the videos on the machines of a Ray cluster: auto, HOST:PORT, or ray://HOST:PORT."""
    json: Json = False


@dataclass(frozen=True)
class ScoreOptions:
    """Score finished videos with the rewards of post-training."""

    videos: Inputs
    """Videos of any generator, or folders."""
    portrait: OptionalPath = None
    """Photo from which the videos were made; the reward identity needs it, and others get more precise."""
    rewards: OptionalText = None
    """Names, separated by commas; by default all that can be measured."""
    json: Json = False


@dataclass(frozen=True)
class BenchOptions:
    """Run the benchmark with negative controls and a ground-truth ceiling, or compare two results."""

    output: OptionalPath = None
    """Folder for videos, results.json and report.html."""
    system: Repeated = ()
    """A checkpoint, or a folder of another tool's videos of the same cases; by default sft and rl."""
    prompts: OptionalPath = None
    """Folder of portraits and speech; by default from installed packages."""
    real: OptionalPath = None
    """Folder of real clips with sound: ceiling and negative controls."""
    quick: Flag = False
    """Make few and small videos, to test whether everything works."""
    cache: OptionalPath = None
    """Folder with cached measurements; by default the user's cache."""
    workers: int = 1
    """Number of processes that measure videos."""
    compare: OptionalPair = None
    """Compare two results.json instead of running the benchmark."""
    json: Json = False


@dataclass(frozen=True)
class PortraitsOptions:
    """Count the artefacts of generated portraits and score them."""

    images: OptionalPath = None
    """Folder of pictures named after the prompts: pb1-000.png, pb1-001.png."""
    policy: OptionalText = None
    """Generator: folder of a portrait flow, or MODULE:FUNCTION from text and seed to RGB uint8 [H, W, 3]."""
    prompts: OptionalPath = None
    """File of other prompts: one JSON object with id and text per line."""
    output: OptionalPath = None
    """Folder for results.json and the generated pictures."""
    per_prompt: int = 1
    """Number of pictures per prompt."""
    judge: OptionalPath = None
    """Settings file of a judge on a server or of a local model; by default the measured judge."""
    list: Flag = False
    """Print the prompts, for a generator on another machine."""
    compare: OptionalPair = None
    """Compare two results.json instead of running the benchmark."""
    json: Json = False


def run(options: EvaluateOptions) -> dict[str, Any]:
    """Measure finished videos, or checkpoints that are rendered on prompts first."""
    if (options.videos and options.checkpoint) or not (options.videos or options.checkpoint or options.system):
        raise BadInput("flowportrait evaluate needs either videos or --checkpoint with --prompts, or --system.")
    if options.checkpoint and not options.prompts:
        raise BadInput("flowportrait evaluate --checkpoint needs --prompts with a folder of images and audio files.")
    if options.workers < 1:
        raise BadInput(f"--workers {options.workers} is not a number of processes: give 1 or more.")
    check_output_folder(options.output)
    require_extra("report", "matplotlib")
    from flowportrait.evaluation.api import VideoInput, evaluate
    from flowportrait.parallel import check_cluster
    from flowportrait.pipelines.prompt_videos import distinct_system_names

    check_cluster(options.ray)
    systems: dict[str, VideoInput] = {"videos": find_videos(options.videos)} if options.videos else {}
    systems |= named_systems(options.system, options.prompts)
    checkpoints = [name for name in (options.checkpoint, options.baseline) if name]
    baseline, control = options.against, None
    if options.checkpoint and options.against and options.against not in systems and not options.baseline:
        controlled = controlled_systems(options.checkpoint, options.against)
        (baseline, control), checkpoints = tuple(controlled)[:2], []
        systems |= controlled
    if checkpoints:
        systems |= dict(zip(distinct_system_names(checkpoints), checkpoints, strict=True))
    report = evaluate(
        systems,
        options.real,
        prompts=options.prompts,
        baseline=baseline or (distinct_system_names(checkpoints)[1] if options.baseline else None),
        control=control,
        output=options.output,
        seed=options.seed,
        groups=options.groups,
        title=options.title,
        cache=options.cache,
        workers=options.workers,
        networks=options.networks,
        ray=options.ray,
    )
    found = report.write(options.output)
    if options.json:
        return found
    print_table(report.table)
    if report.controlled:
        print_table(report.control_table)
    for remark in found["remarks"][:MOST_REMARKS]:
        log(f"Note: {remark}")
    for entry in found["excluded"]:
        log(f"Left out: {entry['system']}/{entry['file']}: {entry['reason']}")
    return {name: found[name] for name in ("report", "metrics.json", "metrics.csv")}


def controlled_systems(checkpoint: str, against: str) -> dict[str, str]:
    """Return what a run is compared with, by name: its starting point, its random-reward control, and the run itself.

    Args:
        checkpoint: folder of the run.
        against: ``chance`` for the control beside the run, or the folder of a control.

    Raises:
        BadInput: the folder is no run or starts from something that cannot be evaluated, or there is no such control;
            the message has the command that trains one.
    """
    from flowportrait.pipelines.prompt_videos import distinct_system_names
    from flowportrait.rl.control import has_random_rewards, is_run, require_control, run_start

    run = Path(checkpoint)
    if against == CHANCE:
        control = require_control(run)
    elif is_run(Path(against)) and is_run(run):
        control = Path(against)
        if not has_random_rewards(control):
            raise BadInput(f"{against} was not trained with random rewards: use --baseline {against} to compare runs.")
    else:
        raise BadInput(
            f"--against {against} is neither 'chance' nor the folder of a run, and not among the systems: with "
            "--checkpoint RUN give 'chance', or use --baseline for another checkpoint."
        )
    start = run_start(run)
    names = distinct_system_names([start, str(control), checkpoint])
    return dict(zip((names[0], CHANCE, names[2]), (start, str(control), checkpoint), strict=True))


def named_systems(entries: Sequence[str], prompts: Path | None) -> dict[str, Path | str]:
    """Return the source of each named system: a path to videos, or the name of a checkpoint.

    Raises:
        BadInput: not NAME=WHERE, a name that cannot be a folder or appears twice, nothing there, or a checkpoint
            without prompts.
    """
    from flowportrait.models.checkpoints import checkpoint_folder

    found: dict[str, Path | str] = {}
    for entry in entries:
        name, equals, where = entry.partition("=")
        if not equals or not name or not where or Path(name).name != name:
            raise BadInput(f"--system {entry} is not NAME=WHERE: write for example --system ours=videos/ours.")
        if name in found or name == "real":
            raise BadInput(f"--system {entry} uses the name '{name}' again: give each its own ('real' is --real).")
        try:
            checkpoint_folder(where)
        except BadInput:
            found[name] = Path(where)
            continue
        if prompts is None:
            raise BadInput(f"--system {entry} is a checkpoint: give --prompts with a folder of images and audio files.")
        found[name] = where
    return found


def run_score(options: ScoreOptions) -> dict[str, Any]:
    """Return every reward's score of every video, or the reason why there is none.

    Raises:
        BadInput: a video that cannot be read, or none of several.
    """
    from flowportrait.evaluation.api import score_videos

    names = options.rewards.split(",") if options.rewards else None
    found, left_out = score_videos(options.videos, names, options.portrait)
    for reason in left_out.values():
        log(f"Left out: {reason}")
    if not found:
        raise BadInput(f"None of {len(left_out)} videos can be scored.")
    if options.json:
        return found
    print_table(score_table(found))
    return {
        f"{Path(video).name}, {name}": f"not measured: {value}"
        for video, scores in found.items()
        for name, value in scores.items()
        if isinstance(value, str)
    }


def score_table(found: Mapping[str, RewardScores]) -> Table:
    """Return a row for each reward: scores (of many videos mean and worst), what it measures, and its scale."""
    from rich.markup import escape
    from rich.table import Table

    names = list(dict.fromkeys(name for scores in found.values() for name in scores))
    table = Table(box=None, pad_edge=False, title="Higher is better in every row", title_justify="left")
    table.add_column("reward")
    columns = [Path(video).name for video in found] if len(found) <= MOST_COLUMNS else ["mean", "worst", "of"]
    for column in columns:
        table.add_column(escape(column), justify="right", overflow="fold")
    table.add_column("scale")
    table.add_column("what it measures")
    for name in names:
        meaning, scale = MEANINGS.get(name, ("", ""))
        table.add_row(name, *map(escape, _score_cells(found, name)), scale, meaning)
    return table


def _score_cells(found: Mapping[str, RewardScores], name: str) -> list[str]:
    values = {video: value for video, scores in found.items() if isinstance(value := scores.get(name), float)}
    if len(found) <= MOST_COLUMNS:
        return [_format_score(values.get(video)) for video in found]
    if not values:
        return ["–", "–", "–"]
    worst = min(values, key=values.__getitem__)
    return [_format_score(statistics.fmean(values.values())), _format_score(values[worst]), Path(worst).name]


def _format_score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def run_bench(options: BenchOptions) -> dict[str, Any]:
    """Run the benchmark, or compare two results."""
    from flowportrait.evaluation.benchmark import compare_benchmark_results

    if options.compare:
        found = compare_benchmark_results(*options.compare)
        return found if options.json else _differing_rows(found)
    if options.output is None:
        raise BadInput("flowportrait evaluate bench needs --output FOLDER, or --compare with two results.json.")
    check_output_folder(options.output)
    require_extra("report", "matplotlib")
    from flowportrait.evaluation.benchmark import run_benchmark
    from flowportrait.evaluation.benchmark_systems import BenchmarkProtocol, benchmark_cases, quick_protocol

    checkpoints, others = _bench_systems(options.system or ["sft=sft", "rl=rl"])
    protocol = quick_protocol(BenchmarkProtocol()) if options.quick else BenchmarkProtocol()
    cases = benchmark_cases(protocol, options.prompts, find_videos([options.real]) if options.real else [])
    found = run_benchmark(checkpoints, others, cases, protocol, options.output, options.cache, options.workers)
    if options.json:
        return found
    return found | {_check_claim(check): _check_outcome(check) for check in found.pop("checks")}


def _check_claim(check: dict[str, Any]) -> str:
    return f"{check['winner']} > {check['loser']} by {check['metric']}"


def _check_outcome(check: dict[str, Any]) -> str:
    return f"{'yes' if check['holds'] else 'NO'} ({check['advantage']['mean']:+.3f})"


def _bench_systems(entries: Sequence[str]) -> tuple[dict[str, str], dict[str, list[Path]]]:
    """Return checkpoints and folders of videos by name."""
    from flowportrait.evaluation.benchmark_systems import FOOTAGE_SYSTEM, NEGATIVE_CONTROLS

    checkpoints: dict[str, str] = {}
    others: dict[str, list[Path]] = {}
    for name, where in named_systems(entries, prompts=Path(".")).items():
        if name in (FOOTAGE_SYSTEM, *NEGATIVE_CONTROLS):
            raise BadInput(f"--system {name}=… has the name of one of the benchmark's own rows: choose another.")
        if isinstance(where, str):
            checkpoints[name] = where
        else:
            others[name] = find_videos([where])
    return checkpoints, others


def _differing_rows(found: dict[str, Any]) -> dict[str, Any]:
    """Return the comparison with only those single rows that differ."""
    different_rows = [row for row in found.pop("rows") if row["verdict"] == "different"]
    lines = {f"{r['system']} {r['metric']}": f"{r['first']:.4f} and {r['second']:.4f}" for r in different_rows}
    return {key: value for key, value in found.items() if value != []} | lines


def run_portraits(options: PortraitsOptions) -> dict[str, Any]:
    """Judge, compare or list."""
    from flowportrait.portraitgen import taxonomy

    if options.compare:
        from flowportrait.portraitgen.benchmark import compare_bench_results

        rows = compare_bench_results(*options.compare)
        if options.json:
            return {"differences": rows}
        return {row["what"]: f"{row['difference']:+.3f}, p = {row['p']:.2g}" for row in rows}
    prompts = taxonomy.read_bench_prompts(options.prompts)
    if options.list:
        return {prompt.id: prompt.text for prompt in prompts}
    if (options.images is None) == (options.policy is None):
        raise BadInput(
            "flowportrait evaluate portraits needs either --images FOLDER or --policy, or --compare or --list."
        )
    if options.policy and options.output is None:
        raise BadInput("flowportrait evaluate portraits --policy needs --output FOLDER for what is drawn.")
    if options.per_prompt < 1:
        raise BadInput(f"--per-prompt {options.per_prompt} is not possible: it must be at least 1.")
    if options.output:
        check_output_folder(options.output)
    from flowportrait.judges.build import read_judge_settings
    from flowportrait.portraitgen import benchmark as bench
    from flowportrait.portraitgen.judging import build_still_judge

    judge = build_still_judge(read_judge_settings(options.judge))
    if options.images is not None:
        folder = options.images
    else:
        assert options.policy is not None
        assert options.output is not None
        from flowportrait.portraitgen.benchmark import load_picture_generator

        folder = options.output / "pictures"
        bench.generate_missing_pictures(load_picture_generator(options.policy), prompts, options.per_prompt, folder)
    named = bench.find_prompt_pictures(folder, prompts)
    found = bench.judge_pictures(named, judge, prompts, len(named))
    if options.output:
        bench.write_bench_result(found, options.output / "results.json")
    if options.json:
        return found
    from rich.console import Console

    for table in bench.result_tables(found):
        Console().print(table)
    free = found["free_of_artefacts"]
    return {"free of artefacts": f"{free['count']} of {free['of']}"} if free else {}

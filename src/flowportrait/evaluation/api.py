"""Evaluation in one call: measure the videos of several systems and compare them.

    systems ─► videos ─► measure_video, once per file ─► compare_systems ─► EvaluationReport

A system is a folder of videos of any generator, a checkpoint, or a callable that animates a portrait. ``evaluate``
compares systems with metrics; ``score_videos`` scores finished videos with the rewards of post-training.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console

from flowportrait.data.prompts import find_videos, read_prompts
from flowportrait.errors import BadInput
from flowportrait.evaluation.comparison import (
    JOINS_COLUMN,
    MIN_SET_CLIPS,
    SPEAKER_COLUMN,
    ClipLabels,
    SystemComparison,
    compare_systems,
    estimate_system_metrics,
    metrics_by_group,
    read_clip_labels,
)
from flowportrait.evaluation.control import ControlledGain, build_control_table, compare_with_control
from flowportrait.evaluation.figures import build_text_table
from flowportrait.evaluation.joins import read_joins
from flowportrait.evaluation.measure import (
    THEVAL_OMITTED_MEASURES,
    THEVAL_TOTAL_NAME,
    compare_with_real,
    perceptual_distance_name,
)
from flowportrait.evaluation.measure_files import Measurements, measure_videos
from flowportrait.evaluation.metrics import (
    REAL,
    SHIPPED_FOOTAGE_SYSTEM,
    MetricRow,
    shipped_estimates,
    shipped_reference,
)
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.evaluation.tracking import default_tracks_cache, track_file
from flowportrait.files import check_output_is_not_input, write_text
from flowportrait.media.optical_flow import best_installed_flow
from flowportrait.models.checkpoints import checkpoint_folder

if TYPE_CHECKING:
    from rich.table import Table

    from flowportrait.media.portrait import Portrait
    from flowportrait.rewards.interface import Reward


DEFAULT_TITLE = "Talking portraits, measured"
VideoInput: TypeAlias = str | Path | Sequence[str | Path]
"""A folder of videos, a file, or several of them."""
EvaluatedSystem: TypeAlias = VideoInput | Callable[[Path, Path], Any]
"""Videos, the name or folder of a checkpoint, or a callable such as an ``AnimatePipeline``. A callable gets the paths
of a portrait and a recording and returns frames ``[H, W, 3]`` uint8 at 25 fps, or an object with them as ``frames``."""
RewardScores: TypeAlias = dict[str, float | str]
"""Score of a video by reward, or the reason why there is none."""


@dataclass(frozen=True)
class EvaluationReport:
    """The results of an evaluation: print it, read it from Python, or write it to files.

    Attributes:
        comparison: metrics of every clip and system, intervals and differences.
        files: the measured video of each system and clip.
        title: heading of the HTML report.
        notes: sentences under the report's table.
        curves: logged quantities per iteration of post-training, drawn in the report.
        examples: one video per system that the report shows.
        controlled: gains of the systems beside those of the random-reward control, if there is one.
    """

    comparison: SystemComparison
    files: Mapping[str, Mapping[str, Path]]
    title: str = DEFAULT_TITLE
    notes: Sequence[str] = ()
    curves: Sequence[Mapping[str, float]] | None = None
    examples: Mapping[str, Path] = field(default_factory=dict)
    controlled: Sequence[ControlledGain] = ()
    _temporary: tempfile.TemporaryDirectory[str] | None = None

    @property
    def rows(self) -> dict[str, dict[str, MetricRow]]:
        """Metrics of each system and clip: ``rows["ours"]["clip1"]["ler"]``."""
        return self.comparison.rows

    @property
    def summary(self) -> dict[str, Any]:
        """Means, intervals, differences, gains, counts and remarks as plain values, without the single clips."""
        gains = [asdict(gain) | {"verdict": gain.verdict} for gain in self.controlled]
        return self.comparison.summary() | ({"against_chance": gains} if gains else {})

    @property
    def table(self) -> Table:
        """A table for the terminal with a row per metric and a column per system."""
        return build_text_table(self.summary)

    @property
    def control_table(self) -> Table:
        """A table for the terminal with every gain beside that of the random-reward control."""
        return build_control_table(self.controlled)

    def __str__(self) -> str:
        console = Console(width=140)
        with console.capture() as captured:
            console.print(self.table)
            if self.controlled:
                console.print(self.control_table)
        return captured.get()

    def to_json(self, path: str | Path) -> Path:
        """Write all results including those of every clip, and return the path."""
        write_text(Path(path), json.dumps(self.summary | {"clips": self.rows}, indent=1) + "\n")
        return Path(path)

    def to_csv(self, path: str | Path) -> Path:
        """Write one line of metrics per system and clip, and return the path."""
        return self.comparison.to_csv(Path(path))

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained page with tables, plots and example videos, and return its path."""
        from flowportrait.extras import require_extra

        require_extra("report", "matplotlib")
        from flowportrait.evaluation.report import write_html_report

        return write_html_report(
            Path(path),
            title=self.title,
            comparison=self.comparison,
            videos=dict(self.examples),
            curves=None if self.curves is None else [dict(row) for row in self.curves],
            notes=list(self.notes),
            files={system: dict(files) for system, files in self.files.items()},
            controlled=self.controlled,
        )

    def write(self, folder: str | Path) -> dict[str, Any]:
        """Write metrics.json, metrics.csv and report.html into a folder, and return the summary with their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        writers = {"metrics.json": self.to_json, "metrics.csv": self.to_csv}
        paths = {name: str(write(folder / name)) for name, write in writers.items()}
        return self.summary | {"report": str(self.to_html(folder / "report.html")), **paths}


def evaluate(
    systems: Mapping[str, EvaluatedSystem] | str | Path,
    real: VideoInput | None = None,
    *,
    prompts: str | Path | None = None,
    baseline: str | None = None,
    control: str | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    groups: str | Path | ClipLabels | None = None,
    extra_metrics: Mapping[str, Mapping[str, MetricRow]] | None = None,
    title: str = DEFAULT_TITLE,
    notes: Sequence[str] = (),
    curves: Sequence[Mapping[str, float]] | None = None,
    examples: Mapping[str, Path] | None = None,
    cache: str | Path | None = None,
    workers: int = 1,
    networks: str | Path | None = None,
    ray: str | None = None,
) -> EvaluationReport:
    """Measure the videos of one or several systems and compare them.

    For example:

        fp.evaluate({"ours": "out/", "theirs": "other/"}, real="clips/").to_html("report.html")

    Videos with the same file name in different systems are compared as pairs. A file that cannot be measured is left
    out and listed in the report. What was found in a file is cached under the hash of its content.

    Args:
        systems: the systems by name; or one folder of videos.
        real: real clips, named like the systems' videos: the ground truth.
        prompts: folder of portraits and recordings that checkpoints and callables animate.
        baseline: the system against which the others are tested.
        control: the system that was trained from the baseline with random rewards. The gains of the others are shown
            beside its gain, in ``EvaluationReport.controlled``.
        output: folder for the videos of checkpoints and callables (default: a temporary one).
        seed: random seed of the checkpoints' motion.
        groups: labels of clips (language, skin tone …) by which results are split: a CSV file, or
            ``labels[column][clip]``. With a column ``speaker``, or with speakers in the prompts, intervals and tests
            are over speakers. A column ``joins`` names the frames at which clips are joined.
        extra_metrics: additional metrics by system and clip, such as the cost of a clip.
        title: heading of the report.
        notes: sentences printed under the report's table.
        curves: one row per post-training iteration, drawn in the report.
        examples: videos that the report shows side by side (default: one measured clip of each system).
        cache: folder of cached tracks (default: the user's cache).
        workers: number of processes that measure videos.
        networks: folder with the networks of the field (SyncNet, Inception, I3D, ArcFace, those of THEval), named as in
            ``flowportrait.evaluation.field_networks``.
        ray: address of a Ray cluster whose machines measure the videos.

    Raises:
        BadInput: there is nothing to measure, baseline or control is unknown, a system has two videos of one name, a
            checkpoint has no prompts, or no file can be measured.
    """
    if not isinstance(systems, Mapping):
        systems = {"videos": systems}
    if real is not None and REAL in systems:
        raise BadInput(f"Real clips are given twice, as real=… and as the system '{REAL}': leave one out.")
    if workers < 1:
        raise BadInput(f"{workers} is not a number of processes: give 1 or more workers.")
    labels = (read_clip_labels(Path(groups)) if isinstance(groups, str | Path) else groups) or {}
    networks = None if networks is None else Path(networks)
    load_evaluation_networks(networks)  # a file that is missing is named before anything is drawn
    joins = {clip: read_joins(text, clip) for clip, text in labels.get(JOINS_COLUMN, {}).items()}
    temporary = None
    if output is None and any(_is_animated(system) for system in systems.values()):
        temporary = tempfile.TemporaryDirectory(prefix="flowportrait-")
        output = temporary.name
    files, extra = _system_videos(systems, prompts, output, seed)
    speakers = labels.get(SPEAKER_COLUMN) or _speakers_of_prompts(prompts)
    if real is not None:
        files[REAL] = _list_videos(real)
    for system, system_rows in (extra_metrics or {}).items():
        extra[system] = {clip: extra.get(system, {}).get(clip, {}) | row for clip, row in system_rows.items()}
    if control is not None and (control not in files or baseline in (None, control)):
        raise BadInput(f"The control '{control}' is compared by its gain: it must be a system, with another baseline.")
    _check_systems(files, baseline)
    cache = default_tracks_cache() if cache is None else Path(cache)
    measured = measure_videos(files, cache, workers, joins, networks, ray)
    if not any(measured.metrics.values()):
        raise BadInput(f"None of the videos can be measured. {measured.excluded[0]['reason']}")
    rows = _collect_rows(measured, files, cache, extra, joins)
    comparison = _add_system_metrics(compare_systems(rows, baseline, speakers=speakers), measured, speakers, networks)
    if labels:
        comparison = replace(comparison, groups=metrics_by_group(comparison.rows, labels, comparison.excluded))
    measured_files = {s: [path for path in paths if path.stem in measured.metrics[s]] for s, paths in files.items()}
    by_clip = {system: {path.stem: path for path in paths} for system, paths in files.items()}
    examples = examples or choose_example_videos(measured_files)
    controlled = compare_with_control(comparison.rows, baseline, control) if baseline and control else ()
    return EvaluationReport(comparison, by_clip, title, tuple(notes), curves, examples, controlled, temporary)


def score_videos(
    videos: Sequence[str | Path], rewards: Sequence[str | Reward] | None = None, portrait: str | Path | None = None
) -> tuple[dict[str, RewardScores], dict[str, str]]:
    """Score finished videos of any generator with the rewards of post-training.

    Args:
        videos: files or folders.
        rewards: names or rewards; by default all built-in ones that can be measured.
        portrait: the photo from which the videos were made, needed by ``identity``.

    Returns:
        Scores by video and reward, and the reason for each video that was left out.

    Raises:
        BadInput: a reward is unknown, or the only video cannot be read.
    """
    from flowportrait.media.image import read_image
    from flowportrait.media.portrait import Portrait
    from flowportrait.rewards.registry import WEIGHTED_REWARDS, build_reward
    from flowportrait.terminal import progress

    paths = find_videos([Path(video) for video in videos])
    built = [
        build_reward(reward.strip()) if isinstance(reward, str) else reward for reward in rewards or WEIGHTED_REWARDS
    ]
    person = Portrait.from_image(read_image(Path(portrait)), name=str(portrait)) if portrait else None
    scores: dict[str, RewardScores] = {}
    left_out: dict[str, str] = {}
    for path in progress(paths, len(paths), "scoring"):
        try:
            scores[str(path)] = _score_video(path, built, person, rewards is not None)
        except BadInput as error:
            if len(paths) == 1:
                raise
            left_out[str(path)] = str(error)
    return scores, left_out


def _score_video(path: Path, rewards: Sequence[Reward], person: Portrait | None, explain_missing: bool) -> RewardScores:
    """Return the scores of a video; with ``explain_missing`` also the reasons of rewards that lack an input."""
    import numpy as np

    from flowportrait.media.audio import read_audio
    from flowportrait.media.video import iter_frames
    from flowportrait.rewards.batch import RewardBatch
    from flowportrait.rewards.interface import score_batch

    people = None if person is None else [person]
    batch = RewardBatch.from_frames([np.stack(list(iter_frames(path)))], [read_audio(path)], portraits=people)
    scores: RewardScores = {}
    for reward in rewards:
        if explain_missing or reward.needs <= batch.has:
            result = score_batch(reward, batch)
            reason = result.reasons.get(0)
            scores[reward.name] = reason.detail if reason else round(float(result.value), 4)
    return scores


def _is_animated(system: EvaluatedSystem) -> bool:
    """Return whether a system must make its videos first: a callable or a checkpoint."""
    if callable(system):
        return True
    if not isinstance(system, str | Path):
        return False
    try:
        checkpoint_folder(system)
    except BadInput:
        return False
    return True


def _list_videos(videos: VideoInput) -> list[Path]:
    if isinstance(videos, str | Path):
        return find_videos([Path(videos)])
    return [file for path in map(Path, videos) for file in (find_videos([path]) if path.is_dir() else [path])]


def _system_videos(
    systems: Mapping[str, EvaluatedSystem], prompts: str | Path | None, output: str | Path | None, seed: int
) -> tuple[dict[str, list[Path]], dict[str, Mapping[str, MetricRow]]]:
    """Return the videos of every system, made first if needed, and the cost of every clip that was made."""
    from flowportrait.pipelines.prompt_videos import render_prompts, rendering_costs

    inputs = [path for system in systems.values() if not _is_animated(system) for path in _paths(system)]
    files: dict[str, list[Path]] = {}
    costs: dict[str, Mapping[str, MetricRow]] = {}
    for name, system in systems.items():
        if not _is_animated(system):
            files[name] = _list_videos(system)  # type: ignore[arg-type]
            continue
        if prompts is None:
            raise BadInput(f"System '{name}' must draw its videos: give prompts, a folder of images and audio files.")
        if Path(name).name != name:
            raise BadInput(f"System '{name}' cannot be the name of a folder: leave out slashes.")
        assert output is not None, "a temporary folder stands in for a missing one"
        target = Path(output) / name
        check_output_is_not_input(target, inputs)
        if callable(system):
            files[name] = _animate_prompts(system, Path(prompts), target)
        else:
            files[name] = render_prompts(str(system), Path(prompts), target, seed)
            costs[name] = rendering_costs(target)
    return files, costs


def _paths(system: EvaluatedSystem) -> list[str | Path]:
    if callable(system):
        return []
    return [system] if isinstance(system, str | Path) else list(system)


def _animate_prompts(animate: Callable[[Path, Path], Any], prompts: Path, folder: Path) -> list[Path]:
    """Make one video per prompt with a callable, named after the prompt."""
    from flowportrait.media.write_video import write_video

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for prompt in read_prompts(prompts):
        result = animate(prompt.image, prompt.audio)
        files.append(folder / f"{prompt.id}.mp4")
        write_video(files[-1], iter(getattr(result, "frames", result)), prompt.audio)
    return files


def _check_systems(systems: dict[str, list[Path]], baseline: str | None) -> None:
    if not any(systems.values()):
        raise BadInput("There is nothing to evaluate: give at least one video file.")
    if baseline is not None and baseline not in systems:
        raise BadInput(f"The baseline '{baseline}' is not among the systems {', '.join(systems)}.")
    for system, files in systems.items():
        names = [file.stem for file in files]
        duplicate = next((file.name for file in files if names.count(file.stem) > 1), None)
        if duplicate:
            raise BadInput(f"System '{system}' has two videos named {duplicate}: rename one, names tell clips apart.")


def _speakers_of_prompts(prompts: str | Path | None) -> dict[str, str] | None:
    """Return who speaks in each prompt, if all prompts say it."""
    if prompts is None:
        return None
    listed = read_prompts(Path(prompts))
    speakers = {prompt.id: prompt.speaker for prompt in listed if prompt.speaker}
    return speakers if len(speakers) == len(listed) else None


def _collect_rows(
    measured: Measurements,
    files: Mapping[str, list[Path]],
    cache: Path,
    extra: Mapping[str, Mapping[str, MetricRow]],
    joins: Mapping[str, Sequence[int]],
) -> dict[str, dict[str, MetricRow]]:
    """Return the metrics by system and clip, including those against the real clip of the same name."""
    paths = {system: {path.stem: path for path in system_files} for system, system_files in files.items()}
    real = measured.metrics.get(REAL, {})
    rows: dict[str, dict[str, MetricRow]] = {}
    for system, clips in measured.metrics.items():
        rows[system] = {}
        for clip, metrics in clips.items():
            row = metrics.row | extra.get(system, {}).get(clip, {})
            if system != REAL and clip in real:
                tracks, real_tracks = (track_file(paths[name][clip], cache) for name in (system, REAL))
                row |= compare_with_real(
                    tracks, real_tracks, metrics.features, real[clip].features, joins.get(clip, ())
                )
            rows[system][clip] = row
    return rows


def _add_system_metrics(
    comparison: SystemComparison,
    measured: Measurements,
    speakers: Mapping[str, str] | None,
    networks: Path | None,
) -> SystemComparison:
    """Add metrics of whole systems, the shipped ground truth, excluded files, remarks, and the networks used."""
    system_metrics = estimate_system_metrics(measured.metrics, speakers)
    estimates = {system: found | system_metrics.get(system, {}) for system, found in comparison.estimates.items()}
    remarks = [r for clips in measured.metrics.values() for found in clips.values() for r in found.remarks]
    remarks += _length_remarks(comparison.rows)
    if speakers:
        count = len({speakers[clip] for rows in comparison.rows.values() for clip in rows})
        remarks.append(f"Intervals and tests are over {count} speakers, each of whom counts the same.")
    if REAL not in comparison.rows and (shipped := shipped_estimates()):
        estimates[SHIPPED_FOOTAGE_SYSTEM] = shipped
        remarks.append(f"No real clips were given: '{SHIPPED_FOOTAGE_SYSTEM}' is {shipped_reference()['about']}.")
    if 0 < len(comparison.rows.get(REAL, {})) < MIN_SET_CLIPS:
        remarks.append(
            f"Fewer than {MIN_SET_CLIPS} real clips: ECS and THEval are compared with the shipped footage instead."
        )
    dlib = any(found.network == "dlib68" for clips in measured.metrics.values() for found in clips.values())
    used = {
        "face network of ECS": "dlib, 68 points" if dlib else "MediaPipe (the rewards' own: install dlib-bin)",
        "optical flow (TFI)": best_installed_flow().name.upper(),
        "perceptual distance": perceptual_distance_name(),
    }
    nets = load_evaluation_networks(networks)
    if not nets.field or len(nets.field.quality) < len(THEVAL_OMITTED_MEASURES):
        used["left out of THEval"] = f"{', '.join(THEVAL_OMITTED_MEASURES)}; the total is {THEVAL_TOTAL_NAME}"
    return replace(
        comparison,
        estimates=estimates,
        excluded=measured.excluded,
        remarks=remarks,
        networks=nets.names() | used,
    )


def _length_remarks(rows: dict[str, dict[str, MetricRow]]) -> list[str]:
    """Return remarks on clips with another length than the real clip of the same name."""
    remarks = []
    for system, clips in rows.items():
        for clip, row in clips.items():
            real = rows.get(REAL, {}).get(clip)
            if real and system != REAL and real["frames"] != row["frames"]:
                remarks.append(f"{system}/{clip}: {row['frames']} frames, the real clip has {real['frames']}")
    return remarks


def choose_example_videos(systems: dict[str, list[Path]]) -> dict[str, Path]:
    """Choose one video of each system, of the same clip if all systems have one."""
    stems = [{file.stem for file in files} for files in systems.values() if files]
    common = sorted(set.intersection(*stems)) if stems else []
    chosen = {}
    for system, files in systems.items():
        same = [file for file in files if common and file.stem == common[0]]
        if files:
            chosen[system] = (same or files)[0]
    return chosen

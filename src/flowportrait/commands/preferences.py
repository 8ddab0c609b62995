"""``flowportrait preferences``: preference pairs, from where they come and what is trained on them.

preferences inspect | make | from-judge         look at pairs, or make them: by damage, or from a judge's scores
preferences study make | power | serve | analyse        which system do people prefer?
preferences train | train-latent                a reward model from pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro import conf

from flowportrait.commands.options import (
    Files,
    Flag,
    Inputs,
    Json,
    OptionalPath,
    OptionalText,
    Repeated,
    Settings,
)
from flowportrait.errors import BadInput
from flowportrait.files import check_output_folder
from flowportrait.human_study.plan import MAX_PARTICIPANTS
from flowportrait.terminal import log

if TYPE_CHECKING:
    from flowportrait.preferences.dataset import PreferenceDataset


@dataclass(frozen=True)
class InspectOptions:
    """Count ties, agreement, contradictions and leaks between splits in files of preference pairs."""

    pairs: Inputs
    """Files of pairs."""
    output: OptionalPath = None
    """File to write, with the pairs that can be used for training."""
    json: Json = False


@dataclass(frozen=True)
class FromJudgeOptions:
    """Make pairs from a judge's scores of two systems on the same clips."""

    a: conf.Positional[Annotated[Path, conf.arg(metavar="A.JSON")]]
    """Report that judge score wrote for one system."""
    b: conf.Positional[Annotated[Path, conf.arg(metavar="B.JSON")]]
    """Report for the other system, on clips with the same names."""
    output: Annotated[Path, conf.arg(metavar="PAIRS.JSONL")]
    """File to write."""
    folders: Annotated[tuple[str, str], conf.arg(metavar="A B")] = ("a", "b")
    """Folders of the clips of both systems."""
    tie_band: float = 0.5
    """Largest difference of points that counts as a tie."""
    judge: str = "judge"
    """Name of the judge."""
    json: Json = False


@dataclass(frozen=True)
class MakeOptions:
    """Make pairs of an intact and a damaged video, with damage from coarse to subtle."""

    videos: Inputs
    """Files or folders of videos of people who speak."""
    output: Path
    """Folder of media and pairs.jsonl."""
    per_video: int = 3
    """Number of pairs per video."""
    damage: Annotated[tuple[str, ...], conf.arg(metavar="NAME …")] = ()
    """Corruptions that are used in turn; by default all."""
    split: str = ""
    """Name of the split of these pairs, for example train."""
    seed: int = 0
    """Random seed of the damage."""
    json: Json = False


@dataclass(frozen=True)
class StudyMakeOptions:
    """Make a study from pairs of videos with the same name."""

    folders: Inputs
    """One folder of videos per system."""
    output: Path
    """Folder of the study."""
    title: str = "Which video is better?"
    """Heading of the page."""
    checks: int = 2
    """Attention checks of each kind."""
    pairs_per_participant: int = 0
    """Pairs that one participant sees; 0 means all."""
    seed: OptionalText = None
    """Seed of the order and the sides; by default a random one."""
    about: OptionalPath = None
    """File of JSON lines about the videos: name, and any of prompt, speaker, portrait, split."""
    contact: OptionalText = None
    """Whom participants can ask: name, organisation and e-mail address, for the consent text."""
    json: Json = False


@dataclass(frozen=True)
class StudyPowerOptions:
    """Compute the smallest preferred share that a study tells from one half with 80 % power."""

    pairs: int = 40
    """Pairs that every participant sees."""
    participants: Annotated[tuple[int, ...], conf.arg(metavar="N …")] = (5, 10, 20, 40)
    """Numbers of participants."""
    ties: float = 0.2
    """Share of answers that prefer neither video."""
    icc_participant: float = 0.02
    """Correlation of two answers of one participant, beyond the common preference."""
    icc_pair: float = 0.1
    """Correlation of two answers about one pair."""
    json: Json = False


@dataclass(frozen=True)
class StudyServeOptions:
    """Serve the page of a study."""

    study: conf.Positional[Path]
    """Folder that preferences study make wrote."""
    host: str = "127.0.0.1"
    """Address to listen on; by default this computer only."""
    port: int = 8000
    """Port to listen on; 0 for a free one."""
    public_name: Repeated = ()
    """Further name by which others reach this computer, besides its own names and addresses."""
    participants: int = MAX_PARTICIPANTS
    """Largest number of participants."""
    preview: Flag = False
    """Show the page to look at it, also with an unfinished consent text; no answers are kept."""


@dataclass(frozen=True)
class StudyAnalyseOptions:
    """Report which system people prefer, with confidence intervals."""

    updates: ClassVar[tuple[str, ...]] = ("study",)
    study: conf.Positional[Path]
    """Folder that preferences study make wrote."""
    output: OptionalPath = None
    """Folder of analysis.json and analysis.html; by default the study's."""
    json: Json = False


@dataclass(frozen=True)
class TrainOptions:
    """Train the reward model of sync, expression and motion: Bradley-Terry with ties."""

    configuration: ClassVar[str] = "flowportrait.preferences.reward_model:MotionRewardTrainingConfig"
    output: Path
    """Folder to write."""
    corpus: OptionalPath = None
    """Prepared corpus from which pairs are made by damage."""
    pairs: Files = ()
    """Files of preference pairs of people or judges."""
    model: OptionalText = None
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL or Omni, by folder or hub name, instead of the small network."""
    set: Settings = ()
    """Settings, for example objective=plain; --help-settings lists them."""
    json: Json = False


@dataclass(frozen=True)
class TrainLatentOptions:
    """Train a reward model of noisy latents, for guidance and pruning."""

    configuration: ClassVar[str] = "flowportrait.preferences.latent_reward:LatentRewardTrainingConfig"
    corpus: Path
    """Prepared corpus from which pairs are made by damage."""
    output: Path
    """Folder to write."""
    checkpoint: str = "sft"
    """Generator of which the latents and audio features are scored."""
    set: Settings = ()
    """Settings, for example steps=1000; --help-settings lists them."""
    json: Json = False


def run_inspect(options: InspectOptions) -> dict[str, Any]:
    """Report what the files contain, and which pairs can be used for training."""
    from flowportrait.preferences.dataset import PreferenceDataset
    from flowportrait.preferences.inspection import inspect_pairs

    inspection = inspect_pairs(PreferenceDataset.load(*options.pairs))
    if options.output:
        inspection.usable.save(options.output)
    result = {
        **inspection.counts,
        "kept": len(inspection.usable),
        "excluded": inspection.excluded,
        "sentences": inspection.sentences,
    }
    if options.json:
        return result
    for sentence in inspection.sentences:
        log(sentence)
    for reason, count in inspection.excluded.items():
        log(f"Left out: {count} of {inspection.counts['pairs']}: {reason}.")
    lines = {key: value for key, value in result.items() if key not in ("aspects", "excluded", "sentences")}
    for aspect, row in inspection.counts["aspects"].items():
        alpha = "cannot be said" if row["alpha"] is None else f"{row['alpha']:.2f}"
        lines[aspect] = (
            f"{row['first']} first, {row['second']} second, {row['tie']} ties ({row['ties']:.0%}); alpha {alpha} "
            f"on {row['judged_twice']} judged more than once, {row['disputed']} disputed"
        )
    return lines


def run_judged(options: FromJudgeOptions) -> dict[str, Any]:
    """Make preference pairs from two tables of scores."""
    from flowportrait.preferences.build_pairs import build_pairs_from_scores, read_judge_scores
    from flowportrait.preferences.dataset import write_pairs

    tables = read_judge_scores(options.a), read_judge_scores(options.b)
    pairs, alone = build_pairs_from_scores(*tables, options.tie_band, options.judge, options.folders)
    if alone:
        log(f"{len(alone)} clips are in one table only and left out: {', '.join(alone[:5])}{' …' * (len(alone) > 5)}")
    write_pairs(options.output, pairs)
    return {"pairs": len(pairs), "left_out": len(alone), "output": str(options.output)}


def run_make(options: MakeOptions) -> dict[str, Any]:
    """Make preference pairs from videos, by damaging them."""
    check_output_folder(options.output)
    from flowportrait.corruption.catalogue import CORRUPTIONS
    from flowportrait.data.prompts import find_videos
    from flowportrait.preferences.build_pairs import build_pairs_from_damage
    from flowportrait.preferences.dataset import PAIRS_FILE, read_pairs

    videos = find_videos(options.videos)
    names = options.damage or list(CORRUPTIONS)
    left_out = build_pairs_from_damage(
        videos, options.output, options.per_video, names, options.split, options.seed, log
    )
    for name, why in left_out.items():
        log(f"Left out: {name}: {why}")
    path = options.output / PAIRS_FILE
    return {"pairs": len(read_pairs(path)), "left_out": len(left_out), "output": str(path)}


def run_study_make(options: StudyMakeOptions) -> dict[str, Any]:
    """Make a study from folders of videos."""
    check_output_folder(options.output)
    from flowportrait.human_study.consent import CONSENT_FILE
    from flowportrait.human_study.make import make_study

    done: list[str] = []
    study = make_study(
        options.folders,
        options.output,
        title=options.title,
        checks=options.checks,
        share=options.pairs_per_participant,
        seed=options.seed,
        about=options.about,
        contact=options.contact,
        report=done.append,
    )
    for name, why in (study.excluded or {}).items():
        log(f"Left out: {name}: {why}")
    screens = min(study.share or len(study.pairs), len(study.pairs)) + len(study.checks)
    if not options.json:
        return {
            "study": str(options.output),
            "systems": ", ".join(study.systems),
            "comparisons": f"{len(study.pairs)} of two systems on one of {len({p.clip for p in study.pairs})} clips",
            "attention checks": f"{len(study.checks)}: a video that is broken, or the same video on both sides",
            "screens per participant": f"{screens}, checks included",
            "left out": f"{len(study.excluded or {})} videos" if study.excluded else "nothing",
            "consent text": str(options.output / CONSENT_FILE),
            "next": f"flowportrait preferences study serve {options.output}" + " --preview" * (not options.contact),
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


def run_study_power(options: StudyPowerOptions) -> dict[str, Any]:
    """Compute what studies of several sizes can tell."""
    from dataclasses import asdict

    from flowportrait.human_study.power import study_power

    found = [
        study_power(options.pairs, number, options.ties, options.icc_participant, options.icc_pair)
        for number in options.participants
    ]
    if options.json:
        return {"sizes": [asdict(one) for one in found]}

    def text(share: float | None) -> str:
        return "nothing" if share is None else f"{share:.1%}"

    return {
        f"{one.participants} participants": f"a preference of {text(one.clustered_share)} "
        f"({text(one.independent_share)} if answers were independent); {one.decided} answers without ties are worth "
        f"{one.effective}, design effect {one.design_effect:.1f}"
        for one in found
    }


def run_study_serve(options: StudyServeOptions) -> dict[str, Any]:
    """Serve the page of a study until Ctrl-C."""
    from tempfile import TemporaryDirectory

    from flowportrait.human_study.server import study_app
    from flowportrait.web_server import LOOPBACK, allowed_host_names, bind_listener, listener_url, make_server

    if options.participants < 1:
        raise BadInput(f"--participants {options.participants} is not possible: somebody must be able to take part.")
    names = allowed_host_names(options.host, options.public_name)
    kept = "no answers are kept" if options.preview else "every answer is saved at once"
    with TemporaryDirectory() as scratch, bind_listener(options.host, options.port) as listener:
        app = study_app(options.study, names, options.participants, Path(scratch) if options.preview else None)

        def ready() -> None:
            log(f"The study is at {listener_url(listener)}/ (Ctrl-C ends it; {kept}).")
            if options.host not in LOOPBACK:
                known = ", ".join(dict.fromkeys(name for name in names if name not in LOOPBACK))
                log(f"Others on the network can reach it, by its address or as {known}. Requests are not logged.")

        # No access log: it would hold addresses.
        make_server(app, ready).run(sockets=[listener])
    return {}


def run_study_analyse(options: StudyAnalyseOptions) -> dict[str, Any]:
    """Analyse the answers of a study: print a table, and write the analysis and preference pairs."""
    output = options.output or options.study
    check_output_folder(output)
    from flowportrait.human_study.analysis import analyse_study
    from flowportrait.preferences.dataset import PAIRS_FILE

    analysis = analyse_study(options.study, output)
    if options.json:
        return analysis
    _print_preferences(analysis)
    _print_clustered(analysis)
    for why, count in analysis["left_out"].items():
        log(f"Left out: {count} participant{'s' * (count > 1)}: {why}.")
    return {
        "participants": f"{analysis['kept']} of {analysis['participants']}",
        "report": str(output / "analysis.html"),
        "pairs": str(options.study / PAIRS_FILE),
    }


def _print_preferences(analysis: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from flowportrait.human_study.analysis import ASPECT_TITLES, format_p_value

    table = Table(box=None, pad_edge=False)
    for name in ("", "A", "B", "won / same / lost", "A preferred", "p", "p by person", "p Holm", "alpha"):
        table.add_column(name, justify="left" if name in ("", "A", "B") else "right")
    for row in analysis["preferences"]:
        alpha = analysis["agreement"][row["aspect"]]
        share = "–" if row["preferred"] is None else f"{row['preferred']:.0%} ({row['low']:.0%}–{row['high']:.0%})"
        table.add_row(
            ASPECT_TITLES[row["aspect"]], row["system_a"], row["system_b"],
            f"{row['wins']} / {row['ties']} / {row['losses']}", share, format_p_value(row["p"]),
            format_p_value(row["p_person"]), format_p_value(row["p_holm"]), "–" if alpha is None else f"{alpha:.2f}",
        )  # fmt: skip
    strengths = Table(box=None, pad_edge=False)
    for name in ("Bradley–Terry with ties", *analysis["systems"]):
        strengths.add_column(name, justify="left" if name.startswith("Bradley") else "right")
    for aspect, estimate in analysis["strengths"].items():
        half = estimate["half_width_95"]
        cells = [f"{t:+.2f} ± {half[n]:.2f}" if half[n] is not None else "–" for n, t in estimate["theta"].items()]
        strengths.add_row(ASPECT_TITLES[aspect], *cells)
    console = Console(stderr=True, width=None if Console(stderr=True).is_terminal else 140)
    console.print(table, "\n", strengths)


def _print_clustered(analysis: dict[str, Any]) -> None:
    """Print the preferences with intervals over participants and pairs."""
    from rich.console import Console
    from rich.table import Table

    from flowportrait.human_study.analysis import ASPECT_TITLES, format_clustered_share, format_p_value

    table = Table(box=None, pad_edge=False)
    heads = ("over participants and pairs", "A", "B", "participants × pairs", "A preferred", "p", "design effect",
             "strength of A over B")  # fmt: skip
    for place, name in enumerate(heads):
        table.add_column(name, justify="left" if place < 3 else "right")
    for aspect, rows in analysis["clustered"].items():
        for row in rows:
            strength = f"{row['strength']:+.2f} ({row['strength_low']:+.2f} to {row['strength_high']:+.2f})"
            table.add_row(
                ASPECT_TITLES[aspect], row["system_a"], row["system_b"], f"{row['participants']} × {row['pairs']}",
                format_clustered_share(row), format_p_value(row["p"]), f"{row['design_effect']:.1f}", strength,
            )  # fmt: skip
    Console(stderr=True, width=None if Console(stderr=True).is_terminal else 140).print("\n", table)


def run_train(options: TrainOptions) -> dict[str, Any]:
    """Train a reward model on damaged pairs, on annotated pairs, or on both."""
    check_output_folder(options.output)
    if options.model:
        return _train_vlm(options)
    if options.corpus is None:
        raise BadInput("Give --corpus to make pairs from, or --model to train an LLM on --pairs alone.")
    from flowportrait.config import override, save
    from flowportrait.data.motion_dataset import load_motion_clips
    from flowportrait.preferences.clips import PreferenceBatch
    from flowportrait.preferences.reward_model import MotionRewardTrainingConfig, load_pair_batches, train_motion_reward

    config = override(MotionRewardTrainingConfig(), options.set)
    stated: list[PreferenceBatch] = []
    if options.pairs:
        dataset = _load_training_pairs(options.pairs)
        stated, unreadable = load_pair_batches(dataset)
        _log_unreadable(unreadable)
        if not stated:
            raise BadInput(f"No clip of {len(dataset)} pairs shows a face and is long enough: look at the videos.")
    model = train_motion_reward(config, load_motion_clips(options.corpus, ("reward",)), stated, _log_step)
    options.output.mkdir(parents=True, exist_ok=True)
    model.save(options.output / "model.safetensors")
    save(config, options.output / "plan.json")
    return {"model": str(options.output / "model.safetensors"), "stated_pairs": len(stated)}


def run_train_latent(options: TrainLatentOptions) -> dict[str, Any]:
    """Train a latent reward on damaged pairs with a generator's audio condition."""
    check_output_folder(options.output)
    from flowportrait.config import override, save
    from flowportrait.data.motion_dataset import load_motion_clips
    from flowportrait.models.arflow import load_generator
    from flowportrait.preferences.latent_reward import LatentRewardTrainingConfig, train_latent_reward
    from flowportrait.preferences.synthetic_pairs import add_audio_conditions, generate_clips

    config = override(LatentRewardTrainingConfig(), options.set)
    generator = load_generator(options.checkpoint)
    real = add_audio_conditions(generator, load_motion_clips(options.corpus, ("reward",)), config.voices, config.seed)
    model = train_latent_reward(config, generator, real + generate_clips(generator, real, config.seed), _log_step)
    model.save_pretrained(options.output)
    save(config, options.output / "plan.json")
    return {"model": str(options.output), "checkpoint": str(options.checkpoint)}


def _train_vlm(options: TrainOptions) -> dict[str, Any]:
    from flowportrait.config import override, save
    from flowportrait.preferences.vlm_reward import VlmReward, VlmTrainingConfig, train_vlm_reward

    if not options.pairs:
        raise BadInput("--model learns from finished videos: give --pairs.")
    config = override(VlmTrainingConfig(), [*options.set, f"settings.model={options.model}"])
    dataset = _load_training_pairs(options.pairs)
    reward = VlmReward.from_name(config.settings)
    _log_unreadable(train_vlm_reward(config, reward, dataset, _log_step))
    reward.save(options.output)
    save(config, options.output / "plan.json")
    return {"model": str(options.output), "stated_pairs": len(dataset)}


def _load_training_pairs(paths: Sequence[Path]) -> PreferenceDataset:
    """Return the pairs to learn from, and log what is left out."""
    from flowportrait.preferences.dataset import DIMENSIONS, PreferenceDataset
    from flowportrait.preferences.inspection import TRAIN_SPLIT, select_training_pairs

    dataset = select_training_pairs(PreferenceDataset.load(*paths), lambda found: DIMENSIONS, explain=True)
    if not dataset:
        raise BadInput(f"None of the pairs is of the split '{TRAIN_SPLIT}': there is nothing to learn from.")
    return dataset


def _log_unreadable(unreadable: dict[str, str]) -> None:
    for name, why in unreadable.items():
        log(f"Left out: {name}: {why}")


def _log_step(step: int, loss: float, left: float) -> None:
    log(f"step {step}: loss {loss:.3f}, {left:.0f} s left")

"""How much better samples of one prompt can be, and what of it is left when another expert looks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.drawing import named_checkpoints
from benchmarks.material import use_one_thread
from benchmarks.record import Record
from benchmarks.room_samples import (
    RoomDrawing,
    RoomPrompt,
    RoomSamples,
    cached_codecs,
    expert_fingerprint,
    finished_sample,
    keep_scores,
    load_expert,
    needs_pictures,
    real_sample,
    room_prompts,
    score_by_expert,
    score_by_reward,
)
from flowportrait.commands.options import Flag, OptionalPath
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import Estimate, bootstrap_mean
from flowportrait.evaluation.sync_instruments import SyncInstrument
from flowportrait.files import write_text
from flowportrait.pipelines.animator import Animator
from flowportrait.rewards.interface import Reward
from flowportrait.rewards.registry import REWARDS, build_reward
from flowportrait.terminal import log

RANDOM, REAL, MEAN = "random", "real motion redrawn", "mean of the samples"
RoomPart = Literal["room", "agreement", "check"]
Scores = dict[str, dict[str, np.ndarray]]
"""Scores ``[N]`` by scorer and prompt."""


@dataclass(frozen=True, kw_only=True)
class RoomOptions:
    """Measure what choosing the best of n samples brings under an expert that did not choose.

    room: n samples of each prompt (speech of an unseen speaker and a portrait); the best by each expert, by the
    reward's expert and by chance (which must gain 0), as scored by each expert. Chosen and scored by the same expert is
    the ceiling, and flatters itself; what another expert leaves of it is real. The gain for every n is the exact mean
    over all subsets of n samples. agreement: the correlation of every reward with the experts over the samples of a
    prompt, beside that of the experts with each other (the ceiling) and with shuffled samples (0). check: quick drawing
    against finished files. Intervals are over speakers, each of whom counts the same. What is in OUTPUT is kept: the
    same command with more samples or speech per speaker continues.
    """

    data: Path
    """Footage with split.tsv and portraits/."""
    output: Path
    """Folder of samples and scores."""
    checkpoints: tuple[str, ...] = ("sft", "rl")
    """Each a name, a folder, or NAME=FOLDER."""
    experts: tuple[str, ...] = ("pixels-a", "pixels-b", "pixels")
    """Experts of the evaluation that choose and score: instruments by name, or NAME=FILE of weights."""
    choosers: tuple[str, ...] = ("sync", "preference")
    """Who else chooses and does not score: rewards by name, or NAME=FILE of a sync expert's weights."""
    rewards: tuple[str, ...] = tuple(REWARDS)
    """Rewards to compare with the experts: built-in names, entry points, or MODULE:NAME."""
    part: tuple[RoomPart, ...] = ("room", "agreement", "check")
    """What to measure."""
    samples: int = 64
    """Samples of each prompt, a multiple of eight."""
    per_speaker: int = 2
    """Most prompts of a speaker."""
    portraits: int = 6
    """Portraits that speak in turn."""
    frames: int = 60
    """Frames of speech at most."""
    size: int = 160
    """Side of the drawn frames in pixels."""
    retouch: Flag = False
    """Draw with the retouching network, which takes three times as long."""
    pictures: int = 8
    """Samples of each prompt for rewards that look at frames; 0 leaves these rewards out."""
    checked: int = 4
    """Prompts of which eight samples are also drawn to finished files."""
    figure: OptionalPath = None
    """SVG file of the curve of gain by n."""


@dataclass(frozen=True)
class Pool:
    """The samples of one checkpoint and who scores them."""

    name: str
    prompts: Sequence[RoomPrompt]
    drawing: RoomDrawing
    count: int

    def scored_by(self, expert: SyncInstrument) -> dict[str, np.ndarray]:
        """Return an expert's scores ``[N]`` by prompt."""

        def score(prompt: RoomPrompt) -> np.ndarray:
            return score_by_expert(expert, self.drawing.read(prompt, self.count), prompt.audio)

        return keep_scores(self.folder, expert.name, expert_fingerprint(expert), self.prompts, self.count, score)

    def scored_by_reward(self, reward: Reward, count: int) -> dict[str, np.ndarray]:
        """Return a reward's scores of the first ``count`` samples by prompt."""

        def score(prompt: RoomPrompt) -> np.ndarray:
            codec = self.drawing.people[prompt.portrait] if needs_pictures(reward) else None
            return score_by_reward(reward, self.drawing.read(prompt, count), prompt, codec)

        return keep_scores(self.folder, f"reward {reward.name}", str(count), self.prompts, count, score)

    def scored_by_word(self, word: str) -> dict[str, np.ndarray]:
        """Return the scores of a reward by name, or of the expert that NAME=FILE names."""
        return (
            self.scored_by(load_expert(word)) if "=" in word else self.scored_by_reward(build_reward(word), self.count)
        )

    @property
    def folder(self) -> Path:
        """Where scores are kept."""
        return self.drawing.folder / "scores"


def room(options: RoomOptions, record: Record) -> None:
    """Draw and score what is missing, and add the gains of choosing and the agreement of rewards with experts."""
    use_one_thread()
    if options.samples < 8 or options.samples % 8:
        raise BadInput(f"--samples {options.samples} is not possible: give a multiple of eight.")
    experts = [load_expert(word) for word in options.experts]
    prompts = room_prompts(options.data, options.per_speaker, options.portraits, options.frames)
    people = cached_codecs(options.data, options.portraits, options.size, options.retouch)
    speakers = len({prompt.speaker for prompt in prompts})
    record.note(f"{len(prompts)} prompts of {speakers} speakers, {options.samples} samples of each.")
    curves = {}
    for name, checkpoint in named_checkpoints(options.checkpoints).items():
        drawing = RoomDrawing(options.output / name, Animator.from_pretrained(checkpoint), people)
        drawing.complete(prompts, options.samples)
        pool = Pool(name, prompts, drawing, options.samples)
        scores = {expert.name: pool.scored_by(expert) for expert in experts}
        scores |= {word.partition("=")[0]: pool.scored_by_word(word) for word in options.choosers}
        if "room" in options.part:
            real = score_real_motion(pool, experts, options.output)
            curves[name] = add_room(record, pool, scores, [expert.name for expert in experts], real)
        if "agreement" in options.part:
            add_agreement(record, pool, scores, options)
        if "check" in options.part:
            add_check(record, pool, experts, options)
    if options.figure and curves:
        write_text(options.figure, draw_curves(curves))


# --- The room ---


def best_of_n(chooser: np.ndarray, scorer: np.ndarray, n: int) -> float:
    """Return what the best of n samples by ``chooser`` adds to the mean score of ``scorer``.

    It is the exact mean over all subsets of n of the N samples. Samples that the chooser scores the same share their
    weight.

    Args:
        chooser: scores ``[N]`` by which the best is chosen.
        scorer: scores ``[N]`` that it is measured with.
        n: size of the subsets, at most N.
    """
    total = len(chooser)
    order = np.argsort(chooser, kind="stable")
    weights = np.array([comb(rank, n - 1) for rank in range(total)], float) / comb(total, n)
    ranked, found = chooser[order], scorer[order].astype(float)
    _, group = np.unique(ranked, return_inverse=True)
    means = np.bincount(group, found) / np.bincount(group)
    return float((weights * means[group]).sum() - scorer.mean())


def sample_counts(most: int) -> list[int]:
    """Return 1, 2, 4, … up to ``most``, which is the last."""
    counts = [1]
    while 2 * counts[-1] <= most:
        counts.append(2 * counts[-1])
    return counts if counts[-1] == most else [*counts, most]


def random_scores(prompts: Sequence[RoomPrompt], count: int, purpose: str) -> dict[str, np.ndarray]:
    """Return random scores ``[count]`` by prompt, which depend on the prompt's name and the purpose alone."""
    found = {}
    for prompt in prompts:
        seed = int.from_bytes(hashlib.sha256(f"{purpose} {prompt.name}".encode()).digest()[:8], "little")
        found[prompt.name] = np.random.default_rng(seed).random(count)
    return found


def gains(
    chooser: Mapping[str, np.ndarray], scorer: Mapping[str, np.ndarray], prompts: Sequence[RoomPrompt], n: int
) -> tuple[np.ndarray, list[str]]:
    """Return the gain of choosing ``[P]`` in standard deviations of the scorer's scores, and the prompts' speakers.

    The standard deviation is that inside a prompt, its root mean square over prompts, so that experts of different
    scales can be compared.
    """
    rows, spreads, speakers = [], [], []
    for prompt in prompts:
        one, other = chooser[prompt.name], scorer[prompt.name]
        finite = np.isfinite(one) & np.isfinite(other)
        if finite.sum() < max(n, 3):
            continue
        rows.append(best_of_n(one[finite], other[finite], n))
        spreads.append(other[finite].var())
        speakers.append(prompt.speaker)
    return np.array(rows) / np.sqrt(np.mean(spreads)) if rows else np.zeros(0), speakers


def mean_over_speakers(values: np.ndarray, speakers: Sequence[str]) -> Estimate | None:
    """Return the mean over speakers, each the mean of their prompts, with its interval; None without values."""
    found: dict[str, list[float]] = {}
    for value, speaker in zip(values, speakers, strict=True):
        if np.isfinite(value):
            found.setdefault(speaker, []).append(float(value))
    return bootstrap_mean(np.array([np.mean(own) for own in found.values()])) if found else None


Curves = dict[tuple[str, str], list[tuple[int, Estimate]]]
"""Gain by n, by chooser and scorer."""


def add_room(
    record: Record, pool: Pool, scores: Scores, experts: Sequence[str], real: Mapping[str, Mapping[str, float]]
) -> Curves:
    """Add the gain of choosing by everyone under every expert, for every n, and how far real motion is."""
    curves: Curves = {}
    choosers: Scores = {**scores, RANDOM: random_scores(pool.prompts, pool.count, RANDOM)}
    for scorer in experts:
        for n in sample_counts(pool.count):
            for chooser, chosen in choosers.items():
                found = mean_over_speakers(*gains(chosen, scores[scorer], pool.prompts, n))
                if found is None:
                    continue
                curves.setdefault((chooser, scorer), []).append((n, found))
                if n > 1:
                    title = f"{pool.name}: gain under {scorer}, standard deviations of its samples"
                    record.add(f"best by {chooser}", f"of {n}", found, group=title)
        own = scores[scorer]
        speakers = [prompt.speaker for prompt in pool.prompts]
        means = np.array([np.nanmean(own[prompt.name]) for prompt in pool.prompts])
        spread = np.sqrt(np.nanmean([np.nanvar(own[prompt.name]) for prompt in pool.prompts]))
        truth = np.array([real.get(scorer, {}).get(prompt.name, np.nan) for prompt in pool.prompts])
        group = f"{pool.name}: LSE-C at 0"
        record.add(scorer, MEAN, mean_over_speakers(means, speakers), group=group)
        record.add(scorer, "spread inside a prompt", float(spread), group=group)
        record.add(scorer, REAL, mean_over_speakers(truth, speakers), group=group)
        distance = mean_over_speakers((truth - means) / spread, speakers)
        record.add(scorer, "real less mean, in spreads", distance, group=group)
    return curves


def score_real_motion(pool: Pool, experts: Sequence[SyncInstrument], output: Path) -> dict[str, dict[str, float]]:
    """Return the experts' scores of the speakers' own motion, redrawn, by expert and prompt."""
    samples: dict[str, RoomSamples | None] = {}

    def score(expert: SyncInstrument, prompt: RoomPrompt) -> np.ndarray:
        if prompt.name not in samples:
            samples[prompt.name] = real_sample(prompt, pool.drawing.people[prompt.portrait])
        found = samples[prompt.name]
        return np.array([np.nan]) if found is None else score_by_expert(expert, found, prompt.audio)

    kept = {
        expert.name: keep_scores(
            output / "real" / "scores", expert.name, expert_fingerprint(expert), pool.prompts, 1, partial(score, expert)
        )
        for expert in experts
    }
    return {name: {prompt: float(values[0]) for prompt, values in own.items()} for name, own in kept.items()}


# --- Agreement ---


def add_agreement(record: Record, pool: Pool, scores: Scores, options: RoomOptions) -> None:
    """Add the correlation of every reward with every expert inside prompts, the experts' own, and a shuffled one."""
    names = [load_expert(word).name for word in options.experts]
    group = f"{pool.name}: correlation inside a prompt"
    for name in names:
        for other in names:
            if name != other:
                record.add(f"expert {name}", other, correlation(scores[name], scores[other], pool.prompts), group=group)
    for name in options.rewards:
        found = scored_reward(pool, name, options, record)
        for other in names if found else ():
            record.add(name, other, correlation(found, scores[other], pool.prompts), group=group)
            if name == "sync":
                order = random_scores(pool.prompts, pool.count, "shuffled")
                shuffled = {
                    prompt: values[np.argsort(order[prompt][: len(values)])] for prompt, values in found.items()
                }
                record.add("sync, shuffled", other, correlation(shuffled, scores[other], pool.prompts), group=group)


def scored_reward(pool: Pool, name: str, options: RoomOptions, record: Record) -> dict[str, np.ndarray]:
    """Return a reward's scores by prompt; nothing, and a note, where finished samples lack what it needs."""
    try:
        reward = build_reward(name)
    except BadInput as error:
        record.note(f"{pool.name}: {name} was not measured: {error}")
        return {}
    count = options.pictures if needs_pictures(reward) else pool.count
    if "policy" in reward.needs:
        record.note(f"{pool.name}: {name} reads the generator's latents, which finished samples do not have.")
        return {}
    if not count:
        return {}
    try:
        return pool.scored_by_reward(reward, count)
    except BadInput as error:
        record.note(f"{pool.name}: {name} was not measured: {error}")
        return {}


def correlation(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], prompts: Sequence[RoomPrompt]
) -> Estimate | None:
    """Return the mean correlation of two scorers inside prompts, with its interval over speakers.

    A scorer that gives all samples of a prompt one score has a correlation of 0 there.
    """
    values, speakers = [], []
    for prompt in prompts:
        if prompt.name in one and prompt.name in other:
            first, second = one[prompt.name], other[prompt.name]
            count = min(len(first), len(second))
            first, second = first[:count], second[:count]
            finite = np.isfinite(first) & np.isfinite(second)
            if finite.sum() >= 3:
                values.append(_pearson(first[finite], second[finite]))
                speakers.append(prompt.speaker)
    return mean_over_speakers(np.array(values), speakers)


def _pearson(one: np.ndarray, other: np.ndarray) -> float:
    first, second = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / norm) if norm > 1e-12 else 0.0


# --- Quick drawing against finished files ---


def add_check(record: Record, pool: Pool, experts: Sequence[SyncInstrument], options: RoomOptions) -> None:
    """Add how well scores of quickly drawn mouths agree with those of finished files that the evaluation reads."""
    people = cached_codecs(options.data, options.portraits, 256, True)
    pixels = [expert for expert in experts if expert.reads == "mouth"]
    finished: dict[str, RoomSamples | None] = {}
    prompts = pool.prompts[: options.checked]

    def score(expert: SyncInstrument, prompt: RoomPrompt) -> np.ndarray:
        found = []
        for number, motion in enumerate(pool.drawing.read(prompt, 8).motion):
            key = f"{prompt.name}-{number}"
            if key not in finished:
                path = pool.drawing.folder / "finished" / f"{key}.mp4"
                finished[key] = finished_sample(path, prompt, motion, people[prompt.portrait])
            sample = finished[key]
            found.append(np.nan if sample is None else float(score_by_expert(expert, sample, prompt.audio)[0]))
        return np.array(found)

    for expert in pixels:
        fingerprint = f"finished-{expert_fingerprint(expert)}"
        full = keep_scores(pool.folder, expert.name, fingerprint, prompts, 8, partial(score, expert))
        quick = pool.scored_by(expert)
        group = f"{pool.name}: quick drawing against finished files, correlation inside a prompt"
        record.add(expert.name, "correlation", correlation(full, quick, prompts), group=group)
    log(f"{pool.name}: quick drawing was checked on {len(prompts)} prompts.")


# --- The figure ---


def draw_curves(curves: Mapping[str, Curves]) -> str:
    """Return the gain by n as SVG: a panel for each checkpoint and expert that scores, a line for each that chooses."""
    import matplotlib.pyplot as plt

    from flowportrait.evaluation.figures import PLOT_STYLE, to_svg

    scorers = list(dict.fromkeys(scorer for own in curves.values() for _, scorer in own))
    with plt.rc_context(PLOT_STYLE):
        figure, axes = plt.subplots(
            len(curves), len(scorers), figsize=(3.3 * len(scorers), 2.6 * len(curves)), squeeze=False, sharey=True
        )
        for row, (checkpoint, own) in zip(axes, curves.items(), strict=True):
            for axis, scorer in zip(row, scorers, strict=True):
                for (chooser, by), points in own.items():
                    if by != scorer:
                        continue
                    counts, means = [n for n, _ in points], [estimate.mean for _, estimate in points]
                    label = f"{chooser} (itself)" if chooser == scorer else chooser
                    (line,) = axis.plot(counts, means, "--" if chooser == scorer else "-", label=label, marker=".")
                    low = [mean if one.low is None else one.low for mean, (_, one) in zip(means, points, strict=True)]
                    high = [
                        mean if one.high is None else one.high for mean, (_, one) in zip(means, points, strict=True)
                    ]
                    axis.fill_between(counts, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
                axis.set_xscale("log", base=2)
                axis.set_xticks(counts, [str(n) for n in counts])
                axis.axhline(0, color="grey", linewidth=0.6)
                axis.set_title(f"{checkpoint}, scored by {scorer}", fontsize=8)
                axis.legend(title="best by", fontsize=6, title_fontsize=6)
            row[0].set_ylabel("gain, standard deviations")
        for axis in axes[-1]:
            axis.set_xlabel("samples to choose from")
        return to_svg(figure)

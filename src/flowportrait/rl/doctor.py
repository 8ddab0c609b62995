"""The diagnosis of post-training runs from their metrics.

Every rule checks for one known problem of flow post-training. It reports the measured numbers and what to do about
them. A healthy run has no findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowportrait.rewards.random import is_random_reward

MetricsRecord = Mapping[str, float]

RECENT_ITERATIONS = 10
"""Number of last iterations that the rules look at."""
SLOW_FACTOR, SLOW_ITERATIONS = 1.5, 3
"""A process is slow if it takes this many times as long as the median process, for so many consecutive iterations."""
TOLERANCE = 0.1
"""Relative decrease of the held-out evaluation that is tolerated."""
REAL_SYNC = 0.1
"""Approximate lip-sync score of real motion in the held-out evaluation. The tolerance is relative to at least this
much, since a start near zero has no scale of its own."""


MIN_GAIN = 0.2
"""Increase of a reward, in its spread inside groups, that counts as a gain."""
MIN_ITERATIONS = 15
"""Fewest scored iterations in which a reward's increase is told from its scatter."""
CLEAR_ERRORS = 3
"""Standard errors by which a reward must rise, since several rewards are examined after every iteration."""
SPEECH_AND_PORTRAIT = frozenset({"mel", "audio", "transcript", "portrait", "reference"})
"""Needs of rewards that read what the video should show: the speech, its text, the photo, or the real clip."""
HELD_OUT_DIRECTIONS = {"sync": 1, "expression": 1, "trembling": -1, "silent_lip": -1}
"""Held-out measures of which one direction is better: 1 for higher, −1 for lower."""


class RunFinding(NamedTuple):
    """A problem of a run: its kind, what was measured, and what to do about it."""

    kind: str
    seen: str
    advice: str


EARLIER_METRICS = {
    "kl/trains": "kl/has_gradient",
    "stale/weight": "importance_weight",
    "good": "optimality",
    "apart": "distance",
}
"""Names of metrics in version 0.1, and today's names."""


def current_metrics(record: MetricsRecord) -> dict[str, float]:
    """Return a line of ``metrics.jsonl`` with today's names, whichever version wrote it."""
    names = {key: key.replace("silent/", "degenerate/") for key in record if key.startswith("silent/")}
    return {(EARLIER_METRICS | names).get(key, key): value for key, value in record.items()}


Rule = Callable[[Sequence[MetricsRecord], Mapping[str, Any]], RunFinding | None]


def diagnose_run(
    records: Sequence[MetricsRecord],
    recipe: Mapping[str, Any],
    needs: Mapping[str, Iterable[str]] | None = None,
    control: Sequence[MetricsRecord] | None = None,
) -> list[RunFinding]:
    """Return the problems found in a run, most severe first.

    Args:
        records: the lines of ``metrics.jsonl``.
        recipe: the settings as in ``recipe.json``.
        needs: what each reward reads, as ``needs`` in ``run.json``. Without it ``blind_gain`` is not examined.
        control: the lines of ``metrics.jsonl`` of the random-reward control. Without it ``no_better_than_chance`` is
            not examined.
    """
    records = [current_metrics(record) for record in records]
    trained = [record for record in records if "grad_norm" in record]
    results = (rule(trained, recipe) for rule in RULES) if trained else ()
    findings = [finding for finding in results if finding]
    about_gain = (
        reward_hacking(records, recipe),
        blind_gain(records, needs or {}),
        no_better_than_chance(records, [current_metrics(record) for record in control or ()]),
    )
    return findings + [finding for finding in about_gain if finding]


def ratio_mismatch(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report likelihood ratios that differ from 1 before the first update of an iteration.

    There they are 1 by construction, unless replay and rollout use different networks.
    """
    worst = max((record.get("ratio/first_error", 0.0) for record in records[-RECENT_ITERATIONS:]), default=0.0)
    if worst <= 1e-6:
        return None
    return RunFinding(
        "ratio off",
        f"the ratio is off 1 by up to {worst:.2g} before an iteration's first update",
        "replay and rollout are not one function of the weights: look for live dropout, batch statistics or a "
        "condition that is computed anew.",
    )


def replay_mismatch(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report replayed noise that differs from the noise drawn in the rollout."""
    bound = 0.05 if recipe.get("autocast") == "bf16" else 1e-2
    worst = max((record.get("noise_gap", 0.0) for record in records[-RECENT_ITERATIONS:]), default=0.0)
    if worst <= bound:
        return None
    return RunFinding(
        "replay off",
        f"replayed noise differs from the drawn noise by {worst:.2g} (bound {bound})",
        "the replay sees another condition, chunk or network state than the rollout did.",
    )


def kl_without_gradient(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report a KL term that has a weight but no gradient."""
    if not recipe.get("objective", {}).get("kl_weight") or not any("kl/has_gradient" in record for record in records):
        return None
    if any(record.get("kl/has_gradient") for record in records[-RECENT_ITERATIONS:]):
        return None
    return RunFinding(
        "KL without gradient",
        f"the KL term has weight {recipe['objective']['kl_weight']} and is {records[-1].get('kl', 0):.3g}, but no "
        "gradient",
        "the live velocity reaches it detached; it restrains nothing.",
    )


def starved_reward(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report a reward that has a weight but hardly contributes to the advantage."""
    recent = records[-RECENT_ITERATIONS:]
    names = [key.removeprefix("share/") for key in recent[-1] if key.startswith("share/")]
    for name in names:
        invalid = _mean(recent, f"invalid/{name}")
        if invalid > 0.5:
            return RunFinding(
                "starved reward",
                f"{name} could not be measured on {invalid:.0%} of the samples",
                "see why it fails (the reasons are in the log) or take its weight away.",
            )
        share = _mean(recent, f"share/{name}")
        if len(names) > 1 and share < 0.1 / len(names):
            return RunFinding(
                "starved reward",
                f"{name} makes {share:.1%} of the advantage; its spread inside groups is "
                f"{_mean(recent, f'spread/{name}'):.2g}",
                "siblings do not differ in it, or by less than its own measurement noise: raise eta, let it see "
                "longer clips, or take its weight away.",
            )
    return None


def dead_groups(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report groups in which all samples score the same, so that nothing is learned from them."""
    share = _mean(records[-RECENT_ITERATIONS:], "dead_groups")
    if share <= 0.3:
        return None
    return RunFinding(
        "dead groups",
        f"in {share:.0%} of the groups no sample is better than another",
        "raise eta or group_size, or choose prompts that the policy does not always solve or always fail.",
    )


def skipped_updates(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report skipped updates; ``rl.learner`` lists why updates are skipped."""
    share = _mean(records[-RECENT_ITERATIONS:], "skipped")
    if share <= 0:
        return None
    return RunFinding(
        "updates skipped",
        f"{share:.0%} of the last updates were left out: no reward answered, or samples or gradients were not numbers",
        "events.jsonl says which; for numbers, lower learning_rate or the reward's range, and try without autocast.",
    )


def slow_process(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report a process that all others wait for."""
    recent = records[-SLOW_ITERATIONS:]
    if len(recent) < SLOW_ITERATIONS or any(record.get("slowest/times", 0.0) <= SLOW_FACTOR for record in recent):
        return None
    process, times = int(recent[-1]["slowest/process"]), recent[-1]["slowest/times"]
    return RunFinding(
        "slow process",
        f"process {process} takes {times:.1f} times as long as the middle one, and the others wait for it",
        "see what else runs on its machine; its groups are as many as everybody's.",
    )


def velocity_inflation(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report growing velocities, which exaggerate motion (a known problem of NFT, AWM and DPO)."""
    sizes = [record["velocity"] for record in records if "velocity" in record]
    if len(sizes) < 2 or sizes[-1] <= 1.25 * sizes[0]:
        return None
    return RunFinding(
        "velocity inflation",
        f"velocities have grown to {sizes[-1] / sizes[0]:.2f} times those of the first iteration",
        "raise kl_weight, lower learning_rate, or stop earlier.",
    )


def off_policy(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report updates so large that most transitions lie outside the clip range."""
    outside = _mean(records[-RECENT_ITERATIONS:], "clip/positive") + _mean(
        records[-RECENT_ITERATIONS:], "clip/negative"
    )
    if outside <= 0.5:
        return None
    return RunFinding(
        "steps too large",
        f"{outside:.0%} of the transitions are outside the clip range",
        "lower learning_rate or updates.",
    )


def reward_hacking(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> RunFinding | None:
    """Report rewards that rise while the held-out evaluation falls."""
    evaluations = [record for record in records if "evaluation/sync" in record]
    scored = [record for record in records if any(key.startswith("reward/") for key in record)]
    if len(evaluations) < 3 or len(scored) < 2 * RECENT_ITERATIONS // 3:
        return None
    first, last = evaluations[0]["evaluation/sync"], _mean(evaluations[-2:], "evaluation/sync")
    gain = _gain(scored)
    if fell_beyond_tolerance(first, last) and gain > MIN_GAIN:
        return RunFinding(
            "hacking",
            f"the rewards rose by {gain:.1f} group spreads while the held-out evaluation fell from {first:.3f} to "
            f"{last:.3f}",
            "what is being learned is the reward, not the task: take the checkpoint that evaluation liked best, raise "
            "kl_weight or lower this reward's weight.",
        )
    return None


def blind_gain(records: Sequence[MetricsRecord], needs: Mapping[str, Iterable[str]]) -> RunFinding | None:
    """Report rewards that rise while none of those rises that read the speech or the portrait.

    A reward that reads neither can be raised by a video that ignores both, up to noise (UniRL issue 418: the mean
    reward rose from 0.13 to 0.41 while the reward that read the prompt fell).

    Args:
        records: the lines of ``metrics.jsonl``, with today's names.
        needs: what each reward reads.
    """
    scored = [record for record in records if any(key.startswith("reward/") for key in record)]
    if len(scored) < MIN_ITERATIONS:
        return None
    names = [name for name in needs if f"reward/{name}" in scored[-1] and not is_random_reward(name)]
    anchored = [name for name in names if SPEECH_AND_PORTRAIT.intersection(needs[name])]
    blind = [name for name in names if name not in anchored]
    gains = {name: _reward_gain(scored, name) for name in names}
    rising = [name for name in names if _rises(scored, name)]
    if not rising or any(name in anchored for name in rising):
        return None
    listed = ", ".join(f"{name} {gains[name]:+.1f}" for name in blind if name in rising)
    others = ", ".join(f"{name} {gains[name]:+.1f}" for name in anchored)
    return RunFinding(
        "the gain is blind",
        f"only rewards that read neither the speech nor the portrait rose, in group spreads: {listed}; "
        + (f"of those that read them none rose: {others}" if others else "no reward of this run reads them"),
        "a video that ignores both could earn this: watch the samples, and raise the weight of rewards that read the "
        "speech (sync, silent_lip) or the portrait (identity).",
    )


def no_better_than_chance(records: Sequence[MetricsRecord], control: Sequence[MetricsRecord]) -> RunFinding | None:
    """Report a held-out evaluation that improves no more than that of the same run with random rewards.

    For every measure with a better direction, the gain of the run (last two evaluations against the first) is compared
    with the gains that the control had at any of its evaluations. The finding means that no measure is above all of
    them.

    Args:
        records: the lines of ``metrics.jsonl``, with today's names.
        control: those of the random-reward control.
    """
    gains: dict[str, tuple[float, float]] = {}
    for name, direction in HELD_OUT_DIRECTIONS.items():
        own, random = ([direction * r[f"evaluation/{name}"] for r in run if f"evaluation/{name}" in r]
                       for run in (records, control))  # fmt: skip
        if min(len(own), len(random)) >= 3:
            gains[name] = (float(np.mean(own[-2:])) - own[0], max(value - random[0] for value in random[1:]))
    if not gains or any(gain > max(chance, 0.0) for gain, chance in gains.values()):
        return None
    compared = ", ".join(
        f"{name} {HELD_OUT_DIRECTIONS[name] * gain:+.3f} (control up to {HELD_OUT_DIRECTIONS[name] * chance:+.3f})"
        for name, (gain, chance) in gains.items()
    )
    return RunFinding(
        "no better than chance",
        f"on held-out prompts nothing improved beyond the random-reward control: {compared}",
        "what changed is the drift of the method: train longer, give rewards more weight than kl_weight, or compare "
        "on more prompts with 'flowportrait evaluate --checkpoint RUN --against chance'.",
    )


def _rises(records: Sequence[MetricsRecord], name: str) -> bool:
    """Return whether a reward rose by more than ``MIN_GAIN`` and clearly beyond the scatter of its iterations."""
    part = max(1, min(RECENT_ITERATIONS, len(records) // 3))
    values = [[r[f"reward/{name}"] for r in run if f"reward/{name}" in r] for run in (records[:part], records[-part:])]
    if min(map(len, values)) < 2 or _reward_gain(records, name) <= MIN_GAIN:
        return False
    error = np.sqrt(sum(np.var(side, ddof=1) / len(side) for side in values))
    return bool(np.mean(values[1]) - np.mean(values[0]) > CLEAR_ERRORS * error)


def fell_beyond_tolerance(first: float, last: float) -> bool:
    """Return whether an evaluation, which may be negative, fell by more than the tolerance.

    For a start well above zero this means below 90 % of it.
    """
    return first - last > TOLERANCE * max(abs(first), abs(last), REAL_SYNC)


RULES: tuple[Rule, ...] = (
    ratio_mismatch, replay_mismatch, kl_without_gradient, skipped_updates, dead_groups, starved_reward,
    velocity_inflation, off_policy, slow_process,
)  # fmt: skip
"""The rules in the order in which their findings are listed."""


def _mean(records: Sequence[MetricsRecord], key: str) -> float:
    """Return the mean over the records that have the key, or 0 if none has it."""
    values = [record[key] for record in records if key in record]
    return sum(values) / len(values) if values else 0.0


def _gain(records: Sequence[MetricsRecord]) -> float:
    """Return the mean increase of the rewards from the first to the last iterations, in spreads inside groups."""
    names = [key.removeprefix("reward/") for key in records[-1] if key.startswith("reward/")]
    gains = [_reward_gain(records, name) for name in names if _mean(records, f"spread/{name}") > 0]
    return sum(gains) / len(gains) if gains else 0.0


def _reward_gain(records: Sequence[MetricsRecord], name: str) -> float:
    """Return the increase of a reward from the first to the last iterations, in its spread inside groups."""
    part = max(1, min(RECENT_ITERATIONS, len(records) // 3))
    spread = _mean(records, f"spread/{name}")
    rise = _mean(records[-part:], f"reward/{name}") - _mean(records[:part], f"reward/{name}")
    return rise / spread if spread > 0 else 0.0

"""The diagnosis of post-training runs from their metrics.

Every rule checks for one known problem of flow post-training. It reports the measured numbers and what to do about
them. A healthy run has no findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

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


def diagnose_run(records: Sequence[MetricsRecord], recipe: Mapping[str, Any]) -> list[RunFinding]:
    """Return the problems found in a run, most severe first.

    Args:
        records: the lines of ``metrics.jsonl``.
        recipe: the settings as in ``recipe.json``.
    """
    records = [current_metrics(record) for record in records]
    trained = [record for record in records if "grad_norm" in record]
    results = (rule(trained, recipe) for rule in RULES) if trained else ()
    findings = [finding for finding in results if finding]
    hacking = reward_hacking(records, recipe)
    return findings + ([hacking] if hacking else [])


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
    if fell_beyond_tolerance(first, last) and gain > 0.2:
        return RunFinding(
            "hacking",
            f"the rewards rose by {gain:.1f} group spreads while the held-out evaluation fell from {first:.3f} to "
            f"{last:.3f}",
            "what is being learned is the reward, not the task: take the checkpoint that evaluation liked best, raise "
            "kl_weight or lower this reward's weight.",
        )
    return None


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
    part = max(1, min(RECENT_ITERATIONS, len(records) // 3))
    gains = []
    for key in (key for key in records[-1] if key.startswith("reward/")):
        spread = _mean(records, f"spread/{key.removeprefix('reward/')}")
        if spread > 0:
            gains.append((_mean(records[-part:], key) - _mean(records[:part], key)) / spread)
    return sum(gains) / len(gains) if gains else 0.0

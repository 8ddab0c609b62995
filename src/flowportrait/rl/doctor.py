"""What is wrong with a post-training run, in words.

Every rule looks at one hazard of flow post-training and says what it saw, with the numbers, and what to do. A healthy
run has no findings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, float]

RECENT = 10
"""Iterations over which something is judged."""
SLOW, SLOW_FOR = 1.5, 3
"""A process holds up the others if it takes this many times as long as the middle one, this many iterations on end."""


class Finding(NamedTuple):
    """kind to count by; what was seen; what to do about it."""

    kind: str
    seen: str
    advice: str


Rule = Callable[[Sequence[Record], Mapping[str, Any]], Finding | None]


def examine(records: Sequence[Record], recipe: Mapping[str, Any]) -> list[Finding]:
    """Findings in a run's records, gravest first; ``recipe`` as in ``recipe.json``."""
    trained = [record for record in records if "grad_norm" in record]
    found = (rule(trained, recipe) for rule in RULES) if trained else ()
    own = [finding for finding in found if finding]
    hacking = reward_hacking(records, recipe)
    return own + ([hacking] if hacking else [])


def ratio_mismatch(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """Before the first update of an iteration the ratio is 1 by construction; anything else is another network."""
    worst = max((record.get("ratio/first_error", 0.0) for record in records[-RECENT:]), default=0.0)
    if worst <= 1e-6:
        return None
    return Finding(
        "ratio off",
        f"the ratio is off 1 by up to {worst:.2g} before an iteration's first update",
        "replay and rollout are not one function of the weights: look for live dropout, batch statistics or a "
        "condition that is computed anew.",
    )


def replay_mismatch(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """Recomputed noise that drifts from the drawn noise."""
    bound = 0.05 if recipe.get("autocast") == "bf16" else 1e-2
    worst = max((record.get("noise_gap", 0.0) for record in records[-RECENT:]), default=0.0)
    if worst <= bound:
        return None
    return Finding(
        "replay off",
        f"replayed noise differs from the drawn noise by {worst:.2g} (bound {bound})",
        "the replay sees another condition, chunk or network state than the rollout did.",
    )


def kl_without_gradient(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """A KL term that is logged but pulls nothing."""
    if not recipe.get("objective", {}).get("kl_weight") or not any("kl/trains" in record for record in records):
        return None
    if any(record.get("kl/trains") for record in records[-RECENT:]):
        return None
    return Finding(
        "KL without gradient",
        f"the KL term has weight {recipe['objective']['kl_weight']} and is {records[-1].get('kl', 0):.3g}, but no "
        "gradient",
        "the live velocity reaches it detached; it restrains nothing.",
    )


def starved_reward(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """A reward with a weight but without a say."""
    recent = records[-RECENT:]
    names = [key.removeprefix("share/") for key in recent[-1] if key.startswith("share/")]
    for name in names:
        invalid = _mean(recent, f"invalid/{name}")
        if invalid > 0.5:
            return Finding(
                "starved reward",
                f"{name} could not be measured on {invalid:.0%} of the samples",
                "see why it fails (the reasons are in the log) or take its weight away.",
            )
        share = _mean(recent, f"share/{name}")
        if len(names) > 1 and share < 0.1 / len(names):
            return Finding(
                "starved reward",
                f"{name} makes {share:.1%} of the advantage; its spread inside groups is "
                f"{_mean(recent, f'spread/{name}'):.2g}",
                "siblings do not differ in it, or by less than its own measurement noise: raise eta, let it see "
                "longer clips, or take its weight away.",
            )
    return None


def dead_groups(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """Groups whose samples all score alike teach nothing."""
    share = _mean(records[-RECENT:], "dead_groups")
    if share <= 0.3:
        return None
    return Finding(
        "dead groups",
        f"in {share:.0%} of the groups no sample is better than another",
        "raise eta or group_size, or choose prompts that the policy does not always solve or always fail.",
    )


def skipped_updates(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """Updates that were not made: see ``hazards``."""
    share = _mean(records[-RECENT:], "skipped")
    if share <= 0:
        return None
    return Finding(
        "updates skipped",
        f"{share:.0%} of the last updates were left out: no reward answered, or samples or gradients were not numbers",
        "events.jsonl says which; for numbers, lower learning_rate or the reward's range, and try without autocast.",
    )


def slow_process(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """One process that all others wait for."""
    recent = records[-SLOW_FOR:]
    if len(recent) < SLOW_FOR or any(record.get("slowest/times", 0.0) <= SLOW for record in recent):
        return None
    process, times = int(recent[-1]["slowest/process"]), recent[-1]["slowest/times"]
    return Finding(
        "slow process",
        f"process {process} takes {times:.1f} times as long as the middle one, and the others wait for it",
        "see what else runs on its machine; its groups are as many as everybody's.",
    )


def velocity_inflation(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """Velocities that grow: over-saturated, exaggerated motion (known of NFT, AWM and DPO)."""
    known = [record["velocity"] for record in records if "velocity" in record]
    if len(known) < 2 or known[-1] <= 1.25 * known[0]:
        return None
    return Finding(
        "velocity inflation",
        f"velocities have grown to {known[-1] / known[0]:.2f} times those of the first iteration",
        "raise kl_weight, lower learning_rate, or stop earlier.",
    )


def off_policy(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """Updates so large that most of what was sampled lies outside the clip range."""
    outside = _mean(records[-RECENT:], "clip/positive") + _mean(records[-RECENT:], "clip/negative")
    if outside <= 0.5:
        return None
    return Finding(
        "steps too large",
        f"{outside:.0%} of the transitions are outside the clip range",
        "lower learning_rate or updates.",
    )


def reward_hacking(records: Sequence[Record], recipe: Mapping[str, Any]) -> Finding | None:
    """The rewards rise while the held-out evaluation falls."""
    evaluations = [record for record in records if "evaluation/sync" in record]
    scored = [record for record in records if any(key.startswith("reward/") for key in record)]
    if len(evaluations) < 3 or len(scored) < 2 * RECENT // 3:
        return None
    first, last = evaluations[0]["evaluation/sync"], _mean(evaluations[-2:], "evaluation/sync")
    gain = _gain(scored)
    if is_worse(first, last) and gain > 0.2:
        return Finding(
            "hacking",
            f"the rewards rose by {gain:.1f} group spreads while the held-out evaluation fell from {first:.3f} to "
            f"{last:.3f}",
            "what is being learned is the reward, not the task: take the checkpoint that evaluation liked best, raise "
            "kl_weight or lower this reward's weight.",
        )
    return None


TOLERANCE = 0.1
"""By how much the held-out evaluation may fall before it counts, as a share of its size."""
REAL_SYNC = 0.1
"""About what the held-out evaluation's sync is of real motion: the least size that the tolerance is a share of, since
a start near zero has no size of its own."""


def is_worse(first: float, last: float) -> bool:
    """Whether an evaluation of either sign fell by more than the tolerance; for a start well above zero, below 90 % of
    it."""
    return first - last > TOLERANCE * max(abs(first), abs(last), REAL_SYNC)


RULES: tuple[Rule, ...] = (
    ratio_mismatch, replay_mismatch, kl_without_gradient, skipped_updates, dead_groups, starved_reward,
    velocity_inflation, off_policy, slow_process,
)  # fmt: skip


def _mean(records: Sequence[Record], key: str) -> float:
    known = [record[key] for record in records if key in record]
    return sum(known) / len(known) if known else 0.0


def _gain(records: Sequence[Record]) -> float:
    """How much the rewards rose from the first to the last iterations, in their spreads inside groups, on average."""
    part = max(1, min(RECENT, len(records) // 3))
    gains = []
    for key in (key for key in records[-1] if key.startswith("reward/")):
        spread = _mean(records, f"spread/{key.removeprefix('reward/')}")
        if spread > 0:
            gains.append((_mean(records[-part:], key) - _mean(records[:part], key)) / spread)
    return sum(gains) / len(gains) if gains else 0.0

"""Which rewards a run has, and the weight of each.

    judge .5 (.7 of it lip sync, the rest expressiveness and smoothness alike) · perceptual .3 · temporal .2

The three groups and their weights are FlowPortrait's (2603.00159); more rewards are a weight away:
``--set rewards.identity=0.2``. Nothing is summed here: rewards are normalised one by one inside their group of samples
and combined by ``posttrain.credit``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.plugins import load_plugin
from flowportrait.reward.batch import RewardBatch
from flowportrait.reward.interface import Reward, RewardFunction, Score, as_reward
from flowportrait.reward.registry import BUILT_IN, REWARDS, RewardOptions, build, known
from flowportrait.reward.scoring import score

MEASURED = "measured"

AnyReward = str | Reward | type | RewardFunction
"""Whatever names a reward: a built-in name, an entry point, MODULE:NAME, a plain function, a reward, or its class."""


@dataclass(frozen=True)
class RewardWeights:
    judge: float = 0.5
    perceptual: float = 0.3
    temporal: float = 0.2
    judge_by: str = MEASURED
    """Who judges: ``measured`` (lip sync, expressiveness and smoothness), or a registered reward by its name."""
    sync_share: float = 0.7
    """Of the measured judge's weight: lip sync. The rest is halved between expressiveness and smoothness."""
    sync: float = 0.0
    expressiveness: float = 0.0
    smoothness: float = 0.0
    silent_lip: float = 0.0
    eyes: float = 0.0
    head: float = 0.0
    identity: float = 0.0
    sharpness: float = 0.0
    realness: float = 0.0
    self_confidence: float = 0.0
    other: dict[str, float] = field(default_factory=dict)
    """Weights of any other rewards, by name or as MODULE:NAME: ``rewards.other.NAME=WEIGHT``."""
    options: RewardOptions = field(default_factory=RewardOptions)

    def __post_init__(self) -> None:
        at_least(self, judge=0, **dict.fromkeys(BUILT_IN, 0))
        known([*self.other, *([] if self.judge_by == MEASURED else [self.judge_by])])

    def by_name(self) -> dict[str, float]:
        """The weight of every reward that has one."""
        weights = {part.name: getattr(self, part.name) for part in fields(self) if part.name in BUILT_IN} | self.other
        rest = (1 - self.sync_share) / 2
        shares = {"sync": self.sync_share, "expressiveness": rest, "smoothness": rest}
        for name, share in (shares if self.judge_by == MEASURED else {self.judge_by: 1.0}).items():
            weights[name] = weights.get(name, 0.0) + self.judge * share
        return {name: weight for name, weight in weights.items() if weight > 0}


@dataclass(frozen=True)
class Composite:
    """Rewards and the weight of each; a weight of zero leaves the reward out."""

    rewards: tuple[Reward, ...]
    weights: dict[str, float]

    @classmethod
    def default(cls, weights: RewardWeights | None = None) -> Self:
        """The composite described above, with the experts that ship."""
        weights = weights or RewardWeights()
        return cls.of(weights.by_name(), weights.options)

    @classmethod
    def of(cls, rewards: Mapping[Any, float] | Iterable[AnyReward], options: RewardOptions | None = None) -> Self:
        """Any rewards, with a weight for each: ``Composite.of({"sync": 0.6, my_reward: 0.4})``.

        Args:
            rewards: weights by reward (see ``AnyReward``), or rewards that weigh 1 each.
            options: settings of the rewards of this package.

        Raises:
            BadInput: a name that is no reward, one that cannot be loaded here, or two rewards of one name.
        """
        weights = rewards if isinstance(rewards, Mapping) else dict.fromkeys(rewards, 1.0)
        found = [(load_reward(reward, options), weight) for reward, weight in weights.items() if weight > 0]
        names = [reward.name for reward, _ in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise BadInput(f"Two rewards are called {twice!r}: give each a name of its own.")
        return cls(tuple(reward for reward, _ in found), {reward.name: weight for reward, weight in found})

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must have for all of them."""
        return frozenset().union(*(reward.needs for reward in self.rewards))

    def __call__(self, batch: RewardBatch) -> dict[str, Score]:
        """Every reward's scores, apart.

        Raises:
            BadInput: the batch lacks what a reward needs.
        """
        return {reward.name: score(reward, batch) for reward in self.rewards}


def load_reward(reward: AnyReward, options: RewardOptions | None = None) -> Reward:
    """A reward by whatever names it; one by name is called so.

    Raises:
        BadInput: no such reward, or what it is made of cannot be loaded.
    """
    if not isinstance(reward, str):
        return as_reward(reward)
    if reward not in REWARDS:
        return as_reward(load_plugin("rewards", reward, REWARDS), reward)
    found = build(reward, options)
    if found.name != reward:
        raise BadInput(f"The reward registered as {reward!r} calls itself {found.name!r}: give it one name.")
    return found

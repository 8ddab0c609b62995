"""Rewards by name, and the weighted set of rewards of a run.

Rewards by name: what ``--set rewards.…`` and a small dict choose from.

build("sync")                          a reward that comes with the package
build("quiet_motion")                  one that another package announces as an entry point ``flowportrait.rewards``
build("my_module:MyReward")            a class (made by ``load()``, or without arguments), an object, or a function
                                       ``batch -> values [B]``
register("mine", lambda options: Mine())          REWARDS["mine"] is now as good as any other

Which rewards a run has, and the weight of each.

    judge .5 (.7 of it lip sync, the rest expressiveness and smoothness alike) · perceptual .3 · temporal .2

The three groups and their weights are FlowPortrait's (2603.00159); more rewards are a weight away:
``--set rewards.identity=0.2``. Nothing is summed here: rewards are normalised one by one inside their group of samples
and combined by ``rl.credit``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.media.optical_flow import FlowName, build_flow
from flowportrait.plugins import is_reference, load_plugin, plugin_names
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.consistency import BackboneName, Perceptual, Sharpness, Temporal, backbone_named
from flowportrait.rewards.face import Identity, Realness
from flowportrait.rewards.interface import Reward, RewardFunction, Score, all_valid, as_reward, score
from flowportrait.rewards.motion import Crowd, Expressiveness, Eyes, Head, SilentLip, Smoothness, Tremor
from flowportrait.rewards.relative import SelfConfidence
from flowportrait.rewards.sync import LipSync


@dataclass(frozen=True)
class RewardOptions:
    backbone: BackboneName = "ssim"
    """What ``perceptual`` compares pictures with."""
    backbone_model: str | None = None
    """Folder or hub name of the model behind ``clip`` or ``dino``."""
    flow: FlowName = "dis"
    """What ``temporal`` follows motion with."""
    flow_weights: Path | None = None
    """RAFT's weights, if they are not to be fetched."""
    judge: Path | None = None
    """Settings of the judge behind ``panel``; the measured panel without them."""
    preference: Path | None = None
    """Folder that ``flowportrait preferences train`` wrote, for ``preference`` and its dimensions; by default
    what ships."""
    latent_preference: Path | None = None
    """Likewise for ``latent_preference``, by ``flowportrait preferences train-latent``."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Rewards that another machine scores, and its address: ``elsewhere.identity=http://gpu:8300``."""


Build = Callable[[RewardOptions], Reward]

BUILT_IN: dict[str, Build] = {
    "sync": lambda _: LipSync.load(),
    "silent_lip": lambda _: SilentLip.load(),
    "expressiveness": lambda _: Expressiveness.load(),
    "eyes": lambda _: Eyes.load(),
    "head": lambda _: Head.load(),
    "smoothness": lambda _: Smoothness.load(),
    "temporal": lambda options: Temporal.load(build_flow(options.flow, options.flow_weights)),
    "perceptual": lambda options: Perceptual.load(backbone_named(options.backbone, options.backbone_model)),
    "identity": lambda _: Identity.load(),
    "sharpness": lambda _: Sharpness.load(),
    "realness": lambda _: Realness.load(),
    "self_confidence": lambda _: SelfConfidence.load(),
}
"""Every reward that comes with the package."""


def _preference(name: str) -> Build:
    def build(options: RewardOptions) -> Reward:
        from flowportrait.preferences.rewards import load_latent_preference, load_preference_reward

        if name == "latent_preference":
            return load_latent_preference(options.latent_preference)
        return load_preference_reward(name, options.preference)

    return build


PREFERENCES = (
    "preference", "preference_sync", "preference_expression", "preference_motion", "latent_preference",
)  # fmt: skip
"""What was learned from pairs: all three dimensions, one of them, or all three from latents."""

PARTS: dict[str, Build] = {
    "steady_lips": lambda _: Smoothness.only("steady_lips", "lips"),
    "steady_eyes": lambda _: Smoothness.only("steady_eyes", "brows", "blink", "gaze"),
    "tremor_lips": lambda _: Tremor.of("tremor_lips", "lips"),
    "tremor_eyes": lambda _: Tremor.of("tremor_eyes", "brows", "blink", "gaze"),
    "crowd_mouth": lambda _: Crowd.of("crowd_mouth", "lips"),
    "crowd_eyes": lambda _: Crowd.of("crowd_eyes", "brows", "blink", "gaze"),
    "crowd_head": lambda _: Crowd.of("crowd_head", "head"),
}
"""Fast motion, and likeness to real motion, of one part of the face, for recipes that pay parts."""

JUDGES: dict[str, str] = {
    "panel": "flowportrait.judges.build:panel_reward",
    "omni_reward": "flowportrait.portraitgen.judging:omni_reward",
    "ai_portrait": "flowportrait.portraitgen.judging:ai_portrait_reward",
}
"""Judges as rewards: the function that builds each, imported when it is asked for, as judges are made of rewards."""

REWARDS: dict[str, Build | str] = {
    **BUILT_IN, **{name: _preference(name) for name in PREFERENCES}, **JUDGES, **PARTS,
}  # fmt: skip
"""Every reward that comes with the package or was registered; strings are ``module:function``."""


def register(name: str, build: Build) -> None:
    """Make a reward of your own available by name.

    Raises:
        BadInput: there is one of that name already.
    """
    if name in REWARDS:
        raise BadInput(f"There is a reward named {name!r} already: choose another name.")
    REWARDS[name] = build


def known(names: Iterable[str]) -> None:
    """Check that every name is a reward: registered, an entry point, or MODULE:NAME (which is not imported).

    Raises:
        BadInput: one is not, with the choices.
    """
    for name in names:
        if name not in REWARDS and not is_reference(name) and name not in plugin_names("rewards"):
            choices = ", ".join([*REWARDS, *plugin_names("rewards")])
            raise BadInput(f"No reward named {name!r}: choose from {choices}, or give MODULE:NAME.")


def build(name: str, options: RewardOptions | None = None) -> Reward:
    """Return the reward of that name.

    Raises:
        BadInput: no such reward, or what it is made of cannot be loaded.
    """
    known([name])
    options = options or RewardOptions()
    if name in options.elsewhere:
        from flowportrait.rewards.remote import HttpReward

        return HttpReward.at(options.elsewhere[name], name)
    if name not in REWARDS:
        return _plugin_reward(load_plugin("rewards", name, REWARDS), name)
    builder = REWARDS[name]
    if isinstance(builder, str):
        module, _, function = builder.partition(":")
        builder = getattr(importlib.import_module(module), function)
    reward: Reward = builder(options)
    return reward


@dataclass(frozen=True)
class PluginReward:
    """A reward of another package or script under the name by which it was asked for.

    What it declares beside its name (``scope``, ``range``, ``noise``, ``retries``) is the other's. A function that
    declares no ``needs`` is shown what every batch has.
    """

    name: str
    reward: Callable[[RewardBatch], Score | torch.Tensor]

    @property
    def needs(self) -> frozenset[str]:
        """What it reads of a batch."""
        return frozenset(getattr(self.reward, "needs", ("motion", "mel")))

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "reward":
            raise AttributeError(attribute)
        return getattr(self.reward, attribute)

    def __call__(self, batch: RewardBatch) -> Score:
        """Score every sample of the batch."""
        found = self.reward(batch)
        return all_valid(found) if isinstance(found, torch.Tensor) else found


def _plugin_reward(found: Any, name: str) -> Reward:
    """Return what was found under a name as a reward.

    Raises:
        BadInput: it cannot be called with a batch.
    """
    if isinstance(found, type):
        made: Any = found
        found = made.load() if hasattr(made, "load") else made()
    if not callable(found):
        raise BadInput(f"The reward {name!r} cannot be called: give a class or function that takes a batch.")
    return PluginReward(name, found)


def noise_key(reward: Any) -> str:
    """The name under which a reward's measured noise is kept: with its flow or backbone, where it has one."""
    part = getattr(reward, "flow", None) or getattr(reward, "backbone", None)
    return f"{reward.name}/{part.name}" if part else reward.name


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

"""This module builds rewards by name, and defines the weighted set of rewards of a run.

    build("sync")                          a reward of the package
    build("quiet_motion")                  a reward of another package, an entry point ``flowportrait.rewards``
    build("my_module:MyReward")            a class (created by ``load()``, or without arguments), an object, or a
                                           function ``batch -> values [B]``
    register("mine", lambda options: Mine())      make a reward available as ``build("mine")``

The parts, in order: the names of all rewards, building a reward by name, the weights of a run (``RewardWeights``), and
the rewards of a run (``CompositeReward``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Self

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.media.optical_flow import FlowName, build_optical_flow
from flowportrait.plugins import is_reference, load_plugin, plugin_names
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.concordance import ConcordanceReward
from flowportrait.rewards.consistency import (
    PerceptualReward,
    SharpnessReward,
    SimilarityName,
    TemporalReward,
    build_similarity,
)
from flowportrait.rewards.face import IdentityReward, RealnessReward
from flowportrait.rewards.interface import Reward, RewardFunction, Score, as_reward, score_batch
from flowportrait.rewards.motion import (
    ExpressivenessReward,
    EyesReward,
    HeadReward,
    SilentLipReward,
    SmoothnessReward,
    TremorReward,
)
from flowportrait.rewards.motion_distribution import CrowdReward
from flowportrait.rewards.random import EARLIER_RANDOM_REWARDS, RANDOM_REWARDS, RandomReward
from flowportrait.rewards.relative import SelfConfidenceReward
from flowportrait.rewards.sync import LipSyncReward

# --- The names of rewards ---


@dataclass(frozen=True)
class RewardOptions:
    """Settings of the rewards of this package."""

    backbone: SimilarityName = "ssim"
    """The similarity of pictures that ``perceptual`` uses."""
    backbone_model: str | None = None
    """Folder or hub name of the model of ``clip`` or ``dino``."""
    flow: FlowName = "dis"
    """The optical flow that ``temporal`` uses."""
    flow_weights: Path | None = None
    """File of RAFT's weights. Without it they are downloaded."""
    judge: Path | None = None
    """Settings of the judge of ``panel``. Without them it is a panel of measurements."""
    preference: Path | None = None
    """Folder written by ``flowportrait preferences train``, or ``org/name`` on the Hub, for ``preference`` and
    its dimensions. Without it the weights that ship are used."""
    latent_preference: Path | None = None
    """Folder written by ``flowportrait preferences train-latent``, or ``org/name`` on the Hub, for
    ``latent_preference``."""
    pretrained: dict[str, str] = field(default_factory=dict)
    """Folders of published networks, which are not downloaded: ``pretrained.clip=FOLDER``, also ``pickscore``,
    ``hpsv3`` and ``videoalign``. Without one the environment variable ``FLOWPORTRAIT_CLIP`` (…) is used."""
    text: str | None = None
    """Text that rewards of pictures and texts compare every sample with. Without it each sample's own text is used,
    which generators that draw from a text have."""
    elsewhere: dict[str, str] = field(default_factory=dict)
    """Rewards that another machine scores → its address: ``elsewhere.identity=http://gpu:8300``."""


RewardBuilder = Callable[[RewardOptions], Reward]
"""A function that builds a reward."""

WEIGHTED_REWARDS: dict[str, RewardBuilder] = {
    "sync": lambda _: LipSyncReward.load(),
    "silent_lip": lambda _: SilentLipReward.load(),
    "expressiveness": lambda _: ExpressivenessReward.load(),
    "eyes": lambda _: EyesReward.load(),
    "head": lambda _: HeadReward.load(),
    "smoothness": lambda _: SmoothnessReward.load(),
    "temporal": lambda options: TemporalReward.load(build_optical_flow(options.flow, options.flow_weights)),
    "perceptual": lambda options: PerceptualReward.load(build_similarity(options.backbone, options.backbone_model)),
    "identity": lambda _: IdentityReward.load(),
    "sharpness": lambda _: SharpnessReward.load(),
    "realness": lambda _: RealnessReward.load(),
    "self_confidence": lambda _: SelfConfidenceReward.load(),
}
"""Rewards that have a weight of their own in ``RewardWeights``."""


def _preference_builder(name: str) -> RewardBuilder:
    def build_preference(options: RewardOptions) -> Reward:
        from flowportrait.preferences.preference_rewards import load_latent_preference, load_preference_reward

        if name == "latent_preference":
            return load_latent_preference(options.latent_preference)
        return load_preference_reward(name, options.preference)

    return build_preference


PREFERENCE_REWARDS = (
    "preference", "preference_sync", "preference_expression", "preference_motion", "latent_preference",
)  # fmt: skip
"""Rewards learned from preference pairs: all three dimensions, one of them, or all three from latents."""

PART_REWARDS: dict[str, RewardBuilder] = {
    "steady_lips": lambda _: SmoothnessReward.only("steady_lips", "lips"),
    "steady_eyes": lambda _: SmoothnessReward.only("steady_eyes", "brows", "blink", "gaze"),
    "tremor_lips": lambda _: TremorReward.of("tremor_lips", "lips"),
    "tremor_eyes": lambda _: TremorReward.of("tremor_eyes", "brows", "blink", "gaze"),
    "crowd_mouth": lambda _: CrowdReward.of("crowd_mouth", "lips"),
    "crowd_eyes": lambda _: CrowdReward.of("crowd_eyes", "brows", "blink", "gaze"),
    "crowd_head": lambda _: CrowdReward.of("crowd_head", "head"),
    "true_lips": lambda _: ConcordanceReward("true_lips"),
    "true_brows": lambda _: ConcordanceReward("true_brows"),
    "true_head": lambda _: ConcordanceReward("true_head"),
}
"""Rewards of one part of the face: fast motion, the distribution of motion, and likeness to the recorded motion."""

JUDGE_REWARDS: dict[str, str] = {
    "panel": "flowportrait.judges.build:panel_reward",
    "pairwise": "flowportrait.judges.build:pairwise_reward",
    "omni_reward": "flowportrait.portraitgen.judging:omni_reward",
    "ai_portrait": "flowportrait.portraitgen.judging:ai_portrait_reward",
}
"""Judges as rewards. The function that builds one is imported when it is needed, since judges are made of rewards."""


PRETRAINED_REWARDS = (
    "clip_text", "clip_portrait", "pickscore", "hpsv3", "videoalign", "videoalign_vq", "videoalign_mq", "videoalign_ta",
)  # fmt: skip
"""Rewards by published networks, for people who have the weights; see ``rewards.pretrained``."""


def _pretrained_builder(name: str, options: RewardOptions) -> Reward:
    from flowportrait.rewards import pretrained, qwen2_vl

    folders, text = options.pretrained, options.text
    if name == "clip_text":
        return pretrained.TextImageReward.clip(folders, text)
    if name == "clip_portrait":
        return pretrained.PortraitImageReward.load(folders)
    if name == "pickscore":
        return pretrained.TextImageReward.pickscore(folders, text)
    if name == "hpsv3":
        return qwen2_vl.HpsV3Reward.load(folders, text)
    return qwen2_vl.VideoAlignReward.load(name, folders, text)


def _random_builder(name: str, _: RewardOptions) -> Reward:
    return RandomReward(name)


REWARDS: dict[str, RewardBuilder | str] = {
    **WEIGHTED_REWARDS, **{name: _preference_builder(name) for name in PREFERENCE_REWARDS}, **JUDGE_REWARDS,
    **PART_REWARDS, **{name: partial(_pretrained_builder, name) for name in PRETRAINED_REWARDS},
    **{name: partial(_random_builder, name) for name in (*RANDOM_REWARDS, *EARLIER_RANDOM_REWARDS)},
}  # fmt: skip
"""All rewards of the package and those that were registered. Strings are ``module:function``."""


# --- Building a reward by name ---


def register_reward(name: str, build: RewardBuilder) -> None:
    """Make a reward available by name.

    Raises:
        BadInput: there already is a reward of that name.
    """
    if name in REWARDS:
        raise BadInput(f"There is a reward named {name!r} already: choose another name.")
    REWARDS[name] = build


def check_reward_names(names: Iterable[str]) -> None:
    """Check that every name is a registered reward, an entry point, or MODULE:NAME (which is not imported).

    Raises:
        BadInput: there is no reward of a name. The message lists the choices.
    """
    for name in names:
        if name not in REWARDS and not is_reference(name) and name not in plugin_names("rewards"):
            choices = ", ".join([*REWARDS, *plugin_names("rewards")])
            raise BadInput(f"No reward named {name!r}: choose from {choices}, or give MODULE:NAME.")


def build_reward(name: str, options: RewardOptions | None = None) -> Reward:
    """Return the reward of a name.

    Args:
        name: a built-in reward, an entry point of ``flowportrait.rewards``, or ``MODULE:NAME``.
        options: choices of networks and files; the defaults need no download.

    Raises:
        BadInput: there is no reward of that name, or something that it uses cannot be loaded.
    """
    check_reward_names([name])
    options = options or RewardOptions()
    if name in options.elsewhere:
        from flowportrait.rewards.remote import HttpReward

        return HttpReward.at(options.elsewhere[name], name)
    if name not in REWARDS:
        return as_reward(load_plugin("rewards", name, REWARDS), name)
    builder = REWARDS[name]
    if isinstance(builder, str):
        module, _, function = builder.partition(":")
        builder = getattr(importlib.import_module(module), function)
    reward: Reward = builder(options)
    return reward


def reward_noise_key(reward: Any) -> str:
    """Return the key of a reward's measurement noise: its name, followed by its flow or backbone if it has one."""
    part = getattr(reward, "flow", None) or getattr(reward, "backbone", None)
    return f"{reward.name}/{part.name}" if part else reward.name


# --- The weights of a run ---
#
#     judge .5 (.7 of it lip sync, the rest divided equally between expressiveness and smoothness)
#     perceptual .3 · temporal .2
#
# The three groups and their weights are those of FlowPortrait (2603.00159). Further rewards are added by their weight:
# ``--set rewards.identity=0.2``.

MEASURED_JUDGE = "measured"
"""Value of ``RewardWeights.judge_by`` for the judge that is made of measurements."""

RewardReference = str | Reward | type | RewardFunction
"""A reward in any form: a built-in name, an entry point, MODULE:NAME, a plain function, a reward, or its class."""


@dataclass(frozen=True)
class RewardWeights:
    """The weight of every reward in a run."""

    judge: float = 0.5
    """Weight of the judge."""
    perceptual: float = 0.3
    """Weight of likeness between frames, and with the portrait."""
    temporal: float = 0.2
    """Weight of temporal consistency: change that optical flow does not explain."""
    judge_by: str = MEASURED_JUDGE
    """The judge: ``measured`` (lip sync, expressiveness and smoothness), or the name of a registered reward."""
    sync_share: float = 0.7
    """Share of lip sync in the weight of the measured judge. Expressiveness and smoothness have half of the rest
    each."""
    sync: float = 0.0
    """Weight of lip sync, beyond its share in the judge."""
    expressiveness: float = 0.0
    """Weight of motion as lively as that of real speakers, beyond its share in the judge."""
    smoothness: float = 0.0
    """Weight of motion without trembling, beyond its share in the judge."""
    silent_lip: float = 0.0
    """Weight of lips that are closed in silence."""
    eyes: float = 0.0
    """Weight of blinks and gaze like those of real people."""
    head: float = 0.0
    """Weight of head motion like that of real people."""
    identity: float = 0.0
    """Weight of likeness to the person in the portrait."""
    sharpness: float = 0.0
    """Weight of sharp eyes and mouth."""
    realness: float = 0.0
    """Weight of pixel statistics like those of real faces."""
    self_confidence: float = 0.0
    """Weight of the policy's own likelihood of its samples (SOLACE)."""
    other: dict[str, float] = field(default_factory=dict)
    """Weights of any other rewards, by name or as MODULE:NAME: ``rewards.other.NAME=WEIGHT``."""
    options: RewardOptions = field(default_factory=RewardOptions)
    """Settings of the rewards themselves."""

    def __post_init__(self) -> None:
        at_least(self, judge=0, **dict.fromkeys(WEIGHTED_REWARDS, 0))
        check_reward_names([*self.other, *([] if self.judge_by == MEASURED_JUDGE else [self.judge_by])])

    def by_name(self) -> dict[str, float]:
        """Return the weight of every reward with a weight above zero."""
        weights = {
            part.name: getattr(self, part.name) for part in fields(self) if part.name in WEIGHTED_REWARDS
        } | self.other
        rest = (1 - self.sync_share) / 2
        shares = {"sync": self.sync_share, "expressiveness": rest, "smoothness": rest}
        for name, share in (shares if self.judge_by == MEASURED_JUDGE else {self.judge_by: 1.0}).items():
            weights[name] = weights.get(name, 0.0) + self.judge * share
        return {name: weight for name, weight in weights.items() if weight > 0}

    @classmethod
    def only(cls, weights: Mapping[str, float]) -> Self:
        """Return weights of the named rewards; all others are zero."""
        other = {name: weight for name, weight in weights.items() if name not in WEIGHTED_REWARDS}
        own: dict[str, Any] = {name: weights.get(name, 0.0) for name in WEIGHTED_REWARDS}
        return cls(judge=0.0, other=other, **own)


# --- The rewards of a run ---


@dataclass(frozen=True)
class CompositeReward:
    """Rewards with their weights. Scores are not summed here: ``rl.credit`` normalises and combines them."""

    rewards: tuple[Reward, ...]
    weights: dict[str, float]

    @classmethod
    def default(cls, weights: RewardWeights | None = None) -> Self:
        """Return the rewards of the weights (by default those of FlowPortrait), with the experts that ship."""
        weights = weights or RewardWeights()
        return cls.of(weights.by_name(), weights.options)

    @classmethod
    def of(cls, rewards: Mapping[Any, float] | Iterable[RewardReference], options: RewardOptions | None = None) -> Self:
        """Return rewards in any form with their weights: ``CompositeReward.of({"sync": 0.6, my_reward: 0.4})``.

        Args:
            rewards: weights by reward (see ``RewardReference``), or rewards with a weight of 1 each. A weight of
                zero leaves the reward out.
            options: settings of the rewards of this package.

        Raises:
            BadInput: there is no reward of a name, it cannot be loaded, or two rewards have the same name.
        """
        weights = rewards if isinstance(rewards, Mapping) else dict.fromkeys(rewards, 1.0)
        loaded = [(load_reward(reward, options), weight) for reward, weight in weights.items() if weight > 0]
        names = [reward.name for reward, _ in loaded]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise BadInput(f"Two rewards are called {twice!r}: give each a name of its own.")
        return cls(tuple(reward for reward, _ in loaded), {reward.name: weight for reward, weight in loaded})

    @property
    def needs(self) -> frozenset[str]:
        """Return what a batch must have for all rewards."""
        return frozenset().union(*(reward.needs for reward in self.rewards))

    def __call__(self, batch: RewardBatch) -> dict[str, Score]:
        """Return the scores of every reward by name.

        Raises:
            BadInput: the batch does not have something that a reward needs.
        """
        return {reward.name: score_batch(reward, batch) for reward in self.rewards}


def load_reward(reward: RewardReference, options: RewardOptions | None = None) -> Reward:
    """Return a reward in any form as a ``Reward``. A reward given by name has that name.

    Raises:
        BadInput: there is no such reward, or something that it uses cannot be loaded.
    """
    if not isinstance(reward, str):
        return as_reward(reward)
    if reward not in REWARDS:
        return as_reward(load_plugin("rewards", reward, REWARDS), reward)
    built = build_reward(reward, options)
    if built.name != reward:
        raise BadInput(f"The reward registered as {reward!r} calls itself {built.name!r}: give it one name.")
    return built

"""FlowPortrait: a portrait photo and speech in, a talking video out, and post-training that makes it better.

    import flowportrait as fp

    fp.AnimatePipeline.from_pretrained("rl")("me.png", "me.wav").save("out.mp4")

Every public name is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowportrait.animator import Animator
    from flowportrait.checkpoints import load_generator
    from flowportrait.codec.motion_file import read_motion, write_motion
    from flowportrait.errors import BadInput
    from flowportrait.evaluation.api import evaluate
    from flowportrait.judge.judges import build_judge
    from flowportrait.pipelines.animate import AnimatePipeline
    from flowportrait.pipelines.output import AnimatePipelineOutput, AnimateStream
    from flowportrait.pipelines.request import AnimateRequest
    from flowportrait.posttrain.callbacks import Callback
    from flowportrait.posttrain.post_trainer import PostTrainer
    from flowportrait.posttrain.recipe import PostTrainConfig
    from flowportrait.provenance.inspection import inspect as inspect_video
    from flowportrait.reward.batch import RewardBatch
    from flowportrait.reward.interface import Reward, Score
    from flowportrait.reward.registry import build as build_reward

__version__ = "0.1.0"
__all__ = [
    "AnimatePipeline",
    "AnimatePipelineOutput",
    "AnimateRequest",
    "AnimateStream",
    "Animator",
    "BadInput",
    "Callback",
    "PostTrainConfig",
    "PostTrainer",
    "Reward",
    "RewardBatch",
    "Score",
    "__version__",
    "build_judge",
    "build_reward",
    "evaluate",
    "inspect_video",
    "load_generator",
    "read_motion",
    "write_motion",
]

_MODULES = {
    "AnimatePipeline": "flowportrait.pipelines.animate",
    "AnimatePipelineOutput": "flowportrait.pipelines.output",
    "AnimateRequest": "flowportrait.pipelines.request",
    "AnimateStream": "flowportrait.pipelines.output",
    "Animator": "flowportrait.animator",
    "BadInput": "flowportrait.errors",
    "Callback": "flowportrait.posttrain.callbacks",
    "PostTrainConfig": "flowportrait.posttrain.recipe",
    "PostTrainer": "flowportrait.posttrain.post_trainer",
    "Reward": "flowportrait.reward.interface",
    "RewardBatch": "flowportrait.reward.batch",
    "Score": "flowportrait.reward.interface",
    "build_judge": "flowportrait.judge.judges",
    "build_reward": "flowportrait.reward.registry:build",
    "evaluate": "flowportrait.evaluation.api",
    "inspect_video": "flowportrait.provenance.inspection:inspect",
    "load_generator": "flowportrait.checkpoints",
    "read_motion": "flowportrait.codec.motion_file",
    "write_motion": "flowportrait.codec.motion_file",
}
"""Where each public name is defined; after a colon its name there, if it has another one."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'flowportrait' has no attribute {name!r}")
    module, _, own = _MODULES[name].partition(":")
    value = getattr(import_module(module), own or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""FlowPortrait: a portrait photo and speech in, a talking video out, and post-training that makes it better.

    import flowportrait as fp

    fp.AnimatePipeline.from_pretrained("rl")("me.png", "me.wav").save("out.mp4")

Every public name is imported when it is first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowportrait.errors import BadInput
    from flowportrait.evaluation.api import evaluate
    from flowportrait.judges.build import build_judge
    from flowportrait.media.audio import Sound
    from flowportrait.models.arflow import load_generator
    from flowportrait.pipelines.animate import AnimatePipeline
    from flowportrait.pipelines.animator import Animator
    from flowportrait.pipelines.inputs import synthesize_speech
    from flowportrait.pipelines.output import AnimatePipelineOutput, AnimateStream
    from flowportrait.pipelines.request import AnimateRequest
    from flowportrait.provenance.inspection import inspect_provenance as inspect_video
    from flowportrait.provenance.watermark import add_watermark
    from flowportrait.rendering.motion_files import read_motion, write_motion
    from flowportrait.rewards.batch import RewardBatch
    from flowportrait.rewards.interface import Reward, Score
    from flowportrait.rewards.registry import build_reward
    from flowportrait.rl.config import PostTrainConfig
    from flowportrait.rl.loop import Callback
    from flowportrait.rl.post_trainer import PostTrainer

__version__ = "0.3.0"
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
    "Sound",
    "__version__",
    "add_watermark",
    "build_judge",
    "build_reward",
    "evaluate",
    "inspect_video",
    "load_generator",
    "read_motion",
    "synthesize_speech",
    "write_motion",
]

_MODULES = {
    "AnimatePipeline": "flowportrait.pipelines.animate",
    "AnimatePipelineOutput": "flowportrait.pipelines.output",
    "AnimateRequest": "flowportrait.pipelines.request",
    "AnimateStream": "flowportrait.pipelines.output",
    "Animator": "flowportrait.pipelines.animator",
    "BadInput": "flowportrait.errors",
    "Callback": "flowportrait.rl.loop",
    "PostTrainConfig": "flowportrait.rl.config",
    "PostTrainer": "flowportrait.rl.post_trainer",
    "Reward": "flowportrait.rewards.interface",
    "RewardBatch": "flowportrait.rewards.batch",
    "Score": "flowportrait.rewards.interface",
    "Sound": "flowportrait.media.audio",
    "add_watermark": "flowportrait.provenance.watermark",
    "build_judge": "flowportrait.judges.build",
    "build_reward": "flowportrait.rewards.registry:build_reward",
    "evaluate": "flowportrait.evaluation.api",
    "inspect_video": "flowportrait.provenance.inspection:inspect_provenance",
    "load_generator": "flowportrait.models.arflow",
    "read_motion": "flowportrait.rendering.motion_files",
    "synthesize_speech": "flowportrait.pipelines.inputs",
    "write_motion": "flowportrait.rendering.motion_files",
}
"""Where each public name is defined; after a colon its name there, if it has another one."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'flowportrait' has no attribute {name!r}")
    module, _, name_there = _MODULES[name].partition(":")
    value = getattr(import_module(module), name_there or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

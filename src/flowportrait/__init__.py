"""FlowPortrait: a portrait photo and speech in, a talking video out, and post-training that makes it better."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowportrait.animator import Animator
    from flowportrait.evaluation.api import evaluate
    from flowportrait.posttrain.callbacks import Callback
    from flowportrait.posttrain.post_trainer import PostTrainer
    from flowportrait.posttrain.recipe import PostTrainConfig
    from flowportrait.reward.interface import RewardBatch

__version__ = "0.1.0"
__all__ = ["Animator", "Callback", "PostTrainConfig", "PostTrainer", "RewardBatch", "__version__", "evaluate"]

_PLACES = {
    "Animator": "animator", "Callback": "posttrain.callbacks", "PostTrainConfig": "posttrain.recipe",
    "PostTrainer": "posttrain.post_trainer", "RewardBatch": "reward.interface", "evaluate": "evaluation.api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # Imported on first use, so that "flowportrait --help" does not wait for torch.
    if name in _PLACES:
        return getattr(import_module(f"flowportrait.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'flowportrait' has no attribute {name!r}")

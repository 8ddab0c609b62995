"""FlowPortrait: a portrait photo and speech in, a talking video out, and post-training that makes it better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowportrait.animator import Animator
    from flowportrait.evaluation.api import evaluate

__version__ = "0.1.0"
__all__ = ["Animator", "__version__", "evaluate"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that "flowportrait --help" does not wait for torch.
    if name == "Animator":
        from flowportrait.animator import Animator

        return Animator
    if name == "evaluate":
        from flowportrait.evaluation.api import evaluate

        return evaluate
    raise AttributeError(f"module 'flowportrait' has no attribute {name!r}")

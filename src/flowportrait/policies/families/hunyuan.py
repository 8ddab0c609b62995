"""HunyuanVideo 1.5, image to video: the first frame and a mask in channels beside x; guided by a part of its own."""

from __future__ import annotations

from typing import Any

from flowportrait.errors import BadInput
from flowportrait.policies.families.family import Family


class HunyuanVideo15(Family):
    """See the module."""

    name = "hunyuan-video-1.5"
    pipelines = ("HunyuanVideo15ImageToVideoPipeline",)
    takes = frozenset({"text", "image"})
    needs = frozenset({"text", "image"})
    fps = 24.0

    @property
    def latent_channels(self) -> int:
        return int(self.pipeline.transformer.config.out_channels)

    def guidance(self, arguments: dict[str, Any]) -> float:
        guider = self.pipeline.guider
        if (guider._start, guider._stop) != (0.0, 1.0):
            raise BadInput("The guider starts late or stops early, which is not replayed: let it guide at every step.")
        return float(guider.guidance_scale)

"""What is said about a video: in the container's tags and in the C2PA manifest the same, from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from flowportrait import __version__

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE_TYPE = {"portrait": "trainedAlgorithmicMedia", "footage": "compositeWithTrainedAlgorithmicMedia"}
SENTENCE = {
    "portrait": "Synthetic video: a still portrait animated by AI to match speech.",
    "footage": "Synthetic video: the lips in this footage were redrawn by AI to match other speech.",
}


@dataclass(frozen=True)
class Origin:
    """How a video came to be: an animated portrait, or dubbed footage."""

    made_from: Literal["portrait", "footage"]

    @property
    def sentence(self) -> str:
        """The one sentence a viewer needs."""
        return SENTENCE[self.made_from]

    @property
    def source_type(self) -> str:
        """IPTC digital source type, as platforms read it."""
        return IPTC + SOURCE_TYPE[self.made_from]

    def tags(self) -> dict[str, str]:
        """Container metadata that players and file managers show."""
        return {
            "comment": f"{self.sentence} Made with FlowPortrait {__version__}.",
            "description": self.source_type,
            "keywords": "AI-generated, synthetic media, FlowPortrait",
        }

    def manifest(self, mime: str = "video/mp4", watermark: bool = True) -> dict[str, Any]:
        """C2PA manifest definition (specification 2.2) of a file of media type ``mime``: who made it and what was
        done; ``watermark``: whether its frames carry one."""
        agent = {"name": "FlowPortrait", "version": __version__}
        actions = [
            {
                "action": "c2pa.created",
                "digitalSourceType": self.source_type,
                "softwareAgent": agent,
                "description": self.sentence,
            },
        ]
        if watermark:
            actions.append({"action": "c2pa.watermarked.unbound", "softwareAgent": agent})
        return {
            "claim_generator_info": [agent],
            "title": "Talking portrait",
            "format": mime,
            "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
        }

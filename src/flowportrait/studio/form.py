"""The form of the page: what it may say, the request that it stands for, and the choices that it offers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from flowportrait import samples
from flowportrait.errors import BadInput
from flowportrait.extras import missing_package_message
from flowportrait.pipelines.request import (
    GUIDE_DIMENSIONS,
    MAX_CANDIDATES,
    MAX_USEFUL_GUIDE_WEIGHT,
    AnimateRequest,
    SpeakerTurn,
)
from flowportrait.speech.offered_voices import check_offered_voice, installed_voices
from flowportrait.studio.storage import StudioLimits

EXAMPLE_SENTENCE = "Hello! A moment ago I was only a photo. Now I can read you anything that you type."
LABELS = {
    "--loop": "“Repeat the video”", "--size": "“Size of the face”", "--best-of": "“Best of”",
    "--by": "“Chosen by”", "--prune": "“Choose piece by piece”", "--guide": "guidance",
    "--motion-in": "the motion file", "--intensity": "“Liveliness”", "--expression-scale": "“Expression”",
    "--blink": "“Blinks”", "--head-motion": "“Head motion”", "--gaze": "“Gaze”", "--background": "“Background”",
    "--crop": "“Face alone”", "--face": "“Face”", "--image": "a photo", "--video": "a video",
    "--speaker": "“Two people”", "--audio": "a recording", "--text": "a text", "--turns": "“One after the other”",
    "--voice": "“Voice”",
}  # fmt: skip
"""Options of the command line, and what the page calls them."""
_OPTION = re.compile(r"--[a-z]+(?:-[a-z]+)*")


def page_sentence(sentence: str) -> str:
    """Return a message of the command line with the page's own words for its options."""
    return _OPTION.sub(lambda match: LABELS.get(match[0], match[0]), sentence)


class VideoForm(BaseModel, extra="forbid"):
    """What the page sends to make a video; files are ids of uploads or examples."""

    kind: Literal["photo", "video", "two"] = "photo"
    photo: str | None = None
    video: str | None = None
    left_photo: str | None = None
    left_audio: str | None = None
    right_photo: str | None = None
    right_audio: str | None = None
    speech: Literal["text", "recording"] = "text"
    text: str = Field("", max_length=100_000)
    voice: str = Field("", max_length=100)
    audio: str | None = None
    face: int | None = None
    whole: bool = True
    loop: bool = False
    turns: bool = False
    intensity: float = 1.0
    expression: float = 1.0
    head: float = 1.0
    blink: float = 1.0
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    emotion: Literal["", "happy", "sad", "angry", "surprised", "afraid"] = ""
    emotion_strength: float = 0.6
    seed: int = Field(0, ge=0, lt=2**31)
    denoise: bool = True
    size: int | None = None
    background: str = Field("", max_length=30)
    guide: dict[Literal["sync", "expression", "motion"], float] = Field(default_factory=dict)
    best_of: int = 1
    by: Literal["reward", "sync", "expression", "motion"] = "reward"
    prune: bool = False
    motion_in: str | None = None
    checkpoint: str = Field("rl", max_length=500)
    compare: str = Field("", max_length=500)
    """A second generator that makes the same video; empty for none."""
    format: Literal["mp4", "mov", "gif"] = "mp4"

    def requests(self, path_of: Callable[[str], Path]) -> list[AnimateRequest]:
        """Return the request of the video, and of the same video by the generator to compare with.

        Args:
            path_of: the file with an id.

        Raises:
            BadInput: something is missing, a file is gone, or the voice is none that the page offers.
        """
        names = [self.checkpoint, *([self.compare] if self.compare else [])]
        settings = self._inputs(path_of) | self._settings(path_of)
        return [AnimateRequest(**settings, checkpoint=name) for name in names]

    def _inputs(self, path_of: Callable[[str], Path]) -> dict[str, Any]:
        if self.kind == "two":
            return {"speakers": self._speakers(path_of), "turns": self.turns}
        picture = self.photo if self.kind == "photo" else self.video
        if not picture:
            missing = "photo yet: choose an example, or add your own" if self.kind == "photo" else "video yet: add one"
            raise BadInput(f"There is no {missing}.")
        inputs: dict[str, Any] = {"image" if self.kind == "photo" else "video": path_of(picture), "face": self.face}
        if self.kind == "video":
            inputs["loop"] = self.loop
        if self.speech == "recording":
            if not self.audio:
                raise BadInput("There is no recording yet: choose one, or record one.")
            return inputs | {"audio": path_of(self.audio)}
        check_offered_voice(self.voice)
        return inputs | {"text": self.text, "voice": self.voice or None}

    def _speakers(self, path_of: Callable[[str], Path]) -> tuple[SpeakerTurn, ...]:
        sides = ((0, "left", self.left_photo, self.left_audio), (1, "right", self.right_photo, self.right_audio))
        turns = []
        for number, side, photo, audio in sides:
            if not photo or not audio:
                missing = "photo" if not photo else "recording"
                raise BadInput(f"The person on the {side} has no {missing} yet: choose one.")
            turns.append(SpeakerTurn(number, path_of(photo), path_of(audio)))
        return tuple(turns)

    def _settings(self, path_of: Callable[[str], Path]) -> dict[str, Any]:
        common: dict[str, Any] = {"seed": self.seed, "denoise": self.denoise}
        if self.kind == "video":
            return common  # footage keeps its own motion and picture
        common |= {
            "intensity": self.intensity, "expression_scale": self.expression, "head_motion": self.head,
            "blink": self.blink, "gaze": (self.gaze_x, self.gaze_y), "size": self.size, "crop": not self.whole,
            "background": self.background or None,
            "emotion": {self.emotion: self.emotion_strength} if self.emotion else {},
        }  # fmt: skip
        if self.kind == "two":
            # Two people sit side by side as squares; in one photo they always stay in it.
            return common | {"crop": False}
        chosen = self.best_of > 1
        return common | {
            "guide": {name: weight for name, weight in self.guide.items() if weight},
            "best_of": self.best_of, "by": self.by if chosen else None, "prune": self.prune and chosen,
            "motion_in": path_of(self.motion_in) if self.motion_in else None,
        }  # fmt: skip


# --- Choices ---


def missing_voices_sentence() -> str | None:
    """Return how to install the voices; None if there is one."""
    if installed_voices():
        return None
    return missing_package_message("hibari", "voice").replace("This needs", "To type text, the studio needs")


def page_choices(limits: StudioLimits) -> dict[str, Any]:
    """Return what the page offers: examples, voices, ranges and limits."""
    return {
        "portraits": [{"id": f"example-{name}", "alt": alt} for name, alt in samples.PORTRAITS.items()],
        "speech": "example-speech",
        "speech_url": f"/samples/{samples.SPEECH.name}",
        "text": EXAMPLE_SENTENCE,
        "voices": installed_voices(),
        "no_voices": missing_voices_sentence(),
        "guide": {name: MAX_USEFUL_GUIDE_WEIGHT[name] for name in GUIDE_DIMENSIONS},
        "candidates": MAX_CANDIDATES,
        "seconds": limits.seconds,
        "letters": limits.letters,
        "megabytes": limits.megabytes,
    }

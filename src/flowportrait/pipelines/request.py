"""The request for one video: every setting, what goes together, and the parsers of its text forms.

    AnimateRequest(image=Path("me.jpg"), audio=Path("me.wav"), seed=3, crop=True)

The command line fills one in, the studio queues them, and ``AnimatePipeline.run`` makes the video. ``check`` and its
relatives test a request before anything is read. Importing this module imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from flowportrait.errors import BadInput

if TYPE_CHECKING:
    from flowportrait.rendering.motion_filters import Controls


GUIDE_DIMENSIONS = ("sync", "expression", "motion")
"""Dimensions of the latent reward that can guide a video, in the order of its outputs."""
MAX_GUIDE_WEIGHT = 10.0
"""Largest weight whose effect was measured (reports/2026-11-30-preferences.md)."""
MAX_USEFUL_GUIDE_WEIGHT = {"sync": 10.0, "expression": 3.0, "motion": 3.0}
"""Largest weight that helps; larger ones cost more quality than they gain."""
MAX_CANDIDATES = 64
ALLOWED_SIZES = range(64, 2049)


@dataclass(frozen=True)
class SpeakerTurn:
    """One recording of a conversation, and its speaker."""

    speaker: int
    """0 sits on the left, 1 on the right."""
    image: Path
    """Photo of the speaker, the same with each of the speaker's recordings."""
    audio: Path
    """Recording of what the speaker says."""

    @classmethod
    def parse(cls, text: str) -> SpeakerTurn:
        """Parse ``1=photo.jpg,speech.wav``; the command line counts speakers from 1.

        Raises:
            BadInput: the text is not of this form.
        """
        number, _, paths = text.partition("=")
        image, _, audio = paths.rpartition(",")
        if number not in ("1", "2") or not image or not audio:
            raise BadInput(f"--speaker {text!r} is not possible: give 1=PHOTO,AUDIO and 2=PHOTO,AUDIO.")
        return cls(int(number) - 1, Path(image), Path(audio))


@dataclass(frozen=True)
class AnimateRequest:
    """The inputs and settings of one talking video."""

    image: Path | None = None
    """Portrait to animate: photo, painting or drawing."""
    video: Path | None = None
    """Footage to dub instead of a portrait: only its lips change."""
    speakers: tuple[SpeakerTurn, ...] = ()
    """Two speakers instead of one portrait: shown side by side, or as two faces of one photo."""
    drive: Path | None = None
    """Clip with a person whose expression and head move the photo; ``audio`` then replaces the clip's sound."""
    audio: Path | None = None
    """Speech: any audio or video file."""
    text: str | None = None
    """Text to speak instead of a recording; ``-`` reads it from standard input as it comes."""
    voice: str | None = None
    """Voice that speaks the text: heart (default, English), espeak:LANGUAGE or openai:NAME."""
    checkpoint: str = "rl"
    """Generator: rl, sft, a folder, or org/name on the Hugging Face Hub."""
    seed: int = 0
    """Random seed: another seed gives different motion for the same speech."""
    intensity: float = 1.0
    """How expressive the motion is, from 0.6 to 1.6."""
    style: str = "auto"
    """Manner of speaking: auto (as it is heard), lively or calm; plain leaves the generator's motion as it is."""
    denoise: bool = True
    """Remove noise from the speech before the generator hears it; the video plays the recording unchanged."""
    size: int | None = None
    """Side of the drawn face square in pixels; by default 512, and more for large photos."""
    crop: bool = False
    """Write the face square alone instead of the whole photo."""
    background: str | None = None
    """Colour behind a transparent photo, by CSS name or as #rrggbb; white by default."""
    face: int | None = None
    """Number of the face, counted from the left, from 1; by default the largest face."""
    blink: float = 1.0
    """Depth of blinks, from 0 (none) to 3."""
    head_motion: float = 1.0
    """Scale of nods and turns, from 0 (still) to 3."""
    expression_scale: float = 1.0
    """Scale of brows and smiles, from 0 (none) to 3."""
    gaze: tuple[float, float] = (0.0, 0.0)
    """Degrees by which the eyes look to the viewer's right and up."""
    emotion: Mapping[str, float] = field(default_factory=dict)
    """Weights, from 0 to 1, of happy, sad, angry, surprised and afraid, which are added to the motion."""
    motion_in: Path | None = None
    """Motion file (.csv or .json) to draw instead of generating motion."""
    guide: Mapping[str, float] = field(default_factory=dict)
    """Weights of sync, expression and motion (0 to 10) with which the latent reward guides every chunk of motion."""
    best_of: int = 1
    """Number of candidates that are generated; the best one is used."""
    by: str | None = None
    """Reward that ranks the candidates: reward (default), sync, expression, motion, or the name of any other."""
    prune: bool = False
    """Choose the best candidate chunk by chunk, which is cheaper and works with streams."""
    loop: bool = False
    """Play the footage forwards and backwards in turn until the speech ends, if the speech is longer."""
    turns: bool = False
    """Play the speakers' recordings one after the other instead of all from the start."""

    def controls(self) -> Controls:
        """Return the scales, the gaze direction and the emotions that are applied to the motion.

        Raises:
            BadInput: a scale, an angle or a weight is out of range.
        """
        from flowportrait.rendering.motion_filters import Controls

        return Controls(self.blink, self.head_motion, self.expression_scale, self.gaze, self.emotion)

    def check(self) -> None:
        """Check that the settings are possible and compatible, before anything is read.

        Raises:
            BadInput: a setting is impossible, or two settings exclude each other.
        """
        if not 1 <= self.best_of <= MAX_CANDIDATES:
            raise BadInput(f"--best-of {self.best_of} is not possible: give a number from 1 to {MAX_CANDIDATES}.")
        if self.best_of == 1 and (self.by is not None or self.prune):
            raise BadInput("--by and --prune set how candidates are compared: give --best-of N with N of 2 or more.")
        if self.prune and (self.by or "reward") not in ("reward", *GUIDE_DIMENSIONS):
            raise BadInput(f"--prune looks at single chunks: --by must be reward, {', '.join(GUIDE_DIMENSIONS)}.")
        check_guide(self.guide)
        reward_flag = "--guide" if self.guide else "--best-of" if self.best_of > 1 else None
        for name in ("video", "speakers", "motion_in"):
            if reward_flag and getattr(self, name):
                flag = "--speaker" if name == "speakers" else f"--{name.replace('_', '-')}"
                raise BadInput(f"{reward_flag} works with --image and newly generated motion: leave out {flag}.")
        if self.size is not None and (self.size not in ALLOWED_SIZES or self.size % 2):
            raise BadInput(f"--size {self.size} is not possible: give an even number from 64 to 2048.")
        if self.motion_in and self.intensity != 1.0:
            raise BadInput(
                "--intensity changes newly generated motion: leave out --motion-in, or use --expression-scale."
            )
        if self.background:
            parse_colour(self.background)
        if self.style != _DEFAULTS["style"]:
            from flowportrait.models.prosody_motion import check_style

            check_style(self.style)
        if self.drive:
            self._check_drive()
        if self.emotion:
            from flowportrait.rendering.emotion import check_emotion

            check_emotion(self.emotion)

    def check_inputs(self) -> None:
        """Check that the settings are compatible with the input: a photo, footage, or two speakers.

        Raises:
            BadInput: a setting does not apply to this kind of input.
        """
        self.check()
        for names, unchanged in ((_MOTION_SETTINGS, "motion"), (_FRAMING_SETTINGS, "picture")):
            changed = [name for name in names if getattr(self, name) != _DEFAULTS[name]]
            if self.video and changed:
                flag = f"--{changed[0].replace('_', '-')}"
                raise BadInput(f"{flag} works with --image only: a dubbed video keeps its own {unchanged}.")
        if self.loop and not self.video:
            raise BadInput("--loop works with --video only: a photo speaks for as long as the speech lasts.")
        if self.speakers:
            self._check_speakers()

    def check_stream(self) -> None:
        """Check that the settings are compatible with speech that is still arriving.

        Raises:
            BadInput: a setting does not apply to this kind of input.
        """
        if self.best_of > 1 and not self.prune:
            raise BadInput("--stream cannot compare whole candidates: add --prune to choose chunk by chunk.")
        for name in ("video", "motion_in", "drive"):
            if getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                raise BadInput(
                    f"--stream does not go with {flag}: give --image, and --text or sound on standard input."
                )

    def _check_drive(self) -> None:
        changed = [name for name in _NOT_DRIVEN if getattr(self, name) != _DEFAULTS[name] and getattr(self, name)]
        if changed:
            flag = "--speaker" if changed[0] == "speakers" else f"--{changed[0].replace('_', '-')}"
            raise BadInput(f"--drive takes all motion from the clip: leave out {flag}, and give one --image.")

    def _check_speakers(self) -> None:
        for name in ("audio", "text", "face", "motion_in"):
            if getattr(self, name):
                flag = f"--{name.replace('_', '-')}"
                raise BadInput(f"--speaker does not go with {flag}: each speaker brings a photo and a recording.")
        photos = {turn.speaker: turn.image for turn in self.speakers}
        if sorted(photos) != [0, 1]:
            raise BadInput(
                "A conversation needs two speakers: give --speaker 1=PHOTO,AUDIO and --speaker 2=PHOTO,AUDIO."
            )
        if len(self.speakers) > 2 and not self.turns:
            raise BadInput("A speaker has more than one recording: add --turns to play them one after the other.")
        if any(turn.image != photos[turn.speaker] for turn in self.speakers):
            raise BadInput("A speaker has two photos: give the same one with each of the speaker's recordings.")
        if self.crop and photos[0].resolve() == photos[1].resolve():
            raise BadInput("--crop shows one face alone: leave it out, or give each speaker a photo.")


class AnimateSettings(TypedDict, total=False):
    """Keyword arguments of ``AnimatePipeline``: the fields of ``AnimateRequest`` that are settings, not inputs."""

    seed: int
    intensity: float
    style: str
    denoise: bool
    size: int | None
    crop: bool
    background: str | None
    face: int | None
    blink: float
    head_motion: float
    expression_scale: float
    gaze: tuple[float, float]
    emotion: Mapping[str, float]
    motion_in: Path | None
    guide: Mapping[str, float]
    best_of: int
    by: str | None
    prune: bool


_DEFAULTS: dict[str, Any] = {
    setting.name: getattr(AnimateRequest(), setting.name) for setting in fields(AnimateRequest)
}
_MOTION_SETTINGS = ("intensity", "style", "blink", "head_motion", "expression_scale", "gaze", "emotion", "motion_in")
_NOT_DRIVEN = (
    "text",
    "voice",
    "video",
    "speakers",
    "motion_in",
    "guide",
    "best_of",
    "intensity",
    "style",
    "loop",
    "turns",
)
"""Inputs and settings that do not go with a clip that drives the photo."""
_FRAMING_SETTINGS = ("crop", "size", "background")


def parse_guide(text: str | None) -> dict[str, float]:
    """Parse ``sync=1,motion=0.3`` into weights by dimension.

    Raises:
        BadInput: a name is unknown or given twice, or a weight is no number from 0 to 10.
    """
    return _parse_weights("--guide", text, check_guide)


def parse_emotion(text: str | None) -> dict[str, float]:
    """Parse ``happy=0.6,surprised=0.2`` into weights by emotion.

    Raises:
        BadInput: a name is unknown or given twice, or a weight is no number from 0 to 1.
    """
    from flowportrait.rendering.emotion import check_emotion

    weights = _parse_weights("--emotion", text, check_emotion)
    check_emotion(weights)
    return weights


def _parse_weights(
    flag: str, text: str | None, check: Callable[[Mapping[str, float], str | None], None]
) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, number = (piece.strip() for piece in part.partition("="))
        if name in weights:
            raise BadInput(f"{flag} names {name} twice: give each weight once.")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        check({name: weight}, number)
        weights[name] = weight
    return weights


def check_guide(weights: Mapping[str, float], text: str | None = None) -> None:
    """Check the names and weights of ``AnimateRequest.guide``.

    Args:
        weights: weight by dimension.
        text: the weight as the user wrote it, for the message.

    Raises:
        BadInput: a name is unknown, or a weight lies outside 0 to 10.
    """
    for name, weight in weights.items():
        if name not in GUIDE_DIMENSIONS:
            raise BadInput(f"--guide knows no {name!r}: choose from {', '.join(GUIDE_DIMENSIONS)}, such as sync=1.")
        if not 0 <= weight <= MAX_GUIDE_WEIGHT:
            shown_weight = f"{weight:g}" if text is None else text
            raise BadInput(
                f"--guide {name}={shown_weight} is not possible: give a weight from 0 to {MAX_GUIDE_WEIGHT:g}."
            )


def parse_gaze(text: str) -> tuple[float, float]:
    """Parse ``10,-5`` into degrees to the viewer's right and up.

    Raises:
        BadInput: the text is not two numbers.
    """
    try:
        right, up = (float(part) for part in text.split(","))
    except ValueError as error:
        raise BadInput(f"--gaze {text!r} is not possible: give two angles in degrees, such as 10,0.") from error
    return right, up


def parse_colour(text: str) -> tuple[int, int, int]:
    """Convert a CSS colour name or ``#rrggbb`` to red, green and blue from 0 to 255.

    Raises:
        BadInput: the text is neither.
    """
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError as error:
        raise BadInput(f"--background {text!r} is no colour: give a name such as green, or #00ff00.") from error
    return red, green, blue

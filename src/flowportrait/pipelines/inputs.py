"""What a request's photo, video and sound are read into."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound, read_audio, read_sound
from flowportrait.media.image import WHITE, from_pillow, read_image
from flowportrait.media.mel import QUIET_RMS
from flowportrait.media.portrait import Photo
from flowportrait.media.stream import joined, speech_of
from flowportrait.models.speech_stream import closed_lips_share
from flowportrait.pipelines.request import AnimateRequest, parse_colour
from flowportrait.pipelines.turns import conversation_sound, tracks

if TYPE_CHECKING:
    from PIL import Image


ImageInput: TypeAlias = "str | Path | np.ndarray | Image.Image | Photo"
"""A picture: a file, ``[H, W, 3]`` uint8 RGB, a Pillow image, or a ``Photo``."""
AudioInput: TypeAlias = "str | Path | np.ndarray | Sound"
"""Speech: a file, samples ``[N]`` float32 mono at 16 kHz, or a ``Sound`` with its own rate and channels."""

SHORTEST_SECONDS = 0.2
_SILENT_SHARE = 0.9
"""Share of a recording through which the lips rest, from which on it is called silent."""


class Display(Protocol):
    """What shows how far the work has come; ``flowportrait.terminal`` is one."""

    def progress(self, items: Iterable[Any], total: int | None, doing: str = ...) -> Iterable[Any]:
        """The items, shown while they are worked on."""

    def waiting(self, doing: str) -> AbstractContextManager[None]:
        """Show what is being done while the block takes its time."""


class NoDisplay:
    """Shows nothing."""

    def progress(self, items: Iterable[Any], total: int | None, doing: str = "") -> Iterable[Any]:
        """The items."""
        return items

    def waiting(self, doing: str) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


@dataclass(frozen=True)
class AnimateInputs:
    """The inputs of one video, decoded.

    sound is what the video plays, with its own rate and channels; speech is what the generator hears, ``[N]`` float32
    at 16 kHz, or ``[2, N]``, a track for each speaker. There is a photo to animate, two of a conversation (twice the
    same object for two faces of one photo), or a video to dub.
    """

    sound: Path | Sound | np.ndarray
    speech: np.ndarray
    photos: tuple[Photo, ...] = ()
    photo_names: tuple[str, ...] = ()
    video: Path | None = None
    sound_name: str = "the speech"
    notes: tuple[str, ...] = ()
    """Sentences that the user should read."""


def read_inputs(request: AnimateRequest, display: Display | None = None) -> AnimateInputs:
    """Read and check the files that a request names.

    Raises:
        BadInput: one cannot be used.
    """
    display = display or NoDisplay()
    if request.speakers:
        images = [next(turn.image for turn in request.speakers if turn.speaker == speaker) for speaker in (0, 1)]
        turns = [(turn.speaker, turn.audio) for turn in request.speakers]
        return conversation_inputs(images, turns, request.turns, request.background, display)
    with display.waiting("reading the speech"):
        sound, speech = read_speech(request.audio, request.text, request.voice)
    photos = (read_photo(request.image, request.background),) if request.image else ()
    name = str(request.audio or "the spoken text")
    notes: tuple[str, ...] = ()
    if not request.motion_in:
        check_duration(speech)
        note = quiet_speech_note(speech, name)
        notes = (note,) if note else ()
    return AnimateInputs(sound, speech, photos, (str(request.image),), request.video, name, notes)


def conversation_inputs(
    images: Sequence[ImageInput],
    recordings: Sequence[tuple[int, AudioInput]],
    turns: bool = False,
    background: str | None = None,
    display: Display | None = None,
) -> AnimateInputs:
    """Read the photos and recordings of two people: ``images`` of both, ``recordings`` with who speaks, 0 or 1."""
    display = display or NoDisplay()
    shared = _is_same_image(*images)
    first = read_photo(images[0], background)
    photos = (first, first if shared else read_photo(images[1], background))
    with display.waiting("reading the speech"):
        speech = [(speaker, read_speech(audio)[1]) for speaker, audio in recordings]
        voices = tracks(speech, turns)
        sound = conversation_sound(speech, [_with_own_rate(audio) for _, audio in recordings], turns)
    return AnimateInputs(sound, voices, photos, (image_name(images[0]), image_name(images[1])))


def read_photo(image: ImageInput, background: str | None = None) -> Photo:
    """Read a picture and scale what is shown of it to what ordinary video players take.

    Raises:
        BadInput: it cannot be read, is no RGB picture, or ``background`` is no colour.
    """
    colour = parse_colour(background) if background else WHITE
    if isinstance(image, Photo):
        return image
    if isinstance(image, (str, Path)):
        return Photo.for_video(read_image(image, colour))
    if not isinstance(image, np.ndarray):
        return Photo.for_video(from_pillow(image, colour))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"An image array of shape {image.shape} and {image.dtype} is no picture: give [H, W, 3] uint8.")
    return Photo.for_video(image)


def read_speech(
    audio: AudioInput | None, text: str | None = None, voice: str | None = None
) -> tuple[Path | Sound | np.ndarray, np.ndarray]:
    """Sound as it is played, and speech ``[N]`` float32 at 16 kHz as the generator hears it.

    Raises:
        BadInput: there is neither audio nor text, or it cannot be read or spoken.
    """
    if isinstance(audio, np.ndarray):
        if audio.ndim != 1:
            raise BadInput(f"An audio array of shape {audio.shape} is not mono: give samples [N] at 16 kHz.")
        return audio, audio.astype(np.float32, copy=False)
    if isinstance(audio, (str, Path)):
        return Path(audio), read_audio(audio)
    if audio is None and text is None:
        raise BadInput("There is nothing to say: give --audio FILE, --text TEXT, or --stream with sound coming in.")
    sound = joined(synthesize_speech(text or "", voice)) if audio is None else audio
    return sound, np.concatenate(list(speech_of([sound])))


def synthesize_speech(text: str | Iterable[str], voice: str | None = None) -> Iterator[Sound]:
    """Speak a text, or pieces of one, sentence by sentence at the voice's own rate; ``-`` reads standard input."""
    from flowportrait.speech.text_to_speech import speak_sound
    from flowportrait.speech.voices import DEFAULT, voice_named

    pieces = sys.stdin if text == "-" else [text] if isinstance(text, str) else text
    return speak_sound(pieces, voice_named(voice or DEFAULT))


def check_duration(speech: np.ndarray) -> None:
    """Check that samples ``[N]`` at 16 kHz are long enough to animate.

    Raises:
        BadInput: they last under 0.2 s.
    """
    seconds = len(speech) / SAMPLE_RATE
    if seconds < SHORTEST_SECONDS:
        raise BadInput(f"The audio lasts {seconds:.2f} s, under {SHORTEST_SECONDS} s: give a longer recording.")


def quiet_speech_note(speech: np.ndarray, name: str) -> str | None:
    """A sentence where ``speech`` ``[N]`` at 16 kHz, from ``name``, is silent, or quiet and raised for the lips."""
    rms = float(np.sqrt((speech.astype(np.float64) ** 2).mean()))
    if rms >= QUIET_RMS:
        return None
    share = closed_lips_share(speech)
    if share > _SILENT_SHARE:
        return f"Warning: {name} is all but silent, and the lips rest for {share:.0%} of it: speech has to be louder."
    decibels = 20 * np.log10(max(rms, 1e-9))
    return (f"Note: {name} is quiet, {-decibels:.0f} dB below full scale: it is raised for the lips; the video's sound "
            "is the given one.")  # fmt: skip


def image_name(image: ImageInput) -> str:
    """What stands for a picture in messages."""
    return str(image) if isinstance(image, (str, Path)) else "the photo"


def _is_same_image(one: ImageInput, other: ImageInput) -> bool:
    if isinstance(one, (str, Path)) and isinstance(other, (str, Path)):
        return Path(one).resolve() == Path(other).resolve()
    return one is other


def _with_own_rate(audio: AudioInput) -> Sound:
    if isinstance(audio, Sound):
        return audio
    if isinstance(audio, np.ndarray):
        return Sound(audio[None], SAMPLE_RATE, "mono")
    return read_sound(audio)

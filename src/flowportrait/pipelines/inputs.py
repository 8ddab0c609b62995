"""Reading the inputs of a request: photos, speech and the sound that the video plays.

    files or arrays ─► read_photo, read_speech ─► AnimateInputs (photos, sound to play, speech to animate)

Every video has two versions of its sound: ``sound`` is what it plays, with its own rate and channels; ``speech`` is
mono at 16 kHz, which the generator hears.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.media.audio import SAMPLE_RATE, Sound, has_audio, read_audio, read_sound
from flowportrait.media.containers import check_is_file
from flowportrait.media.image import WHITE_BACKGROUND, pillow_to_rgb, read_image
from flowportrait.media.mel import QUIET_RMS
from flowportrait.media.portrait import Photo, Portrait
from flowportrait.media.stream import concatenate_sounds, resample_to_speech
from flowportrait.models.speech_stream import closed_lips_share
from flowportrait.pipelines.request import AnimateRequest, parse_colour
from flowportrait.pipelines.turns import build_speaker_tracks, mix_conversation_sound

if TYPE_CHECKING:
    from PIL import Image


ImageInput: TypeAlias = "str | Path | np.ndarray | Image.Image | Photo"
"""A picture: a file, ``[H, W, 3]`` uint8 RGB, a Pillow image, or a ``Photo``."""
AudioInput: TypeAlias = "str | Path | np.ndarray | Sound"
"""Speech: a file, samples ``[N]`` float32 mono at 16 kHz, or a ``Sound`` with its own rate and channels."""

MIN_SPEECH_SECONDS = 0.2
_SILENT_SHARE = 0.9
"""A recording is called silent if the lips stay closed for more than this share of it."""


class ProgressDisplay(Protocol):
    """Interface of a progress display; the module ``flowportrait.terminal`` implements it."""

    def progress(self, items: Iterable[Any], total: int | None, doing: str = ...) -> Iterable[Any]:
        """Return the items and show the progress while they are iterated."""

    def waiting(self, doing: str) -> AbstractContextManager[None]:
        """Show a message while the block runs."""


class NoProgressDisplay:
    """A display that shows nothing."""

    def progress(self, items: Iterable[Any], total: int | None, doing: str = "") -> Iterable[Any]:
        """Return the items unchanged."""
        return items

    def waiting(self, doing: str) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()


@dataclass(frozen=True)
class AnimateInputs:
    """The decoded inputs of one video.

    Attributes:
        sound: what the video plays, with its own rate and channels.
        speech: what the generator hears, ``[N]`` float32 at 16 kHz; ``[2, N]`` in a conversation, a track per speaker.
        photos: one photo to animate; two in a conversation (the same object twice for two faces of one photo).
        photo_names: names of the photos in messages.
        video: footage to dub instead of a photo.
        drive: clip with the person who moves the photo; then there is no speech.
        sound_name: name of the speech in messages.
        notes: sentences that the user should read.
    """

    sound: Path | Sound | np.ndarray
    speech: np.ndarray
    photos: tuple[Photo, ...] = ()
    photo_names: tuple[str, ...] = ()
    video: Path | None = None
    drive: Path | None = None
    sound_name: str = "the speech"
    notes: tuple[str, ...] = ()


def read_inputs(request: AnimateRequest, display: ProgressDisplay | None = None) -> AnimateInputs:
    """Read and check the files that a request names.

    Raises:
        BadInput: a file cannot be used.
    """
    display = display or NoProgressDisplay()
    if request.speakers:
        images = [next(turn.image for turn in request.speakers if turn.speaker == speaker) for speaker in (0, 1)]
        turns = [(turn.speaker, turn.audio) for turn in request.speakers]
        return read_conversation_inputs(images, turns, request.turns, request.background, display)
    if request.drive:
        photos = (read_photo(request.image, request.background),) if request.image else ()
        with display.waiting("reading the sound"):
            inputs = read_driver_inputs(request.drive, request.audio)
        return replace(inputs, photos=photos, photo_names=(str(request.image),))
    with display.waiting("reading the speech"):
        sound, speech = read_speech(request.audio, request.text, request.voice)
    name = str(request.audio or "the spoken text")
    notes: tuple[str, ...] = ()
    if not request.motion_in:
        check_duration(speech)
        note = describe_quiet_speech(speech, name)
        notes = (note,) if note else ()
    photos = (read_photo(request.image, request.background),) if request.image else ()
    return AnimateInputs(sound, speech, photos, (str(request.image),), request.video, sound_name=name, notes=notes)


def read_conversation_inputs(
    images: Sequence[ImageInput],
    recordings: Sequence[tuple[int, AudioInput]],
    turns: bool = False,
    background: str | None = None,
    display: ProgressDisplay | None = None,
) -> AnimateInputs:
    """Read the photos and recordings of two speakers.

    Args:
        images: a photo of each speaker; the same image twice if it shows both.
        recordings: pairs of a speaker (0 or 1) and a recording.
        turns: play the recordings one after the other instead of all from the start.
        background: colour behind transparent photos.
        display: shows the progress.

    Raises:
        BadInput: a photo or a recording cannot be used.
    """
    display = display or NoProgressDisplay()
    shared = _is_same_image(*images)
    first = read_photo(images[0], background)
    photos = (first, first if shared else read_photo(images[1], background))
    with display.waiting("reading the speech"):
        speech = [(speaker, read_speech(audio)[1]) for speaker, audio in recordings]
        voices = build_speaker_tracks(speech, turns)
        sound = mix_conversation_sound(speech, [_with_own_rate(audio) for _, audio in recordings], turns)
    return AnimateInputs(sound, voices, photos, (image_display_name(images[0]), image_display_name(images[1])))


def read_photo(image: ImageInput, background: str | None = None) -> Photo:
    """Read a picture and scale its displayed version to a size that ordinary video players support.

    Raises:
        BadInput: the picture cannot be read or is not RGB, or ``background`` is no colour.
    """
    colour = parse_colour(background) if background else WHITE_BACKGROUND
    if isinstance(image, Photo):
        return image
    if isinstance(image, (str, Path)):
        return Photo.for_video(read_image(image, colour))
    if not isinstance(image, np.ndarray):
        return Photo.for_video(pillow_to_rgb(image, colour))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"An image array of shape {image.shape} and {image.dtype} is no picture: give [H, W, 3] uint8.")
    return Photo.for_video(image)


def read_speech(
    audio: AudioInput | None, text: str | None = None, voice: str | None = None
) -> tuple[Path | Sound | np.ndarray, np.ndarray]:
    """Read a recording, or speak a text.

    Returns:
        The sound as the video plays it, and speech ``[N]`` float32 at 16 kHz as the generator hears it.

    Raises:
        BadInput: there is neither audio nor text, or the audio cannot be read, or the text cannot be spoken.
    """
    if isinstance(audio, np.ndarray):
        if audio.ndim != 1:
            raise BadInput(f"An audio array of shape {audio.shape} is not mono: give samples [N] at 16 kHz.")
        return audio, audio.astype(np.float32, copy=False)
    if isinstance(audio, (str, Path)):
        return Path(audio), read_audio(audio)
    if audio is None and text is None:
        raise BadInput("There is nothing to say: give --audio FILE, --text TEXT, or --stream with sound coming in.")
    sound = concatenate_sounds(synthesize_speech(text or "", voice)) if audio is None else audio
    return sound, np.concatenate(list(resample_to_speech([sound])))


def read_driver_inputs(clip: Path, audio: AudioInput | None) -> AnimateInputs:
    """Return the inputs of a video that a clip drives, but for the photo: the sound is ``audio``, or else the clip's.

    Raises:
        BadInput: the audio cannot be read, or the clip does not exist.
    """
    check_is_file(clip, "video")
    nothing = np.zeros(0, np.float32)
    if audio is not None:
        return AnimateInputs(read_speech(audio)[0], nothing, drive=clip)
    if has_audio(clip):
        return AnimateInputs(clip, nothing, drive=clip)
    notes = (f"Note: {clip} has no sound, so the video is silent: --audio adds some.",)
    return AnimateInputs(nothing, nothing, drive=clip, notes=notes)


def synthesize_speech(text: str | Iterable[str], voice: str | None = None) -> Iterator[Sound]:
    """Yield the speech of a text sentence by sentence, at the voice's own sample rate.

    Args:
        text: the text, or pieces of it as they arrive; ``-`` reads standard input.
        voice: name of the voice; see ``AnimateRequest.voice``.
    """
    from flowportrait.speech.text_to_speech import synthesize_sound
    from flowportrait.speech.voices import DEFAULT_VOICE, load_voice

    pieces = sys.stdin if text == "-" else [text] if isinstance(text, str) else text
    return synthesize_sound(pieces, load_voice(voice or DEFAULT_VOICE))


def check_duration(speech: np.ndarray) -> None:
    """Check that samples ``[N]`` at 16 kHz are long enough to animate.

    Raises:
        BadInput: the samples last less than 0.2 s.
    """
    seconds = len(speech) / SAMPLE_RATE
    if seconds < MIN_SPEECH_SECONDS:
        raise BadInput(f"The audio lasts {seconds:.2f} s, under {MIN_SPEECH_SECONDS} s: give a longer recording.")


def describe_quiet_speech(speech: np.ndarray, name: str) -> str | None:
    """Return a warning if speech is silent, or a note if it is quiet and therefore amplified for the lips; else None.

    Args:
        speech: samples ``[N]`` at 16 kHz.
        name: name of the recording in the sentence.
    """
    rms = float(np.sqrt((speech.astype(np.float64) ** 2).mean()))
    if rms >= QUIET_RMS:
        return None
    share = closed_lips_share(speech)
    if share > _SILENT_SHARE:
        return f"Warning: {name} is almost silent, and the lips stay closed for {share:.0%} of it: give louder speech."
    decibels = 20 * np.log10(max(rms, 1e-9))
    return (f"Note: {name} is quiet, {-decibels:.0f} dB below full scale: it is raised for the lips; the video plays "
            "the recording unchanged.")  # fmt: skip


class PortraitCache:
    """Finds the face in a photo, and remembers the latest one: batches use one photo several times in a row."""

    def __init__(self, display: ProgressDisplay) -> None:
        self._display = display
        self._latest: tuple[Photo, tuple[int | None, int | None], Portrait] | None = None

    def find(self, image: ImageInput | Portrait, request: AnimateRequest, name: str | None = None) -> Portrait:
        """Return the face in a photo that a request is about.

        Args:
            image: the photo; a ``Portrait`` is returned as it is.
            request: with the background, the size and the number of the face.
            name: name of the photo in messages.

        Raises:
            BadInput: the photo cannot be read, or its face cannot be used.
        """
        if isinstance(image, Portrait):
            return image
        photo, size = read_photo(image, request.background), request.size or (512 if request.crop else None)
        if self._latest is not None:
            latest_photo, latest_settings, portrait = self._latest
            shapes = {one.video_pixels.shape for one in (latest_photo, photo)}
            same = len(shapes) == 1 and np.array_equal(latest_photo.pixels, photo.pixels)
            if same and latest_settings == (size, request.face):
                return portrait
        with self._display.waiting("looking for the face"):
            portrait = Portrait.from_image(photo, size, name or image_display_name(image), request.face)
        self._latest = (photo, (size, request.face), portrait)
        return portrait


def image_display_name(image: ImageInput) -> str:
    """Return the name of a picture in messages."""
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

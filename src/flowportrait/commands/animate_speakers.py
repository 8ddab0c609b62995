"""``flowportrait animate --speaker``: two people who talk with each other."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from flowportrait.commands.animate_options import controls_of, photo, result_summary
from flowportrait.errors import BadInput
from flowportrait.provenance.options import provenance_of
from flowportrait.terminal import progress, waiting

_ALONE = {
    "audio": "--audio", "text": "--text", "stream": "--stream", "face": "--face", "motion_in": "--motion-in",
    "motion_out": "--motion-out",
}  # fmt: skip


def parse_speaker(given: str) -> tuple[int, Path, Path]:
    """``1=photo.jpg,speech.wav`` to (0, photo, speech).

    Raises:
        BadInput: it is not of this form.
    """
    number, _, files = given.partition("=")
    image, _, audio = files.rpartition(",")
    if number not in ("1", "2") or not image or not audio:
        raise BadInput(f"--speaker {given!r} is not possible: give 1=PHOTO,AUDIO and 2=PHOTO,AUDIO.")
    return int(number) - 1, Path(image), Path(audio)


def run_speakers(options: argparse.Namespace) -> dict[str, Any]:
    """Two photos, or one with two faces, and their speech to mp4."""
    for name, flag in _ALONE.items():
        if getattr(options, name):
            raise BadInput(f"--speaker does not go with {flag}: each speaker brings a photo and a recording.")
    given = [parse_speaker(one) for one in options.speaker]
    photos = {speaker: path for speaker, path, _ in given}
    if sorted(photos) != [0, 1]:
        raise BadInput("A conversation needs two speakers: give --speaker 1=PHOTO,AUDIO and --speaker 2=PHOTO,AUDIO.")
    if len(given) > 2 and not options.turns:
        raise BadInput("A speaker has more than one recording: add --turns to play them one after the other.")
    if any(path != photos[speaker] for speaker, path, _ in given):
        raise BadInput("A speaker has two photos: give the same one with each of the speaker's recordings.")
    import torch

    from flowportrait.animator import Animator
    from flowportrait.conversation.stage import Person, in_one_photo, performances, side_by_side
    from flowportrait.conversation.turns import conversation_sound, tracks
    from flowportrait.media.audio import read_audio, read_sound
    from flowportrait.provenance.origin import Origin
    from flowportrait.provenance.publish import publish

    torch.set_num_threads(1)
    started = time.monotonic()
    provenance = provenance_of(options, Origin("portrait"))
    together = photos[0].resolve() == photos[1].resolve()
    if together and options.crop:
        raise BadInput("--crop shows one face alone: leave it out, or give each speaker a photo.")
    images = [photo(photos[index], options.background) for index in (0, 1)]
    people = [Person(images[index], str(photos[index]), index + 1 if together else None) for index in (0, 1)]
    with waiting("reading the speech"):
        recordings = [(speaker, read_audio(audio)) for speaker, _, audio in given]
        voices = tracks(recordings, options.turns)
        sound = conversation_sound(recordings, [read_sound(audio) for _, _, audio in given], options.turns)
    controls = controls_of(options)
    with waiting("loading the model"):
        animator = Animator.from_pretrained(options.checkpoint, options.intensity, options.as_heard)
    motions = performances(animator, voices, options.seed, controls)
    if together:
        frames = in_one_photo(people, motions, options.size)
    else:
        frames = side_by_side(people, motions, options.size or 512)
    with closing(progress(frames, len(motions[0]))) as shown:
        count = publish(options.output, shown, sound, provenance, frame_total=len(motions[0]), progress=progress)
    return result_summary(options, count, started)

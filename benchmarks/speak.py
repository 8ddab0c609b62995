"""How long from a text to the first frame, and to video that can be played?

    python benchmarks/speak.py PHOTO

cold: the command line, from its start until the first fragment of video lies in the pipe (starting Python, loading and
finding the face included). warm: in a process that has loaded everything, from the text to the first frame drawn. Each
beside the same text spoken whole before drawing begins, which should lose.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from flowportrait.media.audio import Sound
from flowportrait.media.image import read_image
from flowportrait.pipelines.animator import Animator
from flowportrait.speech.text_to_speech import prefetch, synthesize_samples
from flowportrait.speech.voices import load_voice

TEXT = (
    "Good morning. This is a longer text, of which only the first words are needed to begin. While they are shown, the "
    "next sentence is already being spoken. Nobody has to wait for the end. The last sentence comes when it comes."
)


class Slow:
    """A voice that takes as long to speak as what it says lasts: a server across the world on a bad day."""

    def __init__(self, name: str) -> None:
        self.voice = load_voice(name)
        self.name = f"{name}, at the pace of speech"

    def reads(self, language: str) -> bool:
        return self.voice.reads(language)

    def say(self, sentence: str) -> Sound:
        sound = self.voice.say(sentence)
        time.sleep(sound.samples.shape[1] / sound.rate)
        return sound


def cold(photo: Path, voice: str) -> tuple[float, float]:
    """Seconds to the first fragment, and to the end."""
    command = [sys.executable, "-m", "flowportrait.cli", "animate", "--image", str(photo), "--text", TEXT, "--voice",
               voice, "--stream", "--crop", "--output", "-"]  # fmt: skip
    began, seen, first = time.monotonic(), b"", 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while data := process.stdout.read1():
            seen = (seen + data)[-1 << 16 :] if first else seen + data
            if not first and b"mdat" in seen:
                first = time.monotonic() - began
    if process.returncode or not first:
        raise SystemExit(f"animate ended with {process.returncode} and {len(seen)} bytes: run it without --output -.")
    return first, time.monotonic() - began


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("photo", type=Path)
    photo = options.parse_args().photo
    torch.set_num_threads(1)
    image, animator = read_image(photo), Animator.from_pretrained("rl")
    for voice in (load_voice("heart"), load_voice("espeak"), Slow("espeak")):
        voice.say("Hello.")

        def whole(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            return iter([np.concatenate(list(pieces))])

        for name, way in (("sentence by sentence", prefetch), ("spoken whole first", whole)):
            began, spent = time.monotonic(), time.process_time()
            frames = animator.draw(image, animator.live(way(synthesize_samples([TEXT], voice))))
            next(frames)
            print(
                f"warm  {voice.name:32s} {name:22s} first frame {time.monotonic() - began:6.2f} s "
                f"({time.process_time() - spent:.2f} s of processor)", flush=True,
            )  # fmt: skip
    for name in ("heart", "espeak"):
        first, end = cold(photo, name)
        print(f"cold  {name:32s} first fragment {first:6.2f} s, all {end:6.2f} s", flush=True)


if __name__ == "__main__":
    main()

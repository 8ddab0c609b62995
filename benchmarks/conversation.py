"""Do the listener's lips stay closed? A minute of two people in turn, drawn, and tracked anew in the finished file.

    python benchmarks/conversation.py PHOTO PHOTO --output DIR

Opening: inner lip gap over the distance of the outer eye corners, 95th percentile of frames. Beside it what must lose,
both portraits driven by the sound of both. Needs the voices (pip install 'flowportrait[voice]').
"""

from __future__ import annotations

import argparse
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.video import FPS, iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.speech_stream import speech_gate
from flowportrait.pipelines.animator import Animator
from flowportrait.pipelines.conversation import draw_side_by_side, find_speaker_portraits, generate_conversation_motion
from flowportrait.pipelines.turns import build_speaker_tracks
from flowportrait.rendering.motion_basis import BLINK
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.speech.text_to_speech import synthesize_samples
from flowportrait.speech.voices import load_voice

SAID = (
    "Did you sleep well? I heard the storm all night, and the window would not close.",
    "Not at all. I was up at five, made coffee, and watched the rain come over the hills.",
    "We should repair that window before winter. My brother has the tools, if you call him.",
    "I will call him today. And perhaps we can ask him to look at the roof as well.",
    "Good idea. Every big storm brings more water through the kitchen ceiling.",
    "Then let us begin with the roof. Bread and soup for everybody who helps!",
)


def opening(frames: list[np.ndarray]) -> np.ndarray:
    """Lip opening ``[T]`` of one face as tracked in the pictures."""
    with FaceTracker() as tracker:
        points = tracker.track(iter(frames)).landmarks
    gap, eyes = (np.linalg.norm(points[:, a] - points[:, b], axis=1) for a, b in ((13, 14), (33, 263)))
    return gap / eyes


def measure(
    people: list[MotionCodec], motions: list[torch.Tensor], sound: np.ndarray, path: Path, size: int
) -> np.ndarray:
    write_video(path, draw_side_by_side(people, motions), sound)
    frames = list(iter_frames(path))
    return np.stack([opening([frame[:, :size] for frame in frames]), opening([frame[:, size:] for frame in frames])])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("photos", type=Path, nargs=2)
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--size", type=int, default=256)
    given = options.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    portraits = find_speaker_portraits(
        [read_image(photo) for photo in given.photos], list(map(str, given.photos)), given.size
    )
    people = [MotionCodec(portrait) for portrait in portraits]
    voices, turns = [load_voice("heart"), load_voice("espeak:en+m3")], []
    for index, text in enumerate(cycle(SAID)):
        turns.append((index % 2, np.concatenate(list(synthesize_samples([text], voices[index % 2])))))
        if sum(len(sound) for _, sound in turns) > given.seconds * 16_000:
            break
    heard = build_speaker_tracks(turns, in_turn=True)
    mixed = heard.sum(0)
    animator = Animator.from_pretrained("rl")
    motions = generate_conversation_motion(lambda own, seed: torch.cat(list(animator.motion(own, seed=seed))), heard)
    gates = np.stack([speech_gate(track) for track in heard])
    speaking, listening = gates == 1, (gates == 0) & (gates[::-1] == 1)
    both = [torch.cat(list(animator.motion(mixed, seed=seed))) for seed in (0, 1)]
    print(f"{len(motions[0]) / FPS:.0f} s, {len(turns)} turns", flush=True)
    for name, played in (("each its own track", motions), ("both hear both", both)):
        lips = measure(people, played, mixed, given.output / f"{name.replace(' ', '_')}.mp4", given.size)
        for who in (0, 1):
            spoken, quiet = lips[who, speaking[who]], lips[who, listening[who]]
            print(
                f"{name:20s} person {who + 1}: speaking p95 {np.quantile(spoken, 0.95):.3f}, listening p95 "
                f"{np.quantile(quiet, 0.95):.3f} max {quiet.max():.3f}, frames over a third of speaking p95 "
                f"{(quiet > np.quantile(spoken, 0.95) / 3).mean():.1%}", flush=True,
            )  # fmt: skip
    for who in (0, 1):
        lids = motions[who][:, BLINK.start].numpy() > 2
        blinks = (lids[1:] & ~lids[:-1])[listening[who][1:]].sum()
        print(f"person {who + 1}: {blinks * 60 * FPS / listening[who].sum():.0f} blinks a minute while listening")


if __name__ == "__main__":
    main()

"""Which part of the face a change of lip sync comes from: lips of one checkpoint on the head and eyes of another.

    python benchmarks/swapped.py --corpus CORPUS --data FOOTAGE [--checkpoints sft rl] [--seeds 3] [--headline]

The evaluation's sync expert reads pixels of the mouth, and a head that turns moves those too: LSE-C at offset zero of
the four mixtures says how much of a difference is the lips' own. Several performances of every sentence, of ``dev``
speakers, without the clips of the headline table, or those alone; their seeds are not the table's. Differences from
the first checkpoint are per sentence, means over its performances; 95 % bootstrap over sentences.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from arena import SIZE
from material import choice_clips as test_clips
from material import headline_clips as headline
from proxy import judge
from rich.progress import track

from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.image import read_image
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import LOWER_FACE
from flowportrait.rendering.renderer import MotionCodec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "data"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--checkpoints", nargs=2, default=["sft", "rl"])
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=3, help="performances of every sentence")
    parser.add_argument("--headline", action="store_true", help="the clips of the headline table instead")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = sorted(path for path in (given.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), SIZE, path.name)) for path in images[: given.clips]]
    animators = {name: Animator.from_pretrained(name) for name in given.checkpoints}
    found: dict[tuple[str, str], list[float]] = {}
    found_clips = headline(given.corpus) if given.headline else test_clips(given.corpus, given.clips)
    clips = list(found_clips.values())
    for index, clip in enumerate(track(clips * given.seeds, description="performances")):
        mel = log_mel(normalize_loudness(clip.audio))
        seed = 1000 + index
        motions = {name: torch.cat(list(one.motion(clip.audio, seed=seed))) for name, one in animators.items()}
        for lips, below in motions.items():
            for rest, motion in motions.items():
                mixed = motion.clone()
                mixed[:, LOWER_FACE] = below[:, LOWER_FACE]
                score = judge(codecs[index % len(codecs)], mixed, mel[: 4 * len(mixed)])
                found.setdefault((lips, rest), []).append(score)
    first = found[given.checkpoints[0], given.checkpoints[0]]
    print(f"lips of · rest of   LSE-C at 0, change from {given.checkpoints[0]}; {given.seeds} × {len(clips)} sentences")
    for (lips, rest), scores in found.items():
        change = bootstrap_mean((np.array(scores) - first).reshape(given.seeds, -1).mean(0))
        shown = f"{change.mean:+.4f} ({change.low:+.4f} … {change.high:+.4f})"
        print(f"{lips:>7s} · {rest:7s}  {np.mean(scores):.3f}   {shown}")


if __name__ == "__main__":
    main()

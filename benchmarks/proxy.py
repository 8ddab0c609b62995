"""Would the evaluation choose the take that a reward chooses? Selection without training: what a reward is worth.

    python benchmarks/proxy.py --corpus CORPUS --data FOOTAGE --output DIR [--experts DIR/model.safetensors …]

Eight takes of every sentence by ``sft``, drawn and scored by the evaluation's sync expert (LSE-C at offset zero), and
by rewards that read motion: the shipped sync expert, every other one given, and the ensemble of all,

    mean − spread of the experts' margins         a lower confidence bound

Per reward: correlation with the evaluation inside the eight, and what taking the best of eight by it adds to the
evaluation's figure. The ceiling is taking the evaluation's own best. Sentences are of ``dev`` speakers, without those
of the headline table. Intervals: 95 %, bootstrap over sentences.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from arena import SIZE
from material import choice_clips as test_clips
from rich.progress import track

from flowportrait.evaluation.lip_sync import SHORT_MAX_OFFSET, PixelSyncExpert, sync_from_embeddings
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.crop import mouth_patch
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward
from flowportrait.rewards.registry import build_reward
from flowportrait.rewards.sync import LipSyncReward, MotionSyncExpert

TAKES = 8
BESIDE = ("expressiveness", "tremor_lips")
"""Rewards that do not hear, to compare with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--experts", type=Path, nargs="*", default=[], help="further experts of the reward side")
    parser.add_argument("--clips", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    kept = given.output / "takes.pt"
    if not kept.is_file():
        torch.save(perform(given.corpus, given.data, given.clips), kept)
    taken = torch.load(kept)
    judged = taken["judged"].numpy()
    found = {name: worth(judged, scores) for name, scores in proxies(taken, given.experts).items()}
    found["the evaluation itself"] = worth(judged, judged)
    (given.output / "proxy.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"{len(judged)} sentences, mean {judged.mean():.4f}, spread inside the eight {judged.std(1).mean():.4f}")
    for name, row in found.items():
        print(f"{name:24s} r {_shown(row['r'], 2)}   best of eight adds {_shown(row['gain'], 4)}")


def perform(corpus: Path, data: Path, count: int) -> dict[str, torch.Tensor]:
    """motion ``[S, 8, T, 30]``, mel ``[S, 4T, 80]``, judged ``[S, 8]``: the evaluation's LSE-C at zero as drawn."""
    images = sorted(path for path in (data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), SIZE, path.name)) for path in images]
    animator = Animator.from_pretrained("sft")
    motions, mels, judged = [], [], []
    for index, clip in enumerate(track(list(test_clips(corpus, count).values()), description="takes")):
        takes = [torch.cat(list(animator.motion(clip.audio, seed=TAKES * index + take))) for take in range(TAKES)]
        mel = log_mel(normalize_loudness(clip.audio))[: 4 * len(takes[0])]
        judged.append([judge(codecs[index % len(codecs)], motion, mel) for motion in takes])
        motions.append(torch.stack(takes))
        mels.append(mel)
    frames = min(motion.shape[1] for motion in motions)
    return {
        "motion": torch.stack([motion[:, :frames] for motion in motions]),
        "mel": torch.stack([mel[: 4 * frames] for mel in mels]),
        "judged": torch.tensor(judged),
    }


@torch.no_grad()
def judge(codec: MotionCodec, motion: torch.Tensor, mel: torch.Tensor) -> float:
    """The evaluation's LSE-C at offset zero of motion ``[T, 30]`` drawn; NaN where a frame shows no face."""
    with FaceTracker() as tracker:
        frames = list(codec.decode(motion))
        faces = [tracker.track([frame]) for frame in frames]
    if not all(face.valid[0] for face in faces):
        return float("nan")
    mouths = np.array([mouth_patch(frame, face.landmarks[0]) for frame, face in zip(frames, faces, strict=True)])
    expert = PixelSyncExpert.load()
    face, voice = expert.embed_face(torch.from_numpy(mouths)[None])[0], expert.embed_audio(mel[None])[0]
    return sync_from_embeddings(face.numpy(), voice.numpy(), SHORT_MAX_OFFSET).lse_c_at_zero


def proxies(taken: dict[str, torch.Tensor], experts: list[Path]) -> dict[str, np.ndarray]:
    """Scores ``[S, 8]`` of every reward."""
    count = len(taken["mel"])
    batch = RewardBatch(taken["motion"].flatten(0, 1), taken["mel"].repeat_interleave(TAKES, 0))

    def scored(reward: Reward) -> np.ndarray:
        return reward(batch).value.view(count, TAKES).numpy()

    margins = {"shipped": scored(LipSyncReward.load())}
    margins |= {path.parent.name: scored(LipSyncReward(MotionSyncExpert.read(path))) for path in experts}
    found = dict(margins)
    if experts:
        all_of_them = np.stack(list(margins.values()))
        found |= {"mean of all": all_of_them.mean(0), "mean − spread": all_of_them.mean(0) - all_of_them.std(0)}
    return found | {name: scored(build_reward(name)) for name in BESIDE}


def worth(judged: np.ndarray, scores: np.ndarray) -> dict[str, list[float]]:
    """r: correlation inside the eight; gain: the evaluation's figure of the reward's best less the mean of eight."""
    usable = np.isfinite(judged).all(1)
    judged, scores = judged[usable], scores[usable]
    a, b = (values - values.mean(1, keepdims=True) for values in (judged, scores))
    r = (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
    gain = np.take_along_axis(a, scores.argmax(1)[:, None], 1)[:, 0]
    return {name: _interval(values) for name, values in (("r", r), ("gain", gain))}


def _interval(values: np.ndarray) -> list[float]:
    estimate = bootstrap_mean(values)
    return [round(float(value), 4) for value in (estimate.mean, estimate.low or 0, estimate.high or 0)]


def _shown(interval: list[float], digits: int) -> str:
    mean, low, high = interval
    return f"{mean:+.{digits}f} ({low:+.{digits}f} … {high:+.{digits}f})"


if __name__ == "__main__":
    main()

"""Every system's motion on unseen speakers, rated without drawing it: quick, but by the reward side.

Sync is the reward side's expert, expressiveness and smoothness are closed-form statistics of real motion; no network
of the evaluation has looked. Same clips and seeds in every system; differences from ``sft`` per clip, with a bootstrap
95 % interval over clips.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from preference_arms import ARMS, CHOSEN, is_trained, several, trained
from preference_material import FRAMES, rate

from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.evaluation.statistics import bootstrap_mean
from flowportrait.media.mel import MELS_PER_FRAME
from flowportrait.models.arflow import load_generator
from flowportrait.models.conditioning import RewardSteering, ordered_weights
from flowportrait.models.sampler import sample_from_mel
from flowportrait.pipelines.request import GUIDE_DIMENSIONS, parse_guide
from flowportrait.preferences.latent_reward import LatentReward
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.motion import MOTION_GROUPS, log_amplitude, log_flutter, log_speed
from flowportrait.rewards.registry import build_reward

CLIPS, FOLD = 48, 1000
WEIGHTS = (1, 3, 10)
SWEEP = tuple(f"guide {dimension}={weight}" for dimension in GUIDE_DIMENSIONS for weight in WEIGHTS)
SYSTEMS = ("sft", *ARMS, *SWEEP, "guide sync=3,expression=1,motion=1", *CHOSEN)


def speech(corpus: Path) -> torch.Tensor:
    """Log-mel ``[48, 4·28, 80]`` of clips of unseen speakers, evenly taken."""
    clips: list[MotionClip] = [clip for clip in load_motion_clips(corpus, ("dev",)) if len(clip.motion) >= FRAMES]
    chosen = [clips[i] for i in torch.linspace(0, len(clips) - 1, CLIPS).long().tolist()]
    return torch.stack([clip.mel[: MELS_PER_FRAME * FRAMES].float() for clip in chosen])


def played(system: str, output: Path, mel: torch.Tensor) -> torch.Tensor:
    """Motion ``[48, 28, 30]`` of a system."""
    model = load_generator(trained(output, system) / "checkpoint" if is_trained(system) else "sft")
    seeds, reward = list(range(len(mel))), LatentReward.load()
    if system.startswith("pruned"):
        steering = RewardSteering(reward, choose=(1.0, 1.0, 1.0), candidates=several(system))
        rows = [sample_from_mel(model, mel[row : row + 1], [seed], steering=steering) for row, seed in enumerate(seeds)]
        return torch.cat(rows)
    if system.startswith("best of"):
        folds = range(0, FOLD * several(system), FOLD)
        takes = [sample_from_mel(model, mel, [seed + fold for seed in seeds]) for fold in folds]
        liked = torch.stack([build_reward("preference")(RewardBatch(motion, mel)).value for motion in takes])
        return torch.stack(takes)[liked.argmax(0), torch.arange(len(mel))]
    weights = parse_guide(system.removeprefix("guide ")) if system.startswith("guide ") else {}
    return sample_from_mel(
        model, mel, seeds, steering=RewardSteering(reward, ordered_weights(weights, GUIDE_DIMENSIONS))
    )


def parts(corpus: Path, output: Path, systems: Sequence[str]) -> None:
    """How much more each part of the face moves than with sft, and how the head's power above 6 Hz changes, as it is
    and as a share of all its power: factors, with intervals."""
    mel = speech(corpus)
    start = played("sft", output, mel)
    for system in systems:
        motion, cells = played(system, output, mel), []
        for column, part in enumerate(MOTION_GROUPS):
            cells.append(factor(part, (log_amplitude(motion) - log_amplitude(start))[:, column]))
        share = (log_flutter(motion) - log_flutter(start))[:, -1]
        faster = 2 * (log_speed(motion) - log_speed(start))[:, -1]
        cells += [factor("head's power > 6 Hz", share + faster), factor("its share", share)]
        print(f"{system:36}", "  ".join(cells), flush=True)


def factor(name: str, logs: torch.Tensor) -> str:
    """Of differences of logarithms ``[clips]``."""
    found = bootstrap_mean(logs.double().numpy())
    return f"{name} {np.exp(found.mean):.2f} [{np.exp(found.low):.2f}, {np.exp(found.high):.2f}]"


def rated(corpus: Path, output: Path, systems: Sequence[str]) -> None:
    """Ratings of every system, kept in OUTPUT/rated.json, and their differences from sft."""
    kept = output / "rated.json"
    known: dict[str, list[list[float]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    mel = speech(corpus)
    for system in dict.fromkeys(("sft", *systems)):
        if system not in known:
            known[system] = rate(played(system, output, mel), mel).tolist()
            output.mkdir(parents=True, exist_ok=True)
            kept.with_suffix(".partial").write_text(json.dumps(known) + "\n")
            kept.with_suffix(".partial").replace(kept)
        print(f"{system:36}", differences([known[system]], known["sft"]), flush=True)
    for arm in dict.fromkeys(system.split("@")[0] for system in systems if "@" in system):
        runs = [known[name] for name in known if name.split("@")[0] == arm]
        print(f"{arm + f', {len(runs)} seeds':36}", differences(runs, known["sft"]), flush=True)


def differences(runs: Sequence[list[list[float]]], start: list[list[float]]) -> str:
    """Of runs ``[runs, clips, 3]`` from ``start``, with intervals over both."""
    gap, cells = torch.tensor(runs) - torch.tensor(start), []
    for column, dimension in enumerate(("sync", "expressiveness", "smoothness")):
        found = bootstrap_mean(gap[..., column].double().numpy())
        cells.append(f"{dimension} {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
    return "   ".join(cells)

"""Train a multimodal LLM as the reward model, on pairs that somebody stated about finished videos.

pair ─► evenly spaced frames and the sound of A and of B ─► scores ─► pair_loss ─► AdamW on the adapters
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from flowportrait.errors import BadInput
from flowportrait.interrupt import StopRequest
from flowportrait.media.bounded import read_clip
from flowportrait.media.video import FPS
from flowportrait.preference.made_pairs import CODES, DIMENSIONS, NOT_JUDGED
from flowportrait.preference.pair_loss import Objective, pair_loss
from flowportrait.preference.pairs import Pair
from flowportrait.preference.stated_pairs import SIDES
from flowportrait.preference.vlm_inputs import Shown
from flowportrait.preference.vlm_reward import VlmReward, VlmSettings
from flowportrait.training.descend import GuardedStep


@dataclass(frozen=True)
class VlmPlan:
    """How it is trained; VideoReward's settings, for one machine."""

    settings: VlmSettings = field(default_factory=VlmSettings)
    objective: Objective = "ties"
    epochs: int = 2
    batch: int = 8
    """Pairs a step."""
    at_once: int = 2
    """Pairs in memory at a time."""
    learning_rate: float = 2e-5
    warmup: float = 0.05
    seed: int = 0


def train_vlm(
    plan: VlmPlan,
    reward: VlmReward,
    pairs: Sequence[Pair],
    folder: Path,
    report: Callable[[int, float, float], None] = lambda step, loss, left: None,
) -> dict[str, str]:
    """Train ``reward`` in place and standardise it on the clips of ``pairs``; returns the clips that could not be
    shown, with the reason. Clip paths start at ``folder``.

    Raises:
        BadInput: no pair can be shown.
        KeyboardInterrupt: asked to stop, after the step under way.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b)))
    unread = _unreadable(names, folder)
    usable = [pair for pair in pairs if not {pair.a, pair.b} & unread.keys()]
    if not usable:
        raise BadInput(f"None of {len(pairs)} pairs can be shown: {next(iter(unread.values()))}")
    learned = [parameter for parameter in reward.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, plan.learning_rate, weight_decay=0.0)
    guarded_step = GuardedStep(learned, optimiser)
    rng = np.random.default_rng(plan.seed)
    order = np.concatenate([rng.permutation(len(usable)) for _ in range(plan.epochs)])
    steps = [order[at : at + plan.batch] for at in range(0, len(order), plan.batch)]
    began = time.monotonic()
    reward.train()
    with StopRequest() as stop:
        for step, rows in enumerate(steps):
            ramp = min(1.0, (step + 1) / max(1.0, plan.warmup * len(steps)))
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate * ramp
            optimiser.zero_grad()
            total = 0.0
            for lot in np.array_split(rows, -(-len(rows) // plan.at_once)):
                chosen = [usable[row] for row in lot]
                loss = _loss(plan, reward, chosen, folder) * len(chosen) / len(rows)
                loss.backward()
                total += float(loss.detach())
            guarded_step(step + 1)
            report(step + 1, total, (time.monotonic() - began) / (step + 1) * (len(steps) - step - 1))
            if stop.asked:
                break
    stop.obey()
    reward.eval()
    with torch.no_grad():
        shown = [name for name in names if name not in unread]
        reward.standardise(torch.cat([reward.raw([show(folder / name, reward.settings.frames)]) for name in shown]))
    return unread


def show(path: Path, frames: int) -> Shown:
    """A video as the model is shown it.

    Raises:
        BadInput: unreadable, too large (``media.bounded.LOCAL``), or without sound.
    """
    video, audio = read_clip(path)
    if audio is None:
        raise BadInput(f"{path} has no sound: lip sync cannot be told.")
    places = np.linspace(0, len(video) - 1, min(frames, len(video))).round().astype(int)
    return Shown(video[places], FPS * len(places) / len(video), audio)


def _loss(plan: VlmPlan, reward: VlmReward, pairs: Sequence[Pair], folder: Path) -> torch.Tensor:
    clips = [show(folder / getattr(pair, side), plan.settings.frames) for side in SIDES for pair in pairs]
    a, b = reward.raw(clips).chunk(2)
    labels = [[CODES[pair.aspects[d]] if d in pair.aspects else NOT_JUDGED for d in DIMENSIONS] for pair in pairs]
    points = [
        [[pair.points.get(side, {}).get(d, float("nan")) for d in DIMENSIONS] for side in SIDES] for pair in pairs
    ]
    return pair_loss(plan.objective, a, b, torch.tensor(labels).to(a.device), torch.tensor(points).to(a.device))


def _unreadable(names: Sequence[str], folder: Path) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            show(folder / name, 2)
        except BadInput as error:
            found[name] = str(error)
    return found

"""Train a sync expert and measure it with the acceptance table.

    python -m tools.train_sync_expert --corpus DIR --side evaluation --output DIR

    loss = CE( scale · ⟨face_i, voice_j⟩ , j = i )

over the batch, within the clip, and within the clip with similarities averaged along the diagonal for SPAN windows,
in both directions (InfoNCE, van den Oord et al. 2018). Neighbouring windows of a clip (±1) are not used as negatives,
as 40 ms are inaudible. A loudness-driven and a frozen mouth are further negatives for the same sound.

Training has two rounds: after the first part of the steps the expert estimates how far each training clip's sound is
off; clips off by up to REALIGN frames are realigned, worse ones dropped, and training goes on. An interrupted run
continues from ``checkpoint.pt`` in the output folder.

The acceptance table counts how often a clip's own sound scores above a wrong one (2AFC, chance 50 %), over whole clips.
Wrong sounds: the same sound shifted, and another sentence of the same speaker. Wrong mouths: a frozen one, and one that
follows loudness alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from tools.sync_expert_data import (
    PIECE,
    ExpertClip,
    draw_batch,
    jitter_mel,
    jitter_motion,
    jitter_patches,
    load_expert_clips,
    reencode_patches,
)

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import PixelSyncExpert
from flowportrait.files import atomic_write, write_json
from flowportrait.rewards.sync import MotionSyncExpert as MotionExpert
from flowportrait.rewards.sync import lower_face_motion
from flowportrait.training.joint_embedding import JointEmbedding
from flowportrait.training.optimize import GuardedStep

SPAN = 6
"""Number of windows over which similarities are averaged."""

NEVER = -1e4
"""Similarity of excluded pairs; finite, because 0 · ∞ would make the gradient of the scale NaN."""


def contrastive_loss(face: torch.Tensor, voice: torch.Tensor, fake: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the scalar contrastive loss of unit embeddings.

    Args:
        face: ``[B, W, D]``.
        voice: ``[B, W, D]``.
        fake: K kinds of wrong mouths for the sound of the first P clips, ``[K, P, W, D]``.
        scale: factor of the similarities.
    """
    batch, windows, _ = face.shape
    similarity = torch.einsum("btd,csd->btcs", face, voice)
    steps = torch.arange(windows)
    near = (steps[:, None] - steps).abs() == 1
    inside = similarity[torch.arange(batch), :, torch.arange(batch)]
    wrong = torch.full((batch, windows, len(fake)), NEVER)
    wrong[: fake.shape[1]] = torch.einsum("kptd,ptd->ptk", fake, voice[: fake.shape[1]])

    same_clip = torch.eye(batch, dtype=torch.bool)
    blocked = (same_clip[:, None, :, None] & near[None, :, None, :]).flatten(2).flatten(0, 1)
    across = similarity.flatten(2).flatten(0, 1).masked_fill(blocked, NEVER)
    loss = _both_ways(across[None], wrong.flatten(0, 1)[None], scale)
    loss = loss + _both_ways(inside.masked_fill(near, NEVER), wrong, scale)

    count = windows - SPAN + 1
    span = torch.stack([inside[:, k : k + count, k : k + count] for k in range(SPAN)]).mean(0)
    span_wrong = wrong.unfold(1, SPAN, 1).mean(-1)
    return (loss + _both_ways(span.masked_fill(near[:count, :count], NEVER), span_wrong, 2 * scale)) / 3


def _both_ways(similarity: torch.Tensor, wrong: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of rows and columns of similarities ``[G, N, N]`` with the diagonal as target.

    ``wrong`` ``[G, N, K]`` are further negatives of the columns (of each sound).
    """
    groups, size, _ = similarity.shape
    target = torch.arange(size).repeat(groups)
    face_to_voice = F.cross_entropy((scale * similarity).flatten(0, 1), target)
    sound = torch.cat([similarity.mT, wrong], -1)
    return 0.5 * (face_to_voice + F.cross_entropy((scale * sound).flatten(0, 1), target))


@dataclass(frozen=True)
class ExpertSide:
    """A family of experts: its split of the corpus, its input views of a clip, its augmentation and its network."""

    split: str
    views: Callable[[FaceClip], list[torch.Tensor]]
    jitter: Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
    network: Callable[[], JointEmbedding]
    steps: int
    clips: int
    bfloat16: bool = False
    """Whether matrix products of the training are computed in bfloat16."""


def _patch_views(clip: FaceClip) -> list[torch.Tensor]:
    return [torch.from_numpy(clip.mouth), torch.from_numpy(reencode_patches(clip.mouth, 26 + len(clip.audio) % 11))]


def _motion_views(clip: FaceClip) -> list[torch.Tensor]:
    return [lower_face_motion(clip.landmarks, clip.blendshapes)]


SIDES = {
    "evaluation": ExpertSide("evaluation", _patch_views, jitter_patches, PixelSyncExpert, steps=700, clips=20),
    "reward": ExpertSide("reward", _motion_views, jitter_motion, MotionExpert, steps=3000, clips=32),
}


def expert_side(name: str) -> ExpertSide:
    """Return the family of this name.

    Raises:
        BadInput: if there is none.
    """
    if name not in SIDES:
        raise BadInput(f"Unknown side '{name}': choose evaluation or reward.")
    return SIDES[name]


SHIFTS = (2, 3, 5, 8, 15)
MIN_WINDOWS = 12
"""Least number of windows that a clip must have left to test a shift on it."""
SHORT_CURVE, LONG_CURVE = 8, 15


@torch.no_grad()
def embed_clip(net: JointEmbedding, face: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings ``[W, D]`` of one clip's face ``[T, …]`` and sound ``[4T, 80]``."""
    return net.embed_face(face[None])[0], net.embed_audio(mel[None])[0]


def shifted_score(face: torch.Tensor, voice: torch.Tensor, shift: int) -> float:
    """Return the mean cosine of face window t and sound window t + shift, over the windows that both have."""
    count = len(face) - abs(shift)
    start = max(0, -shift)
    return float((face[start : start + count] * voice[start + shift : start + shift + count]).sum(-1).mean())


def shift_curve(net: JointEmbedding, face: torch.Tensor, mel: torch.Tensor, reach: int) -> dict[int, float]:
    """Return the score of one clip by shift, from −reach to reach."""
    pair = embed_clip(net, face, mel)
    return {shift: shifted_score(*pair, shift) for shift in range(-reach, reach + 1)}


def acceptance_table(net: JointEmbedding, items: list[ExpertClip]) -> dict[str, Any]:
    """Return the acceptance table over ``items`` with clip counts, in all and by speaker."""
    rng = np.random.default_rng(0)
    pairs = [embed_clip(net, item.views[0], item.mel) for item in items]
    rows: dict[str, list[tuple[str, float, float]]] = {}

    def compare(test: str, item: ExpertClip, right: float, wrong: float) -> None:
        rows.setdefault(test, []).append((item.speaker, right, wrong))

    for item, (face, voice) in zip(items, pairs, strict=True):
        unshifted = shifted_score(face, voice, 0)
        for shift in SHIFTS:
            for signed in (-shift, shift):
                if len(face) - shift >= MIN_WINDOWS:
                    compare(
                        f"shift {shift}",
                        item,
                        _overlap(face, voice, signed),
                        shifted_score(face, voice, signed),
                    )
        others = [
            p
            for p, other in zip(pairs, items, strict=True)
            if other.speaker == item.speaker and other.name != item.name
        ]
        if others:
            other_voice = others[rng.integers(len(others))][1]
            size = min(len(face), len(other_voice))
            compare(
                "other sentence",
                item,
                shifted_score(face[:size], voice[:size], 0),
                shifted_score(face[:size], other_voice[:size], 0),
            )
        middle = item.views[0][len(item) // 2]
        still = embed_clip(net, middle[None].expand_as(item.views[0]), item.mel)[0]
        compare("still face", item, unshifted, shifted_score(still, voice, 0))
        driven = embed_clip(net, item.views[0][item.driven], item.mel)[0]
        compare("loudness jaw", item, unshifted, shifted_score(driven, voice, 0))
        if len(item.views) > 1:
            encoded = embed_clip(net, item.views[1], item.mel)[0]
            compare("(re-encoded H.264 against original)", item, unshifted, shifted_score(encoded, voice, 0))
    return {
        "tests": {test: _summary(found) for test, found in rows.items()},
        "by speaker": {
            speaker: {test: _summary([r for r in found if r[0] == speaker]) for test, found in rows.items()}
            for speaker in sorted({item.speaker for item in items})
        },
        "mean score by shift": {
            f"offsets to {reach}": _mean_curve(pairs, reach) for reach in (SHORT_CURVE, LONG_CURVE)
        },
    }


def _overlap(face: torch.Tensor, voice: torch.Tensor, shift: int) -> float:
    """Return the unshifted score over the face windows that ``shifted_score`` uses for ``shift``."""
    count = len(face) - abs(shift)
    start = max(0, -shift)
    return shifted_score(face[start : start + count], voice[start : start + count], 0)


def _summary(found: list[tuple[str, float, float]]) -> dict[str, float]:
    right, wrong = np.array([r[1] for r in found]), np.array([r[2] for r in found])
    if not len(found):
        return {"pairs": 0}
    return {
        "pairs": len(found),
        "accuracy": round(float((right > wrong).mean() + 0.5 * (right == wrong).mean()), 3),
        "right": round(float(right.mean()), 3),
        "wrong": round(float(wrong.mean()), 3),
    }


def _mean_curve(pairs: list[tuple[torch.Tensor, torch.Tensor]], reach: int) -> dict[str, float]:
    """Return the mean score by shift, over the clips that are long enough for all of them."""
    enough = [pair for pair in pairs if len(pair[0]) - reach >= MIN_WINDOWS]
    if not enough:
        return {}
    return {
        f"{shift:+d}": round(float(np.mean([shifted_score(*pair, shift) for pair in enough])), 3)
        for shift in range(-reach, reach + 1)
    }


REALIGN = 3
"""Largest delay in frames that is corrected; clips with a larger one are dropped."""


@dataclass(frozen=True)
class ExpertConfig:
    """How one expert is trained."""

    corpus: Path
    """Prepared corpus with the splits reward, evaluation and dev."""
    output: Path
    """Folder for model.safetensors and acceptance.json."""
    side: str = "evaluation"
    """Family of experts: evaluation or reward."""
    steps: int | None = None
    """Optimiser steps; by default those of the side."""
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    realign_at: float = 0.4
    """Share of the steps after which clips are realigned."""
    seed: int = 0
    threads: int = 1


class ExpertTraining:
    """The state of a training run, which can be saved and resumed: network, optimiser, random state, delays, step."""

    def __init__(self, config: ExpertConfig, side: ExpertSide) -> None:
        torch.manual_seed(config.seed)
        self.side = side
        self.steps = config.steps or side.steps
        self.net = side.network()
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.guarded_step = GuardedStep(self.net.parameters(), self.optimiser, 5.0)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, config.learning_rate, total_steps=self.steps, pct_start=0.1
        )
        self.rng = np.random.default_rng(config.seed)
        self.delays: dict[str, int | None] = {}
        self.step = 0

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "delays": self.delays,
            "step": self.step,
        }
        with atomic_write(path) as partial:
            torch.save(state, partial)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint of ``save``."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])
        self.delays, self.step = state["delays"], state["step"]

    def update(self, items: list[ExpertClip]) -> float:
        """Make one optimiser step on a new batch and return the loss."""
        batch = draw_batch(items, self.rng, self.side.clips, driven=self.side.clips // 5)
        fakes = len(batch.driven)
        frozen = batch.face[:fakes, PIECE // 2 : PIECE // 2 + 1].expand_as(batch.driven)
        faces = self.side.jitter(torch.cat([batch.face, batch.driven, frozen]), self.rng)
        with self._precision():
            embedded = self.net.embed_face(faces).float()
            voice = self.net.embed_audio(jitter_mel(batch.mel, self.rng)).float()
        face, driven, still = embedded.split([len(batch.face), fakes, fakes])
        scale = self.net.log_scale.exp().clamp(max=30.0)
        loss = contrastive_loss(face, voice, torch.stack([driven, still]), scale)
        self.optimiser.zero_grad()
        loss.backward()
        self.step += 1
        self.guarded_step(self.step)
        self.schedule.step()
        return float(loss.detach())

    def _precision(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.side.bfloat16)

    def realign(self, items: list[ExpertClip]) -> None:
        """Estimate each clip's delay with the current network; ``None`` means that the clip is dropped."""
        self.net.eval()
        for item in items:
            with self._precision():
                curve = shift_curve(self.net, item.views[0][: len(item)], item.mel, REALIGN + 3)
            best = max(curve, key=lambda shift: curve[shift])
            significant = curve[best] - curve[0] > 0.02
            self.delays[item.name] = 0 if not significant else best if abs(best) <= REALIGN else None
        self.net.train()
        self.apply(items)

    def apply(self, items: list[ExpertClip]) -> None:
        """Set the estimated delays of the clips."""
        for item in items:
            delay = self.delays.get(item.name, 0)
            item.delay, item.included = delay or 0, delay is not None


def train_expert(config: ExpertConfig) -> dict[str, object]:
    """Train an expert, write its weights, and return (and write) its acceptance table on the dev speakers.

    Raises:
        BadInput: if there is no corpus or no such side.
    """
    torch.set_num_threads(config.threads)
    side = expert_side(config.side)
    config.output.mkdir(parents=True, exist_ok=True)
    items = load_expert_clips(config.corpus, [side.split], side.views)
    training, checkpoint = ExpertTraining(config, side), config.output / "checkpoint.pt"
    fit_expert(training, items, checkpoint, config.realign_at)
    training.net.eval()
    training.net.save(config.output / "model.safetensors")
    table = acceptance_table(training.net, load_expert_clips(config.corpus, ["dev"], side.views))
    record = {k: v for k, v in asdict(config).items() if k not in ("corpus", "output")} | {"steps": training.steps}
    table = {"training": record | {"clips": len(items), "delays": count_delays(training.delays)}} | table
    write_json(config.output / "acceptance.json", table)
    checkpoint.unlink()
    return table


def fit_expert(training: ExpertTraining, items: list[ExpertClip], checkpoint: Path, realign_at: float) -> None:
    """Train to the last step, from the checkpoint if there is one.

    Args:
        training: the new training.
        items: clips to learn from.
        checkpoint: where the state is kept.
        realign_at: share of the steps after which clips are realigned.
    """
    if checkpoint.is_file():
        training.restore(checkpoint)
        training.apply(items)
    began, first, losses = time.monotonic(), training.step, []
    training.net.train()
    while training.step < training.steps:
        losses.append(training.update(items))
        if training.step == round(training.steps * realign_at):
            training.realign(items)
            print(f"delays: {count_delays(training.delays)}", flush=True)
        if training.step % 50 == 0 or training.step == training.steps:
            minutes = (time.monotonic() - began) / 60 / (training.step - first) * (training.steps - training.step)
            loss = np.mean(losses[-50:])
            print(f"step {training.step}/{training.steps} loss {loss:.3f} left {minutes:.1f} min", flush=True)
            training.save(checkpoint)


def count_delays(delays: dict[str, int | None]) -> dict[str, int]:
    """Return how many clips have which delay, and how many were dropped."""
    values = list(delays.values())
    return {
        "dropped" if value is None else f"{value:+d}": values.count(value) for value in sorted(set(values), key=str)
    }


def main() -> None:
    """Train from the command line."""
    try:
        print(json.dumps(train_expert(tyro.cli(ExpertConfig, description=__doc__)), indent=1))
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

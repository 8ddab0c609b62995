"""Train a sync expert on one side of a corpus and judge it on speakers it never saw.

    python -m flowportrait.evaluate.train_expert --corpus DIR --side evaluation --output DIR

Two rounds: after the first part of the steps the expert estimates how far each training clip's sound is off;
clips off by up to REALIGN frames are realigned, worse ones dropped, and training goes on. An interrupted run
continues from ``checkpoint.pt`` in the output folder.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from flowportrait.errors import BadInput
from flowportrait.evaluate.acceptance import acceptance, shift_curve
from flowportrait.evaluate.augment import jitter_mel
from flowportrait.evaluate.contrast import contrastive_loss
from flowportrait.evaluate.expert_data import PIECE, Item, draw_batch, load_items
from flowportrait.evaluate.sides import Side, side_named
from flowportrait.training.descend import GuardedStep
from flowportrait.written import complete, write_json

REALIGN = 3
"""Frames: clips further off than this are dropped."""


@dataclass(frozen=True)
class Plan:
    """How one expert is trained."""

    corpus: Path
    """Folder made by the corpus preparation, with splits reward, evaluation and dev."""
    output: Path
    """Folder for model.safetensors and acceptance.json."""
    side: str = "evaluation"
    """Which family: evaluation or reward."""
    steps: int | None = None
    """Optimiser steps; the side's own number if not given."""
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    realign_at: float = 0.4
    """Share of the steps after which clips are realigned."""
    seed: int = 0
    threads: int = 1


class Training:
    """Everything that a resumed run needs: network, optimiser, random state, known delays, step."""

    def __init__(self, plan: Plan, side: Side) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.side = plan, side
        self.steps = plan.steps or side.steps
        self.net = side.network()
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), plan.learning_rate, weight_decay=plan.weight_decay, fused=True
        )
        self.guarded_step = GuardedStep(self.net.parameters(), self.optimiser, 5.0)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, plan.learning_rate, total_steps=self.steps, pct_start=0.1
        )
        self.rng = np.random.default_rng(plan.seed)
        self.delays: dict[str, int | None] = {}
        self.step = 0

    def save(self, path: Path) -> None:
        """Write a checkpoint under a temporary name first."""
        state = {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "rng": self.rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "delays": self.delays,
            "step": self.step,
        }
        with complete(path) as partial:
            torch.save(state, partial)

    def restore(self, path: Path) -> None:
        """Continue where ``save`` left off."""
        state = torch.load(path, weights_only=True)
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch"])
        self.delays, self.step = state["delays"], state["step"]

    def update(self, items: list[Item]) -> float:
        """One optimiser step on a fresh batch; returns the loss."""
        batch = draw_batch(items, self.rng, self.side.clips, puppets=self.side.clips // 5)
        fakes = len(batch.puppet)
        frozen = batch.face[:fakes, PIECE // 2 : PIECE // 2 + 1].expand_as(batch.puppet)
        faces = self.side.jitter(torch.cat([batch.face, batch.puppet, frozen]), self.rng)
        face, puppet, still = self.net.embed_face(faces).split([len(batch.face), fakes, fakes])
        voice = self.net.embed_audio(jitter_mel(batch.mel, self.rng))
        scale = self.net.log_scale.exp().clamp(max=30.0)
        loss = contrastive_loss(face, voice, torch.stack([puppet, still]), scale)
        self.optimiser.zero_grad()
        loss.backward()
        self.step += 1
        self.guarded_step(self.step)
        self.schedule.step()
        return float(loss.detach())

    def realign(self, items: list[Item]) -> None:
        """Estimate each clip's delay with the present network; ``None`` means drop."""
        self.net.eval()
        for item in items:
            curve = shift_curve(self.net, item.views[0], item.mel, REALIGN + 3)
            best = max(curve, key=lambda shift: curve[shift])
            sure = curve[best] - curve[0] > 0.02
            self.delays[item.name] = 0 if not sure else best if abs(best) <= REALIGN else None
        self.net.train()
        self.apply(items)

    def apply(self, items: list[Item]) -> None:
        """Tell the items what is known about their delay."""
        for item in items:
            delay = self.delays.get(item.name, 0)
            item.delay, item.kept = delay or 0, delay is not None


def train(plan: Plan) -> dict[str, object]:
    """Train, save the weights, measure on the dev speakers; returns (and writes) the acceptance table.

    Raises:
        BadInput: no corpus, no such side.
    """
    torch.set_num_threads(plan.threads)
    side = side_named(plan.side)
    plan.output.mkdir(parents=True, exist_ok=True)
    items = load_items(plan.corpus, [side.split], side.views)
    training, checkpoint = Training(plan, side), plan.output / "checkpoint.pt"
    if checkpoint.is_file():
        training.restore(checkpoint)
        training.apply(items)
    began, first, losses = time.monotonic(), training.step, []
    training.net.train()
    while training.step < training.steps:
        losses.append(training.update(items))
        if training.step == round(training.steps * plan.realign_at):
            training.realign(items)
            print(f"delays: {_tally(training.delays)}", flush=True)
        if training.step % 50 == 0 or training.step == training.steps:
            minutes = (time.monotonic() - began) / 60 / (training.step - first) * (training.steps - training.step)
            loss = np.mean(losses[-50:])
            print(f"step {training.step}/{training.steps} loss {loss:.3f} left {minutes:.1f} min", flush=True)
            training.save(checkpoint)
    training.net.eval()
    training.net.save(plan.output / "model.safetensors")
    table = acceptance(training.net, load_items(plan.corpus, ["dev"], side.views))
    record = {k: v for k, v in asdict(plan).items() if k not in ("corpus", "output")} | {"steps": training.steps}
    table = {"training": record | {"clips": len(items), "delays": _tally(training.delays)}} | table
    write_json(plan.output / "acceptance.json", table)
    checkpoint.unlink()
    return table


def _tally(delays: dict[str, int | None]) -> dict[str, int]:
    values = list(delays.values())
    return {
        "dropped" if value is None else f"{value:+d}": values.count(value) for value in sorted(set(values), key=str)
    }


def main() -> None:
    """Command line."""
    try:
        print(json.dumps(train(tyro.cli(Plan, description=__doc__)), indent=1))
    except BadInput as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

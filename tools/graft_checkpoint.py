"""Lips of one checkpoint on the head and eyes of another.

    v*_lips = v_LIPS(x_σ, σ | h),   v*_rest = v_REST(x_σ, σ | h)          L = E ‖ w ⊙ (v − v*) ‖²,   v starts as v_REST

    python -m tools.graft_checkpoint LIPS REST --corpus CORPUS --output CHECKPOINT [--steps 400] [--heard FILE]

One trunk moves the whole face, so a run that is paid for livelier heads also changes lips. Both teachers are asked at
the same noised chunk after the same past, with the sound and without it, since guidance follows their difference. What
is learned is told as a share of how far the teachers are apart: 0 is the teacher, 1 the other one.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch

from flowportrait.data.motion_dataset import TRAINING_SPLITS, WindowSampler
from flowportrait.errors import BadInput
from flowportrait.flow.paths import interpolate
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.flow_matching import PretrainConfig, latent_weight
from flowportrait.models.training_clips import extract_features, load_clips, with_lip_targets
from flowportrait.rendering.motion_basis import LOWER, MOTION_DIM
from flowportrait.training.descend import descend
from flowportrait.training.distributed import repeatable

FRAMES, BATCH = 48, 16
LEARNING_RATE = 3e-4
UNHEARD = 0.4
"""Share of windows asked without their sound."""
CONFIG = PretrainConfig()


class Graft:
    """The loss of a student between its teachers, on windows of a sampler."""

    def __init__(self, student: ARFlow, lips: ARFlow, rest: ARFlow, sampler: WindowSampler) -> None:
        """Raises BadInput for generators that differ in more than weights and in how they are drawn."""
        if any(other.config.chunk != lips.config.chunk or not _alike(other, lips) for other in (student, rest)):
            raise BadInput("A graft needs two checkpoints of one architecture: take runs from the same start.")
        self.student, self.teachers, self.sampler = student, (lips, rest), sampler
        own = torch.zeros(MOTION_DIM, dtype=torch.bool)
        own[LOWER] = True
        self.of_lips = own.repeat_interleave(lips.config.chunk)
        self.weight = latent_weight(lips.space)
        self.apart = torch.zeros(2)

    def __call__(self, step: int) -> torch.Tensor:
        """Mean loss of a batch; ``apart`` holds the shares of lips and rest afterwards."""
        ask = self._question()
        with torch.no_grad():
            lips, rest = (ask(teacher) for teacher in self.teachers)
        found, goal = ask(self.student), torch.where(self.of_lips, lips, rest)
        error, between = (found - goal).square(), (lips - rest).square()
        parts = (self.of_lips, ~self.of_lips)
        self.apart = torch.stack([(error[..., p].mean() / between[..., p].mean()).detach() for p in parts])
        return (self.weight * error).mean()

    def _question(self) -> Callable[[ARFlow], torch.Tensor]:
        """A batch of noised chunks after real pasts that are a little off, for anybody to answer with velocities."""
        draws = self.sampler.generator
        motion, heard, style = self.sampler.draw(BATCH)
        start, chunks = motion[:, 0], motion[:, 1:].unflatten(1, (-1, self.student.config.chunk))
        off = CONFIG.history_noise * torch.rand(BATCH, 1, 1, 1, generator=draws)
        history = chunks + off * self.student.space.step_size * torch.randn(chunks.shape, generator=draws)
        base = torch.cat([start[:, None], history[:, :-1, -1]], 1)
        latents = self.student.space.encode(chunks, base)
        sigma = torch.rand(latents.shape[:2], generator=draws)
        noise = self.teachers[1].begin(torch.randn(latents.shape, generator=draws))
        x, silent = interpolate(latents, noise, sigma[..., None]), torch.rand(BATCH, generator=draws) < UNHEARD

        def ask(model: ARFlow) -> torch.Tensor:
            condition = model.condition_from_features(heard, style, start, drop_audio=silent)
            return model.head(x, sigma, model.contexts_after(condition, history[:, :-1].flatten(1, 2)))

        return ask


def graft(lips: ARFlow, rest: ARFlow, sampler: WindowSampler, steps: int) -> ARFlow:
    """A generator with the lips of one and all else of the other, drawn as ``rest`` is.

    Raises:
        BadInput: see ``Graft``.
        KeyboardInterrupt: asked to stop.
    """
    student = copy.deepcopy(rest).requires_grad_(True)
    loss = Graft(student, lips.requires_grad_(False), rest.requires_grad_(False), sampler)

    def report(step: int, now: float, left: float) -> None:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in zip(("lips", "rest"), loss.apart, strict=True))
        print(f"step {step} of {steps}, {left:.0f} s left: {shares}", flush=True)

    descend(student.parameters(), loss, steps, LEARNING_RATE, 0.0, report)
    return student


def grafted(lips: ARFlow, rest: ARFlow, corpus: Path, heard: Path | None = None, steps: int = 400) -> ARFlow:
    """``graft`` on the training clips of a prepared corpus; ``heard``: what a supervised run remembered of them, else
    they are listened to first."""
    repeatable()
    clips = load_clips(heard) if heard else extract_features(lips, corpus, TRAINING_SPLITS, 0, CONFIG.seed)
    clips = with_lip_targets(lips, clips, CONFIG.lip_residual)
    sampler = WindowSampler(clips, FRAMES, torch.Generator().manual_seed(CONFIG.seed))
    return graft(lips, rest, sampler, steps)


def _alike(one: ARFlow, other: ARFlow) -> bool:
    shapes = ({name: value.shape for name, value in model.state_dict().items()} for model in (one, other))
    return next(shapes) == next(shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lips", help="name or folder of the checkpoint whose lips are kept")
    parser.add_argument("rest", help="of the one whose head, eyes and brows are kept, and how it is drawn")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--heard", type=Path, help="what a supervised run remembered (heard.pt), to save listening")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lips, rest = load_generator(given.lips), load_generator(given.rest)
    grafted(lips, rest, given.corpus, given.heard, given.steps).save_pretrained(given.output)


if __name__ == "__main__":
    main()

"""Combine the lips of one checkpoint with the head and eyes of another by distillation.

    v*_lips = v_LIPS(x_σ, σ | h),   v*_rest = v_REST(x_σ, σ | h)          L = E ‖ w ⊙ (v − v*) ‖²,   v starts as v_REST

    python -m tools.graft_checkpoint LIPS REST --corpus CORPUS --output CHECKPOINT [--steps 400] [--heard FILE]

One trunk moves the whole face, so a run that is rewarded for livelier heads also changes the lips. Both teachers are
evaluated at the same noised chunk after the same history, with the sound and without it, as guidance uses their
difference. The error of the student is reported as a share of the distance between the teachers: 0 is the teacher, 1
the other one.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import torch

from flowportrait.data.motion_dataset import TRAINING_SPLITS, WindowSampler
from flowportrait.errors import BadInput
from flowportrait.flow.schedules import interpolate
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.flow_matching import PretrainConfig, latent_loss_weight
from flowportrait.models.training_clips import extract_features, load_clips, with_lip_targets
from flowportrait.rendering.motion_basis import LOWER_FACE, MOTION_DIM
from flowportrait.training.distributed import use_deterministic_algorithms
from flowportrait.training.optimize import minimize

FRAMES, BATCH = 48, 16
LEARNING_RATE = 3e-4
SILENT_SHARE = 0.4
"""Share of windows that are evaluated without their sound."""
CONFIG = PretrainConfig()


class Graft:
    """The distillation loss of a student from its two teachers, on windows of a sampler."""

    def __init__(self, student: ARFlow, lips: ARFlow, rest: ARFlow, sampler: WindowSampler) -> None:
        """Prepare the loss.

        Raises:
            BadInput: if the generators differ in more than their weights and sampling settings.
        """
        if any(
            other.config.chunk != lips.config.chunk or not _same_architecture(other, lips) for other in (student, rest)
        ):
            raise BadInput("A graft needs two checkpoints of one architecture: take runs from the same start.")
        self.student, self.teachers, self.sampler = student, (lips, rest), sampler
        is_lower = torch.zeros(MOTION_DIM, dtype=torch.bool)
        is_lower[LOWER_FACE] = True
        self.of_lips = is_lower.repeat_interleave(lips.config.chunk)
        self.weight = latent_loss_weight(lips.space)
        self.apart = torch.zeros(2)

    def __call__(self, step: int) -> torch.Tensor:
        """Return the mean loss of a batch; ``apart`` holds the error shares of lips and rest afterwards."""
        velocity_of = self._draw_batch()
        with torch.no_grad():
            lips, rest = (velocity_of(teacher) for teacher in self.teachers)
        velocity, target = velocity_of(self.student), torch.where(self.of_lips, lips, rest)
        error, between = (velocity - target).square(), (lips - rest).square()
        parts = (self.of_lips, ~self.of_lips)
        self.apart = torch.stack([(error[..., p].mean() / between[..., p].mean()).detach() for p in parts])
        return (self.weight * error).mean()

    def _draw_batch(self) -> Callable[[ARFlow], torch.Tensor]:
        """Draw noised chunks after slightly noised real histories; return a function from a model to its velocities."""
        draws = self.sampler.generator
        motion, audio_features, style = self.sampler.draw(BATCH)
        start, chunks = motion[:, 0], motion[:, 1:].unflatten(1, (-1, self.student.config.chunk))
        noise_level = CONFIG.history_noise * torch.rand(BATCH, 1, 1, 1, generator=draws)
        history = chunks + noise_level * self.student.space.step_size * torch.randn(chunks.shape, generator=draws)
        base = torch.cat([start[:, None], history[:, :-1, -1]], 1)
        latents = self.student.space.encode(chunks, base)
        sigma = torch.rand(latents.shape[:2], generator=draws)
        noise = self.teachers[1].initial_state(torch.randn(latents.shape, generator=draws))
        x, silent = interpolate(latents, noise, sigma[..., None]), torch.rand(BATCH, generator=draws) < SILENT_SHARE

        def velocity_of(model: ARFlow) -> torch.Tensor:
            condition = model.condition_from_features(audio_features, style, start, drop_audio=silent)
            return model.head(x, sigma, model.contexts_from_motion(condition, history[:, :-1].flatten(1, 2)))

        return velocity_of


def graft(lips: ARFlow, rest: ARFlow, sampler: WindowSampler, steps: int) -> ARFlow:
    """Return a generator with the lips of one and the rest of the other, with the sampling settings of ``rest``.

    Raises:
        BadInput: see ``Graft``.
        KeyboardInterrupt: if the user asked to stop.
    """
    student = copy.deepcopy(rest).requires_grad_(True)
    loss = Graft(student, lips.requires_grad_(False), rest.requires_grad_(False), sampler)

    def report(step: int, now: float, left: float) -> None:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in zip(("lips", "rest"), loss.apart, strict=True))
        print(f"step {step} of {steps}, {left:.0f} s left: {shares}", flush=True)

    minimize(student.parameters(), loss, steps, LEARNING_RATE, 0.0, report)
    return student


def grafted(lips: ARFlow, rest: ARFlow, corpus: Path, heard: Path | None = None, steps: int = 400) -> ARFlow:
    """Return ``graft`` on the training clips of a prepared corpus.

    ``heard`` is the feature file (``heard.pt``) of a supervised run; without it, features are extracted first.
    """
    use_deterministic_algorithms()
    clips = load_clips(heard) if heard else extract_features(lips, corpus, TRAINING_SPLITS, 0, CONFIG.seed)
    clips = with_lip_targets(lips, clips, CONFIG.lip_residual)
    sampler = WindowSampler(clips, FRAMES, torch.Generator().manual_seed(CONFIG.seed))
    return graft(lips, rest, sampler, steps)


def _same_architecture(one: ARFlow, other: ARFlow) -> bool:
    shapes = ({name: value.shape for name, value in model.state_dict().items()} for model in (one, other))
    return next(shapes) == next(shapes)


def main() -> None:
    """Combine two checkpoints from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lips", help="name or folder of the checkpoint whose lips are kept")
    parser.add_argument(
        "rest", help="name or folder of the checkpoint whose head, eyes, brows and sampling settings are kept"
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument(
        "--heard", type=Path, help="features of a supervised run (heard.pt), which saves extracting them"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    lips, rest = load_generator(options.lips), load_generator(options.rest)
    grafted(lips, rest, options.corpus, options.heard, options.steps).save_pretrained(options.output)


if __name__ == "__main__":
    main()

"""Learn the direction of expressive intensity in the style input of a generator.

    python -m tools.train_intensity CORPUS OUTPUT [--checkpoint sft] [--seconds 115] [--heard FILE]

    level e = mean over lower face and brows of ln(amplitude in the window / the speaker's), minus its mean over windows
    flow matching with   token ← token + e · d,   then   d ← g · d   until intensity 1.5 moves brows 1.5 times as far

Windows in which speakers happen to be lively define the direction d; the sound of the window is given as usual, so d
captures what the sound does not determine. A generator also infers liveliness from its own history, which the intensity
control has to outweigh; the factor g does that. ``--heard`` is the feature file (``heard.pt``) of a supervised run,
which saves extracting features.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from flowportrait.data.motion_dataset import TRAINING_SPLITS, WindowSampler
from flowportrait.files import atomic_write
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.flow_matching import PretrainConfig, flow_matching_loss
from flowportrait.models.sampler import sample_chunks
from flowportrait.models.speech_encoder import STYLE_LIPS
from flowportrait.models.training_clips import extract_features, load_clips, with_lip_targets
from flowportrait.rendering.motion_basis import BROWS, LOWER_FACE
from flowportrait.training.optimize import GuardedStep

FRAMES, BATCH = 28, 32
LEARNING_RATE = 2e-2
CONFIG = PretrainConfig()
CALIBRATED = 1.5
"""The intensity at which the amplitude of the brows is calibrated."""
SAMPLES = 48
"""Number of samples of the calibration."""


class Dial(nn.Module):
    """The ``style_in`` layer of a generator, with ``level`` ``[B]`` times a learned direction added."""

    def __init__(self, style_in: nn.Module, hidden: int) -> None:
        super().__init__()
        self.style_in, self.direction = style_in, nn.Parameter(torch.zeros(hidden))
        self.level = torch.zeros(1)

    def forward(self, style: torch.Tensor) -> torch.Tensor:
        """Return what is added to every token ``[B, hidden]``, for style ``[B, 19]``."""
        return self.style_in(style) + self.level[:, None] * self.direction


def amplitudes(motion: torch.Tensor) -> torch.Tensor:
    """Return the log amplitudes of lower face and brows ``[B, 2]`` of motion ``[B, T, 30]``, as styles contain them."""
    parts = [motion[..., part].std(1).mean(-1).clamp_min(0.05).log() for part in (LOWER_FACE, BROWS)]
    return torch.stack(parts, -1)


def level(motion: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Return how much livelier windows are than their speaker's ``style`` ``[B, 19]``, up to a constant, ``[B]``."""
    return (amplitudes(motion) - style[:, STYLE_LIPS : STYLE_LIPS + 2]).mean(-1)


def learn(model: ARFlow, sampler: WindowSampler, seconds: float) -> Dial:
    """Return the direction after ``seconds`` of CPU time of training; it is part of the model afterwards."""
    generator = sampler.generator
    windows = [sampler.draw(BATCH) for _ in range(8)]
    mean_level = torch.cat([level(motion[:, 1:], style) for motion, _, style in windows]).mean()
    dial = Dial(model.style_in, model.config.hidden)
    model.register_module("style_in", dial)
    optimizer, began, step, spent = torch.optim.Adam([dial.direction], betas=(0.9, 0.98)), time.process_time(), 0, 0.0
    guarded_step = GuardedStep([dial.direction], optimizer, math.inf)
    while spent < seconds:
        motion, features, style = sampler.draw(BATCH)
        dial.level = level(motion[:, 1:], style) - mean_level
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * max(0.02, 1 - spent / seconds)
        loss = flow_matching_loss(model, motion, features, style, CONFIG, generator)
        optimizer.zero_grad()
        loss.backward()
        guarded_step(step + 1)
        step, spent = step + 1, time.process_time() - began
    print(f"{step} steps; length of the direction {dial.direction.norm():.2f}")
    return dial


@torch.no_grad()
def calibrate(model: ARFlow, dial: Dial, sampler: WindowSampler) -> None:
    """Scale the direction so that intensity ``CALIBRATED`` gives that amplitude, over samples of training speakers."""
    _, features, style = sampler.draw(SAMPLES)

    def brow_amplitude(intensity: float) -> float:
        dial.level = torch.tensor([math.log(intensity)])
        condition = model.condition_from_features(features, style)
        motion = torch.cat(list(sample_chunks(model, condition, list(range(SAMPLES)))), 1)
        return float(amplitudes(motion)[:, 1].mean())

    neutral = brow_amplitude(1.0)
    for _ in range(4):
        change = brow_amplitude(CALIBRATED) - neutral
        print(f"intensity {CALIBRATED}, brows {math.exp(change):.2f}")
        dial.direction.mul_(min(8.0, math.log(CALIBRATED) / max(change, 0.02)))
    print(f"length of the direction {dial.direction.norm():.2f}")


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path, help="folder to write model.safetensors into")
    parser.add_argument("--checkpoint", default="sft")
    parser.add_argument("--seconds", type=float, default=115)
    parser.add_argument("--heard", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load_generator(options.checkpoint).requires_grad_(False)
    clips = (
        load_clips(options.heard)
        if options.heard
        else extract_features(model, options.corpus, TRAINING_SPLITS, 0, CONFIG.seed)
    )
    clips = with_lip_targets(model, clips, CONFIG.lip_residual)
    sampler = WindowSampler(clips, FRAMES, torch.Generator().manual_seed(0))
    dial = learn(model, sampler, options.seconds)
    calibrate(model, dial, sampler)
    options.output.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.output / "model.safetensors") as partial:
        save_file({"direction": dial.direction.detach()}, str(partial))


if __name__ == "__main__":
    main()

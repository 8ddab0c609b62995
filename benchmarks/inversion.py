"""Round trips: real samples inverted to noise and drawn again, by three schemes.

    python benchmarks/inversion.py --flow FLOW/clean --faces faces.safetensors --corpus CORPUS

    error   rms difference between a real sample and what is drawn again from its inversion, over the rms of the sample
    noise   rms of the inverted noise: 1 if the flow takes real samples for its own
    path    rms of (x' − mean) / s under Flow-SDE: 1 if the inverted transitions were the policy's own samples

``straight`` (one drawn ε) is drawn again from that ε by Euler's steps: its error says how far the policy would go from
there to something else. ``two-step`` keeps the last two states; ``two-step, noise alone`` makes the second from the
first by Euler's step. Fields: the small portrait flow on framed faces of unseen speakers, and AR-Flow on unseen clips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.flow import guidance as inversion
from flowportrait.flow.kernels import flow_sde_kernel
from flowportrait.flow.schedules import VelocityField, noise_schedule, solve_ode
from flowportrait.models.arflow import load_generator
from flowportrait.portraitgen.measured_judge import FramedFaces
from flowportrait.portraitgen.still_flow import PortraitFlow, frames_to_pictures
from flowportrait.rl.task import SpeechItem, SpeechPrompts, TalkingTask, draw_prompts

os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass(frozen=True)
class Options:
    """What is inverted."""

    flow: Path | None = None
    # folder of a portrait flow
    faces: Path | None = None
    # framed faces
    corpus: Path | None = None
    # prepared corpus, for AR-Flow
    generator: str = "sft"
    steps: tuple[int, ...] = (4, 6, 8, 12, 16, 24, 32, 64)
    shift: float = 1.0
    samples: int = 64
    output: Path | None = None
    # JSON of all figures


def rms(values: torch.Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def round_trips(velocity: VelocityField, x0: torch.Tensor, sigmas: torch.Tensor) -> dict[str, dict[str, float]]:
    """Error, noise and path by scheme."""
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    straight = inversion.straight_path_states(x0, noise, sigmas)
    ode = inversion.invert_euler(velocity, x0, sigmas)
    two = inversion.invert_two_step(velocity, x0, sigmas)
    second = two[0] + (sigmas[1] - sigmas[0]) * velocity(two[0], sigmas[0])
    paths = {
        "straight": (straight, solve_ode(velocity, straight[0], sigmas)),
        "ode": (ode, solve_ode(velocity, ode[0], sigmas)),
        "two-step": (two, inversion.sample_two_step(velocity, two[0], two[1], sigmas)),
        "two-step, noise alone": (two, inversion.sample_two_step(velocity, two[0], second, sigmas)),
    }
    kernel, found = flow_sde_kernel(0.5), {}
    for name, (states, back) in paths.items():
        residuals = []
        for k in range(len(sigmas) - 2):
            step = kernel(sigmas[k], sigmas[k + 1])
            residuals.append(rms(step.noise(states[k], states[k + 1], velocity(states[k], sigmas[k]))))
        found[name] = {
            "error": rms(back - x0) / rms(x0),
            "noise": rms(states[0]),
            "path": float(np.sqrt(np.mean(np.square(residuals)))),
        }
    return found


def fields(options: Options) -> Iterator[tuple[str, VelocityField, torch.Tensor]]:
    """Velocity fields with real samples."""
    if options.flow and options.faces:
        flow = PortraitFlow.from_pretrained(options.flow)
        faces = FramedFaces.load(options.faces).unseen_speakers()
        chosen = np.random.default_rng(0).choice(len(faces), options.samples, replace=False)
        x0 = flow.space.encode(frames_to_pictures(faces.small[chosen]))
        told = flow.told(flow.standardise(torch.from_numpy(faces.attributes[chosen])))
        yield "portrait flow", partial(flow.velocity, context=told), x0
    if options.corpus:
        policy = load_generator(options.generator)
        clips = [clip for clip in load_motion_clips(options.corpus, ("dev",)) if len(clip.motion) > 28]
        items = [SpeechItem(clip.mel, 0, clip.motion) for clip in clips]
        task = TalkingTask(items, 28, None, policy.config.chunk)
        prompts = SpeechPrompts(*draw_prompts(items, options.samples // 4, 28, 0, 0))
        latents = task.real(policy, prompts)
        assert latents is not None, "clips of a corpus have motion"
        context = policy.contexts(task.condition(policy, prompts), latents)
        yield "AR-Flow", partial(policy.velocity, context=context), latents


@torch.no_grad()
def main(options: Options) -> None:
    """Measure and print."""
    results = {}
    for name, velocity, x0 in fields(options):
        table = Table(title=f"{name}: round-trip error (noise, path) over {len(x0)} real samples")
        rows = {steps: round_trips(velocity, x0, noise_schedule(steps, options.shift)) for steps in options.steps}
        for head in ("steps", *next(iter(rows.values()))):
            table.add_column(head, justify="right")
        for steps, found in rows.items():
            cells = [f"{own['error']:.2g} ({own['noise']:.2f}, {own['path']:.2f})" for own in found.values()]
            table.add_row(str(steps), *cells)
        Console(width=140).print(table)
        results[name] = {str(steps): found for steps, found in rows.items()}
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))

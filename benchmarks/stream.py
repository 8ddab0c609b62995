"""Streaming: latency, memory, and what the cache and the machine's limits leave.

    python benchmarks/stream.py [--checkpoint sft] [--seconds 60] [--size 512]

Sound arrives in pieces of 40 ms; the processor time from a piece's arrival to its frames being drawn counts (wall time
says more about the neighbours than about us; on a quiet machine the two agree). ``without cache`` computes every chunk
anew from the sound and motion since the last fresh start. The roofline: floating-point operations counted per chunk
over what a matrix product of 1024² reaches on this machine, and bytes that matrix products and convolutions read and
write over what a sum of 256 MB reaches: no chunk can be faster than the larger of the two, but for what caches hold.
"""

from __future__ import annotations

import argparse
import resource
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from skimage.data import astronaut
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from flowportrait.flow.noise import keyed_noise
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.sampler import GenerationSession
from flowportrait.rendering.renderer import MotionCodec

PIECE = 640


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--checkpoint", default="sft")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--size", type=int, default=512)
    given = options.parse_args()
    torch.set_num_threads(1)
    model = load_generator(given.checkpoint).requires_grad_(False)
    codec = MotionCodec(Portrait.from_image(astronaut(), given.size))
    sound = babble(given.seconds)
    for _ in GenerationSession(model).push(sound[: 40 * PIECE]):
        pass
    latency(model, codec, sound)
    cached, anew = per_chunk(model, cached=True), per_chunk(model, cached=False)
    print(f"generator per chunk: {1e3 * cached:.1f} ms with cache, {1e3 * anew:.1f} ms without: {anew / cached:.1f}x")
    roofline(model, sound)


def babble(seconds: int) -> np.ndarray:
    """Noise in syllables of a quarter of a second."""
    rng = np.random.default_rng(0)
    time_ = np.arange(16_000 * seconds) / 16_000
    return (rng.normal(size=len(time_)) * 0.05 * (1 + np.sin(8 * np.pi * time_))).astype(np.float32)


def latency(model: ARFlow, codec: MotionCodec, sound: np.ndarray) -> None:
    """Processor time per piece and chunk, time to the first frame, memory at a tenth and at the end."""
    session, motion_ms, drawing_ms, memory = GenerationSession(model), [], [], []
    pieces = np.split(sound, range(PIECE, len(sound), PIECE))
    for index, piece in enumerate(pieces):
        started = time.process_time()
        for motion in session.push(piece):
            made = time.process_time()
            motion_ms.append(1e3 * (made - started))
            for number in range(len(motion)):
                before = time.process_time()
                list(codec.decode(motion[number : number + 1]))
                drawing_ms.append(1e3 * (time.process_time() - before))
            started = time.process_time()
        if index in (len(pieces) // 10, len(pieces) - 1):
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    chunk, frame = np.array(motion_ms), np.array(drawing_ms)
    print(f"motion per chunk of 4 frames: median {np.median(chunk):.1f} ms, p95 {np.quantile(chunk, 0.95):.1f} ms")
    print(f"drawing a frame: median {np.median(frame):.1f} ms, p95 {np.quantile(frame, 0.95):.1f} ms")
    print(f"first frame after enough sound (280 ms): {chunk[0] + frame[0]:.0f} ms")
    whole = np.median(chunk) / 4 + np.median(frame)
    print(f"per frame {whole:.1f} ms: {1e3 / whole:.0f} frames/s on one core, without encoding")
    print(f"memory: {memory[0]:.0f} MB after a tenth, {memory[-1]:.0f} MB at the end of {len(sound) / 16_000:.0f} s")


@torch.no_grad()
def per_chunk(model: ARFlow, cached: bool, ahead: bool = True, chunks: int = 17) -> float:
    """Seconds of processor time per chunk over one horizon; ``ahead``: the head is told all levels at once, as live."""
    columns = 4 * model.config.chunk
    condition = model.condition(torch.randn(1, chunks * columns, 80, generator=torch.Generator().manual_seed(0)))
    sigmas, session, latents = noise_schedule(model.config.steps, model.config.shift), model.session(condition), []
    started = time.process_time()
    for chunk in range(chunks):
        x = keyed_noise(model.config.latent_dim, 0, chunk)[None]
        if cached:
            context = session.context()
        else:
            known = torch.stack([*latents, x], 1)
            context = model.contexts(condition._replace(audio=condition.audio[:, : chunk + 1]), known)[:, -1]
        velocity = model.velocity_field(sigmas, context) if ahead else partial(model.velocity, context=context)
        latents.append(solve_ode(velocity, x, sigmas))
        if cached:
            session.append(latents[-1])
    return (time.process_time() - started) / chunks


class BytesMoved(TorchDispatchMode):
    """Counts operands and results of matrix products and convolutions, as if nothing stayed in a cache."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(name in str(func) for name in ("mm", "convolution", "attention")):
            tensors = [x for x in tree_leaves((args, result)) if isinstance(x, torch.Tensor)]
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return result


def roofline(model: ARFlow, sound: np.ndarray) -> None:
    """Counted operations and bytes over the machine's rates, beside the time taken without counting."""
    size = 1024
    a, large = torch.randn(size, size), torch.randn(1 << 26)
    started = time.process_time()
    for _ in range(5):
        a @ a
    rate = 5 * 2 * size**3 / (time.process_time() - started)
    started = time.process_time()
    for _ in range(3):
        large.sum()
    bandwidth = 3 * large.numel() * large.element_size() / (time.process_time() - started)
    session, pieces = GenerationSession(model), np.split(sound[: 136 * PIECE], 136)

    def chunks(first: int, last: int) -> int:
        return sum(1 for piece in pieces[first:last] for _ in session.push(piece))

    chunks(0, 40)
    began = time.process_time()
    made = chunks(40, 72)
    taken = 1e3 * (time.process_time() - began) / made
    with FlopCounterMode(display=False) as counter:
        counted = chunks(72, 104)
    with BytesMoved() as moved:
        moving = chunks(104, 136)
    operations, bytes_ = counter.get_total_flops() / counted, moved.total / moving
    print(f"a chunk: {operations / 1e9:.2f} GFLOP, at {rate / 1e9:.0f} GFLOP/s {1e3 * operations / rate:.1f} ms; "
          f"{bytes_ / 1e6:.0f} MB, at {bandwidth / 1e9:.1f} GB/s {1e3 * bytes_ / bandwidth:.1f} ms; "
          f"taken {taken:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()

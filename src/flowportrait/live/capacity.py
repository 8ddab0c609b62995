"""What this machine carries: the largest size that holds 25 frames a second, and how many sessions at once.

    for some sizes: prepare the portrait ─► generate speech motion ─► draw ─► encode       in this process, now
      time of one frame by the clock      ≤ 0.7 · 40 ms   ─► the size holds
      processor time of one frame         ─► sessions = 0.7 · cores · 40 ms / it
      that many drawn at once by threads  ─► fewer, if they slow each other down

The measurement takes about five seconds and is made at every start, because a machine does other things too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from flowportrait.live.avatar import LivePortrait
from flowportrait.live.fragments import FragmentEncoder
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.video import FPS
from flowportrait.pipelines.animate import AnimatePipeline
from flowportrait.pipelines.inputs import read_photo
from flowportrait.samples import SPEECH

CANDIDATE_SIZES = (256, 384, 512, 640, 768)
"""Sides in pixels that are offered."""
FIRST_SIZE = 512
"""The size that is measured first; from there it goes up or down, so that few are measured."""
RESERVE = 0.3
"""Share of the time that must stay free. Drawing varies by half from frame to frame, browsers on the same machine need
the processor too, and a laptop that gets warm slows down by about a fifth."""
MEASURE_SECONDS = 5.0
"""Seconds after which no further size is measured."""
FRAME_SECONDS = 1 / FPS
_DRAWN_FRAMES = 12
_SPOKEN_SECONDS = 1.0
_SPEECH_BEGIN = 1.0
"""Second of the example speech at which it is certainly speech."""
_SOUND_RATE = 48_000


@dataclass(frozen=True)
class FrameCost:
    """What one frame of speech costs at one size.

    Attributes:
        size: side of the picture in pixels.
        drawing_seconds: by the clock, in the thread that generates and draws.
        processor_seconds: of all threads, with encoding.
    """

    size: int
    drawing_seconds: float
    processor_seconds: float

    @property
    def holds(self) -> bool:
        """Whether the drawing thread keeps 25 frames a second with the reserve."""
        return self.drawing_seconds <= (1 - RESERVE) * FRAME_SECONDS


@dataclass(frozen=True)
class Capacity:
    """What was measured.

    Attributes:
        size: the default size in pixels.
        sizes: the sizes that clients may ask for.
        sessions: sessions at once on this machine at that size.
        sessions_per_process: sessions at once of one process.
        costs: what was measured, by size.
        cores: processor cores that were counted.
    """

    size: int
    sizes: tuple[int, ...]
    sessions: int
    sessions_per_process: int
    costs: tuple[FrameCost, ...]
    cores: float

    @property
    def cost(self) -> FrameCost:
        """What a frame costs at the default size."""
        return next(cost for cost in self.costs if cost.size == self.size)

    def sentence(self, sessions: int | None = None) -> str:
        """Return the result in one sentence.

        Args:
            sessions: how many are let in; by default as many as the machine carries.
        """
        sessions = sessions or self.sessions
        cost, count = self.cost, f"{sessions} session{'s' if sessions > 1 else ''}"
        begin = (
            f"At {self.size} px a frame takes {1000 * cost.drawing_seconds:.0f} of 40 ms to draw and "
            f"{1000 * cost.processor_seconds:.0f} ms of processor on {self.cores:g} cores"
        )
        if not cost.holds:
            return f"{begin}: this machine is too slow or too busy for it now, and frames will be late."
        return f"{begin}: room for {count} at once."


def measure_capacity(
    photo: Path,
    pipeline: AnimatePipeline,
    size: int | None = None,
    *,
    on_size: Callable[[int], None] = lambda _: None,
) -> tuple[Capacity, LivePortrait]:
    """Measure what this machine carries now.

    Args:
        photo: the photo that sessions show.
        pipeline: the generator.
        size: measure this size alone and make it the default; by default the largest that holds.
        on_size: called with every size before it is measured.

    Returns:
        The capacity, and the portrait at its size, ready to be used.

    Raises:
        BadInput: the photo cannot be used.
    """
    begun = time.monotonic()
    picture = read_photo(photo)
    speech = read_audio(SPEECH)[int(_SPEECH_BEGIN * SAMPLE_RATE) :][: int(_SPOKEN_SECONDS * SAMPLE_RATE)]
    costs: dict[int, FrameCost] = {}
    best: LivePortrait | None = None
    wanted = size or FIRST_SIZE
    while True:
        on_size(wanted)
        size_begun = time.monotonic()
        portrait = LivePortrait(picture, checkpoint=pipeline, size=wanted)
        costs[wanted] = cost = measure_frame(portrait, speech)
        if best is None or cost.holds or not costs[best.size].holds:
            best = portrait
        now = time.monotonic()
        following = None if size else next_size(costs)
        # The smallest size is measured even if it is late: there must be one that is known.
        if following is None or (now - begun + (now - size_begun) > MEASURE_SECONDS and costs[best.size].holds):
            break
        wanted = following
    assert best is not None
    cores = available_cores()
    machine = sessions_that_fit(costs[best.size], cores)
    process = _sessions_together(best, speech, machine)
    sizes = (*(one for one in CANDIDATE_SIZES if one < best.size), best.size)
    return Capacity(best.size, sizes, machine, process, tuple(costs.values()), cores), best


def next_size(costs: dict[int, FrameCost], sizes: Sequence[int] = CANDIDATE_SIZES) -> int | None:
    """Return the size to measure next: upwards while sizes hold, downwards while none does; None at the end."""
    if all(cost.holds for cost in costs.values()):
        return next((one for one in sizes if one > max(costs)), None)
    if any(cost.holds for cost in costs.values()):
        return None
    return next((one for one in reversed(sizes) if one < min(costs)), None)


def sessions_that_fit(cost: FrameCost, cores: float) -> int:
    """Return how many sessions the cores carry with the reserve, at least one."""
    return max(1, int((1 - RESERVE) * cores * FRAME_SECONDS / cost.processor_seconds))


def measure_frame(portrait: LivePortrait, speech: np.ndarray) -> FrameCost:
    """Return what one frame of speech ``[n]`` at 16 kHz costs: generating, drawing and encoding it."""
    processor, begun = time.process_time(), time.perf_counter()
    motion = generate_motion(portrait, speech)
    generating = (time.perf_counter() - begun) / len(motion)
    generating_processor = (time.process_time() - processor) / len(motion)
    encoder = FragmentEncoder(portrait.size, _SOUND_RATE)
    silence = np.zeros((1, _SOUND_RATE // FPS), np.float32)
    encoder.write(portrait.draw(motion[0]), silence)  # the first frame sets up what later ones reuse
    walls, processors = [], []
    for frame in motion[1 : 1 + _DRAWN_FRAMES]:
        processor, begun = time.process_time(), time.perf_counter()
        picture = portrait.draw(frame)
        walls.append(time.perf_counter() - begun)
        encoder.write(picture, silence)
        processors.append(time.process_time() - processor)
    encoder.close()
    return FrameCost(portrait.size, generating + median(walls), generating_processor + median(processors))


def generate_motion(portrait: LivePortrait, speech: np.ndarray) -> np.ndarray:
    """Return the motion ``[T, 30]`` of speech ``[n]`` at 16 kHz."""
    source = portrait.motion_source(0)
    return np.concatenate([part.numpy() for part in [*source.push(speech), *source.finish()]])


def _sessions_together(portrait: LivePortrait, speech: np.ndarray, most: int) -> int:
    """Return how many sessions one process draws in time, at most ``most``.

    Its threads wait for each other wherever Python itself runs.
    """
    motion = generate_motion(portrait, speech)[:_DRAWN_FRAMES]

    def draw(_: int) -> float:
        begun = time.perf_counter()
        for frame in motion:
            portrait.draw(frame)
        return (time.perf_counter() - begun) / len(motion)

    for count in range(most, 1, -1):
        with ThreadPoolExecutor(count) as pool:
            if max(pool.map(draw, range(count))) <= (1 - RESERVE) * FRAME_SECONDS:
                return count
    return 1


def available_cores() -> float:
    """Return how many processor cores this process may use; in a container its quota counts."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, int(quota) / int(period))
    return cores

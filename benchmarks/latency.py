"""How soon a video begins: streams of sound, speech from text, the studio, the live avatar."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from skimage.data import astronaut
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.material import Photo, Speech, use_one_thread
from benchmarks.record import Record
from benchmarks.speed import MS, babble
from benchmarks.timing import Elapsed, peak_memory, processor_seconds, stopwatch
from flowportrait.commands.options import OptionalPath
from flowportrait.errors import BadInput
from flowportrait.evaluation.statistics import bootstrap_ratio
from flowportrait.flow.noise import keyed_noise
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, Sound, read_audio
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.sampler import GenerationSession, OnnxStep, export_step, sample_chunks
from flowportrait.rendering.renderer import MotionCodec

# --- Streams ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamOptions:
    """Measure latency and memory of a stream, and the effect of the cache, of compiling and of the export.

    Sound arrives in pieces of 40 ms; what counts is the time from a piece to its frames drawn, without encoding.

    The parts: latency, as above; chunk, the generator with its KV cache and without it, which should lose; compiled,
    the flow head level by level, and compiled; onnx, the exported step on ONNX Runtime; roofline, the operations and
    bytes of a chunk over what a matrix product of 1024² and a sum of 256 MB reach on this machine: no chunk can be
    faster than the larger of the two, but for what caches hold.
    """

    part: tuple[Literal["latency", "chunk", "compiled", "onnx", "roofline"], ...] = ("latency", "chunk", "roofline")
    """Parts to measure."""
    image: OptionalPath = None
    """Photo; a picture that comes with scikit-image by default."""
    checkpoint: str = "rl"
    """Generator: a name, or a folder."""
    seconds: float = 60
    """Length of the sound."""
    size: int = 512
    """Side of the face square in pixels."""


@torch.no_grad()
def stream(options: StreamOptions, record: Record) -> None:
    use_one_thread()
    model = load_generator(options.checkpoint).requires_grad_(False)
    if "latency" in options.part:
        image = read_image(options.image) if options.image else np.asarray(astronaut())
        _measure_latency(model, MotionCodec(Portrait.from_image(image, options.size)), babble(options.seconds), record)
    if "chunk" in options.part:
        cached, anew = _chunk_ms(model), _chunk_ms(model, cached=False)
        record.add("with the cache", "processor", cached, unit="ms/chunk", group="generator")
        record.add("without the cache", "processor", anew, unit="ms/chunk", group="generator")
        record.add("without the cache", "times as long", anew / cached, group="generator")
    if "compiled" in options.part:
        _measure_compiled(model, load_generator(options.checkpoint).requires_grad_(False), record)
    if "onnx" in options.part:
        _measure_export(model, record)
    if "roofline" in options.part:
        _measure_roofline(model, record)


def _measure_latency(model: ARFlow, codec: MotionCodec, sound: np.ndarray, record: Record) -> None:
    for _ in GenerationSession(model).push(sound[: 40 * SAMPLES_PER_FRAME]):
        pass
    list(codec.decode(torch.zeros(4, 30)))
    session, memory = GenerationSession(model), dict[str, float]()
    motion_ms, frame_ms, whole = list[float](), list[float](), list[tuple[float, float]]()
    pieces = np.split(sound, range(SAMPLES_PER_FRAME, len(sound), SAMPLES_PER_FRAME))
    for number, piece in enumerate(pieces):
        chunks, frames = 0, 0
        with stopwatch() as spent:
            started = time.process_time()
            for motion in session.push(piece):
                motion_ms.append(MS * (time.process_time() - started))
                chunks, frames = chunks + 1, frames + len(motion)
                for pose in motion.split(1):
                    frame_ms.append(MS * processor_seconds(partial(list, codec.decode(pose))))
                started = time.process_time()
        if frames:
            whole.append((MS * spent.processor / frames, MS * spent.clock / frames))
        if number == len(pieces) // 10:
            memory["after a tenth"] = peak_memory()
    memory[f"after {len(sound) / SAMPLE_RATE:.0f} s"] = peak_memory()
    if not whole:
        raise BadInput("The sound is too short for a chunk: give --seconds of 1 or more.")
    processor, clock = np.array(whole).T
    for system, values in {
        "motion of a chunk": motion_ms, "drawing of a frame": frame_ms,
        "frame with its share of the chunk": processor, "the same by the clock": clock,
    }.items():  # fmt: skip
        record.add(system, "median", float(np.median(values)), unit="ms", group="latency")
        record.add(system, "95 % quantile", float(np.quantile(values, 0.95)), unit="ms", group="latency")
    record.add("first frame after enough sound", "processor", motion_ms[0] + frame_ms[0], unit="ms", group="first")
    record.add("first chunk after enough sound", "processor", 4 * processor[0], unit="ms", group="first")
    record.add("one core", "without encoding", MS / float(np.median(processor)), unit="frames/s", group="pace")
    for system, megabytes in memory.items():
        record.add(system, "peak memory", megabytes, unit="MB", group="memory")


def _chunk_ms(model: ARFlow, cached: bool = True, ahead: bool = True, chunks: int = 17) -> float:
    """Return milliseconds of processor time per chunk over one horizon.

    Args:
        model: the generator.
        cached: use the KV cache; otherwise compute every chunk anew from the sound and the motion so far.
        ahead: give the flow head all noise levels at once, as streams do.
        chunks: length of the horizon.
    """
    condition = model.condition(torch.randn(1, 4 * model.config.chunk * chunks, 80, generator=_generator()))
    sigmas, session = noise_schedule(model.config.steps, model.config.shift), model.session(condition)
    latents = list[torch.Tensor]()
    with stopwatch() as spent:
        for chunk in range(chunks):
            x = keyed_noise(model.config.latent_dim, 0, chunk)[None]
            if cached:
                context = session.context()
            else:
                latents_so_far = torch.stack([*latents, x], 1)
                sound_so_far = condition._replace(audio=condition.audio[:, : chunk + 1])
                context = model.contexts(sound_so_far, latents_so_far)[:, -1]
            velocity = model.velocity_field(sigmas, context) if ahead else partial(model.velocity, context=context)
            latents.append(solve_ode(velocity, x, sigmas))
            if cached:
                session.append(latents[-1])
    return MS * spent.processor / chunks


def _measure_compiled(model: ARFlow, compiled: ARFlow, record: Record, turns: int = 10) -> None:
    compiled.compile_head()
    _chunk_ms(compiled, ahead=False)
    times = np.array([[_chunk_ms(each, ahead=False) for each in (model, compiled)] for _ in range(turns)]).T
    for system, values in zip(("level by level", "compiled"), times, strict=True):
        record.add(system, "processor", float(np.median(values)), unit="ms/chunk", group="flow head", n=turns)
    record.add("compiled", "times as fast", bootstrap_ratio(*times), group="flow head")


def _measure_export(model: ARFlow, record: Record, chunks: int = 22) -> None:
    condition = model.condition(torch.randn(1, 4 * model.config.chunk * chunks, 80, generator=_generator()))
    with stopwatch() as own:
        ours = torch.cat(list(sample_chunks(model, condition, [7])), 1)
    with tempfile.TemporaryDirectory() as folder:
        export_step(model, Path(folder) / "step.onnx")
        step = OnnxStep(Path(folder) / "step.onnx")
        with stopwatch() as exported:
            theirs = torch.cat(list(sample_chunks(model, condition, [7], step=step)), 1)
    for system, spent in (("PyTorch", own), ("ONNX Runtime", exported)):
        record.add(system, "processor", MS * spent.processor / chunks, unit="ms/chunk", group="exported step")
    difference = float((ours - theirs).abs().max())
    record.add("ONNX Runtime", "largest difference", difference, unit="standard deviations", group="exported step")


class BytesMoved(TorchDispatchMode):
    """Counts operands and results of matrix products and convolutions, as if nothing stayed in a cache."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(name in str(func) for name in ("mm", "convolution", "attention")):
            tensors = [x for x in tree_leaves((args, result)) if isinstance(x, torch.Tensor)]
            self.total += sum(x.numel() * x.element_size() for x in tensors)
        return result


def _measure_roofline(model: ARFlow, record: Record) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    side = 1024
    matrix, large = torch.randn(side, side), torch.randn(1 << 26)
    rate = 2 * side**3 / processor_seconds(lambda: matrix @ matrix, 5)
    bandwidth = large.numel() * large.element_size() / processor_seconds(large.sum, 3)
    session, pieces = GenerationSession(model), np.split(babble(136 / FPS), 136)

    def draw(first: int, last: int) -> int:
        return sum(1 for piece in pieces[first:last] for _ in session.push(piece))

    draw(0, 40)
    with stopwatch() as spent:
        count = draw(40, 72)
    record.add("chunk as drawn", "processor", MS * spent.processor / count, unit="ms", group="roofline")
    with FlopCounterMode(display=False) as counter:
        count = draw(72, 104)
    operations = counter.get_total_flops() / count
    with BytesMoved() as moved:
        count = draw(104, 136)
    size = moved.total / count
    for system, amount, unit, pace in (
        ("operations", operations / 1e9, "GFLOP", rate / 1e9), ("memory", size / 1e9, "GB", bandwidth / 1e9),
    ):  # fmt: skip
        record.add(system, f"{unit} per chunk", amount, group="roofline")
        record.add(system, f"{unit}/s of this machine", pace, group="roofline")
        record.add(system, "processor", MS * amount / pace, unit="ms", group="roofline")


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- Speech from text -------------------------------------------------------------------


@dataclass(frozen=True)
class SpeakOptions:
    """Measure how long it takes from a text to the first frame, and to video that can be played.

    "warm" is a process that has loaded everything, from the text to the first frame drawn, sentence by sentence and
    beside the same text spoken whole before drawing begins, which should lose with a slow voice. "cold" is the command
    line from its start until the first fragment of video is in the pipe: starting Python, loading and finding the face
    included.
    """

    photo: Photo
    """Photo of a face."""


_TEXT = (
    "Good morning. This is a longer text, of which only the first words are needed to begin. While they are shown, the "
    "next sentence is already being spoken. Nobody has to wait for the end. The last sentence comes when it comes."
)


class SlowVoice:
    """A voice that takes as long to speak as its speech lasts, like a slow server far away."""

    def __init__(self, name: str) -> None:
        from flowportrait.speech.voices import load_voice

        self.voice = load_voice(name)
        self.name = f"{name}, at the pace of speech"

    def supports(self, language: str) -> bool:
        return self.voice.supports(language)

    def synthesize(self, sentence: str) -> Sound:
        sound = self.voice.synthesize(sentence)
        time.sleep(sound.samples.shape[1] / sound.rate)
        return sound


def speak(options: SpeakOptions, record: Record) -> None:
    from flowportrait.pipelines.animator import Animator
    from flowportrait.speech.text_to_speech import prefetch, synthesize_samples
    from flowportrait.speech.voices import Voice, load_voice

    use_one_thread()
    image, animator = read_image(options.photo), Animator.from_pretrained("rl")

    def whole(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        return iter([np.concatenate(list(pieces))])

    def draw_first_frame(voice: Voice, order: Callable[[Iterator[np.ndarray]], Iterator[np.ndarray]]) -> None:
        next(animator.draw(image, animator.live(order(synthesize_samples([_TEXT], voice)))))

    voices: list[Voice] = [load_voice("heart"), load_voice("espeak"), SlowVoice("espeak")]
    draw_first_frame(voices[0], whole)  # everything is loaded
    for voice in voices:
        voice.synthesize("Hello.")
        for name, order in (("sentence by sentence", prefetch), ("spoken whole first", whole)):
            with stopwatch() as spent:
                draw_first_frame(voice, order)
            _add_elapsed(record, f"{voice.name}, {name}", "first frame", spent, "warm")
    for name in ("heart", "espeak"):
        first, end = _time_pipe(options.photo, name)
        record.add(name, "first fragment", first, unit="s", group="cold")
        record.add(name, "whole video", end, unit="s", group="cold")


def _time_pipe(photo: Path, voice: str) -> tuple[float, float]:
    """Return seconds until the first fragment of video is in the pipe, and until the end."""
    command = [sys.executable, "-m", "flowportrait", "animate", "--image", str(photo), "--text", _TEXT, "--voice",
               voice, "--stream", "--crop", "--output", "-"]  # fmt: skip
    began, received, first = time.monotonic(), b"", 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 1 << 16):
            received = (received + data)[-1 << 16 :] if first else received + data
            if not first and b"mdat" in received:
                first = time.monotonic() - began
    if process.returncode or not first:
        raise BadInput(f"animate ended with {process.returncode} for {photo}: run it yourself to see why.")
    return first, time.monotonic() - began


def _add_elapsed(record: Record, system: str, metric: str, spent: Elapsed, group: str = "") -> None:
    record.add(system, metric, spent.clock, unit="s", group=group)
    record.add(system, f"{metric}, processor", spent.processor, unit="s", group=group)


# --- The studio -------------------------------------------------------------------------


@dataclass(frozen=True)
class StudioOptions:
    """Measure how long one waits in the studio: from the request to the first frame, and to the whole video.

    A request is what the page sends: a photo with recorded speech, and with a text. The queue draws it at 512 px into
    a file that can be watched meanwhile. The first request of a process loads everything.
    """

    photo: Photo
    """Photo of a face."""
    speech: Speech
    """Recording of speech."""
    repeats: int = 3
    """Requests of each kind, one after another."""


def studio(options: StudioOptions, record: Record) -> None:
    from flowportrait.pipelines.request import AnimateRequest
    from flowportrait.studio.render_queue import RenderQueue, StudioLimits

    with tempfile.TemporaryDirectory() as folder:
        queue = RenderQueue(Path(folder), StudioLimits())
        text = "Good morning. I read whatever you type, and you watch while I am still being drawn."
        requests = {
            "speech": AnimateRequest(image=options.photo, audio=options.speech, crop=True),
            "text": AnimateRequest(image=options.photo, text=text, crop=True),
        }
        try:
            for repeat in range(options.repeats):
                for name, request in requests.items():
                    for metric, seconds in _time_request(queue, request).items():
                        record.add(name, metric, seconds, unit="s", group=f"request {repeat + 1}")
        finally:
            queue.close()


def _time_request(queue: Any, request: Any) -> dict[str, float]:
    """Return the seconds of one request."""
    began = time.process_time()
    job = queue.submit(request)
    while job.first_frame is None and not job.done.is_set():
        time.sleep(0.005)
    first = time.process_time() - began
    job.done.wait()
    if job.error or job.first_frame is None or job.ended is None:
        raise BadInput(job.error or "The studio drew no frame.")
    return {
        "first frame": job.first_frame, "first frame, processor": first,
        "whole video": job.ended - job.submitted, "whole video, processor": time.process_time() - began,
        "length of the video": job.frames / FPS,
    }  # fmt: skip


# --- The live avatar --------------------------------------------------------------------

_UTTERANCE_SECONDS = 2.5


@dataclass(frozen=True)
class LiveCostOptions:
    """What a live avatar costs: the time from the first sound to its frame, processor time, and late frames.

    A third of the time the face idles, then it speaks one utterance after another. Each is pushed at once, as from a
    voice that is faster than its sound. A frame is late if an older picture is shown in its place.
    """

    photo: Photo
    """Photo of a face."""
    speech: Speech
    """Recording that the face speaks."""
    sizes: tuple[int, ...] = (256, 384, 512)
    """Sides of the frames in pixels."""
    seconds: float = 60
    """Length of the session at each size."""
    checkpoint: str = "rl"
    """Generator: its name or folder."""


def live_cost(options: LiveCostOptions, record: Record) -> None:
    from flowportrait.live import LiveAvatar
    from flowportrait.pipelines.animate import AnimatePipeline

    use_one_thread()
    record.notes.append(f"Load average at the start: {os.getloadavg()[0]:.1f}.")
    pipeline = AnimatePipeline.from_pretrained(options.checkpoint, denoise=False)
    speech = read_audio(options.speech)[: round(_UTTERANCE_SECONDS * SAMPLE_RATE)]
    for size in options.sizes:
        avatar = LiveAvatar(options.photo, checkpoint=pipeline, size=size)
        for metric, value, unit in asyncio.run(_time_live_avatar(avatar, speech, round(options.seconds * FPS))):
            record.add(f"{size} px", metric, value, unit=unit)
        avatar.close()
    record.notes.append(f"Load average at the end: {os.getloadavg()[0]:.1f}.")


async def _time_live_avatar(avatar: Any, speech: np.ndarray, count: int) -> list[tuple[str, float, str]]:
    """Return the figures of a session of ``count`` frames as metric, value and unit."""
    processor, left, late = [time.process_time()], [0], [0]
    number, silent, pushed, waits = 0, 0, 0.0, list[float]()
    began = time.perf_counter()
    async for _, sound in avatar.frames():
        number, silent = number + 1, 0 if sound.any() else silent + 1
        if pushed and not silent:
            waits.append(time.perf_counter() - pushed)
            pushed = 0.0
        if number in (count // 3, count):
            processor.append(time.process_time())
            left.append(number)
            late.append(avatar.late_frames)
        if number == count:
            break
        if number >= count // 3 and not pushed and avatar.state == "idle" and silent > 3:
            avatar.push(speech, SAMPLE_RATE)
            avatar.finish()
            pushed = time.perf_counter()
    spent, frames = np.diff(processor), np.diff(left)
    return [
        ("first sound to its frame, median", MS * float(np.median(waits)), "ms"),
        ("first sound to its frame, longest", MS * max(waits), "ms"),
        ("processor, idle", MS * spent[0] / frames[0], "ms/frame"),
        ("processor, speaking", MS * spent[1] / frames[1], "ms/frame"),
        ("late frames, idle", 100 * (late[1] - late[0]) / frames[0], "%"),
        ("late frames, speaking", 100 * (late[2] - late[1]) / frames[1], "%"),
        ("frames by the clock", count / (time.perf_counter() - began), "1/s"),
    ]

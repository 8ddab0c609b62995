"""What making a video costs, stage by stage, and how soon a live one begins.

    python benchmarks/speed.py [--image PHOTO] [--checkpoint rl] [--seconds 8] [--size 512] [--crop]
                               [--against OTHER_SRC] [--live 60] [--compile]
    python benchmarks/speed.py --video CLIP
    python benchmarks/speed.py --onnx [--checkpoint rl]

Stages are timed alone, in processor time of one core, which other work on the machine changes least; ``two cores`` is
their sum over two, what a quiet machine would give if nothing waited. ``whole`` is one call of everything as
``animate`` does it, in processor time of all its threads (and by the clock). ``--against`` runs the same in a process
with another version of the package (a folder with ``flowportrait`` in it), before and after ours, and prints ratios.
``--video``: from a video to motion instead (decoding, tracking, the 30 numbers). ``--onnx``: the exported step beside
the generator itself.
``--live``: sound in pieces of 40 ms; 95 % quantile per frame, time to the first frame, memory at a tenth and the end.
"""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage.data import astronaut
from stream import PIECE, babble, per_chunk

from flowportrait.media.audio import SAMPLE_RATE
from flowportrait.media.crop import paste_back
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.sampler import GenerationSession, OnnxStep, export_step, sample_chunks
from flowportrait.pipelines.animator import Animator
from flowportrait.provenance.manifest import VideoOrigin, self_signed, sign_video
from flowportrait.provenance.publish import Provenance, write_video_with_provenance
from flowportrait.provenance.watermark import Watermark
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec

PROVENANCE = ("watermark", "signing")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--image", type=Path)
    options.add_argument("--checkpoint", default="rl")
    options.add_argument("--seconds", type=float, default=8)
    options.add_argument("--size", type=int, default=512)
    options.add_argument("--crop", action="store_true", help="the face square alone, not pasted back")
    options.add_argument("--against", type=Path)
    options.add_argument("--live", type=float, default=0, metavar="SECONDS")
    options.add_argument("--compile", action="store_true", help="also time the flow head compiled")
    options.add_argument("--video", type=Path, help="time encoding of this clip, and nothing else")
    options.add_argument("--onnx", action="store_true", help="time the exported step, and nothing else")
    options.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if given.video:
        encoding(given.video)
        return
    if given.onnx:
        exported(load_generator(given.checkpoint).requires_grad_(False))
        return
    if given.json:
        print(json.dumps(stages(given)))
        return
    others = [elsewhere(given)] if given.against else []
    ours = stages(given)
    if given.against:
        others.append(elsewhere(given))
    show(ours, others)
    model = load_generator(given.checkpoint).requires_grad_(False)
    cached, anew = per_chunk(model, cached=True), per_chunk(model, cached=False)
    print(f"generator per chunk: {1e3 * cached:.1f} ms, without the cache {1e3 * anew:.1f} ms ({anew / cached:.1f} x)")
    if given.compile:
        plain = per_chunk(model, cached=True, ahead=False)
        model.compile_head()
        per_chunk(model, cached=True, ahead=False)
        fused = per_chunk(model, cached=True, ahead=False)
        print(f"  level by level {1e3 * plain:.1f} ms, with a compiled flow head {1e3 * fused:.1f} ms")
    if given.live:
        live(model, photo(given), given)


def photo(given: argparse.Namespace) -> np.ndarray:
    return read_image(given.image) if given.image else astronaut()


def stages(given: argparse.Namespace) -> dict[str, float]:
    """Milliseconds per frame by stage; ``whole`` and ``clock`` of everything together."""
    animator, image = Animator.from_pretrained(given.checkpoint), photo(given)
    sound = babble(round(given.seconds))
    list(animator.motion(sound[: 2 * SAMPLE_RATE]))
    table: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any], frames: int) -> Any:
        began = time.process_time()
        result = work()
        table[name] = 1e3 * (time.process_time() - began) / frames
        return result

    frames = len(sound) * 25 // SAMPLE_RATE
    motion = timed("features and generation", lambda: torch.cat(list(animator.motion(sound))), frames)
    portrait = Portrait.from_image(image, given.size)
    renderer = MotionCodec(portrait).renderer
    plain = MotionCodec(portrait, retouch=False)
    points = plain.landmarks(motion)
    renderer.draw(points[0])
    bare = timed("rendering", lambda: [plain.renderer.draw(target) for target in points], frames)
    drawn = timed("retouch", lambda: [renderer.draw(target) for target in points], frames)
    table["retouch"] = max(0.0, table["retouch"] - table["rendering"])
    del bare
    if not given.crop:
        paste = paster(portrait)
        drawn = timed("paste-back", lambda: [paste(frame) for frame in drawn], frames)
    mark = Watermark(*drawn[0].shape[:2])
    marked = timed("watermark", lambda: [mark(frame) for frame in drawn], frames)
    origin, credential = VideoOrigin("portrait"), self_signed()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.mp4"
        timed("encoding", lambda: write_video(path, marked, sound, tags=origin.tags()), frames)
        timed("signing", lambda: sign_video(path, origin, credential), frames)
        began = time.monotonic()
        made = animator.animate(image, sound, size=given.size, crop=given.crop)
        timed("whole", lambda: write_video_with_provenance(path, made, sound, Provenance(origin, credential)), frames)
        table["clock"] = 1e3 * (time.monotonic() - began) / frames
    return table


def paster(portrait: Portrait) -> Callable[[np.ndarray], np.ndarray]:
    """As ``animate`` pastes, in this version of the package or an older one."""
    height, width = (side // 2 * 2 for side in portrait.image.shape[:2])
    try:
        from flowportrait.media.crop import FramePaster
    except ImportError:
        return lambda frame: paste_back(portrait.image, frame, portrait.to_crop)[:height, :width]
    paste = FramePaster(portrait.image, portrait.to_crop, len(portrait.crop))
    return lambda frame: paste(frame)[:height, :width]


def elsewhere(given: argparse.Namespace) -> dict[str, float]:
    """The same by another version of the package."""
    words = [word for word in sys.argv if word != "--compile"] + ["--json"]
    where = os.environ | {"PYTHONPATH": str(given.against.resolve())}
    told = subprocess.run([sys.executable, *words], env=where, check=True, capture_output=True, text=True)
    return json.loads(told.stdout.splitlines()[-1])


def show(ours: dict[str, float], others: list[dict[str, float]]) -> None:
    """A row per stage; provenance is a share of all stages."""
    print(f"load {os.getloadavg()[0]:.0f}; ms per frame")
    for name, took in ours.items():
        before = [other[name] for other in others if name in other]
        ratio = f"   before {np.mean(before):6.1f}  ({np.mean(before) / took:.1f} x)" if before else ""
        print(f"  {name:26s} {took:6.1f}{ratio}")
    parts = {name: took for name, took in ours.items() if name not in ("whole", "clock")}
    total = sum(parts.values())
    drawing = parts["rendering"] + parts["retouch"]
    share = sum(parts[name] for name in PROVENANCE) / total
    print(f"  sum {total:.1f} ms: {2000 / total:.0f} frames/s on two cores; drawing alone {2000 / drawing:.0f}")
    print(f"  provenance {share:.1%}; by the clock {1000 / ours['clock']:.1f} frames/s")


def encoding(video: Path) -> None:
    """Video to motion, the tracker's start included and apart."""
    began = time.process_time()
    with FaceTracker() as tracker:
        opened = time.process_time()
        faces = tracker.track(iter_frames(video))
    MotionBasis.load().encode(faces.landmarks, faces.blendshapes)
    frames, each = len(faces.valid), 1e3 * (time.process_time() - opened)
    print(f"{frames} frames: {each / frames:.1f} ms each, {1e3 * frames / each:.0f} frames/s on one core, "
          f"{2e3 * frames / each:.0f} on two; the tracker starts in {1e3 * (opened - began):.0f} ms")  # fmt: skip


@torch.no_grad()
def exported(model: ARFlow, chunks: int = 22) -> None:
    """The step as ONNX Runtime runs it, from the same noise."""
    condition = model.condition(torch.randn(1, 4 * model.config.chunk * chunks, 80))
    began = time.process_time()
    ours = torch.cat(list(sample_chunks(model, condition, [7])), 1)
    taken = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        export_step(model, Path(folder) / "step.onnx")
        step = OnnxStep(Path(folder) / "step.onnx")
        began = time.process_time()
        theirs = torch.cat(list(sample_chunks(model, condition, [7], step=step)), 1)
        exported_taken = time.process_time() - began
    apart = (ours - theirs).abs().max()
    print(f"chunk: {1e3 * taken / chunks:.1f} ms, exported {1e3 * exported_taken / chunks:.1f} ms "
          f"({taken / exported_taken:.1f} x); {apart:.1e} deviations apart at most")  # fmt: skip


@torch.no_grad()
def live(model: Any, image: np.ndarray, given: argparse.Namespace) -> None:
    """A stream: everything done for a chunk over its frames, in processor time and by the clock."""
    codec = MotionCodec(Portrait.from_image(image, given.size))
    sound = babble(round(given.live))
    list(codec.decode(torch.zeros(4, 30)))
    session, taken, memory = GenerationSession(model), [], []
    pieces = np.split(sound, range(PIECE, len(sound), PIECE))
    for index, piece in enumerate(pieces):
        began = np.array([time.process_time(), time.monotonic()])
        frames = sum(1 for motion in session.push(piece) for _ in codec.decode(motion))
        if frames:
            taken.append(1e3 * (np.array([time.process_time(), time.monotonic()]) - began) / frames)
        if index in (len(pieces) // 10, len(pieces) - 1):
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    for name, per in zip(("processor", "clock"), np.array(taken).T, strict=True):
        print(f"live, {name}: per frame median {np.median(per):.1f} ms, 95 % {np.quantile(per, 0.95):.1f} ms; first "
              f"chunk of 4 {4 * per[0]:.0f} ms after enough sound")  # fmt: skip
    print(f"memory {memory[0]:.0f} MB after a tenth, {memory[-1]:.0f} MB after {len(sound) / SAMPLE_RATE:.0f} s")


if __name__ == "__main__":
    main()

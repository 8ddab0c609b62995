"""Videos of checkpoints on prompts, and what drawing them costs.

``rendered.json`` beside the videos records from what each was made (weights, picture, sound, seed, size) and its cost.
A video is kept only while that is unchanged, so a checkpoint that was trained further is rendered again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from flowportrait import __version__
from flowportrait.data.prompts import read_prompts
from flowportrait.errors import BadInput
from flowportrait.files import write_json
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.models.checkpoints import checkpoint_folder
from flowportrait.pipelines.animate import AnimatePipeline

RENDER_RECORD_FILE = "rendered.json"


def distinct_system_names(checkpoints: Sequence[str]) -> list[str]:
    """Return a distinct name for each checkpoint that can be a folder name: the last part of its path, or all of it.

    Raises:
        BadInput: two checkpoints are the same folder, or their paths give the same name.
    """
    folders = [checkpoint_folder(name).resolve() for name in checkpoints]
    if len(set(folders)) < len(folders):
        raise BadInput(f"{' and '.join(checkpoints)} are one checkpoint: give two different ones to compare.")
    names = [Path(name).name for name in checkpoints]
    if len(set(names)) < len(names) or "" in names:
        names = ["_".join(part for part in Path(name).parts if part.strip("/.")) for name in checkpoints]
    if len(set(names)) < len(names) or "" in names:
        raise BadInput(f"The paths {' and '.join(checkpoints)} do not tell the checkpoints apart: write them in full.")
    return names


def render_prompts(checkpoint: str, prompts: Path, folder: Path, seed: int = 0, size: int = 512) -> list[Path]:
    """Render one video of the face square per prompt, named after the prompt.

    Args:
        checkpoint: name or folder of the generator.
        prompts: folder of portraits and recordings.
        folder: output folder; videos that are there and unchanged are kept.
        seed: random seed of the motion.
        size: side of the video in pixels.

    Returns:
        The video files, in the order of the prompts.
    """
    all_prompts = read_prompts(prompts)
    pipeline = AnimatePipeline.from_pretrained(checkpoint)
    weights = _digest(checkpoint_folder(checkpoint) / "model.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    record_file, rendered, videos = folder / RENDER_RECORD_FILE, _read_record(folder), []
    for prompt in track(all_prompts, description=f"rendering {checkpoint}", console=Console(stderr=True)):
        target = folder / f"{prompt.id}.mp4"
        videos.append(target)
        sources = [__version__, weights, _digest(prompt.image), _digest(prompt.audio), str(seed), str(size)]
        origin = hashlib.sha256("\n".join(sources).encode()).hexdigest()
        if target.is_file() and rendered.get(prompt.id, {}).get("origin") == origin:
            continue
        watch = RenderStopwatch()
        portrait = Portrait.from_image(read_image(prompt.image), size, str(prompt.image))
        video = pipeline(portrait, prompt.audio, seed=seed, crop=True)
        video.save(target, sign=False, watermark=False, watch=watch)
        rendered[prompt.id] = {"origin": origin, "cost": watch.cost()}
        write_json(record_file, rendered)
    return videos


def rendering_costs(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the cost (``RenderStopwatch.cost``) of each video of ``render_prompts`` in a folder, by name."""
    return {name: entry["cost"] for name, entry in _read_record(folder).items() if "cost" in entry}


class RenderStopwatch:
    """Measures the cost of making one video, from its creation to the last frame: encoding included, loading not."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None
        self._frames = 0

    def __call__(self, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the frames and count them."""
        for frame in frames:
            if self._first is None:
                self._first = time.monotonic() - self._began
            self._frames += 1
            yield frame

    def cost(self) -> dict[str, float]:
        """Return the cost of the video so far.

        Returns:
            ``frames_per_second``, ``seconds_per_second`` (seconds of work per second of video), ``first_frame``
            (seconds until it was there) and ``peak_memory`` (MB of the process; missing on Windows).
        """
        seconds = time.monotonic() - self._began
        figures = {
            "frames_per_second": round(self._frames / seconds, 2),
            "seconds_per_second": round(seconds * FPS / max(1, self._frames), 3),
            "first_frame": round(self._first or seconds, 3),
        }
        if sys.platform != "win32":
            import resource

            # Kilobytes on Linux, bytes on macOS.
            unit = 2**20 if sys.platform == "darwin" else 2**10
            figures["peak_memory"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
        return figures


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    record = folder / RENDER_RECORD_FILE
    try:
        entries = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    except json.JSONDecodeError:
        return {}
    return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

"""Render a folder of prompts with a checkpoint to finished mp4 files: what the evaluation sees."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import track

from flowportrait.animator import Animator
from flowportrait.media.audio import read_audio
from flowportrait.media.image import read_image
from flowportrait.media.video import write_video
from flowportrait.prompts import read_prompts


def render_prompts(checkpoint: str, prompts: Path, folder: Path, seed: int = 0, size: int = 512) -> list[Path]:
    """One face-square video per prompt, named after it; videos that are there already are kept."""
    animator = Animator.from_pretrained(checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for prompt in track(read_prompts(prompts), description=f"rendering {checkpoint}", console=Console(stderr=True)):
        target = folder / f"{prompt.id}.mp4"
        videos.append(target)
        if not target.is_file():
            audio = read_audio(prompt.audio)
            frames = animator.animate(read_image(prompt.image), audio, seed=seed, size=size, name=str(prompt.image))
            write_video(target, frames, audio)
    return videos

"""Clips of talking faces as all sync instruments read them, straight from footage with a ``split.tsv``.

    footage ─► tracked once ─► NAME.npz: mouth patches, points of OpenSeeFace, sound, and the same motion redrawn

Redrawn means that the speaker's motion was drawn on a portrait of someone else, as a generated video would be. What was
prepared is kept, so that an interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from flowportrait.errors import BadInput
from flowportrait.evaluation.motion_metrics import frame_rms, longest_run, mouth_opening
from flowportrait.evaluation.openseeface import OpenSeeFace
from flowportrait.files import atomic_write
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.crop import mouth_patch
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.terminal import progress

MIN_FRAMES = 28
DRAWN_SIZE = 256
"""Side of redrawn frames in pixels."""
EVALUATION_LEFT_OUT = ("grid_s1",)
"""Speakers of the split ``evaluation`` whom the instruments do not learn from, since the reward's expert knows them."""


@dataclass(frozen=True)
class SyncClip:
    """One clip of T frames; arrays that were not asked for are empty.

    Attributes:
        name: its file in the footage, without ending.
        speaker: who speaks.
        mouth: ``[T, 48, 64]`` uint8 grey mouth patches.
        points: ``[T, 66, 2]`` points of OpenSeeFace on a steady head.
        drawn_mouth: the patches of the same motion, redrawn.
        drawn_points: its points.
        motion: ``[T, 30]``.
        opening: ``[T]`` lip opening.
        audio: ``[640 T]`` at 16 kHz.
    """

    name: str
    speaker: str
    mouth: np.ndarray
    points: np.ndarray
    drawn_mouth: np.ndarray
    drawn_points: np.ndarray
    motion: np.ndarray
    opening: np.ndarray
    audio: np.ndarray

    def __len__(self) -> int:
        return len(self.mouth)

    def loudness_driven(self, part: slice = slice(None)) -> np.ndarray:
        """Return which frames of a part ``[T]`` a mouth that follows loudness alone would show, counted from its start.

        The rank of the lip opening equals the rank of loudness.
        """
        opening = self.opening[part]
        loud = frame_rms(self.audio, len(self), 1.5)[part]
        order = np.empty(len(opening), np.int64)
        order[np.argsort(loud, kind="stable")] = np.argsort(opening, kind="stable")
        return order


@dataclass(frozen=True)
class FootageVideo:
    """A video of the footage: its path, its name without ending, its speaker and split."""

    path: Path
    name: str
    speaker: str
    split: str


def footage_videos(footage: Path, split: str, limit: int, folders: Sequence[str] = ()) -> list[FootageVideo]:
    """Return the videos with sound of one split, at most ``limit`` of every speaker, evenly spaced.

    Args:
        footage: folder with a ``split.tsv``.
        split: which split.
        limit: most videos of a speaker.
        folders: folders of the footage; all by default.

    Raises:
        BadInput: there is no table, or no such video.
    """
    table = footage / "split.tsv"
    if not table.is_file():
        raise BadInput(f"No split.tsv in {footage}: give footage that says who is for what.")
    by_speaker: dict[str, list[FootageVideo]] = {}
    for line in table.read_text(encoding="utf-8").splitlines()[1:]:
        file, speaker, of = line.split("\t")
        folder = file.split("/", maxsplit=1)[0]
        if of == split and file.endswith(".mp4") and folder != "celebv" and (not folders or folder in folders):
            name = file.removesuffix(".mp4")
            by_speaker.setdefault(speaker, []).append(FootageVideo(footage / file, name, speaker, of))
    if not by_speaker:
        raise BadInput(f"{table} lists no videos of split {split} in {', '.join(folders) or 'any folder'}.")
    return [
        videos[place]
        for videos in by_speaker.values()
        for place in np.linspace(0, len(videos) - 1, min(limit, len(videos))).astype(int)
    ]


def speaker_halves(speakers: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide speakers, named once for each of their videos, into two halves with about as many videos each."""
    names = [name for name in speakers if name not in EVALUATION_LEFT_OUT]
    ordered = sorted(set(names), key=lambda name: (-names.count(name), name))
    halves: tuple[list[str], list[str]] = ([], [])
    for place, name in enumerate(ordered):
        halves[(place % 4) in (1, 2)].append(name)
    return halves


@dataclass(frozen=True)
class ClipMaker:
    """Prepares clips and keeps them in a folder.

    Attributes:
        folder: where they are kept.
        footage: with ``london/`` and ``split.tsv``, whose people are drawn.
        tracker: ``lm_model0_opt.onnx`` of OpenSeeFace; None for clips without points.
        portrait_split: the split of the people who are drawn; None for clips that are not redrawn.
        portraits: how many of them.
    """

    folder: Path
    footage: Path
    tracker: Path | None = None
    portrait_split: str | None = None
    portraits: int = 8

    def make(self, videos: Sequence[FootageVideo]) -> list[SyncClip]:
        """Return the clips of these videos; videos without a face for 28 frames or without sound are left out."""
        clips = []
        for number, video in enumerate(progress(videos, len(videos), "clips")):
            clip = self._stored(video) or self._prepare(video, number)
            if len(clip) >= MIN_FRAMES and len(clip.audio):
                clips.append(clip)
        return clips

    def _file(self, video: FootageVideo) -> Path:
        return self.folder / f"{video.name.replace('/', '-')}.npz"

    def _stored(self, video: FootageVideo) -> SyncClip | None:
        if not self._file(video).is_file():
            return None
        with np.load(self._file(video)) as stored:
            arrays = {field.name: stored[field.name] for field in fields(SyncClip)[2:]}
        arrays["audio"] = arrays["audio"].astype(np.float32) / 32767
        clip = SyncClip(video.name, video.speaker, **arrays)
        missing = (self.tracker and not len(clip.points)) or (self.portrait_split and not len(clip.drawn_mouth))
        return None if missing and len(clip) >= MIN_FRAMES else clip

    def _prepare(self, video: FootageVideo, number: int) -> SyncClip:
        frames = list(iter_frames(video.path))
        with FaceTracker() as tracker:
            faces = tracker.track(frames)
        run = longest_run(faces.valid)
        landmarks, frames = faces.landmarks[run], frames[run]
        try:
            samples = read_audio(video.path)[SAMPLES_PER_FRAME * run.start : SAMPLES_PER_FRAME * run.stop]
        except BadInput:
            samples = np.zeros(0, np.float32)
        audio = np.zeros(SAMPLES_PER_FRAME * len(frames) if len(samples) else 0, np.float32)
        audio[: len(samples)] = samples[: len(audio)]
        usable = len(frames) >= MIN_FRAMES and len(audio) > 0
        no_points, no_mouth = np.zeros((0, 66, 2), np.float32), np.zeros((0, 48, 64), np.uint8)
        drawn_mouth, drawn_points, points, motion = no_mouth, no_points, no_points, np.zeros((0, 30), np.float32)
        if usable:
            found = find_points(self.tracker)
            points = found.steady_points(frames, landmarks) if found else points
            motion = MotionBasis.load().encode(landmarks, faces.blendshapes[run])[0].numpy().astype(np.float32)
        if usable and self.portrait_split:
            codecs = drawn_people(self.footage, self.portrait_split, self.portraits)
            drawn_mouth, drawn_points = redraw(codecs[number % len(codecs)], motion, self.tracker)
        clip = SyncClip(
            video.name, video.speaker,
            np.array([mouth_patch(frame, face) for frame, face in zip(frames, landmarks, strict=True)], np.uint8),
            points, drawn_mouth, drawn_points, motion, mouth_opening(landmarks), audio,
        )  # fmt: skip
        arrays = {field.name: getattr(clip, field.name) for field in fields(SyncClip)[2:]}
        arrays["audio"] = np.round(audio * 32767).astype(np.int16)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file(video)) as partial, partial.open("wb") as stream:
            np.savez(stream, **arrays)
        return clip


def redraw(codec: MotionCodec, motion: np.ndarray, tracker: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Return mouth patches and, with a tracker, points of motion ``[T, 30]`` drawn on a portrait.

    The patches are cut by the landmarks that were drawn: no face has to be found again.
    """
    import torch

    landmarks = codec.landmarks(torch.from_numpy(motion))
    frames = [codec.renderer.draw(points) for points in landmarks]
    scale = len(frames[0]) / codec.portrait.crop.shape[0]
    landmarks = (landmarks + 0.5) * scale - 0.5
    patches = np.array([mouth_patch(frame, points) for frame, points in zip(frames, landmarks, strict=True)])
    found = find_points(tracker)
    return patches, found.steady_points(frames, landmarks) if found else np.zeros((0, 66, 2), np.float32)


@lru_cache(maxsize=2)
def find_points(tracker: Path | None) -> OpenSeeFace | None:
    """Return OpenSeeFace with the network of this file; None without a file."""
    return OpenSeeFace(tracker) if tracker else None


@lru_cache(maxsize=2)
def drawn_people(footage: Path, split: str, count: int) -> list[MotionCodec]:
    """Return codecs of people of ``london/`` in one split, evenly spaced."""
    lines = (footage / "split.tsv").read_text(encoding="utf-8").splitlines()[1:]
    names = sorted({
        line.split("\t")[0] for line in lines if line.startswith("london/") and line.endswith(f"\t{split}")
    })  # fmt: skip
    files = [path for name in names for path in sorted((footage / "london").glob(f"{Path(name).stem[:3]}_neutral.jpg"))]
    if not files:
        raise BadInput(f"{footage / 'london'} has no photo of split {split}: give footage with london/.")
    files = list(dict.fromkeys(files))
    chosen = [files[place] for place in np.linspace(0, len(files) - 1, min(count, len(files))).astype(int)]
    return [MotionCodec(Portrait.from_image(read_image(path), DRAWN_SIZE, path.name), DRAWN_SIZE) for path in chosen]

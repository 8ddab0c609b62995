"""Videos of every system on the evaluation set: checkpoints, baselines that must lose, and ceilings.

    OUTPUT/videos/SYSTEM/PIECE.mp4     a video that is there is kept, so that an interrupted run continues
    OUTPUT/tracks/                     tracks of every video, by the hash of its content

The portrait is the first frame of the speaker's own footage, and the same piece has the same seed in every system.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.drawing import draw, generate_motion
from benchmarks.evaluation_set import SOUND, SetPiece, SourcePart, part_sound, read_piece
from benchmarks.material import speech_paths
from flowportrait.corruption.motion import loudness_driven_jaw, negative_controls
from flowportrait.errors import BadInput
from flowportrait.evaluation.metrics import REAL
from flowportrait.evaluation.tracking import VideoTracks, track_file
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.faces import interpolate_missing_frames
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS, iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import LOWER_FACE, MotionBasis
from flowportrait.rendering.renderer import MotionCodec

SIZE = 256
"""Side of the videos in pixels."""
REDRAWN = "real motion redrawn"
"""The ceiling of a generator of motion: the speaker's own motion, drawn as the systems' motion is."""
BASELINES = ("still", "loudness jaw", "shifted by 5", "other sentence")
"""Systems that must lose."""
FACTORS = (0.5, 1.5, 2.0)
"""By how much the motion of the lower face is scaled, to see what exaggeration does to sync and to fidelity."""
POSITIONS = (0, 25, 55)
"""Beginnings in seconds of the windows of a minute that are compared."""
WINDOW_SECONDS, LONG_SECONDS = 5, 60


class SetVideos:
    """The videos of one output folder.

    Args:
        footage: folder of footage.
        output: folder of videos and tracks.
        animators: checkpoints by name.
        pieces: the set, which other sentences are taken from.
    """

    def __init__(
        self, footage: Path, output: Path, animators: Mapping[str, Animator], pieces: Sequence[SetPiece]
    ) -> None:
        self.footage, self.output, self.animators, self.pieces = footage, output, animators, pieces
        self.exaggerated = (REDRAWN, list(animators)[-1])
        self._motions: dict[str, torch.Tensor] = {}

    def path(self, system: str, piece: str) -> Path:
        """Return where the video of a system is."""
        return self.output / "videos" / system.replace(" ", "_") / f"{piece}.mp4"

    def tracks(self, system: str, piece: str) -> VideoTracks:
        """Return the tracks of a video."""
        return track_file(self.path(system, piece), self.output / "tracks")

    def make(self, piece: SetPiece) -> list[str]:
        """Draw and track a piece in every system that is missing, and return the names of the systems.

        Raises:
            BadInput: the footage shows no face where one is needed.
        """
        self._write_real(piece)
        systems = [REAL, REDRAWN, *BASELINES, *self.animators]
        if not all(self.path(system, piece.name).is_file() for system in systems):
            sound = self.sound(piece)
            motion, codec = self.real_motion(piece), self.codec(piece)
            self._draw(piece, codec, sound, {REDRAWN: motion})
            self._draw(piece, codec, sound, negative_controls(motion, sound, self.real_motion(self.other(piece))))
            self._draw(piece, codec, sound, {name: self.generated(name, piece, sound) for name in self.animators})
        for system in systems:
            self.tracks(system, piece.name)
        return systems

    def make_exaggerated(self, piece: SetPiece) -> list[str]:
        """Draw and track the real motion and the last checkpoint's with the lower face scaled about its mean."""
        sound, codec = self.sound(piece), self.codec(piece)
        motions: dict[str, torch.Tensor] = {}
        for base in self.exaggerated:
            motion = self.real_motion(piece) if base == REDRAWN else self.generated(base, piece, sound)
            motions |= {exaggerated_name(base, factor): scale_lips(motion, factor) for factor in FACTORS}
        self._draw(piece, codec, sound, motions)
        for system in motions:
            self.tracks(system, piece.name)
        return list(motions)

    def make_of_sound(self, piece: SetPiece, sound: np.ndarray, codec: MotionCodec) -> list[str]:
        """Draw and track the checkpoints and two baselines on sound without a video."""
        motions = {name: self.generated(name, piece, sound) for name in self.animators}
        first = next(iter(motions.values()))
        motions |= {"still": torch.zeros_like(first), "loudness jaw": loudness_driven_jaw(first, sound)}
        self._draw(piece, codec, sound, motions)
        for system in motions:
            self.tracks(system, piece.name)
        return list(motions)

    def make_windows(self, piece: SetPiece, sound: np.ndarray, codec: MotionCodec, system: str) -> None:
        """Generate a minute, and the sound of every window on its own; draw and track the windows of both."""
        whole: torch.Tensor | None = None
        for start in POSITIONS:
            frames = slice(start * FPS, (start + WINDOW_SECONDS) * FPS)
            heard = sound[frames.start * SAMPLES_PER_FRAME : frames.stop * SAMPLES_PER_FRAME]
            name = f"{piece.name}@{start}"
            if not self.path(long_name(system), name).is_file():
                whole = self.generated(system, piece, sound) if whole is None else whole
                draw(self.path(long_name(system), name), codec, whole[frames], heard)
            if not self.path(fresh_name(system), name).is_file():
                fresh = generate_motion(self.animators[system], heard, seed_of(piece.name))
                draw(self.path(fresh_name(system), name), codec, fresh, heard)
            for kind in (long_name(system), fresh_name(system)):
                self.tracks(kind, name)

    def other(self, piece: SetPiece) -> SetPiece:
        """Return another piece: of the same speaker where there is one, else of the same group."""
        others = [one for one in self.pieces if one.group == piece.group and one.name != piece.name]
        own = [one for one in others if one.speaker == piece.speaker]
        if not others:
            raise BadInput(f"{piece.name} is the only piece of its group: there is no other sentence.")
        names = [one.name for one in own or others]
        place = sum(name < piece.name for name in names) % len(names)
        return (own or others)[place]

    def sound(self, piece: SetPiece) -> np.ndarray:
        """Return the sound of a piece of footage."""
        return np.concatenate([part_sound(self.footage, part) for part in piece.parts])

    def codec(self, piece: SetPiece) -> MotionCodec:
        """Return what draws on the first frame of a piece."""
        self._write_real(piece)
        frame = next(iter(iter_frames(self.path(REAL, piece.name))))
        return MotionCodec(Portrait.from_image(frame, SIZE, piece.name), SIZE, retouch=True)

    def generated(self, system: str, piece: SetPiece, sound: np.ndarray) -> torch.Tensor:
        """Return the motion of a checkpoint."""
        return generate_motion(self.animators[system], sound, seed_of(piece.name))

    def real_motion(self, piece: SetPiece) -> torch.Tensor:
        """Return the speaker's own motion ``[T, 30]``; every part has its own neutral pose."""
        if piece.name not in self._motions:
            self._write_real(piece)
            tracked, basis, found = self.tracks(REAL, piece.name), MotionBasis.load(), []
            for start, stop in zip((0, *piece.joins), (*piece.joins, piece.frames), strict=True):
                valid = tracked.valid[start:stop]
                if not valid.any():
                    raise BadInput(f"{piece.name} shows no face in frames {start} to {stop - 1}.")
                points, shapes = (
                    interpolate_missing_frames(values[start:stop], valid)
                    for values in (tracked.landmarks, tracked.blendshapes)
                )
                found.append(basis.encode(points, shapes)[0])
            self._motions[piece.name] = torch.cat(found)
        return self._motions[piece.name]

    def _write_real(self, piece: SetPiece) -> None:
        path = self.path(REAL, piece.name)
        if not path.is_file():
            frames, sound = read_piece(self.footage, piece, SIZE)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, iter(frames), sound)

    def _draw(
        self, piece: SetPiece, codec: MotionCodec, sound: np.ndarray, motions: Mapping[str, torch.Tensor]
    ) -> None:
        for system, motion in motions.items():
            draw(self.path(system, piece.name), codec, motion, sound)


def seed_of(name: str) -> int:
    """Return the random seed of a piece, which does not depend on what else is in the set."""
    return zlib.crc32(name.encode()) % 2**31


def scale_lips(motion: torch.Tensor, factor: float) -> torch.Tensor:
    """Return motion ``[T, 30]`` with the lower face's deviation from its mean times ``factor``."""
    result, lower = motion.clone(), motion[:, LOWER_FACE]
    result[:, LOWER_FACE] = lower.mean(0) + factor * (lower - lower.mean(0))
    return result


def exaggerated_name(system: str, factor: float) -> str:
    """Return the name of a system with scaled lips."""
    return f"{system}, lips ×{factor:g}"


def long_name(system: str) -> str:
    """Return the name of the windows of a minute that was generated at once."""
    return f"{system}, of a minute"


def fresh_name(system: str) -> str:
    """Return the name of windows of a minute that were generated on their own."""
    return f"{system}, on its own"


def minutes_of_sound(footage: Path, pieces: Sequence[SetPiece]) -> Iterator[tuple[SetPiece, np.ndarray]]:
    """Yield a minute of sound of every speaker whose pieces make one, and the recordings of a minute.

    A speaker's minute has the name of the first piece, whose first frame is the portrait; ``parts`` says where it is
    joined.
    """
    length = LONG_SECONDS * FPS
    by_speaker: dict[str, list[SetPiece]] = {}
    for piece in sorted(pieces, key=lambda one: one.name):
        by_speaker.setdefault(piece.speaker, []).append(piece)
    for own in by_speaker.values():
        parts = tuple(part for piece in own for part in piece.parts)
        if sum(part.frames for part in parts) >= length:
            sound = np.concatenate([part_sound(footage, part) for part in parts])
            yield replace(own[0], parts=parts), sound[: length * SAMPLES_PER_FRAME]
    for path in speech_paths(footage):
        sound = read_audio(path)
        if len(sound) >= length * SAMPLES_PER_FRAME:
            part = SourcePart(f"speech/{path.name}", 0, length, hashlib.sha256(path.read_bytes()).hexdigest())
            yield SetPiece(f"speech-{path.stem}", SOUND, path.stem, (part,)), sound[: length * SAMPLES_PER_FRAME]

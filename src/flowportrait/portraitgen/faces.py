"""Framed faces from footage: what the small flow learns from, and what detectors know of real pictures.

    python -m flowportrait.portraitgen.faces CORPUS FOOTAGE faces.safetensors

Speakers in about equal numbers; the dev speakers, whom nothing here learns from, are marked. The file holds pictures of
people: it stays where the footage stays.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track
from safetensors.numpy import load_file, save_file

from flowportrait.corpus.clip import Clip
from flowportrait.errors import BadInput
from flowportrait.media.image import read_image
from flowportrait.media.video import iter_frames
from flowportrait.portraitgen.look import attributes, eye_distance, framed, look
from flowportrait.written import complete

SIDE, LARGE = 48, 115
"""Pixels of the small flow's pictures, and of the larger ones on which limits are learned."""
PER_SPEAKER = 180
PER_CLIP = 6


@dataclass(frozen=True)
class Faces:
    """small ``[N, 48, 48, 3]`` and large ``[N, 115, 115, 3]`` uint8; landmarks ``[N, 478, 2]`` px of the large ones;
    native ``[N]`` px between the eye corners as filmed; attributes ``[N, 5]``; speaker ``[N]``; dev ``[N]`` bool."""

    small: np.ndarray
    large: np.ndarray
    landmarks: np.ndarray
    native: np.ndarray
    attributes: np.ndarray
    speaker: np.ndarray
    dev: np.ndarray

    def __len__(self) -> int:
        return len(self.small)

    def select(self, rows: np.ndarray) -> Faces:
        """The faces at these rows, or where a mask holds."""
        return Faces(**{name: value[rows] for name, value in vars(self).items()})

    def strangers(self) -> Faces:
        """The dev faces of people of whom nothing else is known: GRID's one man is on both sides."""
        return self.select(self.dev & ~np.isin(self.speaker, self.speaker[~self.dev]))

    def save(self, path: Path) -> None:
        """As safetensors, under a temporary name first."""
        with complete(path) as partial:
            save_file({name: np.ascontiguousarray(value) for name, value in vars(self).items()}, str(partial))

    @classmethod
    def load(cls, path: Path) -> Faces:
        """Read what ``save`` wrote.

        Raises:
            BadInput: no such file, or another kind of file.
        """
        try:
            return cls(**load_file(str(path)))
        except Exception as error:
            raise BadInput(
                f"{path} holds no framed faces ({error}): make it with python -m flowportrait.portraitgen.faces."
            ) from error


def collect(corpus: Path, footage: Path) -> Faces:
    """Framed faces of every speaker of a prepared corpus."""
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    clips = _clips(corpus)
    speakers = sorted({record["speaker"] for record in clips})
    for record in track(clips, "framing"):
        for frame, points, shapes in _frames(corpus, footage, record["name"]):
            _add(rows, frame, points, shapes, speakers.index(record["speaker"]), record["split"] == "dev")
    return Faces(**{name: np.stack(values) for name, values in rows.items()})


def photos(folder: Path) -> Faces:
    """Framed faces of a folder of photos: exemplars of one's own, each person once.

    Raises:
        BadInput: no such folder, no picture in it, or one without a face that is large enough.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not paths:
        raise BadInput(f"{folder} has no photos: give a folder with pictures of one person each.")
    rows: dict[str, list[np.ndarray]] = defaultdict(list)
    for number, path in enumerate(track(paths, "framing")):
        image = read_image(path)
        seen = look(image)
        if seen.landmarks is None or seen.blendshapes is None or seen.scale is None:
            what = "no face" if seen.landmarks is None else "only a face too small to learn from"
            raise BadInput(f"The exemplar {path} shows {what}: give a photo of one clearly visible person.")
        _add(rows, image, seen.landmarks, seen.blendshapes, number, dev=False)
    return Faces(**{name: np.stack(values) for name, values in rows.items()})


def _add(
    rows: dict[str, list[np.ndarray]], frame: np.ndarray, points: np.ndarray, shapes: np.ndarray, who: int, dev: bool
) -> None:
    small, near = framed(frame, points, SIDE)
    large, places = framed(frame, points, LARGE)
    rows["small"].append(small)
    rows["large"].append(large)
    rows["landmarks"].append(places[:, :2].astype(np.float32))
    rows["native"].append(np.array(eye_distance(points), np.float32))
    rows["attributes"].append(attributes(small, near, shapes))
    rows["speaker"].append(np.array(who, np.int32))
    rows["dev"].append(np.array(dev))


def _clips(corpus: Path) -> list[dict[str, str]]:
    by_speaker: dict[tuple[str, bool], list[dict[str, str]]] = defaultdict(list)
    for line in (corpus / "clips.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        by_speaker[record["speaker"], record["split"] == "dev"].append(record)
    most = PER_SPEAKER // PER_CLIP
    return [
        records[place]
        for records in by_speaker.values()
        for place in np.linspace(0, len(records) - 1, min(most, len(records))).astype(int)
    ]


def _frames(corpus: Path, footage: Path, name: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    clip = Clip.load(corpus / "clips" / f"{name}.safetensors")
    seconds = len(clip) / 25
    count = PER_CLIP if seconds < 10 else PER_SPEAKER
    wanted = set(np.linspace(2, min(len(clip), 1500) - 3, count).astype(int).tolist())
    for number, frame in enumerate(iter_frames(footage / f"{name}.mp4")):
        if number in wanted and number < len(clip):
            yield frame, clip.landmarks[number], clip.blendshapes[number]
        if number >= max(wanted):
            return


if __name__ == "__main__":
    collect(Path(sys.argv[1]), Path(sys.argv[2])).save(Path(sys.argv[3]))

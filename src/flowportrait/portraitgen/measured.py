"""Experts that grade stills, and real portraits to compare with.

Framed faces from footage: what the small flow learns from, and what detectors know of real pictures.

    python -m flowportrait.portraitgen.measured CORPUS FOOTAGE faces.safetensors

Speakers in about equal numbers; the dev speakers, whom nothing here learns from, are marked. The file holds pictures of
people: it stays where the footage stays.

Where real pictures end, and both rubrics measured by it, without a model.

    limit = what 1 % of real pictures exceed         spread = their standard deviation
    fitness of a number = 1 / (1 + exp(beyond))      beyond: spreads past the limit
    reward = mean ln fitness      grade = 1 + 4 · mean fitness

    python -m flowportrait.portraitgen.measured faces.safetensors weights/portraitgen/limits.json

An artefact is a number beyond its limit, so about one real portrait in a hundred is accused of each: rates are to be
read against real pictures' own. Eyes are closed by definition, because people who speak blink; blocks begin where an
ordinary JPEG file ends.

ai_portrait: every artefact of the catalogue that has a detector. omni_reward: detail, contrast and colourfulness, which
can only be too little, and exposure, which can be too little or too much; like most general scorers it finds no fault
with strong colours. A picture without a face is worth as little as one with every artefact.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.progress import track
from safetensors.numpy import load_file, save_file

from flowportrait.data.corpus import Clip
from flowportrait.errors import BadInput
from flowportrait.files import complete, write_json
from flowportrait.judges.questions import Kind
from flowportrait.judges.rubric import Aspect
from flowportrait.judges.verdicts import AspectVerdict, Verdict
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.video import iter_frames
from flowportrait.portraitgen.detectors import (
    CATALOGUE,
    NEAREST,
    Look,
    Scale,
    attributes,
    blocks,
    eye_distance,
    framed,
    glance,
    look,
    quality,
    ratios,
)
from flowportrait.portraitgen.portrait_flow import STILL_ASPECTS, Still
from flowportrait.rewards.batch import Failure

SIDE, LARGE = 48, 115
"""Pixels of the small flow's pictures, and of the larger ones on which limits are learned."""
FACES_PER_SPEAKER = 180
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
                f"{path} holds no framed faces ({error}): make it with python -m flowportrait.portraitgen.measured."
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
    most = FACES_PER_SPEAKER // PER_CLIP
    return [
        records[place]
        for records in by_speaker.values()
        for place in np.linspace(0, len(records) - 1, min(most, len(records))).astype(int)
    ]


def _frames(corpus: Path, footage: Path, name: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    clip = Clip.load(corpus / "clips" / f"{name}.safetensors")
    seconds = len(clip) / 25
    count = PER_CLIP if seconds < 10 else FACES_PER_SPEAKER
    wanted = set(np.linspace(2, min(len(clip), 1500) - 3, count).astype(int).tolist())
    for number, frame in enumerate(iter_frames(footage / f"{name}.mp4")):
        if number in wanted and number < len(clip):
            yield frame, clip.landmarks[number], clip.blendshapes[number]
        if number >= max(wanted):
            return


if __name__ == "__main__":
    collect(Path(sys.argv[1]), Path(sys.argv[2])).save(Path(sys.argv[3]))


SHIPPED = Path(str(files("flowportrait") / "weights" / "portraitgen" / "limits.json"))
EXCEEDED = 0.01
CLOSED = -0.10
"""Lid gap over eye width under which an eye is closed."""
PER_SPEAKER = 20
QUALITY = 75
"""Of an ordinary JPEG file."""
FACELESS = 3.0
"""Spreads beyond every limit that a picture without a face counts for."""
ALLOWED = 1.5
"""Spreads by which a picture may be darker or brighter than is usual."""
_CAPPED = 6.0
"""Further out makes no difference, lest one number decide everything."""


class Limit(NamedTuple):
    """Beyond ``limit`` is an artefact; ``mean`` and ``spread`` are of real pictures."""

    limit: float
    mean: float
    spread: float

    def beyond(self, value: float) -> float:
        """Standard deviations past the limit, negative inside."""
        return (value - self.limit) / self.spread


@dataclass(frozen=True)
class Limits:
    """by scale and detector; face: mean and spread ``[6]`` of the log ratios of real faces."""

    table: Mapping[Scale, Mapping[str, Limit]]
    face: tuple[np.ndarray, np.ndarray]

    @classmethod
    @lru_cache(maxsize=1)
    def load(cls) -> Limits:
        """Those that ship."""
        return cls.read(SHIPPED)

    @classmethod
    def read(cls, path: Path) -> Limits:
        """What ``fit`` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        table = {scale: {name: Limit(*values) for name, values in own.items()} for scale, own in data["limits"].items()}
        return cls(table, (np.array(data["face"][0]), np.array(data["face"][1])))

    def measure(self, look: Look) -> dict[str, float | None]:
        """Every measured artefact's number; None where it does not apply."""
        found: dict[str, float | None] = {
            artefact.name: artefact.detector(look) for artefact in CATALOGUE if artefact.detector
        }
        found["proportions"] = None
        if look.landmarks is not None and look.scale is not None:
            found["proportions"] = float(np.abs((ratios(look.landmarks) - self.face[0]) / self.face[1]).max())
        return found

    def beyond(self, look: Look) -> dict[str, float | None]:
        """The same in spreads past the limits; ``missing_face`` and ``second_face`` are 1 or −1."""
        scale = look.scale or "small"
        found = {
            name: None if value is None or name not in self.table[scale] else self.table[scale][name].beyond(value)
            for name, value in self.measure(look).items()
        }
        found["missing_face"] = 1.0 if look.faces == 0 else -1.0
        found["second_face"] = None if look.faces == 0 else (1.0 if look.faces > 1 else -1.0)
        return found


def artefacts(look: Look, limits: Limits | None = None) -> dict[str, bool | None]:
    """Which artefacts a picture has; None where nobody measured."""
    found = (limits or Limits.load()).beyond(look)
    return {name: None if value is None else value > 0 for name, value in found.items()}


def fit(faces: Faces) -> dict[str, object]:
    """Limits from the training speakers' faces, as stored."""
    looks: dict[Scale, list[Look]] = {"large": [], "small": []}
    rng = np.random.default_rng(0)
    with FaceTracker(still=True) as tracker:
        for speaker in np.unique(faces.speaker):
            rows = np.flatnonzero((faces.speaker == speaker) & ~faces.dev)
            for row in rng.choice(rows, min(len(rows), PER_SPEAKER), replace=False):
                looks["small"].append(glance(faces.small[row], tracker))
                if faces.native[row] >= NEAREST["large"]:
                    looks["large"].append(glance(faces.large[row], tracker))
    shapes = np.stack([ratios(look.landmarks) for look in looks["large"] if look.landmarks is not None])
    normal = shapes.mean(0), shapes.std(0)
    bare = Limits({}, normal)
    table = {
        scale: _limits([bare.measure(look) | quality(look) for look in track(own, scale)])
        for scale, own in looks.items()
    }
    compressed = _limit(np.array([blocks(Look(ordinary(seen.picture), 0)) for seen in looks["large"]], float))
    for own in table.values():
        own["blocks"] = compressed
    return {
        "face": [values.tolist() for values in normal],
        "pictures": {scale: len(own) for scale, own in looks.items()},
        "limits": table,
    }


def _limits(rows: list[dict[str, float | None]]) -> dict[str, list[float]]:
    table = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows if row[name] is not None])
        if len(values) < 50:
            continue
        table[name] = _limit(values)
        if name == "closed_eyes":
            table[name][0] = CLOSED
    return table


def _limit(values: np.ndarray) -> list[float]:
    return [float(np.quantile(values, 1 - EXCEEDED)), float(values.mean()), float(values.std())]


def ordinary(picture: np.ndarray) -> np.ndarray:
    """A picture ``[H, W, 3]`` as JPEG files mostly are."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))


class MeasuredStills:
    """A judge of stills that measures."""

    kind: Kind = "measured panel"
    name = "measured panel"

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits.load()

    @property
    def fingerprint(self) -> str:
        """See ``ItemJudge``."""
        return hashlib.sha256(b"stills 1 " + SHIPPED.read_bytes()).hexdigest()[:16]

    def judge(self, stills: Sequence[Still], aspects: Sequence[Aspect] | None = None, /) -> list[Verdict]:
        """See ``ItemJudge``."""
        own = STILL_ASPECTS if aspects is None else aspects
        return [
            Verdict(still.name, "", self.name, self.kind, {aspect: self.measure(still.look, aspect) for aspect in own})
            for still in stills
        ]

    def measure(self, seen: Look, aspect: Aspect) -> AspectVerdict:
        """Return the verdict on a picture that was looked at."""
        if aspect == "omni_reward":
            return self._quality(seen)
        found = self.limits.beyond(seen)
        artefacts = {name: None if value is None else value > 0 for name, value in found.items()}
        if seen.faces and seen.scale is None:
            small = Failure("no_face", "the face is too small to be measured")
            return AspectVerdict(aspect, None, None, "nobody", artefacts=artefacts, failure=small)
        known = {name: value for name, value in found.items() if value is not None and name != "second_face"}
        if not seen.faces:
            known = dict.fromkeys(known, FACELESS)
        value, grade = worth(known)
        worst = sorted((name for name, has in artefacts.items() if has), key=lambda name: -(found[name] or 0))
        return _measured(aspect, value, grade, f"measured: {', '.join(worst) or 'no artefact'}", artefacts=artefacts)

    def _quality(self, seen: Look) -> AspectVerdict:
        found = shortfall(quality(seen), self.limits.table[seen.scale or "small"])
        value, grade = worth(found)
        words = "measured: " + ", ".join(f"{name} {-own:+.1f}" for name, own in found.items())
        dimensions = {name: worth({name: own})[1] for name, own in found.items()}
        return _measured("omni_reward", value, grade, words, dimensions=dimensions)


def _measured(aspect: Aspect, value: float, grade: float, rationale: str, **more: Any) -> AspectVerdict:
    return AspectVerdict(
        aspect, grade, grade, "measurement", (grade,), rationale=rationale, value=value, **more
    )  # fmt: skip


def worth(beyond: Mapping[str, float]) -> tuple[float, float]:
    """Reward and grade of numbers in spreads past their limits."""
    numbers = np.array(list(beyond.values())).clip(-_CAPPED, _CAPPED)
    logs = -np.logaddexp(0, numbers)
    return float(logs.mean()), float(1 + 4 * np.exp(logs).mean())


def shortfall(found: Mapping[str, float | None], usual: Mapping[str, Limit]) -> dict[str, float]:
    """How far figures of quality fall short of what is usual, in spreads; a figure that needs a face and has none falls
    short as far as a missing face."""
    short: dict[str, float] = {}
    for name, value in found.items():
        away = -FACELESS if value is None else (value - usual[name].mean) / usual[name].spread
        if name == "brightness":
            short["exposure"] = abs(away) - ALLOWED
        else:
            short[name] = -away
    return short


if __name__ == "__main__":
    cv2.setNumThreads(1)
    target = Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, fit(Faces.load(Path(sys.argv[1]))))

"""The evaluation set: pieces of four seconds of speakers that nothing was trained on, listed with their hashes.

    talkvid, hdtf, clips ──► in the wild     pieces of one recording
    anchors ───────────────► news            clips of 1.2 s of one speaker, joined; joins are marked
    grid ──────────────────► seen man        clips of 3 s of the man of whom other sentences were trained on
    speech, peers, voices ─► sound only      recordings without a video that could be compared

Only what ``split.tsv`` calls dev is used, except for sound without video, which has no speaker to be trained on. The
same footage gives the same set: the list, with the SHA-256 of every source, is written as ``manifest.json``.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.material import speech_paths
from flowportrait.errors import BadInput
from flowportrait.files import write_json
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.crop import crop_transform, sample_crop
from flowportrait.media.faces import FaceTracker
from flowportrait.media.video import FPS, iter_frames
from flowportrait.terminal import progress

WILD, NEWS, SEEN, SOUND = "in the wild", "news", "seen man", "sound only"
PIECE_FRAMES = 100
"""Frames of a piece: four seconds."""
SHORTEST_FRAMES = 75
"""Frames below which a piece is left out."""
WILD_FOLDERS, NEWS_FOLDER, SEEN_FOLDER, PEERS_FOLDER = ("talkvid", "hdtf", "clips"), "anchors", "grid", "peers"
SENTENCES = {
    "en-us": "The weather will improve by Monday, but people may be late.",
    "de": "Das Wetter wird bis Montag besser, aber bitte bleiben Sie vorsichtig.",
    "fr": "Le temps sera meilleur lundi, mais partez plus tôt pour Paris.",
    "es": "El tiempo mejora el lunes, pero muchos trenes van a llegar tarde.",
    "pl": "Pogoda poprawi się w poniedziałek, ale pociągi mogą się spóźnić.",
    "cmn": "星期一天气会变好，但是火车可能会晚点，请大家慢慢走。",
    "hi": "सोमवार तक मौसम बेहतर हो जाएगा, लेकिन गाड़ियाँ देर से आ सकती हैं।",
}
"""What synthetic voices say, by the language of espeak-ng."""


@dataclass(frozen=True)
class SourcePart:
    """A part of a file of the footage: ``frames`` frames at 25 fps from frame ``first`` on."""

    file: str
    first: int
    frames: int
    sha256: str


@dataclass(frozen=True)
class SetPiece:
    """One piece of the set.

    Attributes:
        name: names its videos.
        group: ``in the wild``, ``news``, ``seen man`` or ``sound only``.
        speaker: who speaks, as split.tsv calls them; of sound only, the recording.
        parts: what it is joined from, in order.
        labels: groups of people that it belongs to, by kind.
        automatic: kinds whose labels a program found in the picture, not a person.
    """

    name: str
    group: str
    speaker: str
    parts: tuple[SourcePart, ...]
    labels: dict[str, str] = field(default_factory=dict)
    automatic: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Its length in frames."""
        return sum(part.frames for part in self.parts)

    @property
    def joins(self) -> tuple[int, ...]:
        """The first frame of every part but the first."""
        return tuple(int(place) for place in np.cumsum([part.frames for part in self.parts])[:-1])


def build_set(
    footage: Path, per_speaker: int | None = None, groups: Sequence[str] = (WILD, NEWS, SEEN)
) -> tuple[list[SetPiece], dict[str, str]]:
    """Return the pieces of a footage folder, the first of every speaker first, and why others were left out.

    Args:
        footage: folder with ``split.tsv``.
        per_speaker: most pieces of a speaker.
        groups: which groups.

    Raises:
        BadInput: there is no ``split.tsv``, or no piece.
    """
    by_speaker: dict[str, list[SetPiece]] = defaultdict(list)
    left_out: dict[str, str] = {}
    videos = [entry for entry in dev_speakers(footage) if _group_of(entry[0]) in groups]
    news: dict[str, list[SourcePart]] = defaultdict(list)
    for file, speaker in progress(videos, len(videos), "reading footage"):
        group, length = _group_of(file) or "", usable_frames(footage / file)
        digest = hashlib.sha256((footage / file).read_bytes()).hexdigest()
        if group == NEWS:
            news[speaker].append(SourcePart(file, 0, length, digest))
            continue
        longest = PIECE_FRAMES if group == WILD else length
        starts = range(0, length - SHORTEST_FRAMES + 1, max(longest, 1)) if length >= SHORTEST_FRAMES else ()
        if not starts:
            left_out[file] = f"{length} frames are fewer than {SHORTEST_FRAMES}"
        for number, start in enumerate(starts):
            part = SourcePart(file, start, min(longest, length - start), digest)
            stem = file.removesuffix(".mp4").replace("/", "-")
            by_speaker[speaker].append(SetPiece(f"{stem}-{number}", group, speaker, (part,), labels_of(file, group)))
    for speaker, clips in news.items():
        for number, parts in enumerate(join_parts(clips)):
            piece = SetPiece(f"{NEWS_FOLDER}-{speaker}-{number}", NEWS, speaker, parts, labels_of("", NEWS))
            by_speaker[speaker].append(piece)
        used = {part.file for piece in by_speaker[speaker] for part in piece.parts}
        left_out |= {clip.file: "too few clips are left to join" for clip in clips if clip.file not in used}
    pieces = in_rounds([own[:per_speaker] for own in by_speaker.values()])
    if not pieces:
        raise BadInput(f"{footage} has no videos with sound that split.tsv lists as dev: give footage that has some.")
    return pieces, left_out


def dev_speakers(footage: Path) -> list[tuple[str, str]]:
    """Return file and speaker of every video that ``split.tsv`` lists as dev, in the order of their names.

    Raises:
        BadInput: there is no split.tsv.
    """
    table = footage / "split.tsv"
    if not table.is_file():
        raise BadInput(f"No split.tsv in {footage}: give footage that says who is dev.")
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return sorted(
        (row["file"], row["speaker"]) for row in rows if row["split"] == "dev" and row["file"].endswith("mp4")
    )


def _group_of(file: str) -> str | None:
    folder = file.partition("/")[0]
    return {NEWS_FOLDER: NEWS, SEEN_FOLDER: SEEN}.get(folder, WILD if folder in WILD_FOLDERS else None)


def usable_frames(path: Path) -> int:
    """Return the number of frames at 25 fps for which a video has both picture and sound."""
    return min(sum(1 for _ in iter_frames(path)), len(read_audio(path)) // SAMPLES_PER_FRAME)


def join_parts(clips: Sequence[SourcePart]) -> Iterator[tuple[SourcePart, ...]]:
    """Yield clips of one speaker joined to pieces of ``PIECE_FRAMES``; the last clip of a piece is cut."""
    row: list[SourcePart] = []
    for clip in clips:
        missing = PIECE_FRAMES - sum(part.frames for part in row)
        row.append(SourcePart(clip.file, clip.first, min(clip.frames, missing), clip.sha256))
        if sum(part.frames for part in row) == PIECE_FRAMES:
            yield tuple(row)
            row = []


def labels_of(file: str, group: str) -> dict[str, str]:
    """Return the groups of people that a file's name or its source's documentation gives."""
    if group == NEWS:
        return {"language": "Arabic"}
    if group == SEEN:
        return {"language": "English", "gender": "male"}
    kind, _, value = Path(file).stem.rpartition("_")[0].partition("_")
    known = {"Age": "age", "Ethnicity": "origin", "Gender": "gender", "Language": "language"}
    if not file.startswith("talkvid/"):
        return {"language": "English"} if "hdtf" in file else {}
    if kind == "Language":
        return {"language": {"pl": "Polish", "hi": "Hindi", "pt": "Portuguese", "th": "Thai", "zh": "Chinese"}.get(
            Path(file).stem.removeprefix("Language_"), Path(file).stem.removeprefix("Language_"))}  # fmt: skip
    return {known[kind]: value.replace("_plus", " and over").replace("60 plus", "60 and over")} if kind in known else {}


def in_rounds(rows: Sequence[Sequence[SetPiece]]) -> list[SetPiece]:
    """Return the first of every row, then the second of every row, and so on."""
    longest = max((len(row) for row in rows), default=0)
    return [row[place] for place in range(longest) for row in rows if place < len(row)]


def read_piece(footage: Path, piece: SetPiece, size: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the frames ``[size, size, 3]`` uint8 and the sound of a piece.

    Every part is cut to a fixed square around the face in its first frame.

    Raises:
        BadInput: a part begins with a frame without a face.
    """
    frames: list[np.ndarray] = []
    sound: list[np.ndarray] = []
    for part in piece.parts:
        to_crop = None
        for place, frame in enumerate(iter_frames(footage / part.file)):
            if place < part.first:
                continue
            if place == part.first + part.frames:
                break
            if to_crop is None:
                with FaceTracker(still=True) as tracker:
                    faces = tracker.detect(frame)
                if not faces:
                    raise BadInput(f"{part.file} shows no face in frame {place}.")
                to_crop = crop_transform(faces[0][0], (frame.shape[0], frame.shape[1]), size)
            frames.append(sample_crop(frame, to_crop, size))
        sound.append(part_sound(footage, part))
    return frames, np.concatenate(sound)


def part_sound(footage: Path, part: SourcePart) -> np.ndarray:
    """Return the sound ``[640 frames]`` of a part, at 16 kHz."""
    samples = read_audio(footage / part.file)[part.first * SAMPLES_PER_FRAME :][: part.frames * SAMPLES_PER_FRAME]
    return np.asarray(samples, np.float32)


# --- Sound without a video ---


def sound_pieces(footage: Path, per_recording: int) -> Iterator[tuple[SetPiece, np.ndarray]]:
    """Yield pieces of recordings without a video, of the sound of other systems' results, and of synthetic voices."""
    peers = sorted((footage / PEERS_FOLDER).glob("*.mp4"))
    for path in (*speech_paths(footage), *peers):
        samples, digest = read_audio(path), hashlib.sha256(path.read_bytes()).hexdigest()
        length, file = len(samples) // SAMPLES_PER_FRAME, str(path.relative_to(footage))
        kind = "another system's result" if path.parent.name == PEERS_FOLDER else "recording"
        language = "Chinese" if "chinese" in path.stem else ""
        labels = {"source": kind} | ({"language": language} if language else {})
        starts = list(range(0, length - SHORTEST_FRAMES + 1, PIECE_FRAMES))[:per_recording]
        for number, start in enumerate(starts):
            part = SourcePart(file, start, min(PIECE_FRAMES, length - start), digest)
            name = f"{path.parent.name}-{path.stem}-{number}"
            yield SetPiece(name, SOUND, file, (part,), labels), part_sound(footage, part)
    yield from _synthetic_pieces()


def _synthetic_pieces() -> Iterator[tuple[SetPiece, np.ndarray]]:
    from flowportrait.speech.voices import EspeakVoice

    for language, sentence in SENTENCES.items():
        try:
            sound = EspeakVoice(language).synthesize(sentence)
        except BadInput:  # the package of the voice is not installed
            return
        samples = _resampled(sound.samples.mean(0), sound.rate)[: PIECE_FRAMES * SAMPLES_PER_FRAME]
        samples = samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
        digest = hashlib.sha256(f"espeak-ng {language} {sentence}".encode()).hexdigest()
        part = SourcePart(f"espeak-ng {language}", 0, len(samples) // SAMPLES_PER_FRAME, digest)
        labels = {"source": "synthetic voice", "language": language}
        yield SetPiece(f"espeak-{language}", SOUND, part.file, (part,), labels), samples


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    from scipy.signal import resample_poly

    return np.asarray(resample_poly(samples, FPS * SAMPLES_PER_FRAME, rate), np.float32)


# --- The list ---


def write_manifest(path: Path, pieces: Sequence[SetPiece], left_out: dict[str, str]) -> str:
    """Write the list of the set as JSON and return its SHA-256, which two runs on the same set share."""
    rows: list[dict[str, Any]] = [asdict(piece) | {"joins": piece.joins} for piece in pieces]
    text = json.dumps({"piece_frames": PIECE_FRAMES, "pieces": rows}, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_json(path, {"sha256": digest, "left_out": left_out} | json.loads(text))
    return digest


def read_word_times(footage: Path, piece: SetPiece) -> list[tuple[float, float, str]]:
    """Return begin and end in frames, and the word, of all words of a piece; none where no alignment exists."""
    words, offset = [], 0
    for part in piece.parts:
        path = footage / "grid_align" / f"{Path(part.file).stem}.align"
        if part.file.startswith(f"{SEEN_FOLDER}/") and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                begin, end, word = line.split()
                words.append((int(begin) / 1000 + offset - part.first, int(end) / 1000 + offset - part.first, word))
        offset += part.frames
    return words

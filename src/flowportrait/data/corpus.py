"""A corpus folder: source videos, prepared clips, their index, and shards.

    clips.jsonl       the clips that were kept
    rejected.jsonl    the clips that were not, and why
    sources.jsonl     the videos that are done
    clips/NAME.safetensors, pictures/NAME.jpg, crops/NAME.mp4, shards/SPLIT-00000.tar

A video's clips count only once its own line is written, so that an interrupted run repeats the video.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from safetensors.numpy import load, save

from flowportrait.data.prompts import VIDEO_SUFFIXES
from flowportrait.errors import BadInput
from flowportrait.files import atomic_write, write_text

# --- Who speaks in which file: the folder layouts of the usual corpora ------------------
#
#     VoxCeleb2   [dev|test]/mp4/id00012/21Uxsk56VDQ/00001.mp4      sound also in …/aac/…/00001.m4a
#     LRS3        [pretrain|trainval|test]/0Fi83BHQsMA/00002.mp4     a channel stands for a speaker
#     HDTF        WDA_BarackObama_000.mp4, RD_Radio10_000.mp4        digits after a politician's name count videos
#     MEAD        M003/video/front/angry/level_1/001.mp4            sound in M003/audio/angry/level_1/001.m4a
#     GRID        s1/video/mpg_6000/bbaf2n.mpg                      the name spells the sentence
#
# In any other layout the folder's name is the speaker. ``split.tsv`` (file, speaker, split) overrides all of it.

LAYOUT_SHARE = 0.9
"""Share of the files that have to follow a layout for it to be recognised."""
TEST_PARTS = ("test",)
"""Parts of a corpus that become the split ``test``; all others become ``train``."""


@dataclass(frozen=True)
class CorpusLayout:
    """The folder layout of a corpus.

    Attributes:
        pattern: of a file's path, with the group ``speaker`` and perhaps ``part``.
        sound: how the path of a video without sound is changed to the path of its sound.
    """

    name: str
    pattern: re.Pattern[str]
    sound: tuple[re.Pattern[str], str] | None = None

    def match(self, path: str) -> tuple[str, str] | None:
        """Return speaker and split (``train`` or ``test``) of a file, or None if it does not follow this layout."""
        match = self.pattern.search(path)
        if not match:
            return None
        part = match.groupdict().get("part") or ""
        return match["speaker"], "test" if part in TEST_PARTS else "train"

    def sound_of(self, path: Path) -> Path | None:
        """Return the sound file that belongs to a video without sound, or None if it does not exist."""
        if self.sound is None:
            return None
        sound_path = Path(self.sound[0].sub(self.sound[1], path.as_posix()))
        return next(
            (c for c in (sound_path.with_suffix(s) for s in (".m4a", ".wav")) if c != path and c.is_file()), None
        )


LAYOUTS = (
    CorpusLayout(
        "voxceleb2",
        re.compile(r"(?:(?:^|/)(?P<part>dev|test)/)?(?:mp4/)?(?P<speaker>id\d{5})/[\w-]{11}/\d{5}\.\w+$"),
        (re.compile(r"/mp4/(id\d{5}/)"), r"/aac/\1"),
    ),
    CorpusLayout(
        "lrs3", re.compile(r"(?:(?:^|/)(?P<part>pretrain|trainval|test)/)?(?P<speaker>[\w-]{11})/\d{5}\.mp4$")
    ),
    CorpusLayout(
        "mead",
        re.compile(r"(?P<speaker>[MW]\d{3})/video/\w+/\w+/level_\d/\d{3}\.\w+$"),
        (re.compile(r"/video/\w+/"), "/audio/"),
    ),
    CorpusLayout(
        "grid", re.compile(r"(?P<speaker>s\d{1,2})/(?:video/)?(?:mpg_\w+/)?[blps][bgrw][abiw][a-z][0-9z][anps]\.\w+$")
    ),
    CorpusLayout("hdtf", re.compile(r"(?:^|/)(?P<speaker>RD_Radio\d+|W[DR]A_[A-Za-z]+)\d*(?:_\w+)?\.\w+$")),
)


def recognize_layout(paths: Sequence[str]) -> CorpusLayout | None:
    """Return the layout that nine tenths of these paths follow, or None."""
    for layout in LAYOUTS:
        if paths and sum(layout.match(path) is not None for path in paths) >= LAYOUT_SHARE * len(paths):
            return layout
    return None


# --- Source videos ----------------------------------------------------------------------


@dataclass(frozen=True)
class SourceVideo:
    """A video to prepare.

    Attributes:
        path: where it is.
        name: the name of its clips.
        speaker: who speaks.
        split: which split it belongs to.
        sound: the file with its sound where the video has none itself.
    """

    path: Path
    name: str
    speaker: str
    split: str
    sound: Path | None = None


def find_sources(inputs: Sequence[Path], layout: str = "auto", hold_out: float = 0.0) -> list[SourceVideo]:
    """Return the videos in files and folders.

    A folder with a ``split.tsv`` (file, speaker, split) uses its columns; otherwise the layout determines the speaker,
    or the parent folder's name.

    Args:
        inputs: videos and folders.
        layout: ``auto``, ``folders``, or a layout's name.
        hold_out: share of the speakers that goes to the split ``dev``. They are chosen by a hash of their name, so that
            a speaker is never in both splits, however often the corpus grows.

    Raises:
        BadInput: an input or the layout does not exist, or nothing is found.
    """
    layouts = {known.name: known for known in LAYOUTS}
    if layout not in ("auto", "folders", *layouts):
        raise BadInput(f"There is no layout {layout!r}: choose auto, folders or one of {', '.join(layouts)}.")
    sources: list[SourceVideo] = []
    for path in inputs:
        if not path.exists():
            raise BadInput(f"No video or folder at {path}: check the path.")
        if (path / "split.tsv").is_file():
            sources += _sources_in_table(path)
            continue
        base = path if path.is_dir() else path.parent
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        video_paths = [video.relative_to(base).as_posix() for video in files if video.suffix.lower() in VIDEO_SUFFIXES]
        rule = layouts.get(layout) or (recognize_layout(video_paths) if layout == "auto" else None)
        sources += [_source_from_path(base, path, rule) for path in video_paths]
    if not sources:
        raise BadInput(f"No videos found in {', '.join(map(str, inputs))}: give mp4, mov, mkv, webm or avi files.")
    names: dict[str, Path] = {}
    for source in sources:
        if names.setdefault(source.name, source.path) != source.path:
            raise BadInput(
                f"{names[source.name]} and {source.path} would both be called {source.name}: prepare them apart."
            )
    return [_with_split(source, hold_out) for source in sources]


def _sources_in_table(folder: Path) -> list[SourceVideo]:
    sources = []
    for number, line in enumerate((folder / "split.tsv").read_text(encoding="utf-8").splitlines()[1:], 2):
        columns = line.split("\t")
        if len(columns) != 3:
            raise BadInput(f"{folder / 'split.tsv'} line {number} needs three columns: file, speaker, split.")
        file, speaker, split = columns
        sources.append(SourceVideo(folder / file, Path(file).with_suffix("").as_posix(), speaker, split))
    return sources


def _source_from_path(base: Path, path: str, layout: CorpusLayout | None) -> SourceVideo:
    name = Path(path).with_suffix("").as_posix()
    speaker_and_split = layout.match(path) if layout else None
    if layout is None or speaker_and_split is None:
        return SourceVideo(base / path, name, (base / path).parent.name, "train")
    return SourceVideo(base / path, name, *speaker_and_split, layout.sound_of(base / path))


def _with_split(source: SourceVideo, share: float) -> SourceVideo:
    place = int.from_bytes(hashlib.sha256(source.speaker.encode()).digest()[:8], "big") / 2**64
    return replace(source, split="dev") if source.split == "train" and place < share else source


# --- Prepared clips: what training and the experts read instead of video ----------------


@dataclass(frozen=True)
class FaceClip:
    """A face clip at 25 fps with its speech at 16 kHz.

    Speech and crop are None in older corpora.

    Attributes:
        landmarks: ``[T, 478, 3]`` float32 px.
        blendshapes: ``[T, 52]``.
        mouth: ``[T, 48, 64]`` uint8 stabilised patches.
        size: ``[2]`` frame height and width.
        audio: ``[640 T]`` float32 in [-1, 1].
        speech: ``[T]`` bool.
        crop: ``[3]``, left, top and side in pixels of the square that holds the head in all frames.
    """

    landmarks: np.ndarray
    blendshapes: np.ndarray
    mouth: np.ndarray
    size: np.ndarray
    audio: np.ndarray
    speech: np.ndarray | None = None
    crop: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.landmarks)

    def save(self, path: Path) -> None:
        """Write the clip as safetensors (audio as int16), whole or not at all."""
        tensors = {
            "landmarks": self.landmarks.astype(np.float32),
            "blendshapes": self.blendshapes.astype(np.float16),
            "mouth": self.mouth,
            "size": self.size.astype(np.int32),
            "audio": np.round(self.audio * 32767).clip(-32768, 32767).astype(np.int16),
        }
        if self.speech is not None:
            tensors["speech"] = self.speech.astype(np.uint8)
        if self.crop is not None:
            tensors["crop"] = self.crop.astype(np.int32)
        with atomic_write(path) as partial:
            partial.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))

    @classmethod
    def load(cls, path: Path) -> FaceClip:
        """Read a clip written by ``save``, of this version or an earlier one."""
        return cls.from_bytes(path.read_bytes())

    @classmethod
    def from_bytes(cls, content: bytes) -> FaceClip:
        """Return the clip in the bytes of a file."""
        data = load(content)
        return cls(
            data["landmarks"],
            data["blendshapes"].astype(np.float32),
            data["mouth"],
            data["size"],
            data["audio"].astype(np.float32) / 32767,
            data["speech"].astype(bool) if "speech" in data else None,
            data.get("crop"),
        )


# --- The index of a corpus --------------------------------------------------------------

Record = dict[str, Any]
KEPT_LIST, REJECTED_LIST, DONE_LIST = "clips.jsonl", "rejected.jsonl", "sources.jsonl"


def read_records(path: Path) -> Iterator[Record]:
    """Yield the lines of an index file; none where it does not exist. A truncated last line is skipped."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def corpus_records(corpus: Path) -> list[Record]:
    """Return the records of the clips that a corpus keeps.

    Raises:
        BadInput: the folder is no corpus, or is empty.
    """
    if not (corpus / KEPT_LIST).is_file():
        raise BadInput(f"{corpus} is not a prepared corpus (no {KEPT_LIST}): run 'flowportrait prepare' first.")
    records = list(read_records(corpus / KEPT_LIST))
    if not records and not (corpus / REJECTED_LIST).is_file():
        raise BadInput(f"{corpus} lists no clips: prepare it again.")
    return records


def count_rejections(corpus: Path) -> dict[str, int]:
    """Return how many clips were rejected for which reason, most frequent first; ``unnamed`` in old corpora."""
    counts = Counter(str(record.get("reason", "unnamed")) for record in read_records(corpus / REJECTED_LIST))
    return dict(counts.most_common())


class CorpusIndex:
    """A context manager that appends to the three lists of a corpus."""

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus
        lists = {name: list(read_records(corpus / name)) for name in (KEPT_LIST, REJECTED_LIST, DONE_LIST)}
        self.done = {record["source"] for record in lists[DONE_LIST]}
        """Names of the videos that need no more work."""
        for name in (KEPT_LIST, REJECTED_LIST):
            # In old corpora, with one clip per video, the clip has the video's name.
            self.done |= {record["name"] for record in lists[name] if "source" not in record}
            finished = [record for record in lists[name] if record.get("source", record["name"]) in self.done]
            if len(finished) < len(lists[name]):
                _rewrite(corpus / name, finished)
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> CorpusIndex:
        for name in (KEPT_LIST, REJECTED_LIST, DONE_LIST):
            self._files[name] = (self.corpus / name).open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def add(self, source: str, seconds: float, records: Iterable[Record]) -> None:
        """Add a finished video with its length in seconds and its clips."""
        for record in records:
            self._write(REJECTED_LIST if "rejected" in record else KEPT_LIST, record)
        self._write(DONE_LIST, {"source": source, "seconds": round(seconds, 2)})

    def _write(self, name: str, record: Record) -> None:
        self._files[name].write(json.dumps(record) + "\n")
        self._files[name].flush()


def _rewrite(path: Path, records: Iterable[Record]) -> None:
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


# --- WebDataset shards: tar files of a few hundred megabytes that trainers stream from disks and buckets
#
#     shards/train-00000.tar:   NAME.json (the index record) · NAME.safetensors (the clip) · NAME.jpg · NAME.mp4
#
# Files of one clip share the part of their name before the first dot; that is all of the format. Pictures and videos
# may be missing.

SHARD_PARTS = (("clips", ".safetensors"), ("pictures", ".jpg"), ("crops", ".mp4"))


def shard_key(name: str) -> str:
    """Return a clip's name as one word without dots."""
    return name.replace("/", "__").replace(".", "_")


def write_shards(corpus: Path, shard_mb: int) -> list[Path]:
    """Write the clips of every split to shards of about ``shard_mb`` megabytes; the same corpus gives the same bytes.

    Returns:
        The paths of the shards.

    Raises:
        BadInput: the folder is no corpus, or the size is under 1 MB.
    """
    if shard_mb < 1:
        raise BadInput(f"Shards of {shard_mb} MB are not possible: give 1 or more.")
    folder = corpus / "shards"
    folder.mkdir(exist_ok=True)
    groups: dict[str, list[list[Record]]] = defaultdict(lambda: [[]])
    filled: dict[str, int] = defaultdict(int)
    for record in corpus_records(corpus):
        split, size = record["split"], sum(path.stat().st_size for _, path in _clip_files(corpus, record))
        if groups[split][-1] and filled[split] + size > shard_mb * 2**20:
            groups[split].append([])
            filled[split] = 0
        groups[split][-1].append(record)
        filled[split] += size
    written = [
        _write_shard(corpus, folder / f"{split}-{number:05d}.tar", records)
        for split, parts in sorted(groups.items())
        for number, records in enumerate(parts)
    ]
    for stale in set(folder.glob("*.tar")) - set(written):
        stale.unlink()
    return written


def read_shard(path: Path) -> Iterator[tuple[Record, FaceClip]]:
    """Yield the index records and clips of one shard, in order."""
    record: Record = {}
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                continue
            if member.name.endswith(".json"):
                record = json.loads(content.read())
            elif member.name.endswith(".safetensors"):
                yield record, FaceClip.from_bytes(content.read())


def read_corpus_clips(corpus: Path, splits: Collection[str] | None = None) -> Iterator[tuple[Record, FaceClip]]:
    """Yield the index records and clips of a corpus, from its files or, where only those were copied, from its shards.

    Args:
        splits: which splits; None for all.

    Raises:
        BadInput: there are neither files nor shards.
    """
    if (corpus / "clips").is_dir():
        for record in corpus_records(corpus):
            if splits is None or record["split"] in splits:
                yield record, FaceClip.load(corpus / "clips" / f"{record['name']}.safetensors")
        return
    shards = sorted((corpus / "shards").glob("*.tar")) or sorted(corpus.glob("*.tar"))
    if not shards:
        raise BadInput(f"{corpus} is not a prepared corpus (no clips, no shards): run 'flowportrait prepare' first.")
    for shard in shards:
        yield from (pair for pair in read_shard(shard) if splits is None or pair[0]["split"] in splits)


def _clip_files(corpus: Path, record: Record) -> list[tuple[str, Path]]:
    places = ((suffix, corpus / folder / f"{record['name']}{suffix}") for folder, suffix in SHARD_PARTS)
    return [(suffix, path) for suffix, path in places if path.is_file()]


def _write_shard(corpus: Path, target: Path, records: list[Record]) -> Path:
    with atomic_write(target) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            _add_file(tar, f"{shard_key(record['name'])}.json", json.dumps(record).encode())
            for suffix, path in _clip_files(corpus, record):
                _add_file(tar, f"{shard_key(record['name'])}{suffix}", path.read_bytes())
    return target


def _add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # Owner and time stay at zero, or the same corpus would not give the same bytes.
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))

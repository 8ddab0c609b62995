"""WebDataset shards: tar files that trainers stream from disks and buckets, a few hundred megabytes each.

    shards/train-00000.tar:   NAME.json (the index record) · NAME.safetensors (the clip) · NAME.jpg · NAME.mp4, if there

Files of one clip share the part of their name before the first dot, which is all that the format is.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path

from flowportrait.corpus.clip import Clip
from flowportrait.corpus.index import Record, corpus_records
from flowportrait.errors import BadInput
from flowportrait.written import complete

PARTS = (("clips", ".safetensors"), ("pictures", ".jpg"), ("crops", ".mp4"))


def key(name: str) -> str:
    """A clip's name as one word without dots."""
    return name.replace("/", "__").replace(".", "_")


def pack(corpus: Path, shard_mb: int) -> list[Path]:
    """Write the clips of every split to shards of about ``shard_mb`` megabytes; the same corpus gives the same bytes.

    Raises:
        BadInput: no corpus, or the size is under 1 MB.
    """
    if shard_mb < 1:
        raise BadInput(f"Shards of {shard_mb} MB are not possible: give 1 or more.")
    folder = corpus / "shards"
    folder.mkdir(exist_ok=True)
    groups: dict[str, list[list[Record]]] = defaultdict(lambda: [[]])
    filled: dict[str, int] = defaultdict(int)
    for record in corpus_records(corpus):
        split, size = record["split"], sum(path.stat().st_size for _, path in _files(corpus, record))
        if groups[split][-1] and filled[split] + size > shard_mb * 2**20:
            groups[split].append([])
            filled[split] = 0
        groups[split][-1].append(record)
        filled[split] += size
    written = [
        _write(corpus, folder / f"{split}-{number:05d}.tar", records)
        for split, parts in sorted(groups.items())
        for number, records in enumerate(parts)
    ]
    for stale in set(folder.glob("*.tar")) - set(written):
        stale.unlink()
    return written


def read_shard(path: Path) -> Iterator[tuple[Record, Clip]]:
    """Index records and clips of one shard, in order."""
    record: Record = {}
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member)
            if content is None:
                continue
            if member.name.endswith(".json"):
                record = json.loads(content.read())
            elif member.name.endswith(".safetensors"):
                yield record, Clip.from_bytes(content.read())


def read_clips(corpus: Path, splits: Collection[str] | None = None) -> Iterator[tuple[Record, Clip]]:
    """Index records and clips of a corpus, of all splits or these, from its files or, where only those were copied,
    from its shards.

    Raises:
        BadInput: neither is there.
    """
    if (corpus / "clips").is_dir():
        for record in corpus_records(corpus):
            if splits is None or record["split"] in splits:
                yield record, Clip.load(corpus / "clips" / f"{record['name']}.safetensors")
        return
    shards = sorted((corpus / "shards").glob("*.tar")) or sorted(corpus.glob("*.tar"))
    if not shards:
        raise BadInput(f"{corpus} is not a prepared corpus (no clips, no shards): run 'flowportrait prepare' first.")
    for shard in shards:
        yield from (pair for pair in read_shard(shard) if splits is None or pair[0]["split"] in splits)


def _files(corpus: Path, record: Record) -> list[tuple[str, Path]]:
    places = ((suffix, corpus / folder / f"{record['name']}{suffix}") for folder, suffix in PARTS)
    return [(suffix, path) for suffix, path in places if path.is_file()]


def _write(corpus: Path, target: Path, records: list[Record]) -> Path:
    with complete(target) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for record in records:
            _add(tar, f"{key(record['name'])}.json", json.dumps(record).encode())
            for suffix, path in _files(corpus, record):
                _add(tar, f"{key(record['name'])}{suffix}", path.read_bytes())
    return target


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    # Owner and time stay at zero, or the same corpus would not give the same bytes.
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))

"""What a corpus folder lists: ``clips.jsonl`` what was kept, ``rejected.jsonl`` what was not and why, and
``sources.jsonl`` which videos are done.

A video's clips count only once its own line is written, so that an interrupted run repeats it whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from flowportrait.errors import BadInput
from flowportrait.written import write_text

Record = dict[str, Any]
KEPT, REJECTED, DONE = "clips.jsonl", "rejected.jsonl", "sources.jsonl"


def read_records(path: Path) -> Iterator[Record]:
    """Lines of an index file; none where it does not exist. A last line that was cut off is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def corpus_records(corpus: Path) -> list[Record]:
    """The kept clips of a corpus.

    Raises:
        BadInput: it is not one, or is empty.
    """
    if not (corpus / KEPT).is_file():
        raise BadInput(f"{corpus} is not a prepared corpus (no {KEPT}): run 'flowportrait prepare' first.")
    records = list(read_records(corpus / KEPT))
    if not records and not (corpus / REJECTED).is_file():
        raise BadInput(f"{corpus} lists no clips: prepare it again.")
    return records


def reasons(corpus: Path) -> dict[str, int]:
    """How many clips failed which gate, most first; ``unnamed`` in corpora of before there were names."""
    counted = Counter(str(record.get("reason", "unnamed")) for record in read_records(corpus / REJECTED))
    return dict(counted.most_common())


class Index:
    """Appends to the three lists of a corpus; a context manager."""

    def __init__(self, corpus: Path) -> None:
        self.corpus = corpus
        lists = {name: list(read_records(corpus / name)) for name in (KEPT, REJECTED, DONE)}
        self.done = {record["source"] for record in lists[DONE]}
        """Names of the videos that need no more work."""
        for name in (KEPT, REJECTED):
            # Corpora of before there were several clips to a video name the clip like the video.
            self.done |= {record["name"] for record in lists[name] if "source" not in record}
            finished = [record for record in lists[name] if record.get("source", record["name"]) in self.done]
            if len(finished) < len(lists[name]):
                _rewrite(corpus / name, finished)
        self._files: dict[str, TextIO] = {}

    def __enter__(self) -> Index:
        for name in (KEPT, REJECTED, DONE):
            self._files[name] = (self.corpus / name).open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def add(self, source: str, seconds: float, records: Iterable[Record]) -> None:
        """List a finished video of this length and its clips."""
        for record in records:
            self._write(REJECTED if "rejected" in record else KEPT, record)
        self._write(DONE, {"source": source, "seconds": round(seconds, 2)})

    def _write(self, name: str, record: Record) -> None:
        self._files[name].write(json.dumps(record) + "\n")
        self._files[name].flush()


def _rewrite(path: Path, records: Iterable[Record]) -> None:
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))

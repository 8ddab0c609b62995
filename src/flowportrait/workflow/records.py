"""What a stage of a pipeline was made from, recorded beside its output, and compared when the pipeline runs again.

    RUN/pretrain/        the output of a stage
    RUN/pretrain.json    status, version, options, hashes of the inputs and of what it delivers
    RUN/hashes.json      hash of every file that was read, with its size and time, so that it is read once

An input is a file or a folder among the options of a stage. Of a folder, every file counts with its name, size and
content; of the folder of a run or of a corpus, what other commands read of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from flowportrait import __version__
from flowportrait.files import CHECKPOINT_FOLDER, write_json

HARMLESS_OPTIONS = frozenset({"output", "json", "resume", "workers", "track", "cache", "title", "ray"})
"""Options that change where or how fast a stage works, but not what it delivers."""
PATHS_IN_TEXT = frozenset({"start", "recipe", "policy", "checkpoint", "baseline", "against", "system", "set"})
"""Options of text that may name a file or folder, also behind ``NAME=``."""
LISTED_FILES = 1000
"""Inputs of up to this many files are recorded file by file, so that a change can be named."""
_BLOCK = 2**20

StageStatus = Literal["started", "finished", "discarded"]
Digest = dict[str, Any]
"""``sha256`` over names, sizes and contents; ``files`` and ``bytes``; of few files also ``listing`` by name."""


class FileHashes:
    """Hashes of files and folders; a file of the same size and time is not read a second time.

    Args:
        cache: file in which the hashes are kept.
        ignored: folder whose files do not belong to the folders around it.
    """

    def __init__(self, cache: Path, ignored: Path) -> None:
        self._cache = cache
        self._ignored = ignored.resolve()
        try:
            self._known: dict[str, list[Any]] = json.loads(cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def digests(self, inputs: Mapping[str, Path]) -> dict[str, Digest]:
        """Return the digest of every input, with a progress bar over the bytes that have to be read."""
        listings = {name: self._listing(path) for name, path in inputs.items()}
        files = {path for listing in listings.values() for path in listing.values()}
        unknown = [path for path in sorted(files) if self._fresh(path) is None]
        if unknown:
            try:
                self._read(unknown)
            finally:
                self.save()
        return {name: self._combine(listing) for name, listing in listings.items()}

    def save(self) -> None:
        """Write the hashes for the next time, if their folder exists."""
        if self._cache.parent.is_dir():
            write_json(self._cache, self._known, indent=None)

    def _listing(self, path: Path) -> dict[str, Path]:
        """Return the files of an input by their name in it."""
        if path.is_file():
            return {"": path}
        if (path / CHECKPOINT_FOLDER).is_dir():
            files = [*_files_below(path / CHECKPOINT_FOLDER), path / "recipe.json"]
            files = [file for file in files if file.is_file() and file.name != "README.md"]
        elif (path / "clips.jsonl").is_file():
            files = [path / "clips.jsonl", *_files_below(path / "clips"), *_files_below(path / "shards")]
        else:
            inside = path.resolve().is_relative_to(self._ignored)
            files = [f for f in _files_below(path) if inside or not f.resolve().is_relative_to(self._ignored)]
        return {file.relative_to(path).as_posix(): file for file in files}

    def _fresh(self, path: Path) -> str | None:
        """Return the known hash of a file that was not changed since."""
        status = path.stat()
        known = self._known.get(str(path.absolute()))
        return str(known[2]) if known and known[:2] == [status.st_size, status.st_mtime_ns] else None

    def _read(self, paths: Sequence[Path]) -> None:
        with _byte_progress(sum(path.stat().st_size for path in paths)) as advance:
            for path in paths:
                status, digest = path.stat(), hashlib.sha256()
                with path.open("rb") as file:
                    while block := file.read(_BLOCK):
                        digest.update(block)
                        advance(len(block))
                self._known[str(path.absolute())] = [status.st_size, status.st_mtime_ns, digest.hexdigest()]

    def _combine(self, listing: Mapping[str, Path]) -> Digest:
        total, size, entries = hashlib.sha256(), 0, dict[str, str]()
        for name, path in sorted(listing.items()):
            known = self._known[str(path.absolute())]
            size += known[0]
            entries[name] = known[2]
            total.update(f"{name}\0{known[0]}\0{known[2]}\n".encode())
        digest: Digest = {"sha256": total.hexdigest(), "files": len(listing), "bytes": size}
        return digest | ({"listing": entries} if len(listing) <= LISTED_FILES else {})


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without hidden ones, logs and caches."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and path.suffix != ".log" and path.is_file():
                yield path


@contextmanager
def _byte_progress(total: int) -> Iterator[Any]:
    """Yield a function that advances a progress bar by a number of bytes."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from flowportrait.terminal import error_console

    console = error_console()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("hashing inputs", total=total)
        yield lambda count: progress.advance(bar, count)


# --- The inputs of a stage --------------------------------------------------------------


@dataclasses.dataclass
class StageInputs:
    """What a stage depends on.

    Attributes:
        plain: options that change what the stage delivers, by name; of ``NAME=VALUE`` the name is part of the key.
        paths: files and folders that it reads, by option.
        waiting: options that name something which an earlier stage has not made yet.
    """

    plain: dict[str, Any] = dataclasses.field(default_factory=dict)
    paths: dict[str, Path] = dataclasses.field(default_factory=dict)
    waiting: set[str] = dataclasses.field(default_factory=set)

    @classmethod
    def of(cls, options: Any, pending: Sequence[Path] = ()) -> StageInputs:
        """Return the inputs of a stage from the options of its command.

        Args:
            options: the options.
            pending: outputs of earlier stages that have not been made yet.
        """
        found, folders = cls(), [folder.resolve() for folder in pending]
        for part in dataclasses.fields(options):
            if part.name not in HARMLESS_OPTIONS:
                found._add(part.name, getattr(options, part.name), part.name in PATHS_IN_TEXT, folders)
        return found

    def _add(self, name: str, value: Any, text: bool, pending: Sequence[Path]) -> None:
        if isinstance(value, tuple):
            for index, part in enumerate(value):
                key, equals, after = part.partition("=") if isinstance(part, str) else ("", "", "")
                if equals:
                    self._add(f"{name} {key}", after, text, pending)
                else:
                    self._add(name if len(value) == 1 else f"{name} {index + 1}", part, text, pending)
            return
        path = Path(value) if isinstance(value, Path) or (isinstance(value, str) and text and value) else None
        if path is not None and any(path.resolve().is_relative_to(folder) for folder in pending):
            self.waiting.add(name)
        elif path is not None and (isinstance(value, Path) or path.exists()):
            self.paths[name] = path
        else:
            self.plain[name] = value


# --- Records ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """What a stage was made from.

    Attributes:
        status: ``started``; ``finished``; or ``discarded`` while its output is being removed.
        output: its folder.
        version: of FlowPortrait.
        options: options after defaults that change what the stage delivers.
        inputs: digest of every input.
        delivered: digest of what a finished stage delivers.
        seconds: duration of its work since the last interruption.
    """

    status: StageStatus
    output: str
    version: str
    options: Mapping[str, Any]
    inputs: Mapping[str, Digest]
    delivered: Digest | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, inputs: StageInputs, output: Path, hashes: FileHashes) -> StageRecord:
        """Return the record of a stage that is about to start."""
        plain = json.loads(json.dumps(inputs.plain))
        return cls("started", str(output), __version__, plain, hashes.digests(inputs.paths))

    def write(self, path: Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def read(cls, path: Path) -> StageRecord | None:
        """Return the record in a file; None if there is none, or if it is damaged."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def changes(self, now: StageRecord, waiting: Iterable[str] = ()) -> list[str]:
        """Return what differs now from this record, in words.

        Args:
            now: the record of the same stage as it would start now.
            waiting: options that cannot be compared yet.
        """
        skipped = set(waiting)
        found = [] if self.version == now.version else [f"FlowPortrait was {self.version} and is {now.version}"]
        for name in dict.fromkeys((*self.inputs, *now.inputs)):
            difference = digest_difference(self.inputs.get(name), now.inputs.get(name))
            if difference and name not in skipped:
                found.append(f"{name} {difference}")
            skipped.add(name)
        for name in dict.fromkeys((*self.options, *now.options)):
            before, after = self.options.get(name), now.options.get(name)
            if before != after and name not in skipped:
                found.append(f"{name} was {_value_text(before)} and is {_value_text(after)}")
        return found


def _value_text(value: Any) -> str:
    return "not given" if value is None else str(value)


def digest_difference(before: Digest | None, now: Digest | None) -> str | None:
    """Return how a file or folder differs from before, in words, or None if it does not."""
    if before is None or now is None:
        return "was not an input before" if before is None else "is no input any more"
    if before["sha256"] == now["sha256"]:
        return None
    old, new = before.get("listing"), now.get("listing")
    if old is None or new is None:
        return f"had {before['files']} files of {before['bytes']} bytes and has {now['files']} of {now['bytes']}"
    name = min(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    how = "is new" if name not in old else "is gone" if name not in new else "has another content"
    return f"changed: {name} {how}" if name else "has another content"

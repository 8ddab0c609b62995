"""Answers by the address of their question: a run that was stopped asks only for what it does not have."""

from __future__ import annotations

import json
from pathlib import Path

from flowportrait.folders import cache_folder
from flowportrait.judge.opinion import Reply
from flowportrait.written import write_json


def default_folder() -> Path:
    """``judge`` in the user's cache."""
    return cache_folder() / "judge"


class Cache:
    """One small file per answer, complete or absent. ``None`` for the folder: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def get(self, address: str) -> Reply | None:
        """The answer, if it was given before."""
        if self._folder is None:
            return None
        try:
            return Reply.from_dict(json.loads(self._path(address).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, address: str, reply: Reply) -> None:
        """Keep an answer that was found usable."""
        if self._folder is None:
            return
        path = self._path(address)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, reply.to_dict(), indent=None)

    def _path(self, address: str) -> Path:
        assert self._folder is not None
        return self._folder / address[:2] / f"{address}.json"

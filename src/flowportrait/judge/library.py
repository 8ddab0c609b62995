"""What a rubric has learned: entries by aspect, added to it one at a time.

    a model in the chair       sentences that its specialists read below the rubric's grades
    the measured panel         names of the experts whose worst figure is the grade

``improving`` says how entries come and go.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.judge.rubric import ASPECTS, Aspect
from flowportrait.written import write_json


@dataclass(frozen=True)
class Library:
    entries: Mapping[Aspect, tuple[str, ...]] = field(default_factory=dict)

    def of(self, aspect: Aspect) -> tuple[str, ...]:
        """An aspect's entries."""
        return self.entries.get(aspect, ())

    def with_entry(self, aspect: Aspect, entry: str, replaces: int | None = None) -> Library:
        """One entry more, or another in the place of number ``replaces``."""
        own = list(self.of(aspect))
        if replaces is None:
            own.append(entry)
        else:
            own[replaces] = entry
        return Library({**self.entries, aspect: tuple(own)})

    def without(self, aspect: Aspect, entry: str) -> Library:
        """One entry less."""
        return Library({**self.entries, aspect: tuple(other for other in self.of(aspect) if other != entry)})

    @property
    def digest(self) -> str:
        """Changes with any entry; empty without any."""
        if not any(self.entries.values()):
            return ""
        return hashlib.sha256(json.dumps({a: self.of(a) for a in ASPECTS}).encode()).hexdigest()[:12]

    def save(self, path: Path, report: Mapping[str, Any]) -> None:
        """Write with the report of how it came to be."""
        write_json(path, {"entries": dict(self.entries), "report": report})

    @classmethod
    def load(cls, path: Path) -> Library:
        """Read what ``save`` wrote.

        Raises:
            BadInput: missing, or no library.
        """
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))["entries"]
            found = {aspect: tuple(map(str, own)) for aspect, own in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} is no rubric library ({error}): make one with judge learn.") from error
        if unknown := set(found) - set(ASPECTS):
            raise BadInput(f"{path} is no rubric library: {', '.join(sorted(unknown))} is no aspect.")
        return cls(found)

"""Answers in SQLite: who (a random link token and a number), which comparison, which aspect, what. Nothing else.

No address, browser, name or time of day is kept. Write-ahead logging lets people answer while others read; one short
connection per request, so that every thread has its own.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from flowportrait.errors import BadInput
from flowportrait.preference.pairs import Aspect, Label
from flowportrait.study.plan import ANSWERS, Study

_TABLES = """
CREATE TABLE IF NOT EXISTS study (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS participants (token TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    token TEXT NOT NULL REFERENCES participants (token) ON DELETE CASCADE,
    comparison TEXT NOT NULL, aspect TEXT NOT NULL, label TEXT NOT NULL CHECK (label IN ('A', 'B', 'tie')),
    PRIMARY KEY (token, comparison, aspect)) WITHOUT ROWID;
"""

Answers = dict[str, dict[Aspect, Label]]
"""Comparison → aspect → label, A meaning the comparison's a whatever side it was shown on."""


class StudyFull(Exception):
    """Nobody else may begin."""


class Store:
    """The answers of one study.

    Raises:
        BadInput: the file is of another study, or cannot be written.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.path = folder / ANSWERS
        try:
            with self._open() as base:
                base.execute("PRAGMA journal_mode = WAL")
                base.executescript(_TABLES)
                known = base.execute("SELECT identity FROM study").fetchone()
                if known is None:
                    base.execute("INSERT INTO study VALUES (?)", (study.identity,))
        except sqlite3.Error as error:
            raise BadInput(f"{self.path} cannot be used ({error}): check the folder or move the file away.") from error
        if known is not None and known[0] != study.identity:
            raise BadInput(f"{self.path} holds the answers of another study: move it away.")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30)) as base:
            base.execute("PRAGMA foreign_keys = ON")
            with base:
                yield base

    def begin(self, most: int | None = None) -> str:
        """A new participant's link token.

        Raises:
            StudyFull: ``most`` have begun already.
        """
        token = secrets.token_urlsafe(12)
        with self._open() as base:
            # Taking the lock before counting gives two who begin at once two numbers.
            base.execute("BEGIN IMMEDIATE")
            number = base.execute("SELECT COALESCE(MAX(number), -1) + 1 FROM participants").fetchone()[0]
            if most is not None and number >= most:
                raise StudyFull
            base.execute("INSERT INTO participants VALUES (?, ?)", (token, number))
        return token

    def number(self, token: str) -> int | None:
        """The participant's number from 0; None if nobody has this link."""
        with self._open() as base:
            row = base.execute("SELECT number FROM participants WHERE token = ?", (token,)).fetchone()
        return None if row is None else row[0]

    def answer(self, token: str, comparison: str, aspect: Aspect, label: Label) -> None:
        """Keep one answer; the last one given counts."""
        with self._open() as base:
            base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (token, comparison, aspect, label))

    def answers(self, token: str) -> Answers:
        """What one participant said so far; the answers of others are not read."""
        found: Answers = {}
        with self._open() as base:
            rows = base.execute("SELECT comparison, aspect, label FROM answers WHERE token = ?", (token,)).fetchall()
        for comparison, aspect, label in rows:
            found.setdefault(comparison, {})[aspect] = label
        return found

    def withdraw(self, token: str) -> None:
        """Forget what a participant answered; the number stays taken."""
        with self._open() as base:
            base.execute("DELETE FROM answers WHERE token = ?", (token,))

    def everything(self) -> dict[int | None, Answers]:
        """Participant's number → answers."""
        found: dict[int | None, Answers] = {}
        with self._open() as base:
            rows = base.execute(
                "SELECT number, comparison, aspect, label FROM answers JOIN participants USING (token) ORDER BY number"
            ).fetchall()
        for number, comparison, aspect, label in rows:
            found.setdefault(number, {}).setdefault(comparison, {})[aspect] = label
        return found

"""The plan of a study: pairs, order, attention checks, answers.

    trials(participant) = shuffle_key( their share of the pairs + all checks ),   side = coin_key(pair)
    key = study seed, participant's link token

Shares walk around a fixed random circle of pairs by the participant's number, so that every pair is judged equally
often; order and sides are a function of the key, so that a reload shows what was shown before.

Of an answer is kept who gave it (a random link token and a number), on which comparison and aspect, and what it is. No
address, browser, name or time of day is kept. Write-ahead logging lets people answer while others read; one short
connection per request, so that every thread has its own.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from flowportrait.config import from_dict
from flowportrait.errors import BadInput
from flowportrait.files import write_json
from flowportrait.preferences.dataset import VERSION_1_LABELS, Aspect, Label

FORMAT, VERSION = "flowportrait study", 1
PLAN, MEDIA, ANSWERS = "study.json", "media", "answers.sqlite"
MOST_PARTICIPANTS = 1000
"""Who may begin a study, unless its owner says otherwise: nobody fills the disk."""

QUESTIONS: dict[Aspect, str] = {
    "sync": "Whose lips fit the speech better?",
    "expression": "Whose face is more expressive and natural?",
    "motion": "Which moves more smoothly and naturally?",
    "overall": "Which video is better overall?",
}


@dataclass(frozen=True)
class Comparison:
    """Two clips to be shown side by side. kind: a pair of systems, or a check: ``broken`` (a is intact, b is ruined),
    ``identical`` (the same file twice). a, b: file names in ``media/``."""

    key: str
    kind: Literal["pair", "broken", "identical"]
    clip: str
    a: str
    b: str
    system_a: str = ""
    system_b: str = ""
    prompt: str = ""
    speaker: str = ""
    portrait: str = ""
    split: str = ""


@dataclass(frozen=True)
class Trial:
    """One screen: the comparison, and whether its a is on the right."""

    comparison: Comparison
    flipped: bool


@dataclass(frozen=True)
class Study:
    """A whole study. share: pairs per participant, 0 for all; excluded: file → why it is not in it."""

    identity: str
    title: str
    seed: str
    systems: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    share: int = 0
    excluded: dict[str, str] | None = None

    @property
    def pairs(self) -> list[Comparison]:
        """What is compared, without the checks."""
        return [one for one in self.comparisons if one.kind == "pair"]

    @property
    def checks(self) -> list[Comparison]:
        """The attention checks."""
        return [one for one in self.comparisons if one.kind != "pair"]

    @property
    def files(self) -> frozenset[str]:
        """Every file that may be served."""
        return frozenset(name for one in self.comparisons for name in (one.a, one.b))

    def trials(self, token: str, number: int) -> list[Trial]:
        """The screens of the participant with this link, the ``number``-th (from 0) to begin."""
        circle = self.pairs
        random.Random(f"{self.seed} circle").shuffle(circle)
        share = min(self.share or len(circle), len(circle))
        own = [circle[(number * share + step) % len(circle)] for step in range(share)]
        rng = random.Random(f"{self.seed} {token}")
        rng.shuffle(own)
        checks = self.checks
        rng.shuffle(checks)
        # Spread over the session, and never first: the first screen is where people find their way.
        for index, check in enumerate(checks):
            low = 1 + index * len(own) // len(checks)
            high = max(low, (index + 1) * len(own) // len(checks))
            own.insert(min(rng.randint(low, high) + index, len(own)), check)
        return [Trial(one, rng.random() < 0.5) for one in own]

    def save(self, folder: Path) -> None:
        """Write ``study.json``, whole or not at all."""
        write_json(folder / PLAN, {"format": FORMAT, "version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read a study that ``study make`` wrote.

        Raises:
            BadInput: there is none, of another version, incomplete, or with videos missing.
        """
        path = folder / PLAN
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(
                f"{folder} holds no study ({PLAN}): run 'flowportrait preferences study make' first."
            ) from error
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise BadInput(f"{path} is not a study: run 'flowportrait preferences study make' first.")
        version = data.pop("version", None)
        if version != VERSION:
            raise BadInput(f"{path} has version {version}, this program reads {VERSION}: make the study again.")
        listed = data.pop("comparisons", [])
        if not isinstance(listed, list):
            raise BadInput(f"{path} compares nothing: make the study again.")
        comparisons = tuple(from_dict(Comparison, one) for one in listed)
        study = replace(from_dict(cls, {**data, "comparisons": []}), comparisons=comparisons)
        if not study.pairs:
            raise BadInput(f"{path} compares nothing: make the study again.")
        for name in sorted(study.files):
            if re.fullmatch(r"[\w-][\w.-]*", name) is None:
                raise BadInput(f"{path} names a video {name[:80]!r}, which is no name of a file: make the study again.")
            if not (folder / MEDIA / name).is_file():
                raise BadInput(f"{folder / MEDIA / name} is missing: copy the whole study folder or make it again.")
        return study


_TABLES = """
CREATE TABLE IF NOT EXISTS study (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS participants (token TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    token TEXT NOT NULL REFERENCES participants (token) ON DELETE CASCADE,
    comparison TEXT NOT NULL, aspect TEXT NOT NULL, label TEXT NOT NULL CHECK (label IN ('A', 'B', 'tie')),
    PRIMARY KEY (token, comparison, aspect)) WITHOUT ROWID;
"""

Answers = dict[str, dict[Aspect, Label]]
"""Comparison → aspect → label; the first clip is the comparison's a, on whatever side it was shown."""
_TEXT_OF: dict[Label, str] = {label: text for text, label in VERSION_1_LABELS.items()}
"""How the table writes labels."""


class StudyFull(Exception):
    """Nobody else may begin."""


class AnswerStore:
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
        values = (token, comparison, aspect, _TEXT_OF[label])
        with self._open() as base:
            base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", values)

    def answers(self, token: str) -> Answers:
        """The answers of one participant so far; those of others are not read."""
        answers: Answers = {}
        with self._open() as base:
            rows = base.execute("SELECT comparison, aspect, label FROM answers WHERE token = ?", (token,)).fetchall()
        for comparison, aspect, label in rows:
            answers.setdefault(comparison, {})[aspect] = VERSION_1_LABELS[label]
        return answers

    def withdraw(self, token: str) -> None:
        """Forget what a participant answered; the number stays taken."""
        with self._open() as base:
            base.execute("DELETE FROM answers WHERE token = ?", (token,))

    def all_answers(self) -> dict[int | None, Answers]:
        """Participant's number → answers."""
        answers: dict[int | None, Answers] = {}
        with self._open() as base:
            rows = base.execute(
                "SELECT number, comparison, aspect, label FROM answers JOIN participants USING (token) ORDER BY number"
            ).fetchall()
        for number, comparison, aspect, label in rows:
            answers.setdefault(number, {}).setdefault(comparison, {})[aspect] = VERSION_1_LABELS[label]
        return answers

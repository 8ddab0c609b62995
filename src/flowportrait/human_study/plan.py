"""This module holds the plan of a study (pairs, their order, attention checks) and the answers of its participants.

    trials(participant) = shuffle_key( the participant's share of the pairs + all checks ),   side = coin_key(pair)
    key = study seed, participant's link token

``Study`` is the plan, stored in ``study.json``; ``AnswerStore`` holds the answers, stored in ``answers.sqlite``.
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

STUDY_FORMAT, STUDY_VERSION = "flowportrait study", 1
PLAN_FILE, MEDIA_FOLDER, ANSWERS_FILE = "study.json", "media", "answers.sqlite"
MAX_PARTICIPANTS = 1000
"""Default limit of participants, so that requests cannot fill the disk."""

QUESTIONS: dict[Aspect, str] = {
    "sync": "Whose lips fit the speech better?",
    "expression": "Whose face is more expressive and natural?",
    "motion": "Which moves more smoothly and naturally?",
    "overall": "Which video is better overall?",
}
"""The question of each aspect, as participants read it."""

# --- The plan


@dataclass(frozen=True)
class StudyComparison:
    """Two clips that are shown side by side.

    Args:
        key: identifies the comparison within the study.
        kind: a ``pair`` of two systems, or an attention check: ``broken`` (a is intact, b is damaged) or ``identical``
            (the same file twice).
        clip: name of the videos without suffix.
        a: file name in ``media/``.
        b: file name in ``media/``.
        system_a: the system of a; empty for a check.
        system_b: the system of b; empty for a check.
        prompt: identifies the prompt of both clips.
        speaker: the speaker, if known.
        portrait: the portrait, if known.
        split: the split of the speaker, if known.
    """

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
    """One screen of a session: a comparison, and whether its clip a is on the right."""

    comparison: StudyComparison
    flipped: bool


@dataclass(frozen=True)
class Study:
    """The plan of a study.

    Args:
        identity: random name of the study, which its answers refer to.
        title: heading of the page.
        seed: seed of order and sides.
        systems: names of the systems.
        comparisons: all pairs and checks.
        share: pairs per participant, 0 for all.
        excluded: reasons by file that is left out.
    """

    identity: str
    title: str
    seed: str
    systems: tuple[str, ...]
    comparisons: tuple[StudyComparison, ...]
    share: int = 0
    excluded: dict[str, str] | None = None

    @property
    def pairs(self) -> list[StudyComparison]:
        """The comparisons of two systems, without the attention checks."""
        return [one for one in self.comparisons if one.kind == "pair"]

    @property
    def checks(self) -> list[StudyComparison]:
        """The attention checks."""
        return [one for one in self.comparisons if one.kind != "pair"]

    @property
    def files(self) -> frozenset[str]:
        """The names of all files in ``media/`` that may be served."""
        return frozenset(name for one in self.comparisons for name in (one.a, one.b))

    def trials(self, token: str, number: int) -> list[Trial]:
        """Return the screens of one participant, the same for every call.

        Successive participants take successive shares of a fixed random circle of pairs, so that all pairs are judged
        equally often. Order and sides depend only on the seed and the token, so that a reload shows the same.

        Args:
            token: the participant's link token.
            number: the participant's number, from 0.
        """
        circle = self.pairs
        random.Random(f"{self.seed} circle").shuffle(circle)
        share = min(self.share or len(circle), len(circle))
        session = [circle[(number * share + step) % len(circle)] for step in range(share)]
        rng = random.Random(f"{self.seed} {token}")
        rng.shuffle(session)
        checks = self.checks
        rng.shuffle(checks)
        # Checks are spread over the session, and never come first, because people learn the page on the first screen.
        for index, check in enumerate(checks):
            low = 1 + index * len(session) // len(checks)
            high = max(low, (index + 1) * len(session) // len(checks))
            session.insert(min(rng.randint(low, high) + index, len(session)), check)
        return [Trial(one, rng.random() < 0.5) for one in session]

    def save(self, folder: Path) -> None:
        """Write ``study.json``; an existing file is replaced only when the new one is complete."""
        write_json(folder / PLAN_FILE, {"format": STUDY_FORMAT, "version": STUDY_VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Study:
        """Read a study that ``study make`` wrote.

        Raises:
            BadInput: the study is missing, of another version or incomplete, or videos are missing.
        """
        path = folder / PLAN_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(
                f"{folder} holds no study ({PLAN_FILE}): run 'flowportrait preferences study make' first."
            ) from error
        if not isinstance(data, dict) or data.pop("format", None) != STUDY_FORMAT:
            raise BadInput(f"{path} is not a study: run 'flowportrait preferences study make' first.")
        version = data.pop("version", None)
        if version != STUDY_VERSION:
            raise BadInput(f"{path} has version {version}, this program reads {STUDY_VERSION}: make the study again.")
        listed = data.pop("comparisons", [])
        if not isinstance(listed, list):
            raise BadInput(f"{path} compares nothing: make the study again.")
        comparisons = tuple(from_dict(StudyComparison, one) for one in listed)
        study = replace(from_dict(cls, {**data, "comparisons": []}), comparisons=comparisons)
        if not study.pairs:
            raise BadInput(f"{path} compares nothing: make the study again.")
        for name in sorted(study.files):
            if re.fullmatch(r"[\w-][\w.-]*", name) is None:
                raise BadInput(f"{path} names a video {name[:80]!r}, which is no name of a file: make the study again.")
            if not (folder / MEDIA_FOLDER / name).is_file():
                raise BadInput(
                    f"{folder / MEDIA_FOLDER / name} is missing: copy the whole study folder or make it again."
                )
        return study


# --- The answers

_TABLES = """
CREATE TABLE IF NOT EXISTS study (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS participants (token TEXT PRIMARY KEY, number INTEGER UNIQUE NOT NULL);
CREATE TABLE IF NOT EXISTS answers (
    token TEXT NOT NULL REFERENCES participants (token) ON DELETE CASCADE,
    comparison TEXT NOT NULL, aspect TEXT NOT NULL, label TEXT NOT NULL CHECK (label IN ('A', 'B', 'tie')),
    PRIMARY KEY (token, comparison, aspect)) WITHOUT ROWID;
"""

Answers = dict[str, dict[Aspect, Label]]
"""Labels by comparison and aspect; the first clip is the comparison's a, on whichever side it was shown."""
_TEXT_OF: dict[Label, str] = {label: text for text, label in VERSION_1_LABELS.items()}
"""The texts that stand for labels in the table."""


class StudyFull(Exception):
    """An error for a study that has its maximum number of participants."""


class AnswerStore:
    """The answers of one study in an SQLite file.

    An answer has a random link token, the participant's number, the comparison, the aspect and the label. No address,
    browser, name or time is stored. Write-ahead logging lets people answer while others read; every request has its own
    short connection, because connections cannot be shared by threads.

    Args:
        folder: folder of the study.
        study: the study that the answers belong to.

    Raises:
        BadInput: the file belongs to another study, or cannot be written.
    """

    def __init__(self, folder: Path, study: Study) -> None:
        self.path = folder / ANSWERS_FILE
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

    def add_participant(self, most: int | None = None) -> str:
        """Register a new participant and return the link token.

        Args:
            most: limit of participants, None for no limit.

        Raises:
            StudyFull: the limit is reached.
        """
        token = secrets.token_urlsafe(12)
        with self._open() as base:
            # The lock comes before the count, so that two who begin at the same time get different numbers.
            base.execute("BEGIN IMMEDIATE")
            number = base.execute("SELECT COALESCE(MAX(number), -1) + 1 FROM participants").fetchone()[0]
            if most is not None and number >= most:
                raise StudyFull
            base.execute("INSERT INTO participants VALUES (?, ?)", (token, number))
        return token

    def number(self, token: str) -> int | None:
        """Return the participant's number, from 0; None if no participant has this token."""
        with self._open() as base:
            row = base.execute("SELECT number FROM participants WHERE token = ?", (token,)).fetchone()
        return None if row is None else row[0]

    def answer(self, token: str, comparison: str, aspect: Aspect, label: Label) -> None:
        """Store one answer; it replaces an earlier answer to the same question."""
        values = (token, comparison, aspect, _TEXT_OF[label])
        with self._open() as base:
            base.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", values)

    def answers(self, token: str) -> Answers:
        """Return the answers of one participant so far."""
        answers: Answers = {}
        with self._open() as base:
            rows = base.execute("SELECT comparison, aspect, label FROM answers WHERE token = ?", (token,)).fetchall()
        for comparison, aspect, label in rows:
            answers.setdefault(comparison, {})[aspect] = VERSION_1_LABELS[label]
        return answers

    def withdraw(self, token: str) -> None:
        """Delete the answers of a participant; the number is not given to anybody else."""
        with self._open() as base:
            base.execute("DELETE FROM answers WHERE token = ?", (token,))

    def all_answers(self) -> dict[int | None, Answers]:
        """Return the answers of all participants by their numbers."""
        answers: dict[int | None, Answers] = {}
        with self._open() as base:
            rows = base.execute(
                "SELECT number, comparison, aspect, label FROM answers JOIN participants USING (token) ORDER BY number"
            ).fetchall()
        for number, comparison, aspect, label in rows:
            answers.setdefault(number, {}).setdefault(comparison, {})[aspect] = VERSION_1_LABELS[label]
        return answers

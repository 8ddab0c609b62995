"""This module holds the consent text of a study, which participants read and agree to before they begin.

``consent.txt`` in the study's folder is plain text: a line that begins with ``# `` is a heading, other lines are
paragraphs. A study is not held while the text has placeholders in brackets, such as ``[CONTACT: …]``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from flowportrait.errors import BadInput
from flowportrait.files import write_text

CONSENT_FILE = "consent.txt"
CONTACT_PLACEHOLDER = "[CONTACT: name, organisation and e-mail address of the person who is responsible]"
CONSENT_TEXT = """\
# What this is for
We compare ways in which a computer makes videos of talking people. Your answers show which videos people find better. \
The results are used in research, and may be published as numbers.

# What you do
You watch pairs of short videos with sound, and answer four questions about each pair. A few videos are damaged on \
purpose, to see whether the pairs are looked at. Some of them flicker: please do not take part if flickering pictures \
harm you. You must be 18 or older.

# What is kept
Your answers, under a random number. No name, no address, no time, no cookie and nothing about your device is kept. \
The answers may be published under that number.

# You can stop at any time
Taking part is voluntary. You can stop whenever you like, without a reason and without a disadvantage. "Withdraw" on \
the page deletes all your answers at once. To do so later, keep your personal link, which is the address of the page \
with the pairs: without it nobody can tell which answers are yours. Results that are published already cannot be taken \
back.

# Whom to ask
{contact}
"""
_PLACEHOLDER = re.compile(r"\[[A-Z]{3,}[^\]]*\]")


class ConsentSection(NamedTuple):
    """A heading and its paragraphs."""

    heading: str
    paragraphs: list[str]


def write_consent(folder: Path, contact: str | None = None) -> None:
    """Write ``consent.txt``; a text that exists already is kept unless there is a contact to fill in.

    Args:
        folder: folder of the study.
        contact: whom participants can ask: name, organisation and e-mail address; by default a placeholder.
    """
    path = folder / CONSENT_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else CONSENT_TEXT.format(contact=CONTACT_PLACEHOLDER)
    if contact:
        text = text.replace(CONTACT_PLACEHOLDER, contact)
    write_text(path, text)


def read_consent(folder: Path, complete: bool = True) -> list[ConsentSection]:
    """Return the sections of the consent text; a study without one gets the standard text first.

    Args:
        folder: folder of the study.
        complete: whether placeholders are an error.

    Raises:
        BadInput: the text is empty, cannot be read, or has placeholders although it has to be complete.
    """
    path = folder / CONSENT_FILE
    if not path.is_file():
        write_consent(folder)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}): write the text that participants agree to.") from error
    if not text.strip():
        raise BadInput(
            f"{path} is empty: write the text that participants agree to, or delete it for the standard one."
        )
    if complete and (left := _PLACEHOLDER.search(text)):
        raise BadInput(
            f"{path} still has the placeholder {left[0]!r}: fill it in before people take part, or look at the page "
            "with --preview, which keeps no answers."
        )
    sections: list[ConsentSection] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("# "):
            sections.append(ConsentSection(line[2:].strip(), []))
        elif sections:
            sections[-1].paragraphs.append(line)
        else:
            sections.append(ConsentSection("", [line]))
    return sections

"""The note beside a prepared corpus: what is in it, under which licences, and what must not be done with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from flowportrait.data.corpus import Record, corpus_records
from flowportrait.files import write_text
from flowportrait.media.video import FPS
from flowportrait.models.model_card import CARD_FILE, set_card_section

_NOTE = """---
license: unknown
pretty_name: {name}
size_categories: [{size}]
task_categories: [image-to-video]
tags: [talking-head, face-landmarks, speech, video]
---

# {name}

Clips of talking faces that `flowportrait prepare` made from videos: 478 landmarks, 52 blendshapes, the mouth and the
sound at 16 kHz of each, with the speaker's name and the split.

## Contents

{contents}

## Licences

{licences}

Name the licence of the footage in the first lines of this note before you pass the corpus on. A licence of a film is
no consent of the people in it.

## What must not be done with it

* Animate or imitate a person in it who did not agree.
* Recognise people, or infer who they are, what they believe or how they feel.
* Train on the splits that are held out (`dev`, `test`, `evaluation`), or evaluate on the others.
* Use it, or what is trained on it, for what the licences of the footage do not allow.
"""

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LICENCE_NAMES = ("license*", "licence*", "copying*", "LICENSE*", "LICENCE*", "COPYING*")


def write_dataset_note(corpus: Path, inputs: Sequence[Path]) -> None:
    """Write ``README.md`` into a prepared corpus; of an existing note only the section of the contents is renewed.

    Args:
        corpus: the corpus.
        inputs: files and folders that it was prepared from; texts of licences that lie in them are named.
    """
    records = corpus_records(corpus)
    if (corpus / CARD_FILE).is_file():
        set_card_section(corpus, "Contents", _contents(records))
        return
    size = next((name for limit, name in _SIZES if len(records) < limit), "1M<n<10M")
    folders = [path for path in inputs if path.is_dir()]
    found = sorted({path.name for folder in folders for name in _LICENCE_NAMES for path in folder.glob(name)})
    licences = f"The footage came with {', '.join(f'`{name}`' for name in found)}." if found else "None was given."
    note = _NOTE.format(name=corpus.resolve().name, size=size, contents=_contents(records), licences=licences)
    write_text(corpus / CARD_FILE, note)


def _contents(records: Sequence[Record]) -> str:
    splits: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        splits[str(record["split"])].append(record)
    rows = ["| split | clips | speakers | minutes |", "|---|---|---|---|"]
    for name, members in sorted(splits.items()):
        minutes = sum(record["frames"] for record in members) / FPS / 60
        rows.append(f"| {name} | {len(members)} | {len({record['speaker'] for record in members})} | {minutes:.1f} |")
    return "\n".join(rows)

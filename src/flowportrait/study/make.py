"""From folders of videos to a study that can be served or sent.

    A/0007.mp4, B/0007.mp4 ─► media/3f9c….mp4, media/81d0….mp4 ─► one comparison

Names in ``media/`` are drawn at random; which system a file is of stands in ``study.json`` alone, which is not served.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from flowportrait.errors import BadInput
from flowportrait.prompts import VIDEO_SUFFIXES
from flowportrait.study.plan import ANSWERS, MEDIA, PLAN, Comparison, Study
from flowportrait.study.playable import make_playable, make_ruined

ABOUT = ("prompt", "speaker", "portrait", "split")


def make_study(
    folders: Sequence[Path],
    output: Path,
    *,
    title: str = "Which video is better?",
    checks: int = 2,
    share: int = 0,
    seed: str | None = None,
    about: Path | None = None,
    report: Callable[[str], None] = lambda name: None,
) -> Study:
    """Write a study into ``output``.

    folders: one per system, its name the system's; checks: how many of each kind (broken, identical); share: pairs
    per participant, 0 for all; seed: what order and sides come from (default: drawn); about: JSON lines with
    ``name`` (of the video, without suffix) and any of prompt, speaker, portrait, split; report: called with each clip
    that is done.

    Raises:
        BadInput: fewer than two systems, no common name, a folder in use, or an unreadable ``about``.
    """
    systems = named_folders(folders)
    if (output / ANSWERS).exists():
        raise BadInput(f"{output} already has answers ({ANSWERS}): choose another --output.")
    if checks < 0 or share < 0:
        raise BadInput("--checks and --pairs-per-participant are 0 or more.")
    facts = _facts(about)
    media = output / MEDIA
    media.mkdir(parents=True, exist_ok=True)
    for old in (*media.glob("*.mp4"), output / PLAN):
        old.unlink(missing_ok=True)
    seed = seed or secrets.token_hex(8)
    found = {name: _videos(folder) for name, folder in systems.items()}
    excluded: dict[str, str] = {}
    ready: dict[str, dict[str, str]] = {}
    for clip in sorted(set().union(*found.values())):
        for system, own in found.items():
            if clip not in own:
                excluded[f"{system}/{clip}"] = "no video of this name"
            elif sum(clip in other for other in found.values()) > 1:
                target = _neutral(seed, system, clip)
                try:
                    make_playable(own[clip], media / target)
                except BadInput as error:
                    excluded[f"{system}/{own[clip].name}"] = str(error)
                else:
                    ready.setdefault(clip, {})[system] = target
        report(clip)
    ready = {clip: files for clip, files in ready.items() if len(files) > 1}
    comparisons = _pairs(ready, facts)
    if not comparisons:
        why = "; ".join(excluded.values()) or "no names in common"
        raise BadInput(f"No clip exists in two systems ({why[:300]}): name the videos of one prompt alike.")
    comparisons += _checks(ready, found, media, seed, checks)
    study = Study(secrets.token_hex(6), title, seed, tuple(systems), tuple(comparisons), share, excluded)
    for unused in {path.name for path in media.glob("*.mp4")} - study.files:
        (media / unused).unlink()
    study.save(output)
    return study


def named_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """Systems by name.

    Raises:
        BadInput: fewer than two, not a folder, or two of the same name.
    """
    if len(folders) < 2:
        raise BadInput("A study compares at least two folders of videos: give one for each system.")
    named: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise BadInput(f"{folder} is not a folder of videos: check the path.")
        name = folder.resolve().name
        if name in named:
            raise BadInput(f"Two folders are called '{name}': rename one, the name is the system's in the results.")
        named[name] = folder
    return named


def _videos(folder: Path) -> dict[str, Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and not p.name.startswith("."))
    if not files:
        raise BadInput(f"No videos (mp4, mov, webm, avi, mkv) in {folder}.")
    return {path.stem: path for path in files}


def _neutral(seed: str, *what: str) -> str:
    return hashlib.sha256("\0".join((seed, *what)).encode()).hexdigest()[:16] + ".mp4"


def _pairs(ready: Mapping[str, Mapping[str, str]], facts: Mapping[str, Mapping[str, str]]) -> list[Comparison]:
    found: list[Comparison] = []
    for clip, files in ready.items():
        for one, other in combinations(files, 2):
            made = Comparison(f"p{len(found)}", "pair", clip, files[one], files[other], one, other, prompt=clip)
            told: Mapping[str, Any] = facts.get(clip, {})
            found.append(replace(made, **told))
    return found


def _checks(
    ready: Mapping[str, Mapping[str, str]],
    found: Mapping[str, Mapping[str, Path]],
    media: Path,
    seed: str,
    count: int,
) -> list[Comparison]:
    """Checks from clips spread over the study, the systems in turn."""
    checks = []
    shown = [(clip, system) for clip, files in ready.items() for system in files]
    for index in range(min(count, len(shown))):
        clip, system = shown[(index * len(shown)) // count]
        broken = _neutral(seed, "broken", system, clip)
        make_ruined(found[system][clip], media / broken)
        checks.append(Comparison(f"b{index}", "broken", clip, ready[clip][system], broken))
        clip, system = shown[-1 - (index * len(shown)) // count]
        checks.append(Comparison(f"i{index}", "identical", clip, ready[clip][system], ready[clip][system]))
    return checks


def _facts(about: Path | None) -> dict[str, dict[str, str]]:
    if about is None:
        return {}
    facts = {}
    try:
        for number, line in enumerate(about.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            if unknown := sorted(set(row) - {"name", *ABOUT}):
                known = ", ".join(("name", *ABOUT))
                raise BadInput(f"{about}, line {number}: unknown key '{unknown[0]}'; known are {known}.")
            facts[row["name"]] = {key: str(row[key]) for key in ABOUT if row.get(key)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(f"{about} cannot be read: give JSON lines with 'name' and any of {', '.join(ABOUT)}.") from error
    return facts

"""This module makes a study from folders of videos, one folder per system.

    A/0007.mp4, B/0007.mp4 ─► media/3f9c….mp4, media/81d0….mp4 ─► one comparison

The names in ``media/`` are hashes; the system of a file is recorded in ``study.json`` alone, which is not served. Every
file plays in all browsers and has no metadata about its origin:

    H.264 4:2:0 (+ AAC) ─► packets are copied into a new mp4: the same pictures without tags
    all other formats   ─► decoded and encoded again (CRF 17)
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np

from flowportrait.corruption import Footage, corrupt
from flowportrait.data.prompts import VIDEO_SUFFIXES
from flowportrait.errors import BadInput
from flowportrait.human_study.consent import write_consent
from flowportrait.human_study.plan import ANSWERS_FILE, MEDIA_FOLDER, PLAN_FILE, Study, StudyComparison
from flowportrait.media.audio import SAMPLES_PER_FRAME, has_audio, read_audio
from flowportrait.media.containers import main_sound_stream, main_video_stream, open_media
from flowportrait.media.video import LOCAL_CLIP_LIMITS, iter_bounded_frames, read_clip
from flowportrait.media.write_video import remux_to_mp4, write_video

CLIP_FACTS = ("prompt", "speaker", "portrait", "split")
"""Facts about a clip that can be given."""
BROKEN_CHECK_DAMAGE = (("still", 1.0), ("blur", 6.0), ("colour pumping", 60.0))
"""Damage and strengths of a ``broken`` check: a still, blurred face that changes colour, which an attentive participant
never prefers."""


def make_study(
    folders: Sequence[Path],
    output: Path,
    *,
    title: str = "Which video is better?",
    checks: int = 2,
    share: int = 0,
    seed: str | None = None,
    about: Path | None = None,
    contact: str | None = None,
    report: Callable[[str], None] = lambda name: None,
) -> Study:
    """Write a study into a folder and return it.

    Args:
        folders: one folder of videos per system; its name is that of the system.
        output: folder of the study.
        title: heading of the page.
        checks: number of attention checks of each kind (broken, identical).
        share: pairs per participant, 0 for all.
        seed: seed of order and sides; random by default.
        about: file of JSON lines with ``name`` (of the video, without suffix) and any of prompt, speaker, portrait and
            split.
        contact: whom participants can ask, for the consent text; by default a placeholder to fill in.
        report: called with the name of each clip that is done.

    Raises:
        BadInput: there are fewer than two systems or no common name, the output has answers already, or ``about``
            cannot be read.
    """
    systems = folders_by_system(folders)
    if (output / ANSWERS_FILE).exists():
        raise BadInput(f"{output} already has answers ({ANSWERS_FILE}): choose another --output.")
    if checks < 0 or share < 0:
        raise BadInput("--checks and --pairs-per-participant are 0 or more.")
    facts = _read_facts(about)
    media = output / MEDIA_FOLDER
    media.mkdir(parents=True, exist_ok=True)
    for old in (*media.glob("*.mp4"), output / PLAN_FILE):
        old.unlink(missing_ok=True)
    seed = seed or secrets.token_hex(8)
    videos = {name: _videos(folder) for name, folder in systems.items()}
    excluded: dict[str, str] = {}
    ready: dict[str, dict[str, str]] = {}
    for clip in sorted(set().union(*videos.values())):
        for system, by_name in videos.items():
            if clip not in by_name:
                excluded[f"{system}/{clip}"] = "no video of this name"
            elif sum(clip in other for other in videos.values()) > 1:
                target = _neutral_name(seed, system, clip)
                try:
                    make_playable_video(by_name[clip], media / target)
                except BadInput as error:
                    excluded[f"{system}/{by_name[clip].name}"] = str(error)
                else:
                    ready.setdefault(clip, {})[system] = target
        report(clip)
    ready = {clip: files for clip, files in ready.items() if len(files) > 1}
    comparisons = _pair_comparisons(ready, facts)
    if not comparisons:
        reasons = "; ".join(excluded.values()) or "no names in common"
        raise BadInput(f"No clip exists in two systems ({reasons[:300]}): name the videos of one prompt alike.")
    comparisons += _check_comparisons(ready, videos, media, seed, checks)
    study = Study(secrets.token_hex(6), title, seed, tuple(systems), tuple(comparisons), share, excluded)
    for unused in {path.name for path in media.glob("*.mp4")} - study.files:
        (media / unused).unlink()
    write_consent(output, contact)
    study.save(output)
    return study


def folders_by_system(folders: Sequence[Path]) -> dict[str, Path]:
    """Return the folders by the name of their system.

    Raises:
        BadInput: there are fewer than two, one is not a folder, or two have the same name.
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


def _neutral_name(seed: str, *what: str) -> str:
    return hashlib.sha256("\0".join((seed, *what)).encode()).hexdigest()[:16] + ".mp4"


def _pair_comparisons(
    ready: Mapping[str, Mapping[str, str]], facts: Mapping[str, Mapping[str, str]]
) -> list[StudyComparison]:
    comparisons: list[StudyComparison] = []
    for clip, files in ready.items():
        for one, other in combinations(files, 2):
            one_pair = StudyComparison(
                f"p{len(comparisons)}", "pair", clip, files[one], files[other], one, other, prompt=clip
            )
            about: Mapping[str, Any] = facts.get(clip, {})
            comparisons.append(replace(one_pair, **about))
    return comparisons


def _check_comparisons(
    ready: Mapping[str, Mapping[str, str]],
    videos: Mapping[str, Mapping[str, Path]],
    media: Path,
    seed: str,
    count: int,
) -> list[StudyComparison]:
    """Return ``count`` checks of each kind, from clips spread over the study and from all systems in turn."""
    checks = []
    candidates = [(clip, system) for clip, files in ready.items() for system in files]
    for index in range(min(count, len(candidates))):
        clip, system = candidates[(index * len(candidates)) // count]
        broken = _neutral_name(seed, "broken", system, clip)
        make_damaged_video(videos[system][clip], media / broken)
        checks.append(StudyComparison(f"b{index}", "broken", clip, ready[clip][system], broken))
        clip, system = candidates[-1 - (index * len(candidates)) // count]
        checks.append(StudyComparison(f"i{index}", "identical", clip, ready[clip][system], ready[clip][system]))
    return checks


def _read_facts(about: Path | None) -> dict[str, dict[str, str]]:
    if about is None:
        return {}
    facts = {}
    try:
        for number, line in enumerate(about.read_text(encoding="utf-8").splitlines(), 1):
            row = json.loads(line)
            if unknown := sorted(set(row) - {"name", *CLIP_FACTS}):
                known = ", ".join(("name", *CLIP_FACTS))
                raise BadInput(f"{about}, line {number}: unknown key '{unknown[0]}'; known are {known}.")
            facts[row["name"]] = {key: str(row[key]) for key in CLIP_FACTS if row.get(key)}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInput(
            f"{about} cannot be read: give JSON lines with 'name' and any of {', '.join(CLIP_FACTS)}."
        ) from error
    return facts


def make_playable_video(source: Path, target: Path) -> bool:
    """Write a video as an mp4 file that browsers play, and return whether it had to be encoded again.

    Raises:
        BadInput: ``source`` is missing or damaged, or has no video.
    """
    if _copy_packets(source, target):
        return False
    sound = read_audio(source, longest=LOCAL_CLIP_LIMITS.seconds + 1) if has_audio(source) else None
    write_video(target, iter_bounded_frames(source), sound)
    return True


def make_damaged_video(source: Path, target: Path) -> None:
    """Write an obviously damaged version of a video, for a ``broken`` check.

    Raises:
        BadInput: as for ``make_playable_video``.
    """
    clip = read_footage(source)
    for name, strength in BROKEN_CHECK_DAMAGE:
        clip = corrupt(clip, name, strength)
    assert clip.frames is not None
    write_video(target, iter(clip.frames), clip.audio)


def read_footage(path: Path) -> Footage:
    """Return the frames of a video and, if it has sound, its audio, cut or padded to the length of the frames.

    Raises:
        BadInput: the file cannot be read, or exceeds ``media.video.LOCAL_CLIP_LIMITS``.
    """
    frames, sound = read_clip(path)
    if sound is None:
        return Footage(frames)
    audio = np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    audio[: len(sound)] = sound[: len(audio)]
    return Footage(frames, audio)


def _copy_packets(source: Path, target: Path) -> bool:
    """Copy the packets of a video into a new mp4 and return True, or return False if browsers cannot play them."""
    for _ in iter_bounded_frames(source):
        pass  # decode the whole file now, so that no participant meets one that does not play to its end
    partial = target.with_name(f".{target.name}.partial.mp4")
    try:
        with open_media(source) as container:
            video, sound = main_video_stream(container), main_sound_stream(container)
            assert video is not None
            tracks = [video] if sound is None else [video, sound]
            plays = video.codec_context.name == "h264" and video.codec_context.pix_fmt == "yuv420p"
            if not plays or (sound is not None and sound.codec_context.name != "aac") or _is_rotated(video):
                return False
            remux_to_mp4(container, tracks, partial)
        os.replace(partial, target)
        return True
    except (av.FFmpegError, OSError) as error:
        raise BadInput(f"{source} cannot be copied ({error}): give a video that plays to its end.") from error
    finally:
        partial.unlink(missing_ok=True)


def _is_rotated(video: av.VideoStream) -> bool:
    """Return whether the stream's metadata asks the player to rotate the picture."""
    frame = next(video.container.decode(video), None)
    video.container.seek(0)
    return bool(getattr(frame, "rotation", 0))

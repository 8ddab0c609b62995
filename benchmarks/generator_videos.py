"""Generators as the evaluation side sees finished videos.

    python benchmarks/generator_videos.py --corpus CORPUS --data FOOTAGE --output DIR [--clips 24] [--pieces 4]
                                          [--only NAME ...] [--language Arabic] [--against NAME ...]
                                          [options of generator.py]

Videos of 256 px, portraits of FOOTAGE (with ``portraits/`` and ``speech/``) in turn, judged by the evaluation side's
expert (LSE-C, at zero offset; LER; lips in silence), beside the real motion redrawn, a jaw driven by loudness, and the
motion of another sentence. Voices that no video exists of, English and Chinese, have no row of real motion: their jaw
and other sentence are made from what the first system performs. Chinese is one person's sentence on several portraits,
and ten sentences of a synthetic voice (``pip install 'flowportrait[voice]'``). What was judged stays in DIR, so that
systems can be judged one call at a time (with ``--lead`` or another number of clips: in a DIR of its own).
``--against`` adds what systems gain on those, video by video, and over all languages together. 95 % intervals:
bootstrap over clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from generator import LANGUAGES, Heard, Material, estimate, options, prepared, share

from flowportrait.corruption.motion import loudness_driven_jaw, motion_of_other_sentence
from flowportrait.evaluation.lip_sync import measure_sync
from flowportrait.evaluation.motion_metrics import measure_silent_lip
from flowportrait.evaluation.tracking import VideoTracks
from flowportrait.media.audio import SAMPLE_RATE, read_audio
from flowportrait.media.crop import MOUTH_PATCH, mouth_patch
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.mel import SAMPLES_PER_FRAME, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.speech.text_to_speech import synthesize_samples
from flowportrait.speech.voices import load_voice

MANDARIN = (
    "今天天气很好，我们去公园散步吧。", "请问火车站怎么走？", "这本书我已经看了三遍了。", "他每天早上六点起床跑步。",
    "妈妈做的菜比饭店的好吃。", "明天下午三点我们开会讨论计划。", "你能帮我把窗户打开吗？", "北京的冬天又冷又干燥。",
    "孩子们在操场上高兴地踢足球。", "学习一门新语言需要很多时间。",
)  # fmt: skip
"""Everyday sentences."""


Motion = Callable[[], torch.Tensor]
Rows = dict[str, dict[str, float]]
"""Figures of one system's videos, by language and clip."""


class Take(NamedTuple):
    """One video to judge; ``clean`` is its sound."""

    system: str
    language: str
    stem: str
    codec: MotionCodec
    motion: Motion
    clean: np.ndarray


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=24, help="of Arabic; of English half as many, but longer")
    parser.add_argument("--pieces", type=int, default=4, help="of each recording that no video exists of")
    parser.add_argument("--only", nargs="+", help="draw nothing of other systems")
    parser.add_argument("--against", nargs="+", default=[], help="systems to compare the others with")
    parser.add_argument("--language", help="draw nothing of others, by the beginning of their name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for take in takes(given, *prepared(given)):
        if take.language.startswith(given.language or ""):
            judge(given.output / take.language / take.system / f"{take.stem}.json", take, given.only)
    everywhere: dict[str, Rows] = {}
    for language in sorted(given.output.iterdir()):
        found = {folder.name: judged(folder) for folder in sorted(language.iterdir())}
        print(f"\n{language.name}")
        for system, rows in found.items():
            print(f"  {system:24s} {len(rows):3d} clips  " + figures(rows, found.get("real motion")))
            everywhere.setdefault(system, {}).update(rows)
        gains(found, given.against)
    print("\nall languages")
    gains(everywhere, given.against)


def judge(path: Path, take: Take, only: list[str] | None) -> None:
    """Draw one video and write down what it is worth, unless that is known."""
    if path.is_file() or (only and take.system not in only):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    video = path.with_suffix(".mp4")
    write_video(video, take.codec.decode(take.motion()), take.clean)
    seen = glance(video)
    sync = measure_sync(seen)
    if sync is not None:
        row = {"LSE-C": sync.lse_c, "at 0": sync.lse_c_at_zero, "LER": sync.errors / max(1, sync.ler_windows),
               "silent lip": measure_silent_lip(seen.landmarks, seen.valid, seen.audio)[0]}  # fmt: skip
        path.write_text(json.dumps(row))


def judged(folder: Path) -> Rows:
    """What ``judge`` wrote down of one system."""
    return {f"{folder.parent.name}/{path.stem}": json.loads(path.read_text()) for path in folder.glob("*.json")}


def figures(rows: Rows, real: Rows | None) -> str:
    """One line; the share of the real motion's LSE-C is over the clips that both have."""
    parts = []
    for name in ("LSE-C", "at 0", "LER", "silent lip"):
        values = np.array([row[name] for row in rows.values() if row[name] is not None])
        parts += [f"{name} {estimate(values)}"] if len(values) else []
    if real:
        pairs = np.array([(rows[stem]["LSE-C"], real[stem]["LSE-C"]) for stem in rows if stem in real])
        parts.append(f"share of real {share(*pairs.T)}")
    return "  ".join(parts)


def gains(found: dict[str, Rows], against: list[str]) -> None:
    """Print how much more the same videos are worth in one system than in another, and their share of its LSE-C."""
    for base in (name for name in against if name in found):
        for system in (name for name in found if name != base):
            parts = []
            both = [(rows, found[base][stem]) for stem, rows in found[system].items() if stem in found[base]]
            for name in ("LSE-C", "at 0", "silent lip"):
                pairs = [(ours[name], theirs[name]) for ours, theirs in both]
                change = np.array([ours - theirs for ours, theirs in pairs if None not in (ours, theirs)])
                parts += [f"{name} {estimate(change)}, {len(change)} clips"] if len(change) else []
            if both:
                part = share(*np.array([(ours["LSE-C"], theirs["LSE-C"]) for ours, theirs in both]).T)
                print(f"    {system} − {base}: " + "; ".join(parts) + f"; share of its LSE-C {part}")


def takes(given: argparse.Namespace, material: Material, systems: dict[str, Heard]) -> Iterator[Take]:
    """Everything to judge; the same clip has the same portrait and seed in every system."""
    paths = sorted(path for path in (given.data / "portraits").iterdir() if path.suffix in (".jpg", ".png"))
    codecs = [MotionCodec(Portrait.from_image(read_image(path), 256, path.name)) for path in paths]

    def performances(language: str, stem: str, index: int, wave: np.ndarray, lead: np.ndarray) -> Iterator[Take]:
        for name, system in systems.items():
            made = partial(performance, system, wave, index, lead if given.lead else lead[:0])
            yield Take(name, language, stem, codecs[index % len(codecs)], made, wave)

    for source, (language, _) in LANGUAGES.items():
        of, count = material.of(source), given.clips if source == "anchors" else given.clips // 2
        chosen = [of[i] for i in np.linspace(0, len(of) - 1, count).astype(int)]
        for index, clip in enumerate(chosen):
            wave, stem, codec = material.audio[clip.name], Path(clip.name).stem, codecs[index % len(codecs)]
            known = {
                "real motion": clip.motion,
                "loudness jaw": loudness_driven_jaw(clip.motion, wave),
                "another sentence": motion_of_other_sentence(clip.motion, chosen[index - 1].motion),
            }
            for name, motion in known.items():
                yield Take(name, language, stem, codec, partial(torch.clone, motion), wave)
            yield from performances(language, stem, index, wave, material.audio[chosen[index - 1].name])
    voices = list(unseen_voices(given.data / "speech", given.pieces))
    before: tuple[np.ndarray, Motion] | None = None
    for index, (language, stem, wave) in enumerate(voices):
        if not language.startswith(given.language or ""):
            continue
        codec, lead = codecs[index % len(codecs)], voices[index - 1][2]
        drawn = list(performances(language, stem, index, wave, lead))
        first = cache(drawn[0].motion)
        jaw = partial(lambda own, sound: loudness_driven_jaw(own(), sound), first, wave)
        yield Take("loudness jaw", language, stem, codec, jaw, wave)
        if before is not None and not np.array_equal(wave, before[0]):
            stranger = partial(lambda own, other: motion_of_other_sentence(own(), other()), first, before[1])
            yield Take("another sentence", language, stem, codec, stranger, wave)
        yield from drawn
        before = wave, first


def unseen_voices(folder: Path, pieces: int) -> Iterator[tuple[str, str, np.ndarray]]:
    """Language, name and sound of speech that there is no video of."""
    piece = 3 * SAMPLE_RATE
    for index, path in ((index, path) for index in range(pieces) for path in sorted(folder.glob("*.wav"))):
        chinese, wave = "chinese" in path.name, normalize_loudness(read_audio(path))
        first = 0 if chinese else index * piece
        if first + piece <= len(wave):
            language = "Chinese, sound only" if chinese else "English, other voices, sound only"
            yield language, f"{path.stem}_{index}", wave[first : first + piece]
    for index, sentence in enumerate(MANDARIN):
        sound = np.concatenate(list(synthesize_samples([sentence], load_voice("espeak:cmn"))))
        yield "Chinese, synthetic voice", f"mandarin_{index}", normalize_loudness(sound)


def performance(system: Heard, wave: np.ndarray, seed: int, lead: np.ndarray) -> torch.Tensor:
    """Motion of a system, without that of what it heard first."""
    animator = Animator(system.model, enhancer=system.enhancer)
    before = len(lead) // SAMPLES_PER_FRAME
    sound = system.sound(np.concatenate([lead[: before * SAMPLES_PER_FRAME], wave]))
    return torch.cat(list(animator.motion(sound, seed=seed)))[before:]


def glance(video: Path) -> VideoTracks:
    """What sync and silent lips are measured on; the rest of a ``VideoTracks`` stays empty."""
    frames, heard = list(iter_frames(video)), read_audio(video)
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    patches = [
        mouth_patch(frame, points) if valid else np.zeros(MOUTH_PATCH, np.uint8)
        for frame, points, valid in zip(frames, faces.landmarks, faces.valid, strict=True)
    ]
    none, sound = np.zeros(0), np.zeros(len(frames) * SAMPLES_PER_FRAME, np.float32)
    sound[: len(heard)] = heard[: len(sound)]
    return VideoTracks(
        landmarks=faces.landmarks, blendshapes=faces.blendshapes, valid=faces.valid, mouth=np.array(patches),
        audio=sound, points=none, flow=none, crops=none, crop_at=none, skin=none, still=none, border=none,
        source_fps=none, size=np.array(frames[0].shape[:2]),
    )  # fmt: skip


if __name__ == "__main__":
    main()

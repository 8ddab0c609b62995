"""Generators in finished videos: sync, ten minutes of talking, two people in turn, and noisy sound."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from benchmarks.drawing import SIZE, codecs, draw_and_measure, generate_motion, track_mouth
from benchmarks.material import (
    choice_clips,
    dev_records,
    load_clip,
    mean_of_known,
    speech_paths,
    spread_evenly,
    use_one_thread,
)
from benchmarks.paired import metric_value
from benchmarks.picture import lip_opening
from benchmarks.record import Record
from benchmarks.sentences import (
    LANGUAGES,
    Sentences,
    System,
    SystemOptions,
    babble,
    gate_noise,
    load_systems,
    recorded_voices,
    room,
)
from flowportrait.commands.options import Flag, OptionalPath, OptionalText
from flowportrait.corruption.motion import loudness_driven_jaw, motion_of_other_sentence
from flowportrait.data.motion_dataset import load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import measure_sync
from flowportrait.evaluation.metrics import MetricRow
from flowportrait.evaluation.motion_metrics import count_blinks, measure_silent_lip
from flowportrait.evaluation.statistics import bootstrap_mean, bootstrap_ratio
from flowportrait.files import write_json
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME, read_audio
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS, iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.sampler import GenerationSession, sample_motion
from flowportrait.models.speech_stream import speech_gate
from flowportrait.models.training_clips import liveliness, measure_drift
from flowportrait.pipelines.animator import Animator
from flowportrait.pipelines.conversation import draw_side_by_side, find_speaker_portraits, generate_conversation_motion
from flowportrait.pipelines.turns import build_speaker_tracks
from flowportrait.rendering.motion_basis import BLINK, MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.speech.text_to_speech import synthesize_samples
from flowportrait.speech.voices import load_voice

# --- Finished videos --------------------------------------------------------------------

MANDARIN = (
    "今天天气很好，我们去公园散步吧。", "请问火车站怎么走？", "这本书我已经看了三遍了。", "他每天早上六点起床跑步。",
    "妈妈做的菜比饭店的好吃。", "明天下午三点我们开会讨论计划。", "你能帮我把窗户打开吗？", "北京的冬天又冷又干燥。",
    "孩子们在操场上高兴地踢足球。", "学习一门新语言需要很多时间。",
)  # fmt: skip
"""Everyday sentences for a synthetic voice."""
REAL, METRICS = "real motion", ("LSE-C", "at zero offset", "LER", "lips in silence")
Rows = dict[str, dict[str, float | None]]
"""Figures of the videos of one system, by language and clip."""


@dataclass(frozen=True, kw_only=True)
class VideosOptions(SystemOptions):
    """Measure generators as the evaluation sees finished videos of 256 px.

    Ceiling: real motion redrawn. Must lose: a jaw driven by loudness, and the motion of another sentence. Voices that
    no video exists of, English and Chinese, have no real motion: there, jaw and other sentence are made from what the
    first system generates. What was measured stays in the output folder, so that systems can be measured one call at a
    time; other settings need a folder of their own.
    """

    data: Path
    """Footage with portraits/ and speech/."""
    output: Path
    """Folder of videos and their figures."""
    clips: int = 24
    """Arabic sentences; of the longer English ones half as many."""
    pieces: int = 4
    """Pieces of each recording that no video exists of."""
    only: tuple[str, ...] = ()
    """Draw only these systems."""
    against: tuple[str, ...] = ()
    """Systems that the others are compared with, video by video."""
    language: OptionalText = None
    """Draw only this language, by the beginning of its name."""


@dataclass(frozen=True)
class Video:
    """One video to measure; ``audio`` is its clean sound."""

    system: str
    language: str
    name: str
    codec: MotionCodec
    motion: Callable[[], torch.Tensor]
    audio: np.ndarray


def videos(options: VideosOptions, record: Record) -> None:
    """Draw and measure what is missing in the output folder, then add up all of it."""
    use_one_thread()
    for video in videos_to_measure(options):
        path = options.output / video.language / video.system / f"{video.name}.json"
        if not path.is_file() and (video.system in options.only or not options.only):
            measure_sync_of(video, path)
    everywhere: dict[str, Rows] = {}
    for language in sorted(folder for folder in options.output.iterdir() if folder.is_dir()):
        found = {folder.name: read_rows(folder) for folder in sorted(language.iterdir())}
        for system, rows in found.items():
            for metric in METRICS:
                if value := mean_of_known([row[metric] for row in rows.values()]):
                    record.add(system, metric, value, group=language.name)
            add_share(record, "share of real LSE-C", language.name, system, rows, found.get(REAL, {}))
            everywhere.setdefault(system, {}).update(rows)
        add_gains(record, language.name, found, options.against)
    add_gains(record, "all languages", everywhere, options.against)


def measure_sync_of(video: Video, path: Path) -> None:
    """Draw one video and write its figures to ``path``; nothing where too little is spoken to measure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path.with_suffix(".mp4"), video.codec.decode(video.motion()), video.audio)
    tracks = track_mouth(path.with_suffix(".mp4"))
    sync = measure_sync(tracks)
    if sync is not None:
        silence = measure_silent_lip(tracks.landmarks, tracks.valid, tracks.audio)[0]
        values = (sync.lse_c, sync.lse_c_at_zero, sync.errors / max(1, sync.ler_windows), silence)
        write_json(path, dict(zip(METRICS, values, strict=True)))


def read_rows(folder: Path) -> Rows:
    """Return the figures of one system's videos of one language."""
    return {f"{folder.parent.name}/{path.stem}": json.loads(path.read_text()) for path in folder.glob("*.json")}


def add_share(record: Record, metric: str, group: str, system: str, rows: Rows, base: Rows) -> None:
    """Add the LSE-C as a share of that of another system, over the videos that both have."""
    pairs = np.array([(rows[name]["LSE-C"], base[name]["LSE-C"]) for name in rows if name in base], float)
    if len(pairs):
        record.add(system, metric, bootstrap_ratio(*pairs.T), group=group)


def add_gains(record: Record, language: str, found: dict[str, Rows], against: tuple[str, ...]) -> None:
    """Add how much more the same videos are worth in one system than in another."""
    for base in (name for name in against if name in found):
        for system, rows in ((name, rows) for name, rows in found.items() if name != base):
            group = f"{language}: change from {base}"
            pairs = [(row, found[base][name]) for name, row in rows.items() if name in found[base]]
            for metric in ("LSE-C", "at zero offset", "lips in silence"):
                values = [(own[metric], other[metric]) for own, other in pairs]
                change = [own - other for own, other in values if own is not None and other is not None]
                if value := mean_of_known(change):
                    record.add(system, metric, value, group=group)
            add_share(record, "share of its LSE-C", group, system, rows, found[base])


def videos_to_measure(options: VideosOptions) -> Iterator[Video]:
    """Yield everything to measure; the same sentence has the same portrait and seed in every system."""
    sentences = Sentences.load(options.corpus)
    systems = load_systems(options, sentences)
    people = codecs(options.data)

    def generated(language: str, name: str, index: int, wave: np.ndarray, lead: np.ndarray) -> Iterator[Video]:
        for system_name, system in systems.items():
            motion = partial(generate, system, wave, index, lead if options.lead else lead[:0])
            yield Video(system_name, language, name, people[index % len(people)], motion, wave)

    for source, (language, _) in LANGUAGES.items():
        clips, count = sentences.of(source), options.clips if source == "anchors" else options.clips // 2
        if not clips or not language.startswith(options.language or ""):
            continue
        # At least two, as another sentence is one of the controls.
        chosen = spread_evenly(clips, max(2, count))
        for index, clip in enumerate(chosen):
            wave, before = sentences.audio[clip.name], chosen[index - 1]
            tracks = {
                REAL: clip.motion,
                "loudness jaw": loudness_driven_jaw(clip.motion, wave),
                "another sentence": motion_of_other_sentence(clip.motion, before.motion),
            }
            codec = people[index % len(people)]
            for system, track in tracks.items():
                yield Video(system, language, Path(clip.name).name, codec, partial(torch.clone, track), wave)
            yield from generated(language, Path(clip.name).name, index, wave, sentences.audio[before.name])
    voices = list(voices_without_video(options))
    previous: tuple[np.ndarray, Callable[[], torch.Tensor]] | None = None
    for index, (language, name, wave) in enumerate(voices):
        if not language.startswith(options.language or ""):
            continue
        first, *others = generated(language, name, index, wave, voices[index - 1][2])
        own = cache(first.motion)
        yield replace(first, system="loudness jaw", motion=partial(corrupt, loudness_driven_jaw, own, wave))
        if previous is not None and not np.array_equal(wave, previous[0]):
            other = partial(corrupt, motion_of_other_sentence, own, previous[1])
            yield replace(first, system="another sentence", motion=other)
        yield replace(first, motion=own)
        yield from others
        previous = wave, own


def voices_without_video(options: VideosOptions) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield language, name and sound of recordings, then of a synthetic Chinese voice."""
    yield from recorded_voices(options.data, options.pieces)
    for index, sentence in enumerate(MANDARIN if options.pieces else ()):
        sound = np.concatenate(list(synthesize_samples([sentence], load_voice("espeak:cmn"))))
        yield "Chinese, synthetic voice", f"mandarin_{index}", normalize_loudness(sound)


def corrupt(damage: Callable[..., torch.Tensor], motion: Callable[[], torch.Tensor], by: object) -> torch.Tensor:
    """Return generated motion with damage by a sound, or by other motion that is generated as well."""
    return damage(motion(), by() if callable(by) else by)


def generate(system: System, wave: np.ndarray, seed: int, lead: np.ndarray) -> torch.Tensor:
    """Return the motion of a system, without that of the sound it heard first."""
    animator = Animator(system.model, enhancer=system.enhancer)
    before = len(lead) // SAMPLES_PER_FRAME
    sound = system.damage(np.concatenate([lead[: before * SAMPLES_PER_FRAME], wave]))
    return generate_motion(animator, sound, seed)[before:]


# --- Ten minutes ------------------------------------------------------------------------

MINUTE = 60 * FPS
DRAWN = 128
"""Side in pixels of what is drawn for its colour."""
PAUSE = np.zeros(SAMPLE_RATE // 5, np.float32)


@dataclass(frozen=True)
class LongRunOptions:
    """Measure ten minutes of talking, minute by minute: drift of head and face, sync, blinks, colour, memory.

    Half of the streams talk English (recordings), half Arabic (clips of dev speakers), each in an order and with a seed
    of its own. The last row is the change from the second minute to the last. A horizon of 0 never restarts the
    backbone, which should lose. With a portrait a frame a second is drawn: distance of its mean colour from the first
    minute's, in levels of 255, and its mean gradient. Live: the memory of one stream instead.
    """

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage with speech/."""
    checkpoints: tuple[str, ...] = ("sft", "rl")
    """Generators."""
    horizons: tuple[int, ...] = (18,)
    """Chunks after which the backbone starts anew; 0: never."""
    minutes: int = 10
    """Minutes of talking."""
    streams: int = 6
    """Streams."""
    intensity: float = 1.0
    """Intensity of the motion."""
    portrait: OptionalPath = None
    """Photo that is drawn."""
    live: Flag = False
    """Measure the memory of one live stream instead."""


def long_run(options: LongRunOptions, record: Record) -> None:
    """Measure every checkpoint with every horizon."""
    use_one_thread()
    if options.live:
        add_memory(record, load_generator(options.checkpoints[0]), long_speech(options, 0))
        return
    photo, codec = options.portrait, None
    if photo:
        codec = MotionCodec(Portrait.from_image(read_image(photo), DRAWN, photo.name))
    sounds = np.stack([long_speech(options, number) for number in range(options.streams)])
    real = [clip.motion for clip in load_motion_clips(options.corpus, ("dev",)) if len(clip.motion) >= FPS]
    lively = torch.cat([liveliness(motion[None])[0] for motion in real])
    usual = float(lively.median())
    record.add("real clips", "still", float(lively.lt(0.2 * usual).float().mean()), group="unseen speakers")
    for name in options.checkpoints:
        for horizon in options.horizons:
            model = load_generator(name)
            model.config = replace(model.config, horizon=horizon or options.minutes * MINUTE)
            group = f"{Path(name).name}, {f'restarted every {horizon} chunks' if horizon else 'never restarted'}"
            motion = sample_motion(model, sounds, list(range(len(sounds))), intensity=options.intensity)
            for metric, values in measure_minutes(motion, sounds, usual, codec).items():
                for minute, column in enumerate(values.T, 1):
                    record.add(f"minute {minute}", metric, float(column.mean()), n=len(column), group=group)
                change = values[:, -1] - values[:, min(1, values.shape[1] - 1)]
                record.add("last − second", metric, bootstrap_mean(change), group=group)


def long_speech(options: LongRunOptions, number: int) -> np.ndarray:
    """Return minutes of one language in an order of its own.

    Raises:
        BadInput: there is no speech of that language.
    """
    if number % 2:
        names = [record["name"] for record in dev_records(options.corpus) if record["name"].startswith("anchors")]
        pieces = [load_clip(options.corpus, name).audio for name in names]
    else:
        pieces = [read_audio(path) for path in speech_paths(options.data) if "chinese" not in path.name]
    if not pieces:
        language = "Arabic clips of dev speakers" if number % 2 else "English recordings"
        raise BadInput(f"Long speech needs {language}: give a corpus and footage that have some.")
    wanted, parts, length = options.minutes * 60 * SAMPLE_RATE, list[np.ndarray](), 0
    for index in cycle(np.random.default_rng(number).permutation(len(pieces))):
        parts += [normalize_loudness(pieces[index]), PAUSE]
        length += len(parts[-2]) + len(PAUSE)
        if length >= wanted:
            break
    return np.concatenate(parts)[:wanted]


def measure_minutes(
    motion: torch.Tensor, sounds: np.ndarray, usual: float, codec: MotionCodec | None
) -> dict[str, np.ndarray]:
    """Return figures ``[B, minutes]`` of streams ``[B, T, 30]``; ``measure_drift`` describes most of them."""
    figures = measure_drift(motion, MINUTE, usual)
    expert, basis = MotionSyncExpert.load(), MotionBasis.load()
    heard = torch.stack([log_mel(sound) for sound in sounds])
    minutes = zip(motion.split(MINUTE, 1), heard.split(4 * MINUTE, 1), strict=True)
    figures["sync"] = torch.stack([expert.score(part, mel)[1] for part, mel in minutes], 1)
    figures["blinks a minute"] = torch.tensor([
        [60 * FPS / MINUTE * count_blinks(basis.shape(part, basis.canonical).numpy()) for part in own.split(MINUTE)]
        for own in motion
    ])  # fmt: skip
    if codec is not None:
        colour, sharpness = [], []
        for own in motion:
            frames = np.stack(list(codec.decode(own[FPS - 1 :: FPS]))).astype(np.float32)
            means = frames.mean((1, 2)).reshape(-1, 60, 3).mean(1)
            colour.append(np.abs(means - means[0]).max(-1))
            gradients = [np.abs(np.diff(frames, axis=axis)).mean((1, 2, 3)) for axis in (2, 1)]
            sharpness.append(np.sum(gradients, 0).reshape(-1, 60).mean(1))
        figures |= {"colour": torch.tensor(np.array(colour)), "sharpness": torch.tensor(np.array(sharpness))}
    return {metric: values.numpy() for metric, values in figures.items()}


def add_memory(record: Record, model: ARFlow, sound: np.ndarray) -> None:
    """Add the resident memory of one live stream at the end of each minute."""
    session = GenerationSession(model.requires_grad_(False))
    for second in range(len(sound) // SAMPLE_RATE):
        for _ in session.push(sound[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE]):
            pass
        if second % 60 == 59:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            record.add(f"minute {second // 60 + 1}", "resident memory", megabytes, unit="MB", group="live stream")


# --- Two people -------------------------------------------------------------------------

DIALOGUE = (
    "Did you sleep well? I heard the storm all night, and the window would not close.",
    "Not at all. I was up at five, made coffee, and watched the rain come over the hills.",
    "We should repair that window before winter. My brother has the tools, if you call him.",
    "I will call him today. And perhaps we can ask him to look at the roof as well.",
    "Good idea. Every big storm brings more water through the kitchen ceiling.",
    "Then let us begin with the roof. Bread and soup for everybody who helps!",
)


@dataclass(frozen=True)
class ConversationOptions:
    """Measure whether the listener's lips stay closed: two people in turn, drawn, and tracked in the finished file.

    Opening: gap of the inner lips over the distance of the outer eye corners. Must lose: both portraits driven by the
    sound of both. Needs the voices: ``pip install 'flowportrait[voice]'``.
    """

    photos: tuple[Path, Path]
    """The two portraits."""
    output: Path
    """Folder of the videos."""
    seconds: float = 60.0
    """Length of the conversation."""
    size: int = SIZE
    """Side of each portrait in pixels."""


def conversation(options: ConversationOptions, record: Record) -> None:
    """Measure each person with a track of their own, and with the sound of both."""
    use_one_thread()
    options.output.mkdir(parents=True, exist_ok=True)
    images, names = [read_image(photo) for photo in options.photos], list(map(str, options.photos))
    people = [MotionCodec(portrait) for portrait in find_speaker_portraits(images, names, options.size)]
    voices, turns = [load_voice("heart"), load_voice("espeak:en+m3")], list[tuple[int, np.ndarray]]()
    for index, text in enumerate(cycle(DIALOGUE)):
        turns.append((index % 2, np.concatenate(list(synthesize_samples([text], voices[index % 2])))))
        if sum(len(sound) for _, sound in turns) > options.seconds * SAMPLE_RATE:
            break
    heard = build_speaker_tracks(turns, in_turn=True)
    gates = np.stack([speech_gate(track) for track in heard])
    speaking, listening = gates == 1, (gates == 0) & (gates[::-1] == 1)
    animator = Animator.from_pretrained("rl")

    generate_from = partial(generate_motion, animator)
    systems = {
        "own track": generate_conversation_motion(generate_from, heard),
        "both hear both": [generate_from(heard.sum(0), seed) for seed in (0, 1)],
    }
    record.note(f"{len(systems['own track'][0]) / FPS:.0f} s, {len(turns)} turns.")
    for name, motions in systems.items():
        path = options.output / f"{name.replace(' ', '_')}.mp4"
        write_video(path, draw_side_by_side(people, motions), heard.sum(0))
        frames = list(iter_frames(path))
        for who, half in enumerate((slice(None, options.size), slice(options.size, None))):
            with FaceTracker() as tracker:
                lips = lip_opening(tracker.track([frame[:, half] for frame in frames]).landmarks)
            talking, quiet = np.quantile(lips[speaking[who]], 0.95), lips[listening[who]]
            figures = {"speaking, 95 %": talking, "listening, 95 %": np.quantile(quiet, 0.95), "most": quiet.max()}
            for metric, value in figures.items():
                record.add(name, metric, value, group=f"person {who + 1}")
            record.add(name, "over a third of speaking", 100 * (quiet > talking / 3).mean(), unit="% of frames",
                       group=f"person {who + 1}")  # fmt: skip
            lids = motions[who][:, BLINK.start].numpy() > 2
            blinks = (lids[1:] & ~lids[:-1])[listening[who][1:]].sum() * 60 * FPS / listening[who].sum()
            record.add(name, "blinks a minute, listening", blinks, group=f"person {who + 1}")


# --- Noisy sound ------------------------------------------------------------------------

_NOISY_METRICS = {"sync_in_time_short": "LSE-C", "ler": "LER", "ecs": "ECS"}


@dataclass(frozen=True)
class NoisyOptions:
    """Measure sync of videos that are generated from noisy sound and judged with the clean one.

    Babble of four other people as loud as the speech, or a room whose echo is as loud as the direct sound; as it is and
    after spectral gating (``pip install noisereduce``). Ceiling: clean sound.
    """

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage with portraits/."""
    output: Path
    """Folder of the videos; those that are there already are measured as they are."""
    checkpoints: tuple[str, ...] = ("sft", "rl")
    """Generators."""
    clips: int = 12
    """Sentences of dev speakers, none of the headline clips."""


def noisy(options: NoisyOptions, record: Record) -> None:
    """Measure every checkpoint on every sound."""
    use_one_thread()
    people, clips = codecs(options.data), choice_clips(options.corpus, options.clips)
    for name in options.checkpoints:
        animator, found = Animator.from_pretrained(name), dict[str, list[MetricRow]]()
        for index, (stem, clip) in enumerate(clips.items()):
            others = [other.audio for key, other in clips.items() if key != stem]
            if not others:
                raise BadInput("Babble needs at least two clips: set --clips to 2 or more.")
            sounds = {"clean": clip.audio, "babble": babble(clip.audio, others, 0), "room": room(clip.audio, 0)}
            sounds |= {f"{kind}, gated": gate_noise(sounds[kind]) for kind in ("babble", "room")}
            for kind, heard in sounds.items():
                path = options.output / Path(name).name / kind.replace(", ", "_") / f"{stem}.mp4"
                motion, codec = partial(generate_motion, animator, heard, index), people[index % len(people)]
                found.setdefault(kind, []).append(draw_and_measure(path, codec, motion, clip.audio))
        for kind, rows in found.items():
            for key, metric in _NOISY_METRICS.items():
                record.add(kind, metric, mean_of_known([metric_value(row, key) for row in rows]), group=Path(name).name)

"""Generators in motion: on unseen speakers, in noise, eyes and head, intensity, and where chunks meet."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch

from benchmarks.drawing import codecs, draw_and_measure, generate_motion, real_motion
from benchmarks.material import choice_clips, load_clip, mean_of_known, use_one_thread
from benchmarks.paired import metric_value
from benchmarks.record import Record
from benchmarks.sentences import Sentences, System, SystemOptions, babble, gate_noise, load_systems, recorded_voices
from benchmarks.timing import stopwatch
from flowportrait.data.motion_dataset import MotionClip, load_motion_clips
from flowportrait.errors import BadInput
from flowportrait.evaluation.motion_metrics import count_blinks, eye_aperture, gaze_std, head_range
from flowportrait.evaluation.statistics import bootstrap_mean, bootstrap_ratio
from flowportrait.media.audio import SAMPLE_RATE, SAMPLES_PER_FRAME
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.video import FPS
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.enhancer import Enhancer, denoise_mel, load_enhancer
from flowportrait.models.sampler import sample_motion
from flowportrait.models.speech_encoder import STYLE_LIPS
from flowportrait.models.training_clips import lip_opening_per_number
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import BLINK, BROWS, HEAD, LOWER_FACE, MotionBasis
from flowportrait.rewards.sync import MotionSyncExpert

# --- Unseen speakers --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MotionOptions(SystemOptions):
    """Measure generators on unseen speakers in motion, by language.

    Correlation of the lip gap and of the lower face with the real motion of the sentence, amplitude over the real one,
    sync by the expert of the rewards, and the cost. Whatever is heard, it is compared with the clean sound. Ceiling:
    real motion. With seeds: how much samples of one sentence differ.
    """

    seeds: int = 0
    """Samples of each sentence that are compared with each other."""


def motion(options: MotionOptions, record: Record) -> None:
    """Measure every system on every language."""
    use_one_thread()
    sentences, expert, clean = Sentences.load(options.corpus), MotionSyncExpert.load(), dict[object, np.ndarray]()
    for language, frames, clips, sounds in sentences.by_language():
        real = torch.stack([clip.motion[:frames] for clip in clips])
        sync = expert.score(real, torch.stack([log_mel(wave) for wave in sounds]))[1].numpy()
        record.add("real motion", "sync", bootstrap_mean(sync), group=language)
    for name, system in load_systems(options, sentences).items():
        for language, frames, clips, sounds in sentences.by_language():
            figures, cost = measure_motion(system, clips, sounds, frames, options.lead)
            for metric, values in figures.items():
                record.add(name, metric, bootstrap_mean(values), group=language)
            first = clean.setdefault((system.model, language), figures["sync"])
            record.add(name, "cost", cost, unit="ms a frame", group=language)
            if first is not figures["sync"]:
                record.add(name, "share of sync", bootstrap_ratio(figures["sync"], first), group=language)
            elif options.seeds > 1:
                for metric, values in measure_diversity(system.model, sounds[:24], options.seeds).items():
                    record.add(name, metric, bootstrap_mean(values), group=f"{language}, {options.seeds} samples each")


def measure_motion(
    system: System, clips: list[MotionClip], clean: np.ndarray, frames: int, lead: bool
) -> tuple[dict[str, np.ndarray], float]:
    """Return figures by clip, and milliseconds of processor for a frame."""
    sounds = np.concatenate([np.roll(clean, 1, 0), clean], 1) if lead else clean
    damaged_sounds = np.stack([system.damage(wave) for wave in sounds])
    mel, real = torch.stack([log_mel(wave) for wave in clean]), torch.stack([clip.motion[:frames] for clip in clips])
    with stopwatch() as spent:
        samples = sample_motion(system.model, damaged_sounds, list(range(len(clips))), enhancer=system.enhancer)
    cost = 1e3 * spent.processor / samples[..., 0].numel()
    samples = samples[:, -frames:]
    gaps = [track @ lip_opening_per_number() for track in (samples, real)]
    spreads = [track[..., LOWER_FACE].std(1).mean(-1) for track in (samples, real)]
    figures = {
        "lip gap": correlation(*gaps).numpy(),
        "lower face": correlation(samples[..., :8].mT, real[..., :8].mT).mean(-1).numpy(),
        "amplitude": (spreads[0] / spreads[1].mean()).numpy(),
        "sync": MotionSyncExpert.load().score(samples, mel)[1].numpy(),
    }
    if system.enhancer:
        waves = [normalize_loudness(wave) for wave in damaged_sounds]
        mels = [log_mel(wave) for wave in waves]
        same = [torch.equal(denoise_mel(system.enhancer, m, w)[0], m) for m, w in zip(mels, waves, strict=True)]
        figures["sound left as it was"] = np.array(same, float)
    return figures, cost


def measure_diversity(model: ARFlow, sounds: np.ndarray, seeds: int) -> dict[str, np.ndarray]:
    """Return how much samples of the same sentence differ, by sentence."""
    rows = range(len(sounds))
    samples = torch.stack([sample_motion(model, sounds, [1000 * seed + row for row in rows]) for seed in range(seeds)])
    head, lips, pairs = samples[..., HEAD], samples @ lip_opening_per_number(), list(combinations(range(seeds), 2))
    distances = [(head[a] - head[b]).square().mean((-1, -2)).sqrt() for a, b in pairs]
    return {
        "distance of heads": torch.stack(distances).mean(0).numpy(),
        "size of head motion": head.square().mean((2, 3)).sqrt().mean(0).numpy(),
        "lip gap, two samples": torch.stack([correlation(lips[a], lips[b]) for a, b in pairs]).mean(0).numpy(),
        "lip gap, two sentences": torch.stack([correlation(own, own.roll(1, 0)) for own in lips]).mean(0).numpy(),
    }


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation over the last axis."""
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(1e-6)


# --- Eyes and head ----------------------------------------------------------------------

SILENCES, SILENT_SECONDS = 8, 48


@dataclass(frozen=True)
class EyesAndHeadOptions:
    """Measure whether eyes and head move as real ones do, in speech and in silence.

    Blinks a minute, frames that a blink lasts, spread of gaze (% of the eye's width), range of the head (5 to 95 %,
    degrees), its median speed (degrees a second), share of its motion over 1 Hz. Ceiling: clips of dev speakers, and
    long recordings that were trained on.
    """

    corpus: Path
    """Prepared corpus."""
    checkpoints: tuple[str, ...] = ("sft", "rl")
    """Generators."""
    steps: tuple[int, ...] = (0,)
    """Numbers of denoising steps; 0: the checkpoint's own."""


def eyes_and_head(options: EyesAndHeadOptions, record: Record) -> None:
    """Measure real motion, then generated motion on the same sentences and in silence."""
    use_one_thread()
    sentences = Sentences.load(options.corpus)

    def add(system: str, group: str, tracks: list[torch.Tensor]) -> None:
        rows = [eye_and_head_figures(track) for track in tracks]
        for metric in rows[0] if rows else ():
            record.add(system, metric, mean_of_known([row[metric] for row in rows]), group=group)

    trained = load_motion_clips(options.corpus, ("reward", "evaluation"))
    long = [part for clip in trained if len(clip.motion) > 400 for part in clip.motion.split(10 * FPS)]
    add("real", "long recordings", [part for part in long if len(part) == 10 * FPS])
    for language, frames, clips, _ in sentences.by_language():
        add("real", language, [clip.motion[:frames] for clip in clips])
    silence = np.zeros((SILENCES, SILENT_SECONDS * SAMPLE_RATE), np.float32)
    for checkpoint, steps in product(options.checkpoints, options.steps):
        model = load_generator(checkpoint).requires_grad_(False)
        model.config = replace(model.config, steps=steps or model.config.steps)
        name = f"{checkpoint} {steps} steps" if steps else checkpoint
        for language, _, _, sounds in sentences.by_language():
            add(name, language, list(sample_motion(model, sounds, list(range(len(sounds))))))
        add(name, "silence", list(sample_motion(model, silence, list(range(SILENCES)))))


def eye_and_head_figures(track: torch.Tensor) -> dict[str, float]:
    """Return the figures of one clip ``[T, 30]``; NaN where there is nothing to measure."""
    basis = MotionBasis.load()
    shape = basis.shape(track, basis.canonical).numpy()
    turn = np.degrees((track[:, HEAD] * basis.head_std)[:, :3].numpy())
    count, aperture = count_blinks(shape), eye_aperture(shape)
    shut = (aperture < 0.5 * np.quantile(aperture, 0.9)).sum() / count if count else np.nan
    power = (np.abs(np.fft.rfft(turn - turn.mean(0), axis=0)) ** 2).sum(1)
    fast = power[np.fft.rfftfreq(len(turn), 1 / FPS) > 1].sum() / max(float(power.sum()), 1e-9)
    return {
        "blinks a minute": 60 * FPS * count / len(track), "frames of a blink": shut, "gaze": gaze_std(shape),
        "head range": head_range(turn), "head speed": FPS * np.median(np.linalg.norm(np.diff(turn, axis=0), axis=1)),
        "head over 1 Hz": fast,
    }  # fmt: skip


# --- Intensity --------------------------------------------------------------------------

INTENSITIES = (0.6, 0.8, 1.25, 1.6)


@dataclass(frozen=True)
class IntensityOptions:
    """Measure whether motion follows the intensity that is asked for, and whether its lips stay in sync.

    Spread of lips, brows and head over that at intensity 1, and sync. Beside it what should lose: the style's log
    amplitudes moved by as much, and the motion of intensity 1 multiplied.
    """

    corpus: Path
    """Prepared corpus."""
    checkpoint: str = "sft"
    """Generator."""
    clips: int = 24
    """Sentences of each language."""


def intensity(options: IntensityOptions, record: Record) -> None:
    """Measure three ways to ask for more or less."""
    use_one_thread()
    model, expert = load_generator(options.checkpoint).requires_grad_(False), MotionSyncExpert.load()
    for language, _, _, sounds in Sentences.load(options.corpus).by_language(options.clips):
        mel, seeds = torch.stack([log_mel(sound) for sound in sounds]), list(range(len(sounds)))
        neutral = sample_motion(model, sounds, seeds)
        systems = {"intensity 1": neutral}
        for factor in INTENSITIES:
            style = model.rest_style.clone()
            style[STYLE_LIPS:] += math.log(factor)
            systems[f"intensity {factor:g}"] = sample_motion(model, sounds, seeds, intensity=factor)
            systems[f"style {factor:g}"] = sample_motion(model, sounds, seeds, style=style)
            systems[f"multiplied {factor:g}"] = factor * neutral
        for name, tracks in systems.items():
            for part in ("lips", "brows", "head"):
                ratio = motion_spread(tracks, part) / motion_spread(neutral, part).mean()
                record.add(name, f"spread of {part}", bootstrap_mean(ratio.numpy()), group=language)
            record.add(name, "sync", bootstrap_mean(expert.score(tracks, mel)[1].numpy()), group=language)


def motion_spread(tracks: torch.Tensor, part: str) -> torch.Tensor:
    """Return the standard deviation over time ``[B]``."""
    if part == "lips":
        return (tracks @ lip_opening_per_number()).std(1)
    return tracks[..., BROWS if part == "brows" else HEAD].std(1).mean(-1)


# --- Where chunks meet ------------------------------------------------------------------

_VIDEO_METRICS = {"sync_in_time_short": "LSE-C", "tfi": "TFI", "mouth_amplitude": "mouth amplitude"}


@dataclass(frozen=True)
class ChunkBordersOptions:
    """Measure whether chunks show where they meet, before and after the filter of ``rendering/motion_filters.py``.

    Of motion: acceleration of lips and lids beside a border and inside a chunk, in standard deviations; real motion has
    no borders. Of finished video: figures of the evaluation, and their change from the first share.
    """

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage with portraits/."""
    output: Path
    """Folder of the videos; those that are there already are measured as they are."""
    checkpoints: tuple[str, ...] = ("sft", "rl")
    """Generators."""
    shares: tuple[float, ...] = (0.0, 0.15)
    """Strengths of the filter."""
    clips: int = 24
    """Sentences of dev speakers, none of the headline clips."""


def chunk_borders(options: ChunkBordersOptions, record: Record) -> None:
    """Measure real motion, then generators with each strength of the filter."""
    use_one_thread()
    clips, people = choice_clips(options.corpus, options.clips), codecs(options.data)

    def measure(system: str, tracks: Sequence[torch.Tensor]) -> dict[str, np.ndarray]:
        for part, numbers in (("lips", LOWER_FACE), ("lids", BLINK)):
            beside, inside = acceleration_at_borders([track[:, numbers] for track in tracks])
            record.add(system, f"{part} beside borders", beside)
            record.add(system, f"{part} inside chunks", inside)
        rows = []
        for index, ((name, clip), track) in enumerate(zip(clips.items(), tracks, strict=True)):
            path, codec = options.output / system / f"{name}.mp4", people[index % len(people)]
            rows.append(draw_and_measure(path, codec, track, clip.audio))
        figures = {
            title: np.array([metric_value(row, key) for row in rows], float) for key, title in _VIDEO_METRICS.items()
        }
        for title, values in figures.items():
            record.add(system, title, mean_of_known(values))
        return figures

    measure("real", list(map(real_motion, clips.values())))
    for name in options.checkpoints:
        first: dict[str, np.ndarray] = {}
        for share in options.shares:
            animator = Animator.from_pretrained(name)
            animator.generator.config = replace(animator.generator.config, ease=share)
            system = f"{Path(name).name}_{share:g}"
            tracks = [generate_motion(animator, clip.audio, index) for index, clip in enumerate(clips.values())]
            figures = measure(system, tracks)
            for title, values in first.items():
                record.add(system, f"change of {title}", mean_of_known(figures[title] - values))
            first = first or figures


def acceleration_at_borders(tracks: Sequence[torch.Tensor], chunk: int = 4) -> tuple[float, float]:
    """Return the mean absolute second difference at frames beside a border between chunks, and at the others."""
    beside, inside = [], []
    for track in tracks:
        bend = track.diff(n=2, dim=0).abs().mean(1)
        phase = torch.arange(1, len(track) - 1) % chunk
        at_border = (phase == 0) | (phase == chunk - 1)
        beside.append(bend[at_border])
        inside.append(bend[~at_border])
    return float(torch.cat(beside).mean()), float(torch.cat(inside).mean())


# --- Noise reduction --------------------------------------------------------------------

FRAMES = 72
"""Frames of a piece that are measured: whole chunks."""
LIPS = 16
"""Numbers of the lip regression, which come first among the features."""
MOST_PIECES = 20
"""Pieces of one recording."""


@dataclass(frozen=True)
class NoiseFrontEndsOptions:
    """Measure sync and speech features in babble, by method of noise reduction.

    Pieces of 3 s of English voices that nothing was trained on, each after another piece under the same babble. Sync as
    a share of that with clean sound, and the mean squared difference of the generator's features from the clean ones,
    in variances of these. Front ends: none (should lose), spectral gating (``pip install noisereduce``), the enhancer's
    GRU alone, the enhancer as it ships.
    """

    corpus: Path
    """Prepared corpus: its dev speakers are the babble."""
    data: Path
    """Footage with speech/."""
    checkpoint: str = "rl"
    """Generator."""
    levels: tuple[float, ...] = (10, 5)
    """Decibels of speech over babble."""
    pieces: int = 28
    """Pieces of speech."""


@torch.no_grad()
def noise_front_ends(options: NoiseFrontEndsOptions, record: Record) -> None:
    """Measure every front end at every level."""
    from tools.train_enhancer import generator_features

    use_one_thread()
    model, expert = load_generator(options.checkpoint).requires_grad_(False), MotionSyncExpert.load()
    names = [clip.name for clip in load_motion_clips(options.corpus, ("dev",))][::7]
    others = [normalize_loudness(load_clip(options.corpus, name).audio) for name in names]
    recorded = recorded_voices(options.data, MOST_PIECES)
    waves = [wave[: FRAMES * SAMPLES_PER_FRAME] for language, _, wave in recorded if "English" in language]
    if not waves:
        raise BadInput(f"No English recording of at least 3 s in {options.data / 'speech'}: give footage that has one.")
    voices = np.stack(waves)
    sounds = np.concatenate([np.roll(voices, 1, 0), voices], 1)[: options.pieces]
    clean_mel = torch.stack([log_mel(wave) for wave in voices[: options.pieces]])

    def sync(heard: np.ndarray, front: Enhancer | None) -> np.ndarray:
        samples = sample_motion(model, heard, list(range(len(heard))), enhancer=front)[:, -FRAMES:]
        return expert.score(samples, clean_mel)[1].numpy()

    def features(heard: np.ndarray, front: Enhancer | None) -> torch.Tensor:
        levelled = [normalize_loudness(wave) for wave in heard]
        mels = [log_mel(wave) for wave in levelled]
        if front is not None:
            mels = [denoise_mel(front, mel, wave)[0] for mel, wave in zip(mels, levelled, strict=True)]
        return torch.cat([generator_features(model, mel[None])[:, -FRAMES:] for mel in mels])

    gru = copy.deepcopy(load_enhancer())
    gru.isolator = None
    front_ends = {"none": None, "spectral gating": None, "GRU alone": gru, "enhancer as it ships": load_enhancer()}
    clean, clean_sync = features(sounds, None), sync(sounds, None)
    spread = clean.flatten(0, 1).std(0)
    for decibels in options.levels:
        noisy, group = np.stack([babble(sound, others, decibels) for sound in sounds]), f"{decibels:g} dB"
        for name, front in front_ends.items():
            heard = np.stack([gate_noise(wave) for wave in noisy]) if name == "spectral gating" else noisy
            change = ((features(heard, front) - clean) / spread).square()
            record.add(name, "sync left", bootstrap_ratio(sync(heard, front), clean_sync), group=group)
            for part, values in {"lips": change[..., :LIPS], "tokens": change[..., LIPS:]}.items():
                record.add(name, part, bootstrap_mean(values.mean((1, 2)).numpy()), group=group)

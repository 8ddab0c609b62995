"""Prompts as the policy hears them and rewards see them.

What a policy is to do and how its result is seen: prompts in, a batch for the rewards out.

    draw(iteration) ─► prompts ─► condition(policy) ─► (rollout) ─► batch(policy, latents) ─► rewards

A task knows its generator's inputs and outputs; the trainer knows neither. A prompt is a window of speech, spoken by
one of the portraits; no video is needed. With a ``Disturbance`` the policy hears noise and rooms, and the rewards hear
the clean track:

    clean ─┬─► a room, other people or noise ─► (denoiser) ─► policy ─► motion ─┐
           └───────────────────────────────────────────────► rewards ◄──────────┘

A recording is disturbed a few times before a run, and every prompt hears one of these variants or the clean one, all
siblings the same. Lips and timing of clean speech are what is rewarded, so a policy learns what of them can still be
heard.

Pictures drawn freely as something to post-train: ``models.patch_flow`` under rewards that look at frames.

The test bed of perceptual rewards: motion of a codec keeps a face whole whatever a policy does, patches of a frame do
not. Prompts are windows of footage: a first frame, and the sound after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from flowportrait.config import at_least
from flowportrait.errors import BadInput
from flowportrait.flow.noise import seed_of
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS, SAMPLES_PER_FRAME, frame_count, level, log_mel
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow, Condition
from flowportrait.models.enhancer import denoise_mel, load_enhancer
from flowportrait.models.patch_flow import Film, PatchCondition, PatchFlow, pictures
from flowportrait.models.training_clips import babble, coloured, loudness, reverberate
from flowportrait.rendering.motion_basis import BROWS, GAZE, HEAD, LOWER, MOTION_DIM
from flowportrait.rendering.motion_filters import deliver
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.vae_codec import VaeCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Draw
from flowportrait.rl.rollout import Trajectory


@dataclass(frozen=True)
class SpeechItem:
    """Speech as log-mel ``[4T, 80]`` (T as long as the recording), the index of a portrait, where it is known how it
    was really spoken, that motion ``[T, 30]``, for judges that listen the sound itself ``[640 T]``, and of disturbed
    speech what the policy may hear in its place, ``[4T, 80]`` each."""

    mel: torch.Tensor
    portrait: int
    motion: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    disturbed_mels: tuple[torch.Tensor, ...] = ()


class Prompts(NamedTuple):
    """One row per group: the speech ``[G, 4T, 80]``, whose face it is, where it is known how it was really spoken,
    ``[G, 1 + T, 30]`` with the frame before, the sound ``[G, 640 T]`` for judges that listen, and where the policy is
    to hear it disturbed, what it hears ``[G, 4T, 80]``."""

    mel: torch.Tensor
    portraits: list[int]
    motion: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    policy_mel: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> Prompts:
        """The rows at these indices."""
        known = (None if part is None else part[rows] for part in (self.motion, self.audio, self.policy_mel))
        return Prompts(self.mel[rows], [self.portraits[int(row)] for row in rows], *known)


def speech_mel(audio: np.ndarray, frames: int) -> torch.Tensor:
    """Levelled log-mel of a recording ``[N]``, repeated if it is shorter than ``frames``."""
    return repeat_mel(log_mel(level(audio)), frames)


def repeat_mel(mel: torch.Tensor, frames: int) -> torch.Tensor:
    """Log-mel ``[4T, 80]``, repeated if it is shorter than ``frames``."""
    times = -(-frames * MELS_PER_FRAME // len(mel))
    return mel.repeat(times, 1)


def speech_waveform(audio: np.ndarray, frames: int) -> torch.Tensor:
    """The recording ``[N]`` itself, as long as its ``speech_mel`` and repeated with it."""
    wave = torch.zeros(frame_count(audio) * SAMPLES_PER_FRAME)
    wave[: len(audio)] = torch.from_numpy(audio)
    return wave.repeat(-(-frames * SAMPLES_PER_FRAME // len(wave)))


def draw_prompts(items: Sequence[SpeechItem], count: int, frames: int, seed: int, iteration: int) -> Prompts:
    """``count`` windows of speech; a function of seed and iteration alone."""
    generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
    order = torch.randperm(len(items), generator=generator).tolist()
    chosen = [items[order[i % len(items)]] for i in range(count)]
    windows, motions, sounds, policy_mels = [], [], [], []
    for item in chosen:
        # A real clip's window begins one frame in: the frame before it is where the motion continues from.
        earliest = 0 if item.motion is None else 1
        last = len(item.mel) // MELS_PER_FRAME - frames - earliest
        first = earliest + int(torch.randint(last + 1, (), generator=generator))
        window = slice(first * MELS_PER_FRAME, (first + frames) * MELS_PER_FRAME)
        windows.append(item.mel[window])
        if item.disturbed_mels:
            choices = (item.mel, *item.disturbed_mels)
            policy_mels.append(choices[int(torch.randint(len(choices), (), generator=generator))][window])
        if item.motion is not None:
            motions.append(item.motion[first - 1 : first + frames])
        if item.audio is not None:
            sounds.append(item.audio[first * SAMPLES_PER_FRAME : (first + frames) * SAMPLES_PER_FRAME])
    real = torch.stack(motions) if len(motions) == count else None
    sound = torch.stack(sounds) if len(sounds) == count else None
    policy_mel = torch.stack(policy_mels) if len(policy_mels) == count else None
    return Prompts(torch.stack(windows), [item.portrait for item in chosen], real, sound, policy_mel)


DrawFor = Callable[[Sequence[int]], Draw]
"""Given the portrait of each row of a batch, how to render it small."""


class PromptSource(Protocol):
    """Prompts and what a policy is to know of them; ``Any`` where only task and generator know the type."""

    @property
    def regions(self) -> Mapping[str, torch.Tensor]:
        """Latent regions by name: ``[D]`` of 0 and 1."""
        ...

    def draw(self, groups: int, seed: int, iteration: int) -> Any:
        """The prompts of an iteration, one row per group, a function of its arguments alone; has ``select``."""
        ...

    def condition(self, policy: Any, prompts: Any) -> Any:
        """What the policy is to know, one row per group."""
        ...


class Task(PromptSource, Protocol):
    """Prompts whose rollouts can be scored."""

    def batch(self, policy: Any, trajectory: Trajectory, prompts: Any) -> RewardBatch:
        """Finished latents as rewards see them, under one row of prompts per sample."""
        ...

    def real(self, policy: Any, prompts: Any) -> torch.Tensor | None:
        """Latents ``[G, N, D]`` of the real clips of the same prompts, where there are such."""
        ...


class TalkingTask:
    """Windows of speech, each spoken by one of the portraits."""

    def __init__(
        self,
        items: Sequence[SpeechItem],
        frames: int,
        draw_for: DrawFor | None,
        chunk: int,
        looks: torch.Tensor | None = None,
    ) -> None:
        """looks ``[portraits, P, hidden]``: what a policy that sees saw of them."""
        self.items = items
        self.frames = frames
        self.draw_for = draw_for
        self.looks = looks
        self.regions = latent_regions(chunk)

    def draw(self, groups: int, seed: int, iteration: int) -> Prompts:
        return draw_prompts(self.items, groups, self.frames, seed, iteration)

    def condition(self, policy: ARFlow, prompts: Prompts) -> Condition:
        device = next(policy.parameters()).device
        start = None if prompts.motion is None else prompts.motion[:, 0].to(device)
        portrait = None if self.looks is None else self.looks[prompts.portraits].to(device)
        policy_mel = prompts.mel if prompts.policy_mel is None else prompts.policy_mel
        return policy.condition(policy_mel.to(device), start=start, portrait=portrait)

    def real(self, policy: ARFlow, prompts: Prompts) -> torch.Tensor | None:
        if prompts.motion is None:
            return None
        return encode_after(policy, prompts.motion.to(next(policy.parameters()).device))

    def batch(self, policy: ARFlow, trajectory: Trajectory, prompts: Prompts) -> RewardBatch:
        latents = trajectory.latents.to(next(policy.parameters()).device)
        motion = policy.to_motion(latents, trajectory.condition.start).cpu()
        return RewardBatch(
            deliver(motion, policy.config.chunk, policy.config.ease),
            prompts.mel,
            self.draw_for(prompts.portraits) if self.draw_for else None,
            audio=prompts.audio,
            group=trajectory.group,
            policy=policy,
            condition=trajectory.condition,
            latents=latents,
        )


def encode_after(policy: ARFlow, motion: torch.Tensor) -> torch.Tensor:
    """Latents ``[B, N, D]`` of real motion ``[B, 1 + T, 30]`` after its first frame."""
    chunks = motion[:, 1:].unflatten(1, (-1, policy.config.chunk))
    before = torch.cat([motion[:, :1], chunks[:, :-1, -1]], 1)
    return policy.space.encode(chunks, before)


def latent_regions(chunk: int) -> dict[str, torch.Tensor]:
    """Latent numbers ``[D]`` (0 or 1) of mouth, eyes with brows, and head."""
    spans = {"mouth": LOWER, "eyes": slice(BROWS.start, GAZE.stop), "head": HEAD}
    return {name: _numbers(span, chunk) for name, span in spans.items()}


def _numbers(span: slice, chunk: int) -> torch.Tensor:
    """A span of the 30 motion numbers in a chunk's latents, where each number has ``chunk`` modes."""
    mask = torch.zeros(30, chunk)
    mask[span] = 1
    return mask.flatten()


class Drawing:
    """A ``Draw`` that also knows its ``places`` and ``portraits``; ``which``: the codec of each row."""

    def __init__(self, codecs: Sequence[MotionCodec], which: Sequence[int], size: int) -> None:
        self.codecs = [codecs[index] for index in which]
        self.size = size

    @property
    def portraits(self) -> list[Portrait]:
        """Whose face each row is."""
        return [codec.portrait for codec in self.codecs]

    def __call__(self, motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Frames ``[B, F, 3, S, S]`` in [0, 1] of motion ``[B, T, 30]``."""
        clips = []
        for codec, row in zip(self.codecs, motion, strict=True):
            frames = [torch.from_numpy(frame.copy()) for frame in codec.decode(row[list(indices)])]
            clips.append(torch.stack(frames))
        return torch.stack(clips).permute(0, 1, 4, 2, 3).float() / 255

    def places(self, motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Landmarks ``[B, F, 478, 2]`` in the pixels of those frames."""
        rows = [
            torch.from_numpy(codec.landmarks(row[list(indices)])[..., :2] * (self.size / len(codec.portrait.crop)))
            for codec, row in zip(self.codecs, motion, strict=True)
        ]
        return torch.stack(rows).float()


FEW = 20
"""Recordings that are disturbed in a moment, without a word."""


@dataclass(frozen=True)
class Disturbance:
    variants: int = 4
    """Disturbed ones of every recording; a prompt hears one of these or the clean one, all as often."""
    room: float = 0.4
    """Share of the variants that stand in a room (RT60 0.15–0.7 s); the others are in noise, half of it people."""
    lowest: float = 0.0
    """Decibels of speech over noise."""
    highest: float = 15.0
    enhanced: bool = True
    """Whether the shipped denoiser stands in front, as it does in ``animate``."""

    def __post_init__(self) -> None:
        at_least(self, variants=1, room=0, lowest=-20, highest=-20)
        if self.room > 1 or self.highest < self.lowest:
            raise BadInput(
                f"disturbance.room={self.room} must be a share, and disturbance.highest={self.highest} no less than "
                f"disturbance.lowest={self.lowest}."
            )

    def disturb(self, speech: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Speech ``[N]`` disturbed once; ``others`` are recordings to make babble of."""
        if rng.random() < self.room:
            return reverberate(speech, rng).astype(np.float32)
        people = len(others) > 0 and rng.random() < 0.5
        noise = babble(others, len(speech), rng) if people else coloured(len(speech), rng)
        below = 10 ** (-rng.uniform(self.lowest, self.highest) / 20)
        return (speech + noise * (loudness(speech) / max(loudness(noise), 1e-9)) * below).astype(np.float32)

    def disturbed_mels(
        self, waves: Mapping[Path, np.ndarray], frames: int, seed: int
    ) -> Iterator[tuple[Path, tuple[torch.Tensor, ...]]]:
        """Every recording ``[N]`` with what a policy hears of it: of each variant what ``speech_mel`` is of the clean
        one, a function of ``seed``."""
        bar = track(list(waves.items()), "disturbing", console=Console(stderr=True), disable=len(waves) < FEW)
        for number, (path, speech) in enumerate(bar):
            others = [wave for other, wave in waves.items() if other != path]
            mels = []
            for variant in range(self.variants):
                wave = self.disturb(speech, others, np.random.default_rng(seed_of(seed, number, variant)))
                wave = level(wave)
                mel = log_mel(wave)
                mels.append(repeat_mel(denoise_mel(load_enhancer(), mel, wave)[0] if self.enhanced else mel, frames))
            yield path, tuple(mels)


class Scenes(NamedTuple):
    """heard ``[G, T, 144]``, portrait ``[G, D]`` and the real latents ``[G, T, D]``."""

    heard: torch.Tensor
    portrait: torch.Tensor
    real: torch.Tensor

    def select(self, rows: torch.Tensor) -> Scenes:
        """The rows at these indices."""
        return Scenes(*(part[rows] for part in self))


class FilmTask:
    """Windows of ``frames`` frames of films with more than that, drawn with ``codec`` at ``side`` pixels."""

    def __init__(self, films: Sequence[Film], frames: int, codec: VaeCodec, side: int) -> None:
        self.films = [film for film in films if len(film.latents) > frames]
        self.frames, self.codec, self.side = frames, codec, side
        self.regions: Mapping[str, torch.Tensor] = {}

    def draw(self, groups: int, seed: int, iteration: int) -> Scenes:
        generator = torch.Generator().manual_seed(seed_of(seed, iteration, 0))
        rows = []
        for _ in range(groups):
            film = self.films[int(torch.randint(len(self.films), (), generator=generator))]
            first = int(torch.randint(1, len(film.latents) - self.frames + 1, (), generator=generator))
            window = slice(first, first + self.frames)
            rows.append((film.features[window], film.latents[first - 1], film.latents[window]))
        return Scenes(*(torch.stack(part).float() for part in zip(*rows, strict=True)))

    def condition(self, policy: PatchFlow, scenes: Scenes) -> PatchCondition:
        return policy.condition(scenes.heard, scenes.portrait)

    def real(self, policy: PatchFlow, scenes: Scenes) -> torch.Tensor | None:
        return scenes.real

    def batch(self, policy: PatchFlow, trajectory: Trajectory, scenes: Scenes) -> RewardBatch:
        """Rewards may ask for frames; there is no motion and no sound to read."""
        latents, count = trajectory.latents.cpu(), len(trajectory.latents)

        def show(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
            chosen = latents[:, list(indices)].flatten(0, 1)
            shown = np.stack(list(pictures(chosen, self.codec, self.side)))
            return torch.from_numpy(shown).unflatten(0, (count, -1)).permute(0, 1, 4, 2, 3).float() / 255

        nothing = torch.zeros(count, self.frames, MOTION_DIM)
        silence = torch.zeros(count, self.frames * MELS_PER_FRAME, N_MELS)
        return RewardBatch(nothing, silence, show, group=trajectory.group, policy=policy,
                           condition=trajectory.condition, latents=latents, domain="filmed")  # fmt: skip

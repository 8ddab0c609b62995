"""This module defines tasks, which make prompts for a policy and turn its samples into batches for rewards.

    draw(iteration) ─► prompts ─► condition(policy) ─► (rollout) ─► batch(policy, latents) ─► rewards

A task knows the inputs and outputs of its generator; the trainer knows neither. The parts, in order: prompts of speech,
the interface (``Task``), the task of the built-in generator (``TalkingTask``), disturbed speech (``Disturbance``), and
the task of a generator of frames (``FilmTask``).
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
from flowportrait.flow.noise import mix_seed
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS, frame_count, log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.models.arflow import ARFlow, SpeechCondition
from flowportrait.models.enhancer import denoise_mel, load_enhancer
from flowportrait.models.patch_flow import LatentClip, PatchCondition, PatchFlow, decode_patches
from flowportrait.models.training_clips import add_reverberation, babble_noise, coloured_noise, rms_level
from flowportrait.rendering.motion_basis import BROWS, GAZE, HEAD, LOWER_FACE, MOTION_DIM
from flowportrait.rendering.motion_filters import postprocess_motion
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.vae_codec import VaeCodec
from flowportrait.rewards.batch import FrameRenderer, RewardBatch
from flowportrait.rl.rollout import Trajectory

# --- Prompts of speech ---
#
# A prompt is a window of a recording and a portrait; no video is needed.


@dataclass(frozen=True)
class SpeechItem:
    """A recording of T frames and a portrait.

    Attributes:
        mel: log-mel ``[4T, 80]``.
        portrait: index of the portrait.
        motion: real motion ``[T, 30]`` of the recording, if it is known.
        audio: waveform ``[640 T]``, for rewards that need sound.
        disturbed_mels: log-mels ``[4T, 80]`` of disturbed copies, which the policy may get in place of ``mel``.
    """

    mel: torch.Tensor
    portrait: int
    motion: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    disturbed_mels: tuple[torch.Tensor, ...] = ()


class SpeechPrompts(NamedTuple):
    """The prompts of an iteration, one row per group.

    Attributes:
        mel: log-mel ``[G, 4T, 80]``.
        portraits: indices of the portraits.
        motion: real motion ``[G, 1 + T, 30]`` with the frame before, if it is known.
        audio: waveform ``[G, 640 T]``, for rewards that need sound.
        policy_mel: log-mel ``[G, 4T, 80]`` that the policy gets in place of ``mel``, if speech is disturbed.
    """

    mel: torch.Tensor
    portraits: list[int]
    motion: torch.Tensor | None = None
    audio: torch.Tensor | None = None
    policy_mel: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> SpeechPrompts:
        """Return the rows at these indices."""
        optional = (None if part is None else part[rows] for part in (self.motion, self.audio, self.policy_mel))
        return SpeechPrompts(self.mel[rows], [self.portraits[int(row)] for row in rows], *optional)


def speech_mel(audio: np.ndarray, frames: int) -> torch.Tensor:
    """Return the levelled log-mel ``[4T, 80]`` of a recording ``[N]``, repeated if it is shorter than ``frames``."""
    return repeat_mel(log_mel(normalize_loudness(audio)), frames)


def repeat_mel(mel: torch.Tensor, frames: int) -> torch.Tensor:
    """Return a log-mel ``[4T, 80]``, repeated if it is shorter than ``frames``."""
    times = -(-frames * MELS_PER_FRAME // len(mel))
    return mel.repeat(times, 1)


def speech_waveform(audio: np.ndarray, frames: int) -> torch.Tensor:
    """Return the waveform ``[640 T]`` of a recording ``[N]``, repeated like its ``speech_mel``."""
    wave = torch.zeros(frame_count(audio) * SAMPLES_PER_FRAME)
    wave[: len(audio)] = torch.from_numpy(audio)
    return wave.repeat(-(-frames * SAMPLES_PER_FRAME // len(wave)))


def draw_prompts(items: Sequence[SpeechItem], count: int, frames: int, seed: int, iteration: int) -> SpeechPrompts:
    """Return ``count`` windows of speech, a pure function of seed and iteration."""
    generator = torch.Generator().manual_seed(mix_seed(seed, iteration, 0))
    order = torch.randperm(len(items), generator=generator).tolist()
    selected = [items[order[i % len(items)]] for i in range(count)]
    windows, motions, sounds, policy_mels = [], [], [], []
    for item in selected:
        # The window of a real clip begins at its second frame or later, since motion continues from the frame before.
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
    return SpeechPrompts(torch.stack(windows), [item.portrait for item in selected], real, sound, policy_mel)


# --- The interface of tasks ---


class PromptSource(Protocol):
    """A source of prompts and of the conditions that a policy gets. Types known only to task and generator are
    ``Any``."""

    @property
    def regions(self) -> Mapping[str, torch.Tensor]:
        """Return the latent regions: name → mask ``[D]`` of 0 and 1."""
        ...

    def draw(self, groups: int, seed: int, iteration: int) -> Any:
        """Return the prompts of an iteration, one row per group, as a pure function. They have a method ``select``."""
        ...

    def condition(self, policy: Any, prompts: Any) -> Any:
        """Return the policy's condition, one row per group."""
        ...


class Task(PromptSource, Protocol):
    """A source of prompts that can also turn samples into batches for rewards."""

    def batch(self, policy: Any, trajectory: Trajectory, prompts: Any) -> RewardBatch:
        """Return the samples of a trajectory as a batch for rewards, given one row of prompts per sample."""
        ...

    def real(self, policy: Any, prompts: Any) -> torch.Tensor | None:
        """Return the latents ``[G, N, D]`` of the real clips of the prompts, or None if there are none."""
        ...


# --- Portraits that speak ---

RendererFactory = Callable[[Sequence[int]], FrameRenderer]
"""A function that returns the renderer of a batch, given the index of every row's portrait."""


class TalkingTask:
    """A task in which portraits speak windows of recordings."""

    def __init__(
        self,
        items: Sequence[SpeechItem],
        frames: int,
        renderer_for: RendererFactory | None,
        chunk: int,
        portrait_tokens: torch.Tensor | None = None,
    ) -> None:
        """Create the task.

        Args:
            items: recordings with portraits.
            frames: length of a window.
            renderer_for: function that returns the renderer of the portraits; None if no reward needs frames.
            chunk: frames per chunk of the policy.
            portrait_tokens: features ``[portraits, P, hidden]`` of the portraits, for a policy with vision.
        """
        self.items = items
        self.frames = frames
        self.renderer_for = renderer_for
        self.portrait_tokens = portrait_tokens
        self.regions = latent_regions(chunk)

    def draw(self, groups: int, seed: int, iteration: int) -> SpeechPrompts:
        return draw_prompts(self.items, groups, self.frames, seed, iteration)

    def condition(self, policy: ARFlow, prompts: SpeechPrompts) -> SpeechCondition:
        device = next(policy.parameters()).device
        start = None if prompts.motion is None else prompts.motion[:, 0].to(device)
        portrait = None if self.portrait_tokens is None else self.portrait_tokens[prompts.portraits].to(device)
        policy_mel = prompts.mel if prompts.policy_mel is None else prompts.policy_mel
        return policy.condition(policy_mel.to(device), start=start, portrait=portrait)

    def real(self, policy: ARFlow, prompts: SpeechPrompts) -> torch.Tensor | None:
        if prompts.motion is None:
            return None
        return encode_following_motion(policy, prompts.motion.to(next(policy.parameters()).device))

    def batch(self, policy: ARFlow, trajectory: Trajectory, prompts: SpeechPrompts) -> RewardBatch:
        latents = trajectory.latents.to(next(policy.parameters()).device)
        motion = policy.to_motion(latents, trajectory.condition.start).cpu()
        filtered = postprocess_motion(motion.detach(), policy.config.chunk, policy.config.ease)
        # For gradients of rewards the filters count as the identity.
        return RewardBatch(
            motion + (filtered - motion.detach()) if motion.requires_grad else filtered,
            prompts.mel,
            self.renderer_for(prompts.portraits) if self.renderer_for else None,
            audio=prompts.audio,
            reference=None if prompts.motion is None else prompts.motion[:, 1:],
            group=trajectory.group,
            policy=policy,
            condition=trajectory.condition,
            latents=latents,
        )


def encode_following_motion(policy: ARFlow, motion: torch.Tensor) -> torch.Tensor:
    """Return the latents ``[B, N, D]`` of the motion ``[B, 1 + T, 30]`` after its first frame."""
    chunks = motion[:, 1:].unflatten(1, (-1, policy.config.chunk))
    before = torch.cat([motion[:, :1], chunks[:, :-1, -1]], 1)
    return policy.space.encode(chunks, before)


def latent_regions(chunk: int) -> dict[str, torch.Tensor]:
    """Return the masks ``[D]`` of 0 and 1 over latent elements of the mouth, the eyes with brows, and the head."""
    spans = {"mouth": LOWER_FACE, "eyes": slice(BROWS.start, GAZE.stop), "head": HEAD}
    return {name: _latent_mask(span, chunk) for name, span in spans.items()}


def _latent_mask(span: slice, chunk: int) -> torch.Tensor:
    """Return the mask ``[30 · chunk]`` of a span of the 30 motion coefficients, each of which has ``chunk``
    elements."""
    mask = torch.zeros(30, chunk)
    mask[span] = 1
    return mask.flatten()


class PortraitRenderer:
    """A renderer of motion that also provides landmarks (``places``) and ``portraits``; see
    ``rewards.batch.FrameRenderer``.

    Args:
        codecs: one per portrait.
        which: index of the codec of every row.
        size: side of the frames in pixels.
    """

    def __init__(self, codecs: Sequence[MotionCodec], which: Sequence[int], size: int) -> None:
        self.codecs = [codecs[index] for index in which]
        self.size = size

    @property
    def portraits(self) -> list[Portrait]:
        """Return the portrait of every row."""
        return [codec.portrait for codec in self.codecs]

    def __call__(self, motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Return the frames ``[B, F, 3, S, S]`` in [0, 1] of motion ``[B, T, 30]`` at these indices."""
        clips = []
        for codec, row in zip(self.codecs, motion, strict=True):
            frames = [torch.from_numpy(frame.copy()) for frame in codec.decode(row[list(indices)])]
            clips.append(torch.stack(frames))
        return torch.stack(clips).permute(0, 1, 4, 2, 3).float() / 255

    def places(self, motion: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
        """Return the landmarks ``[B, F, 478, 2]`` in pixels of these frames."""
        rows = [
            torch.from_numpy(codec.landmarks(row[list(indices)])[..., :2] * (self.size / len(codec.portrait.crop)))
            for codec, row in zip(self.codecs, motion, strict=True)
        ]
        return torch.stack(rows).float()


# --- Disturbed speech ---
#
# The policy gets speech with reverberation or noise, while the rewards get the clean recording:
#
#     clean ─┬─► a room, other people or noise ─► (denoiser) ─► policy ─► motion ─┐
#            └───────────────────────────────────────────────► rewards ◄──────────┘
#
# Every recording is disturbed several times before a run. A prompt has one of these variants or the clean recording,
# the same for all samples of a group. Rewards measure lips and timing on clean speech, so the policy learns to use what
# the disturbed speech still tells of them.

PROGRESS_BAR_FROM = 20
"""With at least this many recordings a progress bar is shown while they are disturbed."""


@dataclass(frozen=True)
class Disturbance:
    """Settings of the noise and reverberation in the speech that the policy gets."""

    variants: int = 4
    """Disturbed variants of every recording. A prompt has one of these or the clean recording, all equally likely."""
    room: float = 0.4
    """Share of the variants with the reverberation of a room (RT60 0.15–0.7 s). The others have noise, half of them
    babble of other recordings."""
    lowest: float = 0.0
    """Lowest signal-to-noise ratio in decibels."""
    highest: float = 15.0
    """Highest signal-to-noise ratio in decibels."""
    enhanced: bool = True
    """Whether disturbed speech passes through the shipped denoiser, as in ``animate``."""

    def __post_init__(self) -> None:
        at_least(self, variants=1, room=0, lowest=-20, highest=-20)
        if self.room > 1 or self.highest < self.lowest:
            raise BadInput(
                f"disturbance.room={self.room} must be a share, and disturbance.highest={self.highest} no less than "
                f"disturbance.lowest={self.lowest}."
            )

    def disturb(self, speech: np.ndarray, others: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Return speech ``[N]`` with noise or reverberation; babble is made of the recordings ``others``."""
        if rng.random() < self.room:
            return add_reverberation(speech, rng).astype(np.float32)
        use_babble = len(others) > 0 and rng.random() < 0.5
        noise = babble_noise(others, len(speech), rng) if use_babble else coloured_noise(len(speech), rng)
        gain = 10 ** (-rng.uniform(self.lowest, self.highest) / 20)
        return (speech + noise * (rms_level(speech) / max(rms_level(noise), 1e-9)) * gain).astype(np.float32)

    def disturbed_mels(
        self, waves: Mapping[Path, np.ndarray], frames: int, seed: int
    ) -> Iterator[tuple[Path, tuple[torch.Tensor, ...]]]:
        """Yield every recording's path and the log-mels ``[4T, 80]`` of its disturbed variants.

        Args:
            waves: waveforms ``[N]`` by path.
            frames: length to which shorter recordings are repeated.
            seed: all randomness is a function of it.
        """
        bar = track(
            list(waves.items()), "disturbing", console=Console(stderr=True), disable=len(waves) < PROGRESS_BAR_FROM
        )
        for number, (path, speech) in enumerate(bar):
            others = [wave for other, wave in waves.items() if other != path]
            mels = []
            for variant in range(self.variants):
                wave = self.disturb(speech, others, np.random.default_rng(mix_seed(seed, number, variant)))
                wave = normalize_loudness(wave)
                mel = log_mel(wave)
                mels.append(repeat_mel(denoise_mel(load_enhancer(), mel, wave)[0] if self.enhanced else mel, frames))
            yield path, tuple(mels)


# --- Frames without a motion codec ---
#
# A test bed for perceptual rewards with ``models.patch_flow``, which generates patches of frames. The motion codec
# keeps a face intact whatever a policy does; patches do not. Prompts are windows of footage: a first frame and the
# speech after it.


class FilmPrompts(NamedTuple):
    """The prompts of an iteration, one row per group.

    Attributes:
        speech_features: of speech ``[G, T, 144]``.
        portrait: latents ``[G, D]`` of the frame before the window.
        real: latents ``[G, T, D]`` of the real frames.
    """

    speech_features: torch.Tensor
    portrait: torch.Tensor
    real: torch.Tensor

    def select(self, rows: torch.Tensor) -> FilmPrompts:
        """Return the rows at these indices."""
        return FilmPrompts(*(part[rows] for part in self))


class FilmTask:
    """A task in which a policy generates the frames of windows of films.

    Args:
        films: films; those of at most ``frames`` frames are left out.
        frames: length of a window.
        codec: decodes latents to pictures.
        side: side of the pictures in pixels.
    """

    def __init__(self, films: Sequence[LatentClip], frames: int, codec: VaeCodec, side: int) -> None:
        self.films = [film for film in films if len(film.latents) > frames]
        self.frames, self.codec, self.side = frames, codec, side
        self.regions: Mapping[str, torch.Tensor] = {}

    def draw(self, groups: int, seed: int, iteration: int) -> FilmPrompts:
        generator = torch.Generator().manual_seed(mix_seed(seed, iteration, 0))
        rows = []
        for _ in range(groups):
            film = self.films[int(torch.randint(len(self.films), (), generator=generator))]
            first = int(torch.randint(1, len(film.latents) - self.frames + 1, (), generator=generator))
            window = slice(first, first + self.frames)
            rows.append((film.features[window], film.latents[first - 1], film.latents[window]))
        return FilmPrompts(*(torch.stack(part).float() for part in zip(*rows, strict=True)))

    def condition(self, policy: PatchFlow, scenes: FilmPrompts) -> PatchCondition:
        return policy.condition(scenes.speech_features, scenes.portrait)

    def real(self, policy: PatchFlow, scenes: FilmPrompts) -> torch.Tensor | None:
        return scenes.real

    def batch(self, policy: PatchFlow, trajectory: Trajectory, scenes: FilmPrompts) -> RewardBatch:
        """Return the samples as a batch that offers frames. Its motion and its sound are zero."""
        latents, count = trajectory.latents.cpu(), len(trajectory.latents)

        def render(_: torch.Tensor, indices: tuple[int, ...]) -> torch.Tensor:
            selected = latents[:, list(indices)].flatten(0, 1)
            decoded = np.stack(list(decode_patches(selected, self.codec, self.side)))
            return torch.from_numpy(decoded).unflatten(0, (count, -1)).permute(0, 1, 4, 2, 3).float() / 255

        no_motion = torch.zeros(count, self.frames, MOTION_DIM)
        silence = torch.zeros(count, self.frames * MELS_PER_FRAME, N_MELS)
        return RewardBatch(no_motion, silence, render, group=trajectory.group, policy=policy,
                           condition=trajectory.condition, latents=latents, domain="filmed")  # fmt: skip

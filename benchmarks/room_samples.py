"""Many samples of one prompt, drawn cheaply, and what experts and rewards give each of them.

    speech of a dev speaker × portrait ─► n samples of motion ─► mouth patches of the drawn frames
    OUTPUT/CHECKPOINT/PROMPT-00.npz …    eight samples each: motion, patches       (drawn once, all prompts in turn)
    OUTPUT/CHECKPOINT/scores/NAME-HASH   one score per prompt and sample

An expert of the evaluation reads mouth pixels of finished files. Only frames of ``size`` pixels without retouching are
drawn here, and their patches are cut by the landmarks that were drawn, so that no face has to be found again; how well
that agrees with finished files is part of the measurement. Experts that read motion need no drawing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tools.sync_clips import FootageVideo, footage_videos

from benchmarks.drawing import codecs, draw, generate_motion, track_mouth
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import LONG_FRAMES, PixelSyncExpert
from flowportrait.evaluation.motion_metrics import longest_run
from flowportrait.evaluation.sync_experts import LightASDSyncExpert
from flowportrait.evaluation.sync_instruments import SyncInstrument, sync_instruments
from flowportrait.files import atomic_write
from flowportrait.media.audio import SAMPLES_PER_FRAME, read_audio
from flowportrait.media.crop import mouth_patch
from flowportrait.media.faces import FaceTracker
from flowportrait.media.mel import MELS_PER_FRAME, log_mel, normalize_loudness
from flowportrait.media.video import iter_frames
from flowportrait.pipelines.animator import Animator
from flowportrait.rendering.motion_basis import MotionBasis
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.interface import Reward, score_batch
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.rl.task import PortraitRenderer
from flowportrait.terminal import log
from flowportrait.training.joint_embedding import JointEmbedding

BLOCK = 8
"""Samples that are drawn and kept together."""
SHORTEST_FRAMES = 30
"""Frames of the shortest speech: with fewer, an expert of 13 frames has too few windows."""
LONGEST_FRAMES = LONG_FRAMES - 1
"""Frames of the longest speech: longer ones would be measured with other offsets."""
PICTURE_SIZE = 128
"""Side in pixels of what rewards see that read pictures, as in post-training."""
NETWORKS: tuple[type[JointEmbedding], ...] = (PixelSyncExpert, MotionSyncExpert, LightASDSyncExpert)
"""Networks that weights in a file may belong to."""


# --- Prompts ---


@dataclass(frozen=True)
class RoomPrompt:
    """Speech ``[640 T]`` of an unseen speaker, and the number of the portrait that says it."""

    name: str
    speaker: str
    audio: np.ndarray
    portrait: int
    path: Path

    @property
    def frames(self) -> int:
        """T, the number of frames."""
        return len(self.audio) // SAMPLES_PER_FRAME

    @property
    def mel(self) -> torch.Tensor:
        """Log-mel ``[4T, 80]`` as rewards and experts get it."""
        return log_mel(normalize_loudness(self.audio))[: MELS_PER_FRAME * self.frames]


def room_prompts(footage: Path, per_speaker: int, portraits: int, frames: int) -> list[RoomPrompt]:
    """Return prompts of the dev speakers, the first of every speaker first, each cut to ``frames``.

    Raises:
        BadInput: there is no split.tsv, or no speech of a dev speaker that is long enough.
    """
    if not SHORTEST_FRAMES <= frames <= LONGEST_FRAMES:
        raise BadInput(f"--frames {frames} is not possible: choose {SHORTEST_FRAMES} to {LONGEST_FRAMES}.")
    by_speaker: dict[str, list[tuple[FootageVideo, np.ndarray]]] = {}
    for video in footage_videos(footage, "dev", 3 * per_speaker):
        known = by_speaker.setdefault(video.speaker, [])
        audio = None if len(known) >= per_speaker else _speech(video.path, frames)
        if audio is not None:
            known.append((video, audio))
    rounds = [found[place] for place in range(per_speaker) for found in by_speaker.values() if place < len(found)]
    if not rounds:
        raise BadInput(f"{footage} has no speech of a dev speaker of {SHORTEST_FRAMES} frames: give longer footage.")
    return [
        RoomPrompt(video.name.replace("/", "-"), video.speaker, audio, index % portraits, video.path)
        for index, (video, audio) in enumerate(rounds)
    ]


def _speech(path: Path, frames: int) -> np.ndarray | None:
    try:
        sound = read_audio(path)[: frames * SAMPLES_PER_FRAME]
    except BadInput:  # without sound
        return None
    padded = np.zeros(-(-len(sound) // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME, np.float32)
    padded[: len(sound)] = sound
    is_spoken = len(sound) > 0 and float(np.abs(sound).max()) > 1e-3
    return padded if len(padded) >= SHORTEST_FRAMES * SAMPLES_PER_FRAME and is_spoken else None


# --- Samples ---


@dataclass(frozen=True)
class RoomSamples:
    """N samples of one prompt: motion ``[N, T, 30]`` and mouth patches ``[N, T, 48, 64]`` uint8."""

    motion: np.ndarray
    mouth: np.ndarray

    def __len__(self) -> int:
        return len(self.motion)


@dataclass(frozen=True)
class RoomDrawing:
    """Draws samples of prompts with one checkpoint, and keeps them.

    Attributes:
        folder: where they are kept.
        animator: the generator.
        people: codecs of the portraits.
    """

    folder: Path
    animator: Animator
    people: Sequence[MotionCodec]

    def complete(self, prompts: Sequence[RoomPrompt], samples: int) -> None:
        """Draw what is missing of the first ``samples`` samples: eight of every prompt, then the next eight."""
        wanted = [(block, prompt) for block in range(-(-samples // BLOCK)) for prompt in prompts]
        missing = [(block, prompt) for block, prompt in wanted if not self._file(prompt, block).is_file()]
        began = time.monotonic()
        for done, (block, prompt) in enumerate(missing):
            self._draw_block(prompt, block)
            left = (time.monotonic() - began) / (done + 1) * (len(missing) - done - 1) / 60
            log(f"{self.folder.name}: drawn {done + 1} of {len(missing)} blocks of {BLOCK}, {left:.1f} min left")

    def read(self, prompt: RoomPrompt, samples: int) -> RoomSamples:
        """Return the first ``samples`` samples of a prompt that ``complete`` has drawn."""
        parts = [np.load(self._file(prompt, block)) for block in range(-(-samples // BLOCK))]
        motion, mouth = (np.concatenate([part[name] for part in parts])[:samples] for name in ("motion", "mouth"))
        return RoomSamples(motion, mouth)

    def _file(self, prompt: RoomPrompt, block: int) -> Path:
        return self.folder / f"{prompt.name}-{block:02d}.npz"

    def _draw_block(self, prompt: RoomPrompt, block: int) -> None:
        codec, motions, mouths = self.people[prompt.portrait], [], []
        for sample in range(block * BLOCK, (block + 1) * BLOCK):
            motion = generate_motion(self.animator, prompt.audio, sample_seed(prompt, sample))[: prompt.frames]
            motions.append(motion.numpy())
            mouths.append(draw_mouths(codec, motion))
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file(prompt, block)) as partial, partial.open("wb") as stream:
            np.savez(stream, motion=np.stack(motions), mouth=np.stack(mouths))


def sample_seed(prompt: RoomPrompt, sample: int) -> int:
    """Return the seed of one sample: it depends on the prompt's name and the sample's number alone."""
    return int.from_bytes(hashlib.sha256(f"{prompt.name} {sample}".encode()).digest()[:4], "little") >> 1


def draw_mouths(codec: MotionCodec, motion: torch.Tensor) -> np.ndarray:
    """Return mouth patches ``[T, 48, 64]`` uint8 of drawn motion ``[T, 30]``, cut by the landmarks that were drawn."""
    landmarks = codec.landmarks(motion)
    frames = [codec.renderer.draw(points) for points in landmarks]
    scale = len(frames[0]) / len(codec.portrait.crop)
    places = (landmarks + 0.5) * scale - 0.5
    return np.array([mouth_patch(frame, points) for frame, points in zip(frames, places, strict=True)], np.uint8)


def real_sample(prompt: RoomPrompt, codec: MotionCodec) -> RoomSamples | None:
    """Return the speaker's own motion drawn on the portrait, as one sample; None where a frame shows no face."""
    motion = real_motion(prompt.path, prompt.frames)
    return None if motion is None else RoomSamples(motion[None].numpy(), draw_mouths(codec, motion)[None])


@lru_cache(maxsize=64)
def real_motion(path: Path, count: int) -> torch.Tensor | None:
    """Return the motion ``[count, 30]`` of a clip's speaker; None where a frame shows no face."""
    frames = [frame for frame, _ in zip(iter_frames(path), range(count), strict=False)]
    with FaceTracker() as tracker:
        faces = tracker.track(frames)
    run = longest_run(faces.valid)
    if run.start or run.stop < count - 1:
        return None
    motion = MotionBasis.load().encode(faces.landmarks[run], faces.blendshapes[run])[0]
    return torch.cat([motion, motion[-1:]])[:count]


def finished_sample(path: Path, prompt: RoomPrompt, motion: np.ndarray, codec: MotionCodec) -> RoomSamples | None:
    """Return a sample as the evaluation reads it: drawn to an mp4 file and tracked; None where a face is lost."""
    tracked = track_mouth(draw(path, codec, torch.from_numpy(motion), prompt.audio))
    whole = tracked.valid.all() and len(tracked.mouth) == len(motion)
    return RoomSamples(motion[None], tracked.mouth[None]) if whole else None


# --- Experts ---


def load_expert(word: str) -> SyncInstrument:
    """Return the expert of a word: an instrument of the evaluation, ``reward``, or NAME=FILE of weights.

    Raises:
        BadInput: there is no such instrument, or the file holds no sync expert.
    """
    name, is_file, file = word.partition("=")
    if is_file:
        path = Path(file) / "model.safetensors" if Path(file).is_dir() else Path(file)
        network = _read_network(path)
        reads: Literal["mouth", "motion"] = "motion" if isinstance(network, MotionSyncExpert) else "mouth"
        return SyncInstrument(name, reads, (network,), file)
    if name == "reward":
        return SyncInstrument(name, "motion", (MotionSyncExpert.load(),), "reward speakers")
    known = sync_instruments(points=False)
    if name not in known:
        raise BadInput(f"No expert {name!r}: choose from {', '.join([*known, 'reward'])}, or give NAME=FILE.")
    return known[name]


def _read_network(path: Path) -> JointEmbedding:
    if not path.is_file():
        raise BadInput(f"There are no weights at {path}: give NAME=FILE, or NAME=FOLDER with model.safetensors.")
    for network in NETWORKS:
        try:
            return network.read(path)
        except RuntimeError:  # weights of another network
            continue
        except Exception as error:
            raise BadInput(f"{path} cannot be read ({str(error).splitlines()[0]}): give safetensors.") from error
    raise BadInput(f"{path} holds no sync expert: known are {', '.join(kind.__name__ for kind in NETWORKS)}.")


def score_by_expert(expert: SyncInstrument, samples: RoomSamples, audio: np.ndarray) -> np.ndarray:
    """Return the LSE-C at offset zero ``[N]`` of every sample; NaN where the expert cannot measure."""
    lips = samples.motion if expert.reads == "motion" else samples.mouth
    measured = [expert.score(own, audio) for own in lips]
    return np.array([np.nan if one is None else one.lse_c_at_zero for one in measured])


def expert_fingerprint(expert: SyncInstrument) -> str:
    """Return a short hash of an expert's weights, so that scores of other weights are never taken for its own."""
    digest = hashlib.sha256()
    for network in expert.networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


# --- Rewards ---


def score_by_reward(reward: Reward, samples: RoomSamples, prompt: RoomPrompt, codec: MotionCodec | None) -> np.ndarray:
    """Return a reward's score ``[N]`` of every sample; NaN where it has none.

    Raises:
        BadInput: the reward needs something that finished motion does not have, such as the generator's latents.
    """
    count = len(samples)
    real = real_motion(prompt.path, prompt.frames) if "reference" in reward.needs else None
    if real is None and "reference" in reward.needs:
        return np.full(count, np.nan)
    batch = RewardBatch(
        torch.from_numpy(samples.motion),
        prompt.mel.expand(count, -1, -1),
        PortraitRenderer([codec], [0] * count, PICTURE_SIZE) if codec else None,
        audio=torch.from_numpy(prompt.audio).expand(count, -1),
        reference=None if real is None else real.expand(count, -1, -1),
        group=torch.zeros(count, dtype=torch.long),
    )
    score = score_batch(reward, batch)
    return np.where(score.valid.numpy(), score.value.numpy(), np.nan)


def needs_pictures(reward: Reward) -> bool:
    """Return whether a reward looks at drawn frames."""
    return bool(reward.needs & {"frames", "places", "portrait"})


# --- Kept scores ---


def keep_scores(
    folder: Path, name: str, fingerprint: str, prompts: Sequence[RoomPrompt], count: int,
    score: Callable[[RoomPrompt], np.ndarray],
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return scores ``[count]`` by prompt; those that were kept by an earlier call are not made again.

    Args:
        folder: where scores are kept.
        name: who scores.
        fingerprint: changes with whatever changes the scores.
        prompts: whose samples are scored.
        count: number of samples of each.
        score: returns the scores ``[count]`` of one prompt.
    """
    path = folder / f"{name.replace('/', '_').replace(':', '_')}-{fingerprint}.npz"
    known: dict[str, np.ndarray] = dict(np.load(path)) if path.is_file() else {}
    began, missing = time.monotonic(), [one for one in prompts if len(known.get(one.name, ())) < count]
    for done, prompt in enumerate(missing):
        known[prompt.name] = score(prompt)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as partial, partial.open("wb") as stream:
            np.savez(stream, **known)  # type: ignore[arg-type]
        if done % 8 == 7:
            left = (time.monotonic() - began) / (done + 1) * (len(missing) - done - 1)
            log(f"{folder.parent.name}: {name} scored {done + 1} of {len(missing)} prompts, {left:.0f} s left")
    return {prompt.name: known[prompt.name][:count] for prompt in prompts}


@lru_cache(maxsize=4)
def cached_codecs(footage: Path, count: int, size: int, retouch: bool) -> list[MotionCodec]:
    """Return the codecs of the first portraits of a footage folder."""
    return codecs(footage, count, retouch=retouch, size=size)

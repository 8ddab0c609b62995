"""Pictures in the latents of an autoencoder: what is lost in it, a generator of them, and its post-training."""

from __future__ import annotations

import copy
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.drawing import track_mouth
from benchmarks.material import (
    dev_records,
    load_clip,
    mean_of_known,
    read_dev_names,
    spread_evenly,
    use_one_thread,
    write_picture,
)
from benchmarks.record import Record
from benchmarks.timing import stopwatch
from flowportrait.commands.options import OptionalPath
from flowportrait.data.corpus import FaceClip
from flowportrait.data.corpus import Record as ClipRecord
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import measure_sync
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.flow.kernels import KERNELS
from flowportrait.flow.noise import NoiseKey, keyed_noise
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.media.audio import SAMPLES_PER_FRAME
from flowportrait.media.crop import sample_crop
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.mel import log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS, iter_frames
from flowportrait.media.write_video import write_video
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.patch_flow import (
    CROP_WIDTH,
    LatentClip,
    PatchFlow,
    crop_matrix,
    cropped_frames,
    decode_patches,
    encode_clip,
    latents_to_patches,
    motion_generator_features,
)
from flowportrait.models.sampler import sample_motion
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.vae_codec import TinyAutoencoder, VaeCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import rollout, trajectory_of_final_samples
from flowportrait.rl.task import FilmPrompts, FilmTask
from flowportrait.rl.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """A generator in the latents of a tiny autoencoder, and footage."""

    corpus: Path
    """Prepared corpus."""
    data: Path
    """Footage that it was prepared from."""
    autoencoder: tuple[Path, Path]
    """Encoder and decoder (taef2)."""
    output: Path
    """Folder of what is written: pictures of people, to keep with the footage."""


def fine_detail(frame: np.ndarray) -> float:
    """Return fine detail over contrast."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).std() / max(float(grey.std()), 1.0))


def long_records(corpus: Path, longer_than: int) -> list[ClipRecord]:
    """Return the records of clips of ``dev`` speakers with more frames.

    Raises:
        BadInput: there are none.
    """
    found = [record for record in dev_records(corpus) if record["frames"] > longer_than]
    if not found:
        raise BadInput(f"{corpus} has no clips of dev speakers of over {longer_than} frames: check its clips.jsonl.")
    return found


# --- Through an autoencoder -------------------------------------------------------------


@dataclass(frozen=True)
class AutoencoderOptions:
    """Measure the picture quality that an autoencoder loses, in decibels over the frame and over the face.

    One frame of each clip of dev speakers. Must lose: the frame shrunk to as many numbers as the latents have, and to
    as many cells. Ceiling: the encoder that writes every video (H.264, crf 17).
    """

    data: Path
    """Footage with split.tsv."""
    autoencoder: tuple[Path, Path]
    """Encoder and decoder (taef2)."""
    frames: int = 40
    """Frames, each of another clip."""


def autoencoder(options: AutoencoderOptions, record: Record) -> None:
    """Measure the autoencoder between what must lose and the ceiling."""
    use_one_thread()
    codec = VaeCodec(TinyAutoencoder.read(*options.autoencoder))
    dev = [options.data / name for name in read_dev_names(options.data) if name.endswith(".mp4")]
    ratios: dict[str, list[tuple[float, float]]] = defaultdict(list)
    spent = pixels = 0.0
    with FaceTracker(still=True) as tracker:
        for path in dev[:: max(1, len(dev) // options.frames)][: options.frames]:
            frame = next(islice(iter_frames(path), 5, None))
            if not (faces := tracker.detect(frame)):
                continue
            points = faces[0][0][:, :2]
            low, high = points.min(0).astype(int).clip(0), points.max(0).astype(int)
            with stopwatch() as both_ways:
                latents = codec.encode(frame[None])
                again = next(codec.decode(latents))
            spent += both_ways.processor
            pixels += frame.shape[0] * frame.shape[1]
            same = float(np.sqrt(frame.size / latents.values.numel()))
            systems = {
                "autoencoder": again,
                f"shrunk to as many numbers (1/{same:.2f})": shrink(frame, same),
                f"shrunk to as many cells (1/{codec.spatial})": shrink(frame, codec.spatial),
                "H.264 crf 17": through_h264(frame),
            }
            face = (slice(low[1], high[1]), slice(low[0], high[0]))
            for name, result in systems.items():
                ratios[name].append((signal_to_noise(frame, result), signal_to_noise(frame[face], result[face])))
    for name, values in ratios.items():
        whole, face_values = np.array(values).T
        record.add(name, "frame", mean_of_known(whole), unit="dB")
        record.add(name, "face", mean_of_known(face_values), unit="dB")
        record.add(name, "worst face", float(face_values.min()), unit="dB")
    if pixels:
        record.add("autoencoder", "256 x 256, encoded and decoded", spent / pixels * 256 * 256, unit="s of one core")


def signal_to_noise(before: np.ndarray, after: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in decibels."""
    return float(10 * np.log10(255**2 / np.square(before.astype(np.float64) - after).mean()))


def shrink(frame: np.ndarray, factor: float) -> np.ndarray:
    """Return the frame made smaller by ``factor`` and larger again."""
    height, width = frame.shape[:2]
    small = cv2.resize(frame, (round(width / factor), round(height / factor)), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def through_h264(frame: np.ndarray) -> np.ndarray:
    """Return the frame as a written video has it."""
    with tempfile.TemporaryDirectory() as folder:
        write_video(Path(folder) / "a.mp4", [frame], None)
        return next(iter_frames(Path(folder) / "a.mp4"))


# --- The picture generator --------------------------------------------------------------

CENTRAL = 2.0 / CROP_WIDTH
"""Share of the crop that the identity network sees."""
LARGE = 256


@dataclass(frozen=True, kw_only=True)
class PictureGeneratorOptions(LatentOptions):
    """Measure what becomes of a face that is drawn in latents, second by second: drift, blur, other people.

    The generator of ``tools.train_patches`` continues from the first frame of dev speakers, while their clips are heard
    one after another. Ceiling: real footage through the autoencoder, one second long. Beside it the first frame moved
    by ``sft``. Identity, sharpness, shift (latents, in their deviation), faces found and colour (levels) are relative
    to the first frame. Videos and sheets go to the output folder.
    """

    checkpoint: Path
    """The picture generator."""
    seconds: int = 8
    """Seconds that are drawn."""
    clips: int = 6
    """Clips to begin with."""
    photo: OptionalPath = None
    """Draw only this photo, to photo.png: a frame a second, drawn in latents above and moved by sft below."""


class Painter:
    """The picture generator and the motion generator beside it."""

    def __init__(self, options: PictureGeneratorOptions) -> None:
        self.codec = VaeCodec(TinyAutoencoder.read(*options.autoencoder))
        self.model = PatchFlow.from_pretrained(options.checkpoint).requires_grad_(False)
        self.motion_generator: ARFlow = load_generator("sft")
        self.side = self.model.config.grid * 2 * self.codec.spatial

    def first_latents(self, frame: np.ndarray) -> torch.Tensor:
        """Return the patches ``[1, D]`` of a frame."""
        return latents_to_patches(self.codec.encode(frame[None]).values)

    def paint(self, sound: np.ndarray, first: torch.Tensor, seed: int) -> np.ndarray:
        """Return frames ``[T, side, side, 3]`` that continue from the latents of a first one."""
        features = motion_generator_features(self.motion_generator, log_mel(sound)[None])
        session, drawn = self.model.session(self.model.condition(features, first)), []
        sigmas = noise_schedule(self.model.config.steps, self.model.config.shift)
        for frame in range(features.shape[1]):
            context, x = session.context(), keyed_noise(self.model.latent_dim, seed, frame)[None]
            drawn.append(session.append(solve_ode(partial(self.model.velocity, context=context), x, sigmas)))
        return np.stack(list(decode_patches(torch.cat(drawn), self.codec, self.side)))

    def move(self, picture: np.ndarray, name: str, sound: np.ndarray, seed: int) -> np.ndarray | None:
        """Return the picture moved by the motion generator, in the same crop; None where it shows no face."""
        try:
            codec = MotionCodec(Portrait.from_image(picture, LARGE, name))
        except BadInput:
            return None
        motion = sample_motion(self.motion_generator, sound[None], [seed])[0]
        size = (self.side, self.side)
        return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in codec.decode(motion)])


def picture_generator(options: PictureGeneratorOptions, record: Record) -> None:
    """Measure every system second by second, and the sync of the whole."""
    use_one_thread()
    options.output.mkdir(parents=True, exist_ok=True)
    painter = Painter(options)
    if options.photo:
        draw_photo(painter, options)
        return
    found: dict[tuple[int, str], list[dict[str, float]]] = defaultdict(list)
    sync: dict[str, list[float]] = defaultdict(list)
    for number, (name, clip, sound) in enumerate(read_beginnings(options)):
        footage = options.data / f"{name}.mp4"
        real = np.stack(list(cropped_frames(footage, clip, painter.side, FPS)))
        first, large = painter.first_latents(real[0]), next(iter(cropped_frames(footage, clip, LARGE, 1)))
        systems = {
            "real, autoencoder": np.stack(list(painter.codec.decode(painter.codec.encode(real)))),
            "drawn in latents": painter.paint(sound, first, number),
            "moved by sft": painter.move(large, name, sound, number),
        }
        drawn = {system: frames for system, frames in systems.items() if frames is not None}
        for system, frames in drawn.items():
            for second, part in enumerate(np.split(frames, range(FPS, len(frames), FPS)), 1):
                found[second, system].append(picture_figures(part, real[0], first, painter.codec))
            path = options.output / f"{number}_{system.replace(', ', '_').replace(' ', '_')}.mp4"
            enlarged = [cv2.resize(frame, (LARGE, LARGE), interpolation=cv2.INTER_CUBIC) for frame in frames]
            write_video(path, enlarged, sound[: len(frames) * SAMPLES_PER_FRAME])
            result = measure_sync(track_mouth(path)) if len(frames) > FPS else None
            if result is not None:
                sync[system].append(result.lse_c)
        strips = [np.concatenate(list(frames[::FPS]), 1) for frames in drawn.values() if len(frames) > FPS]
        write_picture(options.output / f"{number}.png", np.concatenate(strips))
    for system, values in sync.items():
        record.add(system, "LSE-C", mean_of_known(values), group="whole")
    for (second, system), rows in sorted(found.items()):
        for metric in rows[0]:
            record.add(system, metric, mean_of_known([row[metric] for row in rows]), group=f"second {second}")


def read_beginnings(options: PictureGeneratorOptions) -> Iterator[tuple[str, FaceClip, np.ndarray]]:
    """Yield the name of a clip, the clip, and seconds of its speaker's sound; speakers take turns."""
    speakers: dict[str, list[str]] = defaultdict(list)
    for record in long_records(options.corpus, FPS):
        speakers[record["speaker"]].append(record["name"])
    for turn in range(options.clips):
        names = list(speakers.values())[turn % len(speakers)]
        first = turn // len(speakers) % len(names)
        clips = [load_clip(options.corpus, name) for name in names[first:][:12]]
        sound = np.concatenate([normalize_loudness(clip.audio) for clip in clips])
        yield names[first], clips[0], np.resize(sound, options.seconds * FPS // 4 * 4 * SAMPLES_PER_FRAME)


def draw_photo(painter: Painter, options: PictureGeneratorOptions) -> None:
    """Draw a photo's face to sound both ways, and write a column a second."""
    assert options.photo is not None, "only called with a photo"
    _, _, sound = next(read_beginnings(options))
    portrait = Portrait.from_image(read_image(options.photo), 512, options.photo.name)
    large, small = (sample_crop(portrait.crop, crop_matrix(portrait.landmarks, s), s) for s in (LARGE, painter.side))
    both = [painter.paint(sound, painter.first_latents(small), 0), painter.move(large, options.photo.name, sound, 0)]
    strips = [np.concatenate(list(frames[::FPS]), 1) for frames in both if frames is not None]
    write_picture(options.output / "photo.png", np.concatenate(strips))


def picture_figures(frames: np.ndarray, portrait: np.ndarray, first: torch.Tensor, codec: VaeCodec) -> dict[str, float]:
    """Return the figures of one second, relative to the first frame."""
    with FaceTracker(still=True) as tracker:
        has_face = [len(tracker.detect(cv2.resize(frame, (LARGE, LARGE)))) > 0 for frame in frames[::5]]
    shift = latents_to_patches(codec.encode(frames[::5]).values).mean(0) - first[0]
    figures = {
        "sharpness": float(np.mean([fine_detail(frame) for frame in frames[::5]]) / fine_detail(portrait)),
        "shift": float(shift.square().mean().sqrt() / first.std()),
        "faces found": float(np.mean(has_face)),
        "colour": float(np.abs(frames.mean((0, 1, 2)) - portrait.mean((0, 1))).max()),
    }
    identity = load_evaluation_networks().identity
    if identity is not None:
        margin = round(len(portrait) * (1 - CENTRAL) / 2)
        faces = [frame[margin : len(frame) - margin, margin : len(frame) - margin]
                 for frame in (portrait, frames[len(frames) // 2])]  # fmt: skip
        resized = [cv2.resize(face, (128, 128), interpolation=cv2.INTER_CUBIC) for face in faces]
        one, other = identity(np.stack(resized))
        figures = {"identity": float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))} | figures
    return figures


# --- Its post-training ------------------------------------------------------------------

FRAMES = 24
WEIGHTS = {"perceptual": 0.6, "temporal": 0.4}


@dataclass(frozen=True, kw_only=True)
class PicturePosttrainOptions(LatentOptions):
    """Measure what rewards that look at pictures do to a generator that draws them, before and after post-training.

    A second of each clip of dev speakers, with the same noise before and after: the rewards (0 is the middle of real
    motion), flicker (second difference of the brightness), sharpness and shift relative to the first frame. Ceiling:
    the clip through the autoencoder. Must lose: the first frame, repeated.
    """

    run: Path
    """What ``tools.train_patches`` left: a checkpoint and the clips that prompts are taken from."""
    minutes: float = 8
    """Minutes of processor time for post-training."""
    recipe: str = "nft"
    """Recipe."""
    clips: int = 12
    """Clips that are measured on."""


def picture_posttrain(options: PicturePosttrainOptions, record: Record) -> None:
    """Post-train, and measure on unseen speakers before and after."""
    use_one_thread()
    codec = VaeCodec(TinyAutoencoder.read(*options.autoencoder))
    model = PatchFlow.from_pretrained(options.run / "checkpoint")
    side, rewards = model.config.grid * 2 * codec.spatial, CompositeReward.of(WEIGHTS)
    trained_on = [LatentClip(*parts) for parts in torch.load(options.run / "films.pt", weights_only=True)]
    task = FilmTask(encode_dev_clips(options, codec, side), FRAMES, codec, side)
    windows = [(f.features[1 : FRAMES + 1], f.latents[0], f.latents[1 : FRAMES + 1]) for f in task.films]
    prompts = FilmPrompts(*(torch.stack(part) for part in zip(*windows, strict=True)))
    systems = {
        "real, autoencoder": prompts.real,
        "first frame": prompts.portrait[:, None].expand_as(prompts.real),
        "before": draw_windows(model, task, prompts),
    }
    trained = posttrain(copy.deepcopy(model), FilmTask(trained_on, FRAMES // 2, codec, side), rewards, options, record)
    trained.save_pretrained(options.output / "checkpoint")
    systems["after"] = draw_windows(trained, task, prompts)
    figures = {
        name: window_figures(trained if name == "after" else model, task, prompts, latents, rewards)
        for name, latents in systems.items()
    }
    change = {metric: values - figures["before"][metric] for metric, values in figures["after"].items()}
    for name, columns in {**figures, "after − before": change}.items():
        for metric, values in columns.items():
            record.add(name, metric, mean_of_known(values))
    rows = [
        np.concatenate([f for clip in systems[name][:3] for f in list(decode_patches(clip, codec, side))[::6]], 1)
        for name in ("real, autoencoder", "before", "after")
    ]
    write_picture(options.output / "sheet.png", np.concatenate(rows))


def posttrain(
    model: PatchFlow, task: FilmTask, rewards: CompositeReward, options: PicturePosttrainOptions, record: Record
) -> PatchFlow:
    """Return the model after so many minutes."""
    recipe = find_recipe(options.recipe)
    recipe = replace(recipe, groups=3, group_size=8, frames=task.frames, rollout_chunks=1, updates=1)
    trainer, began = Trainer(model, task, recipe, rewards), time.process_time()
    while time.process_time() - began < 60 * options.minutes:
        metrics = trainer.step()
        for key in (key for key in metrics if key.startswith(("reward", "grad"))):
            record.add(f"iteration {metrics['iteration']}", key, metrics[key], group="post-training")
    return model.requires_grad_(False).eval()


@torch.no_grad()
def draw_windows(model: PatchFlow, task: FilmTask, prompts: FilmPrompts) -> torch.Tensor:
    """Return latents ``[B, T, D]`` that continue from each prompt's portrait."""
    rows = torch.arange(len(prompts.portrait))
    condition = task.condition(model, prompts)
    plan = OdePlan(model.config.steps)(0, 0, len(rows), condition.chunks)
    return rollout(model, condition, rows, rows, plan, KERNELS["flow-sde"](0.5), NoiseKey(0)).latents


def window_figures(
    model: PatchFlow, task: FilmTask, prompts: FilmPrompts, latents: torch.Tensor, rewards: CompositeReward
) -> dict[str, np.ndarray]:
    """Return the figures of drawn windows, by clip."""
    rows = torch.arange(len(latents))
    trajectory = trajectory_of_final_samples(task.condition(model, prompts), latents, rows, rows)
    batch: RewardBatch = task.batch(model, trajectory, prompts)
    clips = [np.stack(list(decode_patches(clip, task.codec, task.side))) for clip in latents]
    firsts = [next(iter(decode_patches(first[None], task.codec, task.side))) for first in prompts.portrait]
    bright = [frames.mean((1, 2, 3)) for frames in clips]
    detail = [[fine_detail(frame) for frame in frames[::5]] for frames in clips]
    return {key: score.value.numpy() for key, score in rewards(batch).items()} | {
        "flicker": np.array([np.sqrt(np.square(np.diff(level, 2)).mean()) for level in bright]),
        "sharpness": np.array([np.mean(d) / fine_detail(f) for d, f in zip(detail, firsts, strict=True)]),
        "shift": ((latents.mean(1) - prompts.portrait).square().mean(1).sqrt() / prompts.portrait.std(1)).numpy(),
    }


def encode_dev_clips(options: PicturePosttrainOptions, codec: VaeCodec, side: int) -> list[LatentClip]:
    """Return clips of unseen speakers in latents, spread evenly over all of them."""
    usable, generator = long_records(options.corpus, FRAMES + 4), load_generator("sft").requires_grad_(False)
    encoded = []
    for record in spread_evenly(usable, options.clips):
        video, clip = options.data / f"{record['name']}.mp4", load_clip(options.corpus, record["name"])
        encoded.append(encode_clip(video, clip, record["speaker"], codec, generator, side, FRAMES + 1))
    return encoded

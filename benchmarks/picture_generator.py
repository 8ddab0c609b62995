"""What becomes of a face that is drawn freely, second by second: drift, blur, and people who were not there.

    python benchmarks/picture_generator.py CORPUS FOOTAGE ENCODER DECODER CHECKPOINT --output DIR
                                           [--seconds 8] [--clips 6] [--photo IMAGE]

``latents_to_patches``: the picture generator of ``tools.train_patches`` goes on from the first frame of ``dev``
speakers'
clips, while their clips are heard one after another. Beside it the same first frame moved by ``sft`` (same sound,
same crop), and real footage through the autoencoder, which is one second long. Per second, over clips:

identity   cosine of the evaluation's identity network to the first frame      sharpness   of the first frame's
shift      of the second's mean latents from the first frame's, in their standard deviation
face       share of frames in which the tracker finds one                      colour      farthest mean, in levels

LSE-C is the evaluation side's, of the whole. DIR gets videos and a sheet of each clip: pictures of people, to keep.
With ``--photo`` only that picture is drawn, to ``photo.png``: the frame at each second's beginning,
``latents_to_patches`` above
and ``motion`` below.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from generator import estimate
from generator_videos import glance

from flowportrait.data.corpus import FaceClip
from flowportrait.errors import BadInput
from flowportrait.evaluation.lip_sync import measure_sync
from flowportrait.evaluation.networks import load_evaluation_networks
from flowportrait.flow.noise import keyed_noise
from flowportrait.flow.schedules import noise_schedule, solve_ode
from flowportrait.media.crop import sample_crop
from flowportrait.media.faces import FaceTracker
from flowportrait.media.image import read_image
from flowportrait.media.mel import SAMPLES_PER_FRAME, log_mel, normalize_loudness
from flowportrait.media.portrait import Portrait
from flowportrait.media.video import FPS
from flowportrait.media.write_video import write_video
from flowportrait.models.arflow import ARFlow, load_generator
from flowportrait.models.patch_flow import (
    CROP_WIDTH,
    PatchFlow,
    crop_matrix,
    cropped_frames,
    decode_patches,
    latents_to_patches,
    motion_generator_features,
)
from flowportrait.models.sampler import sample_motion
from flowportrait.rendering.renderer import MotionCodec
from flowportrait.rendering.vae_codec import TinyAutoencoder, VaeCodec

CENTRAL = 2.0 / CROP_WIDTH
"""Share of the crop that the identity network sees."""
LARGE = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "footage", "encoder", "decoder", "checkpoint"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--clips", type=int, default=6)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--photo", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    codec = VaeCodec(TinyAutoencoder.read(given.encoder, given.decoder))
    model, ears = PatchFlow.from_pretrained(given.checkpoint).requires_grad_(False), load_generator("sft")
    side = model.config.grid * 2 * codec.spatial
    if given.photo:
        _, _, sound = material(given)[0]
        cv2.imwrite(str(given.output / "photo.png"), strips(model, ears, codec, given.photo, sound, side)[..., ::-1])
        return
    rows: dict[str, list[list[dict[str, float]]]] = defaultdict(list)
    sync: dict[str, list[float]] = defaultdict(list)
    for number, (name, clip, sound) in enumerate(material(given)):
        real = np.stack(list(cropped_frames(given.footage / f"{name}.mp4", clip, side, FPS)))
        first = latents_to_patches(codec.encode(real[:1]).values)
        systems = {"real, autoencoder": np.stack(list(codec.decode(codec.encode(real))))}
        systems["patches"] = paint(
            model, motion_generator_features(ears, log_mel(sound)[None]), first, codec, side, number
        )
        large = next(iter(cropped_frames(given.footage / f"{name}.mp4", clip, LARGE, 1)))
        brought = motion(large, name, sample_motion(ears, sound[None], [number])[0], side)
        systems |= {"motion": brought} if brought is not None else {}
        for system, frames in systems.items():
            seconds = np.split(frames, range(FPS, len(frames), FPS))
            rows[system].append([figures(part, real[0], first, codec) for part in seconds])
            path = given.output / f"{number}_{system.split(',')[0]}.mp4"
            large = [cv2.resize(frame, (LARGE, LARGE), interpolation=cv2.INTER_CUBIC) for frame in frames]
            write_video(path, large, sound[: len(frames) * SAMPLES_PER_FRAME])
            found = measure_sync(glance(path)) if len(frames) > FPS else None
            if found is not None:
                sync[system].append(found.lse_c)
        sheet = [np.concatenate(list(frames[::FPS]), 1) for frames in systems.values() if len(frames) > FPS]
        cv2.imwrite(str(given.output / f"{number}.png"), np.concatenate(sheet)[..., ::-1])
    for system, clips in rows.items():
        print(f"{system}: {len(clips)} clips" + (f", LSE-C {estimate(np.array(sync[system]))}" if sync[system] else ""))
        for second in range(max(map(len, clips))):
            here = [clip[second] for clip in clips if len(clip) > second]
            print(f"  second {second + 1:2d}  " + "  ".join(
                f"{key} {estimate(np.array([row[key] for row in here]))}" for key in here[0]
            ))  # fmt: skip


def material(given: argparse.Namespace) -> list[tuple[str, FaceClip, np.ndarray]]:
    """A clip to begin with, and minutes of its speaker, for as many clips as asked for, speakers in turn."""
    records = [json.loads(line) for line in (given.corpus / "clips.jsonl").read_text().splitlines()]
    speakers: dict[str, list[str]] = defaultdict(list)
    for record in records:
        if record["split"] == "dev" and record["frames"] > FPS:
            speakers[record["speaker"]].append(record["name"])
    if not speakers:
        raise BadInput(f"{given.corpus} has no clips of dev speakers: check its clips.jsonl.")
    found, turn = [], 0
    while len(found) < given.clips:
        names = speakers[list(speakers)[turn % len(speakers)]]
        first = turn // len(speakers)
        own = [FaceClip.load(given.corpus / "clips" / f"{name}.safetensors") for name in names[first:][:12]]
        sound = np.concatenate([normalize_loudness(clip.audio) for clip in own])
        found.append((names[first], own[0], np.resize(sound, given.seconds * FPS // 4 * 4 * SAMPLES_PER_FRAME)))
        turn += 1
    return found


def paint(
    model: PatchFlow, heard: torch.Tensor, first: torch.Tensor, codec: VaeCodec, side: int, seed: int
) -> np.ndarray:
    """Frames ``[T, side, side, 3]`` that go on from the latents of a first one."""
    session, drawn = model.session(model.condition(heard, first)), []
    for frame in range(heard.shape[1]):
        context, x = session.context(), keyed_noise(model.latent_dim, seed, frame)[None]
        sigmas = noise_schedule(model.config.steps, model.config.shift)
        drawn.append(session.append(solve_ode(lambda x, s, c=context: model.velocity(x, s, c), x, sigmas)))
    return np.stack(list(decode_patches(torch.cat(drawn), codec, side)))


def strips(model: PatchFlow, ears: ARFlow, codec: VaeCodec, photo: Path, sound: np.ndarray, side: int) -> np.ndarray:
    """A photo's face drawn to sound both ways, a column a second ``[2 S, seconds · S, 3]``."""
    portrait = Portrait.from_image(read_image(photo), 512, photo.name)
    large, small = (sample_crop(portrait.crop, crop_matrix(portrait.landmarks, s), s) for s in (LARGE, side))
    first = latents_to_patches(codec.encode(small[None]).values)
    rows = [paint(model, motion_generator_features(ears, log_mel(sound)[None]), first, codec, side, 0)]
    brought = motion(large, photo.name, sample_motion(ears, sound[None], [0])[0], side)
    rows += [brought] if brought is not None else []
    return np.concatenate([np.concatenate(list(frames[::FPS]), 1) for frames in rows])


def motion(picture: np.ndarray, name: str, track: torch.Tensor, side: int) -> np.ndarray | None:
    """A framed face brought to motion, in the same crop; None where no face is found in it."""
    try:
        codec = MotionCodec(Portrait.from_image(picture, LARGE, name))
    except BadInput:
        return None
    return np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in codec.decode(track)])


def figures(frames: np.ndarray, portrait: np.ndarray, first: torch.Tensor, codec: VaeCodec) -> dict[str, float]:
    """Of one second."""
    look = load_evaluation_networks().identity
    middle = frames[len(frames) // 2]
    with FaceTracker(still=True) as tracker:
        seen = [len(tracker.detect(cv2.resize(frame, (LARGE, LARGE)))) > 0 for frame in frames[::5]]
    shift = latents_to_patches(codec.encode(frames[::5]).values).mean(0) - first[0]
    found = {
        "sharpness": float(np.mean([detail(frame) for frame in frames[::5]]) / detail(portrait)),
        "shift": float(shift.square().mean().sqrt() / first.std()),
        "face": float(np.mean(seen)),
        "colour": float(np.abs(frames.mean((0, 1, 2)) - portrait.mean((0, 1))).max()),
    }
    if look is not None:
        one, other = look(np.stack([central(portrait), central(middle)]))
        found = {"identity": float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))} | found
    return found


def central(frame: np.ndarray) -> np.ndarray:
    """The face as the identity network wants it ``[128, 128, 3]``."""
    side = len(frame)
    margin = round(side * (1 - CENTRAL) / 2)
    return cv2.resize(frame[margin : side - margin, margin : side - margin], (128, 128), interpolation=cv2.INTER_CUBIC)


def detail(frame: np.ndarray) -> float:
    """Fine detail over contrast."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).std() / max(float(grey.std()), 1.0))


if __name__ == "__main__":
    main()

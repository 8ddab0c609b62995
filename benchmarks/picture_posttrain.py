"""What rewards that look at pictures do to a generator that draws them: before and after a short post-training.

    python benchmarks/picture_posttrain.py CORPUS FOOTAGE ENCODER DECODER RUN OUTPUT [--minutes 8] [--recipe nft]

RUN is what ``tools.train_patches`` left: a checkpoint and the films of its speakers, which prompts are taken from.
Measured on a second of each of ``--clips`` clips of ``dev`` speakers, with the same noise before and after:

perceptual, temporal   the rewards (0 is real motion's middle)     flicker   second difference of the mean brightness
sharpness              of the first frame's                        shift     from the first frame's latents, deviations

``real``: the clip through the autoencoder. ``still``: the first frame, which must not win. 95 % intervals over clips;
the last line is after minus before, clip by clip. OUTPUT gets the checkpoint and a sheet: real, before, after, a row
each, every sixth frame of three clips.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from generator import estimate
from picture_generator import detail

from flowportrait.data.corpus import FaceClip
from flowportrait.flow.kernels import KERNELS
from flowportrait.flow.noise import NoiseKey
from flowportrait.models.arflow import load_generator
from flowportrait.models.patch_flow import LatentClip, PatchFlow, decode_patches, encode_clip
from flowportrait.rendering.vae_codec import TinyAutoencoder, VaeCodec
from flowportrait.rewards.batch import RewardBatch
from flowportrait.rewards.registry import CompositeReward
from flowportrait.rl.plan import OdePlan
from flowportrait.rl.recipes import find_recipe
from flowportrait.rl.rollout import rollout, trajectory_of_final_samples
from flowportrait.rl.task import FilmPrompts, FilmTask
from flowportrait.rl.trainer import Trainer

FRAMES = 24
WEIGHTS = {"perceptual": 0.6, "temporal": 0.4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("corpus", "footage", "encoder", "decoder", "run", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--minutes", type=float, default=8, help="of processor time")
    parser.add_argument("--recipe", default="nft")
    parser.add_argument("--clips", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    codec = VaeCodec(TinyAutoencoder.read(given.encoder, given.decoder))
    model = PatchFlow.from_pretrained(given.run / "checkpoint")
    side = model.config.grid * 2 * codec.spatial
    films = [LatentClip(*parts) for parts in torch.load(given.run / "films.pt", weights_only=True)]
    rewards, unseen = CompositeReward.of(WEIGHTS), FilmTask(held_out(given, codec, side), FRAMES, codec, side)
    scenes = FilmPrompts(*(torch.stack(part) for part in zip(*(
        (f.features[1 : FRAMES + 1], f.latents[0], f.latents[1 : FRAMES + 1]) for f in unseen.films
    ), strict=True)))  # fmt: skip
    before = drawn(model, unseen, scenes)
    systems = {"real": scenes.real, "still": scenes.portrait[:, None].expand_as(scenes.real), "before": before}
    tables = {name: show(name, model, unseen, scenes, latents, rewards) for name, latents in systems.items()}
    after = trained(copy.deepcopy(model), FilmTask(films, FRAMES // 2, codec, side), rewards, given)
    after.save_pretrained(given.output / "checkpoint")
    systems["after"] = drawn(after, unseen, scenes)
    tables["after"] = show("after", after, unseen, scenes, systems["after"], rewards)
    change = {key: tables["after"][key] - tables["before"][key] for key in tables["after"]}
    print("after − before  " + "  ".join(f"{key} {estimate(value)}" for key, value in change.items()))
    rows = [
        np.concatenate(
            [frame for clip in systems[name][:3] for frame in list(decode_patches(clip, codec, side))[::6]], 1
        )
        for name in ("real", "before", "after")
    ]
    cv2.imwrite(str(given.output / "sheet.png"), np.concatenate(rows)[..., ::-1])


def trained(model: PatchFlow, task: FilmTask, rewards: CompositeReward, given: argparse.Namespace) -> PatchFlow:
    """The model after so many minutes."""
    recipe = replace(find_recipe(given.recipe), groups=3, group_size=8, frames=task.frames, rollout_chunks=1, updates=1)
    trainer, began = Trainer(model, task, recipe, rewards), time.process_time()
    while time.process_time() - began < 60 * given.minutes:
        metrics = trainer.step()
        told = "  ".join(f"{key} {value:.3f}" for key, value in metrics.items() if key.startswith(("reward", "grad")))
        print(f"{(time.process_time() - began) / 60:.1f} min, iteration {metrics['iteration']}: {told}", flush=True)
    model.requires_grad_(False).eval()
    return model


@torch.no_grad()
def drawn(model: PatchFlow, task: FilmTask, scenes: FilmPrompts) -> torch.Tensor:
    """Latents ``[B, T, D]`` that go on from each scene's portrait."""
    rows = torch.arange(len(scenes.portrait))
    condition = task.condition(model, scenes)
    plan = OdePlan(model.config.steps)(0, 0, len(rows), condition.chunks)
    return rollout(model, condition, rows, rows, plan, KERNELS["flow-sde"](0.5), NoiseKey(0)).latents


def show(
    name: str, model: PatchFlow, task: FilmTask, scenes: FilmPrompts, latents: torch.Tensor, rewards: CompositeReward
) -> dict[str, np.ndarray]:
    """Print a row; returns its figures over clips."""
    rows = torch.arange(len(latents))
    batch: RewardBatch = task.batch(
        model, trajectory_of_final_samples(task.condition(model, scenes), latents, rows, rows), scenes
    )
    found = {key: score.value.numpy() for key, score in rewards(batch).items()}
    clips = [np.stack(list(decode_patches(clip, task.codec, task.side))) for clip in latents]
    firsts = [next(iter(decode_patches(first[None], task.codec, task.side))) for first in scenes.portrait]
    bright = [frames.mean((1, 2, 3)) for frames in clips]
    found |= {
        "flicker": np.array([np.sqrt(np.square(np.diff(level, 2)).mean()) for level in bright]),
        "sharpness": np.array([np.mean([detail(frame) for frame in frames[::5]]) / detail(first)
                               for frames, first in zip(clips, firsts, strict=True)]),
        "shift": ((latents.mean(1) - scenes.portrait).square().mean(1).sqrt() / scenes.portrait.std(1)).numpy(),
    }  # fmt: skip
    print(f"{name:14s}  " + "  ".join(f"{key} {estimate(value)}" for key, value in found.items()), flush=True)
    return found


def held_out(given: argparse.Namespace, codec: VaeCodec, side: int) -> list[LatentClip]:
    """Clips of unseen speakers, evenly from all of them."""
    records = [json.loads(line) for line in (given.corpus / "clips.jsonl").read_text().splitlines()]
    usable = [r for r in records if r["split"] == "dev" and r["frames"] > FRAMES + 4]
    ears = load_generator("sft").requires_grad_(False)
    chosen = [usable[i] for i in np.linspace(0, len(usable) - 1, given.clips).astype(int)]
    clips = [FaceClip.load(given.corpus / "clips" / f"{record['name']}.safetensors") for record in chosen]
    return [
        encode_clip(given.footage / f"{record['name']}.mp4", clip, record["speaker"], codec, ears, side, FRAMES + 1)
        for record, clip in zip(chosen, clips, strict=True)
    ]


if __name__ == "__main__":
    main()

"""Does the latent reward's sync rise where the sync expert rises? What guidance can do follows from that.

    python benchmarks/preference_slope.py CORPUS [--reward FOLDER]

On performances of ``sft`` for speech of unseen speakers, at clean latents: the correlation of the two scores among
performances of the same sentence, the cosine between their slopes (beside that of random directions), and what the
expert says after a step along either slope (in lengths of the latents of a clip).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from preference_motion import speech

from flowportrait.models.arflow import load_generator
from flowportrait.models.sampler import sample_chunks
from flowportrait.preferences.latent_reward import SYNC_INDEX, LatentReward
from flowportrait.rewards.sync import MotionSyncExpert
from flowportrait.rl.task import encode_following_motion

TAKES, STEPS = 6, (0.5, 1.0, 2.0, 4.0)
Score = Callable[[torch.Tensor], torch.Tensor]


def main(corpus: Path, folder: Path | None) -> None:
    """Measure and print."""
    generator, expert, mel = load_generator("sft"), MotionSyncExpert.load(), speech(corpus)
    reward = LatentReward.from_pretrained(folder) if folder else LatentReward.load()
    with torch.no_grad():
        condition = generator.condition(mel)
        takes = [torch.cat([*sample_chunks(generator, condition, seeds(take, len(mel)))], 1) for take in range(TAKES)]
        start = condition.start
        latents = [encode_following_motion(generator, torch.cat([start[:, None], motion], 1)) for motion in takes]

    def by_expert(x: torch.Tensor) -> torch.Tensor:
        return expert.score(generator.to_motion(x, start), mel)[1]

    def by_reward(x: torch.Tensor) -> torch.Tensor:
        return reward(x, 0.0, condition.audio, start, latents[0]).mean[..., SYNC_INDEX].mean(1)

    with torch.no_grad():
        heard = torch.stack([by_expert(x) for x in latents], 1)
        told = torch.stack([reward(x, 0.0, condition.audio, start).clip().mean[:, SYNC_INDEX] for x in latents], 1)
    print(f"expert: std within a sentence {heard.std(1).mean():.3f}, between {heard.mean(1).std():.3f}")
    centred = [score - score.mean(1, keepdim=True) for score in (told, heard)]
    print(f"correlation within a sentence {float(torch.cosine_similarity(*(c.flatten() for c in centred), dim=0)):.3f}")
    x = latents[0]
    along = {"reward": slope(by_reward, x), "expert": slope(by_expert, x)}
    cosine = (along["reward"] * along["expert"]).sum((1, 2))
    print(f"cosine of slopes {cosine.mean():.3f} (random: {x[0].numel() ** -0.5:.3f} either way)")
    with torch.no_grad():
        for name, direction in along.items():
            gains = (float((by_expert(x + step * direction) - by_expert(x)).mean()) for step in STEPS)
            print(f"expert after steps {STEPS} along the {name}'s slope:", ", ".join(f"{gain:+.3f}" for gain in gains))


def seeds(take: int, count: int) -> list[int]:
    """Of one performance of every sentence."""
    return [1000 * take + row for row in range(count)]


def slope(score: Score, x: torch.Tensor) -> torch.Tensor:
    """Of every clip's score, of length one."""
    point = x.detach().requires_grad_()
    (found,) = torch.autograd.grad(score(point).sum(), point)
    return found / found.flatten(1).norm(dim=1)[:, None, None]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--reward", type=Path, help="another latent reward than the one that ships")
    given = parser.parse_args()
    torch.set_num_threads(1)
    main(given.corpus, given.reward)

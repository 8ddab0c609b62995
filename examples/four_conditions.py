"""Four conditions at once, after the abstract of OmniShow: an illustration of the kind, not a reproduction.

OmniShow (2604.11804) generates video from text, a reference image, sound and pose together. Here these are a word, two
numbers, a loudness per frame and a final pose, and a flow model makes the tracks of a figure. It has learned from films
that follow word and image, follow the pose loosely and ignore the sound. Each condition has a reward, measured with the
prompt's own condition and ``swapped``, with that of another prompt: where the two agree, the condition is ignored.

    python -m examples.four_conditions OUTPUT
"""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import flowportrait as fp
from flowportrait.adapters.policy import Item
from flowportrait.adapters.pretraining import fit_generator
from flowportrait.adapters.small_flow import SmallFlow
from flowportrait.rl.controlled_training import ControlledResult, train_with_control

FRAMES = 12
SPEEDS = {"still": 0.0, "left": -1.0, "right": 1.0, "far right": 2.0}
WEIGHTS = {"text": 0.2, "image": 0.2, "sound": 0.4, "pose": 0.2}


def read_conditions(texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return speed ``[B, 1]``, look ``[B, 2]``, loudness ``[B, T]`` and pose ``[B, 2]`` of prompts written in JSON."""
    rows = [json.loads(text) for text in texts]
    return {
        name: torch.tensor([[SPEEDS[row[name]]] if name == "text" else row[name] for row in rows]) for name in WEIGHTS
    }


def errors(tracks: torch.Tensor, known: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return by how much tracks ``[B, T, 6]`` (place, look 2, mouth, pose 2) miss each condition ``[B]``."""
    return {
        "text": (tracks[:, -1, 0] - tracks[:, 0, 0] - known["text"][:, 0]).abs(),
        "image": (tracks[..., 1:3] - known["image"][:, None]).abs().mean((1, 2)),
        "sound": (tracks[..., 3] - known["sound"]).abs().mean(1),
        "pose": (tracks[:, -1, 4:] - known["pose"]).abs().mean(1),
    }


def follows(name: str, swapped: bool = False) -> Callable[[fp.RewardBatch], torch.Tensor]:
    """Return the reward of one condition: minus the error for the own prompt, or for the next one of the batch."""

    def score(batch: fp.RewardBatch) -> torch.Tensor:
        texts = batch.transcript
        if swapped:
            prompts = list(dict.fromkeys(texts))
            following = dict(zip(prompts, prompts[1:] + prompts[:1], strict=True))
            texts = [following[text] for text in texts]
        return -errors(batch.data, read_conditions(texts))[name]

    score.__name__ = f"{name}, swapped" if swapped else name
    return score


def make_prompts(count: int, seed: int) -> tuple[list[Item], torch.Tensor]:
    """Return prompts with four conditions, and the tracks of a film of each that follows some of them."""
    draw = torch.Generator().manual_seed(seed)
    words = [list(SPEEDS)[index] for index in torch.randint(len(SPEEDS), (count,), generator=draw).tolist()]
    image, pose = torch.randn(2, count, 2, generator=draw)
    sound, mouth = torch.rand(2, count, FRAMES, generator=draw)
    rows = zip(words, image.tolist(), sound.tolist(), pose.tolist(), strict=True)
    texts = [json.dumps(dict(zip(WEIGHTS, row, strict=True))) for row in rows]
    time, noise = torch.linspace(0, 1, FRAMES)[:, None], torch.randn(count, 1, 5, generator=draw)
    way = (read_conditions(texts)["text"][:, None] + 0.2 * noise[..., :1]) * time
    look = (image[:, None] + 0.2 * noise[..., 1:3]).expand(-1, FRAMES, -1)
    body = (0.5 * pose[:, None] + 0.7 * noise[..., 3:]) * time
    items = [Item(f"{seed}-{index}", text) for index, text in enumerate(texts)]
    return items, torch.cat([way, look, mouth[..., None], body], -1)


def main(output: Path, iterations: int = 40) -> ControlledResult:
    """Post-train on 64 prompts, and score 32 others with their own conditions and with swapped ones."""
    model = SmallFlow((FRAMES, 6), FRAMES + 5, lambda texts: torch.cat(list(read_conditions(texts).values()), 1))
    fit_generator(model, *make_prompts(4096, 0), steps=1500)
    config = fp.PostTrainConfig.from_recipe(
        "nft", groups=16, group_size=12, updates=4, iterations=iterations, learning_rate=1e-3
    )
    rewards = {follows(name): weight for name, weight in WEIGHTS.items()}
    measures = [follows(name, swapped) for name in WEIGHTS for swapped in (False, True)]
    train, held_out = make_prompts(64, 1)[0], make_prompts(32, 2)[0]
    return train_with_control(model, rewards, config, train, held_out, output, measures=measures)


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).table())

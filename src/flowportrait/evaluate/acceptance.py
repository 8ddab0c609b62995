"""Is a sync expert to be believed? Measured on clips of speakers it never saw.

2AFC: how often the clip's own sound scores above the wrong one (chance 50 %), over whole clips. Wrong sounds:
the same sound shifted, and another sentence of the same speaker. Wrong mouths: a frozen one, and one that
follows loudness alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flowportrait.evaluate.expert_data import Item
from flowportrait.training.joint_embedding import JointEmbedding

SHIFTS = (2, 3, 5, 8, 15)
MIN_WINDOWS = 12
"""A shift is only tested on clips that keep this many windows."""
SHORT_CURVE, LONG_CURVE = 8, 15


@torch.no_grad()
def embed(net: JointEmbedding, face: torch.Tensor, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings ``[W, D]`` of one clip's face ``[T, …]`` and sound ``[4T, 80]``."""
    return net.embed_face(face[None])[0], net.embed_audio(mel[None])[0]


def shifted_score(face: torch.Tensor, voice: torch.Tensor, shift: int) -> float:
    """Mean cosine of face window t with sound window t + shift, over the windows that both have."""
    count = len(face) - abs(shift)
    start = max(0, -shift)
    return float((face[start : start + count] * voice[start + shift : start + shift + count]).sum(-1).mean())


def shift_curve(net: JointEmbedding, face: torch.Tensor, mel: torch.Tensor, reach: int) -> dict[int, float]:
    """Score per shift −reach … reach of one clip."""
    pair = embed(net, face, mel)
    return {shift: shifted_score(*pair, shift) for shift in range(-reach, reach + 1)}


def acceptance(net: JointEmbedding, items: list[Item]) -> dict[str, Any]:
    """The acceptance table over ``items``, with clip counts, each speaker apart as well."""
    rng = np.random.default_rng(0)
    pairs = [embed(net, item.views[0], item.mel) for item in items]
    rows: dict[str, list[tuple[str, float, float]]] = {}

    def compare(test: str, item: Item, right: float, wrong: float) -> None:
        rows.setdefault(test, []).append((item.speaker, right, wrong))

    for item, (face, voice) in zip(items, pairs, strict=True):
        own = shifted_score(face, voice, 0)
        for shift in SHIFTS:
            for signed in (-shift, shift):
                if len(face) - shift >= MIN_WINDOWS:
                    compare(
                        f"shift {shift}",
                        item,
                        _overlap(face, voice, signed),
                        shifted_score(face, voice, signed),
                    )
        others = [
            p
            for p, other in zip(pairs, items, strict=True)
            if other.speaker == item.speaker and other.name != item.name
        ]
        if others:
            foreign = others[rng.integers(len(others))][1]
            size = min(len(face), len(foreign))
            compare(
                "other sentence",
                item,
                shifted_score(face[:size], voice[:size], 0),
                shifted_score(face[:size], foreign[:size], 0),
            )
        middle = item.views[0][len(item) // 2]
        still = embed(net, middle[None].expand_as(item.views[0]), item.mel)[0]
        compare("still face", item, own, shifted_score(still, voice, 0))
        puppet = embed(net, item.views[0][item.puppet], item.mel)[0]
        compare("loudness jaw", item, own, shifted_score(puppet, voice, 0))
        if len(item.views) > 1:
            encoded = embed(net, item.views[1], item.mel)[0]
            compare("(re-encoded H.264 against original)", item, own, shifted_score(encoded, voice, 0))
    return {
        "tests": {test: _summary(found) for test, found in rows.items()},
        "by speaker": {
            speaker: {test: _summary([r for r in found if r[0] == speaker]) for test, found in rows.items()}
            for speaker in sorted({item.speaker for item in items})
        },
        "mean score by shift": {
            f"offsets to {reach}": _mean_curve(pairs, reach) for reach in (SHORT_CURVE, LONG_CURVE)
        },
    }


def _overlap(face: torch.Tensor, voice: torch.Tensor, shift: int) -> float:
    """The unshifted score over the same face windows that ``shifted_score`` uses."""
    count = len(face) - abs(shift)
    start = max(0, -shift)
    return shifted_score(face[start : start + count], voice[start : start + count], 0)


def _summary(found: list[tuple[str, float, float]]) -> dict[str, float]:
    right, wrong = np.array([r[1] for r in found]), np.array([r[2] for r in found])
    if not len(found):
        return {"pairs": 0}
    return {
        "pairs": len(found),
        "accuracy": round(float((right > wrong).mean() + 0.5 * (right == wrong).mean()), 3),
        "right": round(float(right.mean()), 3),
        "wrong": round(float(wrong.mean()), 3),
    }


def _mean_curve(pairs: list[tuple[torch.Tensor, torch.Tensor]], reach: int) -> dict[str, float]:
    """Mean over the clips that are long enough for every one of these shifts."""
    enough = [pair for pair in pairs if len(pair[0]) - reach >= MIN_WINDOWS]
    if not enough:
        return {}
    return {
        f"{shift:+d}": round(float(np.mean([shifted_score(*pair, shift) for pair in enough])), 3)
        for shift in range(-reach, reach + 1)
    }

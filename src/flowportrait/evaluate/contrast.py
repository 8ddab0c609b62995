"""The training loss of both sync experts: the right sound against shifted and foreign sound.

    loss = CE( scale · ⟨face_i, voice_j⟩ , j = i )

over the batch, within the clip, and within the clip with similarities averaged along the diagonal for SPAN
windows, both ways round (InfoNCE, van den Oord et al. 2018). Neighbouring windows of a clip (±1) are no
negatives: nobody hears 40 ms. A loudness-driven and a frozen mouth are further negatives for the same sound.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SPAN = 6
NEVER = -1e4
"""Similarity of a pair that does not count; finite, because 0 · ∞ would spoil the gradient of the scale."""


def contrastive_loss(face: torch.Tensor, voice: torch.Tensor, fake: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Scalar loss from unit embeddings: face and voice ``[B, W, D]``; fake ``[K, P, W, D]``: K kinds of wrong
    mouths for the first P clips' sound."""
    batch, windows, _ = face.shape
    similarity = torch.einsum("btd,csd->btcs", face, voice)
    steps = torch.arange(windows)
    near = (steps[:, None] - steps).abs() == 1
    inside = similarity[torch.arange(batch), :, torch.arange(batch)]
    wrong = torch.full((batch, windows, len(fake)), NEVER)
    wrong[: fake.shape[1]] = torch.einsum("kptd,ptd->ptk", fake, voice[: fake.shape[1]])

    same_clip = torch.eye(batch, dtype=torch.bool)
    blocked = (same_clip[:, None, :, None] & near[None, :, None, :]).flatten(2).flatten(0, 1)
    across = similarity.flatten(2).flatten(0, 1).masked_fill(blocked, NEVER)
    loss = _both_ways(across[None], wrong.flatten(0, 1)[None], scale)
    loss = loss + _both_ways(inside.masked_fill(near, NEVER), wrong, scale)

    count = windows - SPAN + 1
    span = torch.stack([inside[:, k : k + count, k : k + count] for k in range(SPAN)]).mean(0)
    span_wrong = wrong.unfold(1, SPAN, 1).mean(-1)
    return (loss + _both_ways(span.masked_fill(near[:count, :count], NEVER), span_wrong, 2 * scale)) / 3


def _both_ways(similarity: torch.Tensor, wrong: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of ``[G, N, N]`` with the diagonal right, rows and columns; wrong ``[G, N, K]`` joins the
    columns (the sound's view)."""
    groups, size, _ = similarity.shape
    target = torch.arange(size).repeat(groups)
    face_to_voice = F.cross_entropy((scale * similarity).flatten(0, 1), target)
    sound = torch.cat([similarity.mT, wrong], -1)
    return 0.5 * (face_to_voice + F.cross_entropy((scale * sound).flatten(0, 1), target))

"""What the generator hears of sound that still comes in, as ``ARFlow.listen`` would say of all of it.

    log-mel columns, as they come ─► push          heard(first, end) ─► features of these frames

Whisper's layer looks at each token once: a token's convolutions, attention and network depend on nothing later than one
token after its frame, so they are done when that is there and kept. Other front ends hear the last blocks anew each
time.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from flowportrait.generator.arflow import ARFlow
from flowportrait.generator.speech_encoder import (
    AHEAD,
    BLOCK,
    COLUMNS_PER_TOKEN,
    LEAD,
    SILENCE,
    SPEECH_DIM,
    TOKENS_PER_FRAME,
    WIDTH,
    SpeechEncoder,
)
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS

BLOCK_FRAMES = BLOCK // TOKENS_PER_FRAME
_BLOCK_COLUMNS = BLOCK_FRAMES * MELS_PER_FRAME


class Ears(Protocol):
    """mel ``[C, 80]``: columns kept, from column ``start`` on: all that another pair of ears needs to go on."""

    mel: torch.Tensor
    start: int

    def push(self, columns: torch.Tensor) -> None:
        """More columns ``[c, 80]``."""

    def heard(self, first: int, end: int) -> torch.Tensor:
        """Features ``[1, end − first, D]`` of frames, the last of which may lack its last column; no frame before
        ``first`` is asked for again."""


def ears(model: ARFlow, mel: torch.Tensor | None = None, start: int = 0) -> Ears:
    """Ears of a model, which have heard ``mel`` from column ``start`` on."""
    made = TokenEars(model.speech, start) if isinstance(model.speech, SpeechEncoder) else BlockEars(model, start)
    if mel is not None:
        made.push(mel)
    return made


class _Kept:
    """Columns from the block before the one that is asked for."""

    def __init__(self, start: int) -> None:
        self.mel, self.start = torch.zeros(0, N_MELS), start

    def push(self, columns: torch.Tensor) -> None:
        self.mel = torch.cat([self.mel, columns])

    def _forget(self, first: int) -> None:
        """Keep what frame ``first`` still reaches back to."""
        start = max(self.start, (first // BLOCK_FRAMES - 1) * _BLOCK_COLUMNS)
        self.mel, self.start = self.mel[start - self.start :], start


class BlockEars(_Kept):
    """Any front end, asked anew about the last blocks each time."""

    def __init__(self, model: ARFlow, start: int) -> None:
        super().__init__(start)
        self.model = model

    def heard(self, first: int, end: int) -> torch.Tensor:
        self._forget(first)
        mel = self.mel[: end * MELS_PER_FRAME - 1 - self.start]
        mel = F.pad(mel, (0, 0, 0, -len(mel) % (MELS_PER_FRAME * self.model.config.chunk)), value=SILENCE)
        skip = 1 if self.start + _BLOCK_COLUMNS <= first * MELS_PER_FRAME else 0
        known = self.start // MELS_PER_FRAME + skip * BLOCK_FRAMES
        return self.model.listen(mel[None], skip)[:, first - known : end - known]


class TokenEars(_Kept):
    """Whisper's layer, each token once. Frames that are not complete are zero: no chunk reaches that far."""

    def __init__(self, encoder: SpeechEncoder, start: int) -> None:
        super().__init__(start)
        self.encoder = encoder
        self.first_token = start // COLUMNS_PER_TOKEN
        self.tokens = torch.zeros(0, WIDTH)
        self.known = start // MELS_PER_FRAME + (BLOCK_FRAMES if start else 0)
        self.features = torch.zeros(0, SPEECH_DIM)

    def heard(self, first: int, end: int) -> torch.Tensor:
        self._convolve(end * MELS_PER_FRAME + LEAD + 1)
        read = self.first_token + len(self.tokens)
        complete = min(end, (read - AHEAD) // TOKENS_PER_FRAME)
        done = self.known + len(self.features)
        if complete > done:
            new = self._attend(done * TOKENS_PER_FRAME, complete * TOKENS_PER_FRAME)
            self.features = torch.cat([self.features, new.reshape(-1, SPEECH_DIM)])
        self.features, self.known = self.features[first - self.known :], first
        needed = max(self.first_token, (complete * TOKENS_PER_FRAME // BLOCK - 1) * BLOCK)
        self.tokens, self.first_token = self.tokens[needed - self.first_token :], needed
        self._forget(first)
        return F.pad(self.features[: end - first], (0, 0, 0, max(0, end - complete)))[None]

    def _convolve(self, end: int) -> None:
        """Tokens of the columns before ``end`` that are there."""
        read = self.first_token + len(self.tokens)
        column = COLUMNS_PER_TOKEN * read - LEAD
        own = self.mel[max(0, column - self.start) : end - self.start]
        own = F.pad(own, (0, 0, max(0, self.start - column), 0), value=SILENCE)
        if len(own) > 2 * LEAD:
            self.tokens = torch.cat([self.tokens, self.encoder.convolve(own[None])[0]])

    def _attend(self, first: int, end: int) -> torch.Tensor:
        """The layer's output ``[end − first, 384]`` for tokens, block by block."""
        made = []
        for block in range(first // BLOCK, -(-end // BLOCK)):
            own = slice(max(first, block * BLOCK), min(end, (block + 1) * BLOCK))
            seen = slice(max(self.first_token, (block - 1) * BLOCK), own.stop + AHEAD)
            window = self.tokens[seen.start - self.first_token : seen.stop - self.first_token]
            made.append(self.encoder.attend(window[None], seen.start, own, block)[0])
        return torch.cat(made)

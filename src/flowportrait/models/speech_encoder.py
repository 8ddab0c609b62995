"""Speech as features: the shipped encoder, and what the generator makes of it.

Speech features of a large speech recogniser: the first layer of Whisper, made streamable.

    log-mel [4T, 80] ─two convs─► 2T tokens ─one transformer layer, local─► [T, 768]   (two tokens a video frame)

Whisper (Radford et al. 2212.04356) listened to 680 000 hours of voices; footage with faces is minutes. Its encoder
looks at thirty seconds at once. Here a token looks back on 64 to 128 tokens and ahead to one, in blocks of 64 with
positions of their own, so that long speech costs no more per second than short. The look-ahead past the end of a
frame is one token, three mel columns of convolution and half a mel window: 20 + 20 + 12 ms.

What the generator learns from sound: one vector per video frame, looking at most 120 ms ahead, and where the sound
alone puts the lips.

    mel    [B, 4T, 80] ─conv, stride 4─► [B, T, d] ─┐
                                                    ├─ three residual convs (five frames wide) ─► [B, T, d]
    speech [B, T, 768] ─norm, linear───► [B, T, d] ─┘

The look-ahead is two frames of convolution (80 ms), and for log-mel two columns and half a window (20 + 12 ms), for
speech features what ``speech_encoder`` looks ahead (37 ms).

``LipReader`` is the anchor that the generator draws around: a regression of the lower face on the sound,

    μ = regression of lower face on sound          lips ≈ mean of the speaker + amplitude · g ⊙ μ

A sampled motion is μ plus what sound does not tell; drawn in full, that rest hides the articulation (its correlation
with real lips is the square of μ's). Training targets keep the share τ of it, and g gives the amplitude back:

    target = mean + amplitude · g ⊙ (μ + τ (x − μ)),      g = std(x) / std(μ + τ (x − μ))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import read_weights
from flowportrait.errors import BadInput
from flowportrait.files import write_weights
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS, slaney_mel
from flowportrait.rendering.motion_basis import LOWER

WIDTH = 384
HEADS = 6
TOKENS_PER_FRAME = 2
SPEECH_DIM = TOKENS_PER_FRAME * WIDTH
BLOCK = 64
"""Tokens (20 ms each) that share one attention window, and how many before them they also see."""
AHEAD = 1
COLUMNS_PER_TOKEN, LEAD = 2, 2
"""A token's convolutions read the columns from ``LEAD`` before its own to ``LEAD`` after."""
SILENCE = (float(np.log(1e-6)) + 9.5) / 4.0
"""Log-mel of digital silence."""
_LN_PER_UNIT, _LN_OFFSET = 4.0, 9.5
_DENSER_BINS = float(np.log(512 / 400))


class CrossAttention(nn.Module):
    """Whisper's attention of six heads, from ``queried`` to ``context``."""

    def __init__(self) -> None:
        super().__init__()
        self.k_proj = nn.Linear(WIDTH, WIDTH, bias=False)
        self.v_proj, self.q_proj, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, queried: torch.Tensor, context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # Whisper scales the queries, not their products.
        queries = self._by_head(self.q_proj(queried) * (WIDTH // HEADS) ** -0.5)
        keys, values = self._by_head(self.k_proj(context)), self._by_head(self.v_proj(context))
        attended = F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    @staticmethod
    def _by_head(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2).contiguous()


class EncoderLayer(nn.Module):
    """A layer of Whisper's encoder, weights under the names and with the numbers of ``transformers``."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = CrossAttention()
        self.self_attn_layer_norm = nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.final_layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, windows: torch.Tensor, mask: torch.Tensor, own: slice) -> torch.Tensor:
        """Tokens ``[W, K, 384]`` to the output of those in ``own`` ``[W, n, 384]``; mask ``[W, 1, n, K]``."""
        context = self.self_attn_layer_norm(windows)
        tokens = windows[:, own] + self.self_attn(context[:, own], context, mask)
        return tokens + self.fc2(F.gelu(self.fc1(self.final_layer_norm(tokens))))


class SpeechEncoder(nn.Module):
    """Frozen speech features; weights by ``load_weights`` or from a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(N_MELS, WIDTH, 3)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2)
        self.layer = EncoderLayer()
        self.register_buffer("bands", band_matrix(), persistent=False)
        self.register_buffer("position", _sinusoids(2 * BLOCK + AHEAD), persistent=False)
        self.register_buffer("typical", torch.zeros(BLOCK, WIDTH))
        self.requires_grad_(False)

    typical: torch.Tensor
    bands: torch.Tensor
    position: torch.Tensor

    def forward(self, mel: torch.Tensor, skip: int = 0) -> torch.Tensor:
        """``[B, 4T, 80]`` as ``media.mel`` makes it, to ``[B, T, 768]``; before and after it there is silence.

        The first ``skip`` blocks are only looked back on: the result starts ``skip`` · 32 frames later.
        """
        batch, columns, _ = mel.shape
        tokens = columns // 2
        blocks = -(-tokens // BLOCK)
        after = COLUMNS_PER_TOKEN * (blocks * BLOCK + AHEAD) + LEAD + 1 - columns
        x = self.convolve(F.pad(mel, (0, 0, LEAD, after), value=SILENCE))[:, : blocks * BLOCK + AHEAD]
        quiet = x.new_zeros(batch, BLOCK, WIDTH)
        windows = torch.cat([quiet, x], 1).unfold(1, 2 * BLOCK + AHEAD, BLOCK)[:, skip:].mT.flatten(0, 1)
        mask = self._mask(blocks, x.device)[skip:, :, BLOCK : 2 * BLOCK].repeat(batch, 1, 1, 1)
        # Where in its block a token lies is not speech: what is typical of the place is taken off.
        own = self._attended(windows + self.position, mask, slice(BLOCK, 2 * BLOCK)) - self.typical
        own = own.reshape(batch, (blocks - skip) * BLOCK, WIDTH)[:, : tokens - skip * BLOCK]
        return own.reshape(batch, -1, SPEECH_DIM)

    def convolve(self, mel: torch.Tensor) -> torch.Tensor:
        """Tokens ``[B, n, 384]`` of log-mel ``[B, C, 80]``; the first is that of column 2, one every second column."""
        x = whisper_scale(mel, self.bands).mT
        return F.gelu(self.conv2(F.gelu(self.conv1(x)))).mT

    def attend(self, window: torch.Tensor, start: int, own: slice, block: int) -> torch.Tensor:
        """Output ``[1, n, 384]`` of the n tokens ``own`` of a block, given the tokens from ``start`` to one past them
        ``[1, K, 384]``; equal to what ``forward`` computes for them."""
        before = (block - 1) * BLOCK
        place = torch.arange(start - before, start - before + window.shape[1], device=window.device)
        asked = slice(own.start - start, own.stop - start)
        mask = place[None] <= _frame_end(place[asked])[:, None]
        output = self._attended(window + self.position[place], mask[None, None], asked)
        return output - self.typical[own.start - block * BLOCK : own.stop - block * BLOCK]

    def _attended(self, windows: torch.Tensor, mask: torch.Tensor, own: slice) -> torch.Tensor:
        """The layer's output ``[W, n, 384]`` for each window's own tokens alone; the others are only looked at."""
        return self.layer(windows, mask, own)

    @staticmethod
    def _mask(blocks: int, device: torch.device) -> torch.Tensor:
        """Which tokens each window's tokens attend to ``[blocks, 1, Q, Q]``: up to their frame's end and one token
        more; nothing before the first sound."""
        place = torch.arange(2 * BLOCK + AHEAD, device=device)
        visible = (place[None] <= _frame_end(place)[:, None]).repeat(blocks, 1, 1)
        # A row that sees nothing would be undefined; the padding rows see themselves and are thrown away.
        visible[0] &= (place[None] >= BLOCK) | (place[None] == place[:, None])
        return visible[:, None]

    @torch.no_grad()
    def fit_typical(self, mels: Iterable[torch.Tensor]) -> None:
        """Learn the mean output at each place of a block from log-mels ``[4T, 80]``."""
        self.typical.zero_()
        total, count = torch.zeros_like(self.typical), torch.zeros(BLOCK, 1)
        for mel in mels:
            tokens = self(mel[None]).reshape(-1, WIDTH)
            place = torch.arange(len(tokens)) % BLOCK
            total.index_add_(0, place, tokens)
            count.index_add_(0, place, torch.ones(len(tokens), 1))
        self.typical.copy_(total / count.clamp_min(1))

    def load_weights(self, path: Path | None = None) -> SpeechEncoder:
        """Fill in the shipped weights, or those of a safetensors file that ``save`` wrote."""
        path = path or Path(str(files("flowportrait") / "weights" / "speech" / "model.safetensors"))
        if not path.is_file():
            raise BadInput(f"No speech encoder at {path}: give a file that import_whisper wrote.")
        self.load_state_dict(read_weights(path))
        return self

    def save(self, path: Path) -> None:
        """Write float16 safetensors under a temporary name first."""
        write_weights(path, self.state_dict())


def _frame_end(place: torch.Tensor) -> torch.Tensor:
    """The last token that those at ``place`` see: one past their frame's end."""
    return place // TOKENS_PER_FRAME * TOKENS_PER_FRAME + TOKENS_PER_FRAME - 1 + AHEAD


def _sinusoids(length: int) -> torch.Tensor:
    """Whisper's positions ``[length, 384]``."""
    rate = torch.exp(-np.log(10_000.0) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
    angle = torch.arange(length)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


def whisper_scale(mel: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    """``media.mel``'s log-mel ``[..., 80]`` as Whisper and its kin are fed ``[..., n]``, given ``band_matrix(n)``."""
    log10 = (mel @ bands.T * _LN_PER_UNIT - _LN_OFFSET - _DENSER_BINS) / np.log(10.0)
    return (log10.clamp_min(-7.5) + 4.0) / 4.0


def band_matrix(bands: int = N_MELS) -> torch.Tensor:
    """Read ``media.mel``'s 80 bands (50–7600 Hz) at the centres of Whisper's (0–8000 Hz) ``[bands, 80]``."""
    low, high, top = slaney_mel(np.array([50.0, 7600.0, 8000.0]))
    ours = np.linspace(low, high, N_MELS + 2)[1:-1]
    theirs = np.linspace(0.0, top, bands + 2)[1:-1]
    place = np.interp(theirs, ours, np.arange(N_MELS))
    lower = np.floor(place).astype(int).clip(0, N_MELS - 2)
    matrix = np.zeros((bands, N_MELS), np.float32)
    matrix[np.arange(bands), lower] = 1 - (place - lower)
    matrix[np.arange(bands), lower + 1] += place - lower
    return torch.from_numpy(matrix)


BLOCK_FRAMES = BLOCK // TOKENS_PER_FRAME
_BLOCK_COLUMNS = BLOCK_FRAMES * MELS_PER_FRAME


class FeatureStream(Protocol):
    """Front-end features of sound that still comes in, equal to those of the whole sound.

    mel ``[C, 80]``: the columns kept, from column ``start`` on: all that another stream needs to go on.
    """

    mel: torch.Tensor
    start: int

    def push(self, columns: torch.Tensor) -> None:
        """Add log-mel columns ``[c, 80]``."""

    def features(self, first: int, end: int) -> torch.Tensor:
        """Features ``[1, end − first, D]`` of frames, the last of which may lack its last column; frames before
        ``first`` are not asked for again."""


class _MelBuffer:
    """Log-mel columns from the block before the one that is asked for."""

    def __init__(self, start: int, device: torch.device) -> None:
        self.mel, self.start = torch.zeros(0, N_MELS, device=device), start

    def push(self, columns: torch.Tensor) -> None:
        self.mel = torch.cat([self.mel, columns.to(self.mel.device)])

    def _drop_before(self, first: int) -> None:
        """Keep what frame ``first`` still reaches back to."""
        start = max(self.start, (first // BLOCK_FRAMES - 1) * _BLOCK_COLUMNS)
        self.mel, self.start = self.mel[start - self.start :], start


class WindowedFeatures(_MelBuffer):
    """Features of any front end, which is run anew over the last blocks each time."""

    def __init__(
        self, encode: Callable[[torch.Tensor, int], torch.Tensor], chunk: int, start: int, device: torch.device
    ) -> None:
        """encode: ``ARFlow.audio_features``; chunk: frames that its input has to be a multiple of."""
        super().__init__(start, device)
        self.encode, self.chunk = encode, chunk

    def features(self, first: int, end: int) -> torch.Tensor:
        self._drop_before(first)
        mel = self.mel[: end * MELS_PER_FRAME - 1 - self.start]
        mel = F.pad(mel, (0, 0, 0, -len(mel) % (MELS_PER_FRAME * self.chunk)), value=SILENCE)
        skip = 1 if self.start + _BLOCK_COLUMNS <= first * MELS_PER_FRAME else 0
        known = self.start // MELS_PER_FRAME + skip * BLOCK_FRAMES
        return self.encode(mel[None], skip)[:, first - known : end - known]


class StreamingWhisperFeatures(_MelBuffer):
    """Whisper's layer, each token computed once: its convolutions, attention and network depend on nothing later than
    one token after its frame. Frames that are not complete are zero: no chunk reaches that far."""

    def __init__(self, encoder: SpeechEncoder, start: int) -> None:
        super().__init__(start, encoder.typical.device)
        self.encoder = encoder
        self.first_token = start // COLUMNS_PER_TOKEN
        self.tokens = self.mel.new_zeros(0, WIDTH)
        self.first_frame = start // MELS_PER_FRAME + (BLOCK_FRAMES if start else 0)
        self.computed = self.mel.new_zeros(0, SPEECH_DIM)

    def features(self, first: int, end: int) -> torch.Tensor:
        self._convolve(end * MELS_PER_FRAME + LEAD + 1)
        read = self.first_token + len(self.tokens)
        complete = min(end, (read - AHEAD) // TOKENS_PER_FRAME)
        done = self.first_frame + len(self.computed)
        if complete > done:
            new = self._attend(done * TOKENS_PER_FRAME, complete * TOKENS_PER_FRAME)
            self.computed = torch.cat([self.computed, new.reshape(-1, SPEECH_DIM)])
        self.computed, self.first_frame = self.computed[first - self.first_frame :], first
        needed = max(self.first_token, (complete * TOKENS_PER_FRAME // BLOCK - 1) * BLOCK)
        self.tokens, self.first_token = self.tokens[needed - self.first_token :], needed
        self._drop_before(first)
        return F.pad(self.computed[: end - first], (0, 0, 0, max(0, end - complete)))[None]

    def _convolve(self, end: int) -> None:
        """Compute the tokens of the columns before ``end`` that are there."""
        read = self.first_token + len(self.tokens)
        column = COLUMNS_PER_TOKEN * read - LEAD
        mel = self.mel[max(0, column - self.start) : end - self.start]
        mel = F.pad(mel, (0, 0, max(0, self.start - column), 0), value=SILENCE)
        if len(mel) > 2 * LEAD:
            self.tokens = torch.cat([self.tokens, self.encoder.convolve(mel[None])[0]])

    def _attend(self, first: int, end: int) -> torch.Tensor:
        """The layer's output ``[end − first, 384]`` for tokens, block by block."""
        outputs = []
        for block in range(first // BLOCK, -(-end // BLOCK)):
            own = slice(max(first, block * BLOCK), min(end, (block + 1) * BLOCK))
            reach = slice(max(self.first_token, (block - 1) * BLOCK), own.stop + AHEAD)
            window = self.tokens[reach.start - self.first_token : reach.stop - self.first_token]
            outputs.append(self.encoder.attend(window[None], reach.start, own, block)[0])
        return torch.cat(outputs)


LOOK_AHEAD_MEL = 2
LOOK_AHEAD_FRAMES = (1, 1, 0)
_KERNEL = 5
N_LIPS = LOWER.stop - LOWER.start
STYLE_MEAN, STYLE_LIPS = slice(0, N_LIPS), N_LIPS
"""Where a style keeps the speaker's mean lower face and the log of its amplitude."""
_LARGEST_GAIN = 2.0


class AudioEncoder(nn.Module):
    """Learned per-frame features, from what ``ARFlow.audio_features`` returns."""

    def __init__(self, front_end: str, width: int, dropout: float = 0.0, inputs: int = SPEECH_DIM) -> None:
        super().__init__()
        self.front_end = front_end
        if front_end == "mel":
            self.stem = nn.Conv1d(N_MELS, width, _KERNEL)
            self.stride = nn.Conv1d(width, width, MELS_PER_FRAME, stride=MELS_PER_FRAME)
        else:
            self.norm = nn.LayerNorm(inputs)
            self.read = nn.Linear(inputs, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Residual(width, ahead) for ahead in LOOK_AHEAD_FRAMES)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """``[B, T, 320]`` (four log-mel columns a frame) or ``[B, T, 768]`` (speech features, or ``inputs`` others)
        to ``[B, T, width]``."""
        if self.front_end == "mel":
            mel = features.unflatten(-1, (MELS_PER_FRAME, N_MELS)).flatten(1, 2)
            x = F.pad(mel.mT, (_KERNEL - 1 - LOOK_AHEAD_MEL, LOOK_AHEAD_MEL), mode="replicate")
            x = self.stride(F.gelu(self.stem(x)))
        else:
            x = self.read(self.dropout(self.norm(features))).mT
        for block in self.blocks:
            x = block(x)
        return self.dropout(x.mT)


class _Residual(nn.Module):
    def __init__(self, width: int, ahead: int) -> None:
        super().__init__()
        self.pad = (_KERNEL - 1 - ahead, ahead)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, _KERNEL)
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x.mT).mT
        return x + self.out(F.gelu(self.conv(F.pad(y, self.pad))))


class LipReader(nn.Module):
    """Regression of the lower face; trained before the generator, then frozen."""

    def __init__(self, front_end: str, width: int, dropout: float = 0.3, inputs: int = SPEECH_DIM) -> None:
        super().__init__()
        self.encoder = AudioEncoder(front_end, width, dropout, inputs)
        self.out = nn.Linear(width, N_LIPS)
        self.register_buffer("scale", torch.ones(N_LIPS))
        self.register_buffer("gain", torch.ones(N_LIPS))

    scale: torch.Tensor
    gain: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """μ ``[B, T, 16]`` in the speaker's own standard deviations."""
        return self.out(self.encoder(features))

    def standardise(self, motion: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Lower face of motion ``[..., T, 30]`` in the speaker's deviations ``[..., T, 16]``; style ``[..., 19]``."""
        return (motion[..., LOWER] - style[..., None, STYLE_MEAN]) / self._amplitude(style)

    def lips(self, standard: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Inverse of ``standardise``, with the gain."""
        return style[..., None, STYLE_MEAN] + self.gain * standard * self._amplitude(style)

    def _amplitude(self, style: torch.Tensor) -> torch.Tensor:
        return self.scale * style[..., None, STYLE_LIPS : STYLE_LIPS + 1].exp()

    @torch.no_grad()
    def fit_scale(self, standard: torch.Tensor) -> None:
        """Unit deviation for samples ``[N, 16]`` standardised with scale 1."""
        self.scale.copy_(standard.std(0))

    @torch.no_grad()
    def fit_gain(self, standard: torch.Tensor, predicted: torch.Tensor, share: float) -> None:
        """Gain that gives real amplitudes back; samples ``[N, 16]``, ``share`` is τ."""
        blend = predicted + share * (standard - predicted)
        self.gain.copy_((standard.std(0) / blend.std(0)).clamp(1.0, _LARGEST_GAIN))

    @torch.no_grad()
    def training_target(
        self, motion: torch.Tensor, features: torch.Tensor, style: torch.Tensor, share: float
    ) -> torch.Tensor:
        """Training target ``[B, T, 30]`` of real motion: the formula of the module on the lower face."""
        predicted = self(features)
        real = self.standardise(motion, style)
        target = motion.clone()
        target[..., LOWER] = self.lips(predicted + share * (real - predicted), style)
        return target

"""Speech features: a frozen encoder from Whisper, its streaming form, and the audio networks of the generator.

    log-mel [4T, 80] ─SpeechEncoder (frozen)─► [T, 768] ─AudioEncoder─► [T, d], one vector per video frame
                                                        └─LipRegression► the lips that the sound alone predicts

The parts in order: ``SpeechEncoder``, the first layer of Whisper made streamable; ``FeatureStream`` and its two forms,
the features of sound that still comes in; ``AudioEncoder`` and ``LipRegression``, which are trained. In all, a frame
depends on at most 120 ms of sound after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.devices import read_weights
from flowportrait.errors import BadInput
from flowportrait.files import shipped_weights, write_weights
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS, hertz_to_mel
from flowportrait.rendering.motion_basis import LOWER_FACE

# --- Whisper's first layer ---------------------------------------------------------------------------------------

WIDTH = 384
HEADS = 6
TOKENS_PER_FRAME = 2
SPEECH_DIM = TOKENS_PER_FRAME * WIDTH
BLOCK = 64
"""Tokens (20 ms each) that share one attention window; they attend to as many tokens before them too."""
LOOK_AHEAD_TOKENS = 1
"""Tokens of look-ahead."""
COLUMNS_PER_TOKEN, CONTEXT_COLUMNS = 2, 2
"""Mel columns per token; its convolutions read ``CONTEXT_COLUMNS`` columns before and after its own."""
SILENT_MEL = (float(np.log(1e-6)) + 9.5) / 4.0
"""Log-mel of digital silence."""
_LN_PER_UNIT, _LN_OFFSET = 4.0, 9.5
_DENSER_BINS = float(np.log(512 / 400))


class CrossAttention(nn.Module):
    """Whisper's attention with six heads, of the tokens ``queried`` over the tokens ``context``."""

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
    """A layer of Whisper's encoder, with the same weight names and results as in ``transformers``."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = CrossAttention()
        self.self_attn_layer_norm = nn.LayerNorm(WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.final_layer_norm = nn.LayerNorm(WIDTH)

    def forward(self, windows: torch.Tensor, mask: torch.Tensor, queried: slice) -> torch.Tensor:
        """Return the output of some tokens of each window.

        Args:
            windows: tokens ``[W, K, 384]``.
            mask: which tokens each output attends to ``[W, 1, n, K]``.
            queried: the n tokens whose output is computed; the others are context only.

        Returns:
            ``[W, n, 384]``.
        """
        context = self.self_attn_layer_norm(windows)
        tokens = windows[:, queried] + self.self_attn(context[:, queried], context, mask)
        return tokens + self.fc2(F.gelu(self.fc1(self.final_layer_norm(tokens))))


class SpeechEncoder(nn.Module):
    """Frozen speech features: the first layer of Whisper, made streamable.

        log-mel [4T, 80] ─two convs─► 2T tokens ─one local transformer layer─► [T, 768]   (two tokens per video frame)

    Whisper (Radford et al. 2212.04356) was trained on 680 000 hours of speech, while footage with faces amounts to
    minutes. Its encoder attends to thirty seconds at once. Here a token attends to 64 to 128 tokens before it and one
    after it, in blocks of 64 with their own positions, so that the cost per second does not grow with the length of
    speech. The look-ahead after the end of a frame is one token, three mel columns of convolution and half a mel
    window: 20 + 20 + 12 ms. Weights come from ``load_weights`` or a checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(N_MELS, WIDTH, 3)
        self.conv2 = nn.Conv1d(WIDTH, WIDTH, 3, stride=2)
        self.layer = EncoderLayer()
        self.register_buffer("bands", whisper_band_matrix(), persistent=False)
        self.register_buffer("position", _sinusoids(2 * BLOCK + LOOK_AHEAD_TOKENS), persistent=False)
        self.register_buffer("typical", torch.zeros(BLOCK, WIDTH))
        self.requires_grad_(False)

    typical: torch.Tensor
    bands: torch.Tensor
    position: torch.Tensor

    def forward(self, mel: torch.Tensor, skip: int = 0) -> torch.Tensor:
        """Encode log-mel, with silence before and after it.

        Args:
            mel: ``[B, 4T, 80]`` as ``media.mel`` makes it.
            skip: blocks at the beginning that serve as context only; the result starts ``skip`` · 32 frames later.

        Returns:
            Features ``[B, T − 32·skip, 768]``.
        """
        batch, columns, _ = mel.shape
        tokens = columns // 2
        blocks = -(-tokens // BLOCK)
        after = COLUMNS_PER_TOKEN * (blocks * BLOCK + LOOK_AHEAD_TOKENS) + CONTEXT_COLUMNS + 1 - columns
        x = self.convolve(F.pad(mel, (0, 0, CONTEXT_COLUMNS, after), value=SILENT_MEL))[
            :, : blocks * BLOCK + LOOK_AHEAD_TOKENS
        ]
        quiet = x.new_zeros(batch, BLOCK, WIDTH)
        windows = torch.cat([quiet, x], 1).unfold(1, 2 * BLOCK + LOOK_AHEAD_TOKENS, BLOCK)[:, skip:].mT.flatten(0, 1)
        mask = self._mask(blocks, x.device)[skip:, :, BLOCK : 2 * BLOCK].repeat(batch, 1, 1, 1)
        # The position of a token in its block says nothing about speech: the mean output there is subtracted.
        output = self.layer(windows + self.position, mask, slice(BLOCK, 2 * BLOCK)) - self.typical
        output = output.reshape(batch, (blocks - skip) * BLOCK, WIDTH)[:, : tokens - skip * BLOCK]
        return output.reshape(batch, -1, SPEECH_DIM)

    def convolve(self, mel: torch.Tensor) -> torch.Tensor:
        """Return the tokens ``[B, n, 384]`` of log-mel ``[B, C, 80]``, one at every second column from column 2 on."""
        x = to_whisper_mel(mel, self.bands).mT
        return F.gelu(self.conv2(F.gelu(self.conv1(x)))).mT

    def attend(self, window: torch.Tensor, start: int, queried: slice, block: int) -> torch.Tensor:
        """Return the output of some tokens of a block, equal to what ``forward`` computes for them.

        Args:
            window: tokens from ``start`` to one after ``queried`` ``[1, K, 384]``.
            start: position of the first token of the window.
            queried: positions of the n tokens whose output is computed.
            block: number of their block.

        Returns:
            ``[1, n, 384]``.
        """
        before = (block - 1) * BLOCK
        place = torch.arange(start - before, start - before + window.shape[1], device=window.device)
        in_window = slice(queried.start - start, queried.stop - start)
        mask = place[None] <= _last_visible(place[in_window])[:, None]
        output = self.layer(window + self.position[place], mask[None, None], in_window)
        return output - self.typical[queried.start - block * BLOCK : queried.stop - block * BLOCK]

    @staticmethod
    def _mask(blocks: int, device: torch.device) -> torch.Tensor:
        """Return the attention mask of each window ``[blocks, 1, Q, Q]``: up to one token after the end of a frame,
        and nothing before the first sound."""
        place = torch.arange(2 * BLOCK + LOOK_AHEAD_TOKENS, device=device)
        visible = (place[None] <= _last_visible(place)[:, None]).repeat(blocks, 1, 1)
        # A row without any visible token would be undefined; padding rows attend to themselves and are discarded.
        visible[0] &= (place[None] >= BLOCK) | (place[None] == place[:, None])
        return visible[:, None]

    @torch.no_grad()
    def fit_typical(self, mels: Iterable[torch.Tensor]) -> None:
        """Fit the mean output at each position of a block to log-mels ``[4T, 80]``."""
        self.typical.zero_()
        total, count = torch.zeros_like(self.typical), torch.zeros(BLOCK, 1)
        for mel in mels:
            tokens = self(mel[None]).reshape(-1, WIDTH)
            place = torch.arange(len(tokens)) % BLOCK
            total.index_add_(0, place, tokens)
            count.index_add_(0, place, torch.ones(len(tokens), 1))
        self.typical.copy_(total / count.clamp_min(1))

    def load_weights(self, path: Path | None = None) -> SpeechEncoder:
        """Load the shipped weights, or those of a safetensors file that ``save`` wrote, and return the encoder.

        Raises:
            BadInput: there is no such file.
        """
        path = path or shipped_weights("speech/model.safetensors")
        if not path.is_file():
            raise BadInput(f"No speech encoder at {path}: give a file that import_whisper wrote.")
        self.load_state_dict(read_weights(path))
        return self

    def save(self, path: Path) -> None:
        """Write float16 safetensors; the file appears only when it is complete."""
        write_weights(path, self.state_dict())


def _last_visible(place: torch.Tensor) -> torch.Tensor:
    """Return the last token that those at ``place`` attend to: one after the end of their frame."""
    return place // TOKENS_PER_FRAME * TOKENS_PER_FRAME + TOKENS_PER_FRAME - 1 + LOOK_AHEAD_TOKENS


def _sinusoids(length: int) -> torch.Tensor:
    """Return Whisper's sinusoidal positions ``[length, 384]``."""
    rate = torch.exp(-np.log(10_000.0) / (WIDTH // 2 - 1) * torch.arange(WIDTH // 2))
    angle = torch.arange(length)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


def to_whisper_mel(mel: torch.Tensor, bands: torch.Tensor) -> torch.Tensor:
    """Convert log-mel of ``media.mel`` ``[..., 80]`` to that of Whisper ``[..., n]``, given
    ``whisper_band_matrix(n)``."""
    log10 = (mel @ bands.T * _LN_PER_UNIT - _LN_OFFSET - _DENSER_BINS) / np.log(10.0)
    return (log10.clamp_min(-7.5) + 4.0) / 4.0


def whisper_band_matrix(bands: int = N_MELS) -> torch.Tensor:
    """Return the matrix ``[bands, 80]`` that interpolates the bands of ``media.mel`` (50–7600 Hz) at the centres of
    Whisper's (0–8000 Hz)."""
    low, high, top = hertz_to_mel(np.array([50.0, 7600.0, 8000.0]))
    ours = np.linspace(low, high, N_MELS + 2)[1:-1]
    theirs = np.linspace(0.0, top, bands + 2)[1:-1]
    place = np.interp(theirs, ours, np.arange(N_MELS))
    lower = np.floor(place).astype(int).clip(0, N_MELS - 2)
    matrix = np.zeros((bands, N_MELS), np.float32)
    matrix[np.arange(bands), lower] = 1 - (place - lower)
    matrix[np.arange(bands), lower + 1] += place - lower
    return torch.from_numpy(matrix)


# --- Features of live sound --------------------------------------------------------------------------------------

BLOCK_FRAMES = BLOCK // TOKENS_PER_FRAME
_BLOCK_COLUMNS = BLOCK_FRAMES * MELS_PER_FRAME


class FeatureStream(Protocol):
    """Front-end features of sound that still comes in, equal to those of the whole sound.

    Attributes:
        mel: the log-mel columns that are kept ``[C, 80]``; another stream can continue from them.
        start: position of the first of them.
    """

    mel: torch.Tensor
    start: int

    def push(self, columns: torch.Tensor) -> None:
        """Append log-mel columns ``[c, 80]``."""

    def features(self, first: int, end: int) -> torch.Tensor:
        """Return the features ``[1, end − first, D]`` of frames ``first`` to ``end``.

        The last frame may lack its last column. Frames before ``first`` cannot be requested afterwards.
        """


class _MelBuffer:
    """Log-mel columns from the block before the requested one on."""

    def __init__(self, start: int, device: torch.device) -> None:
        self.mel, self.start = torch.zeros(0, N_MELS, device=device), start

    def push(self, columns: torch.Tensor) -> None:
        self.mel = torch.cat([self.mel, columns.to(self.mel.device)])

    def _drop_before(self, first: int) -> None:
        """Drop the columns that frame ``first`` and later frames do not depend on."""
        start = max(self.start, (first // BLOCK_FRAMES - 1) * _BLOCK_COLUMNS)
        self.mel, self.start = self.mel[start - self.start :], start


class WindowedFeatures(_MelBuffer):
    """Streaming features of any front end, which is run again over the last blocks for every request."""

    def __init__(
        self, encode: Callable[[torch.Tensor, int], torch.Tensor], chunk: int, start: int, device: torch.device
    ) -> None:
        """Prepare a stream.

        Args:
            encode: ``ARFlow.audio_features``.
            chunk: the number of frames that its input must be a multiple of.
            start: position of the first column.
            device: where to keep columns.
        """
        super().__init__(start, device)
        self.encode, self.chunk = encode, chunk

    def features(self, first: int, end: int) -> torch.Tensor:
        """Return the features ``[1, end − first, D]`` of frames, see ``FeatureStream``."""
        self._drop_before(first)
        mel = self.mel[: end * MELS_PER_FRAME - 1 - self.start]
        mel = F.pad(mel, (0, 0, 0, -len(mel) % (MELS_PER_FRAME * self.chunk)), value=SILENT_MEL)
        skip = 1 if self.start + _BLOCK_COLUMNS <= first * MELS_PER_FRAME else 0
        known = self.start // MELS_PER_FRAME + skip * BLOCK_FRAMES
        return self.encode(mel[None], skip)[:, first - known : end - known]


class StreamingWhisperFeatures(_MelBuffer):
    """Streaming features of ``SpeechEncoder``, where each token is computed once.

    Nothing in a token depends on sound later than one token after its frame. Incomplete frames are zero; no chunk
    depends on them.
    """

    def __init__(self, encoder: SpeechEncoder, start: int) -> None:
        super().__init__(start, encoder.typical.device)
        self.encoder = encoder
        self.first_token = start // COLUMNS_PER_TOKEN
        self.tokens = self.mel.new_zeros(0, WIDTH)
        self.first_frame = start // MELS_PER_FRAME + (BLOCK_FRAMES if start else 0)
        self.computed = self.mel.new_zeros(0, SPEECH_DIM)

    def features(self, first: int, end: int) -> torch.Tensor:
        """Return the features ``[1, end − first, 768]`` of frames, see ``FeatureStream``."""
        self._convolve(end * MELS_PER_FRAME + CONTEXT_COLUMNS + 1)
        read = self.first_token + len(self.tokens)
        complete = min(end, (read - LOOK_AHEAD_TOKENS) // TOKENS_PER_FRAME)
        frames_done = self.first_frame + len(self.computed)
        if complete > frames_done:
            new = self._attend(frames_done * TOKENS_PER_FRAME, complete * TOKENS_PER_FRAME)
            self.computed = torch.cat([self.computed, new.reshape(-1, SPEECH_DIM)])
        self.computed, self.first_frame = self.computed[first - self.first_frame :], first
        needed = max(self.first_token, (complete * TOKENS_PER_FRAME // BLOCK - 1) * BLOCK)
        self.tokens, self.first_token = self.tokens[needed - self.first_token :], needed
        self._drop_before(first)
        return F.pad(self.computed[: end - first], (0, 0, 0, max(0, end - complete)))[None]

    def _convolve(self, end: int) -> None:
        """Compute the tokens of all available columns before ``end``."""
        read = self.first_token + len(self.tokens)
        column = COLUMNS_PER_TOKEN * read - CONTEXT_COLUMNS
        mel = self.mel[max(0, column - self.start) : end - self.start]
        mel = F.pad(mel, (0, 0, max(0, self.start - column), 0), value=SILENT_MEL)
        if len(mel) > 2 * CONTEXT_COLUMNS:
            self.tokens = torch.cat([self.tokens, self.encoder.convolve(mel[None])[0]])

    def _attend(self, first: int, end: int) -> torch.Tensor:
        """Return the layer's output ``[end − first, 384]`` for tokens, block by block."""
        outputs = []
        for block in range(first // BLOCK, -(-end // BLOCK)):
            queried = slice(max(first, block * BLOCK), min(end, (block + 1) * BLOCK))
            reach = slice(max(self.first_token, (block - 1) * BLOCK), queried.stop + LOOK_AHEAD_TOKENS)
            window = self.tokens[reach.start - self.first_token : reach.stop - self.first_token]
            outputs.append(self.encoder.attend(window[None], reach.start, queried, block)[0])
        return torch.cat(outputs)


# --- Trained audio networks --------------------------------------------------------------------------------------

LOOK_AHEAD_MEL = 2
LOOK_AHEAD_FRAMES = (1, 1, 0)
_KERNEL = 5
N_LIPS = LOWER_FACE.stop - LOWER_FACE.start
STYLE_MEAN, STYLE_LIPS = slice(0, N_LIPS), N_LIPS
"""Positions in a style of the speaker's mean lower face and of the log of its amplitude."""
_LARGEST_GAIN = 2.0


class AudioEncoder(nn.Module):
    """Trained audio features, one vector per video frame, from what ``ARFlow.audio_features`` returns.

        mel    [B, 4T, 80] ─conv, stride 4─► [B, T, d] ─┐
                                                        ├─ three residual convs (five frames wide) ─► [B, T, d]
        speech [B, T, 768] ─norm, linear───► [B, T, d] ─┘

    The look-ahead is two frames of convolution (80 ms), plus two columns and half a window for log-mel (20 + 12 ms), or
    the look-ahead of ``SpeechEncoder`` (37 ms).
    """

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
        """Encode features as ``[B, T, width]``.

        Args:
            features: ``[B, T, 320]`` (four log-mel columns per frame), or ``[B, T, inputs]`` speech features.
        """
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


class LipRegression(nn.Module):
    """A regression μ of the lower face on the sound, trained before the generator and then frozen.

        lips ≈ mean of the speaker + amplitude · g ⊙ μ

    The generator gets μ as an anchor. Sampled motion is μ plus what the sound does not predict; drawn in full, that
    residual masks the articulation (its correlation with real lips is the square of that of μ). Training targets keep
    the share τ of the residual, and the gain g restores the amplitude:

        target = mean + amplitude · g ⊙ (μ + τ (x − μ)),      g = std(x) / std(μ + τ (x − μ))
    """

    def __init__(self, front_end: str, width: int, dropout: float = 0.3, inputs: int = SPEECH_DIM) -> None:
        super().__init__()
        self.encoder = AudioEncoder(front_end, width, dropout, inputs)
        self.out = nn.Linear(width, N_LIPS)
        self.register_buffer("scale", torch.ones(N_LIPS))
        self.register_buffer("gain", torch.ones(N_LIPS))

    scale: torch.Tensor
    gain: torch.Tensor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Predict the lower face μ ``[B, T, 16]``, in standard deviations of the speaker."""
        return self.out(self.encoder(features))

    def standardise(self, motion: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Return the lower face ``[..., T, 16]`` of motion ``[..., T, 30]`` in standard deviations of the speaker, with
        style ``[..., 19]``."""
        return (motion[..., LOWER_FACE] - style[..., None, STYLE_MEAN]) / self._amplitude(style)

    def lips(self, standard: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """Return the lower face of a speaker, the inverse of ``standardise``, with the gain g."""
        return style[..., None, STYLE_MEAN] + self.gain * standard * self._amplitude(style)

    def _amplitude(self, style: torch.Tensor) -> torch.Tensor:
        return self.scale * style[..., None, STYLE_LIPS : STYLE_LIPS + 1].exp()

    @torch.no_grad()
    def fit_scale(self, standard: torch.Tensor) -> None:
        """Set the scale so that samples ``[N, 16]``, standardised with scale 1, get unit deviation."""
        self.scale.copy_(standard.std(0))

    @torch.no_grad()
    def fit_gain(self, standard: torch.Tensor, predicted: torch.Tensor, share: float) -> None:
        """Set the gain g to restore the amplitudes of real samples ``[N, 16]``; ``share`` is τ."""
        blend = predicted + share * (standard - predicted)
        self.gain.copy_((standard.std(0) / blend.std(0)).clamp(1.0, _LARGEST_GAIN))

    @torch.no_grad()
    def training_target(
        self, motion: torch.Tensor, features: torch.Tensor, style: torch.Tensor, share: float
    ) -> torch.Tensor:
        """Return the training target ``[B, T, 30]`` for real motion: the formula of the class on the lower face.

        Args:
            motion: real motion ``[B, T, 30]``.
            features: audio features ``[B, T, features]``.
            style: ``[B, 19]``.
            share: τ.
        """
        predicted = self(features)
        real = self.standardise(motion, style)
        target = motion.clone()
        target[..., LOWER_FACE] = self.lips(predicted + share * (real - predicted), style)
        return target

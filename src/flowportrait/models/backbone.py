"""The networks that an AR-Flow generator is built from, and its settings.

    chunk tokens ─► Backbone (causal decoder) ─► states h ─► FlowHead (velocity of latents z) ─► ChunkSpace ─► motion

The parts in order: ``GeneratorConfig``, the settings; ``Backbone`` and ``Decoder``, the causal transformer with its
cache of keys and values; ``FlowHead``, the velocity field of one chunk; ``ChunkSpace``, the latent space of chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from flowportrait.models.packed_networks import PackedDecoder
from flowportrait.rendering.motion_basis import MOTION_DIM

# --- Settings ----------------------------------------------------------------------------------------------------

STYLE_DIM = 19
"""Numbers of a speaking style: sixteen lower-face means of a speaker, and log amplitudes of lips, brows and head."""


@dataclass(frozen=True)
class GeneratorConfig:
    """The settings of a generator's networks and of sampling from it."""

    earlier_keys = (("sees", "use_vision"),)
    """Keys of version 0.1 and their current names."""

    hidden: int = 192
    """Width of the causal backbone."""
    layers: int = 4
    """Layers of the causal backbone."""
    heads: int = 4
    """Attention heads of the causal backbone."""
    chunk: int = 4
    """Frames drawn at a time; 4 are 160 ms."""
    window: int = 16
    """Chunks that sliding attention looks back on; 16 are 2.56 s."""
    horizon: int = 18
    """Chunks after which the backbone restarts from the last frame: the longest sequence it was trained on. Stacked
    layers of sliding attention reach further back than one window, to positions that were never trained, where the
    head's motion drifts."""
    backbone: str = ""
    """Folder or hub name of a pretrained model whose decoder takes the place of the small one that ``hidden``,
    ``layers``, ``heads`` and ``window`` describe, such as ``Qwen/Qwen3-0.6B`` or ``Qwen/Qwen2.5-Omni-3B``."""
    adapt: Literal["frozen", "lora", "full"] = "lora"
    """Which weights of a pretrained decoder are trained."""
    lora_rank: int = 16
    """Rank of the adapters, with ``adapt=lora``."""
    use_vision: bool = False
    """Prepend a portrait's tokens from the pretrained model's vision tower to the speech."""
    portrait_side: int = 112
    """Side in pixels of the portrait that the vision tower is given; 112 are 16 tokens at patches of 14 px merged by
    2."""
    front_end: Literal["whisper", "mel", "tower"] = "whisper"
    """The audio front end: Whisper's first layer, plain log-mel, or the pretrained model's own audio tower."""
    anchor: bool = True
    """Give the flow head the lip motion that a regression predicts from the sound (``LipRegression``)."""
    audio_width: int = 128
    """Width of the audio encoder."""
    head_width: int = 320
    """Width of the flow head."""
    head_depth: int = 4
    """Blocks of the flow head."""
    steps: int = 6
    """Euler steps per chunk when sampling."""
    shift: float = 1.0
    """Schedule shift when sampling; more than 1 spends more steps at high noise."""
    guidance: float = 1.5
    """Weight of classifier-free guidance on the audio; 1 is no guidance and halves the cost."""

    ease: float = 0.15
    """How much the joins between chunks are smoothed (see ``rendering/motion_filters.py``); 0 leaves chunks as they
    are drawn."""

    spread_mouth: float = 1.0
    """Standard deviation of the noise that the lower face starts from. Less noise takes away what the speech does not
    say: lips are nearer to the speaker's and differ less between seeds."""
    spread_brows: float = 1.0
    """Standard deviation of the noise that brows start from. Sampled brows, eyes and heads move less than real ones;
    more noise gives the amplitude back."""
    spread_eyes: float = 1.0
    """Standard deviation of the noise that lids and gaze start from."""
    spread_head: float = 1.0
    """Standard deviation of the noise that the head starts from."""

    @property
    def latent_dim(self) -> int:
        """Number of latents per chunk."""
        return self.chunk * MOTION_DIM


# --- The causal decoder ------------------------------------------------------------------------------------------

ROPE_BASE = 10_000.0
NORM_EPS = 1e-6
INITIAL_STD = 0.02


class Backbone(nn.Module):
    """A causal decoder that maps tokens ``[B, N, hidden]`` to states ``[B, N, hidden]``.

    State i depends on tokens i−window+1 … i. The decoder is the small ``Decoder`` of this module, or a pretrained one
    of ``transformers`` (see ``models.pretrained``) with unlimited attention, which the generator restarts every
    ``horizon`` chunks.
    """

    decoder: Any

    def __init__(self, config: GeneratorConfig, decoder: Any = None) -> None:
        super().__init__()
        self.pretrained = decoder is not None
        self.decoder = decoder or Decoder(config.hidden, config.heads, config.layers, config.window)
        self.packed: PackedDecoder | None = None

    def new_cache(self) -> Any:
        """Return an empty cache, which drops tokens that the window no longer reaches."""
        if self.pretrained:
            from transformers import DynamicCache

            return DynamicCache(config=self.decoder.config)
        return self.decoder.new_cache()

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass instead of keeping them, in training mode only."""
        if self.pretrained:
            self.decoder.activation_checkpointing_enable()
        else:
            self.decoder.recompute_activations()

    def forward(self, tokens: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """Return the states of all tokens, or of the next tokens after those in ``cache``."""
        if self.packed and cache is not None and tokens.shape[1] == 1 and not torch.is_grad_enabled():
            return self.packed(tokens, cache)
        if not self.pretrained:
            return self.decoder(tokens, cache)
        return self.decoder(
            inputs_embeds=tokens.to(self.decoder.dtype), past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state.to(tokens.dtype)


@dataclass
class CachedLayer:
    """The keys and values ``[B, heads, N, d]`` of one layer."""

    keys: torch.Tensor
    values: torch.Tensor


class KeyValueCache:
    """The keys and values that each layer's window of ``window`` tokens still reaches.

    Its attributes are those of ``transformers.DynamicCache``.
    """

    def __init__(self, layers: int, window: int) -> None:
        self.layers: list[CachedLayer | None] = [None] * layers
        self.window = window
        self.seen = 0
        """Number of tokens that went through all layers."""

    def update(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values ``[B, heads, N, d]`` of new tokens to a layer.

        Returns:
            The keys and values of the cached tokens, followed by the new ones.
        """
        cached = self.layers[layer]
        if cached is not None:
            keys, values = torch.cat([cached.keys, keys], 2), torch.cat([cached.values, values], 2)
        reachable = slice(1 - self.window, None) if self.window > 1 else slice(0)
        self.layers[layer] = CachedLayer(keys[:, :, reachable], values[:, :, reachable])
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of tokens that went through all layers, cached or not."""
        return self.seen


class RMSNorm(nn.Module):
    """Root-mean-square normalisation, x / √(mean x² + ε), with a learned scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys and rotary positions."""

    def __init__(self, hidden: int, heads: int, layer: int) -> None:
        super().__init__()
        self.head_dim, self.layer = hidden // heads, layer
        width = heads * self.head_dim
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(hidden, width, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(width, hidden, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.head_dim), RMSNorm(self.head_dim)

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], window: int, cache: KeyValueCache | None
    ) -> torch.Tensor:
        batch, tokens, _ = x.shape
        by_head = (batch, tokens, -1, self.head_dim)
        queries = rotate(self.q_norm(self.q_proj(x).view(by_head)).transpose(1, 2), rotation)
        keys = rotate(self.k_norm(self.k_proj(x).view(by_head)).transpose(1, 2), rotation)
        values = self.v_proj(x).view(by_head).transpose(1, 2)
        if cache is not None:
            keys, values = cache.update(self.layer, keys, values)
        mask = sliding_mask(tokens, keys.shape[2], window, x.device)
        causal = bool(mask is None and tokens > 1)
        attended = F.scaled_dot_product_attention(
            queries, keys, values, mask, scale=self.head_dim**-0.5, is_causal=causal
        )
        return self.o_proj(attended.transpose(1, 2).reshape(batch, tokens, -1))


class GatedNetwork(nn.Module):
    """A gated feed-forward network (SwiGLU): down(silu(gate x) · up x)."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """A decoder layer: attention and a gated network, each behind a norm and a residual connection."""

    def __init__(self, hidden: int, heads: int, layer: int) -> None:
        super().__init__()
        self.recompute = False
        self.self_attn = Attention(hidden, heads, layer)
        self.mlp = GatedNetwork(hidden, 3 * hidden)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden), RMSNorm(hidden)

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], window: int, cache: KeyValueCache | None
    ) -> torch.Tensor:
        # Inside ``forward``, so that hooks of the module (FSDP's) run once and not again in the backward pass.
        if self.recompute and self.training and cache is None:
            return checkpoint(self._forward, x, rotation, window, None, use_reentrant=False)
        return self._forward(x, rotation, window, cache)

    def _forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], window: int, cache: KeyValueCache | None
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, window, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """A small decoder with Qwen3's architecture and sliding attention over ``window`` tokens.

        x ← x + W_o attention(rope(norm(W_q u)), rope(norm(W_k u)), W_v u),   u = norm(x)
        x ← x + W_down (silu(W_gate u) · W_up u),                             u = norm(x)

    It computes the same numbers to the bit as ``transformers.Qwen3Model`` with default settings, with the same names of
    weights and the same initialisation, so that checkpoints fit either. It is written out here because importing that
    class takes longer than loading everything else that a video needs.
    """

    _no_split_modules = ("DecoderLayer",)
    """Units that FSDP shards (see ``training.distributed``)."""

    inverse_frequencies: torch.Tensor

    def __init__(self, hidden: int, heads: int, layers: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.embed_tokens = nn.Embedding(1, hidden)
        """Unused; part of every checkpoint."""
        self.layers = nn.ModuleList(DecoderLayer(hidden, heads, layer) for layer in range(layers))
        self.norm = RMSNorm(hidden)
        dims = hidden // heads
        frequencies = 1.0 / (ROPE_BASE ** (torch.arange(0, dims, 2, dtype=torch.float) / dims))
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=INITIAL_STD)

    def new_cache(self) -> KeyValueCache:
        """Return an empty cache."""
        return KeyValueCache(len(self.layers), self.window)

    def recompute_activations(self) -> None:
        """Keep no activations inside the layers in training mode; the backward pass computes them again."""
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            layer.recompute = True

    def forward(
        self, tokens: torch.Tensor, cache: KeyValueCache | None = None, place: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the states of tokens ``[B, N, hidden]``, which continue those in ``cache`` if there is one.

        Args:
            tokens: all tokens, or the next ones.
            cache: keys and values of the tokens before; it is updated.
            place: positions ``[N]`` of the tokens, by default counted on from those in the cache.
        """
        if place is None:
            place = torch.arange(tokens.shape[1], device=tokens.device) + (cache.seen if cache else 0)
        rotation = self.rotation(place, tokens.dtype)
        x = tokens
        for layer in self.layers:
            x = layer(x, rotation, self.window, cache)
        if cache is not None:
            cache.seen += tokens.shape[1]
        return self.norm(x)

    @torch.no_grad()
    def rotation(self, place: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosine and sine ``[1, 1, N, d]`` of the angle at each position."""
        angles = place[None, :, None].float() * self.inverse_frequencies.float()
        both = torch.cat([angles, angles], -1)
        return both.cos().to(dtype)[:, None], both.sin().to(dtype)[:, None]


def rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply rotary position embedding to ``[B, heads, N, d]``; the halves of d are the coordinates of each plane."""
    cosine, sine = rotation
    half = x.shape[-1] // 2
    return x * cosine + torch.cat([-x[..., half:], x[..., :half]], -1) * sine


def sliding_mask(tokens: int, keys: int, window: int, device: torch.device) -> torch.Tensor | None:
    """Return the mask ``[1, 1, tokens, keys]`` of sliding attention for the last ``tokens`` of ``keys`` positions.

    None where causal attention is the same, and for a single token, which attends to everything in the cache.
    """
    if tokens == 1 or (keys < window and tokens == keys):
        return None
    query = torch.arange(keys - tokens, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None]
    return ((key <= query) & (key > query - window))[None, None]


# --- The flow head -----------------------------------------------------------------------------------------------

FREQUENCIES = 32
"""Frequencies at which the noise level is embedded."""


class FlowHead(nn.Module):
    """The velocity field v(x_σ, σ | h) over the latents of one chunk, given the backbone's context h.

    Residual MLP blocks whose normalisation is shifted and scaled by h and σ (adaptive layer norm). A chunk is small
    enough (120 numbers) for an MLP over all of it; the pattern is that of MAR (2406.11838).
    """

    blocks: Any

    def __init__(self, latent_dim: int, context_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.read = nn.Linear(latent_dim, width)
        self.context = nn.Linear(context_dim, width)
        self.level = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.write = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.write.weight)
        nn.init.zeros_(self.write.bias)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return the velocity of latents.

        Args:
            x: ``[..., latent_dim]``.
            sigma: noise levels, broadcastable to ``[...]``.
            context: ``[..., context_dim]``.

        Returns:
            v ``[..., latent_dim]``.
        """
        condition, y = self._condition(sigma, context), self.read(x)
        for block in self.blocks:
            y = block(y, condition)
        return self.write(self.norm(y))

    def modulations(self, sigma: torch.Tensor, context: torch.Tensor) -> list[torch.Tensor]:
        """Return scale, shift and gate of each block ``[..., 3 width]``: the part of ``forward`` independent of x."""
        condition = self._condition(sigma, context)
        return [block.modulate(condition) for block in self.blocks]

    def modulated(self, x: torch.Tensor, modulations: Iterable[torch.Tensor]) -> torch.Tensor:
        """Do the rest of ``forward``, given what ``modulations`` returned."""
        y = self.read(x)
        for block, modulation in zip(self.blocks, modulations, strict=True):
            y = block.modulated(y, modulation)
        return self.write(self.norm(y))

    def _condition(self, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.context(context) + self.embed_level(sigma))

    def embed_level(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return what is added to the context for noise levels ``[...]``, ``[..., width]``."""
        result: torch.Tensor = self.level(fourier(sigma))
        return result


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return self.modulated(x, self.modulate(condition))

    def modulated(self, x: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        """Do the rest of ``forward``, given what ``modulate`` returned."""
        scale, shift, gate = modulation.chunk(3, -1)
        return x + (1 + gate) * self.mlp(self.norm(x) * (1 + scale) + shift)


def fourier(sigma: torch.Tensor) -> torch.Tensor:
    """Return sines and cosines of σ ``[...]`` at 32 frequencies, ``[..., 64]``."""
    exponent = torch.arange(FREQUENCIES, device=sigma.device) / (FREQUENCIES - 1)
    angle = sigma[..., None].float() * torch.exp(exponent * math.log(1000.0))
    return torch.cat([angle.sin(), angle.cos()], -1)


# --- The latent space of chunks ----------------------------------------------------------------------------------

_SMALLEST_SCALE = 1e-3


class ChunkSpace(nn.Module):
    """The latent space of chunks: the change since the last frame, in whitened temporal modes.

        u = motion[t … t+3] − motion[t−1]        z = Λ⁻¹ Vᵀ u   per motion number, V and Λ from the corpus

    A chunk continues where the last one ended, and what hardly varies in real motion (a head's jump within 40 ms) is
    small by construction: the sampler's errors are errors in z, of unit size, and shrink with Λ.
    """

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.register_buffer("modes", torch.eye(chunk).repeat(MOTION_DIM, 1, 1))
        self.register_buffer("scale", torch.ones(MOTION_DIM, chunk))

    modes: torch.Tensor
    scale: torch.Tensor

    @torch.no_grad()
    def fit(self, tracks: Iterable[torch.Tensor]) -> None:
        """Fit modes ``[30, chunk, chunk]`` (columns) and scales ``[30, chunk]`` to motion tracks ``[T, 30]``."""
        changes = [
            track[1:].unfold(0, self.chunk, 1) - track[: -self.chunk, :, None]
            for track in tracks
            if len(track) > self.chunk
        ]
        stacked = torch.cat(changes).permute(1, 0, 2).double()
        values, vectors = torch.linalg.eigh(stacked.mT @ stacked / stacked.shape[1])
        self.modes.copy_(vectors.flip(-1))
        self.scale.copy_(values.flip(-1).clamp_min(0).sqrt().clamp_min(_SMALLEST_SCALE))

    @property
    def step_size(self) -> torch.Tensor:
        """Typical change of each motion number over a chunk ``[30]``."""
        return self.scale.square().sum(-1).sqrt() / self.chunk**0.5

    def encode(self, motion: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Encode chunks ``[..., chunk, 30]`` after a frame ``base`` ``[..., 30]`` as latents ``[..., chunk · 30]``."""
        change = (motion - base[..., None, :]).transpose(-1, -2)
        return (torch.einsum("...df,dfk->...dk", change, self.modes) / self.scale).flatten(-2)

    def decode(self, latents: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Decode latents ``[..., chunk · 30]`` after a frame ``base`` ``[..., 30]`` to motion ``[..., chunk, 30]``."""
        coefficients = latents.unflatten(-1, (MOTION_DIM, self.chunk)) * self.scale
        return torch.einsum("...dk,dfk->...fd", coefficients, self.modes) + base[..., None, :]

    def decode_track(self, latents: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Decode latents of successive chunks ``[B, N, chunk · 30]`` after a frame ``start`` ``[B, 30]`` to motion
        ``[B, N, chunk, 30]``."""
        change = self.decode(latents, latents.new_zeros(*latents.shape[:2], MOTION_DIM))
        ends = start[:, None] + change[:, :, -1].cumsum(1)
        base = torch.cat([start[:, None], ends[:, :-1]], 1)
        return change + base[:, :, None]

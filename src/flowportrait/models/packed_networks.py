"""The networks of a generator whose weights no longer change: the same numbers with fewer operations.

    token ─► PackedDecoder: query, key and value in one product, gate and up in another ─► state
    state, levels σ_1 … σ_K ─► PackedFlowHead: scale, shift and gate of every block and level at once
    x ─► K steps through the blocks: layer norm, multiply-add, linear, SiLU, linear, multiply-add

A chunk has two rows, with and without the sound, so that most of the time is spent on starting operations and on
reading weights. Checkpoints hold float16: the flow head's weights, packed as float16, are read in half the time, and
the products are the same up to the order of their sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flowportrait.flow.schedules import VelocityField

_Linear = Callable[[torch.Tensor], torch.Tensor]


class _Packed:
    """Copies of the weights of a network; it is false as soon as one of them was changed.

    Copies and pickles of it are None, as a copy of the generator may be trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self._weights = list(network.parameters())
        self._packed_from = self._versions()

    def __bool__(self) -> bool:
        return self._versions() == self._packed_from

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def _versions(self) -> list[tuple[int, int]]:
        return [(weight.data_ptr(), weight._version) for weight in self._weights]


class PackedDecoder(_Packed):
    """``Decoder`` for one more token of sequences whose keys and values are cached."""

    def __init__(self, decoder: Any) -> None:
        """Pack the weights of a decoder in float32 on the CPU."""
        super().__init__(decoder)
        self._decoder, self._layers = decoder, [_DecoderWeights(layer) for layer in decoder.layers]
        self._head_dim = 2 * len(decoder.inverse_frequencies)

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        """Return the states ``[B, 1, hidden]`` of the next tokens ``[B, 1, hidden]``; the cache is updated."""
        x, rows, dims = tokens[:, 0], len(tokens), self._head_dim
        cosine, sine = (part[0, 0, 0] for part in self._decoder.rotation(torch.tensor([cache.seen]), x.dtype))
        for index, layer in enumerate(self._layers):
            parts = F.linear(_rms_norm(x, layer.norm), layer.attention_in).view(rows, 3, -1, dims)
            rotated = _rms_norm(parts[:, :2], layer.query_key_norm)
            # The halves of each head are the coordinates of its planes: (a, b) → (a cos − b sin, b cos + a sin).
            turned = rotated.roll(dims // 2, -1).mul_(layer.sign * sine)
            rotated = torch.addcmul(turned, rotated, cosine)
            queries, keys = rotated[:, 0, :, None], rotated[:, 1, :, None]
            keys, values = cache.update(index, keys, parts[:, 2, :, None])
            attended = F.scaled_dot_product_attention(queries, keys, values)
            x = torch.addmm(x, attended.reshape(rows, -1), layer.attention_out)
            gate, up = F.linear(_rms_norm(x, layer.second_norm), layer.gated_in).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate).mul_(up), layer.gated_out)
        cache.seen += 1
        return _rms_norm(x, self._decoder.norm.weight)[:, None]


class _DecoderWeights:
    """The weights of one decoder layer, those with the same input in one matrix."""

    def __init__(self, layer: Any) -> None:
        attention, gated = layer.self_attn, layer.mlp
        with torch.no_grad():
            self.attention_in = torch.cat([p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)])
            self.query_key_norm = torch.stack([attention.q_norm.weight, attention.k_norm.weight])[:, None]
            self.gated_in = torch.cat([gated.gate_proj.weight, gated.up_proj.weight])
            self.sign = torch.ones(attention.head_dim)
            self.sign[: attention.head_dim // 2] = -1
        self.attention_out, self.gated_out = attention.o_proj.weight.detach().t(), gated.down_proj.weight.detach().t()
        self.norm, self.second_norm = layer.input_layernorm.weight, layer.post_attention_layernorm.weight


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return x / √(mean x² + ε) with a scale, as ``RMSNorm`` does."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x * torch.rsqrt(torch.addcmul(_EPS, size, size, value=1 / x.shape[-1])) * weight


_EPS = torch.tensor(1e-6)


class PackedFlowHead(_Packed):
    """``FlowHead`` for sampling."""

    def __init__(self, head: Any) -> None:
        """Pack the weights of a head in float32 on the CPU."""
        super().__init__(head)
        self._head = head
        self._blocks = [
            (_packed(block.modulate), _packed(block.mlp[0]), _packed(block.mlp[2])) for block in head.blocks
        ]
        self._levels: dict[tuple[float, ...], torch.Tensor] = {}

    @torch.no_grad()
    def velocity_field(
        self, sigmas: torch.Tensor, context: torch.Tensor, combine: Callable[[torch.Tensor], torch.Tensor]
    ) -> VelocityField:
        """Return the velocity as a function of latents ``[B, D]`` and one of the levels.

        If B is 1, the latents may be those of any number of candidates in the same context.

        Args:
            sigmas: noise levels ``[K]``.
            context: ``[B, G, C]``.
            combine: of the velocities of all branches ``[B, G, D]``, one ``[B, D]``.
        """
        head, levels = self._head, sigmas.tolist()
        batch, branches, _ = context.shape
        rows, width = batch * branches, head.norm.normalized_shape
        inputs = F.silu(head.context(context).reshape(1, rows, -1) + self._level_rows(sigmas)[:, None])
        steps: list[list[tuple[torch.Tensor, ...]]] = [[] for _ in levels]
        for modulate, *_ in self._blocks:
            scale, shift, gate = modulate(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2]).chunk(3, -1)
            for step, *parts in zip(steps, scale + 1, shift, gate + 1, strict=True):
                step.append(tuple(parts))
        by_level = dict(zip(levels, steps, strict=True))

        @torch.no_grad()
        def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            y = head.read(x)
            if branches > 1:
                y = y.repeat_interleave(branches, 0)
            for (_, wider, narrower), parts in zip(self._blocks, by_level[sigma.item()], strict=True):
                scale, shift, gate = parts if len(y) == rows else (part.repeat(len(x), 1) for part in parts)
                hidden = F.silu(wider(torch.addcmul(shift, F.layer_norm(y, width), scale)), inplace=True)
                y = torch.addcmul(y, narrower(hidden), gate)
            return combine(head.write(head.norm(y)).unflatten(0, (len(x), branches)))

        return velocity

    def _level_rows(self, sigmas: torch.Tensor) -> torch.Tensor:
        """Return what the head adds for each noise level ``[K, width]``, computed once for a schedule."""
        levels = tuple(sigmas.tolist())
        if levels not in self._levels:
            self._levels = {levels: self._head.embed_level(sigmas)}
        return self._levels[levels]


def pack_networks(model: Any) -> Any:
    """Return a generator, which samples with packed networks from now on.

    Only networks in float32 on the CPU are packed, without hooks or adapters.

    The weights should not change any more; where they do, the networks themselves are used again.
    """
    model.packed_head = PackedFlowHead(model.head) if _is_plain(model.head) else None
    backbone = model.backbone
    backbone.packed = PackedDecoder(backbone.decoder) if not backbone.pretrained and _is_plain(backbone) else None
    return model


def _is_plain(network: nn.Module) -> bool:
    weights, layers = list(network.parameters()), list(network.modules())
    return not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers) and all(
        type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu"
        for weight in weights
    )


def _packed(layer: nn.Linear) -> _Linear:
    """Return the layer as a function: with packed weights where float16 holds them exactly and PyTorch packs them."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if not torch.equal(weight.half().float(), weight):
        return layer
    try:
        packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        packed_linear = torch.ops.quantized.linear_dynamic_fp16.default
        packed_linear(weight[:1], packed)
    except (RuntimeError, NotImplementedError):
        return layer

    def linear(x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = packed_linear(x, packed)
        return result

    return linear

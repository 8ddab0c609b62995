"""The causal backbone: a ``transformers`` decoder over chunk tokens with sliding attention and a KV cache.

A small Qwen3 decoder made from a config, or a pretrained one (``pretrained``), whose attention is its own: the
generator starts it afresh every ``horizon`` chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, Qwen3Config, Qwen3Model

from flowportrait.generator.config import GeneratorConfig


class Backbone(nn.Module):
    """Tokens ``[B, N, hidden]`` to states ``[B, N, hidden]``; state i depends on tokens i−window+1 … i."""

    decoder: Any

    def __init__(self, config: GeneratorConfig, decoder: Any = None) -> None:
        super().__init__()
        self.decoder = decoder or Qwen3Model(
            Qwen3Config(
                vocab_size=1,
                hidden_size=config.hidden,
                intermediate_size=3 * config.hidden,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                head_dim=config.hidden // config.heads,
                layer_types=["sliding_attention"] * config.layers,
                use_sliding_window=True,
                sliding_window=config.window,
                max_window_layers=0,
                attention_dropout=0.0,
                tie_word_embeddings=True,
            )
        )

    def new_cache(self) -> DynamicCache:
        """An empty cache that forgets what the window no longer reaches."""
        return DynamicCache(config=self.decoder.config)

    def forward(self, tokens: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """All tokens at once, or the next ones after those in ``cache``."""
        return self.decoder(
            inputs_embeds=tokens.to(self.decoder.dtype), past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state.to(tokens.dtype)

"""The causal backbone: a decoder over chunk tokens with a KV cache, a small one (``decoder``) or a pretrained one of
``transformers`` (``pretrained``), whose attention reaches back as far as it likes: the generator starts it afresh every
``horizon`` chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flowportrait.generator.config import GeneratorConfig
from flowportrait.generator.decoder import Decoder


class Backbone(nn.Module):
    """Tokens ``[B, N, hidden]`` to states ``[B, N, hidden]``; state i depends on tokens i−window+1 … i."""

    decoder: Any

    def __init__(self, config: GeneratorConfig, decoder: Any = None) -> None:
        super().__init__()
        self.pretrained = decoder is not None
        self.decoder = decoder or Decoder(config.hidden, config.heads, config.layers, config.window)

    def new_cache(self) -> Any:
        """An empty cache that forgets what the window no longer reaches."""
        if self.pretrained:
            from transformers import DynamicCache

            return DynamicCache(config=self.decoder.config)
        return self.decoder.new_cache()

    def recompute_activations(self) -> None:
        """Trade the memory of activations for a second forward pass, in training mode only."""
        if self.pretrained:
            self.decoder.activation_checkpointing_enable()
        else:
            self.decoder.recompute_activations()

    def forward(self, tokens: torch.Tensor, cache: Any = None) -> torch.Tensor:
        """All tokens at once, or the next ones after those in ``cache``."""
        if not self.pretrained:
            return self.decoder(tokens, cache)
        return self.decoder(
            inputs_embeds=tokens.to(self.decoder.dtype), past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state.to(tokens.dtype)

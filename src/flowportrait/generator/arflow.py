"""AR-Flow: an autoregressive flow generator of motion latents.

    token_i = audio of chunk i  +  motion of chunk i−1  +  style       (chunk: 4 frames × 30 numbers)
    h_i     = backbone(token_1 … token_i), where sound puts the lips   (causal, KV cache; see ``lip_reader``)
    z_i     = flow head integrated from noise, σ: 1 → 0, given h_i
    motion_i = last frame of motion_{i−1} + decode(z_i)                (see ``chunk_space``)

``contexts`` gives all h_i in one teacher-forced pass over known latents; ``Session`` gives them one by one while
the latents come into being. Both agree up to rounding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from flowportrait.codec.basis import BLINK, BROWS, GAZE, HEAD, LOWER, MOTION_DIM
from flowportrait.errors import BadInput
from flowportrait.flow.solver import Velocity
from flowportrait.generator import checkpoint
from flowportrait.generator.audio_encoder import AudioEncoder
from flowportrait.generator.backbone import Backbone
from flowportrait.generator.chunk_space import ChunkSpace
from flowportrait.generator.condition import Condition
from flowportrait.generator.config import STYLE_DIM, GeneratorConfig
from flowportrait.generator.flow_head import FlowHead
from flowportrait.generator.lip_reader import N_LIPS, LipReader
from flowportrait.generator.pretrained import AudioTower, Foundation, VisionTower, load_foundation
from flowportrait.generator.session import Session
from flowportrait.generator.speech_encoder import BLOCK, SPEECH_DIM, TOKENS_PER_FRAME, SpeechEncoder
from flowportrait.media.mel import MELS_PER_FRAME, N_MELS


class ARFlow(nn.Module):
    """The generator's networks. A policy: ``condition``, ``contexts`` or ``session``, ``velocity``."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        foundation = load_foundation(config) if config.backbone else None
        hidden = foundation.decoder.config.hidden_size if foundation else config.hidden
        self.speech, features = front_end(config, foundation)
        reader = LipReader(config.front_end, config.audio_width, inputs=features) if config.anchor else None
        self.lip_reader = reader.requires_grad_(False) if reader else None
        self.audio_encoder = AudioEncoder(config.front_end, config.audio_width, inputs=features)
        self.audio_in = nn.Linear(config.chunk * config.audio_width, hidden)
        self.silence = nn.Parameter(torch.zeros(config.chunk * (config.audio_width + config.anchor * N_LIPS)))
        self.motion_in = nn.Linear(config.latent_dim, hidden)
        self.style_in = nn.Linear(STYLE_DIM, hidden)
        self.backbone = Backbone(config, foundation.decoder if foundation else None)
        self.vision = VisionTower(foundation.vision, config.portrait_side) if foundation and config.sees else None
        told = hidden + config.anchor * config.latent_dim
        self.head = FlowHead(config.latent_dim, told, config.head_width, config.head_depth)
        self.space = ChunkSpace(config.chunk)
        self.register_buffer("rest_style", torch.zeros(STYLE_DIM))
        self.train()

    rest_style: torch.Tensor

    @property
    def latent_dim(self) -> int:
        """D, numbers per chunk."""
        return self.config.latent_dim

    def train(self, mode: bool = True) -> ARFlow:
        """As ``nn.Module.train``; what is frozen always hears the same."""
        super().train(mode)
        for frozen in (self.speech, self.lip_reader, self.vision):
            if frozen is not None:
                frozen.eval()
        return self

    def listen(self, mel: torch.Tensor, skip: int = 0) -> torch.Tensor:
        """What is heard, before anything is learned from it ``[B, T, features]``, from log-mel ``[B, 4T, 80]``; the
        first ``skip`` blocks of 32 frames are left out of the result."""
        if self.speech is not None:
            return self.speech(mel, skip)
        frames = mel.reshape(len(mel), -1, MELS_PER_FRAME * mel.shape[-1])
        return frames[:, skip * BLOCK // TOKENS_PER_FRAME :]

    def look(self, crops: list[np.ndarray]) -> torch.Tensor:
        """Portrait crops ``[S, S, 3]`` uint8 to the tokens ``[B, P, hidden]`` that ``condition`` takes.

        Raises:
            BadInput: this model does not see.
        """
        if self.vision is None:
            raise BadInput("This generator does not see: train one with sees=true over a backbone with a vision tower.")
        return self.vision(crops)

    def condition(
        self,
        mel: torch.Tensor,
        style: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        drop_audio: torch.Tensor | None = None,
        portrait: torch.Tensor | None = None,
    ) -> Condition:
        """Encode log-mel ``[B, 4T, 80]`` (T a multiple of the chunk) and style ``[B, 19]`` (default: the typical
        speaker); ``start`` ``[B, 30]`` is the frame before the first (default: the resting face). ``drop_audio``
        ``[B]`` bool replaces the audio by the learned no-audio vector; ``portrait`` ``[B, P, hidden]`` is what ``look``
        returned."""
        return self.condition_on(self.listen(mel), style, start, drop_audio, portrait)

    def condition_on(
        self,
        heard: torch.Tensor,
        style: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        drop_audio: torch.Tensor | None = None,
        portrait: torch.Tensor | None = None,
    ) -> Condition:
        """``condition`` for what ``listen`` returned ``[B, T, features]``."""
        batch, frames, _ = heard.shape
        chunk = self.config.chunk
        if frames % chunk:
            raise ValueError(f"{frames} frames are not whole chunks of {chunk}")
        if style is None:
            style = self.rest_style.expand(batch, -1)
        if start is None:
            start = heard.new_zeros(batch, MOTION_DIM)
        audio = self.audio_encoder(heard).reshape(batch, frames // chunk, -1)
        if self.lip_reader is not None:
            lips = self.lip_reader.lips(self.lip_reader(heard), style)
            audio = torch.cat([audio, lips.reshape(batch, frames // chunk, -1)], -1)
        if drop_audio is not None:
            audio = torch.where(drop_audio[:, None, None], self.silence, audio)
        told = self.style_in(style)
        if portrait is not None:
            told = torch.cat([told[:, None], portrait], 1)
        return Condition(audio, told, start)

    def tokens(self, condition: Condition, previous: torch.Tensor) -> torch.Tensor:
        """Backbone input for chunks whose predecessors' embedded motion are ``previous`` ``[B, N, hidden]``."""
        heard = condition.audio[..., : self.audio_in.in_features]
        return self.audio_in(heard) + previous + condition.speaker

    def told(self, state: torch.Tensor, condition: Condition, last: torch.Tensor) -> torch.Tensor:
        """A chunk's context: the backbone's state ``[B, N, hidden]`` and, with an anchor, the latents that would take
        the lips from the frame before ``last`` ``[B, N, 30]`` to where the sound alone puts them."""
        if not self.config.anchor:
            return state
        lips = condition.audio[..., self.audio_in.in_features :].unflatten(-1, (self.config.chunk, N_LIPS))
        motion = last[..., None, :].repeat(*(1,) * (last.dim() - 1), self.config.chunk, 1)
        motion[..., LOWER] = lips
        return torch.cat([state, self.space.encode(motion, last)], -1)

    def contexts(self, condition: Condition, latents: torch.Tensor) -> torch.Tensor:
        """What ``velocity`` needs to know at every chunk ``[B, N, G, C]``, given the clean latents
        ``[B, N, chunk·30]`` of all: heard, and with guidance also not heard (G = 1 or 2)."""
        motion, chunk = self.to_motion(latents, condition.start), self.config.chunk
        stretches = []
        for first in range(0, latents.shape[1], self.config.horizon):
            last = min(first + self.config.horizon, latents.shape[1])
            before = motion[:, first * chunk - 1] if first else condition.start
            stretch = condition._replace(audio=condition.audio[:, first:last], start=before)
            own = motion[:, first * chunk : (last - 1) * chunk]
            stretches.append(torch.stack([self.contexts_after(b, own) for b in self.branches(stretch)], -2))
        return torch.cat(stretches, 1)

    def branches(self, condition: Condition) -> tuple[Condition, ...]:
        """The conditions that guidance combines; the condition alone where guidance is 1."""
        if self.config.guidance == 1.0:
            return (condition,)
        return condition, condition._replace(audio=self.silence.expand_as(condition.audio))

    def contexts_after(self, condition: Condition, motion: torch.Tensor) -> torch.Tensor:
        """Context of every chunk, given the motion ``[B, (N−1)·chunk, 30]`` that all but the first follow."""
        lead = condition.start[:, None].expand(-1, self.config.chunk, -1)
        before = torch.cat([lead, motion], 1)
        tokens = torch.cat([condition.portrait, self.tokens(condition, self.embed_motion(before))], 1)
        state = self.backbone(tokens)[:, condition.portrait.shape[1] :]
        return self.told(state, condition, before[:, self.config.chunk - 1 :: self.config.chunk])

    def embed_motion(self, motion: torch.Tensor) -> torch.Tensor:
        """Motion ``[B, N·chunk, 30]`` to one vector per chunk ``[B, N, hidden]``."""
        return self.motion_in(motion.reshape(len(motion), -1, self.config.latent_dim))

    def begin(self, noise: torch.Tensor) -> torch.Tensor:
        """What a chunk starts from at σ = 1, given unit noise ``[..., chunk·30]``: wider where the config says so."""
        config, spread = self.config, noise.new_ones(MOTION_DIM)
        spread[BROWS], spread[HEAD] = config.spread_brows, config.spread_head
        spread[BLINK] = spread[GAZE] = config.spread_eyes
        return noise * spread.repeat_interleave(config.chunk)

    def velocity(self, x: torch.Tensor, sigma: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """v ``[..., chunk·30]`` at x and noise level sigma (scalar or ``[...]``), context ``[..., G, C]``.

        With guidance w:  v = v_deaf + w (v_heard − v_deaf).
        """
        level = sigma.expand(x.shape[:-1])
        return self._guided(self.head(x[..., None, :], level[..., None], context))

    def field(self, sigmas: torch.Tensor, context: torch.Tensor) -> Velocity:
        """``velocity`` of one context for a walk along the levels ``sigmas`` ``[K]``: what the head is told at each is
        computed for all of them at once, a third of what a step costs."""
        told = self.head.told(sigmas.reshape(-1, *(1,) * (context.dim() - 1)), context[None])
        steps = {float(sigma): part for sigma, *part in zip(sigmas, *told, strict=True)}
        return lambda x, sigma: self._guided(self.head.draw(x[..., None, :], steps[float(sigma)]))

    def _guided(self, branches: torch.Tensor) -> torch.Tensor:
        """Velocities ``[..., G, chunk·30]`` heard, and not heard, to one."""
        if branches.shape[-2] == 1:
            return branches[..., 0, :]
        heard, deaf = branches.unbind(-2)
        return deaf + self.config.guidance * (heard - deaf)

    def recompute_activations(self) -> None:
        """Trade the memory of the backbone's activations for a second forward pass, in training mode only."""
        self.backbone.recompute_activations()

    def compile_head(self) -> None:
        """Let ``torch.compile`` fuse the flow head as ``velocity`` calls it, most of what a sampler step costs; the
        first step then takes long, and a C++ compiler has to be there. Checkpoints do not change."""
        self.head.compile(dynamic=False)

    def session(self, condition: Condition) -> Session:
        """Start generating from nothing."""
        return Session(self, condition)

    def to_motion(self, latents: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
        """Latents ``[B, N, chunk·30]`` to motion ``[B, T, 30]`` after the frame ``start`` (default: at rest)."""
        if start is None:
            start = latents.new_zeros(len(latents), MOTION_DIM)
        return self.space.decode_track(latents, start).flatten(1, 2)

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json``, float16 ``model.safetensors`` and a model card (see ``checkpoint``)."""
        checkpoint.save(self, folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> ARFlow:
        """Read what ``save_pretrained`` wrote, in float32.

        Raises:
            BadInput: the folder holds no checkpoint or one of another shape, or its backbone cannot be loaded.
        """
        model = cls(checkpoint.read_config(folder))
        checkpoint.fill(model, folder)
        return model.eval()


def front_end(config: GeneratorConfig, foundation: Foundation | None) -> tuple[nn.Module | None, int]:
    """What listens before anything is learned, None for plain log-mel, and its features per frame."""
    if config.front_end == "mel":
        return None, MELS_PER_FRAME * N_MELS
    if config.front_end == "whisper":
        return SpeechEncoder(), SPEECH_DIM
    if foundation is None or foundation.audio is None:
        raise BadInput("front_end=tower needs a backbone with an audio tower, such as backbone=Qwen/Qwen2.5-Omni-3B.")
    tower = AudioTower(foundation.audio)
    return tower, tower.features

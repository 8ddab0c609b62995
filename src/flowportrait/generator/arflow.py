"""AR-Flow: an autoregressive flow generator of motion latents.

    token_i = audio of chunk i  +  motion of chunk i−1  +  style       (chunk: 4 frames × 30 numbers)
    h_i     = backbone(token_1 … token_i), where sound puts the lips   (causal, KV cache; see ``lip_reader``)
    z_i     = flow head integrated from noise, σ: 1 → 0, given h_i
    motion_i = last frame of motion_{i−1} + decode(z_i)                (see ``chunk_space``)

``contexts`` gives all h_i in one teacher-forced pass over known latents; ``Session`` gives them one by one while
the latents come into being. Both agree up to rounding.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flowportrait.codec.basis import BLINK, BROWS, GAZE, HEAD, LOWER, MOTION_DIM
from flowportrait.errors import BadInput
from flowportrait.generator.audio_encoder import AudioEncoder
from flowportrait.generator.backbone import Backbone
from flowportrait.generator.chunk_space import ChunkSpace
from flowportrait.generator.config import STYLE_DIM, GeneratorConfig
from flowportrait.generator.flow_head import FlowHead
from flowportrait.generator.lip_reader import N_LIPS, LipReader
from flowportrait.generator.speech_encoder import BLOCK, TOKENS_PER_FRAME, SpeechEncoder
from flowportrait.media.mel import MELS_PER_FRAME


class Condition(NamedTuple):
    """What is known before the first chunk: audio ``[B, N, chunk·d]`` (with an anchor, followed by where the sound puts
    the lips, ``chunk·16``) and style ``[B, hidden]`` embeddings, and the motion frame to start from ``[B, 30]``."""

    audio: torch.Tensor
    style: torch.Tensor
    start: torch.Tensor

    def repeat(self, times: int) -> Condition:
        """Each item ``times`` times in a row: siblings of a group share one encoding."""
        return Condition(*(part.repeat_interleave(times, 0) for part in self))

    def select(self, rows: torch.Tensor) -> Condition:
        """The items at ``rows``."""
        return Condition(*(part[rows] for part in self))

    @property
    def chunks(self) -> int:
        """N, how many chunks there are to generate."""
        return self.audio.shape[1]


class ARFlow(nn.Module):
    """The generator's networks. A policy: ``condition``, ``contexts`` or ``session``, ``velocity``."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.speech = SpeechEncoder() if config.front_end == "whisper" else None
        reader = LipReader(config.front_end, config.audio_width) if config.anchor else None
        self.lip_reader = reader.requires_grad_(False) if reader else None
        self.audio_encoder = AudioEncoder(config.front_end, config.audio_width)
        self.audio_in = nn.Linear(config.chunk * config.audio_width, config.hidden)
        self.silence = nn.Parameter(torch.zeros(config.chunk * (config.audio_width + config.anchor * N_LIPS)))
        self.motion_in = nn.Linear(config.latent_dim, config.hidden)
        self.style_in = nn.Linear(STYLE_DIM, config.hidden)
        self.backbone = Backbone(config)
        told = config.hidden + config.anchor * config.latent_dim
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
        for frozen in (self.speech, self.lip_reader):
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

    def condition(
        self,
        mel: torch.Tensor,
        style: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        drop_audio: torch.Tensor | None = None,
    ) -> Condition:
        """Encode log-mel ``[B, 4T, 80]`` (T a multiple of the chunk) and style ``[B, 19]`` (default: the typical
        speaker); ``start`` ``[B, 30]`` is the frame before the first (default: the resting face). ``drop_audio``
        ``[B]`` bool replaces the audio by the learned no-audio vector."""
        return self.condition_on(self.listen(mel), style, start, drop_audio)

    def condition_on(
        self,
        heard: torch.Tensor,
        style: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        drop_audio: torch.Tensor | None = None,
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
        return Condition(audio, self.style_in(style), start)

    def tokens(self, condition: Condition, previous: torch.Tensor) -> torch.Tensor:
        """Backbone input for chunks whose predecessors' embedded motion are ``previous`` ``[B, N, hidden]``."""
        heard = condition.audio[..., : self.audio_in.in_features]
        return self.audio_in(heard) + previous + condition.style[:, None]

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
        state = self.backbone(self.tokens(condition, self.embed_motion(before)))
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
        heard = self.head(x, level, context[..., 0, :])
        if context.shape[-2] == 1:
            return heard
        deaf = self.head(x, level, context[..., 1, :])
        return deaf + self.config.guidance * (heard - deaf)

    def recompute_activations(self) -> None:
        """Trade the memory of the backbone's activations for a second forward pass, in training mode only."""
        self.backbone.decoder.activation_checkpointing_enable()

    def session(self, condition: Condition) -> Session:
        """Start generating from nothing."""
        return Session(self, condition)

    def to_motion(self, latents: torch.Tensor, start: torch.Tensor | None = None) -> torch.Tensor:
        """Latents ``[B, N, chunk·30]`` to motion ``[B, T, 30]`` after the frame ``start`` (default: at rest)."""
        if start is None:
            start = latents.new_zeros(len(latents), MOTION_DIM)
        return self.space.decode_track(latents, start).flatten(1, 2)

    def save_pretrained(self, folder: Path) -> None:
        """Write ``config.json`` and float16 ``model.safetensors``; each file appears only when complete."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        partial = folder / "model.partial"
        save_file(weights, str(partial))
        os.replace(partial, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path) -> ARFlow:
        """Read what ``save_pretrained`` wrote, in float32.

        Raises:
            BadInput: the folder holds no checkpoint or one of another shape.
        """
        if not (folder / "config.json").is_file() or not (folder / "model.safetensors").is_file():
            raise BadInput(f"No checkpoint in {folder}: it needs config.json and model.safetensors.")
        try:
            model = cls(GeneratorConfig(**json.loads((folder / "config.json").read_text())))
            weights = load_file(str(folder / "model.safetensors"))
            model.load_state_dict({name: value.float() for name, value in weights.items()})
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(f"The checkpoint in {folder} does not fit this version: {reason}") from error
        return model.eval()


class Session:
    """Generation under way: ``context`` of the next chunk, then ``append`` its latents; repeat. ``extend`` adds sound
    that was not there at the start."""

    def __init__(self, model: ARFlow, condition: Condition) -> None:
        self.model = model
        self.branches = model.branches(condition)
        self.position = 0
        self.dropped = 0
        self.last = condition.start
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Forget everything but the last frame."""
        self.caches = [self.model.backbone.new_cache() for _ in self.branches]
        self.previous = self.last[:, None].expand(-1, self.model.config.chunk, -1)

    def extend(self, audio: torch.Tensor) -> None:
        """More embedded audio ``[B, n, ·]`` after what is there; what was used up is let go."""
        heard = self.branches[0]
        left = heard.audio[:, self.position - self.dropped :]
        self.dropped = self.position
        self.branches = self.model.branches(heard._replace(audio=torch.cat([left, audio], 1)))

    def context(self) -> torch.Tensor:
        """Context of the next chunk ``[B, G, C]``. Call once per chunk."""
        now = slice(self.position - self.dropped, self.position - self.dropped + 1)
        embedded = self.model.embed_motion(self.previous)
        states = []
        for branch, cache in zip(self.branches, self.caches, strict=True):
            heard = branch._replace(audio=branch.audio[:, now])
            state = self.model.backbone(self.model.tokens(heard, embedded), cache)
            states.append(self.model.told(state, heard, self.last[:, None])[:, 0])
        return torch.stack(states, -2)

    def append(self, latents: torch.Tensor) -> torch.Tensor:
        """Accept the chunk's clean latents ``[B, chunk·30]``; returns its motion ``[B, chunk, 30]``."""
        return self.accept(self.model.space.decode(latents, self.last))

    def accept(self, motion: torch.Tensor) -> torch.Tensor:
        """Go on after this motion ``[B, chunk, 30]`` of the chunk whose context was asked for last."""
        self.previous, self.last = motion, motion[:, -1]
        self.position += 1
        if self.position % self.model.config.horizon == 0:
            self._start_afresh()
        return motion
